"Lines of the log: one story through service, queue, worker and notebook, with nothing in it that is nobody's business."

import json
import re
import subprocess
import sys

import nbformat
import pytest
from serving import KEY, ROOT, START, colours, runs, serving, wait_for
from toy import toy_manifest
from working import TRAINING, ended, environment, service, working

sys.path.insert(0, str(ROOT / "tools"))
from elastic import FIELDS, flat, misfits

from lados.core import settings
from lados.logs import log_fields
from lados.runs.execution import run_notebook
from lados.runs.folders import new_run

SECRET = "quince-in-the-broker-url"


def lines(home, name="*") -> list[dict]:
    return [json.loads(line) for path in sorted((home / "h" / "logs").glob(f"{name}.jsonl*")) for line in path.read_text().splitlines()]


def told(home, *words) -> str:
    "What `lados logs` prints."
    command = [sys.executable, "-c", "from lados.cli.main import main; main()", "logs", *words]
    return subprocess.run(command, env=environment(home), cwd=home, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    "A home after a training and a batch, and what was asked: (home, training, batch, request of the training)."
    home = tmp_path_factory.mktemp("ada")
    toy_manifest(home / "data")
    more = {"HOME": home, "LADOS_DATA": home / "data", "ROBOFLOW_API_KEY": SECRET}
    with working(home, **more), service(home, runs() / "first", **more) as server:
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
    return home, training["id"], batch, "mine"


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


def test_every_line_keeps_to_the_mapping(session):
    found = lines(session[0])
    assert not {m for x in found for m in misfits(x)}
    assert len({x["event"]["id"] for x in found}) == len(found), "no two lines have one id"
    assert {"http.request.id", "lados.job.id", "lados.run.name", "event.duration"} <= {name for x in found for name in flat(x)} <= set(FIELDS) | {
        name for x in found for name in flat(x) if name.startswith("labels.")}


def test_no_line_tells_what_is_nobodys_business(session):
    home = session[0]
    everything = "".join(p.read_text() for p in [*(home / "h" / "logs").iterdir(), *home.glob("*.log")] if p.is_file())
    for mark in (KEY, SECRET, "plum-in", "kiwi-in", str(home), "PNG", "base64"):
        assert mark not in everything, re.search(f".*{re.escape(mark)}.*", everything)[0][:300]


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


def test_many_processes_share_one_file_and_its_bound(tmp_path):
    code = ("import sys, logging\nfrom lados.logs import start_logs\nstart_logs('worker')\n"
            "for i in range(500): logging.getLogger('lados.x').info('line %s %s', sys.argv[1], i)\n")
    more = {"LADOS_LOG_MB": 0.2, "LADOS_LOG_FILES": 9}
    writers = [subprocess.Popen([sys.executable, "-c", code, str(n)], env={**environment(tmp_path), **{k: str(v) for k, v in more.items()}})
               for n in range(4)]
    assert [w.wait(60) for w in writers] == [0] * 4
    files = list((tmp_path / "h" / "logs").glob("worker.jsonl*"))
    assert len({x["message"] for x in lines(tmp_path)}) == 2000 and max(f.stat().st_size for f in files) < 250_000 and len(files) > 2
