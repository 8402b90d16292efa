"A run of lados 0.1, when images were pictures in its files: everything reads it as what it is today."

import math
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
from onnx import TensorProto, helper
from serving import encoded, serving

from lados.core import settings
from lados.data.manifest import load_manifest
from lados.files import write_json
from lados.jobs.batches import Batch
from lados.jobs.kinds import job_folder
from lados.jobs.promotion import read_proposal
from lados.jobs.store import add_job, get_job, open_store
from lados.jobs.tasks import run_task
from lados.labels import CLASSES
from lados.model.bundle import read_card
from lados.model.train import load_state, read_history, save_state
from lados.runs.events import read_events
from lados.runs.folders import find_run, list_runs, run_differences
from lados.serve.engines import ENGINES, candidates, certificate, check_engine, open_engine, read_reference
from lados.serve.predictor import Predictor, classify_files

ARCHIVE = Path(__file__).parents[1] / "data" / "run-0.1.tar.xz"
LADOS = [sys.executable, "-c", "from lados.cli.main import main; main()"]
# what that version answered: probabilities of `CLASSES`, then the distance
ANSWERS = {
    "torch": [
        (.960584, .002011, .002312, .001422, .024894, .008776, .874665),
        (.109242, .016525, .009824, .005730, .856430, .002248, .937379),
        (.079541, .011670, .029829, .031477, .000728, .846756, .770117)],
    "openvino": [
        (.960584, .002011, .002312, .001422, .024894, .008776, .874643),
        (.109242, .016526, .009824, .005730, .856430, .002248, .937297),
        (.079541, .011670, .029829, .031477, .000728, .846756, .770117)],
}


@pytest.fixture
def old(home, monkeypatch):
    "The run, unpacked, where runs are."
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(home, filter="data")
    monkeypatch.setenv("LADOS_RUNS", str(home / "runs"))
    settings.cache_clear()
    return find_run("old")


def lados(run, *words):
    "What a command prints, on a wide terminal."
    env = {**os.environ, "PYTHONPATH": str(ARCHIVE.parents[2]), "COLUMNS": "200"}
    done = subprocess.run([*LADOS, *map(str, words)], cwd=run.path.parent, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def images(run):
    return sorted((run.path.parents[1] / "toy").glob("*.png"))


def test_it_is_listed(old):
    assert [r.path.name for r in list_runs()] == ["20261126T134606Z-train-old"]
    line = next(line for line in lados(old, "runs").splitlines() if "20261126T134606Z-train-old" in line)
    assert "succeeded" in line


def test_it_is_compared_under_the_names_of_today(old):
    newer = old.path.parent / "20261127T000000Z-train-new"
    newer.mkdir()
    for name in ("run", "params"):
        write_json(newer / f"{name}.json", getattr(old, {"run": "info"}.get(name, name)))
    write_json(newer / "metrics.json", {**old.metrics, "views": {"official": {"images": 13}}})
    changed = run_differences([old, find_run(newer)])["metrics"]
    assert changed["views.official.images"] == [12, 13] and not any("picture" in name for name in changed)
    assert "views.official.images" in lados(old, "runs", "compare", "old", "new", "--all")


def test_every_file_of_the_run_is_read_in_todays_words(old):
    assert old.metrics["views"]["official"]["images"] == 12 and old.metrics["cost"]["images_per_s"] > 0
    assert load_manifest(old.path, check=False).meta["images"] == 48
    assert read_card(old.path / "bundle")["conformal"]["images"] == 7
    assert min(read_history(old.path / "history.csv")["images_per_s"]) > 0
    seen = list(read_events(old.path / "events.jsonl"))
    assert [e["images"] for e in seen if e["event"] in ("data", "start") and "images" in e] == [48, 34]
    assert all(e["images_per_s"] > 0 for e in seen if e["event"] == "epoch")


def test_a_training_of_that_version_can_go_on(tmp_path):
    "Its checkpoint holds the history so far."
    path = save_state(tmp_path / "last.safetensors", {}, {"keeper": {"history": [{"epoch": 0, "pictures_per_s": 9.5}]}})
    assert load_state(path)[1] == {"keeper": {"history": [{"epoch": 0, "images_per_s": 9.5}]}}


def test_what_was_proposed_then_is_read(old):
    write_json(old.path / "proposal.json", {"better": True, "pictures": 12})
    assert read_proposal(old) == {"better": True, "images": 12}


@pytest.mark.parametrize("engine", ANSWERS)
def test_it_answers_what_it_answered(old, engine):
    found = list(classify_files(Predictor.setup(old.path, engine), images(old)))
    answers = [([a.probabilities[c] for c in CLASSES], a.distance) for a in found]
    for (probabilities, distance), (*then, far) in zip(answers, ANSWERS[engine], strict=True):
        assert probabilities == pytest.approx(then, abs=1e-4)
        assert distance == pytest.approx(far, abs=1e-3), "a distance magnifies how processors round"
    assert not any(a.abstain for a in found)


def test_its_certificate_chooses_the_engines(old):
    bundle = old.path / "bundle"
    assert {"torch", "openvino"} <= set(certificate(bundle)) and {"torch", "openvino"} <= set(candidates(bundle))
    assert "openvino" in lados(old, "engines", "--run", "old")


@pytest.mark.parametrize("engine", ANSWERS)
def test_its_reference_images_are_compared(old, engine):
    "A bundle without any would pass unseen."
    reference = read_reference(old.path / "bundle")
    assert reference["images"].shape == (7, 32, 32, 3)
    off = check_engine(open_engine(old.path / "bundle", engine), reference, read_card(old.path / "bundle")["calibration"]["temperature"])
    assert 0 <= off < 1e-3
    assert math.isclose(Predictor.setup(old.path, engine).outlier["threshold"], certificate(old.path / "bundle")[engine]["outlier"]["threshold"])


def test_its_thresholds_are_used(old):
    strange = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    predictor = Predictor.setup(old.path, "openvino")
    probs, away = predictor.predict(strange[None])
    assert predictor.encode(probs[0], away[0]).unlike_training


def test_it_is_served(old):
    with serving(old.path.parents[1] / "service", old.path) as server:
        server.ready()
        found = server.predict(images(old)[0].read_bytes()).json()
        assert [found["probabilities"][c] for c in CLASSES] == pytest.approx(ANSWERS["openvino"][0][:6], abs=1e-4)
        noise = encoded(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8))
        assert server.predict(noise).json()["unlike_training"]
        assert server.get("/metrics").json()["training"]["test"]["images"] == 7
        assert server.get("/models").json()["served"] == old.path.name


