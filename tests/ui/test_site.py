"The documentation site: built without a warning, complete, and asking nothing of another host."

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from browsing import CHROMIUM, FLAGS, folder_served

pytest.importorskip("material", reason="the site needs mkdocs-material")
ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.long

if not (ROOT / "nbs").is_dir():
    pytest.skip("needs a checkout", allow_module_level=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The built site; `--strict` makes an error of every link or anchor that leads nowhere."
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", folder], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def address(site):
    with folder_served(site) as url:
        yield url


def test_every_exported_name_has_its_place(site):
    missing = []
    for path in sorted((ROOT / "lados").rglob("[!_]*.py")):
        module = path.relative_to(ROOT / "lados").with_suffix("")
        names = re.search(r"^__all__ = \[(.*?)\]", path.read_text(encoding="utf-8"), re.M | re.S)[1]
        page = (site / "reference" / module / "index.html").read_text(encoding="utf-8")
        defined = re.findall(r"^(?:async )?(?:def|class) (\w+)", path.read_text(encoding="utf-8"), re.M)
        missing += [f"{module}: {n}" for n in re.findall(r"'(\w+)'", names) if n in defined and f'id="{n}"' not in page]
    assert not missing


def test_parameters_are_shown_with_type_default_and_comment(site):
    page = (site / "reference" / "data" / "split" / "index.html").read_text(encoding="utf-8")
    table = re.search(r'id="group_folds".*?<table>(.*?)</table>', page, re.S)[1]
    row = re.search(r"<tr>\s*<td><code>k</code></td>(.*?)</tr>", table, re.S)[1]
    assert "<code>int</code>" in row and "<code>5</code>" in row and "at least 2" in row
    assert "<em>returns</em>" in table and "held-out rows" in table


def test_pages_show_no_directive_and_no_place_of_this_machine(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert page.parent.name == "contributing" or "#|" not in text, page
        assert not re.search(r"(?<![\w./])/(home|root|work)/|site-packages", text), page
        assert not re.search(r'<(?:script|img|iframe)[^>]*src="(?:https?:)?//|<link[^>]*rel="(?!canonical)[^"]*"[^>]*href="(?:https?:)?//', text), page


def test_search_knows_pages_and_names(site):
    places = [d["location"] for d in json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]]
    assert {"tutorials/01_explore/", "how-to/errors/", "reference/data/split/#group_folds", "changelog/"} <= set(places)


@pytest.mark.skipif(not CHROMIUM, reason="browser tests need chromium on the PATH")
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_browser_asks_this_machine_alone_and_no_page_is_too_wide(address, width, scheme):
    playwright = pytest.importorskip("playwright.sync_api", reason="browser tests need playwright")
    asked, complaints = set(), []
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        page.on("request", lambda r: asked.add(r.url if r.url.startswith("data:") else r.url.split("/")[2]))
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        for path in ("/", "/tutorials/01_explore/", "/reference/model/uncertainty/", "/reference/data/split/", "/how-to/errors/"):
            page.goto(address + path, wait_until="networkidle")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
        page.locator(".md-search__input" if width > 1000 else "label[for=__search]").first.click()
        page.locator(".md-search__input").press_sequentially("group_folds")
        page.wait_for_selector(".md-search-result__item a[href*='reference/data/split']", timeout=60_000)
        browser.close()
    assert {a for a in asked if not a.startswith("data:")} == {address.removeprefix("http://")} and not complaints
