"Jobs over HTTP and the command line, with real workers, a real Redis, and real processes."

import io
import json
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import httpx
import pandas as pd
import pytest
import redis
import schemathesis
from serving import KEY, colours, keep_to_the_document, runs, wait_for
from toy import toy_manifest
from working import TRAINING, ended, environment, service, working

KEYED = {"X-API-Key": KEY}


def asked(epochs=2, **more) -> dict:
    return {**TRAINING, "epochs": epochs, **more}


def batch(server, images, path="/predict_batch", **options) -> httpx.Response:
    return server.post(path, files=[("files", (f"{i:04d}.png", p)) for i, p in enumerate(images)], **options)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "An installation with workers and the API, shared by the tests that leave it alone."
    home = tmp_path_factory.mktemp("jobs")
    toy_manifest(home / "data" / "toy", train=24, held=9)
    with working(home), service(home, runs() / "first") as server:
        yield home, server.ready()


@pytest.mark.parametrize("mode", schemathesis.GenerationMode)
def test_answers_are_what_the_document_says(tmp_path, mode):
    "Without workers, so that a training that the generator happens to ask for stays a row."
    with service(tmp_path) as server:
        there = server.post("/train", json=asked(), headers=KEYED).json()["id"]
        server.client.delete(f"/job/{there}", headers=KEYED)
        paths = [p for only in ("/job", "/train") for p in keep_to_the_document(server, mode, only, examples=15, known=there)]
        reached = {"/train"} if mode == schemathesis.GenerationMode.NEGATIVE else {
            "/train", "/jobs", "/job/{job_id}", *(f"/job/{{job_id}}/{n}" for n in ("events", "results", "history", "notebook", "report", "retry"))}
        assert reached <= set(paths), reached - set(paths)


# --- trainings


def test_a_training_over_http(place):
    home, server = place
    answer = server.post("/train", json=asked(3, data=str(home / "data" / "toy")), headers=KEYED)
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert answer.headers["location"] == f"/job/{job['id']}" and job["state"] == "queued" and not job["attached"]
    seen = []
    with server.client.stream("GET", f"/job/{job['id']}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        seen = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: ")]
    assert [s["state"] for s in seen][-1] == "succeeded" and "running" in [s["state"] for s in seen], seen[-1]
    assert seen[-1]["progress"]["epochs_done"] == 3 and seen[-1]["fraction"] == 1
    links = seen[-1]["links"]
    report = server.get(links["report"])
    assert "<html" in report.text and "sandbox" in report.headers["content-security-policy"]
    assert json.loads(server.get(links["notebook"]).text)["nbformat"] == 4
    assert "test" in server.get(links["results"]).json()
    text = server.get("/metrics/prometheus").text
    assert 'batch_jobs_total{kind="train",state="succeeded"}' in text and "batch_job_duration_seconds_bucket" in text


def test_a_hint_that_comes_again_does_nothing(place):
    home, server = place
    job = ended(server, server.post("/train", json=asked(1, seed=76, data=str(home / "data" / "toy")), headers=KEYED).json()["id"])
    code = "import sys; from lados.jobs.queue import send_hints_or_raise as send; from lados.jobs.leases import Task as Part; "
    code += "send([Part(sys.argv[1], 0, 'train', 0, 0)] * 5)"
    subprocess.run([sys.executable, "-c", code, job["id"]], env=environment(home), check=True)
    with redis.Redis(unix_socket_path=str(home / "h" / "redis" / "redis.sock")) as c:
        wait_for(lambda: c.llen("train") == 0, 60)
    time.sleep(1)
    assert server.get(f"/job/{job['id']}").json() == job


def test_an_error_of_the_training_is_told_and_not_tried_again(place):
    home, server = place
    (home / "data" / "empty").mkdir()
    job = ended(server, server.post("/train", json=asked(1, data=str(home / "data" / "empty")), headers=KEYED).json()["id"])
    assert (job["state"], job["attempts"]) == ("failed", 1) and "empty" in job["error"]


