"Both front ends as they are used: in Chromium, against an API and a worker that run, are killed, and come back."

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from serving import KEY, Server, encoded, runs, wait_for

playwright = pytest.importorskip("playwright.sync_api", reason="browser tests need playwright")
pytest.importorskip("streamlit", reason="needs lados[streamlit]")
pytest.importorskip("flet_web", reason="needs lados[flet]")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if not CHROMIUM:
    pytest.skip("browser tests need chromium on the PATH", allow_module_level=True)
pytestmark = pytest.mark.fronts

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
AXE = "4.14.1"
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True}
SHOTS = os.environ.get("LADOS_SHOTS") # a folder for screenshots to look at


def photo(seed, gps=False, size=(64, 48)) -> bytes:
    "A photograph of one of three colours, with a place where asked for."
    colour = ((30, 30, 30), (200, 60, 60), (40, 90, 170))[seed % 3]
    noise = np.random.default_rng(seed).normal(0, 25, (*size[::-1], 3))
    image = Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8))
    exif = image.getexif()
    if gps:
        exif.get_ifd(0x8825).update({1: "N", 2: (36.0, 30.0, float(seed % 60)), 3: "E", 4: (25.0, 15.0, 0.0)})
    return encoded(image, "JPEG", exif=exif)


def files(*numbers, **options) -> list[dict]:
    return [{"name": f"flight-{n:03d}.jpg", "mimeType": "image/jpeg", "buffer": photo(n, **options)} for n in numbers]


class Api:
    "An API with a worker for batches, which can be killed and started again at the same port."

    def __init__(self, home):
        from working import environment

        self.home, self.port = Path(home), Server.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.env = environment(home)
        self.start()
        code = "from lados.jobs.workers import run_workers as go; go(0, 1)"
        self.worker = subprocess.Popen([sys.executable, "-c", code], cwd=home, env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def start(self):
        shared = {k: v for k, v in self.env.items() if os.environ.get(k) != v}
        self.server = Server(self.home / "api", runs() / "first", port=self.port, app="lados.jobs.routes:app", **shared).ready()

    def answers(self) -> float:
        return sum(self.server.get("/metrics").json()["inference"]["outcomes"].values())

    def stop(self):
        self.worker.terminate()
        self.worker.wait(60)
        self.server.stop()


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    api = Api(tmp_path_factory.mktemp("api"))
    yield api
    api.stop()


@pytest.fixture(scope="module")
def fronts(api, tmp_path_factory):
    "Both, started by their commands: name -> address."
    home, started, urls = tmp_path_factory.mktemp("fronts"), [], {}
    for name in ("streamlit", "flet"):
        port = Server.free_port()
        log = (home / f"{name}.log").open("w")
        env = {**os.environ, "LADOS_HOME": str(home / "h"), "PYTHONPATH": str(ROOT), "API_KEY": KEY, "LADOS_API_URL": api.url}
        command = [sys.executable, "-c", "from lados.cli.main import main; main()", "app", name, "--port", str(port)]
        started.append(subprocess.Popen(command, cwd=home, env=env, stdout=log, stderr=log))
        urls[name] = f"http://127.0.0.1:{port}"
        wait_for(lambda u=urls[name]: httpx.get(u, trust_env=False).status_code == 200, 60)
    yield urls
    for process in started:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, fronts):
    "Opens a front end; nothing may have been loaded from another host."
    contexts, foreign = [], []

    def opened(name, state=None, **options):
        contexts.append(chromium.new_context(**{"locale": "en-GB", "viewport": {"width": 1280, "height": 900}, "accept_downloads": True, "storage_state": state, **options}))
        page = contexts[-1].new_page()
        page.set_default_timeout(45_000)
        page.on("response", lambda r: foreign.append(r.url) if not re.match(r"(http://127\.0\.0\.1:|data:|blob:)", r.url) else None)
        page.goto(fronts[name])
        if name == "flet":
            page.wait_for_selector("flt-semantics-placeholder", state="attached")
            page.wait_for_timeout(500)
            page.evaluate("document.querySelector('flt-semantics-placeholder').click()")
            page.wait_for_selector("flt-semantics[role=button]", state="attached")
        else:
            page.wait_for_selector("[data-testid=stFileUploader]")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not foreign


def shot(page, name):
    if SHOTS:
        page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)


