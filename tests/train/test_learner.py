"The Learner is fastai's: what its users know works on it, and nothing is pickled."

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from commands import refused
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.tracker import SaveModelCallback
from fastai.callback.training import GradientClip
from fastai.data.core import DataLoaders
from fastai.interpret import ClassificationInterpretation
from fastai.learner import Learner
from PIL import Image
from toy import TINY, tiny, toy, toy_manifest

from lados.core import ConfigError, DataError
from lados.model.bundle import find_bundle
from lados.model.evaluate import reevaluate
from lados.model.inference import load_bundle
from lados.model.interactive import learner
from lados.model.train import train
from lados.runs.folders import Run

plt.switch_backend("agg")
PRESET = {k: v for k, v in TINY.items() if k not in ("epochs", "patience")}


@pytest.fixture
def data(home):
    torch.set_num_threads(1)
    return toy(home / "toy")


@pytest.fixture
def learn(data, tmp_path):
    with (made := learner(data, "demo", path=tmp_path, **PRESET)).no_bar(), made.no_logging():
        yield made
    plt.close("all")


def drawn():
    "Titles of the images in the newest figure."
    return [a.get_title() for a in plt.gcf().axes if a.images]


def test_it_is_a_learner_over_dataloaders(learn):
    assert isinstance(learn, Learner) and isinstance(learn.dls, DataLoaders)
    assert learn.dls.c == 6 and list(learn.dls.vocab) == list(learn.data.label_set.names)
    image, category = learn.dls.train_ds[0]
    assert isinstance(image, Image.Image) and learn.dls.vocab[category] == learn.data.manifest.frame["label"][0]


def test_a_batch_is_shown_with_its_labels(learn):
    learn.dls.show_batch(max_n=4)
    assert len(drawn()) == 4 and set(drawn()) <= {"oil", "ship", "background"}


def test_fine_tuning_learns(learn):
    learn.fine_tune(8, 0.02)
    _, macro_f1, accuracy = learn.validate()
    assert accuracy == 1 and macro_f1 == 1
    assert [m.name for m in learn.metrics] == ["macro_f1", "accuracy"]


def test_freezing_leaves_the_head(learn):
    learn.freeze()
    before = {n: p.clone() for n, p in learn.model.named_parameters()}
    learn.fit_one_cycle(1, 0.01)
    moved = {n: p.ndim for n, p in learn.model.named_parameters() if not p.equal(before[n])}
    assert {"fc.weight", "fc.bias"} <= moved.keys() and 4 not in moved.values(), "of the body fastai trains the norms only"


def test_results_and_mistakes_are_shown(learn):
    learn.fit(1)
    learn.show_results(max_n=3)
    assert len(drawn()) == 3 and all("\n" in t for t in drawn()), "truth and answer"
    found = ClassificationInterpretation.from_learner(learn)
    found.plot_top_losses(4)
    assert len(drawn()) == 4 and all(t.count("/") == 3 for t in drawn())
    found.plot_confusion_matrix()
    assert plt.gca().get_ylabel() == "Actual" and found.confusion_matrix().sum() == len(learn.data.rows("valid"))


def test_looking_for_a_rate_changes_nothing(learn, tmp_path):
    learn.fit(1)
    weights, state = learn.model.state_dict()["fc.weight"].clone(), str(learn.opt.state_dict())
    order = learn.dls.train.get_idxs()
    found = learn.lr_find(num_it=30)
    assert 1e-7 < found.valley < 10 and plt.gca().get_xlabel() == "Learning Rate"
    assert weights.equal(learn.model.state_dict()["fc.weight"]) and str(learn.opt.state_dict()) == state
    assert learn.dls.train.get_idxs() == order and not (tmp_path / "models").exists()


def test_predictions_agree_however_they_are_asked_for(learn):
    learn.fit(1)
    probs, truth = learn.get_preds()
    rows, paths = learn.data.rows("valid"), learn.data.manifest.paths
    assert truth.tolist() == learn.data.labels[rows].tolist() and torch.allclose(probs.sum(1), torch.ones(len(rows)))
    path = paths[rows[2]]
    for item in (path, str(path), path.read_bytes(), np.asarray(Image.open(path)), Image.open(path)):
        label, index, each = learn.predict(item)
        assert torch.allclose(each, probs[2], atol=1e-5) and label == learn.dls.vocab[index]
    several, _ = learn.get_preds(dl=learn.dls.test_dl([paths[i] for i in rows]))
    assert torch.allclose(several, probs, atol=1e-5)
    mirrored, _ = learn.get_preds(ds_idx=0, reorder=True)
    assert len(mirrored) == len(learn.data.rows("train"))