@pytest.mark.long
def test_fifty_submits_at_once_are_one_training(place):
    home, server = place
    body = asked(2, data=str(home / "data" / "toy"), seed=50)
    with ThreadPoolExecutor(50) as pool, httpx.Client(base_url=server.url, timeout=60, trust_env=False,
                                                      limits=httpx.Limits(max_connections=50)) as client:
        answers = list(pool.map(lambda _: client.post("/train", json=body, headers=KEYED), range(50)))
    assert {a.status_code for a in answers} == {202}
    assert len({a.json()["id"] for a in answers}) == 1 and sum(not a.json()["attached"] for a in answers) == 1
    job = ended(server, answers[0].json()["id"])
    assert job["state"] == "succeeded" and job["attempts"] == 1
    again = server.post("/train", json=body, headers=KEYED).json() # what has ended may be asked for again
    assert again["id"] != job["id"]
    server.client.delete(f"/job/{again['id']}", headers=KEYED)


def test_jobs_are_listed_page_by_page(place):
    home, server = place
    ids = [server.post("/train", json=asked(1, seed=100 + i, data=str(home / "data" / "toy")), headers=KEYED).json()["id"]
           for i in range(3)]
    for i in ids:
        server.client.delete(f"/job/{i}", headers=KEYED)
    seen, page = [], "/jobs?limit=2&kind=train"
    while page:
        found = server.get(page, headers=KEYED).json()
        seen += [j["id"] for j in found["jobs"]]
        page = found["next"]
    assert len(seen) == len(set(seen)) and seen[:3] == ids[::-1]
    assert server.get("/jobs").status_code == 401
    assert server.get("/jobs?state=asleep", headers=KEYED).json()["detail"].startswith("unknown state")


# --- batches


def test_a_batch_comes_back_in_order_with_its_bad_images(place):
    home, server = place
    images = colours(70, seed=1)
    images[10], images[33] = b"no image", b""
    answer = batch(server, images)
    assert answer.status_code == 202, answer.text
    job = ended(server, answer.json()["id"])
    assert (job["state"], job["done"], job["total"]) == ("succeeded", 70, 70), job
    where = job["links"]["results"]
    table = pd.read_csv(io.BytesIO(server.get(where).content))
    assert list(table["image"]) == [f"{i:04d}.png" for i in range(70)]
    assert list(table.index[table["error"].notna()]) == [10, 33]
    parquet = pd.read_parquet(io.BytesIO(server.get(where, params={"format": "parquet"}).content))
    records = server.get(where, params={"format": "json"}).json()
    assert list(parquet["image"]) == list(table["image"]) == [r["image"] for r in records]
    alone = server.predict(images[5]).json()
    assert alone["label"] == table["predicted"][5] and abs(alone["confidence"] - table["confidence"][5]) < 2e-3
    folder = home / "h" / "batches" / job["id"]
    assert not (folder / "images").exists() and not (folder / "chunks").exists()


def test_up_to_the_threshold_the_answer_comes_at_once(place):
    _, server = place
    assert batch(server, colours(16)).status_code == 200
    assert batch(server, colours(17)).status_code == 202


def zipped(files) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as z:
        for name, data in files.items():
            z.writestr(name, data)
    return buffer.getvalue()


@pytest.mark.parametrize("how", ["body", "form"])
def test_a_zip_is_a_batch_and_what_is_bad_in_it_a_row(place, how):
    _, server = place
    good = colours(3, seed=how == "form")
    data = zipped({"flight/1.png": good[0], "../../evil.png": good[1], "bomb.png": bytes(50_000_000), "inner.zip": b"PK",
                   "flight/2.png": good[2], "readme.txt": b"hello"})
    if how == "body":
        answer = server.post("/predict_batch?name=flight", content=data, headers={"content-type": "application/zip"})
    else:
        answer = server.post("/predict_batch", files={"files": ("flight.zip", data)})
    assert answer.status_code == 202, answer.text
    job = ended(server, answer.json()["id"])
    rows = server.get(job["links"]["results"], params={"format": "json"}).json()
    assert [r["image"] for r in rows] == ["flight/1.png", "../../evil.png", "bomb.png", "inner.zip", "flight/2.png"]
    assert "leads out" in rows[1]["error"] and "unpacks to more" in rows[2]["error"] and "archive in" in rows[3]["error"]
    assert [bool(r["predicted"]) for r in rows] == [True, False, False, False, True]


