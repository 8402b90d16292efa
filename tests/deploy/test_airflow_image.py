"Airflow's image, run with the limits, folders and command of docker/airflow/compose.yaml, over an API and a worker of this machine."

import json
from pathlib import Path

import httpx
import pytest
import yaml
from serving import KEY, ROOT, Server, colours, make_run, wait_for
from working import service, working

SERVICE = yaml.safe_load((Path(ROOT) / "docker" / "airflow" / "compose.yaml").read_text())["services"]["airflow"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("airflow")
    make_run(home / "runs" / "first")
    flight = home / "data" / "flights" / "dawn"
    flight.mkdir(parents=True)
    for i, data in enumerate(colours(3)):
        (flight / f"{i}.png").write_bytes(data)
    return home


def test_a_flight_becomes_a_table_in_a_container_with_no_rights(home, images, start):
    with working(home, MODEL_PATH=home / "runs" / "first", LADOS_ENGINE="torch"), service(home, home / "runs" / "first", LADOS_ENGINE="torch") as server:
        flights = {"flights": f"{home}/data/flights", "tables": "/opt/airflow/state/tables", "quiet_s": 0}
        port = Server.free_port()
        told = {**SERVICE["environment"], "AIRFLOW_CONN_LADOS_DEFAULT": json.dumps({"conn_type": "lados", "host": server.url, "password": KEY}),
                "RETRAIN_LADOS": "", "SCORE_FLIGHTS": json.dumps(flights), "AIRFLOW__API__PORT": port, "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{port}",
                "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": True, "AIRFLOW__API__WORKERS": 1, "NO_PROXY": "127.0.0.1"}
        options = ["--network=host", *(f"--cap-drop={c}" for c in SERVICE["cap_drop"]), *(f"--security-opt={o.replace(':true', '')}" for o in SERVICE["security_opt"]),
                   f"--memory={SERVICE['mem_limit']}", "-v", f"{home}/data:{home}/data:ro", *(w for n, v in told.items() for w in ("-e", f"{n}={v}"))]
        server.ready()
        box = start(images("airflow"), *SERVICE["command"], options=options)
        api = httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v2", trust_env=False, timeout=60)
        wait_for(lambda: {d["dag_id"] for d in api.get("/dags").json().get("dags", ())} == {"score_flights", "retrain_lados"}, 300)
        assert api.get("/importErrors").json()["total_entries"] == 0
        api.patch("/dags/score_flights", json={"is_paused": False}).raise_for_status()
        run = api.post("/dags/score_flights/dagRuns", json={"conf": {}, "logical_date": None}).raise_for_status().json()["dag_run_id"]
        state = wait_for(lambda: (s := api.get(f"/dags/score_flights/dagRuns/{run}").json()["state"]) in ("success", "failed") and s, 400)
        assert state == "success", box.log()[-4000:]
        table = box.box.run("exec", box.name, "cat", "/opt/airflow/state/tables/dawn.csv", capture_output=True).stdout
        assert table.count("\n") == 4 and ",first," in table
        assert box.box.run("exec", box.name, "id", "-u", capture_output=True).stdout.strip() != "0"
