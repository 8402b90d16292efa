"The HTTP service as its clients meet it: what it answers, what it refuses and how, what it says of itself."

import base64
import gzip
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import schemathesis
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from serving import (
    KEY,
    START,
    Server,
    certify_only,
    colours,
    copy_run,
    edit_card,
    encoded,
    keep_to_the_document,
    runs,
    serving,
    wait_for,
)

from lados import __version__
from lados.labels import CLASSES
from lados.serve.schemas import Answered, BatchAnswers, Health, HeatMap, Metrics, Models, Problem, Promoted, Ready

PAGE = "https://sea.example"
IMAGE = colours(1)[0]


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    "One process, an exported bundle, a page that may ask."
    home = tmp_path_factory.mktemp("service")
    shutil.copytree(runs(), home / "runs")
    server = Server(home, home / "runs" / "first", CORS_ORIGINS=PAGE, MAX_UPLOAD_SIZE_MB=2, BATCH_JOB_THRESHOLD=4).ready()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    "A process with nothing to serve, no key, and no page that may ask."
    home = tmp_path_factory.mktemp("bare")
    server = Server(home, home / "model", API_KEY=None).alive()
    yield server
    server.stop()


def refused(answer, status, *words) -> Problem:
    "The problem document of a refusal, checked."
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate_json(answer.content)
    assert problem.status == status and problem.title and problem.type.startswith("/problems/")
    assert problem.request_id == answer.headers["x-request-id"]
    assert all(w.lower() in f"{problem.detail} {problem.remedy}".lower() for w in words), problem
    return problem


# --- the contract


@pytest.mark.parametrize("mode", schemathesis.GenerationMode)
def test_answers_are_what_the_document_says(service, mode):
    asked = keep_to_the_document(service, mode, examples=12)
    assert {"/predict", "/models/promote"} <= set(asked) and len(asked) > 30


def test_the_document_is_complete(service):
    document = service.get("/openapi.json").json()
    assert document["info"]["version"] == __version__
    assert {"/predict", "/predict_batch", "/explain", "/health", "/ready", "/models", "/models/promote", "/metrics",
            "/metrics/prometheus"} <= document["paths"].keys()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["description"] and operation["tags"], (method, path)
    assert {"multipart/form-data"} == document["paths"]["/predict"]["post"]["requestBody"]["content"].keys()
    assert "503" in document["paths"]["/predict"]["post"]["responses"]


def valid(document) -> dict:
    "The document, if it keeps to the version of OpenAPI that it names; else the first thing that is wrong."
    checks = pytest.importorskip("openapi_spec_validator", reason="openapi-spec-validator is not installed: `make setup` installs it")
    checks.validate(document)
    return document


def test_the_document_is_one_for_machines(service, tmp_path):
    "Clients are generated from it: valid, with names for operations, and a scheme for the key."
    document = valid(service.get("/openapi.json").json())
    operations = {o["operationId"]: o for path in document["paths"].values() for o in path.values()}
    assert {"predict", "predict_batch", "explain", "promote"} <= operations.keys()
    assert all(name.isidentifier() and "_post" not in name for name in operations)
    (name, scheme), = document["components"]["securitySchemes"].items()
    assert (scheme["type"], scheme["in"], scheme["name"]) == ("apiKey", "header", "X-API-Key")
    assert operations["promote"]["security"] == [{name: ["admin"]}] and operations["predict"]["security"] == [{}, {name: ["predict"]}]
    assert "security" not in operations["ready"]


def test_the_document_with_jobs_is_valid_and_importing_jobs_changes_nothing():
    from lados.core import Settings
    from lados.jobs.routes import router
    from lados.serve.app import create_app

    alone, both = (create_app(Settings(), parts) for parts in ((), [router]))
    document = valid(both.openapi())
    names = [o["operationId"] for path in document["paths"].values() for o in path.values()]
    assert len(names) == len(set(names)) and {"train", "cancel", "events"} <= set(names)
    assert not any("job" in path for path in valid(alone.openapi())["paths"])
    stream = document["paths"]["/job/{job_id}/events"]["get"]["responses"]["200"]["content"]["text/event-stream"]
    assert "itemSchema" not in stream, "OpenAPI knows it since 3.2"


