"""Scores against scikit-learn on random cases, and what the cluster bootstrap promises."""

import json
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from lados.core import DataError
from lados.data.manifest import Manifest, source_stem
from lados.files import to_json
from lados.labels import CLASSES, LADOS
from lados.model.metrics import cluster_bootstrap, confusion_figures, multilabel_scores, scores
from lados.model.test_sets import evaluate_test_sets, rows_to_score
from lados.model.uncertainty import apply_temperature, fit_temperature, reliability, softmax

NAMES = ("oil", "emulsion", "oil_platform", "sheen", "ship", "background")


def random_case(seed: int) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    "Few or many images, some classes absent, some probabilities tied, float32 or float64."
    rng = np.random.default_rng(seed)
    n, k = int(rng.integers(1, 80)), int(rng.integers(2, 7))
    y = rng.choice(rng.choice(k, size=int(rng.integers(1, k + 1)), replace=False), size=n)
    logits = np.round(rng.normal(0, 2, (n, k)) + rng.uniform(0, 3) * np.eye(k)[y], int(rng.integers(0, 4)))
    return y, softmax(logits).astype([np.float32, np.float64][seed % 2]), NAMES[:k]


def test_figures_of_a_small_case_by_hand():
    "Six images of three classes, and a fourth that neither truth nor answers have."
    y = [0, 0, 0, 1, 1, 2]
    p = [[.7, .1, .1, .1], [.4, .3, .2, .1], [.3, .5, .1, .1], [.1, .6, .2, .1], [.2, .2, .5, .1], [.1, .1, .7, .1]]
    found = scores(y, p, NAMES[:4], n_boot=20)
    assert found["confusion"] == [[2, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    figures = [found[k] for k in ("accuracy", "macro_f1", "balanced_accuracy", "log_loss", "brier")]
    log_loss = -math.log(.7 * .4 * .3 * .6 * .2 * .7) / 6
    assert figures == pytest.approx([4 / 6, (.8 + .5 + 2 / 3) / 3, (2 / 3 + 1 / 2 + 1) / 3, log_loss, 2.66 / 6])
    rows = [[e[c] for c in ("precision", "recall", "f1", "support", "ap")] for e in found["per_class"].values()]
    assert rows[0] == pytest.approx([1, 2 / 3, .8, 3, 1]) and rows[1] == pytest.approx([.5, .5, .5, 2, .75])
    assert rows[2] == pytest.approx([.5, 1, 2 / 3, 1, 1]) and rows[3] == [0, 0, 0, 0, None]
    assert json.loads(to_json(found)) == found, "plain numbers only"


@pytest.mark.parametrize("seed", range(10))
def test_what_is_computed_here_equals_scikit_learn(seed):
    "Only figures that are not scikit-learn's to begin with; those of a class, average precision and log loss are."
    y, p, names = random_case(seed)
    found, said, k = scores(y, p, names, n_boot=20), p.argmax(1), len(names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert found["accuracy"] == sk.accuracy_score(y, said)
        assert found["macro_f1"] == sk.f1_score(y, said, average="macro", zero_division=0)
        assert found["balanced_accuracy"] == sk.balanced_accuracy_score(y, said)
        assert found["brier"] == sk.brier_score_loss(y, p, labels=range(k), scale_by_half=False)
    assert found["confusion"] == sk.confusion_matrix(y, said, labels=range(k)).tolist()
    assert all(e["reliable"] == ((y == i).sum() >= 10) for i, e in enumerate(found["per_class"].values()))


def test_multilabel_figures_of_a_small_case_by_hand():
    truth, p = [[1, 0], [1, 1], [0, 1], [0, 0]], [[.9, .2], [.4, .8], [.6, .7], [.1, .3]]
    found = multilabel_scores(truth, p, NAMES[:2], n_boot=20)
    assert [found[k] for k in ("exact", "macro_f1", "macro_ap")] == pytest.approx([.5, .75, (5 / 6 + 1) / 2])
    rows = [[e[c] for c in ("precision", "recall", "f1", "support", "ap")] for e in found["per_class"].values()]
    assert rows[0] == pytest.approx([.5, .5, .5, 2, 5 / 6]) and rows[1] == pytest.approx([1, 1, 1, 2, 1])


@pytest.mark.parametrize("seed", range(10))
def test_multilabel_macro_f1_equals_scikit_learn(seed):
    "Over the classes that truth or answers have."
    rng = np.random.default_rng(seed)
    n, k = int(rng.integers(1, 60)), int(rng.integers(2, 7))
    truth = rng.random((n, k)) < rng.uniform(0.02, 0.6)
    p = np.clip(np.round(0.4 * truth + rng.random((n, k)) * 0.7, 2), 0, 1)
    found, said = multilabel_scores(truth, p, NAMES[:k], n_boot=20), p >= 0.5
    seen = np.flatnonzero(truth.any(0) | said.any(0))
    assert found["macro_f1"] == (sk.f1_score(truth, said, labels=seen, average="macro", zero_division=0) if len(seen) else 0)


@pytest.mark.parametrize("seed", range(20))
def test_resampled_figures_equal_scikit_learn_on_the_resample(seed):
    "The matrix product gives what one would get by really copying images together."
    y, p, names = random_case(seed + 1000)
    k, said = len(names), p.argmax(1)
    groups = np.random.default_rng(seed).integers(0, 8, len(y))
    drawn = np.random.default_rng(seed).choice(np.unique(groups), size=len(np.unique(groups)))
    rows = np.concatenate([np.flatnonzero(groups == g) for g in drawn])
    cm = sk.confusion_matrix(y[rows], said[rows], labels=range(k))
    figures = confusion_figures(cm.reshape(1, -1).astype(float), k)[0]
    assert figures[0] == pytest.approx(sk.accuracy_score(y[rows], said[rows]), abs=1e-12)
    assert figures[1] == pytest.approx(sk.f1_score(y[rows], said[rows], average="macro", zero_division=0), abs=1e-12)
    p_r_f = np.concatenate(sk.precision_recall_fscore_support(y[rows], said[rows], labels=range(k), zero_division=0)[:3])
    there = np.tile(np.isin(range(k), y[rows]), 3)
    assert figures[2:][there] == pytest.approx(p_r_f[there], abs=1e-12) and np.isnan(figures[2:][~there]).all()


def correlated(rng: np.random.Generator, groups: int = 40, each: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    "Truth, probabilities and groups of a model that is right on most of a photograph's crops or on few of them."
    right = rng.random(groups * each) < np.repeat(rng.beta(0.7, 0.3, groups), each)
    y = np.repeat(rng.integers(0, 2, groups), each)
    return y, np.eye(2)[np.where(right, y, 1 - y)], np.repeat(np.arange(groups), each)


def test_intervals_over_groups_are_wider_where_crops_agree():
    y, p, g = correlated(np.random.default_rng(0))
    width = {unit: np.ptp(scores(y, p, NAMES[:2], groups)["intervals"]["accuracy"])
             for unit, groups in (("groups", g), ("images", None))}
    assert width["groups"] > 1.5 * width["images"]


def test_intervals_over_groups_cover_the_truth_and_those_over_images_do_not():
    "Expected accuracy is 0.7; 95 % intervals should hold it about that often."
    held = {"groups": 0, "images": 0}
    for seed in range(200):
        y, p, g = correlated(np.random.default_rng(seed))
        for unit, groups in (("groups", g), ("images", None)):
            low, high = scores(y, p, NAMES[:2], groups, n_boot=300, seed=seed)["intervals"]["accuracy"]
            held[unit] += low <= 0.7 <= high
    assert 0.88 <= held["groups"] / 200 <= 0.99
    assert held["images"] / 200 < 0.80


@pytest.mark.parametrize("right", [1.0, 0.95])
@pytest.mark.parametrize("whole", [True, False], ids=["frames of a flight are right together", "frames are right by themselves"])
def test_intervals_from_few_groups_cover_the_truth_at_the_edge(right, whole):
    "Nine flights of three frames, three classes: most samples hold no mistake at all."
    rng, y, g = np.random.default_rng(0), np.repeat(np.arange(9) % 3, 3), np.repeat(np.arange(9), 3)
    held = []
    for seed in range(60):
        hit = np.repeat(rng.random(9) < right, 3) if whole else rng.random(27) < right
        found = scores(y, np.eye(3)[np.where(hit, y, (y + rng.integers(1, 3, 27)) % 3)], NAMES[:3], g, n_boot=200, seed=seed)
        ends = [found["intervals"]["accuracy"], *(found["per_class"]["oil"]["intervals"][m] for m in ("recall", "precision"))]
        held.append([low <= right <= high for low, high in ends])
        assert all(high - low > 0.1 for low, high in ends), "nobody can be certain after nine flights"
    assert np.mean(held, 0).min() >= 0.9, np.mean(held, 0)


def test_same_seed_same_figures_whatever_the_order():
    y, p, g = correlated(np.random.default_rng(3))
    order = np.random.default_rng(4).permutation(len(y))
    first = scores(y, p, NAMES[:2], g)
    assert first == scores(y, p, NAMES[:2], g)
    moved = scores(y[order], p[order], NAMES[:2], np.array([f"photo-{x}" for x in -g])[order])
    assert moved["intervals"] == first["intervals"] and moved["per_class"] == first["per_class"]
    assert scores(y, p, NAMES[:2], g, seed=1)["intervals"] != first["intervals"]


def test_many_groups_stay_small_and_quick():
    n = 100_000
    rng = np.random.default_rng(0)
    draws = cluster_bootstrap(np.eye(36)[rng.integers(0, 36, n)], np.arange(n), lambda c: c[:, :1] / n, n_boot=2000)
    assert draws.shape == (2000, 1) and abs(draws.mean() - 1 / 36) < 1e-3


BAD = {
    "empty": ([], np.zeros((0, 2)), None, "no images"),
    "nan": ([0, 1], [[0.5, 0.5], [np.nan, 1.0]], None, "row 1"),
    "logits": ([0], [[3.0, -1.0]], None, "sum to 1"),
    "unknown class": ([2], [[0.5, 0.5]], None, "class indices"),
    "names for indices": (["oil"], [[0.5, 0.5]], None, "class indices"),
    "shape": ([0, 1], [[0.5, 0.5]], None, "shape"),
    "groups": ([0, 1], [[0.5, 0.5]] * 2, ["a"], "source groups"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(case):
    y, p, groups, words = BAD[case]
    with pytest.raises(DataError, match=words) as e:
        scores(np.array(y, dtype=int) if not y or isinstance(y[0], int) else y, p, NAMES[:2], groups)
    assert e.value.remedy


def test_small_and_lopsided_sets():
    one = scores([1], [[0.2, 0.8]], NAMES[:2])
    assert one["accuracy"] == 1 and one["intervals"] == {"accuracy": None, "macro_f1": None} and "one image" in one["reason"]
    alone = scores([0, 1, 1], [[0.5, 0.5]] * 3, NAMES[:2], ["a"] * 3)
    assert alone["confusion"] == [[1, 0], [2, 0]], "a tie is answered with the first class"
    assert alone["intervals"]["macro_f1"] is None and "one source group" in alone["reason"]
    assert [c["groups"] for c in alone["per_class"].values()] == [1, 1], "as where there are intervals"
    assert scores([0, 0], [[1.0], [1.0]], NAMES[:1])["log_loss"] == 0
    absent = scores([0] * 12, np.tile([0.6, 0.4], (12, 1)), NAMES[:2])["per_class"]
    assert absent["emulsion"]["ap"] is None and not absent["emulsion"]["reliable"] and absent["oil"]["reliable"]


def test_temperature_is_the_most_likely_one():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        n = int(rng.choice([3, 30, 300]))
        z = rng.normal(0, rng.uniform(0.5, 6), (n, 5)) * 3
        y = np.array([rng.choice(5, p=q) for q in softmax(z / rng.uniform(0.4, 8))])
        t = fit_temperature(z, y)
        loss = [n * sk.log_loss(y, apply_temperature(z, x), labels=range(5)) + 1 / x - 1 + np.log(x)
                for x in (t, t * 1.01, t / 1.01)]
        assert loss[0] == min(loss)


@pytest.mark.parametrize("n", [1, 6])
def test_a_few_perfect_answers_do_not_make_it_sure_of_everything(n):
    logits = np.random.default_rng(0).normal(0, 0.3, (n, 6)) # a model that knows next to nothing, and was lucky
    assert apply_temperature(logits, fit_temperature(logits, logits.argmax(1))).max(1).mean() < 0.5


def test_expected_calibration_error_by_hand():
    rng = np.random.default_rng(0)
    p, y = softmax(rng.normal(0, 2, (300, 4))), rng.integers(0, 4, 300)
    confidence, right, ece = p.max(1), p.argmax(1) == y, 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            ece += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    assert reliability(p, y)["ece"] == pytest.approx(ece, abs=1e-12)


def test_calibration_imports_nothing_heavy():
    "A serving process imports it."
    heavy = "{'torch', 'scipy', 'sklearn', 'pandas', 'matplotlib', 'fastai'}"
    code = f"import sys, lados.model.uncertainty; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def shared(folder: str) -> Path:
    "A folder of the development material, or a skip that says what is missing."
    root = Path(os.environ.get("LADOS_SHARED_DATA") or Path(__file__).resolve().parents[3] / "shared/data")
    if not (root / folder).is_dir():
        pytest.skip(f"{root / folder} is absent: set LADOS_SHARED_DATA")
    return root / folder


def test_views_of_the_real_names():
    "A model that looks names up gets the lookup baseline's score, and nothing of it on the leak-free part."
    folder = shared("lados_names")
    table = pd.concat([pd.read_csv(folder / f"{s}.csv").assign(split=s.replace("val", "valid")) for s in ("train", "val", "test")])
    frame = pd.DataFrame({"image": table["image_path"], "split": table["split"], "label": table["class"].map(LADOS.canonical)})
    frame["source_group"] = [source_stem(Path(i).name) for i in frame["image"]]
    manifest = Manifest(frame, ".")
    rows, classes = rows_to_score(manifest), CLASSES
    train = manifest.frame[manifest.frame["split"] == "train"]
    counts = pd.crosstab(train["source_group"], train["label"]).reindex(columns=classes, fill_value=0)
    known = counts.reindex(manifest.frame["source_group"][rows]).fillna(0).to_numpy() + 1e-6 * (np.array(classes) == "oil")
    views = evaluate_test_sets(manifest, known / known.sum(1, keepdims=True), classes, n_boot=200)
    official, clean = views["official"], views["leak-free"]
    assert official["scores"]["images"] == 343 and clean["scores"]["images"] <= 343 - 255
    assert official["baselines"]["lookup"]["accuracy"] == pytest.approx(0.813, abs=0.01)
    assert official["baselines"]["lookup"]["macro_f1"] == pytest.approx(0.722, abs=0.01)
    assert official["scores"]["accuracy"] == pytest.approx(0.813, abs=0.02)
    assert round(official["baselines"]["majority"]["macro_f1"], 3) == 0.126
    assert clean["scores"]["accuracy"] == clean["baselines"]["majority"]["accuracy"]
    assert views["group-safe"]["scores"] is None and "source groups in more than one split" in views["group-safe"]["reason"]


def test_figures_are_small_whole_and_without_pyplot(tmp_path):
    code = """if True:
        import sys
        import numpy as np
        from lados.model.plots import contact_sheet, save
        path = save(contact_sheet([np.random.default_rng(i).integers(0, 256, (300, 400, 3), dtype=np.uint8) for i in range(24)],
                                  columns=6), sys.argv[1])
        assert path.stat().st_size <= 150_000 and "matplotlib.pyplot" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a/sheet.png")], check=True)
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["sheet.png"]
