"Lines of the log: one story through service, queue, worker and notebook, with nothing in it that is nobody's business."

import json
import os
import re
import subprocess
import sys
import threading

import nbformat
import pytest
from commands import run_here
from serving import KEY, ROOT, START, Server, colours, copy_run, runs, serving, wait_for
from toy import toy_manifest
from working import TRAINING, ended, environment, redis_server, service, working

sys.path.insert(0, str(ROOT / "tools"))
from elastic import FIELDS, flat, misfits

from lados.core import settings
from lados.logs import FILE_PIECE, LineFilter, LineWriter, LogFile, LogFollower, log_fields, private_words, read_logs
from lados.runs.execution import run_notebook
from lados.runs.folders import new_run

SECRET = "quince-in-the-broker-url"
SOURCES = f"https://ada:{SECRET}@127.0.0.1:9/flights,/srv/flights"


def lines(home, name="*") -> list[dict]:
    return [json.loads(line) for path in sorted((home / "h" / "logs").glob(f"{name}.jsonl*")) for line in path.read_text().splitlines()]


def told(home, *words) -> str:
    "What `lados logs` prints."
    done = run_here(home, environment(home), "logs", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    "A home after a training and a batch, and what was asked: (home, training, batch, request of the training)."
    home = tmp_path_factory.mktemp("ada")
    toy_manifest(home / "data")
    model = copy_run(runs() / "first", home / "first")
    more = {"HOME": home, "LADOS_DATA": home / "data", "LADOS_SOURCES": SOURCES}
    with redis_server(home / "redis", "--requirepass", SECRET) as port:
        more["CELERY_BROKER_URL"] = f"redis://:{SECRET}@127.0.0.1:{port}/0"
        return home, *_worked(home, model, more), "mine"


def _worked(home, model, more) -> tuple[str, str]:
    with working(home, **more), service(home, model, **more) as server:
        key = {"X-API-Key": KEY}
        wait_for(lambda: server.get("/ready").status_code == 200, 60, server)
        answer = server.post("/train", json={**TRAINING, "data": str(home / "data"), "epochs": 1}, headers={**key, "X-Request-ID": "mine"})
        files = [("files", (f"pear-{i}.png", data, "image/png")) for i, data in enumerate(colours(20))]
        batch = server.post("/predict_batch", files=files, headers=key).json()["id"]
        assert server.predict(b"plum-in-the-upload").status_code == 415
        assert server.get("/health", params={"token": "kiwi-in-the-query"}).status_code == 200
        training = ended(server, answer.json()["id"])
        assert training["state"] == ended(server, batch)["state"] == "succeeded", training
        server.post("/jobs", json={"kind": "export", "params": {"run": "nothing"}}, headers=key)
    return training["id"], batch


@pytest.mark.long
def test_a_job_is_followed_through_all_processes(session):
    home, training, batch, request = session
    of_job = [x for x in lines(home) if x.get("lados", {}).get("job", {}).get("id") == training]
    assert {x["service"]["name"] for x in of_job} == {"lados-api", "lados-worker", "lados-notebook"}
    assert any(x["message"].startswith("epoch ") and x["log"]["logger"] == "lados.runs" for x in of_job), "how the training goes"
    assert {"lados-api", "lados-worker"} == {x["service"]["name"] for x in lines(home) if x.get("lados", {}).get("job", {}).get("id") == batch}
    shown = told(home, "--request", request)
    assert f"handed in by http [job {training[:8]}, request mine]" in shown and "the notebook train begins" in shown
    assert batch[:8] not in shown and "POST /train 202" in shown
    assert told(home, "--job", training[:8], "--level", "error") == ""
    assert "workers are ready" in told(home, "--service", "maintenance")
    assert {json.loads(x)["lados"]["job"]["id"] for x in told(home, "--job", batch, "--json").splitlines()} == {batch}


def test_what_a_notebook_prints_becomes_lines(tmp_path, monkeypatch):
    code = "import sys\nprint('first')\nprint('\\r 1 of 2\\r 2 of 2')\nprint('trouble', file=sys.stderr)\n"
    cells = [nbformat.v4.new_code_cell("run = None\nparams = None", metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(code)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "talks.ipynb")
    monkeypatch.setenv("LADOS_HOME", str(tmp_path / "h"))
    settings.cache_clear()
    with log_fields({"lados.job.id": "3f2a"}):
        run_notebook(new_run("train", "talks", {}, tmp_path / "runs"), tmp_path / "talks.ipynb")
    settings.cache_clear()
    printed = [x for x in lines(tmp_path) if x["log"]["logger"] == "lados.kernel"]
    assert [x["message"] for x in printed] == ["first", " 1 of 2", " 2 of 2", "trouble"]
    assert printed[-1]["log.level"] == "warning" and {x["lados"]["job"]["id"] for x in printed} == {"3f2a"}


@pytest.mark.long
def test_every_line_keeps_to_the_mapping(session):
    found = lines(session[0])
    assert not {m for x in found for m in misfits(x)}
    assert len({x["event"]["id"] for x in found}) == len(found), "no two lines have one id"
    assert {"http.request.id", "lados.job.id", "lados.run.name", "event.duration"} <= {name for x in found for name in flat(x)} <= set(FIELDS) | {
        name for x in found for name in flat(x) if name.startswith("labels.")}


@pytest.mark.long
def test_no_line_tells_what_is_nobodys_business(session):
    home = session[0]
    everything = "".join(p.read_text() for p in [*(home / "h" / "logs").iterdir(), *home.glob("*.log")] if p.is_file())
    assert "Connected to redis://" in everything, "or there was nothing to strike"
    everything = re.sub("^workers are ready; .*", "", everything, flags=re.M) # to the person who started them
    for mark in (KEY, SECRET, "plum-in", "kiwi-in", str(home), "PNG", "base64"):
        assert mark not in everything, re.search(f".*{re.escape(mark)}.*", everything)[0][:300]


def test_an_error_that_quotes_urls_quotes_no_password(tmp_path):
    code = ("import sys, logging\nfrom lados.core import settings\nfrom lados.logs import start_logs\nstart_logs('worker', sys.stderr)\n"
            "now = settings()\ntry: raise OSError(f'{now.celery_broker_url} {now.lados_jobs_url} {now.lados_sources}')\n"
            "except OSError as e: logging.getLogger('lados.x').error('%s', e, exc_info=True)\n")
    urls = {"CELERY_BROKER_URL": f"redis://:{SECRET}@127.0.0.1:1/0", "LADOS_JOBS_URL": f"postgresql://ada:{SECRET}@127.0.0.1:1/x", "LADOS_SOURCES": SOURCES}
    for form in ("text", "json"):
        shown = subprocess.run([sys.executable, "-c", code], env=environment(tmp_path, LADOS_LOG_FORMAT=form, **urls), capture_output=True, text=True).stderr
        for text in (shown, (tmp_path / "h" / "logs" / "worker.jsonl").read_text()):
            assert SECRET not in text and "redis://:***@" in text and "postgresql://ada:***@" in text and "https://ada:***@" in text, text


def test_a_home_is_struck_where_it_begins_a_path(monkeypatch):
    monkeypatch.setenv("HOME", "/tmp")
    strike = private_words()
    assert [strike(x) for x in ("/var/tmp/x", "/tmpfs", "/tmp/x", "file:///tmp/x")] == ["/var/tmp/x", "/tmpfs", "~/x", "file://~/x"]
    assert json.loads(strike(json.dumps("in\n/tmp/x and \u2028/tmp"))) == "in\n~/x and \u2028~"


def test_a_service_whose_output_nobody_reads_goes_on_answering(tmp_path):
    code = "import os\nr, w = os.pipe()\nout = os.dup(1)\n" + START.replace("serve(sock", "os.dup2(w, 1)\n    serve(sock")
    with serving(tmp_path / "home", tmp_path / "none", code=code) as server:
        for _ in range(400): # 160 kB of lines, and a pipe holds 64
            assert server.alive().get("/health", timeout=5).status_code == 200
        kept = (tmp_path / "home" / "logs" / "api.jsonl").read_text().count("GET /health 200")
        assert kept > 300, "the file has them, whatever becomes of the pipe"


def test_text_for_people_where_it_is_asked_for(tmp_path):
    with serving(tmp_path / "home", tmp_path / "none", LADOS_LOG_FORMAT="text", LADOS_LOG_FILES=0) as server:
        server.alive()
        assert wait_for(lambda: re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d GET /health 200 \d+ ms", server.out.read_text(), re.M), 5)
    assert not (tmp_path / "home" / "logs").exists()


def test_lines_of_uvicorns_own_command_are_kept(tmp_path):
    code = 'import uvicorn\nuvicorn.run("lados.serve.app:app", port={port})\n# {workers} {app}'
    port = Server.free_port()
    shown = tmp_path / "out.log"
    with shown.open("wb") as out:
        more = {"LADOS_ENGINE": "torch", "MODEL_PATH": tmp_path / "none", "LADOS_LOG_FORMAT": "json"}
        server = subprocess.Popen([sys.executable, "-c", code.format(port=port, workers=1, app="")], env=environment(tmp_path, **more), stdout=out, stderr=out)
    try:
        assert wait_for(lambda: "Application startup complete" in "".join(x["message"] for x in lines(tmp_path, "api")), 60)
        assert wait_for(lambda: any("startup complete" in x for x in shown.read_text().splitlines() if x.startswith("{") and json.loads(x)), 60)
    finally:
        server.terminate()
        server.wait(30)


def test_schedules_and_their_looking_after_are_kept(tmp_path):
    code = """
import os, signal, threading
from lados.jobs.schedule import Schedule, _set_value, add_schedule, list_schedules
from lados.jobs.store import open_store
from lados.jobs.workers import run_maintenance
store = open_store()
add_schedule(store, Schedule("nightly", {"preset": "demo"}, "0 0 * * *"))
_set_value(store, list_schedules(store)[0], last=1.0)
def end():
    while not list_schedules(store)[0].job:
        threading.Event().wait(0.05)
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=end, daemon=True).start()
run_maintenance()
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment(tmp_path), capture_output=True, text=True, timeout=90)
    assert done.returncode == 0 and done.stdout.startswith("schedules are looked at"), done.stderr
    kept = lines(tmp_path, "maintenance")
    assert kept[0]["message"].startswith("schedules are looked at") and not {m for x in kept for m in misfits(x)}
    assert any(x.get("lados", {}).get("schedule", {}).get("name") == "nightly" and x["lados"].get("job") for x in kept), kept


@pytest.fixture
def kept_lines(tmp_path, monkeypatch):
    "A file of lines that is renamed again and again, and a function that writes one."
    monkeypatch.setenv("LADOS_HOME", str(tmp_path / "h"))
    settings.cache_clear()
    file, when = LogFile(tmp_path / "h" / "logs" / "api.jsonl", size=2000, count=50), "2026-11-27T00:00:00.000Z"
    yield lambda n: file.write(json.dumps({"@timestamp": when, "message": str(n)}).encode() + b"\n")
    settings.cache_clear()


def test_reading_and_following_beside_a_rotation(kept_lines):
    follower, followed, over = LogFollower(), [], threading.Event()

    def write():
        for n in range(1000):
            kept_lines(n)
        over.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not over.is_set():
        followed += follower.new_lines(LineFilter())
        messages = [d["message"] for d in read_logs(LineFilter())]
        assert len(set(messages)) == len(messages)
    writer.join()
    followed += follower.new_lines(LineFilter())
    assert sorted(int(d["message"]) for d in followed) == list(range(1000)), "each line once"


def test_a_new_file_with_an_old_inode_is_read_from_its_start(kept_lines, tmp_path):
    for n in range(5):
        kept_lines(n)
    follower, path = LogFollower(), tmp_path / "h" / "logs" / "api.jsonl"
    os.truncate(path, 0) # what a system does that gives the inode of a deleted file to the next one
    kept_lines(7)
    assert [d["message"] for d in follower.new_lines(LineFilter())] == ["7"] and not follower.new_lines(LineFilter())
    path.unlink()
    assert not follower.new_lines(LineFilter()) and not follower._at, "what is gone is forgotten"


@pytest.mark.parametrize("broken", ["stream", "count"])
def test_a_writer_survives_whatever_is_raised(broken):
    def fail(*_):
        raise ValueError("I/O operation on closed file")

    got = []
    writer = LineWriter(fail if broken == "stream" else got.append, fail if broken == "count" else str)
    writer.lost = 1
    for _ in range(2):
        writer.put("x")
        assert writer.flush(10)
    assert writer.failed == 2
    writer.write, writer.lost_line = got.append, "{} are lost".format
    writer.put("more")
    assert writer.close() and got == [b"more\n3 are lost\n"]


def test_many_processes_share_one_file_and_its_bound(tmp_path):
    code = ("import sys, logging\nfrom lados.logs import start_logs\nstart_logs('worker')\n"
            "for i in range(500): logging.getLogger('lados.x').info('line %s %s', sys.argv[1], i)\n")
    more = {"LADOS_LOG_MB": 0.2, "LADOS_LOG_FILES": 9}
    writers = [subprocess.Popen([sys.executable, "-c", code, str(n)], env={**environment(tmp_path), **{k: str(v) for k, v in more.items()}})
               for n in range(4)]
    assert [w.wait(60) for w in writers] == [0] * 4
    files = list((tmp_path / "h" / "logs").glob("worker.jsonl*"))
    assert len({x["message"] for x in lines(tmp_path)}) == 2000 and len(files) > 2
    assert max(f.stat().st_size for f in files) <= 200_000 + 3 * FILE_PIECE, "as much more as the three others wrote at the same moment"
