"The client against the real service, with real jobs, and against servers that behave badly."

import asyncio
import contextlib
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from serving import KEY, Server, colours, runs
from toy import toy_manifest
from working import TRAINING, service, working

import lados.client
from lados.client import ApiError, AsyncClient, Busy, Client, Forbidden, NotFound, TimedOut, Unavailable

IMAGE = colours(1)[0]
BOTH = pytest.mark.parametrize("kind", [Client, AsyncClient])


def ask(kind, url, method, /, *args, key=KEY, bounds=None, **options):
    "What a method of one of the clients answers; of `events` a list."
    async def asking():
        async with AsyncClient(url, key, **bounds or {}) as client:
            found = getattr(client, method)(*args, **options)
            return [e async for e in found] if method == "events" else await found

    if kind is AsyncClient:
        return asyncio.run(asking())
    with Client(url, key, **bounds or {}) as client:
        found = getattr(client, method)(*args, **options)
        return list(found) if method == "events" else found


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "An installation with workers and the API."
    home = tmp_path_factory.mktemp("client")
    shutil.copytree(runs(), home / "runs")
    toy_manifest(home / "data" / "toy", train=24, held=9)
    with working(home), service(home, home / "runs" / "first", BATCH_JOB_THRESHOLD=4, MAX_UPLOAD_SIZE_MB=2) as server:
        yield server.ready()


@pytest.fixture(scope="module")
def trained(place):
    "A training that was asked for twice, and followed to its end."
    asked = {**TRAINING, "epochs": 2, "data": place.home / "data" / "toy"}
    with Client(place.url, KEY) as client:
        job, again = client.train(**asked), client.train(**asked)
        return job, again, list(client.events(job["id"])), client.wait(job["id"], timeout=120)


class Scripted:
    "A server that answers each connection with the next of its texts, as they are, and the last one for ever."

    def __init__(self, *texts, hang=False):
        self.texts, self.hang, self.requests = list(texts), hang, []
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.socket.accept()
                with connection:
                    self.requests.append(self.read(connection))
                    if self.hang:
                        connection.recv(1) # until the client goes
                    text = self.texts.pop(0) if len(self.texts) > 1 else self.texts[0]
                    connection.sendall(text.encode())

    def read(self, connection) -> bytes:
        head, _, body = connection.recv(65536).partition(b"\r\n\r\n")
        length = next((int(h.split(b":")[1]) for h in head.split(b"\r\n") if h.lower().startswith(b"content-length")), 0)
        while len(body) < length:
            body += connection.recv(65536)
        return head + b"\r\n\r\n" + body

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.socket.shutdown(socket.SHUT_RDWR) # wakes the thread that accepts
        self.socket.close()


def said(status, body="", **headers):
    "An answer as it goes over the wire."
    given = "".join(f"{k.replace('_', '-')}: {v}\r\n" for k, v in {"Content_Length": len(body), **headers}.items())
    return f"HTTP/1.1 {status} X\r\nConnection: close\r\n{given}\r\n{body}"


# --- images


@BOTH
@pytest.mark.parametrize("form", ["path", "bytes", "file"])
def test_an_image_is_a_path_bytes_or_an_open_file(place, tmp_path, kind, form):
    path = tmp_path / "нефть 油.png"
    path.write_bytes(IMAGE)
    with path.open("rb") as file:
        answer = ask(kind, place.url, "predict", {"path": path, "bytes": IMAGE, "file": file}[form])
    assert answer["label"] in answer["probabilities"]
    assert answer["filename"] == ("image" if form == "bytes" else path.name)


@BOTH
def test_a_small_batch_is_answered_and_a_bad_image_is_an_entry_of_it(place, kind):
    answer = ask(kind, place.url, "predict_batch", [("sea.png", IMAGE), ("notes.txt", b"no image")])
    assert (answer["answered"], answer["failed"]) == (1, 1) and answer["results"][0]["filename"] == "sea.png"
    assert ApiError.from_problem(answer["results"][1]["error"]).status == 415


@BOTH
def test_a_large_batch_becomes_a_job_with_a_table(place, kind):
    job = ask(kind, place.url, "predict_batch", [(f"{kind.__name__}{i}.png", b) for i, b in enumerate(colours(7))], name="flight")
    assert ask(kind, place.url, "wait", job["id"], timeout=120)["state"] == "succeeded"
    assert len(ask(kind, place.url, "results", job["id"]).strip().splitlines()) == 8
    assert len(ask(kind, place.url, "results", job["id"], "json")) == 7
    assert ask(kind, place.url, "results", job["id"], "parquet")[:4] == b"PAR1"