@pytest.mark.parametrize(("data", "says"), [
    (b"no zip at all", "not a readable zip"), (zipped({"readme.txt": b"x"}), "no images"), (b"", "not a readable zip")])
def test_a_zip_that_is_none(place, data, says):
    home, server = place
    answer = server.post("/predict_batch", content=data, headers={"content-type": "application/zip"})
    assert answer.status_code in (400, 422) and says in answer.json()["detail"], answer.text
    assert not list((home / "h" / "batches").glob(".incoming-*"))


def test_images_that_the_service_can_read_by_itself(place):
    home, server = place
    folder = home / "data" / "flight"
    folder.mkdir(exist_ok=True)
    for i, p in enumerate(colours(5, seed=8)):
        (folder / f"{i}.png").write_bytes(p)
    answer = server.post("/predict_batch", json={"source": str(folder)}, headers=KEYED)
    assert answer.status_code == 202, answer.text
    job = ended(server, answer.json()["id"])
    assert job["done"] == 5 and job["state"] == "succeeded" and (folder / "0.png").exists()
    (home / "data" / "way-out").symlink_to("/etc")
    for bad in ("/etc", f"{home}/data/../../x", f"{home}/data/way-out", "s3://other/bucket"):
        refused = server.post("/predict_batch", json={"source": bad}, headers=KEYED)
        assert refused.status_code == 422 and "LADOS_SOURCES" in refused.json()["remedy"], refused.text
    assert server.post("/predict_batch", json={"source": str(folder)}).status_code == 401


# --- what is wrong with a request


@pytest.mark.parametrize(("change", "says"), [
    ({"epochz": 3}, "unknown parameter 'epochz'"), ({"preset": "resnet5"}, "unknown preset 'resnet5'"),
    ({"epochs": -1}, "epochs"), ({"data": "/etc"}, "not among what jobs may read"), ({"pretrained": "/etc/passwd"}, "not among what jobs may read"),
    ({"preset": "/tmp/x.yaml"}, "not a file")])
def test_trainings_that_cannot_be(place, change, says):
    _, server = place
    answer = server.post("/train", json={**asked(1), **change}, headers=KEYED)
    assert answer.status_code == 422 and says in answer.json()["detail"] and answer.json()["remedy"], answer.text


def test_the_key_is_asked_for_first(place):
    _, server = place
    for request in (server.post("/train", json={"epochz": 1}), server.client.delete(f"/job/{'0' * 32}"),
                    server.post(f"/job/{'0' * 32}/retry"), server.post("/train", json={}, headers={"X-API-Key": "guess"})):
        assert request.status_code == 401 and "X-API-Key" in request.json()["remedy"]


def test_jobs_that_never_were_and_results_too_early(place):
    home, server = place
    for path in ("", "/events", "/results", "/report"):
        answer = server.get(f"/job/{'0' * 32}{path}")
        assert answer.status_code == 404 and "no such job" in answer.json()["detail"], (path, answer.text)
    assert server.get("/job/%2e%2e%2fetc").status_code == 404
    job = server.post("/train", json=asked(40, data=str(home / "data" / "toy"), seed=7), headers=KEYED).json()
    early = server.get(f"/job/{job['id']}/results")
    assert early.status_code == 409 and "no results yet" in early.json()["detail"]
    assert server.client.delete(f"/job/{job['id']}", headers=KEYED).status_code == 202
    assert ended(server, job["id"])["state"] == "cancelled"
    again = server.client.delete(f"/job/{job['id']}", headers=KEYED)
    assert again.status_code == 202 and again.json()["state"] == "cancelled"
