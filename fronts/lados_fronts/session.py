"""The outbox of a visitor: sends what waits, each image once, hands many of them in as a job, and goes on by itself when the service is back."""

import asyncio
import base64
import hashlib
import logging
import sys
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from lados.client import ApiError, Busy, Forbidden, NotFound, Unavailable

from .keep import PENDING, Item, Keep
from .service import Place, Served, served_now
from .texts import texts

AT_ONCE = 4 # requests on their way
PAUSES = (0.5, 1.0, 2.0, 4.0) # seconds between two looks at a service that is away
IDLE = 600.0 # seconds without a visit, after which a session that has nothing to do is closed
LIVE = ("queued", "running")
GIVEN_UP = ("cancelled", "failed")
T = TypeVar("T")
log = logging.getLogger("lados.fronts")


class Session:
    "One visitor's work with the service. Its coroutines run in one event loop; everything else may call from any thread."

    def __init__(self, keep: Keep, place: Place):
        self.keep, self.place = keep, place
        self.served = Served()
        self.away: Exception | None = None # why nothing goes on just now; none: all is well
        self.handing = 0 # images that are being handed in as a job
        self.client = place.async_client()
        self.over = False
        self.visited = time.monotonic()
        self.looked = threading.Event() # set once it is known whether the service is there

    # what goes on by itself

    async def work(self) -> None:
        "Send, follow jobs, and look whether the service is there; until `over`, or until nobody comes and nothing is to do."
        self.keep.recover()
        looked, failed = 0.0, 0
        while not self.over and not self._left():
            try:
                if self.away or time.monotonic() - looked > 15:
                    await self.look()
                    looked = time.monotonic()
                await self._send()
                await self._follow()
                self.away, failed = None, 0
            except Exception as error: # also one of a sort that nobody thought of: the outbox must not die
                if not isinstance(error, ApiError):
                    log.exception("the outbox stumbled, and goes on")
                self.away, failed = error, failed + 1
            self.looked.set()
            await asyncio.sleep(PAUSES[min(failed, len(PAUSES)) - 1] if failed else 0.2)
        await self.client.close()

    def _left(self) -> bool:
        "Return True, with the session off the list, once its visitor has gone and nothing waits."
        if time.monotonic() - self.visited < IDLE or any(self.keep.counts()[s] for s in PENDING) or not all(j["collected"] for j in self.keep.jobs()):
            return False
        with _lock:
            if time.monotonic() - self.visited > IDLE and _sessions.get(self.keep.visitor) is self:
                del _sessions[self.keep.visitor]
                self.over = True
        return self.over

    async def look(self) -> None:
        "See what is served; raises ApiError."
        about, models = await asyncio.gather(self.client.about(), self.client.models())
        self.served = served_now(about, models)

    async def _send(self) -> None:
        queue = True # as far as is known
        while waiting := self.keep.counts()["waiting"]: # asked anew each time, as more may come meanwhile
            if queue and waiting > self.served.threshold:
                queue = await self._hand_in(self.keep.claim(waiting))
                continue
            results = await asyncio.gather(*map(self._one, self.keep.claim(AT_ONCE)), return_exceptions=True)
            if error := next((r for r in results if r), None):
                raise error

    async def _one(self, item: Item) -> None:
        "Send an image; it waits again if the service is away."
        try:
            await self._fit(item)
            answer = await self.client.predict(self.keep.path(item.key), item.name)
        except (Unavailable, Busy, Forbidden):
            self.keep.change(item.key, state="waiting")
            raise
        except Exception as error:
            self._failed(item.key, error)
        else:
            self.keep.change(item.key, state="done", answer=answer, error="", remedy="")

    async def _fit(self, item: Item) -> None:
        limit = self.served.limits.get("image_bytes")
        if limit and item.bytes > limit:
            fit = partial(self.keep.fit, item.key, limit)
            fit() if sys.platform == "emscripten" else await asyncio.to_thread(fit) # no threads there

    def _failed(self, key: str, error: Exception) -> None:
        said = (error.detail, error.remedy) if isinstance(error, ApiError) else (str(error), "")
        name = (self.keep.get(key) or Item(key, "", 0, "")).name
        self.keep.change(key, state="failed", error=said[0].removeprefix(f"{name}: "), remedy=said[1],
                         answer={"title": getattr(error, "title", "")})

    # jobs

    async def _hand_in(self, items: list[Item]) -> bool: # False: there is no queue, so they go one by one
        "Hand many images in as one job."
        self.handing = len(items)
        try:
            for item in items:
                await self._fit(item)
            view = await self.client.predict_batch([(i.name, self.keep.path(i.key)) for i in items], name=f"{len(items)} images")
        except (Busy, ApiError, OSError) as error:
            self.keep.change_all("sending", "waiting")
            if isinstance(error, Unavailable | Forbidden) or (isinstance(error, Busy) and not error.type.endswith(("no-queue", "no-job-store"))):
                raise
            log.warning("%d images go one by one: %s", len(items), error)
            return False
        finally:
            self.handing = 0
        if "results" in view: # the service's threshold is a higher one
            for item, result in zip(items, view["results"], strict=True):
                self._take(item, result)
        else:
            self.keep.begin_job(view, [i.key for i in items])
        return True

    def _take(self, item: Item, result: dict[str, Any]) -> None:
        "Take an image's entry in an answer for many."
        if isinstance(result.get("error"), dict):
            self._failed(item.key, ApiError.from_problem(result["error"]))
        else:
            self.keep.change(item.key, state="done", answer=result)

    async def _follow(self) -> None:
        "Look at the jobs that run, and fetch what came of them."
        for job in self.keep.jobs():
            if not job["collected"] and self._due(job):
                await self._look_at(job)

    def _due(self, job: dict[str, Any]) -> bool:
        seen = getattr(self, "_seen", None)
        if seen is None:
            seen = self._seen = {}
        due = time.monotonic() - seen.get(job["id"], -9.0) > 0.8
        if due:
            seen[job["id"]] = time.monotonic()
        return due

    async def _look_at(self, job: dict[str, Any]) -> None:
        try:
            view = await self.client.job(job["id"])
        except NotFound: # forgotten by the service: its images can be sent anew
            self.keep.change_all("job", "waiting", job["id"])
            self.keep.see_job({**job, "state": "cancelled"}, collected=True)
            return
        if view["state"] == "succeeded":
            rows = await self.client.results(job["id"], "json")
            self._collect(job["keys"], rows)
        elif view["state"] in GIVEN_UP:
            for key in job["keys"]:
                if (item := self.keep.get(key)) and item.state == "job":
                    self.keep.change(key, state="failed", error=view.get("error") or "the job was cancelled", remedy="send them again")
        self.keep.see_job(view, collected=view["state"] not in LIVE)

    def _collect(self, keys: list[str], rows: list[dict[str, Any]]) -> None:
        found = [(key, answer_of(row, self.served), row.get("error") or "") for key, row in zip(keys, rows, strict=False)]
        self.keep.answered([(key, "done" if answer else "failed", answer, "" if answer else error) for key, answer, error in found])

    # what a visitor asks for; awaited in the session's own loop

    async def explain(self, key: str, label: str | None = None) -> tuple[bytes, dict[str, float], str]: # PNG, thirds, class
        "Return where in an image an answer comes from."
        item = self.keep.get(key)
        label = label or (item.answer.get("label") if item else None) or ""
        if not (known := self.keep.heat(key, label)):
            found = await self.client.explain(self.keep.path(key), label or None, item.name if item else None)
            known = base64.b64decode(found["heatmap_png"]), found["thirds"]
            self.keep.save_heat(key, label, *known)
        return *known, label

    async def correct(self, key: str, label: str | None) -> None: # None: take it back
        "Keep what a person says that an image is, where the service keeps corrections."
        item = self.keep.get(key)
        if item and label:
            await self.client.correct(self.keep.path(key), label, item.answer, item.name)
        elif item and item.label:
            with suppress(NotFound):
                await self.client.undo_correction(hashlib.sha256(self.keep.path(key).read_bytes()).hexdigest()) # as it was sent
        self.keep.change(key, label=label)

    async def cancel(self, job_id: str) -> None:
        "Stop a job."
        self.keep.see_job(await self.client.cancel(job_id))

    def again(self) -> None:
        "Send once more what failed, where an image is there to send."
        for item in self.keep.items():
            if item.state == "failed" and item.bytes:
                self.keep.change(item.key, state="waiting", error="", remedy="")

    def ask(self, what: Coroutine[Any, Any, T]) -> Future[T]:
        "Run a coroutine in the session's loop."
        return asyncio.run_coroutine_threadsafe(what, _loop())

    def problem(self, error: Exception | None = None) -> Any: # a `Problem`, or none
        "Return an error, or why nothing goes on, in the visitor's language."
        from .service import problem_of

        error = error or self.away
        return problem_of(error, self.place, texts(self.keep.setting("language", "en"))) if error else None


