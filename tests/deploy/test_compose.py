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
PORTS = ("API", "APP", "MONITOR", "STREAMLIT", "FLET", "PROMETHEUS", "ALERTMANAGER", "GRAFANA")
WATCHED = {"lados-api", "lados-exporter", "redis", "prometheus", "alertmanager"} # jobs of prometheus.yml
ASK_API = "import os, urllib.request as u; print(u.urlopen(os.environ['LADOS_API_URL'] + '/health', timeout=20).status)"

STRANGER = """
import socket
for name in ("redis", "postgres"):
    try:
        print(socket.gethostbyname(name))
    except OSError:
        print("unknown")
try:
    with socket.create_connection(("{address}", 6379), 3) as line:
        line.sendall(b"KEYS *\\r\\n")
        print(line.recv(100).decode())
except OSError:
    print("unreachable")
"""


class Stack:
    "A project of Compose with ports and volumes of its own."

    def __init__(self, box):
        self.box, self.port, self.project = box, Server.free_port(), "ladostest"
        ports = {f"{name}_PORT": str(Server.free_port()) for name in PORTS}
        self.env = {**ENV, **ports, "HTTPS_PORT": str(self.port), "COMPOSE_PROJECT_NAME": self.project}

    def compose(self, *words):
        done = self.box.compose("-p", self.project, *words, env=self.env, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        return done.stdout

    def up(self, services=SERVICES, path="/ready"):
        "Start services, and return the seconds until the proxy gives a good answer; return once the job store is there, too."
        begun = time.monotonic()
        self.compose("up", "-d", "--no-build", *services)
        self.until(lambda: self.ask("GET", path).status_code == 200)
        seconds = time.monotonic() - begun
        self.until(lambda: self.ask("GET", "/jobs", keyed=True).status_code == 200)
        return seconds

    def container(self, service):
        return f"{self.project}-{service}-1"

    def ask(self, method, path, keyed=False, kind=None, **more):
        key = ({"X-API-Key": ENV["API_KEY"]} if keyed else {}) | ({"Content-Type": kind} if kind else {})
        with httpx.Client(verify=False, trust_env=False, timeout=60) as c: # the authority is the proxy's own
            return c.request(method, f"https://localhost:{self.port}{path}", headers=key, **more)

    def page(self, service, path="/"):
        "The answer of a service's own port."
        return httpx.get(f"http://127.0.0.1:{self.env[f'{service.upper()}_PORT']}{path}", trust_env=False, timeout=20)

    def inside(self, service, code):
        "What Python prints in a container."
        return self.box.run("exec", self.container(service), "python", "-c", code, check=False, capture_output=True).stdout.strip()

    def version(self, service):
        "The tag of a service's image."
        return self.box.run("inspect", "--format", "{{.Config.Image}}", self.container(service), capture_output=True).stdout.strip().rpartition(":")[2]

    def healthy(self, service):
        "Run the image's own health check once: Podman without systemd has no timer for it."
        check = ("python", "-S", "/usr/local/bin/lados-health")
        return self.box.run("exec", self.container(service), *check, check=False, capture_output=True).returncode == 0

    def until(self, condition, seconds=240):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if found := condition():
                    return found
            except (httpx.TransportError, ValueError): # a page that says it is starting is no JSON
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

    def batch(self, seed):
        "Hand in 200 images, and return the job's id."
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as z:
            for n, data in enumerate(colours(200, seed)):
                z.writestr(f"{n:03}.png", data)
        ask = lambda: self.ask("POST", "/predict_batch", content=packed.getvalue(), kind="application/zip") # noqa: E731
        return self.until(lambda: (a := ask()).status_code == 202 and a).json()["id"]

    def rows(self, job_id):
        "Wait for a batch, and return its table."
        self.succeeded(job_id)
        ask = lambda: self.ask("GET", f"/job/{job_id}/results?format=json", keyed=True) # noqa: E731
        rows = self.until(lambda: (a := ask()).status_code == 200 and a).json()
        return rows if isinstance(rows, list) else rows["results"]

    def begun(self, service):
        "Whether a container runs, and since when."
        template = "{{.State.Running}} {{.State.StartedAt}}"
        return self.box.run("inspect", "--format", template, self.container(service), capture_output=True).stdout.split(maxsplit=1)

    def kill(self, service):
        "Kill a container, and start it again where the engine does not by itself."
        before = self.begun(service)
        self.box.run("kill", self.container(service), capture_output=True)
        if self.until(lambda: (now := self.begun(service)) != before and now)[0] == "false":
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
    made.compose("--profile", "all", "down", "-v", "-t", "1") # what an earlier run left
    print(f"up after {made.up(path='/health'):.0f} s")
    yield made
    made.compose("--profile", "all", "down", "-v", "-t", "5")


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


def test_a_container_of_others_finds_no_store_by_name_and_gets_nothing_by_address(stack):
    networks = stack.box.run("inspect", "--format", "{{json .NetworkSettings.Networks}}", stack.container("redis"), capture_output=True).stdout
    address = next(n["IPAddress"] for n in json.loads(networks).values())
    told = stack.box.run("run", "--rm", stack.box.PYTHON, "python3", "-c", STRANGER.format(address=address), capture_output=True).stdout.split()
    assert told[:2] == ["unknown", "unknown"] and told[2] in ("unreachable", "-NOAUTH")


def test_a_model_trained_over_http_is_served(stack, model):
    answer = stack.ask("POST", "/predict", content=colours(1, 8)[0])
    assert answer.status_code == 200 and answer.json()["model"] == model


def whole(rows) -> bool:
    "Whether a table has each of 200 images once, classified."
    return len(rows) == 200 and len({r["image"] for r in rows}) == 200 and all(r.get("predicted") for r in rows)


@pytest.mark.parametrize("victim", SERVICES)
def test_a_batch_of_200_is_whole_though_a_container_is_killed(stack, model, victim):
    job, begun = stack.batch(SERVICES.index(victim)), time.monotonic()
    stack.kill(victim)
    rows = stack.rows(job)
    print(f"{victim} killed: {len(rows)} rows after {time.monotonic() - begun:.0f} s")
    assert whole(rows)


def test_prometheus_and_alertmanager_watch_the_stack(stack, model):
    for service in ("prometheus:v3.5.0", "alertmanager:v0.28.1"):
        stack.box.base(f"docker.io/prom/{service}")
    stack.box.base("docker.io/oliver006/redis_exporter:v1.74.0")
    begun, watching = time.monotonic(), ("exporter", "redis-exporter", "alertmanager", "prometheus")
    stack.compose("--profile", "monitoring", "up", "-d", "--no-build", *watching)

    def seen():
        targets = stack.page("prometheus", "/api/v1/targets").json()["data"]["activeTargets"]
        return {t["labels"]["job"] for t in targets if t["health"] == "up"} == WATCHED

    stack.until(seen)
    stack.until(lambda: {a["labels"]["alertname"] for a in stack.page("alertmanager", "/api/v2/alerts").json()} >= {"Watchdog"})
    print(f"all of {', '.join(sorted(WATCHED))} are watched, and Alertmanager has the watchdog, {time.monotonic() - begun:.0f} s after up")
    stack.compose("--profile", "monitoring", "rm", "-f", "-s", *watching)


def test_an_upgrade_and_the_way_back_keep_jobs_answers_and_history(stack, model):
    image, old = colours(1, 9)[0], stack.box.version()
    before = stack.state(image)
    for target in ("jobs", "worker"):
        stack.box.run("tag", stack.box.image(target), f"localhost/lados-{target}:next")
    for seed, version in ((20, "next"), (21, old)):
        job = stack.batch(seed)
        stack.env["LADOS_VERSION"] = version
        print(f"up as {version} after {stack.up():.0f} s")
        assert stack.version("api") == stack.version("worker-train") == version and whole(stack.rows(job))
        now = stack.state(image)
        assert now[:2] == before[:2] and set(now[2]) > set(before[2])


def test_the_front_ends_show_their_pages_and_reach_the_api(stack, images):
    images("fronts")
    begun = time.monotonic()
    stack.compose("--profile", "fronts", "up", "-d", "--no-build", "streamlit", "flet")
    for name, word in (("streamlit", "Streamlit"), ("flet", "flet")):
        page = stack.until(lambda: (a := stack.page(name)).status_code == 200 and a) # noqa: B023
        assert word in page.text
        print(f"{name}: its page is there {time.monotonic() - begun:.0f} s after up")
        assert stack.healthy(name) and stack.inside(name, ASK_API) == "200"
    stack.compose("--profile", "fronts", "rm", "-f", "-s", "streamlit", "flet")


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
    stack.compose("--profile", "all", "down", "-v", "-t", "20")
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
