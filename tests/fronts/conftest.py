"Fixtures of the front ends: the API with a worker, both front ends started by their commands, and a browser."

import contextlib
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from browsing import CHROMIUM, FLAGS
from fronting import FRONTS, Api, app, awake
from serving import KEY


@dataclass(frozen=True)
class Started:
    "The front ends as they run."

    urls: dict[str, str]
    kept: Path # what visitors keep
    processes: dict[str, subprocess.Popen]


@pytest.fixture(scope="session")
def api(tmp_path_factory):
    api = Api(tmp_path_factory.mktemp("api"))
    yield api
    api.stop()


@pytest.fixture(scope="session")
def fronts(api, tmp_path_factory):
    "Both, started by their commands."
    pytest.importorskip("streamlit", reason="needs lados[streamlit]")
    pytest.importorskip("flet_web", reason="needs lados[flet]")
    home = tmp_path_factory.mktemp("fronts")
    with contextlib.ExitStack() as stack:
        running = {name: stack.enter_context(app(home, name, API_KEY=KEY, LADOS_API_URL=api.url)) for name in FRONTS}
        yield Started({n: url for n, (url, _) in running.items()}, home / "h" / "fronts", {n: process for n, (_, process) in running.items()})


@pytest.fixture(scope="module") # Playwright keeps an event loop in this thread, which tests of other files do without
def chromium():
    if not CHROMIUM:
        pytest.skip("browser tests need chromium on the PATH")
    with pytest.importorskip("playwright.sync_api", reason="browser tests need playwright").sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, fronts):
    "Opens a front end; nothing may have been loaded from another host."
    contexts, foreign = [], []

    def opened(name, state=None, script=None, **options):
        contexts.append(chromium.new_context(**{"locale": "en-GB", "viewport": {"width": 1280, "height": 900}, "accept_downloads": True, "storage_state": state, **options}))
        if script:
            contexts[-1].add_init_script(script)
        page = contexts[-1].new_page()
        page.set_default_timeout(180_000)
        page.on("response", lambda r: foreign.append(r.url) if not re.match(r"(http://127\.0\.0\.1:|data:|blob:)", r.url) else None)
        page.goto(fronts.urls[name])
        awake(page)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not foreign
