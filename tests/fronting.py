"What tests of the front ends in a browser share: an API that can be killed, photographs, and how each front end is used."

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
from PIL import Image
from serving import Server, encoded, runs, wait_for

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "fronts"))
from lados_fronts.keep import Keep, new_visitor  # noqa: E402

FRONTS = ["streamlit", "flet"]
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


def _heat() -> bytes:
    y, x = np.mgrid[:24, :32]
    alpha = np.exp(-((x - 9) ** 2 + (y - 7) ** 2) / 18)
    image = np.dstack([np.full_like(alpha, 255), 160 * (1 - alpha), np.zeros_like(alpha), 255 * alpha]).astype(np.uint8)
    return encoded(Image.fromarray(image, "RGBA"))


HEAT = _heat()


def files(*numbers, **options) -> list[dict]:
    return [{"name": f"flight-{n:03d}.jpg", "mimeType": "image/jpeg", "buffer": photo(n, **options)} for n in numbers]


ANSWERS = (("oil", 0.93, ["oil"]), ("ship", 0.88, ["ship"]), ("sheen", 0.52, ["sheen", "emulsion"]), ("background", 0.71, ["background"]))


def answer(label, share, within) -> dict:
    "An answer as the service gives it."
    names = ["oil", "emulsion", "oil_platform", "sheen", "ship", "background"]
    rest = {n: (1 - share) * w for n, w in zip([n for n in names if n != label], (0.5, 0.25, 0.15, 0.07, 0.03), strict=True)}
    shares = dict(sorted({label: share, **rest}.items(), key=lambda x: -x[1]))
    doubt = len(within) > 1
    return {"label": label, "confidence": share, "probabilities": shares, "prediction_set": within, "not_covered": [], "no_set": None, "abstain": doubt,
            "reason": f"{' or '.join(within)}: ask a human" if doubt else None, "distance": 1.25, "model": "first", "engine": "openvino", "timing_ms": {"total": 12.5}}


def visitor(root, images=len(ANSWERS), **settings) -> Keep:
    "A visitor who has been here: images with answers, one that could not be read, a heat map."
    keep = Keep(new_visitor(), root)
    keep.set(**{"language": "en", **settings})
    for n in range(images):
        keep.add(f"flight-{n:03d}.jpg", photo(n, gps=True, size=(320, 240)))
        key = keep.items()[-1].key
        keep.change(key, state="done", answer=answer(*ANSWERS[n % len(ANSWERS)]))
        for label in keep.get(key).answer["probabilities"]:
            keep.save_heat(key, label, HEAT, {"left": 0.7, "centre": 0.2, "right": 0.1, "top": 0.6, "middle": 0.3, "bottom": 0.1})
    if images:
        keep.refuse("notes.jpg", "not an image", "send JPEG or PNG")
    return keep


def remembered(keep) -> str:
    "The script by which a browser remembers a visitor."
    return (f"""localStorage.setItem('lados-visitor', '{keep.visitor}'); localStorage.setItem('flutter.lados.visitor', '"{keep.visitor}"')""")


@contextlib.contextmanager
def app(folder, name, *options, **told):
    "A page, started by its command in a folder of its own, and its address."
    port, log = Server.free_port(), Path(folder, f"{name}.log")
    env = {**os.environ, "LADOS_HOME": Path(folder, "h"), "PYTHONPATH": ROOT, **told}
    command = [sys.executable, "-c", "from lados.cli.main import main; main()", "app", name, "--port", str(port), *options]
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=folder, env={k: str(v) for k, v in env.items()}, stdout=out, stderr=out)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: httpx.get(url, trust_env=False, timeout=60).is_success, 240)
        yield url, process
    finally:
        process.terminate()
        process.wait(30)


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


def awake(page):
    "Wait until a front end can be used; Flutter shows its semantics once somebody asks for them."
    page.wait_for_function("""() => { document.querySelector('flt-semantics-placeholder')?.click()
        return document.querySelector('flt-semantics[role=button], [data-testid=stFileUploader]') }""", polling=200)


def shot(page, name):
    if SHOTS:
        page.wait_for_timeout(1500) # images fade in
        page.screenshot(path=f"{SHOTS}/{name}.png", full_page=not page.locator("flutter-view").count())


def give(page, name, what, button="Choose images"):
    "Hand files to a front end."
    if name == "streamlit":
        page.set_input_files("[data-testid=stFileUploaderDropzoneInput]", what)
        return
    with page.expect_file_chooser() as waiting:
        page.get_by_role("button", name=button).first.click()
    waiting.value.set_files(what)


WORDS = "[document.body.innerText, ...[...document.querySelectorAll('[aria-label]')].map(e => e.getAttribute('aria-label'))]"


def said(page, *texts, seconds=180):
    "Wait for one of some words anywhere on the page, Flutter's semantics included."
    from playwright.sync_api import TimeoutError as InVain

    try:
        page.wait_for_function(f"texts => {WORDS}.some(words => texts.some(t => words.includes(t)))", arg=list(texts), timeout=1000 * seconds)
    except InVain:
        raise AssertionError(f"{' or '.join(texts)} is not said; there is: {page.evaluate(WORDS)}") from None


def press(page, name, role="button"):
    "Press what a screen reader finds: in Flutter a node that lies below others, so that it is told of the click itself."
    found = page.get_by_role(role, name=name).first
    found.wait_for(state="attached")
    settled(page)
    found.dispatch_event("click") if page.locator("flutter-view").count() else found.click()


def typed(page, label, text):
    "Type into a field as people do: in Flutter it takes what comes only once it has been given the focus."
    field = page.get_by_label(label, exact=True)
    settled(page)
    field.focus()
    settled(page)
    page.keyboard.press("Control+A")
    page.keyboard.type(text, delay=20)
    page.wait_for_function("([field, text]) => field.value === text", arg=[field.element_handle(), text])


def part(page, name):
    "Go to a part of a front end."
    if page.locator("flutter-view").count():
        settled(page)
        place = page.get_by_role("tab", name=name).or_(page.get_by_role("button", name=re.compile(f"^{name}"))).first # on a bar, on a rail
        place.wait_for(state="attached")
        place.dispatch_event("click")
        return
    if page.viewport_size["width"] < 768: # a phone has a menu
        page.get_by_test_id("stExpandSidebarButton").click()
    page.get_by_role("link", name=name).first.click()
    page.wait_for_url(re.compile(f"/{name.lower()}" if name != "Classify" else r":\d+/$"))


def settled(page):
    "Wait until a front end has handed what it shows to the browser, and Flutter's semantics stand still: a node that is just being replaced hears nothing."
    from playwright.sync_api import TimeoutError as InVain

    if page.locator("flutter-view").count():
        with contextlib.suppress(InVain): # of what moves without end
            page.wait_for_function("""() => { const nodes = [...document.querySelectorAll('flt-semantics')].map(e => e.id + e.getAttribute('aria-label') + e.textContent).join()
                if (window.nodesSeen !== nodes) [window.nodesSeen, window.nodesSince] = [nodes, Date.now()]
                return Date.now() - window.nodesSince > 500 }""", polling=100, timeout=3000)
    else:
        page.wait_for_selector("[data-testid=stApp][data-test-script-state=notRunning]")
        page.evaluate("() => Promise.all([...document.images].map(i => i.decode().catch(() => 0)))")
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
