"Engines: that they agree, that damage is refused, that what is missing is said, and that serving needs no more than it says."

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import numpy as np
import pytest
from commands import refused
from serving import ROOT, Server, certify_only, colours, edit_card, make_run, runs, serving, wait_for
from toy import ROUNDING

from lados.core import DataError, RunError, ServeError, settings
from lados.data.manifest import load_manifest
from lados.files import read_json
from lados.labels import CLASSES
from lados.model.bundle import seal
from lados.serve.engines import ENGINES, candidates, certificate, choose_engine
from lados.serve.explain import explain, heat_png
from lados.serve.export import export_run
from lados.serve.predictor import Predictor

EXPORTED = ("torch", "onnxruntime", "openvino", "openvino-int8")


@pytest.fixture(autouse=True)
def _home(home):
    return home


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    "A copy of an exported run, for this module."
    return Path(shutil.copytree(runs() / "first", tmp_path_factory.mktemp("engines") / "first"))


@pytest.fixture
def bundle(first, tmp_path):
    "A bundle to break."
    return Path(shutil.copytree(first, tmp_path / "mine")) / "bundle"


@pytest.fixture(scope="module")
def images(first):
    "Validation images, as files."
    return [first / n for n in load_manifest(first).only("valid").frame["image"]]


@pytest.fixture(scope="module")
def service(first, tmp_path_factory):
    "A process with the torch engine, which evaluation uses; a vision transformer lies beside it."
    home = tmp_path_factory.mktemp("torch")
    shutil.copytree(first, home / "runs" / "first")
    make_run(home / "runs" / "vit", backbone="test_vit", size=160, epochs=0)
    server = Server(home, home / "runs" / "first", LADOS_ENGINE="torch", QUEUE_SIZE=8).ready()
    yield server
    server.stop()


def probabilities(predictor, files) -> np.ndarray:
    return predictor.predict(np.stack([predictor.decode(f) for f in files]))[0]


def said(answer) -> np.ndarray:
    return np.array([answer["probabilities"][c] for c in CLASSES])


# --- agreement


def test_engines_agree(first, images):
    truth = probabilities(Predictor.setup(first, "torch"), images)
    for name in ENGINES:
        if not certificate(first / "bundle").get(name, {}).get("passed") and name != "openvino-int8":
            continue
        other = Predictor.setup(first, name)
        found = probabilities(other, images)
        assert np.abs(found - truth).max() < {"openvino-int8": 0.3, "openvino-bf16": 0.1}.get(name, 1e-3 + ROUNDING), name
        assert (found.argmax(1) == truth.argmax(1)).mean() > 0.9, name
        one_by_one = np.concatenate([probabilities(other, [f]) for f in images[:3]])
        assert np.abs(one_by_one - found[:3]).max() < 0.02, "alone or together"
        shown = explain(other, other.decode(images[0]), "ship")
        assert shown.heat.shape == (32, 32) and heat_png(shown.heat)[:4] == b"\x89PNG"


def test_the_service_says_what_evaluation_says(service, first, images):
    "The same pixels, views, temperature and precision, from the file to the number."
    from lados.model.evaluate import evaluate_on, reevaluate
    from lados.model.inference import load_model

    model, manifest = load_model(first), load_manifest(first)
    _, table = reevaluate(model, manifest)
    _, whole, _ = evaluate_on(model, manifest.only("valid"))
    assert len(table) and len(whole) == len(images)
    for row in [*table.head(12).itertuples(), *whole.head(12).itertuples()]:
        data = (first / row.image).read_bytes()
        for answer in (service.predict(data).json(), service.post("/predict", content=data).json()):
            assert said(answer) == pytest.approx([getattr(row, f"p_{c}") for c in CLASSES], abs=2e-5 + ROUNDING)
            assert answer["label"] == row.predicted
    batch = service.post("/predict_batch", files=[("files", (f.name, f.read_bytes())) for f in images[:8]]).json()
    for row, answer in zip(whole.head(8).itertuples(), batch["results"], strict=True):
        assert said(answer) == pytest.approx([getattr(row, f"p_{c}") for c in CLASSES], abs=2e-5 + ROUNDING)


