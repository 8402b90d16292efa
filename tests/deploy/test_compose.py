"""The stack by the real Compose, through its proxy: the demo is trained over HTTP while its worker is killed, exported, promoted; batches
are whole though a container is killed; down and up, and a backup restored into empty volumes, give the same answers and the same history."""

import io
import json
import subprocess
import time
import zipfile

import httpx
import pytest
from serving import Server, colours

SERVICES = ("redis", "postgres", "api", "worker-train", "worker-predict", "scheduler", "proxy")
DEMO = {"preset": "demo", "epochs": 3, "size": 64, "audit": False, "name": "by-http"}
ENV = {"API_KEY": "a-key-of-the-test-0123456789", "REDIS_PASSWORD": "of-the-test-1", "POSTGRES_PASSWORD": "of-the-test-2",
       "GRAFANA_PASSWORD": "of-the-test-3", "NOTIFY_KEY": "of-the-test-4", "LADOS_ENGINE": "openvino", "TRAIN_MEMORY": "6g"}


class Stack:
    "A project of Compose with ports and volumes of its own."

    def __init__(self, box):
        self.box, self.port, self.project = box, Server.free_port(), "ladostest"
        ports = {f"{name}_PORT": str(Server.free_port()) for name in ("API", "APP", "MONITOR", "STREAMLIT", "FLET")}
        self.env = {**ENV, **ports, "HTTPS_PORT": str(self.port), "COMPOSE_PROJECT_NAME": self.project}

    def compose(self, *words):
        done = self.box.compose("-p", self.project, *words, env=self.env, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        return done.stdout

    def up(self, services=SERVICES, path="/ready"):
        "Start services, and return the seconds until the proxy gives a good answer."
        begun = time.monotonic()
        self.compose("up", "-d", "--no-build", *services)
        self.until(lambda: self.ask("GET", path).status_code == 200)
        return time.monotonic() - begun

    def container(self, service):
        return f"{self.project}-{service}-1"

    def ask(self, method, path, keyed=False, kind=None, **more):
        key = ({"X-API-Key": ENV["API_KEY"]} if keyed else {}) | ({"Content-Type": kind} if kind else {})
        with httpx.Client(verify=False, trust_env=False, timeout=60) as c: # the authority is the proxy's own
            return c.request(method, f"https://localhost:{self.port}{path}", headers=key, **more)

    def until(self, condition, seconds=240):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if found := condition():
                    return found
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        logs = [self.box.run("logs", "--tail", "15", self.container(s), check=False, capture_output=True) for s in SERVICES]
        raise AssertionError("\n".join(x.stdout + x.stderr for x in logs))

    def job(self, job_id):
        answer = self.ask("GET", f"/job/{job_id}", keyed=True)
        return answer.json() if answer.status_code == 200 else {"state": "unknown", "progress": {}}

    def begin(self, path, params):
        "Hand a job in, and return its id."
        answer = self.until(lambda: (a := self.ask("POST", path, keyed=True, json=params)).status_code < 500 and a)
        assert answer.status_code == 202, answer.text
        return answer.json()["id"]

    def succeeded(self, job_id, seconds=400):
        "Wait for a job, and return it."
        self.until(lambda: self.job(job_id)["state"] in ("succeeded", "failed", "cancelled"), seconds)
        job = self.until(lambda: (j := self.job(job_id))["state"] != "unknown" and j)
        assert job["state"] == "succeeded", job
        return job

    def batch(self, seed, victim=None):
        "Hand in 200 images, kill a container, and return the rows and the seconds until they are there."
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as z:
            for n, data in enumerate(colours(200, seed)):
                z.writestr(f"{n:03}.png", data)
        ask = lambda: self.ask("POST", "/predict_batch", content=packed.getvalue(), kind="application/zip") # noqa: E731
        answer, begun = self.until(lambda: (a := ask()).status_code == 202 and a), time.monotonic()
        if victim:
            self.kill(victim)
        job = self.succeeded(answer.json()["id"])
        rows = self.until(lambda: (a := self.ask("GET", f"/job/{job['id']}/results?format=json", keyed=True)).status_code == 200 and a).json()
        return rows if isinstance(rows, list) else rows["results"], time.monotonic() - begun

    def kill(self, service):
        "Kill a container, and start it again where the engine does not by itself."
        self.box.run("kill", self.container(service), capture_output=True)
        time.sleep(1)
        self.box.run("start", self.container(service), check=False, capture_output=True)

    def state(self, image):
        "What a user sees: the model, its answer to an image, and all jobs."
        answer = self.until(lambda: (a := self.ask("POST", "/predict", content=image)).status_code == 200 and a).json()
        jobs = self.ask("GET", "/jobs", keyed=True).json()["jobs"]
        return answer["model"], answer["probabilities"], [(j["id"], j["kind"], j["state"]) for j in jobs]


@pytest.fixture(scope="module")
def stack(box, images):
    for target in ("jobs", "worker"):
        images(target)
    made = Stack(box)
    made.compose("down", "-v", "-t", "1") # what an earlier run left
    print(f"up after {made.up(path='/health'):.0f} s")
    yield made
    made.compose("down", "-v", "-t", "5")


@pytest.fixture(scope="module")
def model(stack):
    "The demo, trained over HTTP through the proxy, its worker killed in the second epoch; exported by a job, and promoted."
    training, begun = stack.begin("/train", DEMO), time.monotonic()
    stack.until(lambda: (stack.job(training).get("progress") or {}).get("epoch") or stack.job(training)["state"] == "failed", 400)
    before = stack.job(training)
    assert before["state"] == "running", before
    stack.kill("worker-train")
    job = stack.succeeded(training)
    print(f"worker-train killed in a training of 3 epochs: whole after {time.monotonic() - begun:.0f} s")
    run = job["run"].rpartition("/")[2]
    stack.succeeded(stack.begin("/jobs", {"kind": "export", "params": {"run": run, "formats": ["openvino"]}}))
    answer = stack.ask("POST", "/models/promote", keyed=True, json={"model": run, "engine": "openvino"})
    assert answer.status_code == 200, answer.text
    return run


def test_without_a_secret_compose_says_what_helps(box, tmp_path):
    empty = {"API_KEY": "", "REDIS_PASSWORD": "", "POSTGRES_PASSWORD": "", "GRAFANA_PASSWORD": "", "NOTIFY_KEY": "", "COMPOSE_ENV_FILES": "/dev/null"}
    done = box.compose("-p", "ladosnone", "config", env=empty, capture_output=True, check=False)
    assert done.returncode and "docker/init" in done.stderr


def test_every_profile_is_read_by_compose(stack):
    services = json.loads(stack.compose("--profile", "all", "--profile", "gpu", "config", "--format", "json"))["services"]
    wanted = {8000: "api", 3000: "grafana", 9090: "prometheus", 8501: "streamlit", 8080: "flet"}
    found = {p["target"]: (name, p["host_ip"]) for name, s in services.items() for p in s.get("ports", ())}
    assert all(found[port] == (name, "127.0.0.1") for port, name in wanted.items())
    assert services["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]


def test_changes_are_closed_through_the_proxy(stack):
    for path in ("/train", "/jobs", "/models/promote"):
        assert stack.ask("POST", path, json={}).status_code == 401
    assert stack.ask("GET", "/jobs").status_code == 401 and stack.ask("GET", "/jobs", keyed=True).status_code == 200


def test_stores_have_no_port_outside_and_take_no_stranger(stack):
    for service in ("redis", "postgres"):
        assert stack.box.run("port", stack.container(service), check=False, capture_output=True).stdout.strip() == ""
    done = stack.box.run("exec", "-e", "REDISCLI_AUTH=", stack.container("redis"), "redis-cli", "keys", "*", check=False, capture_output=True)
    assert "NOAUTH" in done.stdout + done.stderr


def test_a_model_trained_over_http_is_served(stack, model):
    answer = stack.ask("POST", "/predict", content=colours(1, 8)[0])
    assert answer.status_code == 200 and answer.json()["model"] == model


@pytest.mark.parametrize("victim", SERVICES)
def test_a_batch_of_200_is_whole_though_a_container_is_killed(stack, model, victim):
    rows, seconds = stack.batch(SERVICES.index(victim), victim)
    print(f"{victim} killed: {len(rows)} rows after {seconds:.0f} s")
    assert len(rows) == 200 and len({r["image"] for r in rows}) == 200 and all(r.get("predicted") for r in rows)


def test_after_down_and_up_it_serves_the_same(stack, model):
    image = colours(1, 9)[0]
    before = stack.state(image)
    stack.compose("down", "-t", "20")
    print(f"up again after {stack.up():.0f} s")
    assert stack.state(image) == before and before[0] == model


def test_a_backup_brings_everything_back_after_all_volumes_are_gone(stack, model, tmp_path):
    image = colours(1, 9)[0]
    before, box = stack.state(image), stack.box
    box.run("exec", stack.container("scheduler"), "lados", "backup", "/tmp/backup", capture_output=True)
    box.run("exec", stack.container("scheduler"), "tar", "-C", "/tmp", "-cf", "/tmp/backup.tar", "backup", capture_output=True)
    with (tmp_path / "backup.tar").open("wb") as f:
        subprocess.run([box.engine(), "exec", stack.container("scheduler"), "cat", "/tmp/backup.tar"], env=box.environment(), stdout=f, check=True)
    stack.compose("down", "-v", "-t", "20")
    volumes = box.run("volume", "ls", "-q", capture_output=True).stdout.split()
    assert not [v for v in volumes if v.startswith(stack.project)]
    begun = time.monotonic()
    stack.compose("up", "-d", "--no-build", "redis", "postgres")
    with (tmp_path / "backup.tar").open("rb") as f:
        program = [*box.compose_program(), *box.compose_files(), "-p", stack.project, "run", "--rm", "-T", "--no-deps", "--entrypoint", "sh", "scheduler",
                   "-c", "cd /tmp && tar -xf - && for i in 1 2 3 4 5 6 7 8 9; do lados restore backup && exit 0; sleep 2; done; exit 1"]
        with box.socket() as env:
            done = subprocess.run(program, env=env | box.compose_values() | stack.env, stdin=f, capture_output=True, text=True)
    assert done.returncode == 0 and "restored" in done.stdout, done.stdout + done.stderr
    stack.up()
    print(f"restored and up after {time.monotonic() - begun:.0f} s")
    assert stack.state(image) == before
