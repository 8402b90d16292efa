"Keys over HTTP: which scope opens what, rotation while the service runs, rates across workers, and the trail that is left."

import json
import shutil
import time
from functools import partial

import httpx
import pytest
from fastapi.testclient import TestClient
from serving import KEY, colours, runs, serving, wait_for

from lados.client import Busy, Client, Forbidden
from lados.core import settings
from lados.jobs.routes import router
from lados.keys import SCOPES, add_key, keys_path, remove_key
from lados.serve.app import create_app
from lados.trail import read_trail

IMAGE = colours(1)[0]
JOB, SHA = "0" * 32, "0" * 64
PNG = {"content": IMAGE, "headers": {"content-type": "image/png"}}
OPENS = [ # method, path, what is sent, scopes of which one is enough; each of these is closed without a key, whatever the settings say
    ("POST", "/models/promote", {"json": {"model": "none"}}, {"admin"}),
    ("POST", "/train", {"json": {"preset": "nonsense"}}, {"train"}),
    ("POST", "/jobs", {"json": {"kind": "train", "params": {"preset": "nonsense"}}}, {"train"}),
    ("POST", "/jobs", {"json": {"kind": "export", "params": {"run": "../none"}}}, {"train"}),
    ("POST", "/jobs", {"json": {"kind": "predict", "params": {"sources": ["/etc"]}}}, {"predict"}),
    ("GET", "/jobs", {}, {"train"}), ("GET", "/corrections", {}, {"train"}), ("DELETE", f"/corrections/{SHA}", {}, {"train"}),
    ("POST", "/corrections?label=oil", PNG, {"train"}),
    ("DELETE", f"/job/{JOB}", {}, {"predict", "train"}), ("POST", f"/job/{JOB}/retry", {}, {"predict", "train"}),
]
IMAGES = [("POST", "/predict", PNG), ("POST", "/predict_batch", {"files": [("files", ("a.png", IMAGE))]}), ("POST", "/explain", PNG),
          ("POST", "/predict_batch", {"json": {"source": "/etc"}})]


def send(client, method, path, options, key=None):
    headers = {**options.get("headers", {}), **({"X-API-Key": key} if key else {})}
    return client.request(method, path, **{**options, "headers": headers})


@pytest.fixture
def keys(home):
    "A key for each scope by itself, and one for none but itself that has expired."
    path = keys_path(settings())
    return {scope: add_key(path, f"only-{scope}", [scope]) for scope in SCOPES}


def test_each_scope_opens_what_it_says_and_nothing_else(home, keys):
    client = TestClient(create_app(settings(), [router]))
    with client:
        for method, path, options, scopes in OPENS:
            assert send(client, method, path, options).json()["code"] == "not-allowed", path
            for scope, key in keys.items():
                answer = send(client, method, path, options, key)
                document = answer.json()
                if scope in scopes:
                    assert answer.status_code not in (401, 403, 429, 500), (path, scope, document)
                else:
                    assert (answer.status_code, document["code"]) == (403, "scope-missing"), (path, scope)
                    assert f"only-{scope}" in document["detail"] and all(s in document["detail"] for s in scopes)
    assert settings().api_key is None, "keys of the file open it, without API_KEY"


def test_a_job_is_cancelled_by_a_key_for_its_kind(home, keys):
    from lados.jobs import queue

    with TestClient(create_app(settings(), [router])) as client:
        ids = {"train": queue.submit_job("train", {"preset": "demo"})[0].id}
        refused = send(client, "DELETE", f"/job/{ids['train']}", {}, keys["predict"])
        assert (refused.status_code, refused.json()["code"]) == (403, "scope-missing")
        assert send(client, "GET", f"/job/{ids['train']}", {}).json()["state"] == "queued"
        assert send(client, "DELETE", f"/job/{ids['train']}", {}, keys["train"]).json()["state"] == "cancelled"
    assert [(e["who"], e["action"], e["result"]) for e in read_trail(target=ids["train"])] == [
        ("only-predict", "cancel", "scope-missing"), ("only-train", "cancel", "done")]


def test_classifying_is_open_or_closed_as_the_settings_say(home, keys):
    for open_ in (True, False):
        app = create_app(settings().model_copy(update={"predict_open": open_}), [router])
        with TestClient(app) as client:
            for method, path, options in IMAGES:
                closed = not open_ or "json" in options # what is read on this machine always needs a key
                assert (send(client, method, path, options).status_code == 401) == closed, path
                assert send(client, method, path, options, keys["predict"]).status_code in (413, 422, 503), "no model is there, and nothing else is wrong"
                assert (send(client, method, path, options, keys["admin"]).status_code == 403) == closed
            for path in ("/health", "/ready", "/models", "/metrics", "/metrics/prometheus", "/docs", "/openapi.json", f"/job/{JOB}"):
                assert client.get(path).status_code in (200, 404, 503), path
            ways = client.get("/openapi.json").json()["paths"]["/predict"]["post"]["security"]
            assert ({} in ways) == open_ and {"ApiKey": ["predict"]} in ways


