"Alerts and panels, all the way: real Prometheus and Alertmanager over a real service, workers and exporter."

import contextlib
import json
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import httpx
import pytest
import yaml
from serving import KEY, ROOT, Server, colours, make_run, wait_for
from toy import toy_manifest
from working import TRAINING, ended, environment, service, working

from lados.serve.export import export_run

MONITORING = Path(ROOT) / "docker" / "monitoring"
EXPORT = "from lados.jobs.exporter import run_exporter as go; go({port})"
BACKUP = "from lados.jobs.backup import take_backup; take_backup('backup')"
F1 = "F1 of each class on the test images"
NO_GPU = {"GPU use", "GPU memory"} # the panels that machines without a graphics card leave empty

for program in ("prometheus", "prometheus-alertmanager"):
    if not shutil.which(program):
        pytest.skip(f"{program} is not installed", allow_module_level=True)


class Receiver(BaseHTTPRequestHandler):
    "Whoever is called by Alertmanager."

    got: ClassVar[list[tuple[str, str, str, dict]]] = []

    def do_POST(self):
        for alert in json.loads(self.rfile.read(int(self.headers["content-length"])))["alerts"]:
            self.got.append((self.path, alert["status"], alert["labels"]["alertname"], alert["annotations"]))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def running(*words, log, **options):
    with log.open("wb") as out:
        process = subprocess.Popen(list(map(str, words)), stdout=out, stderr=out, **options)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(20)


def quick(folder, api, exporter, alertmanager) -> Path:
    "The real configuration and rules with other addresses, one-second scrapes, and eight seconds for minutes: a busy machine misses some."
    config = yaml.safe_load((MONITORING / "prometheus" / "prometheus.yml").read_text())
    config["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["alerting"]["alertmanagers"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{alertmanager}"]}]
    jobs = {j["job_name"]: j for j in config["scrape_configs"]}
    for name, port in (("lados-api", api), ("lados-exporter", exporter)):
        jobs[name].pop("dns_sd_configs")
        jobs[name]["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
    config["scrape_configs"] = [jobs["lados-api"], jobs["lados-exporter"]]
    (folder / "rules").mkdir()
    for path in (MONITORING / "prometheus" / "rules").glob("*.yml"):
        (folder / "rules" / path.name).write_text(re.sub(r"for: (\d+)[mh]", r"for: 8s", path.read_text()))
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    return folder / "prometheus.yml"


def routed(folder, port) -> Path:
    "The real routes, to a receiver here, without waiting."
    text = (MONITORING / "alertmanager" / "alertmanager.yml").read_text()
    text = re.sub(r"group_(wait|interval): \w+", r"group_\1: 1s", text).replace("http://notify:8080", f"http://127.0.0.1:{port}")
    text = text.replace("/run/secrets/notify_key", str(folder / "key"))
    (folder / "key").write_text("key")
    (folder / "alertmanager.yml").write_text(text)
    return folder / "alertmanager.yml"


@pytest.fixture
def watched(tmp_path):
    "Starts a service, an exporter, Prometheus, Alertmanager and a receiver: gives service, Prometheus's address and what came."
    with contextlib.ExitStack() as stack:
        yield lambda model=None: stack.enter_context(watching(tmp_path, model))


@contextlib.contextmanager
def watching(tmp_path, model):
    receiver = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    Receiver.got = []
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    ports = [Server.free_port() for _ in range(3)]
    with contextlib.ExitStack() as stack:
        api = stack.enter_context(service(tmp_path, model))
        stack.enter_context(running(sys.executable, "-c", EXPORT.format(port=ports[0]), log=tmp_path / "exporter.log", cwd=tmp_path,
                                    env=environment(tmp_path)))
        folder = tmp_path / "monitoring"
        folder.mkdir()
        stack.enter_context(running("prometheus-alertmanager", f"--config.file={routed(folder, receiver.server_port)}", "--cluster.listen-address=",
                                    f"--web.listen-address=127.0.0.1:{ports[1]}", f"--storage.path={folder}/am", log=folder / "am.log"))
        stack.enter_context(running("prometheus", f"--config.file={quick(folder, api.port, ports[0], ports[1])}", f"--storage.tsdb.path={folder}/tsdb",
                                    f"--web.listen-address=127.0.0.1:{ports[2]}", log=folder / "prometheus.log"))
        yield api, f"http://127.0.0.1:{ports[2]}", Receiver.got
    receiver.shutdown()


def asked(url, query) -> list[dict]:
    answer = httpx.get(f"{url}/api/v1/query", params={"query": query}, trust_env=False)
    return answer.json()["data"]["result"] if answer.status_code == 200 else [] # 503 while it starts


def test_a_worker_that_stops_is_told_and_so_is_that_it_is_back(watched, tmp_path):
    _, prometheus, got = watched()
    told = lambda status, path="/page": [a for p, s, n, a in got if (p, s, n) == (path, status, "LadosNoWorker")] # noqa: E731
    with working(tmp_path, train=0, predict=1):
        wait_for(lambda: [r for r in asked(prometheus, 'batch_workers{queue="predict"}') if r["value"][1] == "1"], 90)
    assert not told("firing")
    code = "from lados.jobs import store; store.add_job(store.open_store(), 'predict', {}, 'k', [('predict', 1)])"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment(tmp_path))
    alert = wait_for(lambda: told("firing"), 90)[0]
    assert alert["summary"] == "Nobody works on the queue predict, and 1 tasks are there" and alert["runbook_url"].endswith("#ladosnoworker")
    with working(tmp_path, train=0, predict=1):
        wait_for(lambda: told("resolved"), 90)
    names = {n for _, _, n, _ in got}
    assert "LadosModelNotReady" in names and not names & {"LadosApiDown", "LadosBrokerDown"} and not told("firing", "/ticket")


