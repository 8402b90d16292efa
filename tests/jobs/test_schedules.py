"Schedules: at their times and for their reasons, once, whoever looks; and the whole way from a missed time to a proposal."

import http.server
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from serving import runs, wait_for
from toy import toy_manifest
from working import TRAINING, environment, working

from lados.core import ConfigError, settings
from lados.jobs.leases import cancel_job
from lados.jobs.promotion import read_proposal
from lados.jobs.schedule import (
    Schedule,
    Scheduler,
    add_schedule,
    find_schedule,
    list_schedules,
    pause_schedule,
    remove_schedule,
)
from lados.jobs.store import get_job, list_jobs, open_store
from lados.runs.folders import Run

DAY = 86_400


@pytest.fixture
def store(tmp_path, monkeypatch):
    "An installation of its own; its broker ends with the last user of it."
    for name, value in environment(tmp_path, JOB_CHUNK=None).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CELERY_BROKER_URL", raising=False)
    settings.cache_clear()
    yield open_store()
    settings.cache_clear()


def back(store, name, seconds):
    "Move a schedule's last time into the past."
    from lados.jobs.schedule import _set_value

    return _set_value(store, find_schedule(store, name), last=time.time() - seconds)


def each_hour() -> str:
    "A time in every hour that is half an hour away: none of them comes while a test looks."
    return f"{(time.gmtime().tm_min + 30) % 60} * * * *"


def test_what_was_missed_is_made_up_for_once(store):
    add_schedule(store, Schedule("often", {"preset": "demo"}, each_hour()))
    assert Scheduler(0)(store) == []
    back(store, "often", 3 * DAY) # some seventy times
    clock = Scheduler(0)
    begun = clock(store)
    assert len(begun) == 1 and clock(store) == [] and find_schedule(store, "often").job == begun[0]
    job = get_job(store, begun[0])
    assert job.origin == "schedule:often" and job.params["proposed"] and job.params["backbone"] == "resnet10t"


def test_many_look_at_once_and_one_begins(store):
    add_schedule(store, Schedule("nightly", {"preset": "demo"}, "0 3 * * *"))
    back(store, "nightly", 2 * DAY)
    with ThreadPoolExecutor(12) as pool:
        found = [job for begun in pool.map(lambda _: Scheduler(0)(store), range(12)) for job in begun]
    assert len(found) == 1 and len(list_jobs(store)) == 1


def test_paused_resumed_and_removed(store):
    add_schedule(store, Schedule("nightly", {"preset": "demo"}, "0 3 * * *"))
    back(store, "nightly", 2 * DAY)
    pause_schedule(store, "nightly")
    assert Scheduler(0)(store) == []
    pause_schedule(store, "nightly", False) # and what it missed is not made up for
    assert Scheduler(0)(store) == []
    remove_schedule(store, "nightly")
    assert list_schedules(store) == []
    with pytest.raises(ConfigError, match="no schedule is called 'nightly'"):
        pause_schedule(store, "nightly")


def test_a_clock_that_was_set_back(store):
    add_schedule(store, Schedule("often", {"preset": "demo"}, "* * * * *"))
    back(store, "often", -2 * DAY) # its last time lies in the future
    Scheduler(0)(store)
    assert abs(find_schedule(store, "often").last - time.time()) < 60


def test_new_labels_lead_to_one_training(store):
    from lados.data.corrections import Corrections

    add_schedule(store, Schedule("labels", {"preset": "demo"}, labels=2))
    back(store, "labels", 60)
    images = toy_manifest(settings().lados_data / "toy", train=3, held=0).paths
    kept, clock = Corrections(), Scheduler(0)
    kept.save(images[0], "0.png", "oil", predicted="ship")
    assert clock(store) == []
    kept.save(images[1], "1.png", "oil", predicted="ship")
    assert len(clock(store)) == 1 and clock(store) == [] # the same labels are no reason twice


@pytest.fixture
def drifting(monkeypatch):
    "A service that says how far its images have drifted."
    told = {"drift_score": 0.1}

    class Service(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps({"inference": {"recent": told}}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("LADOS_API_URL", f"http://127.0.0.1:{server.server_port}")
    yield told
    server.shutdown()


def test_drift_leads_to_one_training_until_it_was_low_again(store, drifting):
    settings.cache_clear() # with the service
    add_schedule(store, Schedule("drift", {"preset": "demo"}, drift=0.6))
    begun, clock = [], Scheduler(0)
    for drift in (0.1, 0.7, 0.8, None, 0.7, 0.2, None, 0.65):
        drifting["drift_score"] = drift
        found = clock(store)
        begun.append(bool(found))
        for job in found: # else the next one is the same job
            cancel_job(store, job)
    assert begun == [False, True, False, False, False, False, False, True]


@pytest.mark.long
def test_from_a_missed_time_to_a_proposal(store, tmp_path, monkeypatch):
    "A worker begins what was missed, trains it, compares it with what is served, and leaves what is served alone."
    monkeypatch.setenv("MODEL_PATH", str(runs() / "first"))
    settings.cache_clear()
    toy_manifest(tmp_path / "data" / "toy", train=48, held=24)
    add_schedule(store, Schedule("weekly", {**TRAINING, "epochs": 3, "data": str(tmp_path / "data" / "toy")}, "0 3 * * 1"))
    back(store, "weekly", 20 * DAY)
    with working(tmp_path, predict=0, MODEL_PATH=runs() / "first"):
        job = wait_for(lambda: (found := list_jobs(store)) and found[0].ended and found[0], 300)
    assert job.state == "succeeded" and job.origin == "schedule:weekly", job
    proposal = read_proposal(Run(tmp_path / "runs" / job.run.rpartition("/")[2]))
    assert proposal["served"].startswith(str(runs())) and not proposal["promoted"] and proposal["verdict"], proposal
    assert not (tmp_path / "runs" / "latest").exists()
