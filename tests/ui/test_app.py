"The classifier's page in a real browser: dropped, classified, looked into, put right, taken home; and all that can go wrong."

import csv
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("voila", reason="the page needs voila")
httpx = pytest.importorskip("httpx")
psutil = pytest.importorskip("psutil")
playwright = pytest.importorskip("playwright.sync_api", reason="browser tests need playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if not CHROMIUM:
    pytest.skip("browser tests need chromium on the PATH", allow_module_level=True)

from serving import Server  # noqa: E402
from working import with_word  # noqa: E402

from lados.data.importers import import_dataset  # noqa: E402
from lados.labels import CLASSES  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
LADOS = [sys.executable, "-c", "from lados.cli.main import main; main()"]
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
ENGINE = "openvino" if find_spec("openvino") else "torch" # a kernel has it in half a second, where torch takes five
SEA, OIL, SHIP = (40, 90, 170), (30, 30, 30), (200, 60, 60)
DOUBTFUL = 2 # of the five images


def image(colour, seed, size=(96, 72)) -> bytes:
    "A coloured patch with noise, as a PNG."
    noise = np.random.default_rng(seed).normal(0, 25, (*size[::-1], 3))
    f = io.BytesIO()
    Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(f, "PNG")
    return f.getvalue()


IMAGES = {"sea.png": image(SEA, 1), "=1+1.png": image(OIL, 2), "ship.png": image(SHIP, 3),
            "between.png": image((115, 45, 45), 4), "dusk.png": image((38, 60, 100), 5)}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    "A bundle that tells three colours apart, with thresholds under which two of our images are doubtful."
    from toy import tiny, toy

    from lados.model.backbones import preprocessing
    from lados.model.bundle import make_card, seal
    from lados.model.inference import Model, save_bundle
    from lados.model.train import train
    from lados.serve.export import export_format
    from lados.serve.predictor import Predictor

    home = tmp_path_factory.mktemp("model") / "toy-run"
    net = train(tiny(epochs=6), toy(home / "data")).net.eval()
    card = make_card("test_resnet", preprocessing(net, 32), run="toy-run")
    plain = Predictor.setup(save_bundle(home / "plain", Model(net, card)), "torch")
    sure = sorted(float(plain.predict(plain.decode(p)[None])[0].max()) for p in IMAGES.values())
    limit = 1 - (sure[DOUBTFUL - 1] + sure[DOUBTFUL]) / 2
    card["conformal"] = {"method": "set by hand", "level": 0.999, "images": 0, "marginal": limit, "per_class": {}}
    bundle = save_bundle(home / "bundle", Model(net, card))
    if ENGINE != "torch":
        export_format(Model(net, card), bundle, ENGINE)
        seal(bundle)
    return bundle


class Served:
    "A `lados` command that listens, in a home of its own."

    def __init__(self, home, *command, port=None, **environment):
        self.home, self.port = home, port or Server.free_port()
        home.mkdir(exist_ok=True)
        own = {"LADOS_HOME": home / "home", "LADOS_RUNS": home / "runs", "LADOS_DATA": home / "data", "PYTHONPATH": ROOT,
               "LADOS_ENGINE": ENGINE, "OMP_NUM_THREADS": "1", **environment}
        self.log = (home / "log.txt").open("a+")
        self.process = subprocess.Popen([*LADOS, *command, "--port", str(self.port)], cwd=home, stdout=self.log, stderr=self.log,
                                        env={**os.environ, **{k: str(v) for k, v in own.items()}}, start_new_session=True)
        self.url = f"http://127.0.0.1:{self.port}"
        until(self.listens, f"{command} to listen", 60)

    def listens(self) -> bool:
        assert self.process.poll() is None, self.told()
        with socket.socket() as s:
            return s.connect_ex(("127.0.0.1", self.port)) == 0

    def told(self) -> str:
        return Path(self.log.name).read_text()

    def kernels(self) -> list[psutil.Process]:
        return with_word(psutil.Process(self.process.pid).children(recursive=True), "ipykernel")

    def warm(self) -> bool:
        "Whether the kernel that waits has nothing left to do."
        try:
            return bool(self.kernels()) and all(p.cpu_percent(0.5) < 20 and p.cpu_times().user > 0.5 for p in self.kernels())
        except psutil.NoSuchProcess: # one of a test before is just going
            return False

    def stop(self) -> int:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT) # as Ctrl-C does
        code = self.process.wait(60)
        self.log.close()
        return code


