"A metric is one record: what is registered is computed, shown, reported and compared without another edit."

import contextlib
import inspect
import io
import re
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics as sk
from IPython.display import Markdown
from rich.console import Console
from toy import TINY, tiny, toy, toy_manifest

from lados.core import ConfigError
from lados.files import read_json, write_json
from lados.metrics import (
    METRICS,
    PRIMARY,
    Metric,
    answer_scores,
    class_counts,
    headline_metrics,
    ratio,
    register_metric,
)
from lados.model.metrics import scores, scores_table, to_markdown

CLASSES = ("rust", "paint", "steel") # a metric knows no classes but those it is given
BESIDE = {"balanced_accuracy": "balanced accuracy", "log_loss": "log loss", "brier": "Brier score", "ece": "calibration error"}


def kappa(counts):
    "Cohen's kappa of many confusion matrices, [b, k, k] -> [b]."
    hit, truth, answers = class_counts(counts)
    n = counts.sum((1, 2))
    chance = ratio((truth * answers).sum(1), n * n)
    return ratio(ratio(hit.sum(1), n) - chance, 1 - chance)


@contextlib.contextmanager
def registered(*metrics):
    "Further metrics for a while."
    before = dict(METRICS)
    try:
        for metric in metrics:
            register_metric(metric)
        yield
    finally:
        METRICS.clear()
        METRICS.update(before)


@pytest.fixture
def cohen():
    with registered(Metric("kappa", "Cohen's kappa", kappa, interval=True)):
        yield


def answers(seed=0, n=60):
    rng = np.random.default_rng(seed)
    truth, probs = rng.integers(0, 3, n), rng.dirichlet(np.ones(3), n)
    probs[np.arange(n), truth] += 0.4
    return truth, probs / probs.sum(1, keepdims=True), np.arange(n) // 3


def shown(table) -> str:
    console = Console(width=200, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_a_metric_from_outside_is_computed_and_shown(cohen):
    truth, probs, groups = answers()
    result = scores(truth, probs, CLASSES, groups)
    assert result["kappa"] == pytest.approx(sk.cohen_kappa_score(truth, probs.argmax(1)))
    low, high = result["intervals"]["kappa"]
    assert low < result["kappa"] < high
    assert f"Cohen's kappa {result['kappa']:.3f} ({low:.2f}-{high:.2f})" in shown(scores_table(result))
    assert re.search(rf"\| Cohen's kappa \| {result['kappa']:.3f} .* \| more \|", to_markdown(result))


def test_a_metric_from_outside_is_in_the_report_and_in_the_comparison_of_runs(cohen, home, capsys):
    from lados.cli.runs import compare
    from lados.core import settings
    from lados.model.reports import begin_training, evaluate_run, fit, open_data, parameters, per_class

    toy_manifest(home / "toy")
    asked = {**TINY, "data": str(home / "toy")}
    for name, epochs in (("one", 1), ("two", 8)): # the toy is learned in a few epochs, and not in one
        run = settings().lados_runs / name
        run.mkdir(parents=True)
        write_json(run / "run.json", {"format": 1, "job": "train", "name": name, "state": "succeeded"})
        write_json(run / "params.json", {**asked, "epochs": epochs})
        job = begin_training(run, {**asked, "epochs": epochs})
        sections = [section(job) for section in (parameters, open_data, fit, evaluate_run, per_class)]
        report = "\n".join(s.data for s in sections if isinstance(s, Markdown))
        assert "Cohen's kappa" in report
    assert "kappa" in read_json(run / "metrics.json")["test"]
    compare(["one", "two"])
    table = capsys.readouterr().out
    assert "test.kappa" in table and "test.log_loss" in table


def test_a_metric_from_outside_is_in_the_comparison_of_models(cohen):
    from lados.model.evaluate import comparison_markdown, paired_difference

    truth, probs, groups = answers()
    worse = np.random.default_rng(1).permutation(truth)
    found = paired_difference(truth, probs.argmax(1), worse, groups, classes=CLASSES)
    expected = sk.cohen_kappa_score(truth, probs.argmax(1)) - sk.cohen_kappa_score(truth, worse)
    assert found["kappa"]["value"] == pytest.approx(expected) and found["kappa"]["interval"][0] > 0
    sides = [{"name": n, "scores": scores(truth, p, CLASSES, groups)} for n, p in (("a", probs), ("b", np.eye(3)[worse]))]
    text = comparison_markdown({"candidate": sides[0], "served": sides[1], "difference": found, "verdict": "", "level": 0.95, "groups": 20,
                                "disagreement": dict.fromkeys(("both_right", "candidate_right", "served_right", "neither_right"), 0),
                                "notes": []})
    assert re.search(r"\| Cohen's kappa \| .*\| \+0\.\d+ \(\+", text)


def test_a_headline_metric_is_in_the_history_and_beside_baselines(home):
    from lados.model.train import train

    with registered(Metric("kappa", "Cohen's kappa", kappa, headline=True)):
        assert answer_scores(["a", "b", "a"], ["a", "b", "b"]).keys() == {"accuracy", "macro_f1", "kappa"}
        history = train(tiny(epochs=1), toy(home / "toy"), home / "run").history
        assert history["kappa"].between(-1, 1).all()
    assert "kappa" not in answer_scores(["a"], ["a"])


def test_what_is_computed_is_shown():
    result = scores(*answers()[:2], CLASSES)
    for text in (shown(scores_table(result)), to_markdown(result)):
        assert all(title in text for title in BESIDE.values())
    assert {k: m.title for k, m in METRICS.items() if k not in ("accuracy", PRIMARY)} == BESIDE
    assert [m.key for m in headline_metrics()] == [PRIMARY, "accuracy"]


def test_less_is_better_where_it_is():
    assert METRICS["log_loss"].better(0.1, 0.2) and METRICS[PRIMARY].better(0.2, 0.1)
    with pytest.raises(ConfigError):
        Metric("x", "x", lambda y, p: 0.0, source="probabilities", interval=True)


def test_a_result_of_an_older_version_is_shown_without_what_it_lacks():
    result = scores(*answers()[:2], CLASSES)
    for key in ("log_loss", "ece"):
        del result[key]
    assert "log loss" not in shown(scores_table(result)) + to_markdown(result)


def test_macro_f1_has_one_home():
    import lados.metrics

    root = Path(inspect.getfile(lados.metrics)).parent
    homes = [p.name for p in root.rglob("*.py") if re.search(r"\bf1_score\(|def macro_f1|average=\"macro\"", p.read_text())]
    assert homes == ["metrics.py"]
