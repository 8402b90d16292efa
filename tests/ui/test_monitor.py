"The monitor and a training in a notebook cell, in a real browser, over a real service with real workers."

import shutil
import signal
import sys

import psutil
import pytest
from serving import KEY, colours, runs, wait_for
from toy import toy_manifest
from working import TRAINING, Up

pytest.importorskip("voila", reason="the page needs voila")
playwright = pytest.importorskip("playwright.sync_api", reason="browser tests need playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if not CHROMIUM:
    pytest.skip("browser tests need chromium on the PATH", allow_module_level=True)
LADOS = [sys.executable, "-c", "from lados.cli.main import main; main()"]
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync"]
KEYED = {"X-API-Key": KEY}


@pytest.fixture(scope="module")
def up(tmp_path_factory):
    "`lados up`, with two models and a dataset; its address and that of the monitor."
    home = tmp_path_factory.mktemp("up")
    toy_manifest(home / "data" / "toy", train=240, held=30)
    shutil.copytree(runs(), home / "runs")
    (home / "runs" / "second" / "run.json").write_text('{"format": 1, "job": "train", "name": "second", "state": "succeeded"}')
    (home / "runs" / "second" / "params.json").write_text("{}")
    up = Up(home, MODEL_PATH=home / "runs" / "first")
    try:
        up.ready()
        yield home, up.client, up.monitor, up.process
    finally:
        said = up.stop()
    assert "model       first" in said, "it names what it serves"


@pytest.fixture
def page(up):
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page, page_errors = browser.new_page(viewport={"width": 1400, "height": 1000}), []
        page.on("console", lambda m: page_errors.append(m.text) if m.type == "error" else None)
        page.on("request", lambda r: page_errors.append(r.url) if not r.url.startswith(("http://127.0.0.1", "data:", "blob:")) else None)
        page.goto(up[2])
        page.wait_for_selector(".lados.monitor .tile", timeout=90_000)
        yield page
        assert page_errors == [] # nothing went wrong, and nothing was asked of another host
        browser.close()


@pytest.mark.long
def test_jobs_are_begun_watched_and_stopped(up, page):
    home, client, _, _ = up
    for i, p in enumerate(colours(30)):
        client.post("/predict", files={"file": (f"{i}.png", p)})
    body = {**TRAINING, "epochs": 400, "data": str(home / "data" / "toy"), "name": "long-one"}
    assert client.post("/train", json=body, headers=KEYED).status_code == 202
    page.wait_for_selector("tr:has-text('long-one') .state.running", timeout=60_000)
    page.wait_for_selector("svg.chart path", timeout=60_000) # its curve
    assert "of the latest" in page.inner_text(".lados") and page.locator(".tile b").nth(1).inner_text() != "0"
    page.click("tr:has-text('long-one') >> text=Stop") # without a key
    page.wait_for_selector(".said.bad:has-text('key is missing or wrong. Type a key of the service into the field')")
    page.fill("header input[type=password]", KEY)
    page.click("tr:has-text('long-one') >> text=Stop")
    page.wait_for_selector("tr:has-text('long-one') .state.cancelled", timeout=60_000)
    page.fill("input[type=number]", "3")
    page.click("button[type=submit]")
    page.wait_for_selector(".said:not(.bad):has-text('queued')")
    page.wait_for_selector("tr:has-text('demo')")
    page.click("tr:has-text('demo') >> text=Stop")
    page.wait_for_selector("tr:has-text('demo') .state.cancelled", timeout=60_000)


@pytest.mark.long
def test_another_model_is_compared_and_promoted(up, page):
    _, client, _, _ = up
    page.click("tr:has-text('second') >> text=Serve")
    assert "have not been compared" in page.inner_text("dialog.ask .warn >> nth=-1")
    page.click("dialog.ask [data-act=compare]") # without a key
    page.wait_for_selector("dialog.ask .said.bad:has-text('key is missing or wrong')")
    page.click("dialog.ask [data-act=keep]")
    page.fill("header input[type=password]", KEY)
    page.click("tr:has-text('second') >> text=Serve")
    page.click("dialog.ask [data-act=compare]")
    page.wait_for_selector("dialog.ask .comparing")
    page.wait_for_selector("dialog.ask .verdict", timeout=120_000)
    assert "neither model has learned from" in page.inner_text("dialog.ask .verdict")
    with page.expect_popup() as report:
        page.click("dialog.ask .verdict a")
    report.value.locator("body", has_text="second").wait_for()
    assert client.get("/ready").json()["model"] == "first"
    page.click("dialog.ask [data-act=serve]")
    wait_for(lambda: client.get("/ready").json()["model"] == "second", 60)


def test_a_service_that_dies_comes_back_and_one_ctrl_c_ends_everything(up, page):
    _, client, _, process = up
    family = psutil.Process(process.pid).children(recursive=True)
    api = next(p for p in family if "serve" in p.cmdline())
    api.kill()
    api.wait(10)
    wait_for(lambda: client.get("/ready").status_code == 200, 60) # it is started again
    page.wait_for_selector(".lost", state="hidden", timeout=30_000)
    family += psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    assert process.wait(90) == 0
    wait_for(lambda: not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE], 20)
