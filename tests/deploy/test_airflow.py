"Airflow's DAGs for real: in an environment of their own, against a live service and worker whose API is restarted while a job is waited for."

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import httpx
import pytest
from serving import KEY, ROOT, Server, colours, make_run, wait_for
from toy import toy_manifest
from working import TRAINING, service, working

from lados.data.manifest import Manifest, load_manifest

FOLDER = Path(ROOT) / "docker" / "airflow"
KEYED = {"X-API-Key": KEY}
PROVIDED = """
import asyncio, json, sys
from airflow.providers_manager import ProvidersManager
from airflow.serialization.serialized_objects import BaseSerialization
from lados_airflow.hooks import LadosHook
from lados_airflow.operators import LadosTrainOperator
from lados_airflow.sensors import LadosJobSensor
from lados_airflow.triggers import LadosJobTrigger

manager = ProvidersManager()
fields, behaviour = manager._connection_form_widgets_from_metadata, manager._field_behaviours_from_metadata
path, kwargs = LadosJobTrigger("0" * 32, "other", 60.0).serialize()
BaseSerialization.deserialize(BaseSerialization.serialize(kwargs))
with LadosHook().get_conn() as client:
    audit = client.submit("audit", {"data": sys.argv[1]})["id"]
    sensed = LadosJobSensor(task_id="wait", job_id=audit, deferrable=False, poke_interval=1).execute({})
    event = asyncio.run(anext(LadosJobTrigger(audit).run())).payload
    training = client.submit("train", json.loads(sys.argv[2]))["id"]
    asyncio.run(LadosJobTrigger(training, cancel_on_kill=False).on_kill())
    kept = client.job(training)["state"]
    asyncio.run(LadosJobTrigger(training).on_kill())
    killed = client.wait(training)
ends = []
for job_id in (training, "f" * 32):
    try:
        LadosJobSensor(task_id="wait", job_id=job_id, deferrable=False).execute_complete({}, asyncio.run(anext(LadosJobTrigger(job_id).run())).payload)
    except Exception as e:
        ends.append([type(e).__name__, str(e).splitlines()[0]])
print(json.dumps({"sensed": sensed, "event": event, "kept": kept, "killed": killed["state"], "ends": ends, "hook": manager.hooks["lados"].hook_name, "form": sorted(f for f in fields if "lados" in f), "labels": behaviour["lados"]["relabeling"],
    "version": manager.providers["lados-airflow"].version, "trigger": [path, kwargs], "kill": LadosJobTrigger.on_kill.__qualname__,
    "templated": [*LadosTrainOperator.template_fields, *LadosJobSensor.template_fields],
    "connection": LadosHook("lados_default").test_connection(), "heavy": sorted({m.split(".")[0] for m in sys.modules} & {"torch", "pandas", "numpy", "fastai"}),
    "lados": sorted(m for m in sys.modules if m.split(".")[0] == "lados")}))
"""


class Heard(BaseHTTPRequestHandler):
    "Whoever is told by the DAGs."

    texts: ClassVar[list[str]] = []

    def do_POST(self):
        self.texts.append(json.loads(self.rfile.read(int(self.headers["content-length"])))["text"])
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    "Python of an environment with Airflow, httpx, and nothing of what lados computes with: LADOS_AIRFLOW names one, else one is made."
    if given := os.environ.get("LADOS_AIRFLOW"):
        return Path(given)
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    done = pip(folder / "bin" / "python", "-c", FOLDER / "constraints.txt", "apache-airflow", "httpx")
    if done.returncode:
        pytest.skip(f"Airflow cannot be installed here: {done.stderr.strip()[-300:]}")
    return folder / "bin" / "python"


def pip(python, *words) -> subprocess.CompletedProcess:
    return subprocess.run([python, "-m", "pip", "install", "-q", *map(str, words)], capture_output=True, text=True)


