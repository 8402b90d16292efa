"An object store between machines: a real S3 server, with the network cut in the middle."

import contextlib
import io
import os
import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

import pandas as pd
import pytest
import sqlalchemy as sa
from commands import run_here
from objects import AWS, Network, s3_server
from serving import KEY, Server, colours, copy_run, runs, wait_for
from toy import toy_manifest
from working import TRAINING, end_pauses, ended, environment, redis_server, working

from lados.core import settings
from lados.data.corrections import Corrections
from lados.data.manifest import load_manifest
from lados.files import read_json, sha256_file, write_json
from lados.jobs.kinds import job_folder, run_file
from lados.jobs.leases import cancel_job, list_tasks, retry_job
from lados.jobs.store import JOBS, add_job, get_job, open_store
from lados.jobs.tasks import job_kind, job_results, run_task
from lados.jobs.workers import Retention
from lados.model.bundle import FETCHED, checksums, find_bundle, locate_model, seal, verify
from lados.remote import (
    BLOCK,
    NotInRemote,
    RemoteError,
    filesystem,
    have,
    pull_folder,
    push_folder,
    pushed_runs,
    read_list,
    read_object,
    remote_place,
    share,
)

s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed: `pip install 'lados[s3]'`")


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3")) as store:
        yield store


@pytest.fixture
def network(home, s3, monkeypatch):
    "The way to the object store, and this process's settings for it."
    way = Network(s3.port)
    for name, value in ({**AWS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{way.port}", "LADOS_REMOTE": f"s3://team/{home.name}"}).items():
        monkeypatch.setenv(name, value)
    settings.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()
    yield way
    way.close()


def large_run(home, size=24_000_000) -> Path:
    "A run folder with a bundle whose weights take a while to carry."
    bundle = home / "lados_runs" / "large" / "bundle"
    bundle.mkdir(parents=True)
    (bundle / "model.safetensors").write_bytes(os.urandom(size))
    write_json(bundle / "card.json", {"sealed": True})
    seal(bundle)
    return bundle.parent


def elsewhere(home, name, **more) -> dict[str, str]:
    "The environment of another machine: nothing is shared but what is named."
    return environment(home / name, **{**AWS, "AWS_ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL"], "LADOS_REMOTE": os.environ["LADOS_REMOTE"], **more})


# --- folders


def test_a_run_that_is_cut_off_on_its_way_is_sent_all_the_same(network, home):
    run, url = large_run(home), f"{settings().lados_remote}/runs/large"
    network.cut_after(8_000_000)
    assert len(push_folder(run, url)) == 3 and network.cuts == 1
    assert read_list(url).keys() == {"bundle/SHA256SUMS", "bundle/card.json", "bundle/model.safetensors"} and pushed_runs() == ["large"]
    assert push_folder(run, url) == []
    fs, there = filesystem(url)
    fs.rm_file(f"{there}/SHA256SUMS") # as if its machine had been lost before that
    assert pushed_runs() == []
    done = run_here(home, elsewhere(home, "other"), "runs", "pull", "large")
    assert done.returncode == 2 and "[not-in-remote]" in done.stderr and not (home / "other" / "runs" / "large").exists()


def test_a_bundle_comes_whole_through_cuts_and_kills(network, home):
    run = large_run(home)
    push_folder(run, f"{settings().lados_remote}/runs/large")
    machine, code = elsewhere(home, "other"), "import sys; from lados.model.bundle import find_bundle; print(find_bundle(sys.argv[1]))"
    place, url = Path(machine["LADOS_HOME"]) / "fetched", f"{settings().lados_remote}/runs/large"
    network.hold_after(12_000_000) # a block of it is there, and the next one is under way
    fetching = subprocess.Popen([sys.executable, "-c", code, url], env=machine)
    part = wait_for(lambda: [p for p in place.glob(".part-*/model*.part") if p.stat().st_size], 30)[0]
    fetching.kill() # the machine goes down
    fetching.wait()
    had, before = part.stat().st_size, network.carried
    assert had and not [*place.glob("[!.]*")], "half a bundle is none"
    network.up()
    network.cut_after(3_000_000)
    done = subprocess.run([sys.executable, "-c", code, url], env=machine, check=True, capture_output=True, text=True)
    folder, digests = Path(done.stdout.strip()), [sha256_file(f / "model.safetensors") for f in (run / "bundle", Path(done.stdout.strip()))]
    assert digests[0] == digests[1] and network.cuts == 1
    assert network.carried - before < 24_000_000 - had + 2 * BLOCK, "it went on where it had stopped"
    network.down()
    pinned = f"{url}/bundle#sha256={sha256_file(run / 'bundle' / 'SHA256SUMS')}"
    again = subprocess.run([sys.executable, "-c", code, pinned], env=machine, check=True, capture_output=True, text=True)
    assert Path(again.stdout.strip()) == folder, "what is here needs no network"


def test_a_wrong_key_is_said_at_once_and_not_shown(network, home, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "mistaken-secret")
    s3fs.S3FileSystem.clear_instance_cache()
    start = time.monotonic()
    with pytest.raises(RemoteError) as e:
        read_object(f"{settings().lados_remote}/runs/large/SHA256SUMS")
    assert e.value.code == "remote-refused" and "mistaken" not in str(e.value) and time.monotonic() - start < 30
    with pytest.raises(NotInRemote):
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", AWS["AWS_SECRET_ACCESS_KEY"])
        s3fs.S3FileSystem.clear_instance_cache()
        find_bundle(f"{settings().lados_remote}/runs/nothing")


def old_batch(store, name) -> Path:
    "A batch that has ended long ago; its table is in the object store."
    job, _ = add_job(store, "predict", {}, name, [("predict", 1)], name)
    cancel_job(store, job.id)
    with store.writing() as c:
        c.execute(sa.update(JOBS).where(JOBS.c.id == job.id).values(created=0.0, ended=1.0))
    folder = settings().batches_folder / job.id
    folder.mkdir(parents=True)
    (folder / "results.parquet").write_bytes(b"rows")
    return share(folder / "results.parquet").parent


@pytest.mark.long
def test_a_job_that_is_deleted_leaves_nothing_in_the_object_store(network, home, monkeypatch, caplog):
    store, keeper = open_store(), Retention(every=0, first=0)
    folder = old_batch(store, "may")
    assert read_object(remote_place(folder / "results.parquet")) == b"rows"
    assert keeper(store) == [folder.name]
    with pytest.raises(NotInRemote):
        read_object(remote_place(folder / "results.parquet"))
    stays, also = old_batch(store, "june"), old_batch(store, "july")
    monkeypatch.setattr("lados.remote.PATIENCE_S", 0.5)
    network.down()
    assert sorted(keeper(store)) == sorted([stays.name, also.name]), "an object store that is away keeps no job here"
    network.up()
    assert stays.name in caplog.text and also.name in caplog.text, "what is left there is named"


def fetch_others(home, start, stop) -> None:
    "Fetch other bundles into the cache of this machine."
    for i in range(start, stop):
        run = large_run(home / str(i), size=10)
        push_folder(run, f"{settings().lados_remote}/runs/other-{i}")
        find_bundle(f"{settings().lados_remote}/runs/other-{i}")


def test_a_bundle_that_a_process_works_with_is_not_evicted_by_another(network, home):
    url = f"{settings().lados_remote}/runs/first"
    push_folder(runs() / "first", url)
    code = "import sys; from lados.serve.predictor import Predictor; p = Predictor.setup(sys.argv[1]); print(p.folder, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code, url], env={**os.environ, "LADOS_ENGINE": "openvino"}, text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as serving:
        bundle = Path(serving.stdout.readline().strip())
        assert bundle == find_bundle(url)
        fetch_others(home, 0, FETCHED + 2)
        assert (bundle / "card.json").exists() and len([*bundle.parents[2].glob("[!.]*")]) == FETCHED + 1
        serving.communicate("\n", timeout=30)
    fetch_others(home, FETCHED + 2, FETCHED + 3)
    assert not bundle.exists() and len([*bundle.parents[2].glob("[!.]*")]) == FETCHED


def test_a_process_holds_the_bundles_that_it_asked_for_last(network, home):
    "Whoever evaluates, compares or exports has asked for one or two, and opens their files for minutes."
    team = settings().lados_remote
    push_folder(runs() / "first", f"{team}/runs/first")
    code = "import sys; from lados.model.bundle import find_bundle\nfor line in sys.stdin: print(find_bundle(line.strip()), flush=True)"
    with subprocess.Popen([sys.executable, "-c", code], env=os.environ, text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as asking:
        print(f"{team}/runs/first", file=asking.stdin, flush=True)
        bundle = Path(asking.stdout.readline().strip())
        fetch_others(home, 0, FETCHED + 2)
        assert (bundle / "card.json").exists()
        asking.communicate("".join(f"{team}/runs/other-{i}\n" for i in range(FETCHED)), timeout=60)
    assert not bundle.exists(), "it has asked for five others since"


def test_what_is_neither_here_nor_there_leaves_no_folder(network, home, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    path = settings().lados_runs / "nobody" / "report.html"
    assert not have(path).exists() and not path.parent.exists()
    push_folder(large_run(home, size=10), f"{settings().lados_remote}/runs/large-2")
    path = settings().lados_runs / "large-2" / "report.html" # the run is there, and has none
    assert not have(path).exists() and not path.parent.exists()
    monkeypatch.setattr("lados.remote.PATIENCE_S", 0.5)
    network.down()
    with pytest.raises(RemoteError):
        have(path)
    assert not path.parent.exists()


# --- an object store that is killed


@pytest.fixture
def mortal(s3, network, monkeypatch):
    "The object store itself, without a network that could be cut; it counts as away after half a second."
    monkeypatch.setattr("lados.remote.PATIENCE_S", 0.5)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{s3.port}")
    s3fs.S3FileSystem.clear_instance_cache()
    return s3


def batch_in_the_store(home, store, images=12) -> str:
    "A job over images that lie in the object store, in stretches of four; its id."
    fs, there = filesystem(f"{settings().lados_remote}/flight")
    fs.pipe({f"{there}/{i:02d}.png": png for i, png in enumerate(colours(images))})
    run = copy_run(runs() / "first", settings().lados_runs / "first")
    kind, job_id = job_kind("predict"), uuid4().hex
    params = kind.prepare({"sources": [f"{settings().lados_remote}/flight"], "bundle": str(run / "bundle")}, job_folder(job_id))
    add_job(store, "predict", params, kind.key(params), [(kind.queue, n) for n in kind.cut(params)], job_id=job_id)
    return job_id


@pytest.mark.long
def test_work_waits_longer_and_longer_for_an_object_store_that_was_killed(mortal, home, monkeypatch):
    monkeypatch.setenv("JOB_CHUNK", "4")
    settings.cache_clear()
    store = open_store()
    job_id = batch_in_the_store(home, store)
    assert run_task(store, job_id, 0, "worker") == [] and get_job(store, job_id).done == 4
    mortal.kill()
    try:
        assert run_task(store, job_id, 1, "worker") == [] # begun, and given back
        waits = get_job(store, job_id)
        assert waits.state == "queued" and "10 s" in waits.error and "AWS_ENDPOINT_URL" in waits.error
        for n in (1, 2): # a hint that comes too early, be it of another task, changes nothing
            assert run_task(store, job_id, n, "another") == [] and get_job(store, job_id) == waits
        assert not [t for t in list_tasks(store, "queued") if t.job == job_id], "nobody is sent a hint"
        end_pauses(store)
        assert [t.number for t in list_tasks(store, "queued")] == [1, 2]
        for pause in ("10 s", "20 s", "40 s"):
            run_task(store, job_id, 2, "worker")
            assert pause in get_job(store, job_id).error
            end_pauses(store)
    finally:
        mortal.start()
    assert run_task(store, job_id, 1, "worker") == [] and get_job(store, job_id).error is None
    assert [t.number for t in run_task(store, job_id, 2, "worker")] == [3]
    run_task(store, job_id, 3, "worker")
    done = get_job(store, job_id)
    assert done.state == "succeeded" and done.error is None and len(pd.read_csv(job_results(done, "csv"))) == 12


@pytest.mark.long
def test_an_object_store_that_stays_away_fails_the_job_which_goes_on_when_it_is_back(mortal, home, monkeypatch):
    monkeypatch.setenv("JOB_AWAY_HOURS", "0.001")
    monkeypatch.setenv("JOB_CHUNK", "4")
    settings.cache_clear()
    store = open_store()
    job_id = batch_in_the_store(home, store)
    run_task(store, job_id, 0, "worker")
    mortal.kill()
    try:
        run_task(store, job_id, 1, "worker")
        end_pauses(store)
        run_task(store, job_id, 1, "worker")
    finally:
        mortal.start()
    gone = get_job(store, job_id)
    assert gone.state == "failed" and "JOB_AWAY_HOURS" in gone.error and f"lados job retry {job_id[:8]}" in gone.error
    _, tasks = retry_job(store, job_id)
    assert [t.number for t in tasks] == [1, 2], "what was done is kept"
    for n in (1, 2, 3):
        run_task(store, job_id, n, "worker")
    assert get_job(store, job_id).state == "succeeded"


# --- machines that share nothing else


@pytest.mark.long
def test_machines_that_share_an_object_store_and_no_folder(network, home):
    team = settings().lados_remote
    for name in ("first", "second"):
        push_folder(copy_run(runs() / name, home / "made" / name), f"{team}/runs/{name}")
    fs, there = filesystem(f"{team}/flights/june")
    pngs = colours(40)
    fs.pipe({f"{there}/{i:02d}.png": png for i, png in enumerate(pngs)})
    with redis_server(home / "redis") as port:
        shared = {"CELERY_BROKER_URL": f"redis://127.0.0.1:{port}/0", "LADOS_JOBS_URL": f"sqlite:///{home}/jobs.db", "JOB_CHUNK": 8,
                  "LADOS_SOURCES": f"{team}/flights", "MODEL_PATH": f"{team}/runs/first", **AWS,
                  "AWS_ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL"], "LADOS_REMOTE": team}
        network.cut_after(60_000) # in the middle of the bundle
        with machine(home / "a", shared) as a, machine(home / "b", shared) as b, working(home / "w", train=0, **shared):
            assert {s.ready().predict(pngs[0]).json()["model"] for s in (a, b)} == {"first"} and network.cuts == 1
            sent = a.post("/predict_batch", json={"source": f"{team}/flights/june"}, headers={"X-API-Key": KEY})
            job = sent.json()["id"]
            wait_for(lambda: a.get(f"/job/{job}").json()["done"] >= 8, 60)
            network.down()
            network.up()
            assert ended(a, job)["state"] == "succeeded"
            url = f"{team}/batches/{job}"
            table = pd.read_parquet(io.BytesIO(read_object(f"{url}/results.parquet")))
            assert list(table["image"]) == [f"{i:02d}.png" for i in range(40)] and (table["error"] == "").all()
            assert len(b.get(f"/job/{job}/results?format=csv").text.splitlines()) == 41, "any machine has the table"
            assert not [n for n in fs.find(filesystem(url)[1]) if "/chunks/" in n]
            assert a.promote("second").status_code == 200
            wait_for(lambda: b.predict(pngs[0]).json()["model"] == "second", 30)


@contextlib.contextmanager
def at(place):
    "Be another machine: with its own home, runs and data."
    before = dict(os.environ)
    os.environ.update({name: str(place / name.lower()) for name in ("LADOS_HOME", "LADOS_RUNS", "LADOS_DATA")})
    settings.cache_clear()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        settings.cache_clear()


def done_elsewhere(home, kind, params, admitted=True):
    "A job that the API's machine hands in and another one does; `admitted`: over HTTP."
    record, job_id = job_kind(kind), uuid4().hex
    with at(home / "api"):
        checked = record.prepare(record.admit(params) if admitted else params, job_folder(job_id))
        add_job(open_store(), kind, checked, record.key(checked), [(record.queue, 1)], record.title(checked), job_id=job_id)
    with at(home / "worker"):
        run_task(open_store(), job_id, 0, "worker")
    job = get_job(open_store(), job_id)
    assert job.state == "succeeded", job.error
    return job


@pytest.mark.long
def test_what_a_machine_makes_of_anothers_run_and_corrections_comes_back(network, home, monkeypatch):
    monkeypatch.setenv("LADOS_JOBS_URL", f"sqlite:///{home}/jobs.db")
    toy, asked = toy_manifest(home / "toy"), {"data": str(home / "toy"), "corrections": True, "split": "official"}
    row = next(r for r in toy.frame.itertuples() if r.split == "train" and r.label == "ship")
    with at(home / "api"):
        Corrections().save((toy.root / row.image).read_bytes(), row.image, "oil")
    trained = done_elsewhere(home, "train", {**TRAINING, **asked, "epochs": 1}, admitted=False)
    run = Path(trained.run)
    learned = load_manifest(run, check=False).frame
    assert learned.loc[learned["sha256"] == row.sha256, "label"].tolist() == ["oil"], "the worker has learned the correction"
    with at(home / "api"):
        assert run.is_relative_to(home / "worker") and job_results(trained) and run_file(trained, "report.html").exists()
        merged = job_results(done_elsewhere(home, "merge", asked, admitted=False))
        assert read_json(merged)["images"] == len(toy)
    exported = done_elsewhere(home, "export", {"run": run.name, "formats": ["onnx"]})
    with at(home / "api"):
        assert job_results(exported)
        assert (find_bundle(locate_model(run.name)) / "onnx").exists(), "what is promoted by its name has the engine"
        here = settings().lados_runs / run.name
        pull_folder(f"{settings().lados_remote}/runs/{run.name}", here) # from now on this machine has the run
    more = done_elsewhere(home, "export", {"run": run.name, "formats": ["torchscript"]})
    with at(home / "api"):
        assert not (here / "bundle" / "torchscript").exists() and job_results(more)
        assert (here / "bundle" / "torchscript").exists() and (here / "bundle" / "onnx").exists()
        verify(here / "bundle", checksums(here / "bundle"))
        compared = done_elsewhere(home, "compare", {"run": run.name})
        assert job_results(compared)["verdict"].startswith("Not compared")


@contextlib.contextmanager
def machine(folder, shared):
    server = Server(folder, None, app="lados.jobs.routes:app", **{**environment(folder), **shared})
    try:
        yield server.alive()
    finally:
        server.stop()