@BOTH
def test_a_folder_of_the_service_becomes_a_job(place, kind):
    job = ask(kind, place.url, "predict_source", str(place.home / "data" / "toy"), kind.__name__)
    assert ask(kind, place.url, "wait", job["id"], timeout=120)["state"] == "succeeded"


@BOTH
def test_an_explanation_is_a_heat_map(place, kind):
    found = ask(kind, place.url, "explain", IMAGE, label="ship")
    assert found["label"] == "ship" and found["heatmap_png"] and found["thirds"]


@BOTH
def test_an_empty_file_is_refused_by_the_service(place, tmp_path, kind):
    (tmp_path / "empty.png").touch()
    with pytest.raises(ApiError) as e:
        ask(kind, place.url, "predict", tmp_path / "empty.png")
    assert e.value.status == 415 and e.value.type.startswith("/problems/") and e.value.remedy and e.value.request_id


@BOTH
def test_a_missing_file_is_found_before_anything_is_sent(tmp_path, kind):
    with Scripted(said(200, "{}")) as server:
        with pytest.raises(FileNotFoundError):
            ask(kind, server.url, "predict_batch", [IMAGE, tmp_path / "none.png"])
        assert not server.requests


def test_an_image_that_is_too_large_is_refused_by_its_length(place):
    with pytest.raises(ApiError) as e:
        ask(Client, place.url, "predict", bytes(3_000_000))
    assert e.value.status == 413


class Pipe(io.RawIOBase):
    "Bytes that come once."

    def __init__(self, data):
        self.data = io.BytesIO(data)

    def readable(self):
        return True

    def readinto(self, buffer):
        return self.data.readinto(buffer)


@BOTH
def test_a_pipe_is_sent_in_chunks(place, kind):
    assert ask(kind, place.url, "predict", Pipe(IMAGE), name="pipe.png")["filename"] == "pipe.png"


class Flood:
    "A server that reads the whole of one body, with a length or in chunks, and keeps nothing of it."

    def __init__(self):
        self.socket, self.size = socket.create_server(("127.0.0.1", 0)), 0
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        connection, _ = self.socket.accept()
        end, buffer = b"", bytearray(65536)
        with connection:
            while not end.endswith((b"--\r\n", b"\r\n0\r\n\r\n")) and (n := connection.recv_into(buffer)):
                self.size, end = self.size + n, (end + bytes(buffer[max(0, n - 8):n]))[-8:]
            connection.sendall(said(200, '{"label": "oil"}').encode())


@BOTH
def test_a_large_upload_is_never_whole_in_memory(tmp_path, kind):
    path = tmp_path / "large.tif"
    with path.open("wb") as file:
        file.truncate(80_000_000)
    server = Flood()
    tracemalloc.start()
    try:
        assert ask(kind, server.url, "predict", path)["label"] == "oil"
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert server.size > 80_000_000 > 8 * peak


def test_the_loop_goes_on_while_a_slow_file_is_read():
    class Slow(Pipe):
        def readinto(self, buffer):
            time.sleep(0.3)
            return super().readinto(buffer)

    async def asking(url):
        async with AsyncClient(url) as client:
            task = asyncio.create_task(client.predict(Slow(b"x" * 10)))
            turns = 0
            while not task.done():
                turns += 1
                await asyncio.sleep(0.01)
            return turns, await task

    turns, _ = asyncio.run(asking(Flood().url))
    assert turns > 10 # the reads alone would leave room for two


# --- jobs


def test_a_training_is_followed_to_its_end(trained):
    job, again, events, ended = trained
    assert again["id"] == job["id"] and again["attached"] and not job["attached"]
    assert [name for name, _ in events][-1] == "end" and {name for name, _ in events[:-1]} == {"job"}
    assert events[-1][1]["state"] == ended["state"] == "succeeded"


@BOTH
def test_what_came_of_a_training(place, trained, kind):
    job = trained[0]["id"]
    assert "test" in ask(kind, place.url, "results", job) and len(ask(kind, place.url, "history", job)["epochs"]) == 2
    assert "<html" in ask(kind, place.url, "report", job)
    assert '"nbformat"' in ask(kind, place.url, "notebook", job)
    assert ask(kind, place.url, "events", job)[-1][0] == "end"


