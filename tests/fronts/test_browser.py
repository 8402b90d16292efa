"Both front ends as they are used: in Chromium, against an API and a worker that run, are killed, and come back."

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from accessibility import faults
from browsing import CHROMIUM, FLAGS
from PIL import Image
from serving import KEY, Server, encoded, runs, wait_for

playwright = pytest.importorskip("playwright.sync_api", reason="browser tests need playwright")
pytest.importorskip("streamlit", reason="needs lados[streamlit]")
pytest.importorskip("flet_web", reason="needs lados[flet]")
if not CHROMIUM:
    pytest.skip("browser tests need chromium on the PATH", allow_module_level=True)
pytestmark = pytest.mark.fronts

ROOT = Path(__file__).resolve().parents[2]
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
        self.env = environment(home, LADOS_RUNS=runs())
        self.start()
        code = "from lados.jobs.workers import run_workers as go; go(0, 1)"
        self.worker = subprocess.Popen([sys.executable, "-c", code], cwd=home, env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def start(self):
        shared = {k: v for k, v in self.env.items() if os.environ.get(k) != v}
        self.server = Server(self.home / "api", runs() / "first", port=self.port, app="lados.jobs.routes:app", **shared).ready()

    def answers(self) -> float:
        outcomes = self.server.get("/metrics").json()["inference"]["outcomes"]
        return sum(outcomes.values()) - outcomes.get("not_ready", 0)

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
        page.wait_for_timeout(1500) # images fade in
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


def said(page, *texts):
    "Wait for one of some words anywhere on the page, Flutter's semantics included."
    page.wait_for_function("""texts => { const all = [document.body.innerText, ...[...document.querySelectorAll('[aria-label]')].map(e => e.getAttribute('aria-label'))]
        return texts.some(t => all.some(a => a.includes(t))) }""", arg=list(texts))


def press(page, name, role="button"):
    "Press what a screen reader finds: in Flutter a node that lies below others, so that it is told of the click itself."
    found = page.get_by_role(role, name=name).first
    found.dispatch_event("click") if page.locator("flutter-view").count() else found.click()


def part(page, name):
    "Go to a part of a front end."
    press(page, re.compile(name), "tab") if page.locator("flutter-view [role=tab]").count() else press(page, re.compile(f"^{name}"), "button" if page.locator("flutter-view").count() else "link")


@pytest.mark.parametrize("name", ["streamlit", "flet"])
def test_an_afternoon(name, api, visit):
    "Images in, doubtful first, one in large with its heat map, put right, taken home; a reload loses nothing."
    page = visit(name)
    said(page, "first")
    first = {"streamlit": 1, "flet": 11}[name] # other images for each: a correction is kept once an image
    give(page, name, [*files(*range(first, first + 6), gps=True), {"name": "notes.jpg", "mimeType": "image/jpeg", "buffer": b"no image"}])
    said(page, "6 images classified")
    said(page, "1 could not be read")
    shot(page, f"{name}-cards")
    press(page, "Open")
    said(page, "The evidence for", "lies mostly")
    said(page, "How likely each class is")
    shot(page, f"{name}-large")
    before = len(httpx.get(f"{api.url}/corrections", headers={"X-API-Key": KEY}, trust_env=False).json()["corrections"])
    if name == "streamlit":
        page.get_by_role("dialog").get_by_role("radio", name="sheen").click()
    else:
        press(page, "Close")
        page.locator("[role=alertdialog]").wait_for(state="detached")
        press(page, "Fix label")
        press(page, "sheen", "menuitem")
    wait_for(lambda: len(httpx.get(f"{api.url}/corrections", headers={"X-API-Key": KEY}, trust_env=False).json()["corrections"]) == before + 1, 30)
    said(page, "Kept for the next training")
    if name == "streamlit":
        page.keyboard.press("Escape")
    with page.expect_download() as waiting:
        press(page, "GeoJSON")
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
    said(page, "Job ", "100 images classified") # handed in: from now on nobody needs this browser
    state = page.context.storage_state()
    page.context.close()
    again = visit(name, state=state)
    said(again, "100 images classified")
    shot(again, f"{name}-hundred")
    page = again
    part(page, "Jobs")
    said(page, "100 of 100 images")


@pytest.mark.parametrize("name", ["streamlit", "flet"])
def test_an_image_of_twenty_megabytes_is_refused_in_words(name, visit, tmp_path):
    page = visit(name)
    said(page, "first")
    pixels = np.random.default_rng(0).integers(0, 255, (2600, 2600, 3), np.uint8)
    large, small = tmp_path / "large.png", tmp_path / "small.jpg"
    large.write_bytes(encoded(Image.fromarray(pixels), compress_level=0))
    small.write_bytes(photo(31))
    assert large.stat().st_size > 20_000_000
    give(page, name, [large, small])
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


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_streamlit_has_no_serious_fault(scheme, visit):
    page = visit("streamlit", color_scheme=scheme)
    said(page, "first")
    found = faults(page, "classify, empty")
    give(page, "streamlit", [*files(51, 52, 53), {"name": "notes.jpg", "mimeType": "image/jpeg", "buffer": b"no image"}])
    said(page, "3 images classified")
    found += faults(page, "classify")
    for name, words in (("Flight", "All images"), ("Jobs", "Handed in from here"), ("Service", "Models"), ("Settings", "Address of the service")):
        page.get_by_role("link", name=name).first.click()
        said(page, words)
        page.wait_for_timeout(1500)
        shot(page, f"streamlit-{name}-{scheme}")
        found += faults(page, name)
    page.get_by_role("link", name="Classify").first.click()
    page.get_by_role("button", name="Open").first.click()
    said(page, "The evidence for", "lies mostly")
    page.wait_for_timeout(500)
    found += faults(page, "an image in large")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_flet_has_no_serious_fault(scheme, visit):
    page = visit("flet", color_scheme=scheme)
    said(page, "first")
    found = faults(page, "classify, empty")
    give(page, "flet", files(61, 62))
    said(page, "2 images classified")
    found += faults(page, "classify")
    for number, name in enumerate(("Jobs", "History", "Settings"), 1):
        part(page, name)
        page.wait_for_timeout(800)
        shot(page, f"flet-{number}-{scheme}")
        found += faults(page, name)
    assert not found, "\n".join(found)
