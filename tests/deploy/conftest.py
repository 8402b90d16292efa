"Containers for the tests of images and of Compose: the engine that works here, and what was started taken away again."

import importlib.util
import json
import shutil
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
ROOM = 25e9 # bytes that images and what is made beside them take at most
FIND = "import socket; socket.gethostbyname('{name}')"


def _why_not() -> str:
    "Why no container can be built and run here; empty if they can. That is no fault of what is tested."
    try:
        if why := _no_room():
            return why
        base = containers.base(containers.PYTHON)
        for service in STAND_INS:
            containers.base(service)
        containers.compose_program()
        return _trials(base)
    except (SystemExit, OSError) as e:
        return str(e)
    except subprocess.SubprocessError as e:
        return f"neither images nor Debian's packages for stand-ins, nor Compose, can be had: {e}"


def _no_room() -> str:
    "Why images do not fit; empty if they do."
    wanted = "{{.Store.GraphRoot}} {{.Store.GraphDriverName}}" if containers.engine() == "podman" else "{{.DockerRootDir}} {{.Driver}}"
    place, driver = containers.run("info", "--format", wanted, capture_output=True).stdout.split()
    if driver == "vfs":
        return f"the storage in {place} (vfs) keeps a whole copy of each layer, which takes hours"
    free = shutil.disk_usage(place).free
    there = containers.has(containers.image("worker"))
    return "" if there or free > ROOM else f"images take {ROOM / 1e9:.0f} GB, and {free / 1e9:.0f} are free in {place}"


def _trials(base) -> str:
    "Build an image, run it with limits and a port, and have a container find another one by its name; say what failed."
    name, port = f"lados-trial-{uuid.uuid4().hex[:8]}", ("-p", "127.0.0.1::8000")
    run = lambda *words: containers.run(*words, check=False, capture_output=True, timeout=120) # noqa: E731
    trials = {"built": lambda: containers.run("build", "-q", "-", input=TRIAL.format(base=base), check=False, capture_output=True, timeout=300),
              "run": lambda: run("run", "--rm", "--memory", "512m", "--read-only", *port, base, "true"),
              "given a network": lambda: run("network", "create", name),
              "run in a network": lambda: run("run", "-d", "--name", name, "--network", name, base, "sleep", "120"),
              "found by its name": lambda: run("run", "--rm", "--network", name, base, "python3", "-c", FIND.format(name=name))}
    try:
        for what, trial in trials.items():
            done = trial()
            if done.returncode:
                return f"no container can be {what} here: {done.stderr.strip()[-300:]}"
    finally:
        run("rm", "-f", "-t", "0", name)
        run("network", "rm", "-f", name)
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
