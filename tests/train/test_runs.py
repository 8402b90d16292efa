"Runs are folders that tell the truth: whatever is killed, whenever, nothing keeps running and nothing is lost."

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from urllib.parse import unquote

import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
from commands import refused, run_here
from toy import TINY, tiny, toy_manifest, trained_run

from lados.core import RunError
from lados.data.manifest import Manifest
from lados.files import read_json, write_json
from lados.model.inference import load_bundle, save_bundle
from lados.model.train import read_history, save_state
from lados.runs.events import FORMAT, read_events
from lados.runs.execution import run_notebook
from lados.runs.folders import Run, find_run, list_runs, new_run, run_differences

CALLER = """
    import sys
    from pathlib import Path
    from lados.core import LadosError
    from lados.runs.execution import run_notebook
    from lados.runs.folders import Run
    try:
        run_notebook(Run(Path(sys.argv[1])), sys.argv[2])
    except LadosError as e:
        print(e, file=sys.stderr)
        sys.exit(e.exit_code)
"""


@pytest.fixture
def toy_data(home):
    return toy_manifest(home / "toy").root


@pytest.fixture
def call(home, environment):
    "Start a process that executes a run; whatever is left of it in the end is killed."
    started = []

    def start(run, notebook="train"):
        env = {**environment, **{k: v for k, v in os.environ.items() if k.startswith("LADOS_")}}
        process = psutil.Popen([sys.executable, "-c", textwrap.dedent(CALLER), str(run.path), str(notebook)], env=env,
                               stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        for p in [process, *(process.children(recursive=True) if process.is_running() else [])]:
            with contextlib.suppress(psutil.Error):
                p.kill()


def params(data, **changes):
    return tiny(data=data, audit=False, split="official", **changes).model_dump(mode="json")


def epochs_of(run):
    return [e["epoch"] for e in read_events(run.path / "events.jsonl") if e["event"] == "epoch"]


def wait_for(condition, limit=60.0, process=None):
    until = time.monotonic() + limit
    while not (found := condition()):
        assert time.monotonic() < until, "waited too long"
        assert process is None or process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    return found


def family(process):
    "Caller, supervisor, kernel, and whatever they started."
    children = process.children(recursive=True)
    supervisor = next(p for p in children if "lados.runs.execution" in p.cmdline())
    kernel = next(p for p in children if "ipykernel_launcher" in " ".join(p.cmdline()))
    return supervisor, kernel, [process, *children]


def gone(processes, limit=15.0):
    left = psutil.wait_procs(processes, limit)[1]
    return not [p for p in left if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def gapless(run):
    rows = read_history(run.path / "history.csv")["epoch"].tolist()
    assert rows == list(range(len(rows)))
    return len(rows)


def write_notebook(folder, *cells):
    "A job notebook of these cells."
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in ("run = ''; params = {}", *cells)])
    nb.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(nb, folder / "short.ipynb")
    return folder / "short.ipynb"


def short_notebook(folder):
    "Only the sections that a training needs."
    return write_notebook(folder, "from lados.model import reports; job = reports.begin_training(run, params)", "reports.open_data(job)",
                          "reports.fit(job)")


def check_report(run, html):
    "The verdict stands first, then results, how it was trained, parameters; nothing is empty, and mistakes lead to their images."
    head, body = html.split("</header>")
    assert "Macro-F1" in head and run.path.name in head and "cores" in head and "lados " in head
    parts = [body.index(f">{t}</h2>") for t in ("Results", "How it was trained", "Parameters")]
    assert parts == sorted(parts) and parts[0] < body.index("Validation beside test") < parts[1] < parts[2]
    assert not re.findall(r"</h3>\s*</section>", body) and "Precision over recall" in body
    links = re.findall(r'<a href="([^"]+)" class="images">', body)
    assert all((run.path / unquote(link)).is_file() for link in links)
    assert body.count("<img") >= 2 * len(links), "each mistake beside its heat map"


