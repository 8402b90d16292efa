"Many at once: answers belong to their images, promotions and the end of the service lose nobody, and too much is said at once."

import asyncio
import json
import shutil
import signal
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image
from serving import KEY, Server, colours, copy_run, encoded, read_all, runs, serving, wait_for

from lados.labels import CLASSES
from lados.serve.predictor import Predictor

CLOSE = 2e-3 # a batch of another size may round otherwise
APART = 2e-2 # what images differ by, so that a mix-up shows


def ask(predictor, data) -> np.ndarray:
    "Probabilities without a service."
    return predictor.predict(predictor.decode(data)[None])[0][0]


def probs(answer) -> np.ndarray:
    return np.array([answer["probabilities"][c] for c in CLASSES])


@pytest.fixture(scope="module")
def truth():
    "Images that both models answer measurably otherwise, and what each model says of them."
    models = {name: Predictor.setup(runs() / name, "openvino") for name in ("first", "second")}
    chosen, known = [], []
    for data in colours(600, seed=3):
        said = np.stack([ask(m, data) for m in models.values()])
        if all(np.abs(said[1] - k[1]).max() > APART for k in known) and np.abs(said[0] - said[1]).max() > APART:
            chosen.append(data)
            known.append(said)
    assert len(chosen) >= 20
    return chosen, dict(zip(models, np.stack(known, 1), strict=True))


@pytest.fixture
def home(tmp_path):
    "A folder with the runs, for one server."
    shutil.copytree(runs(), tmp_path / "home" / "runs")
    return tmp_path / "home"


async def until_answered(client, path, **options) -> httpx.Response:
    "Ask again as long as the service says that it has too much to do."
    while (answer := await client.post(path, **options)).status_code == 503:
        assert int(answer.headers["retry-after"]) >= 1 and answer.json()["title"] == "Overloaded"
        await asyncio.sleep(0.3 + 0.4 * np.random.random())
    return answer


def test_a_thousand_at_once_get_their_own_answers(home, truth):
    images, known = truth
    context = ssl.create_default_context() # of no use here, but costly to make a thousand times

    async def one(url, i):
        async with httpx.AsyncClient(base_url=url, verify=context, timeout=120, trust_env=False) as client:
            return await asks(client, i)

    async def asks(client, i):
        n = [(i * k) % len(images) for k in (1, 7, 11)]
        data = [images[k] for k in n]
        if i % 4 == 0:
            answer = await until_answered(client, "/predict", files={"file": (f"{i}.png", data[0])})
            return answer.status_code, [(n[0], answer.json())]
        if i % 4 == 1:
            answer = await until_answered(client, "/predict", content=data[0], headers={"Content-Type": "image/png"})
            return answer.status_code, [(n[0], answer.json())]
        if i % 4 == 2:
            files = [("files", (f"{i}-{k}", d)) for k, d in enumerate([data[0], data[1], data[1][:60], data[2]])]
            answer = await until_answered(client, "/predict_batch", files=files)
            results = answer.json()["results"]
            assert [r["filename"] for r in results] == [f"{i}-{k}" for k in range(4)] and results[2]["error"]["status"] == 422
            return answer.status_code, [(n[k], results[j]) for k, j in ((0, 0), (1, 1), (2, 3)) if "error" not in results[j]]
        answer = await until_answered(client, "/predict", content=data[0][:50 + i % 20], headers={"X-Request-ID": f"broken-{i}"})
        assert answer.json()["request_id"] == f"broken-{i}"
        return answer.status_code, []

    async def everyone(url):
        return await asyncio.gather(*(one(url, i) for i in range(1000)))

    with serving(home, home / "runs" / "second", QUEUE_SIZE=600, DEADLINE_S=60) as server:
        server.ready()
        start = time.monotonic()
        results = asyncio.run(everyone(server.url))
        print(f"{time.monotonic() - start:.1f} s")
        together = server.get("/metrics").json()["inference"]
        sizes = [line for line in server.get("/metrics/prometheus").text.splitlines() if line.startswith("inference_batch_size_")]
    assert [status for status, _ in results] == [422 if i % 4 == 3 else 200 for i in range(1000)]
    answers = [pair for _, found in results for pair in found]
    off = [np.abs(probs(a) - known["second"][n]).max() for n, a in answers]
    assert len(off) >= 1000 and max(off) < CLOSE < APART / 5, max(off)
    assert together["outcomes"]["bad_image"] >= 500
    count, total = (float(next(s for s in sizes if k in s).split()[-1]) for k in ("_count", "_sum"))
    assert total / count > 1.2, "images that came together were computed together"


