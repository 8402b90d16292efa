"Fixtures that several topics share: homes of their own, and a small drawn dataset."

import os
from pathlib import Path

import pytest

from lados.core import settings
from lados.processes import collector_paused


@pytest.fixture
def home(tmp_path, monkeypatch):
    "A folder for this test alone that holds caches, runs and data."
    for name in ("LADOS_HOME", "LADOS_RUNS", "LADOS_DATA"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("LADOS_THREADS", "1")
    settings.cache_clear()
    yield tmp_path
    settings.cache_clear()


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    "A drawn LADOS-style export: 24 photographs, a few crops of each, 128 pixels a side."
    from lados.synthetic.sample import synthetic

    return synthetic(tmp_path_factory.mktemp("sample") / "export", sources=24, size=128, workers=2)


@pytest.fixture(scope="session")
def environment():
    "What processes of their own get: one thread, and this package."
    tests = Path(__file__).resolve().parent
    path = os.pathsep.join(map(str, (tests.parent, tests)))
    return {**os.environ, "OMP_NUM_THREADS": "1", "LADOS_THREADS": "1", "PYTHONPATH": path}


@pytest.fixture(scope="module")
def postgres():
    "The address of a PostgreSQL of our own."
    from working import postgres_server

    with postgres_server() as url:
        yield url


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    "The collector rests while files with torch, fastai and the like are imported."
    with collector_paused():
        return (yield)


FIRST = ("chaos", "train", "jobs", "service", "ui")


def pytest_collection_modifyitems(items):
    "The folders whose files take minutes go first, so that two processes end at about the same time."
    items.sort(key=lambda item: FIRST.index(item.path.parent.name) if item.path.parent.name in FIRST else len(FIRST))