def test_callbacks_of_ones_own_run(learn):
    class Stop(Callback):
        def after_batch(self):
            self.seen = getattr(self, "seen", 0) + 1
            if self.seen == 2:
                raise CancelFitException

    learn.add_cb(Stop())
    learn.fit(3)
    assert learn.stop.seen == 2


def test_the_steps_of_a_preset_are_fastais(data):
    made = learner(data, "demo", **PRESET | {"precision": "bf16", "mixup": 0.2, "cutmix": 1.0, "accumulate": 2, "clip": 0.5})
    kinds = (MixedPrecision, MixUp, CutMix, GradientClip)
    assert all(any(isinstance(c, k) for c in made.cbs) for k in kinds) and made.gradient_clip.max_norm == 0.5
    with made.no_bar(), made.no_logging():
        made.fit(1)
    assert np.isfinite(made.recorder.values[0]).all()


def test_saved_is_loaded_and_nothing_is_pickled(learn, tmp_path):
    learn.fit(1)
    file = learn.save("one")
    then, state = learn.model.state_dict()["fc.weight"].clone(), str(learn.opt.state_dict())
    learn.fit(1, cbs=SaveModelCallback(monitor="accuracy", fname="best"))
    learn.load("one")
    assert then.equal(learn.model.state_dict()["fc.weight"]) and str(learn.opt.state_dict()) == state
    assert {p.suffix for p in tmp_path.rglob("models/*")} == {".safetensors"} and file.parent == tmp_path / "models"
    with refused("checkpoint-not-found"):
        learn.load("two")


def test_export_writes_a_bundle_and_says_so(learn, capsys):
    learn.fine_tune(4, 0.02)
    folder = learn.export("export.pkl")
    assert "bundle" in capsys.readouterr().out and Run(folder).state == "succeeded"
    assert not list(folder.rglob("*.pkl"))
    model, scores = load_bundle(folder), Run(folder).metrics
    probs, _ = learn.get_preds()
    x = torch.stack([torch.from_numpy(learn.data.plain[i]) for i in learn.data.rows("valid")])
    with torch.no_grad():
        assert torch.allclose(model.net.cpu()(model.prep(x)).softmax(1), probs, atol=1e-3)
    again, _ = reevaluate(model, learn.data.manifest)
    assert again["group-safe"]["images"] == scores["views"]["group-safe"]["images"] and scores["test"]["macro_f1"] is not None
    assert (find_bundle(folder) / "reference.safetensors").exists() and scores["test"]["images"] == 6


def test_a_learner_and_a_run_learn_from_the_same_batches(data):
    made = learner(data, "demo", **PRESET)
    params = tiny(augment="none")
    own = torch.cat([x for x, _ in made.dls.train])
    assert own.shape == (24, 3, 32, 32) and train(params, data).history["accuracy"].iloc[-1] == 1


def test_a_manifest_is_split_and_decoded(home):
    made = learner(toy_manifest(home / "toy"), "demo", **PRESET)
    parts = [set(made.data.rows(s)) for s in ("train", "valid", "test")]
    assert sum(map(len, parts)) == 36 and all(parts)


def test_what_cannot_be_shown_is_refused(home, data):
    whole = data.with_splits(np.full(len(data.labels), "train"))
    with pytest.raises(DataError, match="no validation images"):
        learner(whole, "demo", **PRESET)
    with pytest.raises(ConfigError, match="decoded at 32 pixels, the network sees 64"):
        learner(data, "demo", **PRESET | {"size": 64})
    with refused("unknown-name", "'resnet50'"):
        learner(data, "resnet05")


def test_a_frozen_norm_stays_while_the_body_is_frozen(data):
    made = learner(data, "demo", **PRESET | {"freeze_bn": True})
    made.freeze()
    before = {k: v.clone() for k, v in made.model.state_dict().items() if "running" in k}
    with made.no_bar(), made.no_logging():
        made.fit(1)
    assert before and all(v.equal(made.model.state_dict()[k]) for k, v in before.items())