def until(true, what, seconds=30.0):
    "Wait."
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    served = Served(tmp_path_factory.mktemp("served"), "app", "classifier", "--no-browser", MODEL_PATH=model)
    yield served
    served.stop()


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def serving(tmp_path):
    "Starts commands that a test has for itself."
    started = []

    def start(name, *command, **environment):
        started.append(Served(tmp_path / name, *command, **environment))
        return started[-1]

    yield start
    for served in started:
        served.stop()


@pytest.fixture
def visit(chromium, serving): # `serving` outlives the pages
    "Opens pages; at the end none of them may have asked another host, shown a traceback, or met an error of its own."
    contexts, asked, errors = [], [], []

    def opened(served, **options):
        contexts.append(chromium.new_context(accept_downloads=True, **options))
        page = contexts[-1].new_page()
        page.on("request", lambda r: asked.append(r.url))
        page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: errors.append(str(e)))
        start = time.perf_counter()
        page.goto(served.url, wait_until="commit")
        page.wait_for_selector("[data-test=drop], .problem", timeout=40_000)
        page.first_paint = time.perf_counter() - start
        page.served = served
        return page

    yield opened
    for context in contexts:
        for page in context.pages:
            shown = page.locator("body").inner_text()
            assert "Traceback" not in shown and "Error:" not in shown, shown
            with page.expect_event("close"):
                page.close(run_before_unload=True) # as a user does; to close the context would be to crash the tab
        context.close()
    assert not errors
    assert not [u for u in asked if not u.startswith(("http://127.0.0.1:", "blob:http://127.0.0.1:", "data:"))]


def drop(page, *files: tuple[str, bytes]) -> None:
    page.set_input_files("[data-test=files]", [{"name": n, "mimeType": "application/octet-stream", "buffer": data} for n, data in files])


def settled(page, cards: int, seconds: float = 40.0) -> None:
    "Wait until so many cards are there and none waits."
    page.wait_for_function("n => document.querySelectorAll('.card').length == n && !document.querySelector('.card.waiting, .card.sending')",
                           arg=cards, timeout=1000 * seconds)


def names(page, cards: str = ".card") -> list[str]:
    return page.locator(cards).evaluate_all("cards => cards.map(c => c.dataset.name)")


def card(page, name: str):
    return page.locator(f'.card[data-name="{name}"]')


def table(page) -> dict[str, dict[str, str]]:
    "The downloaded results, by file."
    with page.expect_download() as waited:
        page.get_by_role("button", name="Download CSV").click()
    text = Path(waited.value.path()).read_text(encoding="utf-8-sig")
    return {row["image"]: row for row in csv.DictReader(io.StringIO(text))}


def zipped(**files: bytes) -> bytes:
    f = io.BytesIO()
    with zipfile.ZipFile(f, "w", zipfile.ZIP_DEFLATED) as z:
        for name, data in files.items():
            z.writestr(name, data)
    return f.getvalue()


# --- the way of an afternoon


