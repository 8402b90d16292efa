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
from fronting import ROOT, SHOTS
from serving import Server, colours, runs, wait_for
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


@pytest.mark.parametrize(("name", "ready", "steps"), [("classifier", "[data-test=drop]", (drop, enlarge)), ("monitor", ".lados.monitor main", ())])
def test_the_pages_of_voila_have_no_serious_fault(name, ready, steps, chromium, tmp_path):
    pytest.importorskip("voila", reason="the page needs voila")
    with_api = name == "monitor"
    server = Server(tmp_path / "api", runs() / "first", app="lados.jobs.routes:app").ready() if with_api else None
    port = Server.free_port()
    env = {**os.environ, "LADOS_HOME": str(tmp_path / "h"), "MODEL_PATH": str(runs() / "first"), "PYTHONPATH": str(ROOT),
           "LADOS_THREADS": "1", **({"LADOS_API_URL": server.url} if server else {})}
    command = [sys.executable, "-c", "from lados.cli.main import main; main()", "app", name, "--no-browser", "--port", str(port)]
    process = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: httpx.get(f"http://127.0.0.1:{port}/", trust_env=False, timeout=60).status_code < 500, PATIENCE / 1000)
        found = looked_at(chromium, f"http://127.0.0.1:{port}/", name, ready, 2500, steps)
        assert not found, "\n".join(found)
    finally:
        process.terminate()
        process.wait(30)
        if server:
            server.stop()