@pytest.fixture
def queued(old):
    "A batch that was handed in before the change, its images in `pictures/`, and none of its parts done."
    with Batch.begin() as batch:
        for path in images(old):
            batch.file(path.name)
            batch.write(path.read_bytes())
        made = batch.seal("b")
    folder = made.rename(job_folder("0" * 32))
    (folder / "images").rename(folder / "pictures")
    names = folder / "list.jsonl"
    names.write_text(names.read_text().replace('"images/', '"pictures/'))
    params = {"bundle": str(old.path / "bundle"), "engine": "torch", "pictures": 3, "chunk": 16, "format": "csv"}
    return add_job(open_store(), "predict", params, "key", [("predict", 3), ("predict", 0)], job_id="0" * 32)[0]


def test_a_batch_that_waits_is_done(queued):
    folder = job_folder(queued.id)
    for number in (0, 1):
        run_task(open_store(), queued.id, number, "worker")
    assert get_job(open_store(), queued.id).state == "succeeded"
    assert pd.read_parquet(folder / "results.parquet")["predicted"].tolist() == ["oil", "ship", "background"]
    assert not (folder / "pictures").exists()


def test_images_that_strangers_have_sent_get_no_more_memory(queued, monkeypatch):
    monkeypatch.setenv("MAX_DECODE_MB", "16")
    settings.cache_clear()
    folder = job_folder(queued.id)
    sent = sorted((folder / "pictures").iterdir())
    sent[1].write_bytes(encoded(np.zeros((4000, 4000, 3), np.uint8)))
    for number in (0, 1):
        run_task(open_store(), queued.id, number, "worker")
    errors = pd.read_parquet(folder / "results.parquet")["error"].tolist()
    assert errors[1] and not errors[0] and not errors[2]


def test_an_onnx_network_has_whatever_name_for_its_input(tmp_path):
    mean = helper.make_node("ReduceMean", ["numbers"], ["logits"], axes=[1, 2], keepdims=0)
    nodes = [helper.make_node("Cast", ["pictures"], ["numbers"], to=TensorProto.FLOAT), mean,
             helper.make_node("Identity", ["logits"], ["embedding"]), helper.make_node("Identity", ["numbers"], ["grid"])]
    given = [helper.make_tensor_value_info("pictures", TensorProto.UINT8, ["n", 32, 32, 3])]
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("logits", "embedding", "grid")]
    (tmp_path / "onnx").mkdir()
    onnx.save(helper.make_model(helper.make_graph(nodes, "net", given, made), opset_imports=[helper.make_opsetid("", 17)], ir_version=10),
              tmp_path / "onnx" / "model.onnx")
    engine = ENGINES["onnxruntime"].open(tmp_path)
    logits, _ = engine.run(np.full((2, 32, 32, 3), 7, np.uint8))
    assert logits.tolist() == [[7, 7, 7]] * 2 and engine.grid(np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, 32, 32, 3)