def in_place(home, code):
    "Run some code in the installation."
    subprocess.run([sys.executable, "-c", code], check=True, cwd=home, env=environment(home))


def panel_queries() -> set[tuple[str, str]]:
    "Title and query of everything that the dashboards ask."
    boards = [json.loads(path.read_text()) for path in sorted((MONITORING / "grafana" / "dashboards").glob("*.json"))]
    return {(p["title"], t["expr"]) for board in boards for p in board["panels"] for t in p["targets"]}


def test_every_panel_has_data(watched, tmp_path, home):
    "A certified model, answers, a correction over HTTP, a batch, a training with its events, a backup: every query of every panel has an answer."
    export_run(make_run(tmp_path / "runs" / "first"), ["openvino"])
    toy_manifest(tmp_path / "data" / "toy")
    api, prometheus, _ = watched(tmp_path / "runs" / "first")
    api.ready()
    key = {"X-API-Key": KEY}
    with working(tmp_path):
        training = api.post("/train", json={**TRAINING, "epochs": 3, "data": str(tmp_path / "data" / "toy")}, headers=key).json()
        for image in colours(30):
            answer = api.predict(image).json()
        wait_for(lambda: asked(prometheus, "inference_requests_total > 0"), 60) # a rate needs a count to rise from
        for image in colours(30, seed=1):
            answer = api.predict(image).json()
        said = {"label": "oil" if answer["label"] != "oil" else "ship", "predicted": answer["label"]}
        assert api.post("/corrections", params=said, files={"file": ("sea.png", image)}, headers=key).status_code == 200
        batch = api.post("/predict_batch", files=[("files", (f"{i}.png", p)) for i, p in enumerate(colours(20))]).json()
        in_place(tmp_path, BACKUP)
        left = {q for q in panel_queries() if q[0] not in NO_GPU}
        assert len(left) > 30 and {title for title, _ in panel_queries()} > NO_GPU

        def all_seen() -> bool:
            left.difference_update({q for q in left if asked(prometheus, q[1])})
            return not left

        for job in (batch, training):
            assert ended(api, job["id"])["state"] == "succeeded"
        with contextlib.suppress(AssertionError):
            wait_for(lambda: all_seen() or {title for title, _ in left} == {F1}, 30)
        assert api.promote(ended(api, training["id"])["run"], "torch").status_code == 200 # a training's card has the scores of each class
        with contextlib.suppress(AssertionError):
            wait_for(all_seen, 120)
        assert not left, left


POD = {"namespace": "lados", "pod_phase": "Running", "pod_ip": "127.0.0.1", "pod_annotation_prometheus_io_scrape": "true"}


def test_pods_are_scraped_as_their_annotations_say(tmp_path):
    "Discovery itself needs a cluster; what is made of what it finds is asked of a real Prometheus, to which a file tells of pods."
    pods = [POD | {"pod_name": "api-1", "pod_label_app_kubernetes_io_component": "api", "pod_annotation_prometheus_io_port": "8000",
                   "pod_annotation_prometheus_io_path": "/metrics/prometheus"},
            POD | {"pod_name": "exporter-1", "pod_label_app_kubernetes_io_component": "exporter", "pod_annotation_prometheus_io_port": "9108"},
            POD | {"pod_name": "worker-1", "pod_label_app_kubernetes_io_component": "worker", "pod_annotation_prometheus_io_scrape": "false"},
            POD | {"pod_name": "old-1", "pod_label_app_kubernetes_io_component": "api", "pod_phase": "Succeeded"}]
    found = [{"targets": ["127.0.0.1:1"], "labels": {f"__meta_kubernetes_{n}": v for n, v in pod.items()}} for pod in pods]
    (tmp_path / "pods.json").write_text(json.dumps(found))
    config = yaml.safe_load((MONITORING / "prometheus" / "prometheus.kubernetes.yml").read_text())
    (pods_job,) = [j for j in config["scrape_configs"] if "kubernetes_sd_configs" in j]
    assert pods_job.pop("kubernetes_sd_configs") == [{"role": "pod", "namespaces": {"own_namespace": True}}]
    pods_job["file_sd_configs"] = [{"files": [str(tmp_path / "pods.json")]}]
    config |= {"scrape_configs": [pods_job], "alerting": {}, "rule_files": []}
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    url = f"http://127.0.0.1:{Server.free_port()}"
    with running("prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/tsdb", f"--web.listen-address={url[7:]}",
                 log=tmp_path / "prometheus.log"):
        wait_for(lambda: httpx.get(f"{url}/-/ready", trust_env=False).is_success, 60)
        targets = wait_for(lambda: httpx.get(f"{url}/api/v1/targets", trust_env=False).json()["data"]["activeTargets"], 60)
    assert {(t["labels"]["job"], t["labels"]["pod"], t["scrapeUrl"]) for t in targets} == {
        ("lados-api", "api-1", "http://127.0.0.1:8000/metrics/prometheus"), ("lados-exporter", "exporter-1", "http://127.0.0.1:9108/metrics")}
