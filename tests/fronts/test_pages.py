"Every other page of the project in Chromium, light and dark: axe-core finds no serious fault on it."

import os
import shutil
import subprocess
import sys

import httpx
import pytest
from accessibility import faults
from browsing import folder_served
from commands import run_here
from fronting import ROOT, SHOTS, app
from serving import KEY, colours, runs, serving
from toy import TINY, toy_manifest

pytestmark = pytest.mark.fronts

PATIENCE = 240_000 # milliseconds for what a busy machine does slowly
SMALL = [f"--set={k}={'null' if v is None else str(v).lower()}" for k, v in TINY.items() if k != "epochs"]


def looked_at(chromium, url, name, ready="body", pause=400, steps=()) -> list[str]:
    "Serious faults of a page in light and dark; after each of some steps, too."
    found, page = [], chromium.new_page(viewport={"width": 1280, "height": 900})
    page.goto(url, timeout=PATIENCE)
    page.wait_for_selector(ready, timeout=PATIENCE)
    page.wait_for_timeout(pause)
    for number, step in enumerate((None, *steps)):
        if step:
            step(page)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.wait_for_timeout(400)
            if SHOTS:
                page.screenshot(path=f"{SHOTS}/{name}-{number}-{scheme}.png")
            found += faults(page, f"{name}, {scheme}, step {number}")
    page.close()
    return found


@pytest.fixture(scope="module")
def papers(tmp_path_factory):
    "A training's report, a comparison of two runs and a gallery of answers, as the commands write them; served, as Chromium dislikes files."
    folder = tmp_path_factory.mktemp("papers")
    toy_manifest(folder / "toy")
    env = {"LADOS_HOME": str(folder / "home"), "LADOS_RUNS": str(folder / "runs"), "LADOS_DATA": str(folder / "data"), "OMP_NUM_THREADS": "1", "LADOS_THREADS": "1"}
    for name, epochs in (("first", 1), ("second", 1)):
        done = run_here(folder, env, "train", "--data=toy", f"--name={name}", *SMALL, f"--epochs={epochs}", "--set=audit=false")
        assert done.returncode == 0, done.stderr
    for i, data in enumerate(colours(3)):
        (folder / f"{i}.png").write_bytes(data)
    assert run_here(folder, env, "runs", "compare", "first", "second", "--html", "compare.html").returncode == 0
    assert run_here(folder, env, "predict", "0.png", "1.png", "2.png", "--html", "gallery.html").returncode == 0
    shutil.copy(folder / "runs" / "latest" / "report.html", folder / "report.html")
    return folder


@pytest.fixture(scope="module")
def served(papers):
    with folder_served(papers) as url:
        yield url


@pytest.mark.parametrize("name", ["report", "compare", "gallery"])
def test_papers_have_no_serious_fault(name, served, chromium):
    found = looked_at(chromium, f"{served}/{name}.html", name)
    assert not found, "\n".join(found)


def test_the_site_has_no_serious_fault(papers, served, chromium):
    pytest.importorskip("material", reason="the site needs mkdocs-material")
    done = subprocess.run([sys.executable, "-m", "mkdocs", "build", "-q", "-d", papers / "site"], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0, done.stderr
    found = [f for page in ("", "ru/", "reference/labels/")
             for f in looked_at(chromium, f"{served}/site/{page}", f"site {page.replace('/', ' ')}")]
    assert not found, "\n".join(found)


def drop(page):
    "Give the classifier's page two images, and wait for their answers."
    page.set_input_files("[data-test=files]", [{"name": f"{i}.png", "mimeType": "image/png", "buffer": d} for i, d in enumerate(colours(2))])
    page.wait_for_selector("article.card.done >> nth=1", timeout=PATIENCE)
    page.wait_for_timeout(600)


def enlarge(page):
    "Open the first image."
    page.locator("article.card [data-act=open]").first.click()
    page.wait_for_selector(".halves .bars", timeout=PATIENCE)
    page.wait_for_timeout(1500)


@pytest.fixture
def page(tmp_path):
    "Serves a page of Voila."
    pytest.importorskip("voila", reason="the page needs voila")
    return lambda name, **told: app(tmp_path, name, "--no-browser", MODEL_PATH=runs() / "first", LADOS_THREADS=1, **told)


def test_the_classifier_has_no_serious_fault(chromium, page):
    with page("classifier") as (url, _):
        found = looked_at(chromium, url, "classifier", "[data-test=drop]", 2500, (drop, enlarge))
    assert not found, "\n".join(found)


def ask_to_serve(page):
    "Ask for another model, which the page wants confirmed."
    page.fill("header input[type=password]", KEY)
    page.click("tr:has-text('second') >> text=Serve")
    page.wait_for_selector("dialog.ask", timeout=PATIENCE)


def test_the_monitor_has_no_serious_fault(chromium, page, tmp_path):
    "With what it shows of a service that has answered, has two models, and was handed a training; and without a key."
    home = tmp_path / "api"
    shutil.copytree(runs(), home / "runs")
    (home / "runs" / "second" / "run.json").write_text('{"format": 1, "job": "train", "name": "second", "state": "succeeded"}')
    (home / "runs" / "second" / "params.json").write_text("{}")
    toy_manifest(home / "data" / "toy")
    with serving(home, home / "runs" / "first", app="lados.jobs.routes:app", LADOS_DATA=home / "data") as server:
        server.ready()
        for image in colours(12):
            assert server.predict(image).status_code == 200
        training = httpx.post(f"{server.url}/train", json={"preset": "demo", "data": str(home / "data" / "toy"), "name": "spring"}, headers={"X-API-Key": KEY}, trust_env=False)
        assert training.status_code == 202, training.text
        with page("monitor", LADOS_API_URL=server.url, API_KEY=KEY) as (url, _):
            found = looked_at(chromium, url, "monitor", "tr:has-text('spring')", 2500, (ask_to_serve,))
        with page("monitor", LADOS_API_URL=server.url, API_KEY="") as (url, _):
            found += looked_at(chromium, url, "monitor without a key", "main:has-text('nothing to show')", 2500)
    assert not found, "\n".join(found)
