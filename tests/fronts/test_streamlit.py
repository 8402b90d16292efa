"The Streamlit pages without a browser, against a service that runs."

import os
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("streamlit", reason="needs lados[streamlit]")
pytest.importorskip("plotly", reason="needs lados[streamlit]")
from serving import KEY, colours, runs, serving
from streamlit.testing.v1 import AppTest

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "fronts" / "streamlit" / "app.py"
sys.path[:0] = [str(ROOT / "fronts"), str(APP.parent)]
from lados_fronts import session as sessions  # noqa: E402
from lados_fronts.keep import Keep, new_visitor  # noqa: E402


@pytest.fixture(autouse=True)
def process_as_it_was():
    "AppTest makes the page the process's `__main__`, which processes that are spawned later would run, and changes the environment."
    main, before = sys.modules["__main__"], dict(os.environ)
    yield
    sys.modules["__main__"] = main
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("api"), runs() / "first", app="lados.jobs.routes:app") as server:
        yield server.ready()


@pytest.fixture
def visitor(tmp_path, monkeypatch):
    "A visitor's things, in a folder of this test."
    monkeypatch.setenv("LADOS_FRONTS", str(tmp_path))
    monkeypatch.delenv("API_KEY", raising=False)
    keep = Keep(new_visitor())
    keep.set(language="en")
    yield keep
    if session := sessions._sessions.pop(keep.visitor, None):
        session.over = True


def page(keep, url, name="classify", **settings) -> AppTest:
    keep.set(url=url, **settings)
    app = AppTest.from_file(str(APP), default_timeout=60)
    app.session_state["visitor"] = keep.visitor
    app.run()
    if name != "classify":
        app.switch_page(f"views/{name}.py").run()
    assert not app.exception, app.exception
    return app


def settle(keep, done, seconds=60):
    sessions.session_of(keep)
    end = time.monotonic() + seconds
    while keep.counts()["done"] < done:
        assert time.monotonic() < end, keep.counts()
        time.sleep(0.05)


def told(app) -> str:
    return " ".join([e.proto.body for e in app.get("html")] + [m.value for m in (*app.markdown, *app.caption, *app.subheader, *app.info, *app.success, *app.error)])


def test_images_become_cards_doubtful_first(service, visitor):
    for i, data in enumerate(colours(6)):
        visitor.add(f"{i}.png", data)
    visitor.refuse("notes.zip", "not a readable zip")
    visitor.release()
    visitor.set(url=service.url)
    settle(visitor, 6)
    app = page(visitor, service.url)
    assert "6 images classified" in told(app) and "1 could not be read" in told(app) and "first" in told(app)
    assert len([b for b in app.button if b.label == "Open"]) == 6
    assert [d.label for d in app.get("download_button")] == ["Download CSV", "Download JSON"], "no map without places"
    for name, words in (("flight", "Classes over the flight"), ("jobs", "Handed in from here"), ("service", "Models")):
        assert words in told(page(visitor, service.url, name)), name


def test_a_correction_goes_to_the_service(service, visitor):
    visitor.add("a.png", colours(1, seed=9)[0])
    visitor.release()
    visitor.set(url=service.url, key=KEY)
    settle(visitor, 1)
    item = visitor.items()[0]
    session = sessions.session_of(visitor)
    session.ask(session.correct(item.key, "sheen")).result(30)
    assert visitor.get(item.key).label == "sheen"
    kept = service.get("/corrections", headers={"X-API-Key": KEY}).json()["corrections"]
    assert [c["label"] for c in kept if c["sha256"] == item.key] == ["sheen"]
    session.ask(session.correct(item.key, None)).result(30)
    assert item.key not in {c["sha256"] for c in service.get("/corrections", headers={"X-API-Key": KEY}).json()["corrections"]}


def test_the_page_speaks_russian_and_says_calmly_that_nobody_answers(visitor):
    app = page(visitor, "http://127.0.0.1:9", language="ru")
    session = sessions.session_of(visitor)
    end = time.monotonic() + 20
    while not session.away and time.monotonic() < end:
        time.sleep(0.05)
    assert "Перетащите снимки вылета" in told(app) and "не отвечает" in str(session.problem()) and session.problem().away


def test_each_image_is_sent_once_when_the_service_comes_back(visitor, tmp_path):
    "Kept while nobody answers; the service counts as many answers as there are images."
    from serving import Server

    port = Server.free_port()
    visitor.set(url=f"http://127.0.0.1:{port}")
    data = colours(10, seed=4)
    for i, d in enumerate([*data, data[0]]):
        visitor.add(f"{i}.png", d)
    visitor.release()
    session = sessions.session_of(visitor)
    end = time.monotonic() + 20
    while not session.away and time.monotonic() < end:
        time.sleep(0.05)
    assert session.away and visitor.counts()["waiting"] == 10
    with serving(tmp_path / "api", runs() / "first", port=port) as server:
        settle(visitor, 10)
        outcomes = server.get("/metrics").json()["inference"]["outcomes"]
        assert sum(outcomes.values()) - outcomes.get("not_ready", 0) == 10, outcomes