def test_an_afternoon_with_the_page(server, visit):
    "Drop, sort, filter, look, put right, download: and the corrections are a dataset."
    until(server.warm, "a warm kernel", 60)
    page = visit(server)
    assert page.first_paint < 30, f"first paint after {page.first_paint:.1f} s" # 2 s alone; other tests run beside it
    page.wait_for_selector("text=toy-run")
    drop(page, *IMAGES.items(), ("again.png", IMAGES["sea.png"]))
    page.locator(".notice", has_text="is here already").wait_for()
    settled(page, 5)

    # doubtful ones first, and said to be so
    doubtful = page.locator(".card:has(.doubt)").count()
    assert doubtful == DOUBTFUL and set(names(page)[:doubtful]) == set(names(page, ".card:has(.doubt)"))
    assert all("ask a human" in t for t in page.locator(".card .reason").all_inner_texts())
    assert "2 need a human" in page.locator(".summary").inner_text()

    # filters count and hide
    page.locator('[data-filter="human"]').click()
    until(lambda: len(names(page)) == DOUBTFUL, "only those that need a human", 5)
    page.locator('[data-filter="all"]').click()

    # a closer look: image, bars, set, heat map with a slider, engine and latency
    card(page, "ship.png").locator("[data-act=open]").click()
    viewer = page.locator("dialog.viewer")
    heat = viewer.locator("img.heat")
    heat.wait_for()
    boxes = [heat.bounding_box(), viewer.locator("img.photo").bounding_box()]
    assert boxes[0] == boxes[1], "the heat map lies on the image"
    viewer.locator("input[type=range]").fill("15")
    assert heat.evaluate("e => e.style.opacity") == "0.15"
    assert viewer.locator(".row").count() == len(CLASSES) and viewer.locator(".row.within").count() >= 1
    text = viewer.inner_text()
    assert ENGINE in text and "ms" in text and "96 × 72" in text and ("What speaks for" in text or "evidence for ship is diffuse" in text)
    viewer.locator(".row", has_text="sheen").click()
    viewer.locator("figcaption", has_text=re.compile("What speaks for sheen|evidence for sheen is diffuse")).wait_for()

    # put right there by a key, undone, and on a card by a click
    page.keyboard.press("5")
    viewer.locator(".mark").wait_for()
    viewer.locator("[data-label=undo]").click()
    viewer.locator(".sure").wait_for()
    page.keyboard.press("Escape")
    for name, label in (("=1+1.png", "sheen"), ("sea.png", "oil"), ("sea.png", "background")):
        card(page, name).locator("summary").click()
        card(page, name).locator(f'[data-label="{label}"]').click()
        card(page, name).locator(".mark").wait_for()
    corrections = server.home / "data" / "corrections"
    until(lambda: "background" in (corrections / "labels.csv").read_text(), "the correction")
    manifest = import_dataset(corrections / "labels.csv")
    assert sorted(manifest.frame["label"]) == ["background", "sheen"] and not manifest.meta["warnings"]
    kept = {p.read_bytes() for p in (corrections / "images").iterdir()}
    assert kept == {IMAGES["=1+1.png"], IMAGES["sea.png"]}, "the original bytes, one file an image"

    # to take home
    rows = table(page)
    assert len(rows) == 6 and "'=1+1.png" in rows, "no formula for a spreadsheet"
    assert rows["again.png"] == rows["sea.png"] | {"image": "again.png"}, "the same bytes, the same answer, a row of its own"
    assert rows["'=1+1.png"]["corrected_to"] == "sheen" and rows["ship.png"]["corrected_to"] == ""
    assert abs(sum(float(rows["ship.png"][f"p_{c}"]) for c in CLASSES) - 1) < 1e-6
    assert rows["ship.png"]["model"] == "toy-run" and sum(r["abstain"] == "True" for n, r in rows.items() if n != "again.png") == DOUBTFUL

    # cleared; an image that was put right is known when it comes again
    page.get_by_role("button", name="Clear").click()
    settled(page, 0)
    drop(page, ("renamed.png", IMAGES["=1+1.png"]))
    settled(page, 1)
    assert "sheen" in card(page, "renamed.png").locator(".verdict").inner_text()

    # reloaded: another page with another kernel, and the same image, answered and put right
    page.reload(wait_until="commit")
    page.wait_for_selector("[data-test=drop]", timeout=40_000)
    settled(page, 1)
    assert names(page) == ["renamed.png"] and "sheen" in card(page, "renamed.png").locator(".verdict").inner_text()
    card(page, "renamed.png").locator("[data-act=open]").click()
    page.locator("dialog.viewer figcaption", has_text=re.compile("What speaks for|is diffuse")).wait_for()