def test_a_transformer_is_served_and_explained(service):
    assert service.promote("vit", "torch").json()["model"] == "vit"
    try:
        answer = service.predict(colours(1)[0]).json()
        assert answer["model"] == "vit" and answer["prediction_set"] is None and answer["distance"] is None and not answer["abstain"]
        for label in (None, "ship"):
            heat = service.post("/explain", content=colours(1)[0], params={"label": label} if label else {})
            assert heat.status_code == 200 and heat.json()["label"] == (label or answer["label"]), heat.text
    finally:
        assert service.promote("first", "torch").status_code == 200


@pytest.mark.long
def test_mirrored_views_are_averaged_by_every_engine(tmp_path):
    run = make_run(tmp_path / "views", epochs=0, views=4)
    export_run(run, ["openvino"])
    torch, other = (Predictor.setup(run, e) for e in ("torch", "openvino"))
    rng = np.random.default_rng(0)
    seen = rng.integers(0, 255, (4, 32, 32, 3), np.uint8)
    assert np.abs(torch.predict(seen)[0] - other.predict(seen)[0]).max() < 1e-3
    for mirrored in (seen[:, :, ::-1], seen[:, ::-1], seen[:, ::-1, ::-1]):
        for predictor in (torch, other):
            assert np.abs(predictor.predict(np.ascontiguousarray(mirrored))[0] - predictor.predict(seen)[0]).max() < 1e-3
    assert heat_png(explain(other, seen[0]).heat)


# --- damage


@pytest.mark.parametrize(("engine", "file"), [
    ("torch", "model.safetensors"), ("openvino", "openvino/model.bin"), ("openvino", "openvino/model.xml"),
    ("openvino-int8", "openvino/int8.bin"), ("onnxruntime", "onnx/model.onnx"), ("openvino", "card.json"),
    ("openvino", "reference.safetensors"), ("auto", "parity.json"), ("openvino", "SHA256SUMS")])
def test_one_flipped_bit_is_refused_and_named(bundle, engine, file):
    path = bundle / file
    for where in (0.5, 0.98):
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[int(len(whole) * where)] ^= 1
        path.write_bytes(flipped)
        if file == "SHA256SUMS": # whichever line it hit, its file no longer fits
            hit = whole[:int(len(whole) * where)].count(b"\n")
            name = whole.splitlines()[hit].split()[1].decode()
            engine = next((n for n, k in ENGINES.items() if any(name.startswith(f) for f in k.files)), "openvino")
        with pytest.raises((RunError, ServeError)) as e:
            Predictor.setup(bundle, engine)
        assert "SHA-256" in e.value.problem or ("missing" in e.value.problem and file == "SHA256SUMS"), e.value
        assert "copy the bundle again" in e.value.remedy and (path.name in e.value.problem or file == "SHA256SUMS")
        path.write_bytes(whole)
    Predictor.setup(bundle, "openvino")


@pytest.mark.parametrize("name", ["model.safetensors", "openvino/model.bin", "SHA256SUMS"])
def test_a_missing_file_is_named(bundle, name):
    (bundle / name).unlink()
    with pytest.raises((RunError, ServeError)) as e:
        Predictor.setup(bundle, "torch" if name == "model.safetensors" else "openvino")
    assert Path(name).name in e.value.problem and e.value.remedy


def test_a_damaged_engine_is_left_out_and_others_serve(bundle, home):
    certify_only(bundle, "onnxruntime", "openvino", "openvino-int8")
    path = bundle / "onnx" / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    assert Predictor.setup(bundle, "auto").engine.name in ENGINES.keys() - {"onnxruntime"}
    kept = [read_json(p) for p in (home / "lados_home" / "engines").glob("*.json")]
    assert any("SHA-256" in k["onnxruntime"]["left_out"] for k in kept)


def test_bundles_of_other_versions_and_classes_are_refused(bundle):
    edit_card(bundle, format=99)
    with refused("other-version", "99") as e:
        Predictor.setup(bundle, "openvino")
    assert "the lados version that made it" in e.value.remedy
    edit_card(bundle, format=1, classes=list(CLASSES[::-1]))
    with pytest.raises(RunError, match="its classes are") as e:
        Predictor.setup(bundle, "openvino")
    assert "train the run anew" in e.value.remedy
    edit_card(bundle, classes=list(CLASSES), backbone="resnet9000")
    with refused("unknown-name", "resnet9000"):
        Predictor.setup(bundle, "torch")