class Airflow:
    "An Airflow of its own: environment, database, DAGs, and the connections of lados and of a webhook."

    def __init__(self, python, home, port, webhook, **env):
        self.python, self.home = python, home
        self.site = home / "site"
        source = home / "source" # pip builds inside the folder that it is given
        shutil.copytree(FOLDER / "provider", source / "provider")
        shutil.copytree(Path(ROOT) / "lados", source / "lados" / "lados", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("setup.py", "settings.ini", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
            shutil.copy(Path(ROOT) / name, source / "lados")
        done = pip(python, "--no-deps", "--target", self.site, source / "lados", source / "provider")
        assert done.returncode == 0, done.stderr[-2000:]
        api = Server.free_port()
        names = {"AIRFLOW_HOME": home, "HOME": home, "PYTHONPATH": self.site, "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
                 "AIRFLOW__CORE__DAGS_FOLDER": FOLDER / "dags", "AIRFLOW__CORE__LOAD_EXAMPLES": False, "AIRFLOW__API__PORT": api,
                 "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{api}", "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": True,
                 "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": Server.free_port(), "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": Server.free_port(),
                 "AIRFLOW__API__WORKERS": 1, "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": 60, "AIRFLOW__CORE__PARALLELISM": 4, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", **env}
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "LADOS_", "PYTHON"))}
        self.env, self.api = {**clean, **{k: str(v) for k, v in names.items()}}, httpx.Client(base_url=f"http://127.0.0.1:{api}/api/v2", trust_env=False, timeout=60)
        self("db", "migrate")
        self("connections", "add", "lados_default", "--conn-type", "lados", "--conn-host", f"http://127.0.0.1:{port}", "--conn-password", KEY)
        self("connections", "add", "people", "--conn-type", "http", "--conn-host", f"http://127.0.0.1:{webhook}")

    def __call__(self, *words, check=True) -> subprocess.CompletedProcess:
        "Run a command of Airflow."
        done = subprocess.run([self.python, "-m", "airflow", *map(str, words)], env=self.env, cwd=self.home, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0 or not check, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done

    @contextlib.contextmanager
    def standalone(self):
        "Scheduler, triggerer, DAG processor and API server."
        with (self.home / "standalone.log").open("wb") as log:
            process = subprocess.Popen([self.python, "-m", "airflow", "standalone"], env=self.env, cwd=self.home, stdout=log, stderr=log, start_new_session=True)
        try:
            yield process
        finally:
            process.send_signal(2)
            process.wait(120)

    def begin(self, dag, conf) -> str:
        "Trigger a run, as a person does on Airflow's page; its id."
        wait_for(lambda: self.api.get(f"/dags/{dag}").status_code == 200, 180)
        self.api.patch(f"/dags/{dag}", json={"is_paused": False}).raise_for_status()
        return self.api.post(f"/dags/{dag}/dagRuns", json={"conf": conf, "logical_date": None}).raise_for_status().json()["dag_run_id"]

    def tasks(self, dag, run) -> dict[str, str]:
        "State of each task."
        listed = self.api.get(f"/dags/{dag}/dagRuns/{run}/taskInstances").json()["task_instances"]
        return {t["task_id"] + (f"[{t['map_index']}]" if t["map_index"] >= 0 else ""): t["state"] for t in listed}

    def end(self, dag, run, seconds=400) -> str:
        "The state in which a run ends."
        return wait_for(lambda: (s := self.api.get(f"/dags/{dag}/dagRuns/{run}").json()["state"]) in ("success", "failed") and s, seconds)


def stranger(run) -> None:
    "Have a run learn from photographs of its own, by their names."
    known = load_manifest(run)
    Manifest(known.frame.assign(source_group=f"{run.name} " + known.frame["source_group"]), known.root, known.meta).save(known.root)


class Place:
    "An installation of lados whose API can be restarted, and an Airflow that asks it."

    def __init__(self, folder, python):
        self.folder, self.port = folder, Server.free_port()
        stranger(make_run(folder / "runs" / "first"))
        toy_manifest(folder / "data" / "toy", seed=3) # of which the served model has learned nothing
        self.flights, self.tables = folder / "data" / "flights", folder / "tables"
        self.tables.mkdir()
        self.webhook = ThreadingHTTPServer(("127.0.0.1", 0), Heard)
        threading.Thread(target=self.webhook.serve_forever, daemon=True).start()
        home = folder / "airflow"
        home.mkdir()
        defaults = json.dumps({"flights": str(self.flights), "tables": str(self.tables), "quiet_s": 0, "notify": "people"})
        self.airflow = Airflow(python, home, self.port, self.webhook.server_port, SCORE_FLIGHTS=defaults)
        self.retraining = {"training": {**TRAINING, "epochs": 4}, "data": str(folder / "data" / "toy"), "labels": 1, "formats": ["onnx"], "notify": "people"}

    def up(self):
        "The API, on its port."
        return service(self.folder, self.folder / "runs" / "first", port=self.port, LADOS_ENGINE="torch")

    def draw(self, name, images=3):
        "A flight has landed."
        (self.flights / name).mkdir(parents=True)
        for i, data in enumerate(colours(images)):
            (self.flights / name / f"{i}.png").write_bytes(data)

    def correct(self, server, seed):
        "A person puts an answer right."
        (image,) = colours(1, seed=seed)
        answer = server.predict(image).json()
        said = {"label": "oil" if answer["label"] != "oil" else "ship", "predicted": answer["label"]}
        assert server.post("/corrections", params=said, files={"file": (f"{seed}.png", image)}, headers=KEYED).status_code == 200

    @contextlib.contextmanager
    def restarted_while_training(self, server):
        "When the block begins, a training runs, and the API has been stopped and started over it; after the block it has ended with success."
        jobs = lambda s: [*s.get("/jobs", params={"kind": "train"}, headers=KEYED).json()["jobs"]] # noqa: E731
        job = wait_for(lambda: next((j for j in jobs(server) if j["state"] == "running"), None), 300, server)
        server.stop()
        away = time.time()
        with self.up() as again:
            yield again
            after = again.get(f"/job/{job['id']}").json()
            assert after["state"] == "succeeded" and after["ended"] > away, after


@pytest.fixture(scope="module")
def place(tmp_path_factory, python):
    place = Place(tmp_path_factory.mktemp("place"), python)
    with working(place.folder, MODEL_PATH=place.folder / "runs" / "first", LADOS_ENGINE="torch"):
        yield place
    place.webhook.shutdown()


def test_the_provider_brings_what_airflow_asks_for(place):
    with place.up():
        named = json.dumps({"conn_type": "lados", "host": f"http://127.0.0.1:{place.port}", "password": KEY})
        env = {**place.airflow.env, "AIRFLOW_CONN_LADOS_DEFAULT": named} # outside a task nothing reads the database
        words = [place.retraining["data"], json.dumps({**TRAINING, "epochs": 500, "data": place.retraining["data"]})]
        done = subprocess.run([place.airflow.python, "-c", PROVIDED, *words], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["sensed"] == {n: found["event"][n] for n in found["sensed"]} and found["sensed"]["state"] == "succeeded" and found["sensed"]["kind"] == "audit"
    assert found["kept"] in ("queued", "running") and found["killed"] == "cancelled", "only a task that is killed cancels its job"
    assert [end[0] for end in found["ends"]] == ["AirflowFailException", "AirflowException"] and "cancelled" in found["ends"][0][1] and "lost" in found["ends"][1][1]
    assert found["hook"] == "lados" and found["labels"]["password"] == "API key" and found["version"] == "0.1.0"
    assert found["form"] == ["extra__lados__authority", "extra__lados__timeout"]
    assert found["trigger"][1] == {"job_id": "0" * 32, "lados_conn_id": "other", "away_s": 60.0, "cancel_on_kill": True}, "and no key"
    assert {"lados_conn_id", "job_params", "job_id"} <= set(found["templated"]) and found["kill"].startswith("LadosJobTrigger")
    assert found["connection"] == [True, "lados 0.1.0 answers, and the key is good"]
    assert found["lados"] == ["lados", "lados.client"] and not found["heavy"], "nothing of the house but the client"


def test_the_dags_load_without_import_errors(place):
    assert "No data found" in place.airflow("dags", "list-import-errors").stdout
    listed = place.airflow("dags", "list", "--local", "-o", "plain").stdout
    assert {"retrain_lados", "score_flights"} <= set(re.findall(r"^\w+", listed, re.M)), listed


def test_new_flights_become_tables_and_a_bad_one_stops_no_other(place):
    place.draw("one")
    place.draw("none", images=0)
    with place.up() as server:
        server.ready()
        done = place.airflow("dags", "test", "score_flights", check=False)
    assert [p.name for p in place.tables.iterdir()] == ["one.csv"] and place.tables.joinpath("one.csv").read_text().count("\n") == 4
    assert "lados: one.csv: 3 images (1 of 2 new flights)" in Heard.texts, done.stdout[-3000:]
    assert done.returncode != 0, "the run is red"
    (place.flights / "none").rmdir()


def test_a_retraining_is_merged_audited_and_proposed_over_a_restart_of_the_api(place):
    told = []
    with place.up() as server:
        server.ready()
        place.correct(server, seed=5)
        thread = threading.Thread(target=lambda: told.append(place.airflow("dags", "test", "retrain_lados", "--conf", json.dumps(place.retraining), check=False)))
        thread.start()
        with place.restarted_while_training(server) as server:
            thread.join(600)
            said = told[0].stdout + told[0].stderr
            assert told[0].returncode == 0, said[-4000:]
            proposal = server.get("/trainings", headers=KEYED).json()["proposals"][0]
            exported = server.get("/jobs", params={"kind": "export"}, headers=KEYED).json()["jobs"][0]
    assert proposal["images"] > 0 and not proposal["promoted"] and exported["state"] == "succeeded"
    said = r"lados: 1 labels are new; 37 images of 37 sources, training knows 0 of 1\d held-out images; "
    assert re.fullmatch(said + re.escape(f"{proposal['model']} is proposed. {proposal['verdict']}"), Heard.texts[-1]), Heard.texts
    assert (place.folder / "runs" / proposal["model"] / "bundle" / "parity.json").exists(), "with its certificate"


def test_what_is_better_is_served_where_that_is_wanted(place):
    stranger(make_run(place.folder / "runs" / "guess", epochs=0)) # of random weights
    wanted = {**place.retraining, "training": {**TRAINING, "epochs": 20}, "promote": True}
    with place.up() as server:
        server.ready()
        assert server.promote("guess", "torch").status_code == 200
        place.correct(server, seed=7)
        done = place.airflow("dags", "test", "retrain_lados", "--conf", json.dumps(wanted), check=False)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        proposal = server.get("/trainings", headers=KEYED).json()["proposals"][0]
        try:
            assert proposal["better"] and server.get("/ready").json()["model"] == proposal["model"], proposal
            assert f"{proposal['model']} is served" in Heard.texts[-1]
        finally:
            server.promote("first", "torch")


def test_scheduler_triggerer_and_processor_run_both_over_a_restart_of_the_api(place):
    place.draw("two")
    with place.airflow.standalone(), place.up() as server:
        server.ready()
        score = place.airflow.begin("score_flights", {})
        assert place.airflow.end("score_flights", score) == "success", place.airflow.tasks("score_flights", score)
        assert place.tables.joinpath("two.csv").read_text().count("\n") == 4
        place.correct(server, seed=6)
        run = place.airflow.begin("retrain_lados", place.retraining)
        with place.restarted_while_training(server) as server:
            wait_for(lambda: place.airflow.tasks("retrain_lados", run)["train"] in ("deferred", "success"), 120) # no slot is taken by the wait
            assert place.airflow.end("retrain_lados", run) == "success", place.airflow.tasks("retrain_lados", run)
            assert set(place.airflow.tasks("retrain_lados", run).values()) == {"success"}
            # where nothing is new, nothing is done
            idle = place.airflow.begin("retrain_lados", {**place.retraining, "labels": 50})
            assert place.airflow.end("retrain_lados", idle) == "success"
            assert place.airflow.tasks("retrain_lados", idle)["train"] == "skipped"