def check_folder(run):
    "Everything that DESIGN promises of a run folder."
    nb = nbformat.read(run.path / "notebook.ipynb", 4)
    code = [c for c in nb.cells if c.cell_type == "code"]
    assert all(c.execution_count for c in code) and not any(o.output_type == "error" for c in code for o in c.outputs)
    html = (run.path / "report.html").read_text()
    fetched = re.findall(r"""(?:\bsrc\s*=|<link[^>]+href\s*=|@import|\burl\()\s*["']?(?:https?:)?//[^\s"')>]+""", html)
    assert not fetched, fetched[:5]
    assert not re.findall(r"""(?:import\(|from\s+|importScripts\()["']https?://""", html)
    assert html.count("data:image/png") >= 6
    assert "data:image" in html and "Traceback" not in html
    check_report(run, html)
    metrics = read_json(run.path / "metrics.json")
    assert 0 <= metrics["test"]["macro_f1"] <= 1 and metrics["cost"]["epochs"] == gapless(run)
    assert read_json(run.path / "params.json")["backbone"] == "test_resnet"
    assert [e["event"] for e in read_events(run.path / "events.jsonl")][-1] == "end"
    for name in ("contact_sheet", "class_balance", "learning_curves", "confusion", "class_scores", "calibration", "leaks"):
        assert (run.path / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    model = load_bundle(run.path)
    assert model.card["manifest_hash"] and model.card["run"] == run.path.name and not model.net.training
    files = [p for p in run.path.rglob("*") if p.is_file()]
    assert not [p for p in files if p.suffix in (".pkl", ".pickle", ".pth", ".pt", ".bin", ".joblib", ".npy")]
    assert not [p for p in files if ".tmp" in p.name], "no half files"
    assert not [p for p in files if p.read_bytes()[:1] == b"\x80" or p.read_bytes()[:4] == b"PK\x03\x04"], "nothing pickled"


@pytest.mark.long
def test_two_runs_at_once_leave_complete_folders(toy_data, sample, call, tmp_path):
    drawn = tiny(data=sample, epochs=2, name="drawn", ema=0.5, find_lr=True, batch_size="auto").model_dump(mode="json")
    both = [new_run("train", "drawn", drawn), new_run("train", "toy", params(toy_data, epochs=2, name="toy"))]
    callers = [call(r) for r in both]
    wait_for(lambda: both[0].state == "running", process=callers[0])
    assert [p.wait(300) for p in callers] == [0, 0], callers[0].stderr.read() + callers[1].stderr.read()
    for run in both:
        assert run.state == "succeeded" and epochs_of(run) == [0, 1]
        check_folder(run)
    assert find_run("latest").path in [r.path for r in both]
    assert {r.path for r in list_runs()} == {r.path for r in both}
    found = run_differences(both)
    assert found["params"]["ema"] == [0.5, None] and "epochs" not in found["params"] and found["metrics"]
    assert [load_bundle(run.path).card["synthetic"] for run in both] == [1.0, 0.0], "what has learned drawings says so"
    image = str(next(Path(sample).rglob("*.jpg")))
    for run, known in zip(both, (1.0, 0.0), strict=True):
        said = run_here(tmp_path, {}, "predict", image, f"--run={run.path}", "--out=answers.csv", "--html=answers.html").stdout
        pages = said, (tmp_path / "answers.html").read_text()
        assert all(("learned only drawn images" in page) == bool(known) for page in pages)
        assert pd.read_csv(tmp_path / "answers.csv")["synthetic"].item() == known


@pytest.mark.long
def test_stopped_killed_and_resumed_to_the_end(toy_data, call, home):
    "One training, ended in three ways, goes on each time and ends with the curve of an undisturbed one."
    asked = params(toy_data, epochs=60, mixup=0.2)
    run, short, rng = new_run("train", "unlucky", asked), short_notebook(home), np.random.default_rng()
    before = 0
    for how in ("SIGINT", "supervisor", "kernel"): # SIGTERM takes SIGINT's way; callers that die have a test of their own
        process = call(run, short)
        wait_for(lambda n=before: len(set(epochs_of(run))) > n + 1, process=process)
        time.sleep(rng.uniform(0, 0.05))
        assert run.state == "running" and find_run(run.path.name).alive
        supervisor, kernel, all_of_them = family(process)
        if how == "SIGINT":
            with refused("run-busy"):
                run_notebook(run, short)
            process.send_signal(signal.SIGINT)
        else:
            {"supervisor": supervisor, "kernel": kernel}[how].kill()
        assert gone(all_of_them), how
        assert process.wait() != 0
        assert run.state == ("failed" if how == "kernel" else "interrupted"), how
        if how != "supervisor": # it writes how it ended
            assert run.info["error"] and run.info["ended"]
            cells = nbformat.read(run.path / "notebook.ipynb", 4).cells
            done = [c.metadata.papermill.status for c in cells if "papermill" in c.metadata]
            assert done.count("completed") >= 3 and "images** of `toy`" in str(cells), "what was done is kept"
            assert (run.path / "report.html").exists()
        assert (run.path / "checkpoint" / "last.safetensors").exists()
        before = gapless(run)
        assert before >= 1
        assert not (run.path.parent / "latest").exists()
    assert run_notebook(run).state == "succeeded"
    check_folder(run)
    told = set(epochs_of(run)) # a kill may come between an epoch's checkpoint and its event
    assert gapless(run) == 60 and told <= set(range(60)) and len(told) >= 60 - 3
    assert find_run("latest").path == run.path
    from lados.data.manifest import load_manifest
    from lados.model.batches import prepare_dataset
    from lados.model.train import train
    p = tiny(data=toy_data, epochs=60, mixup=0.2)
    curve = ["train_loss", "valid_loss", "macro_f1"]
    whole = train(p, prepare_dataset(load_manifest(run.path), p.size, p.cached)).history
    pd.testing.assert_frame_equal(read_history(run.path / "history.csv")[curve], whole[curve], check_exact=True)


@pytest.mark.long
def test_a_caller_that_dies_at_once_leaves_nothing_running(toy_data, call, home):
    run = new_run("train", "brief", params(toy_data, epochs=500))
    for moment in np.random.default_rng().uniform(0, 2.5, 2):
        process = call(run, short_notebook(home))
        wait_for(lambda p=process: any("lados.runs.execution" in c.cmdline() for c in p.children()))
        time.sleep(moment)
        children = process.children(recursive=True)
        process.kill()
        assert gone([process, *children], 30)
        assert run.state in ("created", "interrupted", "failed") and not run.alive


def test_a_run_that_fails_says_why_and_keeps_what_there_is(toy_data, home):
    run = new_run("train", "moved", params(home / "nowhere"))
    opens = "from lados.core import DataError\nraise DataError(f'no dataset {params[\"data\"]}', 'put it back')"
    with refused("training-failed", "nowhere") as e:
        run_notebook(run, write_notebook(home, "print('What was asked for')", opens))
    assert "DataError" in str(e.value) and "report.html" in e.value.remedy
    assert "--resume" not in e.value.remedy, "there is no epoch to go on from"
    assert run.state == "failed" and "nowhere" in run.info["error"]
    assert "What was asked for" in (run.path / "notebook.ipynb").read_text() and (run.path / "report.html").exists()


def test_a_kernel_that_another_python_left_behind_is_not_taken(toy_data, home, monkeypatch):
    left = home / "user" / "kernels" / "python3"
    left.mkdir(parents=True)
    (left / "kernel.json").write_text(json.dumps({"argv": [str(home / "gone/bin/python"), "-m", "ipykernel_launcher", "-f", "{connection_file}"],
                                                  "display_name": "Python 3", "language": "python"}))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(home / "user"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0") # as in a Python that is no virtual environment
    assert run_notebook(new_run("train", "fresh", params(toy_data, dry_run=True)), write_notebook(home)).state == "succeeded"


@pytest.mark.parametrize("place", ["below a file", "/proc", "/sys"])
def test_unwritable_run_folder(home, place):
    (home / "file").write_text("")
    root = home / "file" / "runs" if place == "below a file" else Path(place, "runs")
    with pytest.raises(RunError, match="cannot be written") as e:
        new_run("train", "x", {}, root)
    assert str(root) in e.value.problem and "LADOS_RUNS" in e.value.remedy


def test_a_run_from_a_newer_version_is_refused(home, toy_data):
    run = new_run("train", "future", params(toy_data))
    write_json(run.path / "run.json", {**run.info, "format": FORMAT + 1})
    for look in (lambda: run.info, lambda: run.state, lambda: run_notebook(run)):
        with refused("other-version"):
            look()
    assert not (run.path / "notebook.ipynb").exists()


def test_a_checkpoint_or_bundle_from_a_newer_version_is_refused(home, toy_data, monkeypatch):
    from lados.data.manifest import load_manifest
    from lados.model import train as training
    from lados.model.backbones import make_backbone, preprocessing
    from lados.model.batches import prepare_dataset
    from lados.model.bundle import make_card
    from lados.model.inference import Model
    from lados.model.train import train
    monkeypatch.setattr(training, "FORMAT", FORMAT + 1)
    save_state(home / "run" / "checkpoint" / "last.safetensors", {}, {})
    monkeypatch.undo()
    with refused("other-version", f"format {FORMAT + 1}"):
        train(tiny(), prepare_dataset(load_manifest(toy_data), 32, 32), home / "run")
    net = make_backbone("test_resnet", size=32)
    folder = save_bundle(home / "bundle", Model(net, {**make_card("test_resnet", preprocessing(net, 32)), "format": FORMAT + 1}))
    with refused("other-version"):
        load_bundle(folder)


def test_damaged_run_files_are_named(home, toy_data):
    run = new_run("train", "hurt", params(toy_data))
    text = (run.path / "run.json").read_text()
    (run.path / "run.json").write_text(text[:len(text) // 2])
    with pytest.raises(RunError, match=r"run\.json.*cut short"):
        _ = run.info
    (run.path / "run.json").write_text(json.dumps(json.loads(text)))
    assert Run(run.path).state == "created"


def test_looking_at_a_run_does_not_make_it_look_alive(home, toy_data):
    run = new_run("train", "looked-at", params(toy_data))
    assert not run.alive and not (run.path / "run.lock").exists(), "looking leaves no trace"
    with run.locked():
        assert run.alive
    with (run.path / "run.lock").open() as f: # another looker, in the middle of its look
        fcntl.flock(f, fcntl.LOCK_SH)
        assert not run.alive


def test_cross_validation_with_few_sources(home):
    "As many folds as there are sources, at most; the model is handed on all the same."
    few = toy_manifest(home / "few", train=6, held=3)
    frame = few.frame.assign(source_group=[f"s{i // 3}" for i in range(len(few))], split="")
    Manifest(frame, few.root, {}).save(few.root)
    job = trained_run("few", **TINY | {"data": few.root, "folds": 5, "epochs": 1})
    assert load_bundle(job.run) and "4 group-safe folds" in job.shown["cross_validation"].data
    assert 0 <= job.metrics["folds"]["this training"]["macro_f1"] <= 1
