"What jobs survive: killed workers, kernels, brokers, services; cancelled at any moment, full disks, clocks that jump."

import contextlib
import io
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import psutil
import pytest
import redis
from serving import KEY, ROOT, colours, runs, wait_for
from toy import small_disk, toy_manifest
from working import TRAINING, Workers, ended, redis_of, service, working

KEYED = {"X-API-Key": KEY}
EPOCHS = 11


@pytest.fixture
def home(tmp_path):
    toy_manifest(tmp_path / "data" / "toy", train=480, held=30)
    return tmp_path


@pytest.fixture(scope="module")
def at_work(tmp_path_factory):
    "One installation for tests that leave its worker alive: its home, the service, and workers for trainings."
    home = tmp_path_factory.mktemp("shared")
    toy_manifest(home / "data" / "toy", train=480, held=30)
    with working(home, predict=0) as workers, service(home) as server:
        yield home, server, workers


def training(server, home, epochs=EPOCHS, **more) -> str:
    body = {**TRAINING, "epochs": epochs, "data": str(home / "data" / "toy"), **more}
    answer = server.post("/train", json=body, headers=KEYED)
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def batch(server, count, seed=0) -> str:
    shades = colours(40, seed=seed)
    files = [("files", (f"{i:05d}.png", shades[i % 40])) for i in range(count)]
    answer = server.post("/predict_batch", files=files)
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def epochs_done(server, job) -> int:
    return server.get(f"/job/{job}").json()["progress"].get("epochs_done", 0)


def history(home, job) -> list[int]:
    "Epochs as the run's history has them."
    return list(pd.read_csv(Path(home, "runs", job["run"], "history.csv"))["epoch"])


def names(server, job) -> list[str]:
    return list(pd.read_csv(io.BytesIO(server.get(job["links"]["results"]).content))["image"])


def hints(home) -> int:
    "Hints for trainings that wait in the broker."
    with redis.Redis(unix_socket_path=str(home / "h" / "redis" / "redis.sock")) as c:
        return c.llen("train")


def kill(processes) -> None:
    for p in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            p.kill()


# --- a training


@pytest.mark.long
def test_a_training_goes_on_from_its_checkpoint(home):
    "Its worker is killed, then the whole machine dies, and at last it is asked to make room."
    with service(home) as server:
        workers = Workers(home, predict=0, JOB_ATTEMPTS=5)
        job = training(server, home, epochs=20)
        wait_for(lambda: epochs_done(server, job) >= 2, 300)
        kill(workers.processes("train"))
        wait_for(lambda: epochs_done(server, job) >= 4, 300)
        below = [p for word in ("lados.jobs.queue", "ipykernel_launcher", "lados.runs.execution") for p in workers.all(word)]
        assert len(below) >= 2
        workers.stop(signal.SIGKILL)
        wait_for(lambda: not [p for p in below if p.is_running() and p.status() != psutil.STATUS_ZOMBIE], 60) # none lives on
        assert not server.get(f"/job/{job}").json()["ended"]
        with working(home, predict=0, JOB_ATTEMPTS=5):
            wait_for(lambda: epochs_done(server, job) >= 6, 300)
        assert server.get(f"/job/{job}").json()["state"] == "queued" # nobody is at it
        with working(home, predict=0, JOB_ATTEMPTS=5):
            job = ended(server, job) # handed on
    assert job["state"] == "succeeded" and 3 <= job["attempts"] <= 4, job # two deaths may fall into one attempt
    assert history(home, job) == list(range(20)) # no gap, and no epoch twice


@pytest.mark.long
def test_a_training_over_which_kernels_die_is_given_up(at_work):
    home, server, workers = at_work
    job = training(server, home, epochs=200)

    def over():
        kill(workers.below("train", "ipykernel_launcher"))
        return server.get(f"/job/{job}").json()["ended"]

    wait_for(over, 300)
    job = server.get(f"/job/{job}").json()
    assert (job["state"], job["attempts"]) == ("failed", 3) and "given up after 3 workers died" in job["error"], job
    again = server.post(f"/job/{job['id']}/retry", headers=KEYED)
    assert again.status_code == 202 and again.json()["state"] == "queued"
    server.client.delete(f"/job/{job['id']}", headers=KEYED)
    assert ended(server, job["id"])["state"] == "cancelled"


@pytest.mark.long
@pytest.mark.parametrize("moment", ["starting", "training"])
def test_cancelled_at_any_moment(at_work, moment):
    home, server, workers = at_work
    job, waits = (training(server, home, epochs=n, name=moment) for n in (300, 299)) # the only worker is at the first
    server.client.delete(f"/job/{waits}", headers=KEYED)
    assert server.get(f"/job/{waits}").json()["state"] == "cancelled" # nobody had begun
    wait_for(lambda: epochs_done(server, job) >= 2 if moment == "training" else server.get(f"/job/{job}").json()["run"], 300)
    answer = server.client.delete(f"/job/{job}", headers=KEYED)
    assert answer.status_code == 202
    job = ended(server, job, 300)
    assert job["state"] == "cancelled" and "results" not in job["links"]
    if moment == "training":
        run = home / "runs" / job["run"]
        assert (run / "checkpoint" / "last.safetensors").exists() and (run / "notebook.ipynb").exists()
    wait_for(lambda: not workers.below("train", "ipykernel_launcher"), 30)