def test_a_bundle_says_less_where_it_knows_less(bundle, images):
    whole = Predictor.setup(bundle, "openvino")
    truth = probabilities(whole, images[:4])
    edit_card(bundle, conformal=..., outlier=..., metrics=...)
    (bundle / "reference.safetensors").unlink()
    (bundle / "parity.json").unlink()
    seal(bundle)
    less = Predictor.setup(bundle, "openvino")
    assert probabilities(less, images[:4]) == pytest.approx(truth, abs=1e-6)
    answer = less.encode(*(a[0] for a in less.predict(less.decode(images[0])[None])))
    assert answer.prediction_set is None and answer.distance is None and not answer.abstain and not answer.unlike_training


def test_a_reference_that_someone_took_out_is_no_obstacle(bundle, tmp_path):
    "A bundle that must not carry images of its data: the file and its line in the list are deleted."
    (bundle / "reference.safetensors").unlink()
    lines = (bundle / "SHA256SUMS").read_text().splitlines(keepends=True)
    (bundle / "SHA256SUMS").write_text("".join(x for x in lines if "reference" not in x))
    with serving(tmp_path / "home", bundle) as server:
        answer = server.ready().predict(colours(1)[0]).json()
        assert answer["distance"] is None and answer["prediction_set"]
        assert server.get("/metrics").json()["inference"]["recent"]["drift_score"] is None


# --- exports


def test_a_run_without_validation_images_is_certified_and_promises_no_sets(bundle):
    manifest = load_manifest(bundle.parent)
    manifest.frame["split"] = "train"
    manifest.save(bundle.parent)
    entry = export_run(bundle.parent, [])["engines"]["openvino"]
    assert entry["passed"] and entry["agreement"] == 1, "agreement needs no image that was not learned"
    answer = Predictor.setup(bundle, "openvino").encode(np.full(6, 1 / 6))
    assert answer.prediction_set is None and "no validation images" in answer.no_set


def test_calibration_images_of_one_class_are_refused(bundle):
    frame = load_manifest(bundle.parent).frame
    manifest = load_manifest(bundle.parent)
    manifest.frame = frame[(frame["split"] != "train") | (frame["label"] == "oil")].reset_index(drop=True)
    manifest.save(bundle.parent)
    with pytest.raises(DataError, match="all oil") as e:
        export_run(bundle.parent, ["openvino-int8"])
    assert "two classes" in e.value.remedy


def test_a_quantisation_that_fails_is_written_marked_and_not_chosen(bundle):
    "It fails because it is that of another network."
    other = runs() / "second" / "bundle" / "openvino"
    for end in (".xml", ".bin"):
        shutil.copy((other / "model").with_suffix(end), (bundle / "openvino" / "int8").with_suffix(end))
    seal(bundle)
    told = []
    found = export_run(bundle.parent, [], told.append)
    entry = found["engines"]["openvino-int8"]
    assert not entry["passed"] and any("macro-F1" in f or "recall" in f for f in entry["failed"]) and found["engines"]["openvino"]["passed"]
    assert any(line.startswith("openvino-int8 FAILED") for line in told)
    assert (bundle / "openvino" / "int8.xml").exists() and "openvino-int8" not in candidates(bundle)
    certify_only(bundle, "openvino", "openvino-int8")
    assert choose_engine(bundle) == "openvino", "it is the only one left"


def test_an_engine_that_answers_otherwise_here_is_refused(bundle):
    "The certificate is kept, and the processor computes something else: here, another network's weights, properly sealed."
    for end in (".xml", ".bin"):
        shutil.copy(runs() / "second" / "bundle" / "openvino" / f"model{end}", bundle / "openvino" / f"model{end}")
    certify_only(bundle, "onnxruntime", "openvino")
    with refused("engine-uncertified") as e:
        Predictor.setup(bundle, "openvino")
    assert "--engine auto" in e.value.remedy
    assert Predictor.setup(bundle, "auto").engine.name == "onnxruntime"