def answer_of(
    row: dict[str, Any], # of a job's table
    served: Served,
) -> dict[str, Any]: # as `predict` gives it; empty: there is none
    "Return the answer that a row of a table stands for."
    if row.get("error") or not row.get("predicted"):
        return {}
    listed = {n: (row[n].split("|") if row[n] else []) if isinstance(row.get(n), str) else row.get(n) for n in ("prediction_set", "not_covered")}
    told = {"image", "predicted", "error", "prediction_set", "not_covered", "abstain", "model", "engine"} # otherwise, below
    plain = {n: v for n, v in row.items() if n not in told and not n.startswith("p_")} # those that a package has added, too
    shares = {k.removeprefix("p_"): v for k, v in row.items() if k.startswith("p_")}
    abstain = row.get("abstain") in (True, "True", "true", 1)
    return {"label": row["predicted"], "probabilities": shares, **listed, **plain, "abstain": abstain,
            "model": row.get("model") or served.model, "engine": row.get("engine") or served.engine}


# one loop for all sessions of a process

_sessions: dict[str, Session] = {}
_lock = threading.Lock()
_running: list[asyncio.AbstractEventLoop] = []


def _loop() -> asyncio.AbstractEventLoop:
    if not _running:
        if sys.platform == "emscripten": # no threads there
            _running.append(asyncio.get_event_loop())
        else:
            _running.append(asyncio.new_event_loop())
            threading.Thread(target=_running[0].run_forever, daemon=True, name="sessions").start()
    return _running[0]



def session_of(keep: Keep) -> Session:
    "Return the session of a visitor, at the service that the visitor's settings or the environment name."
    given = Place.from_environment()
    place = Place(keep.setting("url") or given.url, keep.setting("key") or given.key)
    with _lock:
        session = _sessions.get(keep.visitor)
        if session and session.place == place:
            session.visited = time.monotonic()
            return session
        if session:
            session.over = True
        session = _sessions[keep.visitor] = Session(keep, place) # its client opens no connection before it is used
        asyncio.run_coroutine_threadsafe(session.work(), _loop())
    return session