@BOTH
def test_jobs_are_listed_page_by_page(place, trained, kind):
    first = ask(kind, place.url, "jobs", limit=1)
    second = ask(kind, place.url, "jobs", limit=500, before=first["jobs"][-1]["created"])
    assert first["jobs"][0]["id"] not in [j["id"] for j in second["jobs"]]
    assert trained[0]["id"] in [j["id"] for j in ask(kind, place.url, "jobs", state="succeeded", kind="train")["jobs"]]


@BOTH
def test_what_is_not_possible_now_is_said(place, trained, kind):
    for method in ("cancel", "retry"):
        with pytest.raises(ApiError) as e:
            ask(kind, place.url, method, trained[0]["id"])
        assert e.value.status == 409 and type(e.value) is ApiError


@BOTH
@pytest.mark.parametrize("method", ["job", "events", "results", "history", "wait", "cancel"])
def test_a_job_that_there_is_not(place, kind, method):
    for job in ("0" * 32, "../models", "a/b"):
        with pytest.raises(NotFound):
            ask(kind, place.url, method, job)


@BOTH
def test_waiting_ends_when_its_time_is_over_and_a_job_is_cancelled_and_taken_up_again(tmp_path, kind):
    with service(tmp_path) as server: # without workers
        job = ask(kind, server.url, "train", **TRAINING)["id"]
        with pytest.raises(TimeoutError):
            ask(kind, server.url, "wait", job, timeout=0.2)
        assert ask(kind, server.url, "cancel", job)["state"] == "cancelled" and ask(kind, server.url, "retry", job)["state"] == "queued"


# --- the service


@BOTH
def test_the_service_says_how_it_is(place, kind):
    assert ask(kind, place.url, "health")["status"] == "alive" and ask(kind, place.url, "ready")["model"]
    assert "inference" in ask(kind, place.url, "metrics") and "inference_requests_total" in ask(kind, place.url, "prometheus")
    assert ask(kind, place.url, "promote", "second", "openvino")["model"] == "second"
    assert ask(kind, place.url, "models")["served"] == "second"
    with pytest.raises(NotFound):
        ask(kind, place.url, "promote", "third")
    ask(kind, place.url, "promote", "first", "openvino")


@BOTH
@pytest.mark.parametrize("key", [None, "guess", "s\x7fcret\n!", "ключ"])
def test_a_wrong_key_opens_nothing_and_is_never_shown(place, kind, key):
    with pytest.raises(Forbidden) as e:
        ask(kind, place.url, "promote", "second", key=key)
    assert not key or key not in f"{e.value!r} {e.value}"


def test_not_ready_is_said_at_once(tmp_path):
    server = Server(tmp_path, tmp_path / "none").alive()
    try:
        with pytest.raises(Busy) as e:
            ask(Client, server.url, "ready")
        assert e.value.type == "/problems/not-ready" and e.value.retry_after
    finally:
        server.stop()


@BOTH
def test_a_service_that_was_killed_is_unavailable(tmp_path, kind):
    server = Server(tmp_path, runs() / "second").ready()
    url = server.url
    assert ask(kind, url, "predict", IMAGE)["label"]
    server.stop(signal.SIGKILL)
    with pytest.raises(Unavailable) as e:
        ask(kind, url, "predict", IMAGE, bounds={"retries": 1})
    assert not e.value.sent and url in str(e.value) and e.value.status is None


# --- repetitions


@BOTH
def test_a_busy_service_is_asked_again_when_it_says(kind):
    with Scripted(said(503, Retry_After=1), said(429, Retry_After=0), said(200, '{"label": "oil"}')) as server:
        begun = time.monotonic()
        assert ask(kind, server.url, "predict", io.BytesIO(IMAGE))["label"] == "oil"
        assert time.monotonic() - begun >= 1 and len(server.requests) == 3
        assert all(IMAGE in r for r in server.requests) # the file is rewound


def test_a_pause_may_be_a_date():
    now = datetime.now(UTC) + timedelta(hours=5) # the clock of that machine is wrong
    headers = {"Date": format_datetime(now, True), "Retry_After": format_datetime(now + timedelta(seconds=1), True)}
    with Scripted(said(503, **headers), said(200, '{"served": null}')) as server:
        begun = time.monotonic()
        ask(Client, server.url, "models")
        assert time.monotonic() - begun >= 1


@BOTH
def test_a_pause_that_does_not_fit_is_not_waited_for(kind):
    with Scripted(said(503, Retry_After=3600)) as server:
        with pytest.raises(Busy) as e:
            ask(kind, server.url, "predict", IMAGE)
        assert e.value.retry_after == 3600 and len(server.requests) == 1