def test_bad_input_becomes_cards_that_say_why(server, visit):
    page = visit(server)
    huge = zipped(**{f"{i}.png": IMAGES["sea.png"] for i in range(2)})
    flight = zipped(**{"flight/a.png": image(SEA, 11), "flight/notes.txt": b"passed over", "../../evil.png": image(SEA, 12),
                       "inner.zip": huge, "bomb.png": bytes(30_000_000), "flight/torn.png": image(SEA, 13)[:500]})
    drop(page, ("notes.jpg", b"no image at all"), ("empty.jpg", b""), ("large.tif", bytes(10_000_001)), ("flight.zip", flight),
         ("empty.zip", zipped()), ("none.zip", zipped(readme=b"text")), ("torn.zip", flight[:400]),
         ("<img src=x onerror=alert(1)>.png", image(SHIP, 14)))
    settled(page, 12)
    expected = {"notes.jpg": "Not an image", "empty.jpg": "empty", "large.tif": "Larger than 10 MB", "empty.zip": "No images",
                "none.zip": "No images", "torn.zip": "Not a readable zip", "../../evil.png": "leads out", "inner.zip": "archive in an archive",
                "bomb.png": "Unpacks to more than 10 MB", "flight/torn.png": ""}
    assert set(names(page, ".card.failed")) == set(expected)
    assert set(names(page, ".card.done")) == {"flight/a.png", "<img src=x onerror=alert(1)>.png"}
    for name, why in expected.items():
        assert why in card(page, name).locator(".error").inner_text(), name
    assert not list(server.home.rglob("evil*")) and not list(server.home.parent.glob("evil*"))
    assert {n for n, r in table(page).items() if r["error"]} == set(expected)
    assert names(page)[:2] == names(page, ".card.done"), "what has no answer comes last"


@pytest.mark.long
def test_twenty_images_of_ten_megabytes(server, visit, tmp_path):
    "More than any one message may carry; the page stays alive meanwhile, and an image above the limit is named."
    pixels = np.random.default_rng(0).integers(0, 255, (1820, 1820, 3), np.uint8)
    files = []
    for i in range(20):
        pixels[0, 0] = i
        files.append(tmp_path / f"{i:02d}.png")
        Image.fromarray(pixels).save(files[-1], compress_level=0)
    assert all(9_900_000 < f.stat().st_size <= 10_000_000 for f in files)
    too_large = tmp_path / "too-large.png"
    too_large.write_bytes(files[0].read_bytes() + bytes(100_000))
    pages = server.home / "home" / "pages"
    before = set(pages.rglob("*.jpg")) # of tabs that may come back
    page = visit(server)
    page.set_input_files("[data-test=files]", [*files, too_large])
    page.wait_for_selector(".progress:not([hidden])")
    settled(page, 21, 60)
    assert page.locator(".card.done").count() == 20
    assert "Larger than 10 MB" in card(page, "too-large.png").inner_text()
    assert max(p.memory_info().rss for p in server.kernels()) < 1e9
    until(lambda: len(server.kernels()) <= 2, "kernels of closed tabs to end") # this one, and the next that waits
    assert len(set(pages.rglob("*.jpg")) - before) == 20
    page.get_by_role("button", name="Clear").click()
    settled(page, 0)
    until(lambda: not set(pages.rglob("*.jpg")) - before, "the folder to be empty")


def test_stopping_and_two_tabs(server, visit):
    "Stop lets go of what has no answer. Another tab has its own images, and the same corrections."
    one, two = visit(server), visit(server)
    drop(one, *((f"{i}.png", image(SEA, 100 + i, (120, 120))) for i in range(300)))
    one.wait_for_selector(".progress:not([hidden])")
    one.get_by_role("button", name="Stop").click()
    one.wait_for_selector(".progress[hidden]", state="attached")
    assert one.locator(".card").count() < 300
    drop(two, ("ship.png", IMAGES["ship.png"]), ("renamed.png", IMAGES["=1+1.png"]))
    settled(two, 2)
    assert set(names(two)) == {"ship.png", "renamed.png"} and "ship.png" not in names(one)