# --- a batch


@pytest.mark.long
def test_workers_are_killed_over_a_batch_and_every_image_comes_once(home):
    with working(home, train=0, predict=2, JOB_ATTEMPTS=50) as workers, service(home, runs() / "first") as server:
        server.ready()
        job = batch(server, 400)
        kills, seen, until = 0, 0, time.monotonic() + 180
        while not (now := server.get(f"/job/{job}").json())["ended"]:
            assert time.monotonic() < until and workers.process.poll() is None, now
            if now["done"] > seen and kills < 2: # a worker was at it
                kill(workers.processes("predict")[:2])
                kills, seen = kills + 1, now["done"]
            time.sleep(0.02)
        job = server.get(f"/job/{job}").json()
        assert job["state"] == "succeeded" and kills > 1, job
        assert names(server, job) == [f"{i:05d}.png" for i in range(400)]


@pytest.mark.long
def test_a_batch_is_cancelled_and_taken_up_again(home):
    with service(home, runs() / "first", JOB_CHUNK=2) as server: # so many parts that it cannot be over before it is cancelled
        server.ready()
        job = batch(server, 300)
        with working(home, train=0) as workers:
            wait_for(lambda: server.get(f"/job/{job}").json()["done"] > 0, 60)
            server.client.delete(f"/job/{job}", headers=KEYED)
            found = ended(server, job, 30)
            assert found["state"] == "cancelled", found
            assert server.get(f"/job/{job}/results").status_code == 409
            assert server.post(f"/job/{job}/retry", headers=KEYED).status_code == 202
            found = ended(server, job)
            assert found["state"] == "succeeded" and names(server, found) == [f"{i:05d}.png" for i in range(300)]
            assert workers.process.poll() is None


# --- broker, service, clock, disk


@pytest.mark.long
def test_redis_loses_everything_and_is_killed_while_jobs_run(home):
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(service(home, runs() / "first")).ready()
        train, many = training(server, home), batch(server, 300)
        assert hints(home) == 1
        with redis.Redis(unix_socket_path=str(home / "h" / "redis" / "redis.sock")) as c:
            c.flushall()
        workers = stack.enter_context(working(home))
        wait_for(lambda: epochs_done(server, train) >= 2, 300)
        late = batch(server, 200, seed=5)
        for _ in range(2):
            redis_of(home).kill()
            time.sleep(1.5)
        found = {j: ended(server, j) for j in (train, many, late)}
        assert {j["state"] for j in found.values()} == {"succeeded"}, found
        assert found[train]["attempts"] == 1 and history(home, found[train]) == list(range(EPOCHS))
        after = batch(server, 40, seed=6) # and the queue goes on working
        assert ended(server, after)["state"] == "succeeded" and workers.process.poll() is None


CLOCK = """
import os, time
_real = time.time
def _time():
    try:
        return _real() + float(open(os.environ["CLOCK_FILE"]).read() or 0)
    except OSError:
        return _real()
time.time = _time
"""


@pytest.mark.long
def test_clocks_jump_and_the_service_is_restarted(home):
    "The clock of the workers' machine goes a day ahead and then back, and nobody serves for a while, as a training and a batch run."
    (home / "clock").mkdir()
    (home / "clock" / "sitecustomize.py").write_text(CLOCK)
    jump = home / "clock" / "jump"
    with working(home, PYTHONPATH=f"{home / 'clock'}:{ROOT}", CLOCK_FILE=jump):
        with service(home, runs() / "first") as server:
            server.ready()
            train = training(server, home, epochs=40) # outlasts the restart
            wait_for(lambda: epochs_done(server, train) >= 1, 300)
            jump.write_text("86400")
            many = batch(server, 100)
        with service(home, runs() / "first") as server:
            wait_for(lambda: epochs_done(server, train) >= 6, 300)
            jump.write_text("-86400")
            found = [ended(server, j) for j in (train, many)]
            assert [(j["state"], j["attempts"]) for j in found] == [("succeeded", 1)] * 2, found
            assert found[1]["started"] > time.time() + 80_000 and found[0]["ended"] < found[0]["created"], "the clock did jump"
            assert len(names(server, found[1])) == 100


@pytest.mark.long
def test_no_room_for_what_is_sent(home):
    "The disk fills while images arrive; half a gigabyte is kept free for others."
    with small_disk(home / "disk", "530m") as disk, service(home, runs() / "first", LADOS_BATCHES=disk / "batches") as server:
        server.ready()
        answer = server.post("/predict_batch", files=[("files", (f"{i}.png", bytes(9_000_000))) for i in range(20)])
        assert answer.status_code == 507 and "LADOS_BATCHES" in answer.json()["remedy"], answer.text
        assert [p.name for p in (disk / "batches").iterdir()] == [".lock"]
        assert server.predict(colours(1)[0]).status_code == 200


def test_many_workers_and_one_part(home):
    "Two hundred claims of one part at once: one succeeds."
    from lados.jobs.leases import claim
    from lados.jobs.store import Store, add_job

    store = Store(f"sqlite:///{home}/jobs.db")
    job, _ = add_job(store, "train", {}, "key", [("train", 1)])
    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(lambda n: claim(store, job.id, 0, f"w{n}"), range(200)))
    assert sum(c is not None for c in found) == 1
