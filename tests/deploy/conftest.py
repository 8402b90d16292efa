"Containers for the tests of images and of Compose: the engine that works here, and what was started taken away again."

import importlib.util
import json
import subprocess
import time
import uuid
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]
STAND_INS = ("docker.io/library/redis:7.4-bookworm", "docker.io/library/postgres:15-bookworm", "docker.io/library/caddy:2.10-alpine")
spec = importlib.util.spec_from_file_location("containers", ROOT / "tools" / "containers.py")
containers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(containers)


TRIAL = "FROM {base}\nRUN true\n" # what any machine that builds images can do


def _why_not() -> str:
    "Why no container can be built and run here; empty if they can. That is no fault of what is tested."
    try:
        base = containers.base(containers.PYTHON)
        for service in STAND_INS:
            containers.base(service)
        containers.compose_program()
    except SystemExit as e:
        return str(e)
    except subprocess.CalledProcessError as e:
        return f"neither images nor Debian's packages for stand-ins, nor Compose, can be had: {e}"
    trials = {"built": (("build", "-q", "-"), TRIAL.format(base=base)),
              "run": (("run", "--rm", "--memory", "64m", "--read-only", "-p", "127.0.0.1::8000", base, "true"), None)}
    for what, (words, text) in trials.items():
        done = containers.run(*words, input=text, check=False, capture_output=True)
        if done.returncode:
            return f"no container can be {what} here: {done.stderr.strip()[-300:]}"
    return ""


@pytest.fixture(scope="session")
def box():
    "tools/containers.py, where Docker or Podman really works: the machine, and not lados, is at fault where they do not."
    if why := _why_not():
        pytest.skip(why)
    return containers


@pytest.fixture(scope="session")
def images(box):
    "Build an image once, and give its name."
    made: dict[str, str] = {}

    def of(target: str) -> str:
        if target not in made:
            seconds = box.build(target)
            made[target] = box.image(target)
            print(f"{made[target]}: built in {seconds:.0f} s, {box.sizes()[target] / 1e6:.0f} MB")
        return made[target]

    return of


class Container:
    "A container that is gone after the test."

    def __init__(self, box, image, *command, options=()):
        self.box, self.name = box, f"lados-test-{uuid.uuid4().hex[:8]}"
        self.begun = time.monotonic()
        box.run("run", "-d", "--name", self.name, *options, image, *command, capture_output=True)

    def inspect(self, template):
        return self.box.run("inspect", "--format", template, self.name, capture_output=True).stdout.strip()

    def url(self, port=8000):
        ports = json.loads(self.inspect("{{json .NetworkSettings.Ports}}"))
        return f"http://127.0.0.1:{ports[f'{port}/tcp'][0]['HostPort']}"

    def log(self):
        done = self.box.run("logs", self.name, capture_output=True)
        return done.stdout + done.stderr

    def healthy(self):
        "Run the image's own health check once: Podman without systemd has no timer for it."
        check = json.loads(self.inspect("{{json .Config.Healthcheck.Test}}"))
        return self.box.run("exec", self.name, *check[1:], check=False, capture_output=True).returncode == 0

    def wait(self, seconds=120, port=8000, path="/ready"):
        "Wait until a page of it is there, and return the seconds since the start."
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            try:
                if httpx.get(f"{self.url(port)}{path}", timeout=20, trust_env=False).status_code == 200:
                    return time.monotonic() - self.begun
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise AssertionError(self.log()[-3000:])

    def cpu_seconds(self):
        "Processor time of all its processes."
        told = self.box.run("exec", self.name, "sh", "-c", "cat /proc/[0-9]*/stat", check=False, capture_output=True).stdout
        return sum(sum(map(int, line.rpartition(")")[2].split()[11:13])) for line in told.splitlines()) / 100

    def remove(self):
        self.box.run("rm", "-f", "-t", "2", self.name, check=False, capture_output=True)


@pytest.fixture
def start(box):
    "Start containers that end with the test."
    there: list[Container] = []

    def begin(image, *command, options=()):
        there.append(Container(box, image, *command, options=options))
        return there[-1]

    yield begin
    for c in there:
        c.remove()


@pytest.fixture
def venv(tmp_path):
    "An empty environment."
    import sys

    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    return tmp_path / "venv"
