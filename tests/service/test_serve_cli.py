"The way from a run to a service, as it is typed: export, engines, predict, serve, bench serve."

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from functools import partial

import pandas as pd
import pytest
from commands import run_here
from serving import Server, draw_bench_images, make_run
from toy import ROUNDING

from lados.files import read_json
from lados.runs.folders import find_run, new_run
from lados.serve.engines import withheld
from lados.trail import read_trail

LADOS = [sys.executable, "-c", "from lados.cli.main import main; main()"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with one run of the toy, exported by the command; a call runs a command of lados in this process, `apart` in one of its own,
    where it starts others."""
    folder = tmp_path_factory.mktemp("place")
    names = {"LADOS_HOME": "home", "LADOS_RUNS": "runs", "LADOS_DATA": "data"}
    env = {**{k: str(folder / v) for k, v in names.items()}, "OMP_NUM_THREADS": "1", "LADOS_THREADS": "1"}
    run = new_run("train", "first", {}, folder / "runs")
    make_run(run.path, epochs=6, train=24, held=12)
    run.update(state="succeeded")
    (folder / "toy").mkdir()
    for image in run.path.glob("*.png"):
        shutil.copy(image, folder / "toy")
    lados = partial(run_here, folder, env)
    lados.folder, lados.env = folder, {**os.environ, **env}
    lados.apart = lambda *words: subprocess.run([*LADOS, *words], cwd=folder, env=lados.env, capture_output=True, text=True)
    lados.exported = lados("export", "first", "--formats=onnx", "openvino-int8", "torchscript", "torch-export")
    return lados


def bundle(place):
    return find_run("first", place.folder / "runs").path / "bundle"


def test_a_run_hands_on_its_doubts(place):
    card = read_json(bundle(place) / "card.json")
    assert card["conformal"]["images"] == 12 and card["conformal"]["level"] == 0.9
    assert card["outlier"]["images"] == 12 and (bundle(place) / "reference.safetensors").exists()


def test_export_prints_and_keeps_the_certificate(place):
    assert place.exported.returncode == 0, place.exported.stderr
    found = read_json(bundle(place) / "parity.json")
    assert found["images"] == 48 and found["learned"] == 24 and found["machine"]["threads"] == 1
    names = {"torch", "onnxruntime", "openvino", "openvino-int8", "torchscript", "torch-export"}
    assert names <= set(found["engines"]) and all(name in place.exported.stdout for name in names)
    for name in ("torch", "onnxruntime", "openvino", "torchscript", "torch-export"):
        e = found["engines"][name]
        assert e["passed"] and e["agreement"] == 1 and e["max_difference"] < 1e-3 + ROUNDING, name
        assert e["bytes"] > 0 and e["images_per_s"]["1"] > 0 and e["conformal"]["images"] == 12
    assert "other, at most" in " ".join(place.exported.stdout.split()) and "auto leaves it to you" in " ".join(place.exported.stdout.split())
    assert "No claim is made about sheen" in " ".join(place.exported.stdout.split())
    sums = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=bundle(place))
    assert sums.returncode == 0, "the seal is what sha256sum reads"


def test_engines_say_which_is_taken(place):
    done = place("engines", "--run=first")
    assert done.returncode == 0 and done.stdout.count("auto") == 1 and "passed" in done.stdout
    assert "only if" in done.stdout, "the column is as wide as what was measured leaves it"
    assert list(withheld(bundle(place))) == ["openvino-int8"], "48 images cannot exclude that int8 differs on 1 %"


def test_predict_answers_alike_with_every_engine(place):
    answers = {}
    for engine in ("torch", "openvino"):
        done = place("predict", "toy", "--run=first", f"--engine={engine}", "--out=answers.csv")
        assert done.returncode == 0 and f"engine {engine}" in done.stderr, done.stderr
        answers[engine] = pd.read_csv(place.folder / "answers.csv")
        assert len(answers[engine]) == 48 and answers[engine]["error"].isna().all()
    assert (answers["openvino"]["predicted"] == answers["torch"]["predicted"]).all()
    assert (answers["openvino"].filter(like="p_") - answers["torch"].filter(like="p_")).abs().max().max() < 1e-3 + ROUNDING


@pytest.mark.long
def test_export_as_a_job_leaves_a_report(place):
    queued = place.apart("export", "first", "onnx", "--as-job")
    assert queued.returncode == 0 and "lados worker" in queued.stdout, queued.stderr
    (entry,) = read_trail(place.folder / "home" / "audit.jsonl", action="submit")
    assert entry["kind"] == "export" and entry["target"][:8] in queued.stdout
    worker = subprocess.Popen([*LADOS, "worker", "--predict=0"], cwd=place.folder, env=place.env)
    try:
        done = place.apart("job", "submit", "export", "--run=first", "--set=formats=onnx", "--out=certificate.json")
    finally:
        worker.terminate()
        worker.wait()
    assert done.returncode == 0 and "handed in already" in done.stdout, done.stderr
    assert read_json(place.folder / "certificate.json")["engines"]["onnxruntime"]["passed"]
    job = find_run("engines", place.folder / "runs").path
    assert read_json(job / "run.json")["state"] == "succeeded" and "certificate" in (job / "report.html").read_text()
    assert read_json(job / "metrics.json")["engines"]["onnxruntime"]["passed"]


@pytest.mark.parametrize(("words", "code", "told"), [
    (["export", "first", "--formats=onxx"], "unknown-name", "did you mean 'onnx'"),
    (["export", "nothing"], "run-not-found", "nothing"),
    (["predict", "toy", "--run=first", "--engine=openvin"], "unknown-name", "did you mean 'openvino'"),
    (["serve", "--run=first", "--engine=fast"], "invalid-value", "'fast'"),
    (["bench", "serve", "--run=first", "--engine=fast"], "invalid-value", "'fast'"),
])
def test_mistakes_are_told(place, words, code, told):
    done = place(*words)
    assert done.returncode == 2 and f"[{code}]\n  -> " in done.stderr and told in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_serve_answers_and_ends_on_ctrl_c(place):
    from lados.serve.server import listen

    with listen("127.0.0.1", port := Server.free_port()):
        taken = place("serve", "--run=first", f"--port={port}")
        assert taken.returncode == 2 and "[address-in-use]" in taken.stderr
    log = place.folder / "log.jsonl" # a pipe that nobody reads would fill up while the model loads
    with log.open("w") as out:
        process = subprocess.Popen([*LADOS, "serve", "--run=first", f"--port={port}"], cwd=place.folder, env=place.env,
                                   stdout=out, stderr=subprocess.PIPE, text=True)
    try:
        url = f"http://127.0.0.1:{port}"
        assert url in process.stderr.readline()
        image = (place.folder / "toy" / "test0.png").read_bytes()
        request = urllib.request.Request(f"{url}/predict", image, {"Content-Type": "image/png"})
        answer = _patiently(lambda: json.load(urllib.request.urlopen(request, timeout=30)))
        assert answer["label"] == "oil" and answer["model"].endswith("first")
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode in (0, -signal.SIGINT, 130)
    assert all(json.loads(line) for line in log.read_text().splitlines()), "every line is JSON"


def _patiently(ask, seconds=60):
    until = time.monotonic() + seconds
    while True:
        try:
            return ask()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


@pytest.mark.long
def test_the_bench_shows_engines_http_overload_and_folder(place):
    draw_bench_images(place.folder / "home")
    done = place.apart("bench", "serve", "--run=first", "--engine=openvino", "--connections=1", "--connections=4", "--seconds=0.5",
                       "--images=24")
    assert done.returncode == 0, done.stderr
    assert all(word in done.stdout for word in ("bare engine", "plain FastAPI + torch", "overload", "24 files", "ratio"))
