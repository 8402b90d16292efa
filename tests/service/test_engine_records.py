"An engine from outside: one record in a package of its own, and everything follows."

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import install_package, refused
from serving import ROOT, colours, draw_bench_images, runs, serving

from lados.files import read_json
from lados.labels import CLASSES
from lados.serve import engines
from lados.serve.engines import EXACT, LOSSY, REDUCED, PrecisionClass, check_formats, machine

BUNDLE = "runs/second/bundle" # below the folder of the test
PLUGIN = """
import numpy as np
import onnxruntime as ort

from lados.serve.engines import LOSSY, Engine, EngineSpec


def open_halved(folder):
    session = ort.InferenceSession(folder / "halved" / "model.onnx")
    name = session.get_inputs()[0].name
    run = lambda images, *outputs: session.run(list(outputs), {name: images})
    return Engine("halved", lambda images: tuple(run(images, "logits", "embedding")), lambda images: run(images, "grid")[0])


def write_halved(source, folder):
    from lados.serve.export import write_onnx # with torch, which predicting does without

    assert len(source.images) == len(source.labels) == 9
    write_onnx(source, folder)


HALVED = EngineSpec("onnxruntime", ("halved/",), open_halved, "made by a test", "of no use", LOSSY, "halved", write_halved, calibration=9)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A run, and an environment in which a package brings the engine `halved`; a call runs a command of lados."
    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(runs() / "second", folder / "runs" / "second")
    install_package(folder, "halving", PLUGIN, "lados.engines", halved="HALVED")
    env = {**os.environ, "LADOS_HOME": str(folder / "home"), "LADOS_RUNS": str(folder / "runs"), "OMP_NUM_THREADS": "1",
           "LADOS_THREADS": "1", "PYTHONPATH": f"{ROOT}:{folder}", "COLUMNS": "250"}

    def lados(*words):
        command = [sys.executable, "-c", "from lados.cli.main import main; main()", *map(str, words)]
        return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)

    lados.folder, lados.env = folder, env
    lados.exported = lados("export", BUNDLE, "halved")
    return lados


@pytest.mark.long
def test_it_is_exported_and_certified_by_its_own_precision(place):
    assert place.exported.returncode == 0, place.exported.stderr
    assert "halved written" in place.exported.stderr and "halved" in place.exported.stdout
    bundle = place.folder / "runs" / "second" / "bundle"
    entry = read_json(bundle / "parity.json")["engines"]["halved"]
    assert entry["passed"] and entry["agreement"] == 1 and entry["precision"] == LOSSY.doc
    assert entry["bytes"] > 0 and "halved/model.onnx" in (bundle / "SHA256SUMS").read_text()


@pytest.mark.long
def test_it_is_in_the_table_predicts_and_is_benched(place):
    table = place("engines", f"--run={BUNDLE}")
    assert "made by a test" in table.stdout and "passed" in table.stdout, table.stderr
    (place.folder / "one.png").write_bytes(colours(1)[0])
    done = place("predict", "one.png", f"--run={BUNDLE}", "--engine=halved")
    assert done.returncode == 0 and "engine halved" in done.stderr, done.stderr
    wrong = place("predict", "one.png", f"--run={BUNDLE}", "--engine=halve")
    assert wrong.returncode == 2 and "did you mean 'halved'" in wrong.stderr
    draw_bench_images(place.folder / "home")
    bench = place("bench", "serve", f"--run={BUNDLE}", "--engine=halved", "--connections=1", "--seconds=0.5", "--images=0", "--no-plain",
                  "--no-overload")
    assert bench.returncode == 0 and bench.stdout.count("halved") >= 2, bench.stderr


@pytest.mark.long
def test_it_serves(place):
    with serving(place.folder / "service", place.folder / "runs" / "second", LADOS_ENGINE="halved",
                 PYTHONPATH=place.env["PYTHONPATH"]) as server:
        assert server.ready().predict(colours(1)[0]).json()["engine"] == "halved"
        assert server.get("/models").json()["models"][0]["engines"]["halved"] == "passed"


def test_the_limits_are_those_of_the_precision():
    from lados.data.manifest import Manifest
    from lados.model.batches import Dataset
    from lados.serve.export import ReferenceAnswers, compare_engine

    rng = np.random.default_rng(0)
    labels = rng.integers(0, len(CLASSES), 400)
    probs = np.full((400, len(CLASSES)), 0.02)
    probs[np.arange(400), labels] = 1 - 0.02 * (len(CLASSES) - 1)
    frame = pd.DataFrame({"image": [f"{i}.png" for i in range(400)], "split": "valid", "label": [CLASSES[i] for i in labels],
                          "source_group": [str(i) for i in range(400)]})
    data = Dataset(Manifest(frame, Path()), [], [], labels)
    truth = ReferenceAnswers(data, np.arange(400), np.log(probs), np.zeros((400, 9)), 1.0, np.ones(400, bool), np.zeros((0, 9)),
                             np.zeros(0))
    logits = np.log(probs)
    logits[:6] = np.roll(logits[:6], 1, axis=1) # one answer in seventy is another
    assert not compare_engine(truth, logits, EXACT)["passed"] and not compare_engine(truth, logits, REDUCED)["passed"]
    assert compare_engine(truth, logits, PrecisionClass("lenient", f1_drop=0.05, recall_drop=0.2))["passed"]
    assert compare_engine(truth, logits, PrecisionClass("promises nothing"))["passed"]
    assert not compare_engine(truth, np.full_like(logits, np.nan), LOSSY)["passed"]


def test_formats_bring_what_they_are_made_from():
    assert check_formats(["openvino-int8"]) == ["openvino", "openvino-int8"]
    with refused("unknown-name", "'onxx'"):
        check_formats(["onxx"])


def test_what_was_measured_holds_for_one_graphics_card_and_driver(tmp_path, monkeypatch):
    def driver(*lines):
        (tmp_path / "nvidia-smi").write_text("#!/bin/sh\ncat <<END\n" + "\n".join(lines) + "\nEND\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
        engines._gpus.cache_clear()
        return machine()["gpus"]

    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    two = ["0, GPU-a, NVIDIA H100, 570.1", "1, GPU-b, NVIDIA L4, 570.1"]
    assert driver(*two) == ["NVIDIA H100, 570.1", "NVIDIA L4, 570.1"] != driver("0, GPU-a, NVIDIA H100, 580.2")
    for visible, seen in (("1", ["NVIDIA L4, 570.1"]), ("GPU-a", ["NVIDIA H100, 570.1"]), ("", [])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert driver(*two) == seen
    engines._gpus.cache_clear()


def test_a_graph_whose_input_has_an_older_name_is_read(tmp_path):
    import onnx

    from lados.model.bundle import seal
    from lados.serve.engines import open_engine

    bundle = Path(shutil.copytree(runs() / "first" / "bundle", tmp_path / "bundle"))
    images = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3), np.uint8)
    answer = open_engine(bundle, "onnxruntime").run(images)[0]
    graph = onnx.load(bundle / "onnx" / "model.onnx", load_external_data=False)
    for node in graph.graph.node:
        node.input[:] = ["pictures" if name == "images" else name for name in node.input]
    graph.graph.input[0].name = "pictures"
    onnx.save(graph, bundle / "onnx" / "model.onnx")
    seal(bundle)
    assert open_engine(bundle, "onnxruntime").run(images)[0] == pytest.approx(answer)
    assert json.loads((bundle / "parity.json").read_text())["engines"]["onnxruntime"]["passed"]
