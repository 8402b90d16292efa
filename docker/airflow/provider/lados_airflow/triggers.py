"Waiting for a job in the triggerer, where thousands of waits share one process and take no worker's slot."

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from lados.client import ApiError, Busy, NotFound, Unavailable

from .hooks import LadosHook

SAID = ("id", "kind", "state", "error", "run") # what an event tells of a job
PAUSE_S = 2.0 # between two connections


class LadosJobTrigger(BaseTrigger):
    "Fires when a job has ended, or when the service has been away for too long."

    def __init__(
        self,
        job_id: str, # whole
        lados_conn_id: str = LadosHook.default_conn_name,
        away_s: float = 3600.0, # for how long the service may be away before the state counts as unknown
        cancel_on_kill: bool = True, # cancel the job of a task that somebody clears or marks while it waits
    ):
        super().__init__()
        self.job_id, self.lados_conn_id, self.away_s, self.cancel_on_kill = job_id, lados_conn_id, away_s, cancel_on_kill

    def serialize(self) -> tuple[str, dict[str, Any]]:
        "Return what another triggerer needs to go on. No key: that is the connection's."
        return (f"{type(self).__module__}.{type(self).__name__}",
                {"job_id": self.job_id, "lados_conn_id": self.lados_conn_id, "away_s": self.away_s, "cancel_on_kill": self.cancel_on_kill})

    async def run(self) -> AsyncIterator[TriggerEvent]:
        "Yield the one event."
        self.away_since = None
        while True:
            try:
                job = await self._follow()
            except (Unavailable, Busy) as e:
                self.away_since = self.away_since or time.monotonic()
                self.log.warning("job %s: the service does not answer: %s", self.job_id[:8], e)
                if time.monotonic() - self.away_since > self.away_s:
                    yield self._event("unknown", e)
                    return
                await asyncio.sleep(PAUSE_S)
            except ApiError as e: # an answer that no repetition changes: no such job, a proxy that wants a password
                yield self._event("lost" if isinstance(e, NotFound) else "unknown", e)
                return
            else:
                yield TriggerEvent({n: job[n] for n in SAID})
                return

    async def _follow(self) -> dict[str, Any]:
        "Return the job once it has ended; raises what its client raises, above all where the service goes away meanwhile."
        async with await LadosHook(self.lados_conn_id).get_async_conn() as client:
            async for name, job in client.events(self.job_id):
                self.away_since = None
                self.log.info("job %s: %s, %.0f %%", self.job_id[:8], job["state"], 100 * job["fraction"])
                if name == "end":
                    return job
            return await client.job(self.job_id)

    def _event(self, state: str, error: ApiError) -> TriggerEvent:
        return TriggerEvent({"id": self.job_id, "kind": "", "state": state, "error": str(error), "run": None})

    async def on_kill(self) -> None:
        "Cancel the job of a task that somebody clears or marks."
        if self.cancel_on_kill:
            async with await LadosHook(self.lados_conn_id).get_async_conn() as client:
                await client.cancel(self.job_id)