def test_a_known_key_counts_where_classifying_is_open_and_an_unknown_one_is_nobodys(home):
    path = keys_path(settings())
    slow = add_key(path, "slow", ["admin", "predict"], rate=2)
    app = create_app(settings().model_copy(update={"predict_open": True}), [router])
    with TestClient(app) as client:
        ask = lambda key, i=0: send(client, *IMAGES[i], key) # noqa: E731
        assert ask(slow).status_code == 503, "no model is there, and nothing else is wrong"
        assert ask(slow, 3).status_code not in (401, 403, 429), "a folder of this machine needs a key, which counts once"
        late = ask(slow)
        assert (late.status_code, late.json()["code"]) == (429, "rate-limited") and int(late.headers["retry-after"]) >= 1
        for key in (None, "", "lados_of_yesterday"):
            assert ask(key).status_code == 503
        assert ask("lados_of_yesterday", 3).status_code == 401


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    "Two workers that classify for keys only, and the file of keys."
    home = tmp_path_factory.mktemp("two")
    shutil.copytree(runs(), home / "runs")
    with serving(home, home / "runs" / "first", workers=2, PREDICT_OPEN=False) as server:
        ask = {"X-API-Key": KEY}
        wait_for(lambda: server.post("/predict", content=IMAGE, headers={**ask, "content-type": "image/png"}).status_code == 200, 120, server)
        yield server, home / "keys.json"


def predict(server, key) -> httpx.Response:
    "An answer over a connection of its own, so that either worker may give it."
    return httpx.post(f"{server.url}/predict", content=IMAGE, headers={"X-API-Key": key, "content-type": "image/png"}, timeout=60, trust_env=False)


def test_keys_change_while_the_service_runs(two):
    server, path = two
    assert predict(server, "lados_guess").status_code == 401
    old = add_key(path, "camera", ["predict"])
    wait_for(lambda: all(predict(server, old).status_code == 200 for _ in range(16)), 20, server)
    new = add_key(path, "camera-2", ["predict"])
    wait_for(lambda: all(predict(server, new).status_code == 200 for _ in range(16)), 20, server)
    assert all(predict(server, old).status_code == 200 for _ in range(16)), "both are valid"
    remove_key(path, "camera")
    wait_for(lambda: all(predict(server, old).status_code == 401 for _ in range(16)), 20, server)
    assert predict(server, new).status_code == 200
    lines = [line["labels"] for line in server.lines() if line.get("url", {}).get("path") == "/predict"]
    assert {"camera", "camera-2"} <= {x.get("key") for x in lines}, "the log says whose request it was"
    assert not any(k in server.out.read_text() for k in (old, new, KEY))


def test_workers_share_a_rate_and_clients_are_told(two):
    server, path = two
    key, begun = add_key(path, "slow", ["predict"], rate=20), time.monotonic()
    wait_for(lambda: all(predict(server, key).status_code != 401 for _ in range(16)), 20, server) # both workers know it
    answers = [predict(server, key) for _ in range(40)]
    passed = sum(a.status_code == 200 for a in answers)
    assert passed <= 21 + (time.monotonic() - begun) / 3, "two workers, one rate"
    late = next(a for a in answers if a.status_code == 429)
    assert late.json()["code"] == "rate-limited" and late.json()["type"] == "/problems/rate-limited" and 1 <= int(late.headers["retry-after"]) <= 3
    assert predict(server, KEY).status_code == 200, "others go on"
    with Client(server.url, key, retries=0) as client, pytest.raises(Busy) as e:
        for _ in range(60):
            client.predict(IMAGE)
    assert e.value.status == 429 and e.value.retry_after >= 1


def test_the_client_says_which_scope_is_missing_and_the_trail_who_tried(two):
    server, path = two
    key = add_key(path, "analyst", ["predict"])
    ask = partial(httpx.post, f"{server.url}/models/promote", json={"model": "second"}, headers={"X-API-Key": key}, trust_env=False)
    wait_for(lambda: all(ask().status_code == 403 for _ in range(16)), 20, server) # of both workers: each request has a connection of its own
    with Client(server.url, key) as client, pytest.raises(Forbidden) as e:
        client.promote("second")
    assert e.value.status == 403 and e.value.code == "scope-missing" and "admin" in e.value.detail and "--scope admin" in e.value.remedy
    trail = server.home / "audit.jsonl"
    assert not any(e["who"] == "analyst" for e in read_trail(trail)), "a request that is not let in is in the log"
    answer = server.post("/models/promote", json={"model": "second"}, headers={"X-API-Key": KEY, "X-Request-ID": "night-7"})
    assert answer.status_code == 200
    server.post("/models/promote", json={"model": "nowhere"}, headers={"X-API-Key": KEY})
    done, failed = read_trail(trail, action="promote")
    assert (done["who"], done["target"], done["result"], done["request_id"], done["before"]) == ("API_KEY", "second", "done", "night-7", "first")
    assert (failed["target"], failed["result"]) == ("nowhere", "no-such-model")
    assert KEY not in trail.read_text() and json.loads(trail.read_text().splitlines()[0])["at"].endswith("Z")