def test_two_applications_have_settings_of_their_own(monkeypatch):
    "Nothing is read when the module is imported, and nothing shared."
    from lados.core import Settings
    from lados.serve.app import create_app

    one, other = create_app(Settings(api_key="a", root_path="/sea")), create_app(Settings(api_key="b"))
    assert (one.state.settings.api_key, other.state.settings.api_key) == ("a", "b")
    assert one.state.problems is not other.state.problems


def test_behind_a_prefix_the_document_says_so(tmp_path):
    with serving(tmp_path / "home", tmp_path / "none", ROOT_PATH="/sea") as server:
        assert valid(server.alive().get("/openapi.json").json())["servers"] == [{"url": "/sea"}]
        assert "/sea/openapi.json" in server.get("/docs").text
        assert server.get("/sea/health").status_code == server.get("/health").status_code == 200, "whether the proxy strips it or not"
        refused(server.post("/predict", content=IMAGE), 503)
        refused(server.post("/sea/predict", content=IMAGE), 503)


def test_the_old_address_of_the_application_serves(tmp_path):
    with serving(tmp_path / "home", tmp_path / "none", app="lados.serve.api:app") as server:
        assert server.alive().get("/health").json()["version"] == __version__


def test_every_answer_is_of_its_model(service):
    one = Answered.model_validate(service.predict(IMAGE, "flight7/0031.png").json())
    assert one.filename == "0031.png" and one.model == "first" and one.engine == "openvino"
    assert sum(one.probabilities.values()) == pytest.approx(1, abs=1e-6) and set(one.probabilities) == set(CLASSES)
    assert one.label == max(one.probabilities, key=one.probabilities.get) == one.prediction_set[0]
    assert one.confidence == max(one.probabilities.values()) and one.distance is not None
    for path, kind in (("/health", Health), ("/ready", Ready), ("/models", Models), ("/metrics", Metrics)):
        kind.model_validate(service.get(path).json())


def test_an_image_is_the_same_as_form_or_as_body(service):
    answers = [service.predict(IMAGE), service.post("/predict", content=IMAGE, headers={"Content-Type": "image/png"}),
               service.post("/predict", content=IMAGE, headers={"Content-Type": "application/octet-stream"}),
               service.post("/predict", content=IMAGE), service.post("/predict", files={"anything": ("x", IMAGE)})]
    assert {r.status_code for r in answers} == {200}
    assert len({json.dumps(r.json()["probabilities"]) for r in answers}) == 1