class Clients:
    "Threads that ask until told to stop, and keep everything."

    def __init__(self, url, images, count=6, keep=True):
        self.url, self.images, self.keep = url, images, keep
        self.over, self.answers, self.failures = threading.Event(), [], []
        self.threads = [threading.Thread(target=self.loop, args=(k,), daemon=True) for k in range(count)]
        for t in self.threads:
            t.start()

    def loop(self, k):
        client, n = httpx.Client(base_url=self.url, timeout=60, trust_env=False), k
        while not self.over.is_set():
            n = (n + 7) % len(self.images)
            request_id = f"c{k}-{time.monotonic_ns()}"
            if not self.keep:
                client = httpx.Client(base_url=self.url, timeout=60, trust_env=False)
            try:
                answer = client.post("/predict", content=self.images[n], headers={"X-Request-ID": request_id})
                self.answers.append((request_id, n, answer.status_code, answer.json()))
            except httpx.TransportError as e:
                self.failures.append((request_id, e))
                time.sleep(0.02)
        client.close()

    def stop(self):
        self.over.set()
        for t in self.threads:
            t.join(60)


def right(answers, known) -> None:
    "Every answer is what the model that it names says of its image."
    for request_id, n, status, answer in answers:
        assert status == 200 and answer["request_id"] == request_id, answer
        assert np.abs(probs(answer) - known[answer["model"]][n]).max() < CLOSE


@pytest.mark.parametrize("workers", [1, 2])
def test_promotions_under_load_fail_nobody(home, truth, workers):
    images, known = truth
    damaged = copy_run(home / "runs" / "second", home / "runs" / "damaged") / "bundle" / "openvino" / "model.bin"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\0")
    with serving(home, home / "runs" / "first", workers=workers) as server:
        server.ready()
        wait_for(lambda: {httpx.get(f"{server.url}/ready", trust_env=False).status_code for _ in range(16)} == {200}, 60, server)
        clients = Clients(server.url, images, keep=workers == 1)
        for name in ("second", "first", "damaged", "second", "first") if workers == 1 else ("second", "damaged"):
            answer = server.promote(name)
            assert answer.status_code == (409 if name == "damaged" else 200), answer.text
            time.sleep(0.4 if workers == 1 else 2.5)
        late = len(clients.answers)
        time.sleep(0.5)
        clients.stop()
    assert not clients.failures, clients.failures[:3]
    right(clients.answers, known)
    assert {a["model"] for *_, a in clients.answers} == {"first", "second"} and len(clients.answers) > 50
    assert {a["model"] for *_, a in clients.answers[late:]} == {"first" if workers == 1 else "second"}


def begun(sock, body, name, now) -> None:
    "Send a part of a request, once the service has said that it reads it."
    sock.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nX-Request-ID: %s\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % (
        name, len(body)))
    assert sock.recv(100).startswith(b"HTTP/1.1 100")
    sock.sendall(now)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_end_under_load_answers_everything_that_was_accepted(home, truth, workers):
    images, known = truth
    large = encoded(Image.new("RGB", (6000, 5000)))
    server = Server(home, home / "runs" / "first", workers=workers, DEADLINE_S=30).ready()
    wait_for(lambda: {httpx.get(f"{server.url}/ready", trust_env=False).status_code for _ in range(16)} == {200}, 60, server)
    clients = [Clients(server.url, images, 4), Clients(server.url, images, 4, keep=False)]
    time.sleep(1)
    with server.connect(30) as slow, server.connect(60) as heavy:
        begun(slow, images[0], b"slow", images[0][:100])
        begun(heavy, large, b"heavy", large)
        start = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.7)
        slow.sendall(images[0][100:])
        answer = read_all(slow)
        assert read_all(heavy).startswith(b"HTTP/1.1 200")
    code = server.process.wait(40)
    spent = time.monotonic() - start
    for c in clients:
        c.stop()
    assert answer.startswith(b"HTTP/1.1 200") and b'"label"' in answer, "an upload that had begun is waited for"
    assert code in (0, -signal.SIGTERM)
    answers = [a for c in clients for a in c.answers]
    right(answers, known)
    accepted = {x["http"]["request"]["id"]: x["http"]["response"]["status_code"] for x in server.lines()
                if x.get("url", {}).get("path") == "/predict" and x["http"]["request"]["id"].startswith("c")}
    assert set(accepted.values()) == {200} and len(answers) > 50
    assert set(accepted) <= {request_id for request_id, *_ in answers}, "what the service took, its client has"
    assert not [x for x in server.lines() if x["log.level"] == "error"] and "Traceback" not in server.err.read_text()
    assert not list((home / "serve").glob("metrics-*"))
    print(f"{workers} workers: {len(answers)} answers, ended after {spent:.2f} s with {code}")