def test_engines_that_were_not_exported_or_do_not_exist_are_said(tmp_path):
    with refused("engine-unavailable", "not exported") as e:
        Predictor.setup(runs() / "second", "onnxruntime")
    assert "lados export" in e.value.remedy
    with refused("unknown-name", "'openvno'") as e:
        Predictor.setup(runs() / "second", "openvno")
    assert "'openvino'" in e.value.remedy


# --- what serving needs


def environment_without(folder, *packages) -> str:
    "An interpreter that has everything that this one has, but for some packages."
    venv.create(folder, with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        name = path.name.lower().split(".")[0].partition("-")[0]
        if path.suffix != ".pth" and name not in packages:
            (site / path.name).symlink_to(path)
    return str(folder / "bin" / "python")


TRAINING = ("torch", "torchgen", "functorch", "torchvision", "timm", "fastai", "fastcore", "matplotlib", "nncf", "papermill", "ipython",
            "scikit_learn", "sklearn", "pandas", "onnx", "onnxscript")


def test_an_openvino_bundle_is_served_without_torch(tmp_path, images):
    "And without anything else of training, in a process that could not import it."
    python = environment_without(tmp_path / "slim", *TRAINING)
    assert subprocess.run([python, "-c", "import torch"], capture_output=True).returncode
    truth = probabilities(Predictor.setup(runs() / "first", "openvino"), images[:3])
    with serving(tmp_path / "home", runs() / "first", python=python, LADOS_ENGINE="openvino") as server:
        server.ready()
        for path, expected in zip(images[:3], truth, strict=True):
            assert said(server.predict(path.read_bytes()).json()) == pytest.approx(expected, abs=1e-4)
        assert server.post("/explain", content=images[0].read_bytes()).status_code == 200
        assert server.get("/docs").status_code == server.get("/metrics").status_code == server.get("/models").status_code == 200


def test_an_engine_that_is_not_installed_is_said_and_auto_does_without(tmp_path):
    python = environment_without(tmp_path / "slim", "openvino", "torch", "torchvision", "timm")
    with serving(tmp_path / "home", runs() / "first", python=python, LADOS_ENGINE="openvino") as server:
        wait_for(lambda: "openvino is not installed" in server.alive().get("/ready").text, 30, server)
        assert server.get("/ready").status_code == 503 and "pip install openvino" in server.get("/ready").json()["remedy"]
        answer = server.promote("first", "openvino")
        assert answer.status_code == 409 and "not installed" in answer.json()["detail"]
        assert server.promote("first", "auto").json()["engine"] == "onnxruntime"


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_an_engine_computes_with_the_threads_it_is_given(first, engine):
    code = ("import sys, os, numpy as np; from lados.serve.predictor import Predictor; import time\n"
            "p = Predictor.setup(sys.argv[1], sys.argv[2]); x = np.zeros((8, 32, 32, 3), np.uint8)\n"
            "w, c = time.perf_counter(), time.process_time()\nfor _ in range(60): p.predict(x)\n"
            "print((time.process_time() - c) / (time.perf_counter() - w))")
    import os

    env = {**os.environ, "LADOS_THREADS": "1"}
    used = float(subprocess.run([sys.executable, "-c", code, str(first), engine], env=env, capture_output=True, text=True, check=True).stdout)
    assert used < 1.5


def test_settings_of_serving_are_read_from_the_environment(monkeypatch):
    for name, value in (("MAX_UPLOAD_SIZE_MB", "0"), ("DEADLINE_S", "-1"), ("QUEUE_SIZE", "none"), ("BATCH_JOB_THRESHOLD", "0")):
        monkeypatch.setenv(name, value)
        settings.cache_clear()
        with refused("environment-invalid", name):
            settings()
        monkeypatch.delenv(name)
    settings.cache_clear()


@pytest.mark.parametrize("package", ["onnxruntime", "openvino"])
def test_engines_keep_and_send_nothing_about_their_user(package, tmp_path):
    "An identifier, a store of events: nothing of it appears in the home folder."
    code = f"import lados.serve.predictor, {package}"
    env = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env={k: v for k, v in env.items() if k != "ORT_DISABLE_TELEMETRY"}, cwd=tmp_path, check=True)
    assert [p for p in tmp_path.rglob("*") if p.is_file() and "atplotlib" not in str(p)] == []