def test_a_batch_keeps_its_order_and_names_what_is_bad(service):
    images = [("a.png", IMAGE), ("notes.txt", b"Dear all"), ("cut.png", IMAGE[:200]), ("b.png", colours(2, seed=5)[1])]
    answer = service.post("/predict_batch", files=[("files", p) for p in images])
    batch = BatchAnswers.model_validate(answer.json())
    assert [r.filename for r in batch.results] == [n for n, _ in images] and (batch.answered, batch.failed) == (2, 2)
    assert [r.error.status for r in batch.results[1:3]] == [415, 422]
    for i in (0, 3):
        alone = service.predict(images[i][1]).json()
        assert answer.json()["results"][i]["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-5)


def test_more_images_than_the_threshold_are_refused(service):
    exactly = service.post("/predict_batch", files=[("files", ("a.png", IMAGE))] * 4)
    assert exactly.status_code == 200 and exactly.json()["answered"] == 4
    refused(service.post("/predict_batch", files=[("files", ("a.png", IMAGE))] * 5), 413, "more than 4", "BATCH_JOB_THRESHOLD")
    refused(service.post("/predict", files=[("file", ("a.png", IMAGE))] * 2), 413, "more than 1")


def test_an_explanation_is_an_image_and_shares(service):
    heat = HeatMap.model_validate(service.post("/explain", params={"label": "ship"}, files={"file": ("a.png", IMAGE)}).json())
    layer = Image.open(io.BytesIO(base64.b64decode(heat.heatmap_png)))
    assert heat.label == "ship" and layer.mode == "RGBA" and layer.size == (32, 32)
    shares = heat.thirds
    assert sum(shares[k] for k in ("left", "centre", "right")) == pytest.approx(1, abs=1e-4)
    assert sum(shares[k] for k in ("top", "middle", "bottom")) == pytest.approx(1, abs=1e-4)
    likeliest = service.post("/explain", files={"file": ("a.png", IMAGE)}).json()["label"]
    assert likeliest == service.predict(IMAGE).json()["label"]
    refused(service.post("/explain", params={"label": "shipp"}, files={"file": ("a.png", IMAGE)}), 422, "shipp", "'ship'")


# --- refusals


def test_refusals_say_what_to_do(service):
    noise = encoded(np.random.default_rng(0).integers(0, 255, (900, 900, 3), np.uint8))
    refused(service.predict(noise), 413, "2.4 MB", "MAX_UPLOAD_SIZE_MB")
    stream = (noise[i:i + 65_536] for i in range(0, 2_400_000, 65_536)) # of unknown length
    refused(service.post("/predict", content=stream, headers={"Content-Type": "image/png"}), 413, "larger than 2 MB")
    refused(service.predict(b"Dear all,"), 415, "not an image", "JPEG")
    refused(service.post("/predict", json={"a": 1}), 415, "json", "multipart/form-data")
    refused(service.predict(b""), 415, "0 bytes")
    refused(service.predict(IMAGE[:300]), 422, "cut short")
    refused(service.post("/predict", data={"file": "a.png"}, files={}), 415)
    refused(service.post("/predict", files={"file": (None, "text")}), 400, "no image", "file name")
    refused(service.post("/predict", content=b"--x", headers={"Content-Type": "multipart/form-data"}), 400)
    cut = service.post("/predict", headers={"Content-Type": "multipart/form-data; boundary=x"},
                       content=b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n' + IMAGE)
    refused(cut, 400, "cut short")
    refused(service.get("/nowhere"), 404, "/docs")
    refused(service.get("/predict"), 405)
    refused(service.post("/models/promote", json={"model": 7}), 401, "X-API-Key")
    refused(service.post("/models/promote", json={"model": 7}, headers={"X-API-Key": KEY}), 422, "model")
    refused(service.post("/models/promote", content=b"{", headers={"Content-Type": "application/json"}), 422)


def test_a_request_id_is_kept_if_it_is_plain_and_made_otherwise(service):
    for given, kept in (("flight-7_0031.a", True), ("x" * 65, False), ("a b", False), ("a;b", False), ("", False), ("ä", False)):
        answer = service.get("/health", headers={"X-Request-ID": given.encode()})
        assert (answer.headers["x-request-id"] == given) == kept and len(answer.headers["x-request-id"]) >= 1
    assert service.get("/health").headers["x-request-id"] != service.get("/health").headers["x-request-id"]


def test_headers_make_browsers_careful(service):
    for path in ("/health", "/nowhere", "/docs"):
        headers = service.get(path).headers
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
        assert "frame-ancestors 'none'" in headers["content-security-policy"] and "server" not in headers
    assert "default-src 'none'" in service.get("/health").headers["content-security-policy"]


def test_large_answers_are_compressed_for_those_who_ask(service):
    small = service.get("/health", headers={"Accept-Encoding": "gzip"})
    large = service.get("/openapi.json", headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in small.headers and large.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in service.get("/openapi.json", headers={"Accept-Encoding": "identity"}).headers


def test_the_root_says_where_to_go_on(service):
    links = service.get("/").json()["links"]
    assert {"docs", "health", "ready", "models", "metrics"} <= links.keys()
    assert all(service.get(path).status_code == 200 for path in links.values())


def test_every_page_that_answers_get_answers_head(service):
    for path in service.get("/").json()["links"].values():
        get, head = service.get(path), service.client.head(path)
        assert head.status_code == get.status_code and head.content == b"", path
        assert head.headers["content-type"] == get.headers["content-type"], path
    assert service.client.head("/predict").status_code == 405 and service.client.head("/nothing").status_code == 404


def test_a_body_that_cannot_be_taken_apart_is_told_why(service):
    zipped = service.post("/predict", content=gzip.compress(IMAGE), headers={"Content-Encoding": "gzip", "Content-Type": "image/png"})
    refused(zipped, 400, "compressed", "gzip", "as it is")
    refused(service.post("/predict", content=IMAGE, headers={"Content-Type": "multipart/form-data"}), 400, "boundary")
    assert service.predict(IMAGE).status_code == 200, "the connection goes on"


def test_jobs_can_be_cancelled_from_pages_elsewhere(service):
    asks = {"Origin": PAGE, "Access-Control-Request-Method": "DELETE"}
    assert service.client.options("/job/abc", headers=asks).status_code == 200


def test_pages_elsewhere_may_ask_only_where_the_settings_say_so(service, bare):
    asks = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    open_ = service.client.options("/predict", headers=asks)
    assert open_.headers["access-control-allow-origin"] == PAGE
    assert service.get("/health", headers={"Origin": PAGE}).headers["access-control-allow-origin"] == PAGE
    for server, origin in ((service, "https://evil.example"), (bare, PAGE)):
        for answer in (server.client.options("/predict", headers={**asks, "Origin": origin}),
                       server.get("/health", headers={"Origin": origin})):
            assert "access-control-allow-origin" not in answer.headers


def test_what_changes_the_service_needs_its_key(service, bare):
    for key in (None, "", "wrong", KEY[:-1], KEY + "x", KEY.upper(), "ä"):
        headers = {"X-API-Key": key.encode()} if key is not None else {}
        answer = service.post("/models/promote", json={"model": "second"}, headers=headers)
        refused(answer, 401, "key")
        assert "www-authenticate" in answer.headers
    for headers in ({}, {"X-API-Key": ""}, {"X-API-Key": "None"}):
        refused(bare.post("/models/promote", json={"model": "first"}, headers=headers), 401, "API_KEY")
    assert service.get("/ready").json()["model"] == "first"


def test_the_key_is_compared_in_constant_time():
    import inspect

    from lados import keys

    assert "hmac.compare_digest" in inspect.getsource(keys.KeyRing.find)


def test_a_defect_is_told_with_an_id_and_without_its_inside(tmp_path):
    route = 'from lados.serve.app import app\nasync def broken(): raise RuntimeError("inner secret")\napp.add_api_route("/broken", broken)'
    with serving(tmp_path / "home", tmp_path / "none", code=route + START) as server:
        answer = server.alive().get("/broken", headers={"X-Request-ID": "mine"})
        problem = refused(answer, 500, "request id")
        assert "secret" not in answer.text and problem.request_id == "mine" and answer.headers["x-frame-options"] == "DENY"
        told = wait_for(lambda: [x for x in server.lines() if x.get("http", {}).get("request", {}).get("id") == "mine"
                                 and "response" in x["http"]], 5)
        assert told[0]["http"]["response"]["status_code"] == 500
        assert any("inner secret" in json.dumps(x) for x in server.lines()), "the operator sees it"


# --- models


def test_a_promotion_is_followed_written_down_and_undone(service):
    before = service.predict(IMAGE).json()
    done = Promoted.model_validate(service.promote("second").json())
    assert (done.model, done.before, done.engine) == ("second", "first", "openvino")
    after = service.predict(IMAGE).json()
    assert after["model"] == "second" == service.get("/models").json()["served"]
    assert after["probabilities"] != pytest.approx(before["probabilities"], abs=1e-3)
    assert [m["name"] for m in service.get("/models").json()["models"] if m["served"]] == ["second"]
    assert service.promote("first").json()["before"] == "second"
    refused(service.promote("third"), 404, "third", "/models")
    refused(service.promote("first", "openvinoo"), 409, "openvino")
    refused(service.promote("second", "onnxruntime"), 409, "not exported")


def test_damaged_bundles_are_listed_with_their_errors_and_not_served(service):
    folder = service.home / "runs"
    good = (folder / "second" / "bundle" / "card.json").read_text()
    flip = bytearray((folder / "second" / "bundle" / "openvino" / "model.bin").read_bytes())
    flip[len(flip) // 2] ^= 1
    copies = {name: copy_run(folder / "second", folder / name) / "bundle" for name in ("newer", "order", "flipped", "seal", "empty")}
    edit_card(copies["newer"], format=99)
    edit_card(copies["order"], classes=CLASSES[::-1])
    (copies["flipped"] / "openvino" / "model.bin").write_bytes(flip)
    (copies["seal"] / "card.json").write_text(good.replace("second", "secand"))
    (copies["empty"] / "card.json").write_text("")
    odd = {"list": "[]", "null": "null", "words": '{"format": "x"}', "deep": "[" * 100_000,
           "classes": json.dumps({**json.loads(good), "classes": None, "sealed": False})}
    for name, text in odd.items():
        (folder / name / "bundle").mkdir(parents=True)
        (folder / name / "bundle" / "card.json").write_text(text)
    try:
        listed = {m.name: m for m in Models.model_validate(service.get("/models").json()).models}
        assert listed["first"].error is None and listed["first"].engines["openvino"] == "passed"
        for name, said in (("newer", "another version"), ("order", "its classes are"), ("seal", "SHA-256"), ("empty", "SHA-256")):
            assert said in listed[name].error, listed[name].error
            refused(service.promote(name), 409)
        assert all(listed[name].error for name in odd)
        refused(service.promote("flipped"), 409, "model.bin", "SHA-256", "copy the bundle again")
        assert {service.promote(name).status_code for name in odd} == {409}
        assert service.predict(IMAGE).json()["model"] == "first", "the old one goes on"
        promotions = {s.labels["outcome"]: s.value for f in metrics(service) for s in f.samples if s.name == "model_promotions_total"}
        assert promotions["failed"] >= 10
    finally:
        for name in (*copies, *odd):
            shutil.rmtree(folder / name)


def test_a_promotion_survives_a_restart_until_the_settings_change(tmp_path):
    home = tmp_path / "home"
    shutil.copytree(runs(), home / "runs")
    with serving(home, home / "runs" / "first") as server:
        assert server.ready().promote("second").status_code == 200
    with serving(home, home / "runs" / "first") as server:
        assert server.ready().predict(IMAGE).json()["model"] == "second"
    with serving(home, home / "runs" / "first", LADOS_ENGINE="onnxruntime") as server:
        answer = server.ready().predict(IMAGE).json()
        assert (answer["model"], answer["engine"]) == ("first", "onnxruntime")
    (home / "serve" / "promoted.json").write_text('{"bundle": 7}')
    with serving(home, home / "runs" / "first") as server:
        assert server.ready().predict(IMAGE).json()["model"] == "first"


def test_nothing_to_serve_is_said_and_a_model_that_comes_later_is_served(bare, tmp_path):
    assert bare.get("/health").json() == {"status": "alive", "version": __version__}
    wait_for(lambda: "no such bundle" in bare.get("/ready").text, 20, bare)
    lacking = bare.get("/ready")
    refused(lacking, 503, "model", "MODEL_PATH")
    assert int(lacking.headers["retry-after"]) >= 1
    refused(bare.predict(IMAGE), 503, "no such bundle")
    assert Models.model_validate(bare.get("/models").json()).models == []
    assert Metrics.model_validate(bare.get("/metrics").json()).model is None and bare.get("/metrics/prometheus").status_code == 200
    shutil.copytree(runs() / "second", bare.home / "model")
    assert bare.ready(30).predict(IMAGE).json()["model"] == "model", "what its folder is called"


def test_an_incomplete_bundle_says_what_is_missing(tmp_path):
    shutil.copytree(runs() / "second", tmp_path / "model")
    (tmp_path / "model" / "bundle" / "SHA256SUMS").unlink()
    with serving(tmp_path / "home", tmp_path / "model") as server:
        wait_for(lambda: "SHA256SUMS" in server.alive().get("/ready").text, 20, server)
        refused(server.get("/ready"), 503, "SHA256SUMS is missing", "copy the bundle again")


def test_models_are_listed_while_one_is_loaded(tmp_path):
    "Measuring engines takes a while; whoever looks at the list need not wait for it. A kept measurement may be damaged."
    model = Path(shutil.copytree(runs() / "first", tmp_path / "model"))
    certify_only(model / "bundle", "openvino", "onnxruntime")
    with serving(tmp_path, model, LADOS_ENGINE="auto", LADOS_RUNS=runs()) as server:
        server.alive()
        listed = server.get("/models", timeout=60).json()
        assert server.get("/ready").status_code == 503, "it is still being loaded"
        assert {m["name"] for m in listed["models"]} == {"first", "second", "model"}
        server.ready()
    kept = next((tmp_path / "engines").glob("*.json"))
    whole = kept.read_text()
    kept.write_text(whole[:20])
    with serving(tmp_path, model, LADOS_ENGINE="auto") as server:
        assert server.ready().predict(IMAGE).json()["engine"] in json.loads(whole)


# --- what an operator sees


def metrics(server) -> list:
    return list(text_string_to_metric_families(server.get("/metrics/prometheus").text))


def counted(server, outcome=None) -> float:
    "Images asked about, over all processes."
    return sum(s.value for f in metrics(server) for s in f.samples
               if s.name == "inference_requests_total" and outcome in (None, s.labels["outcome"]))


def test_metrics_count_what_happened(service):
    before = {o: counted(service, o) for o in ("answered", "abstained", "unsupported", "bad_image", "too_large")}
    service.predict(IMAGE)
    service.predict(b"text")
    service.predict(IMAGE[:300])
    service.post("/predict_batch", files=[("files", ("a.png", IMAGE)), ("files", ("b", b"text"))])
    service.post("/predict", content=bytes(2_500_000))
    after = {o: counted(service, o) - n for o, n in before.items()}
    assert after["answered"] + after["abstained"] == 2
    assert (after["unsupported"], after["bad_image"], after["too_large"]) == (2, 1, 1)
    told = Metrics.model_validate(service.get("/metrics").json())
    assert told.inference["latency"]["total"]["count"] >= 2 and told.inference["recent"]["images"] >= 2
    assert {"inference_requests", "inference_latency_seconds", "inference_drift_score"} <= {f.name for f in metrics(service)}


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_prometheus_finds_nothing_to_correct(service):
    service.predict(IMAGE)
    text = service.get("/metrics/prometheus").text
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
    ours = [line for line in (checked.stdout + checked.stderr).splitlines() if line.startswith(("inference", "model", "batch"))]
    assert not ours and "error" not in checked.stderr.lower(), checked.stderr


def test_the_log_knows_requests_and_no_secrets(service):
    marks = {"key": KEY, "query": "kiwi-in-the-query", "content": "pear-in-the-upload", "field": "plum-in-a-field"}
    ids = []
    for call in (lambda: service.get("/health", params={"token": marks["query"]}),
                 lambda: service.predict(marks["content"].encode()),
                 lambda: service.post("/predict", data={"note": marks["field"]}, files={"file": ("a.png", IMAGE)}),
                 lambda: service.promote("nothing"), lambda: service.promote("first", key="quince-a-wrong-key")):
        ids.append(call().headers["x-request-id"])
    lines = {}
    wait_for(lambda: lines.update({x["http"]["request"]["id"]: x for x in service.lines() if "http" in x}) or set(ids) <= set(lines), 5)
    for line in (lines[i] for i in ids):
        assert {"@timestamp", "log.level", "message", "ecs.version", "url", "event"} <= line.keys()
        assert line["event"]["duration"] > 0 and line["http"]["response"]["status_code"] in (200, 401, 404, 415)
    assert lines[ids[2]]["labels"]["model"] == "first" and lines[ids[2]]["labels"]["class"] in CLASSES
    everything = service.out.read_text() + service.err.read_text()
    for mark in (*marks.values(), "quince"):
        assert mark[:8] not in everything, mark


# --- pages


@pytest.fixture(scope="module")
def browser():
    chromium = "/usr/bin/chromium"
    if not Path(chromium).exists():
        pytest.skip(f"{chromium} is not there")
    api = pytest.importorskip("playwright.sync_api")
    quiet = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
             "--disable-sync"]
    with api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=quiet)
        yield browser
        browser.close()


@pytest.mark.parametrize(("path", "shown"), [("/docs", ".opblock-summary-path"), ("/redoc", "[id*=predict]")])
def test_documentation_needs_no_other_host(service, browser, path, shown):
    page, asked, told = browser.new_page(), [], []
    page.on("request", lambda r: asked.append(r.url))
    page.on("console", lambda m: told.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: told.append(str(e)))
    page.goto(service.url + path)
    page.wait_for_selector(shown, timeout=20_000)
    page.wait_for_timeout(500)
    text = page.inner_text("body")
    assert "/predict" in text and "/models/promote" in text
    assert {u for u in asked if not u.startswith((service.url, "data:", "blob:"))} == set()
    assert not [t for t in told if "favicon" not in t], told
    page.close()


# --- processes


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    "Two processes behind one port, started as a user does."
    home = tmp_path_factory.mktemp("pair")
    shutil.copytree(runs(), home / "runs")
    code = ('import sys\nfrom lados.cli.main import main\nsys.argv = ["lados", "serve", "--port", "{port}", "--workers", "{workers}"]\n'
            'if __name__ == "__main__":\n    main()\n')
    free = Server.free_port()
    server = Server(home, home / "runs" / "first", workers=2, port=free, code=f'print("port {free}", flush=True)\n' + code).ready()
    yield server
    server.stop()


def served_by_all(server, times=24) -> set[str]:
    "Which models new connections find; enough of them to meet every process."
    return {httpx.get(f"{server.url}/ready", trust_env=False).json().get("model") for _ in range(times)}


def test_counters_add_up_over_processes(pair):
    wait_for(lambda: served_by_all(pair) == {"first"}, 60, pair)
    for _ in range(40):
        with httpx.Client(base_url=pair.url, trust_env=False) as client:
            assert client.post("/predict", content=IMAGE).status_code == 200
    seen = {x["process"]["pid"] for x in pair.lines() if x.get("url", {}).get("path") == "/predict"}
    assert len(seen) == 2, "both processes answered"
    assert counted(pair, "answered") + counted(pair, "abstained") == 40
    assert sum(v for k, v in pair.get("/metrics").json()["inference"]["outcomes"].items() if k in ("answered", "abstained")) == 40


def test_every_process_follows_a_promotion(pair):
    wait_for(lambda: served_by_all(pair) == {"first"}, 60, pair)
    assert pair.promote("second").status_code == 200
    wait_for(lambda: served_by_all(pair) == {"second"}, 20, pair)
    assert pair.promote("first").status_code == 200
    wait_for(lambda: served_by_all(pair) == {"first"}, 20, pair)


def test_promotions_at_the_same_time_end_in_one_model(pair):
    from concurrent.futures import ThreadPoolExecutor

    def ask(i):
        return httpx.post(f"{pair.url}/models/promote", json={"model": ("first", "second")[i % 2], "engine": "openvino"},
                          headers={"X-API-Key": KEY}, timeout=60, trust_env=False).status_code

    for _ in range(3):
        with ThreadPoolExecutor(6) as pool:
            assert set(pool.map(ask, range(6))) == {200}
        wait_for(lambda: served_by_all(pair) == {json.loads((pair.home / "serve" / "promoted.json").read_text())["model"]}, 20, pair)


def test_a_process_that_dies_is_replaced(pair):
    wait_for(lambda: len(served_by_all(pair)) == 1, 30, pair)
    before = counted(pair)
    pid = next(x["process"]["pid"] for x in reversed(pair.lines()) if x.get("url", {}).get("path") == "/ready")
    next(p for p in pair.family() if p.pid == pid).kill()
    wait_for(lambda: pid not in [p.pid for p in pair.family()] and len(pair.family()) >= 3, 60, pair)
    wait_for(lambda: httpx.get(f"{pair.url}/ready", trust_env=False).status_code == 200 and None not in served_by_all(pair), 60, pair)
    assert counted(pair) >= before, "what the dead process counted stays"


def test_workers_leave_with_their_parent(tmp_path):
    "A parent that is killed outright leaves no process behind that holds the port."
    with serving(tmp_path, runs() / "second", workers=2) as server:
        family = server.ready().family()
        assert len(family) >= 3
        server.process.kill()
        assert not psutil.wait_procs(family[1:], 20)[1]


def test_a_port_that_is_taken_is_said(service, tmp_path):
    words = [sys.executable, "-c", "from lados.cli.main import main; main()", "serve", "--port", str(service.port)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "another program listens there" in done.stderr and "--port" in done.stderr
    assert "Traceback" not in done.stderr


def test_importing_the_api_loads_no_training():
    code = ("import sys, lados.serve.app; "
            "print(*sorted({'torch', 'fastai', 'matplotlib', 'timm', 'sklearn', 'IPython', 'pandas'} & set(sys.modules)))")
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert not loaded, f"loaded: {loaded}"
