"The commands, as a user types them: what they answer, what they write, and what they say when something is wrong."

import fcntl
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from commands import refused, runner
from PIL import Image
from serving import draw_bench_images
from toy import ROUNDING, TINY, toy_manifest, trained_run

from lados.cli.models import _resumed
from lados.core import settings
from lados.data.manifest import load_manifest
from lados.files import read_json
from lados.model import reports
from lados.runs.folders import find_run, list_runs, new_run

LADOS = [sys.executable, "-c", "from lados.cli.main import main; main()"]
ASKED = [f"--set={k}={'null' if v is None else str(v).lower()}" for k, v in TINY.items() if k != "epochs"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A folder with a toy dataset, other toy images, and one finished run of two epochs."
    folder = tmp_path_factory.mktemp("place")
    toy_manifest(folder / "toy")
    toy_manifest(folder / "other", train=1, held=6, seed=1)
    names = {"LADOS_HOME": "home", "LADOS_RUNS": "runs", "LADOS_DATA": "data"}
    env = {**os.environ, **{k: str(folder / v) for k, v in names.items()}, "OMP_NUM_THREADS": "1", "LADOS_THREADS": "1"}
    done = subprocess.run([*LADOS, "train", "--data=toy", "--name=first", *ASKED,
                           "--epochs=2", "--set=audit=false"], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "report.html" in done.stdout and "epoch   1" in done.stdout and "group-safe" in done.stdout
    return folder, env


@pytest.fixture
def lados(place, monkeypatch, capsys):
    "Run a command in this process; gives its exit code and what it printed."
    folder, env = place
    monkeypatch.chdir(folder)
    for name in ("LADOS_HOME", "LADOS_RUNS", "LADOS_DATA"):
        monkeypatch.setenv(name, env[name])
    settings.cache_clear()

    yield runner(monkeypatch, capsys)
    settings.cache_clear()


def test_runs_are_listed_and_compared(lados, place):
    code, text = lados("train", "--data=toy", "--name=dry", *ASKED, "--epochs=3", "--dry-run", "--set=lr=0.002", "--set=audit=false")
    assert code == 0 and {r.state for r in list_runs()} == {"succeeded"}
    assert find_run("latest").path == find_run("first").path, "a dry run is not to be used"
    assert len(load_manifest(find_run("dry").path)) <= 3 * TINY["batch_size"], "one batch of each split"
    code, text = lados("runs")
    assert code == 0 and text.count("succeeded") == 2 and "2/2" in text and "1/1" in text
    code, text = lados("runs", "compare", "first", "dry")
    assert code == 0 and "0.003" in text and "0.002" in text and "dry_run" in text and "weight_decay" not in text


def test_a_damaged_run_is_a_line_of_the_list(lados, place):
    broken = place[0] / "runs" / "20200101T000000Z-train-broken"
    broken.mkdir()
    for content in ("{}", "[]", '{"state": "runn', '{"state": "odd", "job": "train"}'):
        (broken / "run.json").write_text(content)
        code, text = lados("runs")
        assert code == 0 and "damaged" in text and "first" in text
    (broken / "run.json").unlink()
    broken.rmdir()


def test_evaluating_and_predicting_agree(lados, place):
    code, text = lados("evaluate", "--run=first", "--data=other", "--split=test", "--out=scores.json")
    scores = read_json(place[0] / "scores.json")
    assert code == 0 and "beside it, majority" in text and "flatter" not in text
    lados("evaluate", "--run=first", "--data=other", "--split=test", "--out=scored.csv")
    scored, tables = pd.read_csv(place[0] / "scored.csv"), []
    images = [f"other/{n}" for n in scored["image"]]
    for ending in ("csv", "json", "parquet"):
        code, text = lados("predict", *images, "--run=first", f"--out=said.{ending}")
        assert code == 0 and "images a second" in text
        read = {"csv": pd.read_csv, "json": pd.read_json, "parquet": pd.read_parquet}[ending]
        tables.append(read(place[0] / f"said.{ending}"))
    for said in tables:
        assert np.allclose(said.filter(like="p_"), scored.filter(like="p_"), atol=1e-5 + ROUNDING)
        assert (said["predicted"] == scored["truth"]).mean() == scores["accuracy"]
    code, text = lados("evaluate", "--run=first", "--data=toy", "--out=learned.json")
    assert "learned: 30 of these" in text and "learned: 30 of these" in read_json(place[0] / "learned.json")["warning"]


def test_unreadable_images_become_rows(lados, place):
    flight = place[0] / "flight"
    flight.mkdir()
    for name in ("a.png", "wave[1].png", os.fsdecode(b"caf\xe9.png")):
        Image.new("RGB", (40, 30), "navy").save(flight / name)
    (flight / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    code, text = lados("predict", "flight", "flight/gone.jpg", "--run=first", "--out=answers.csv")
    rows = pd.read_csv(place[0] / "answers.csv").set_index("image")
    assert code == 1 and len(rows) == 5 and "wave[1].png" in text
    assert rows["error"].notna().sum() == 2 and rows.loc["flight/gone.jpg", "error"]
    assert rows.loc["flight/wave[1].png", "predicted"] == rows.loc["flight/a.png", "predicted"] == rows.loc[r"flight/caf\xe9.png", "predicted"]
    (place[0] / "list.csv").write_text("path;note\nflight/a.png;calm\n")
    assert lados("predict", "list.csv", "flight/wave[1].png", "--run=first")[0] == 0


@pytest.mark.parametrize(("words", "code", "told"), [
    (["predict", "toy", "--out=x.xlsx"], "invalid-value", ".xlsx"),
    (["evaluate", "--data=toy", "--out=x.xlsx"], "invalid-value", ".xlsx"),
    (["predict", "empty"], "no-images", "no images in empty"),
    (["predict", "nowhere.csv"], "dataset-unreadable", "nowhere.csv"),
    (["predict", "toy", "--run=second"], "run-not-found", "second"),
    (["train", "--data=x[/b]"], "dataset-not-found", "x[/b]"),
    (["train", "--backbone=resnet5o"], "unknown-name", "'resnet5o'"),
    (["train", "--set=lr"], "invalid-value", "key=value"),
    (["train", "--set=lr=[1"], "invalid-value", "key=value"),
    (["train", "--set=preset=small"], "invalid-value", "--preset"),
    (["train", "--set=epochs=yes"], "invalid-value", "epochs=True"),
    (["train", "--set=lerning_rate=1"], "invalid-value", "'lerning_rate'"),
    (["train", "--preset=loop.yaml"], "unknown-name", "'loop.yaml'"),
    (["train", "--preset=latin.yaml"], "invalid-value", "not UTF-8"),
    (["train", "--resume=first", "--dry-run"], "invalid-value", "not as a dry run"),
    (["data", "split", "toy", "--out=x", "--how=fair"], "unknown-name", "'fair'"),
])
def test_refusals_are_messages(lados, place, words, code, told):
    (place[0] / "empty").mkdir(exist_ok=True)
    (place[0] / "loop.yaml").write_text("preset: loop.yaml\n")
    (place[0] / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    before = sorted(p.name for p in (place[0] / "runs").iterdir()), find_run("first").params
    status, text = lados(*words)
    assert status in (1, 2) and f"[{code}]" in text and told in text and "->" in text
    after = sorted(p.name for p in (place[0] / "runs").iterdir()), find_run("first").params
    assert before == after


def test_wrong_environment_is_a_message(lados, monkeypatch):
    monkeypatch.setenv("LADOS_THREADS", "many")
    settings.cache_clear()
    code, text = lados("runs")
    assert code == 2 and "[environment-invalid]" in text and "LADOS_THREADS='many'" in text


def test_a_run_that_is_being_executed_is_left_alone(lados, place):
    run = find_run("first")
    before = (run.path / "params.json").read_text()
    run.update(state="running", pid=os.getpid(), caller=os.getppid())
    with (run.path / "run.lock").open() as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        code, text = lados("train", "--resume=first", "--set=lr=0.5")
    run.update(state="succeeded")
    assert code == 2 and "[run-busy]" in text and (run.path / "params.json").read_text() == before


def test_the_latest_to_go_on_with_is_the_one_that_was_stopped(lados, place):
    done, stopped, trial = find_run("first"), new_run("train", "stopped", {"epochs": 3}), new_run("train", "trial", {"dry_run": True})
    stopped.update(state="failed")
    trial.update(state="failed")
    assert _resumed("latest", {}).path == stopped.path, "and not what has succeeded, which is `latest` all else"
    stopped.update(queued_as="a-job")
    assert _resumed("latest", {}).path == done.path, "its job goes on by itself"
    shutil.rmtree(stopped.path)
    assert _resumed("latest", {}).path == done.path
    shutil.rmtree(trial.path)


@pytest.mark.long
@pytest.mark.parametrize("preset, more", [("small", ["--set=probe_views=1"]), ("resnet50", ["--epochs=1"])])
def test_a_preset_trains_to_the_end(lados, place, preset, more):
    "With a tiny network in the place of its own, and all else as the preset says."
    code, text = lados("train", "--data=toy", f"--preset={preset}", f"--name={preset}", "--backbone=test_resnet", "--pretrained=false",
                       "--set=size=32", "--set=cache_size=40", *more)
    assert code == 0, text
    run = find_run(preset)
    assert run.state == "succeeded" and (run.path / "bundle" / "SHA256SUMS").exists() and (run.path / "report.html").exists()


@pytest.mark.long
def test_a_resumed_run_keeps_to_its_images(lados, place):
    "Nothing that was tested on may be learned from later, and the other way round."
    run = find_run("first")
    before = load_manifest(run.path).hash
    with refused("dataset-unusable", "another split"):
        reports.open_data(reports.begin_training(run.path, {**run.params, "fractions": [0.5, 0.25, 0.25]}))
    assert load_manifest(run.path).hash == before
    code, _ = lados("train", "--resume=first", "--set=fractions=[0.7, 0.15, 0.15]", "--epochs=3")
    assert code == 0 and len(pd.read_csv(find_run("first").path / "history.csv")) == 3


def test_a_split_that_was_made_is_the_one_that_is_trained_on(lados, place):
    made = place[0] / "made"
    code, text = lados("data", "split", "toy", f"--out={made}", "--seed=5", "--fractions", "0.5", "0.2", "0.3", "--no-audit")
    assert code == 0 and "seed 5" in text
    trained_run("kept", **TINY | {"data": made, "epochs": 1})
    kept = find_run("kept")
    assert load_manifest(kept.path).hash == load_manifest(made).hash
    assert read_json(kept.path / "split.json")["seed"] == 5 and kept.metrics["split"] == "group-safe"
    assert lados("data", "split", "toy", "--out=mixed", "--how=random", "--no-audit")[0] == 0
    assert load_manifest(place[0] / "mixed").meta["split"]["name"] == "random"


def test_an_import_does_not_replace_another_dataset(lados, place):
    for folder in ("A", "B"):
        (place[0] / folder).mkdir()
        Image.new("RGB", (8, 8), "navy").save(place[0] / folder / "sea.png")
        (place[0] / folder / "labels.csv").write_text("file,label\nsea.png,background\n")
        assert lados("data", "import", f"{folder}/labels.csv")[0] == 0
    assert {p.name for p in (place[0] / "data").iterdir()} >= {"A", "B"}
    code, text = lados("data", "import", "B/labels.csv", "--out=data/A")
    assert code == 2 and "another dataset" in text and "A/labels.csv" in text
    assert lados("data", "import", "A/labels.csv")[0] == 0, "its own may be made anew"


def test_names_that_are_no_text_are_left_out_of_an_import(lados, place):
    folder = place[0] / "latin" / "oil"
    folder.mkdir(parents=True)
    for name in ("sea.png", os.fsdecode(b"caf\xe9.png")):
        Image.new("RGB", (8, 8), "navy").save(folder / name)
    code, text = lados("data", "import", "latin")
    assert code == 0 and "1 images" in text and "not UTF-8" in text
    assert json.loads((place[0] / "data" / "latin" / "manifest.json").read_text())["warning_counts"]["unreadable-image"] == 1


def test_predicting_needs_nothing_of_training(place):
    "`lados[predict]`: without fastai, papermill and their companions."
    code = """
import sys
class NotInstalled:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("fastai", "papermill", "nbconvert", "IPython", "ipykernel", "psutil"):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
sys.meta_path.insert(0, NotInstalled())
from lados.cli.main import main
main()
"""
    folder, env = place
    for words, status, told in ((["predict", "toy/train0.png", "--run=runs/latest"], 0, "images a second"),
                                (["train", "--resume=first"], 2, "pip install 'lados[train]'")):
        done = subprocess.run([sys.executable, "-c", code, *words], cwd=folder, env=env, capture_output=True, text=True)
        assert done.returncode == status and told in done.stdout + done.stderr, done.stderr


@pytest.mark.long
def test_the_bench_measures_speed_and_memory(place):
    folder, env = place
    draw_bench_images(folder / "home")
    words = ["bench", "train", "--backbone=test_resnet", "--size=32", "--batch-size=4", "--steps=2", "--rounds=1",
             "--only=lados"]
    done = subprocess.run([*LADOS, *words], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "lados " in done.stdout and "GB" in done.stdout


def test_the_best_run_is_named_and_runs_are_compared_on_a_page(lados, place, tmp_path):
    trained_run("long", **TINY | {"data": find_run("first").params["data"], "epochs": 6})
    code, text = lados("runs", "best", "--metric", "log_loss")
    losses = {r.path.name: r.metrics["test"]["log_loss"] for r in list_runs() if not r.params["dry_run"]}
    assert code == 0 and min(losses, key=losses.get) in text.splitlines(), text
    code, text = lados("runs", "best", "--metric", "acuracy")
    assert code == 2 and "accuracy" in text
    code, text = lados("runs", "compare", "first", "long", "--html", str(tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text()
    assert code == 0 and "that both were tested on" in text and "No paired difference" not in text
    assert "Learning curves" in page and "Parameters that differ" in page and "Scores with intervals" in page
