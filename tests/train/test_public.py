"What `import lados` offers: all of it in one go on a tiny dataset, and what a name takes."

import ast
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from commands import refused
from PIL import Image
from serving import serving

import lados
from lados.core import ConfigError, ImageError, settings
from lados.labels import LADOS
from lados.public import NAMES

TINY = {"backbone": "test_resnet", "size": 32, "cache_size": 32, "batch_size": 8, "precision": "fp32"}


@pytest.fixture(scope="module")
def afternoon(sample, tmp_path_factory):
    "A folder of images to a model, by public names only; what came on the way."
    root, before = tmp_path_factory.mktemp("afternoon"), dict(os.environ)
    os.environ |= {"LADOS_HOME": str(root / "home"), "LADOS_RUNS": str(root / "runs"), "LADOS_THREADS": "1", "OMP_NUM_THREADS": "1"}
    settings.cache_clear()
    seen, lines = {"root": root}, []
    seen["manifest"] = lados.import_dataset(sample, label_set=lados.label_set())
    seen["audit"] = lados.audit(seen["manifest"])
    with warnings.catch_warnings(record=True) as seen["warned"]:
        warnings.simplefilter("always")
        seen["split"] = lados.split(seen["manifest"], fractions=(0.5, 0.25, 0.25))
    seen["learn"] = lados.learner(seen["split"], "demo", **TINY)
    seen["run"] = lados.train(seen["split"], "demo", name="tiny", tell=lines.append, epochs=2, audit=False, **TINY)
    seen["scores"], seen["answers"] = lados.evaluate(seen["run"])
    seen["parity"] = lados.export(seen["run"], ["torchscript"], tell=lines.append)
    seen["model"], seen["lines"] = lados.load(seen["run"], "torch"), lines
    yield seen
    os.environ.clear()
    os.environ.update(before)
    settings.cache_clear()


def test_all_names_in_one_go(afternoon):
    file = afternoon["manifest"].paths[0]
    answer = afternoon["model"].predict(file)
    with serving(afternoon["root"] / "service", afternoon["run"].path, LADOS_ENGINE="torch") as server:
        server.ready()
        served = lados.Client(server.url).predict(file)
    assert served["label"] == answer.label and served["confidence"] == pytest.approx(answer.confidence, abs=0.02)
    assert isinstance(afternoon["learn"].data, lados.Dataset)
    assert len(afternoon["audit"].leaks) > 0 and not len(lados.audit(afternoon["split"]).leaks)
    assert any("too few images for a reliable score" in str(w.message) for w in afternoon["warned"]), "as the command says"
    assert afternoon["run"].state == "succeeded"
    assert afternoon["parity"]["engines"]["torch"]["max_difference"] < 0.01 # after two epochs two classes may be as likely
    assert [line.split(":")[0] for line in afternoon["lines"][:2]] == ["epoch 1 of 2", "epoch 2 of 2"]
    assert len(afternoon["answers"]) == afternoon["scores"]["group-safe"]["images"]


def test_a_model_takes_what_one_has(afternoon, tmp_path):
    model, files = afternoon["model"], afternoon["manifest"].paths[:3]
    whole = Image.open(files[0])
    answers = [model.predict(x) for x in (files[0], str(files[0]), files[0].read_bytes())]
    assert answers[0] == answers[1] == answers[2]
    assert model.predict(whole).label == model.predict(np.asarray(whole)).label
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    table = model.predict([*files, tmp_path / "bad.jpg"])
    assert table["predicted"][0] == answers[0].label and list(table["error"] != "") == [False, False, False, True]
    assert list(model.predict([whole])["image"]) == ["image 0"] and len(model.predict(files[0].parent)) >= 3
    with pytest.raises(ImageError):
        model.predict(tmp_path / "bad.jpg")
    with pytest.raises(ConfigError, match="is not an image"):
        model.predict(np.zeros((4, 4, 3)))
    heat = model.explain(files[0], "oil")
    assert heat.label == "oil" and heat.heat.shape == (32, 32)


def test_a_run_is_named_in_any_way(afternoon):
    run = afternoon["run"]
    models = [lados.load(x, "torch") for x in ("latest", run.path.name, run.path, str(run.path), run.path / "bundle")]
    assert {repr(m) for m in models} == {repr(afternoon["model"])} and "oil_platform" in repr(models[0])
    with refused("run-not-found"):
        lados.load("yesterday")


def test_others_images_are_scored_with_a_warning_where_they_were_learned(afternoon):
    with pytest.warns(UserWarning, match="^learned: "):
        scores, answers = lados.evaluate(afternoon["run"], afternoon["split"], split="train")
    assert scores["images"] == len(answers) == len(afternoon["split"].only("train"))


def test_a_label_set_comes_from_anything_that_names_classes(afternoon, tmp_path):
    (tmp_path / "label_set.yaml").write_text("classes: [kelp, foam]")
    assert lados.label_set() is LADOS and lados.label_set("lados") is LADOS
    for source in (["kelp", "foam"], {"classes": ["kelp", "foam"]}, tmp_path, tmp_path / "label_set.yaml", lados.label_set(["kelp", "foam"])):
        assert lados.label_set(source).names == ("kelp", "foam")
    for source in (afternoon["model"], afternoon["manifest"], afternoon["learn"].data):
        assert lados.label_set(source).names == LADOS.names


def test_names_are_there_for_people_editors_and_nobody_else():
    source = Path(lados.__file__).read_text(encoding="utf-8")
    shown = next(n for n in ast.parse(source).body if isinstance(n, ast.If)) # TYPE_CHECKING
    named = {a.name: f"lados.{n.module}" for n in shown.body for a in n.names}
    assert named == NAMES and sorted(lados.__all__) == sorted(NAMES) and set(NAMES) <= set(dir(lados))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        lados.trian  # noqa: B018
    assert all(getattr(lados, name).__doc__ for name in NAMES)


def test_a_name_loads_what_it_needs_and_no_more():
    code = "import lados, sys; lados.label_set(); print(*sorted({'torch', 'pandas', 'numpy', 'fastai', 'httpx'} & set(sys.modules)))"
    env = {**os.environ, "PYTHONPATH": str(Path(lados.__file__).parents[1])}
    assert not subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout.split()