def test_the_end_does_not_wait_for_a_model_that_loads(home):
    server = Server(home, home / "runs" / "first", LADOS_ENGINE="auto").alive()
    assert server.get("/ready").status_code == 503
    assert server.stop(seconds=30) in (0, -signal.SIGTERM)
    assert not any(line["message"].startswith("serving ") for line in server.lines())


def test_a_deadline_is_kept_whatever_is_before(home):
    "Twelve images of 50 megapixels: what cannot be decoded in time (on a busy machine none) is refused in time."
    large = encoded(Image.new("RGB", (8000, 6500)))
    with serving(home, home / "runs" / "first", DEADLINE_S=2) as server:
        server.ready()

        def timed(_):
            start = time.monotonic()
            answer = httpx.post(f"{server.url}/predict", content=large, timeout=60, trust_env=False)
            return answer.status_code, answer.headers.get("retry-after"), time.monotonic() - start

        with ThreadPoolExecutor(12) as pool:
            told = list(pool.map(timed, range(12)))
    assert {s for s, *_ in told} in ({503}, {200, 503}) and max(t for *_, t in told) < 5, told
    assert all(after and int(after) >= 1 for s, after, _ in told if s == 503)


def test_too_much_is_said_at_once(home, truth):
    images, known = truth
    with serving(home, home / "runs" / "first", QUEUE_SIZE=2) as server:
        server.ready()

        async def flood():
            limits = httpx.Limits(max_connections=None)
            async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=60, trust_env=False) as client:
                return await asyncio.gather(*(client.post("/predict", content=images[0]) for _ in range(200)))

        answers = asyncio.run(flood())
        assert {a.status_code for a in answers} == {200, 503}
        for a in answers:
            if a.status_code == 503:
                assert int(a.headers["retry-after"]) >= 1 and a.headers["content-type"] == "application/problem+json"
                assert a.json()["request_id"] == a.headers["x-request-id"]
            else:
                assert np.abs(probs(a.json()) - known["first"][0]).max() < CLOSE
        assert server.get("/health").status_code == 200
        outcomes = server.get("/metrics").json()["inference"]["outcomes"]
        assert outcomes["overloaded"] == sum(a.status_code == 503 for a in answers)


def test_a_short_queue_is_no_obstacle_for_one_request_of_many_images(home, truth):
    images, known = truth
    with serving(home, home / "runs" / "first", QUEUE_SIZE=2) as server:
        batch = server.ready().post("/predict_batch", files=[("files", ("a.png", p)) for p in images[:16]]).json()
        assert (batch["answered"], batch["failed"]) == (16, 0)
        for n, result in enumerate(batch["results"]):
            assert np.abs(probs(result) - known["first"][n]).max() < CLOSE
        assert server.post("/explain", content=images[0]).status_code == 200


@pytest.mark.long
def test_services_that_share_a_home_follow_one_another(home, tmp_path):
    with serving(home, home / "runs" / "first") as one, serving(
            tmp_path / "other", home / "runs" / "first", LADOS_HOME=home, LADOS_RUNS=home / "runs") as other:
        one.ready()
        other.ready()
        for asked, follows, name in ((one, other, "second"), (other, one, "first"), (one, other, "second")):
            assert asked.promote(name).status_code == 200
            wait_for(lambda f=follows, n=name: f.get("/ready").json().get("model") == n, 20, follows)
        for _ in range(3): # both at once: they end in what was written down last
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(lambda k: httpx.post(f"{(one, other)[k % 2].url}/models/promote", headers={"X-API-Key": KEY}, timeout=60,
                                                   json={"model": ("first", "second")[k // 2], "engine": "openvino"}), range(4)))
            last = json.loads((home / "serve" / "promoted.json").read_text())["model"]
            wait_for(lambda n=last: [s.get("/ready").json().get("model") for s in (one, other)] == [n, n], 20)


def test_requests_that_share_a_connection_keep_their_order(home, truth):
    "Pipelined: sent before the last answer came."
    images, known = truth
    with serving(home, home / "runs" / "first") as server:
        server.ready()
        with server.connect() as sock:
            for n in range(12):
                sock.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nX-Request-ID: p%d\r\nContent-Length: %d\r\n%s\r\n" % (
                    n, len(images[n]), b"Connection: close\r\n" if n == 11 else b"") + images[n])
            came = b"".join(iter(lambda: sock.recv(65536), b""))
    answers = [json.loads(b"{" + part.partition(b"\r\n\r\n{")[2]) for part in came.split(b"HTTP/1.1 200 OK")[1:]]
    assert [a["request_id"] for a in answers] == [f"p{n}" for n in range(12)]
    for n, answer in enumerate(answers):
        assert np.abs(probs(answer) - known["first"][n]).max() < CLOSE
