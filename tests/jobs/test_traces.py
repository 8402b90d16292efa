"Traces over real processes: from a client to the table of a batch and the epochs of a training, a killed worker included."

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from collector import collecting
from serving import KEY, colours, runs, wait_for
from toy import toy_manifest
from working import TRAINING, service, working

from lados.client import Client
from lados.traces import span, start_traces, stop_traces

EPOCHS = 40


@contextlib.contextmanager
def flying(home, **workers) -> Iterator[tuple]: # collector, workers, client
    "An installation that tells a collector, and so does this process; afterwards all is told."
    with collecting() as collector, pytest.MonkeyPatch.context() as patch:
        more = {"HOME": home, "LADOS_DATA": home / "data", "LADOS_ENGINE": "torch", **collector.environment}
        for name, value in collector.environment.items():
            patch.setenv(name, value)
        assert start_traces("flight")
        with working(home, **workers, **more) as processes, service(home, runs() / "first", **more) as server:
            wait_for(lambda: server.get("/ready").status_code == 200, 60, server)
            with Client(server.url, KEY) as client:
                yield collector, processes, client
        stop_traces()


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    "What is told of a program that hands in a batch: the collector, the home, the job's id."
    home = tmp_path_factory.mktemp("ada")
    with flying(home, train=0) as (collector, _, client):
        with span("flight"):
            job = client.predict_batch([(f"pear-{i}.png", data) for i, data in enumerate(colours(20))])
        assert client.wait(job["id"])["state"] == "succeeded"
    return collector, home, job["id"]


def ancestors(collector, one) -> list[str]:
    "Names from a span up to the root."
    by_id, names = {s["id"]: s for s in collector.spans}, []
    while one:
        names.append(one["name"])
        one = by_id.get(one["parent"])
    return names


def check_one_trace(collector, job, *services) -> None:
    "All that is told of a job is in the flight's trace, each span once and with its parent, by these processes."
    ours = [s for s in collector.spans if s["trace"] == collector.named("flight")[0]["trace"]]
    of_job = [s for s in collector.spans if s["attributes"].get("lados.job.id") == job]
    assert of_job and all(s in ours for s in of_job)
    assert {s["parent"] for s in ours} - {s["id"] for s in ours} == {""} and len({s["id"] for s in ours}) == len(ours)
    assert {s["service"] for s in ours} == {f"lados-{n}" for n in services}


def check_lines(collector, home, job, *services) -> None:
    "Lines of these processes lead from the job to its spans."
    lines = [json.loads(x) for p in (home / "h" / "logs").glob("*.jsonl*") for x in p.read_text().splitlines()]
    ours = [x for x in lines if x.get("lados", {}).get("job", {}).get("id") == job]
    assert {x["service"]["name"] for x in ours if "trace" in x} == {f"lados-{n}" for n in services}
    told = {s["id"]: s["trace"] for s in collector.spans}
    assert all(told[x["span"]["id"]] == x["trace"]["id"] for x in ours if "span" in x)


def check_secrets(collector, home) -> None:
    "Spans tell nothing that is nobody's business."
    everything = json.dumps(collector.spans)
    for mark in (KEY, str(home), "pear-", "base64", f"{Path.home()}/"):
        assert mark not in everything, mark
    assert not any(s["events"] or s["why"] for s in collector.spans), "texts of errors hold paths"


def test_a_batch_is_one_trace_and_every_parent_is_there(batch):
    collector, _, job = batch
    check_one_trace(collector, job, "flight", "api", "worker")


def test_a_batch_is_told_from_upload_to_table(batch):
    collector, _, job = batch
    up = ["submit predict", "POST /predict_batch", "POST /predict_batch", "flight"]
    assert [ancestors(collector, s) for s in collector.named("queued", job_id=job)] == [["queued", *up]]
    assert {s["attributes"]["lados.task.number"] for s in collector.named("task predict", job_id=job)} == {1, 2, 3}
    for name, times in (("load model", 1), ("decode", 3), ("engine", 3), ("write rows", 2), ("write table", 1)):
        found = [s for s in collector.named(name) if s["trace"] == collector.named("flight")[0]["trace"]]
        # a task is done twice where a busy machine took its worker for dead
        assert len(found) >= times and {tuple(ancestors(collector, s)) for s in found} == {(name, "task predict", *up)}, name
    api = collector.named("POST /predict_batch", job_id=job)
    assert [(s["service"], s["attributes"]["http.response.status_code"]) for s in api] == [("lados-api", 202)]


def test_lines_of_the_log_lead_to_the_trace(batch):
    collector, home, job = batch
    check_lines(collector, home, job, "api", "worker")


def test_spans_tell_nothing_that_is_nobodys_business(batch):
    collector, home, _ = batch
    check_secrets(collector, home)


@pytest.mark.long
def test_a_training_goes_on_in_the_same_trace_after_its_worker_was_killed(tmp_path):
    toy_manifest(tmp_path / "data")
    with flying(tmp_path, predict=0) as (collector, workers, client):
        with span("flight"):
            job = client.train(**{**TRAINING, "data": str(tmp_path / "data"), "epochs": EPOCHS})["id"]
        next(j for _, j in client.events(job) if j["progress"].get("epochs_done"))
        for p in wait_for(lambda: workers.processes("train"), 30):
            p.kill()
        assert client.wait(job, 300)["state"] == "succeeded"
    check_one_trace(collector, job, "flight", "api", "worker", "maintenance", "notebook", "training")
    check_lines(collector, tmp_path, job, "api", "worker", "notebook")
    check_secrets(collector, tmp_path)
    first, *_, second = sorted(collector.named("task train", job_id=job), key=lambda s: s["attributes"]["lados.job.attempt"])
    assert (first["service"], first["failed"], first["attributes"]["error.type"]) == ("lados-maintenance", True, "worker-died")
    assert (second["service"], second["failed"]) == ("lados-worker", False) and first["parent"] == second["parent"]
    notebooks = {s["id"]: s for s in collector.named("notebook train")}
    assert {first["id"], second["id"]} <= {s["parent"] for s in notebooks.values()}
    epochs = collector.named("epoch")
    assert {s["attributes"]["lados.epoch"] for s in epochs} == set(range(1, EPOCHS + 1)) and {s["parent"] for s in epochs} <= set(notebooks)
    assert all(s["attributes"]["lados.train_loss"] > 0 and s["end"] > s["start"] for s in epochs)


def test_a_collector_that_hangs_stops_nobody(tmp_path):
    with collecting() as collector, service(tmp_path, None, **collector.environment) as server:
        collector.silent = True
        assert server.post("/predict", content=b"no image").status_code in (415, 503)
        server.stop(seconds=30)
    lines = [json.loads(x) for x in (tmp_path / "h" / "logs" / "api.jsonl").read_text().splitlines()]
    assert any(x.get("span") for x in lines) and not collector.spans