def give(page, name, what, button="Choose images"):
    "Hand files to a front end."
    if name == "streamlit":
        page.wait_for_timeout(400) # the uploader is a new one after each round
        page.set_input_files("[data-testid=stFileUploaderDropzoneInput]", what)
        return
    with page.expect_file_chooser() as waiting:
        page.get_by_role("button", name=button).first.click()
    waiting.value.set_files(what)


def said(page, text):
    "Wait for words anywhere on the page, Flutter's semantics included."
    page.wait_for_function("t => document.body.innerText.includes(t) || [...document.querySelectorAll('[aria-label]')].some(e => e.getAttribute('aria-label').includes(t))", arg=text)


@pytest.mark.parametrize("name", ["streamlit", "flet"])
def test_an_afternoon(name, api, visit):
    "Images in, doubtful first, one in large with its heat map, put right, taken home; a reload loses nothing."
    page = visit(name)
    said(page, "first")
    give(page, name, [*files(*range(1, 7), gps=True), {"name": "notes.jpg", "mimeType": "image/jpeg", "buffer": b"no image"}])
    said(page, "6 images classified")
    said(page, "1 could not be read")
    shot(page, f"{name}-cards")
    page.get_by_role("button", name="Open").first.click()
    said(page, "What speaks for" if name == "flet" else "Most of it lies")
    said(page, "How likely each class is")
    shot(page, f"{name}-large")
    before = len(httpx.get(f"{api.url}/corrections", headers={"X-API-Key": KEY}, trust_env=False).json()["corrections"])
    if name == "streamlit":
        page.get_by_role("dialog").get_by_role("button", name="sheen").click()
    else:
        page.get_by_role("button", name="Close").click()
        page.get_by_role("button", name="Fix label").first.click()
        page.get_by_role("menuitem", name="sheen").or_(page.get_by_role("button", name="sheen", exact=True)).first.click()
    wait_for(lambda: len(httpx.get(f"{api.url}/corrections", headers={"X-API-Key": KEY}, trust_env=False).json()["corrections"]) == before + 1, 30)
    if name == "streamlit":
        page.keyboard.press("Escape")
    with page.expect_download() as waiting:
        page.get_by_role("button", name="GeoJSON").first.click()
    assert len(json.loads(Path(waiting.value.path()).read_text())["features"]) == 6
    again = visit(name, state=page.context.storage_state())
    said(again, "6 images classified")


@pytest.mark.parametrize("name", ["streamlit", "flet"])
def test_the_api_dies_and_comes_back(name, api, visit):
    "One calm line; what was given waits, and is sent once."
    page = visit(name)
    said(page, "first")
    api.server.stop(9)
    give(page, name, files(*range(20, 25)))
    said(page, "does not answer")
    shot(page, f"{name}-away")
    api.start()
    said(page, "5 images classified")
    assert api.answers() == 5


@pytest.mark.parametrize("name", ["streamlit", "flet"])
def test_a_hundred_images_are_a_job_that_is_found_again(name, visit):
    page = visit(name)
    said(page, "first")
    give(page, name, files(*range(100, 200)))
    said(page, "100")
    state = page.context.storage_state()
    page.context.close()
    again = visit(name, state=state)
    said(again, "100 images classified")
    shot(again, f"{name}-hundred")
    page = again
    if name == "streamlit":
        page.get_by_role("link", name="Jobs").first.click()
    else:
        page.get_by_role("tab", name=re.compile("Jobs")).or_(page.get_by_role("button", name=re.compile("^Jobs"))).first.click()
    said(page, "100 of 100 images")


@pytest.mark.parametrize("name", ["streamlit", "flet"])
def test_an_image_of_twenty_megabytes_is_refused_in_words(name, visit):
    page = visit(name)
    said(page, "first")
    pixels = np.random.default_rng(0).integers(0, 255, (2600, 2600, 3), np.uint8)
    large = encoded(Image.fromarray(pixels), compress_level=0)
    assert len(large) > 20_000_000
    give(page, name, [{"name": "large.png", "mimeType": "image/png", "buffer": large}, *files(31)])
    said(page, "1 could not be read")
    said(page, "MB")
    said(page, "1 image classified")


def test_a_wrong_key_is_said_and_changes_nothing(visit):
    page = visit("streamlit")
    page.get_by_role("link", name="Settings").first.click()
    page.get_by_label("Key", exact=True).fill("wrong")
    page.get_by_role("button", name="Save").click()
    said(page, "Saved")
    page.get_by_role("link", name="Service").first.click()
    page.get_by_role("button", name="Promote").first.click()
    said(page, "does not accept the key")


