"The core stack by the real Compose: a batch through the proxy while every container is killed in turn, and the same answers after down and up."

import io
import shutil
import subprocess
import time
import zipfile

import httpx
import pytest
from serving import Server, colours, runs

SERVICES = ("redis", "postgres", "api", "worker-predict", "proxy") # trainings need the image `worker`, of several GB
NAMES = ("docker.io/library/redis:7.4-bookworm", "docker.io/library/postgres:15-bookworm", "docker.io/library/caddy:2.10-alpine")
RUN = "20260501T093000Z-train-may"
ENV = {"API_KEY": "a-key-of-the-test-0123456789", "REDIS_PASSWORD": "of-the-test-1", "POSTGRES_PASSWORD": "of-the-test-2"}


class Stack:
    "A project of Compose with ports and volumes of its own."

    def __init__(self, box):
        self.box, self.port = box, Server.free_port()
        self.env = {**ENV, "API_PORT": str(Server.free_port()), "HTTPS_PORT": str(self.port), "COMPOSE_PROJECT_NAME": "ladostest"}

    def compose(self, *words):
        return self.box.compose("-p", "ladostest", *words, env=self.env, capture_output=True)

    def up(self):
        begun = time.monotonic()
        self.compose("up", "-d", "--no-build", *SERVICES)
        self.until(lambda: self.ask("GET", "/ready").status_code == 200)
        return time.monotonic() - begun

    def container(self, service):
        return f"ladostest-{service}-1"

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
        told = "".join(self.box.run("logs", "--tail", "15", self.container(s), check=False, capture_output=True).stderr for s in SERVICES)
        raise AssertionError(told)

    def job(self, job_id):
        answer = self.ask("GET", f"/job/{job_id}")
        return answer.json() if answer.status_code == 200 else {"state": "unknown"}

    def whole(self, job_id):
        "Wait for a batch, and return its rows."
        self.until(lambda: self.job(job_id)["state"] in ("succeeded", "failed"))
        assert self.job(job_id)["state"] == "succeeded", self.job(job_id)
        return self.ask("GET", f"/job/{job_id}/results", params={"format": "json"}).json()

    def kill(self, service):
        "Kill a container, and start it again where the engine does not by itself."
        self.box.run("kill", self.container(service), capture_output=True)
        time.sleep(1)
        self.box.run("start", self.container(service), check=False, capture_output=True)


def batch(count, seed):
    "A zip of images."
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as z:
        for n, data in enumerate(colours(count, seed)):
            z.writestr(f"{n:03}.png", data)
    return packed.getvalue()


@pytest.fixture(scope="module")
def stack(box, images, tmp_path_factory):
    images("jobs")
    for name in NAMES:
        box.base(name)
    made, model = Stack(box), tmp_path_factory.mktemp("runs") / RUN
    shutil.copytree(runs() / "first", model)
    made.compose("create", "--no-build", "api")
    box.run("cp", str(model), f"{made.container('api')}:/var/lib/lados/runs/{RUN}", capture_output=True)
    mount = box.run("volume", "inspect", "--format", "{{.Mountpoint}}", "ladostest_runs", capture_output=True).stdout.strip()
    subprocess.run(["ln", "-sfn", RUN, f"{mount}/latest"], check=True)
    subprocess.run(["chown", "-R", "10001:10001", mount], check=True)
    print(f"up and ready after {made.up():.0f} s")
    yield made
    made.compose("down", "-v", "-t", "5")


def test_changes_are_closed_through_the_proxy(stack):
    for path in ("/train", "/jobs", "/models/promote"):
        assert stack.ask("POST", path, json={}).status_code == 401
    assert stack.ask("GET", "/jobs").status_code == 401 and stack.ask("GET", "/jobs", keyed=True).status_code == 200


def test_stores_have_no_port_outside_and_take_no_stranger(stack):
    for service in ("redis", "postgres"):
        assert stack.box.run("port", stack.container(service), check=False, capture_output=True).stdout.strip() == ""
    done = stack.box.run("exec", "-e", "REDISCLI_AUTH=", stack.container("redis"), "redis-cli", "keys", "*", check=False, capture_output=True)
    assert "NOAUTH" in done.stdout + done.stderr


@pytest.mark.parametrize("victim", SERVICES)
def test_a_batch_of_200_is_whole_though_a_container_is_killed(stack, victim):
    data = batch(200, SERVICES.index(victim))
    answer = stack.until(lambda: (a := stack.ask("POST", "/predict_batch", content=data, kind="application/zip")).status_code == 202 and a)
    begun = time.monotonic()
    stack.kill(victim)
    rows = stack.whole(answer.json()["id"])
    rows = rows if isinstance(rows, list) else rows["results"]
    print(f"{victim} killed: {len(rows)} rows after {time.monotonic() - begun:.0f} s")
    assert len(rows) == 200 and len({r["image"] for r in rows}) == 200 and all(r.get("label") for r in rows)


def test_after_down_and_up_it_serves_the_same(stack):
    image = colours(1, 9)[0]

    def picture():
        answer, jobs = stack.ask("POST", "/predict", content=image).json(), stack.ask("GET", "/jobs", keyed=True).json()
        return answer["model"], answer["probabilities"], [(j["id"], j["state"]) for j in jobs["jobs"]]

    before = picture()
    stack.compose("down", "-t", "20")
    print(f"up again after {stack.up():.0f} s")
    assert picture() == before