def test_on_a_phone(server, visit):
    page = visit(server, viewport={"width": 390, "height": 844}, has_touch=True)
    drop(page, *IMAGES.items())
    settled(page, 5)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, "nothing to scroll sideways"
    card(page, "ship.png").locator("[data-act=open]").tap()
    page.locator("dialog.viewer img.heat").wait_for()
    box = page.locator("dialog.viewer img.photo").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 390 and box["height"] > 100


# --- models that are not there, and models that are elsewhere


@pytest.mark.long
def test_without_a_model_the_page_says_what_to_do(model, serving, visit, tmp_path):
    "And finds it when it has come, without a new start."
    page = visit(serving("empty", "app", "classifier", "--no-browser"))
    panel = page.locator(".problem")
    panel.wait_for()
    assert "no model there" in panel.inner_text() and "lados demo" in panel.inner_text()
    (tmp_path / "empty" / "runs").mkdir()
    (tmp_path / "empty" / "runs" / "latest").symlink_to(model)
    panel.get_by_role("button", name="Try again").click()
    page.wait_for_selector("text=toy-run")
    drop(page, ("sea.png", IMAGES["sea.png"]))
    settled(page, 1)
    assert page.locator(".card.done").count() == 1


@pytest.mark.long
def test_an_api_is_asked(model, serving, visit):
    "The same page, with the model elsewhere; an API that goes away fails cards, and one click asks again when it is back."
    api = serving("api", "serve", MODEL_PATH=model)
    until(lambda: httpx.get(f"{api.url}/ready").is_success, "the API to be ready")
    page = visit(serving("page", "app", "classifier", "--no-browser", LADOS_API_URL=api.url))
    page.wait_for_selector(f".status:has-text('asked at {api.url}')")
    page.wait_for_selector("text=toy-run")
    drop(page, *IMAGES.items(), ("notes.jpg", b"no image"))
    settled(page, 6)
    assert page.locator(".card.done").count() == 5 and page.locator(".card:has(.doubt)").count() == DOUBTFUL
    card(page, "ship.png").locator("[data-act=open]").click()
    page.locator("dialog.viewer img.heat").wait_for()
    page.keyboard.press("Escape")
    api.stop()
    drop(page, ("later.png", image(SEA, 50)))
    settled(page, 7)
    assert "does not answer" in card(page, "later.png").inner_text() and "LADOS_API_URL" in card(page, "later.png").inner_text()
    serving("again", "serve", port=api.port, MODEL_PATH=model)
    until(lambda: httpx.get(f"{api.url}/ready").is_success, "the API to be ready")
    card(page, "later.png").get_by_role("button", name="Try again").click()
    page.wait_for_selector('.card.done[data-name="later.png"]')


# --- the command


def test_one_interrupt_ends_the_page_and_its_kernels(server):
    until(server.warm, "a warm kernel", 60)
    kernels = server.kernels()
    assert server.stop() == 0
    psutil.wait_procs(kernels, 20)
    assert not [p for p in kernels if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert "Traceback" not in server.told(), server.told()
    left = list((server.home / "home" / "pages").glob("page-*"))
    assert all((folder / "kept.jsonl").exists() for folder in left), "nothing is left but what a reload may ask for within the hour"


def test_a_taken_port_and_a_wrong_engine_are_said(tmp_path, environment):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        for options, word in ((["--port", str(s.getsockname()[1])], "--port"), (["--engine", "openvin"], "did you mean 'openvino'")):
            done = subprocess.run([*LADOS, "app", "classifier", "--no-browser", *options], capture_output=True, text=True, cwd=tmp_path,
                                  env=environment, timeout=60)
            assert done.returncode == 2 and word in done.stderr and "Traceback" not in done.stderr
