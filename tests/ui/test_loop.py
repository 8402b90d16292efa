"The loop closes: put right on the page, trained by the rule, compared on images that neither knew, promoted, and the page answers with it."

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from serving import KEY, runs, wait_for
from toy import toy_manifest
from working import TRAINING, Up, environment

pytest.importorskip("voila", reason="the page needs voila")
playwright = pytest.importorskip("playwright.sync_api", reason="browser tests need playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if not CHROMIUM:
    pytest.skip("browser tests need chromium on the PATH", allow_module_level=True)
LADOS = [sys.executable, "-c", "from lados.cli.main import main; main()"]
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync"]
SHOTS = os.environ.get("LADOS_TEST_SHOTS") # a folder for screenshots, for whoever wants to look


def shot(page, name, **options):
    if SHOTS:
        page.screenshot(path=Path(SHOTS, f"{name}.png"), **options)


@pytest.fixture
def home(tmp_path):
    "A dataset, two models, and a schedule that trains after two new labels."
    toy_manifest(tmp_path / "data" / "toy", train=60, held=45, seed=3)
    toy_manifest(tmp_path / "flight", train=4, held=0, seed=9)
    shutil.copytree(runs(), tmp_path / "runs")
    training = {**TRAINING, "epochs": 3, "data": tmp_path / "data" / "toy", "name": "retrained"}
    told = [a for k, v in training.items() if k != "preset" for a in ("--set", f"{k}={'null' if v is None else v}")]
    subprocess.run([*LADOS, "schedule", "add", "--labels", "2", "--preset", "demo", *told], check=True, cwd=tmp_path,
                   env=environment(tmp_path), capture_output=True)
    return tmp_path


@pytest.fixture
def up(home):
    up = Up(home, "--run", str(home / "runs" / "first" / "bundle"), LADOS_ENGINE="auto")
    up.client.headers["X-API-Key"] = KEY
    try:
        yield up.ready()
    finally:
        up.stop()


@pytest.mark.long
def test_the_loop_closes(home, up):
    client = up.client
    flight = sorted((home / "flight").glob("*.png"))
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page, errors = browser.new_page(viewport={"width": 1300, "height": 900}), []
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.goto(up.classifier)
        page.wait_for_selector(".status b:has-text('first')", timeout=90_000)
        page.set_input_files("[data-test=files]", flight[:2])
        page.wait_for_function("document.querySelectorAll('.card.done').length == 2", timeout=60_000)
        # one is put right, one confirmed, and the page says what will come of it
        marks = []
        for i, (name, other) in enumerate(((flight[0].name, True), (flight[1].name, False))):
            card = page.locator(f'.card[data-name="{name}"]')
            said = client.post("/predict", files={"file": (name, flight[i].read_bytes())}).json()["label"]
            label = next(c for c in ("oil", "ship") if c != said) if other else said
            card.locator("summary").click()
            card.locator(f'[data-label="{label}"]').click()
            card.locator(".mark").wait_for()
            marks.append(card.locator(".mark").inner_text())
        assert marks == ["corrected", "confirmed"]
        kept = client.get("/corrections").json()
        assert (kept["corrected"], kept["confirmed"]) == (1, 1) and "'retrain' trains with them after 2 new labels" in kept["outlook"]
        page.locator(".card [data-act=open]").first.click()
        page.locator("dialog.viewer .note", has_text="'retrain' trains with them").wait_for()
        page.locator("dialog.viewer img.heat").wait_for(state="attached")
        shot(page, "loop-1-corrected")
        page.keyboard.press("Escape")

        # by the rule: trained, compared, proposed, and not yet served
        def proposed():
            return next(iter(client.get("/trainings").json()["proposals"]), None)

        proposal = wait_for(proposed, 240)
        run = home / "runs" / proposal["model"]
        assert proposal["against"] == "first" and proposal["images"] > 0, proposal
        learned = (run / "manifest.csv").read_text()
        assert all(row["sha256"] in learned for row in kept["corrections"]), "the corrections were learned from"
        assert client.get("/ready").json()["model"] == "first"

        # a person looks at the comparison, and promotes
        monitor = browser.new_page(viewport={"width": 1300, "height": 1000})
        monitor.on("pageerror", lambda e: errors.append(str(e)))
        monitor.goto(up.monitor)
        row = monitor.locator(f'tr[data-proposal="{proposal["model"]}"]')
        row.wait_for(timeout=60_000)
        shot(monitor, "loop-2-monitor", full_page=True)
        monitor.fill("header input[type=password]", KEY)
        row.get_by_role("button").click()
        dialog = monitor.locator("dialog.ask")
        assert "neither model has learned from" in dialog.locator(".verdict").inner_text()
        shot(monitor, "loop-3-ask")
        assert client.get("/ready").json()["model"] == "first", "nothing is served before it is confirmed"
        dialog.locator("[data-act=serve]").click()
        wait_for(lambda: client.get("/ready").json()["model"] == proposal["model"], 60)

        # the page answers with it
        page.set_input_files("[data-test=files]", flight[2])
        page.wait_for_selector(f'.card.done[data-name="{flight[2].name}"]', timeout=60_000)
        page.wait_for_selector(f".status b:has-text('{proposal['model']}')", timeout=60_000)
        shot(page, "loop-4-new-model")
        assert errors == []
        browser.close()
    told = subprocess.run([*LADOS, "schedule", "propose", proposal["model"]], cwd=home, capture_output=True, text=True,
                          env=environment(home, LADOS_ENGINE="auto"), check=True).stdout
    assert "served already" in told, "another terminal agrees on what is served"