@BOTH
def test_repetitions_are_counted(kind):
    with Scripted(said(503, Retry_After=0)) as server:
        with pytest.raises(Busy):
            ask(kind, server.url, "train", preset="demo", bounds={"retries": 2})
        assert len(server.requests) == 3


@BOTH
def test_an_answer_cut_short_is_asked_for_again_only_if_that_does_no_harm(kind):
    cut, whole = said(200, '{"state": ', Content_Length=100), said(200, '{"state": "queued"}')
    with Scripted(cut, whole) as server:
        assert ask(kind, server.url, "train", preset="demo")["state"] == "queued"
    for method in ("promote", "retry", "cancel"):
        with Scripted(cut, whole) as server:
            with pytest.raises(Unavailable) as e:
                ask(kind, server.url, method, "5f0c")
            assert e.value.sent and len(server.requests) == 1


@BOTH
def test_a_pipe_is_not_sent_twice(kind):
    with Scripted(said(503, Retry_After=0), said(200, "{}")) as server:
        with pytest.raises((Busy, Unavailable)):
            ask(kind, server.url, "predict", Pipe(IMAGE))
        assert len(server.requests) == 1


@BOTH
def test_a_service_that_hangs_is_asked_once(kind):
    with Scripted("", hang=True) as server:
        with pytest.raises(TimedOut):
            ask(kind, server.url, "models", bounds={"timeout": 0.2})
        assert len(server.requests) == 1


@BOTH
def test_events_go_on_after_the_connection_broke(kind):
    stream = {"Content_Type": "text/event-stream"}
    first = 'retry: 0\nid: 3\nevent: job\ndata: {"state": "queued"}\n\nevent: e'
    with Scripted(said(200, first, Content_Length=500, **stream), said(503, Retry_After=0),
                  said(200, 'event: end\ndata: {"state": "failed"}\n\n', **stream)) as server:
        found = ask(kind, server.url, "events", "5f0c")
        assert found == [("job", {"state": "queued"}), ("end", {"state": "failed"})]
        assert b"last-event-id: 3" in server.requests[-1].lower()


# --- addresses


@BOTH
def test_prefix_user_and_password(kind):
    with Scripted(said(200, '{"served": null}')) as server:
        ask(kind, server.url.replace("//", "//ann:s%40fe@") + "/lados/", "models")
        assert server.requests[0].startswith(b"GET /lados/models ") and b"Basic YW5uOnNAZmU=" in server.requests[0]
    with pytest.raises(Unavailable) as e:
        ask(kind, server.url.replace("//", "//ann:s%40fe@"), "models", bounds={"retries": 0})
    assert "s@fe" not in str(e.value) and "s%40fe" not in str(e.value) and "ann" not in str(e.value)


@pytest.mark.parametrize("text", ["<h1>It works!</h1>", "[]", "null", "1"])
def test_a_stranger_on_the_port_is_named(text):
    with Scripted(said(200, text)) as server, pytest.raises(ApiError) as e:
        ask(Client, server.url, "models")
    assert "is not lados" in e.value.detail and server.url in e.value.detail


def test_a_redirect_does_not_carry_the_key_away():
    with Scripted(said(200, "{}")) as other, Scripted(said(307, Location=f"{other.url}/models")) as server:
        with pytest.raises(ApiError) as e:
            ask(Client, server.url, "models")
        assert e.value.status == 307 and not other.requests


# --- on its own


def test_the_module_works_where_only_httpx_is_installed(tmp_path):
    "Copied out of the package, with every other module of an installation refused."
    shutil.copy(lados.client.__file__, tmp_path / "client.py")
    code = """if True:
        import sys
        kept = sys.stdlib_module_names | {"client", "httpx", "httpcore", "h11", "anyio", "sniffio", "idna", "certifi", "typing_extensions"}
        class NotInstalled:
            def find_spec(self, name, *_):
                if name.split(".")[0] not in kept:
                    raise ModuleNotFoundError(name)
        sys.meta_path.insert(0, NotInstalled())
        import client
        print(client.Client.from_environment().models()["served"], *(m for m in sys.modules if m.startswith("lados")))"""
    with Scripted(said(200, '{"served": "first"}')) as server:
        env = {**os.environ, "LADOS_API_URL": server.url, "PYTHONPATH": str(tmp_path)}
        found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=True, capture_output=True, text=True)
    assert found.stdout.split() == ["first"]


def test_the_package_loads_nothing_else_for_it():
    code = "import sys, lados.client; print(*(m for m in sys.modules if m.startswith('lados')))"
    found = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True, capture_output=True, text=True)
    assert found.stdout.split() == ["lados", "lados.client"]
