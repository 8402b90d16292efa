"Answers are saved before they are shown: no stream, no place and no kill costs what was computed."

import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from commands import runner
from PIL import Image
from serving import certify_only, runs, wait_for

from lados.core import settings

LADOS = [sys.executable, "-c", "from lados.cli.main import main; main()"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A bundle of one engine, which needs no torch and starts quickly, and images with names that ASCII does not have."
    folder = tmp_path_factory.mktemp("answers")
    shutil.copytree(runs() / "second" / "bundle", folder / "bundle")
    certify_only(folder / "bundle", "openvino")
    (folder / "flight").mkdir()
    for name in ("Пятно.png", "délta.png", os.fsdecode(b"caf\xe9.png")):
        Image.new("RGB", (40, 30), "navy").save(folder / "flight" / name)
    return folder


def environment(**more):
    return {**os.environ, "OMP_NUM_THREADS": "1", "LADOS_THREADS": "1", "TQDM_DISABLE": "1", **more}


def shell(place, command, **more):
    "Run a line of shell in which $LADOS is the command."
    env = environment(LADOS="lados_command", **more)
    line = f'lados_command() {{ "{sys.executable}" -c "from lados.cli.main import main; main()" "$@"; }}; {command}'
    return subprocess.run(["bash", "-c", line], cwd=place, env=env, capture_output=True, timeout=120)


@pytest.mark.parametrize(("words", "more"), [
    ("$LADOS predict flight --run bundle --out closed.csv >&- 2>&- <&-", {}),
    ("$LADOS predict flight --run bundle --out closed.csv", {"PYTHONIOENCODING": "ascii"}),
    ("$LADOS predict flight --run bundle --out closed.csv | true; exit ${PIPESTATUS[0]}", {}),
    ("$LADOS predict flight --run bundle --out closed.csv >/dev/full; true", {}),
], ids=["closed", "ascii", "pipe", "full"])
def test_a_stream_that_takes_nothing_costs_nothing(place, words, more):
    (place / "closed.csv").unlink(missing_ok=True)
    done = shell(place, words, **more)
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr.decode()
    table = pd.read_csv(place / "closed.csv")
    assert len(table) == 3 and table["predicted"].notna().all() and "flight/Пятно.png" in set(table["image"])
    assert not (place / "closed.csv.part").exists()


def test_a_killed_run_goes_on_where_it_stopped(place):
    (place / "long").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (1200, 1600, 3), np.uint8)
    Image.fromarray(pixels).save(place / "long" / "000.png", compress_level=1)
    for i in range(1, 40):
        os.link(place / "long" / "000.png", place / "long" / f"{i:03}.png")
    command, part = [*LADOS, "predict", "long", "--run", "bundle", "--out", "long.csv"], place / "long.csv.part"
    process = subprocess.Popen(command, cwd=place, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: part.exists() and part.read_bytes().count(b"\n") > 8, 60)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (place / "long.csv").exists()
    with part.open("ab") as f:
        f.write(b'{"file": "half a li')
    kept = part.read_bytes().count(b"\n") - 1
    done = subprocess.run(command, cwd=place, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0 and f"with {kept} answers of a run that was cut off" in done.stderr, done.stderr
    table = pd.read_csv(place / "long.csv")
    assert table["image"].tolist() == [f"long/{i:03}.png" for i in range(40)] and table["predicted"].nunique() == 1
    assert table["confidence"].max() - table["confidence"].min() < 0.02 and not part.exists()


@pytest.fixture
def lados(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    settings.cache_clear()

    yield runner(monkeypatch, capsys)
    settings.cache_clear()


@pytest.mark.parametrize("words", [
    ("predict", "flight", "--run=bundle", "--out=flight/délta.png/q.csv"), ("predict", "flight", "--run=bundle", "--out=folder.csv"),
    ("predict", "flight", "--run=bundle", "--out=/proc/q.csv"), ("evaluate", "--run=bundle", "--data=flight", "--out=bundle/card.json/q.json"),
    ("predict", "flight", "--run=bundle", "--html=flight/délta.png/q.html"), ("predict", "flight", "--run=bundle", "--html=folder.csv"),
    ("job", "submit", "predict", "flight", "--run=bundle", "--out=flight/délta.png/q.csv"),
    ("data", "split", "flight", "--out=flight/délta.png/q"), ("data", "audit", "flight", "--out=flight/délta.png")])
def test_a_place_for_answers_is_checked_before_the_work(place, lados, words):
    (place / "folder.csv").mkdir(exist_ok=True)
    code, text = lados(*words)
    assert code == 2 and "->" in text and words[-1].partition("=")[0] in text and "model" not in text.split("error")[0]


def test_answers_of_another_model_are_not_taken_over(place, lados):
    (place / "other.csv.part").write_text('{"model": "another"}\n{"file": "x", "row": {}}\n')
    code, text = lados("predict", "flight", "--run=bundle", "--out=other.csv")
    assert code == 0 and "going on" not in text and len(pd.read_csv(place / "other.csv")) == 3
