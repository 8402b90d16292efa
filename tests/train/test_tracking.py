"A run handed to a real MLflow server: `LADOS_MLFLOW` names its program, from an environment of its own (`pip install mlflow`)."

import os
import shutil
import subprocess

import pytest
from serving import Server, wait_for

from lados.core import RunError
from lados.files import write_json
from lados.runs.folders import new_run
from lados.runs.tracking import export_to_mlflow

PROGRAM = os.environ.get("LADOS_MLFLOW") or shutil.which("mlflow")
mlflow = pytest.importorskip("mlflow", reason="MLflow's client: pip install 'lados[mlflow]'")
if not PROGRAM:
    pytest.skip("MLflow's server: pip install mlflow into an environment of its own, and name its program in LADOS_MLFLOW", allow_module_level=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    port = Server.free_port()
    folder = tmp_path_factory.mktemp("mlflow")
    command = [PROGRAM, "server", "--host", "127.0.0.1", "--port", str(port), "--backend-store-uri", f"sqlite:///{folder}/runs.db",
               "--artifacts-destination", str(folder / "files"), "--workers", "1"]
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=env, start_new_session=True)
    import httpx

    def answers() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    try:
        wait_for(answers, 120)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


@pytest.fixture
def run(tmp_path):
    made = new_run("train", "demo", {"backbone": "resnet10t", "lr": 0.003}, tmp_path)
    write_json(made.path / "metrics.json", {"test": {"macro_f1": 0.81, "view": "group-safe"}})
    (made.path / "history.csv").write_text("epoch,train_loss,macro_f1\n0,1.5,0.4\n1,0.9,0.8\n")
    for name in ("figures/confusion.png", "bundle/card.json", "report.html"):
        (made.path / name).parent.mkdir(exist_ok=True)
        (made.path / name).write_text("x")
    made.update(state="succeeded", made_by={"version": "0.1.0", "commit": "abc123", "machine": "two cores"})
    return made


def test_a_run_is_on_the_server_once_and_whole(server, run):
    number = export_to_mlflow(run, server, "spills")
    assert export_to_mlflow(run, server, "spills") == number, "handed over twice, it is there once"
    client = mlflow.MlflowClient(server)
    there = client.get_run(number)
    assert there.data.params["backbone"] == "resnet10t" and there.data.metrics["test.macro_f1"] == 0.81
    assert [(m.step, m.value) for m in client.get_metric_history(number, "epoch/macro_f1")] == [(0, 0.4), (1, 0.8)]
    assert there.info.status == "FINISHED" and there.data.tags["lados.commit"] == "abc123"
    assert {f.path for f in client.list_artifacts(number)} >= {"figures", "bundle", "report.html", "history.csv"}
    assert [f.path for f in client.list_artifacts(number, "bundle")] == ["bundle/card.json"]


def test_a_server_that_is_not_there_is_said_so(run):
    with pytest.raises(RunError, match="cannot be written there"):
        export_to_mlflow(run, "http://127.0.0.1:9")