@pytest.mark.parametrize("name", ["streamlit", "flet"])
def test_a_russian_phone_in_the_dark(name, visit):
    page = visit(name, locale="ru-RU", color_scheme="dark", **PHONE)
    said(page, "Что на воде?")
    give(page, name, files(41, 42), button="Выбрать снимки")
    said(page, "Классифицировано 2 снимка")
    shot(page, f"{name}-phone")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth + 1"), "nothing runs out of the screen"


# --- accessibility


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    "The script of axe-core, fetched from the npm registry."
    folder = tmp_path_factory.mktemp("axe")
    if not shutil.which("npm"):
        pytest.skip("axe-core is fetched with npm, which is not here")
    done = subprocess.run(["npm", "pack", "--silent", f"axe-core@{AXE}"], cwd=folder, capture_output=True, text=True, timeout=120)
    if done.returncode:
        pytest.skip(f"axe-core {AXE} cannot be had: {done.stderr.strip()[-200:]}")
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        return archive.extractfile("package/axe.min.js").read().decode()


def faults(page, axe, where) -> list[str]:
    "Serious and critical faults of a page as it stands."
    page.evaluate(axe)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']}).then(r => r.violations)")
    return [f"{where}: {v['id']} ({v['impact']}): {n['html'][:160]} {n['failureSummary'][:200]}" for v in found if v["impact"] in ("serious", "critical") for n in v["nodes"][:3]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_streamlit_has_no_serious_fault(scheme, axe, visit):
    page = visit("streamlit", color_scheme=scheme)
    said(page, "first")
    found = faults(page, axe, "classify, empty")
    give(page, "streamlit", [*files(51, 52, 53), {"name": "notes.jpg", "mimeType": "image/jpeg", "buffer": b"no image"}])
    said(page, "3 images classified")
    found += faults(page, axe, "classify")
    for name, words in (("Flight", "All images"), ("Jobs", "Handed in from here"), ("Service", "Models"), ("Settings", "Address of the service")):
        page.get_by_role("link", name=name).first.click()
        said(page, words)
        page.wait_for_timeout(1500)
        shot(page, f"streamlit-{name}-{scheme}")
        found += faults(page, axe, name)
    page.get_by_role("link", name="Classify").first.click()
    page.get_by_role("button", name="Open").first.click()
    said(page, "Most of it lies")
    page.wait_for_timeout(500)
    found += faults(page, axe, "an image in large")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_flet_has_no_serious_fault(scheme, axe, visit):
    page = visit("flet", color_scheme=scheme)
    said(page, "first")
    found = faults(page, axe, "classify, empty")
    give(page, "flet", files(61, 62))
    said(page, "2 images classified")
    found += faults(page, axe, "classify")
    for number, name in enumerate(("Jobs", "History", "Settings"), 1):
        page.get_by_role("tab", name=re.compile(name)).or_(page.get_by_role("button", name=re.compile(f"^{name}"))).first.click()
        page.wait_for_timeout(800)
        shot(page, f"flet-{number}-{scheme}")
        found += faults(page, axe, name)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(("name", "ready"), [("classifier", "[data-test=drop]"), ("monitor", ".lados.monitor main")])
def test_the_pages_of_voila_have_no_serious_fault(name, ready, axe, api, chromium, tmp_path):
    pytest.importorskip("voila", reason="the page needs voila")
    port = Server.free_port()
    env = {**api.env, "MODEL_PATH": str(runs() / "first"), "LADOS_API_URL": api.url}
    command = [sys.executable, "-c", "from lados.cli.main import main; main()", "app", name, "--no-browser", "--port", str(port)]
    process = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: httpx.get(f"http://127.0.0.1:{port}/", trust_env=False, timeout=60).status_code < 500, 90)
        page = chromium.new_page(viewport={"width": 1280, "height": 900})
        page.goto(f"http://127.0.0.1:{port}/", timeout=60_000)
        page.wait_for_selector(ready, timeout=60_000)
        page.wait_for_timeout(2500)
        found = faults(page, axe, name)
        page.close()
        assert not found, "\n".join(found)
    finally:
        process.terminate()
        process.wait(30)
