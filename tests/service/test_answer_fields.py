"A field of the answer from outside: one record in a package of its own, and everything follows."

import csv
import json
import os
import subprocess
import sys

import pytest
from commands import install_package
from serving import ROOT, colours, runs, serving

PLUGIN = """
from lados.serve.predictor import AnswerField

MARGIN = AnswerField("margin", float, "how far the first class is ahead of the second", "margin", cell=lambda value: f"{value:.2f}",
                     read=lambda predictor, probs, distance: float(sorted(probs)[-1] - sorted(probs)[-2]), schema={"ge": 0, "le": 1})
"""
PAGE = """
import json, sys
from lados.ui.classifier import Card, results_table
card = Card("1", "sea.png", answer=json.load(sys.stdin))
print(json.dumps({"card": card.shown(), "table": results_table([card]).decode("utf-8-sig")}))
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    "An environment in which a package brings the field `margin`."
    folder = tmp_path_factory.mktemp("package")
    install_package(folder, "margins", PLUGIN, "lados.answer_fields", margin="MARGIN")
    return {"PYTHONPATH": f"{ROOT}:{folder}", "LADOS_HOME": str(folder / "home")}


@pytest.mark.long
def test_a_field_from_outside_is_in_api_schema_table_and_page(package, tmp_path):
    image = tmp_path / "sea.png"
    image.write_bytes(colours(1)[0])
    with serving(tmp_path / "service", runs() / "first", PYTHONPATH=package["PYTHONPATH"]) as server:
        answer = server.ready().predict(image.read_bytes()).json()
        schema = server.get("/openapi.json").json()["components"]["schemas"]["Prediction"]
    best, second = sorted(answer["probabilities"].values())[:-3:-1]
    assert answer["margin"] == pytest.approx(best - second)
    assert schema["properties"]["margin"]["description"] == "how far the first class is ahead of the second"
    assert schema["properties"]["margin"]["maximum"] == 1 and "margin" in schema["required"]
    assert list(schema["properties"]) == [n for n in answer if n != "request_id"], "as it is sent"

    env = {**os.environ, **package}
    command = [sys.executable, "-c", "from lados.cli.main import main; main()", "predict", str(image), "--out=answers.csv",
               f"--run={runs() / 'first' / 'bundle'}"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (row,) = csv.DictReader((tmp_path / "answers.csv").open())
    assert row["margin"] == f"{best - second:.2f}" and list(row)[-2:] == ["margin", "error"]

    page = subprocess.run([sys.executable, "-c", PAGE], input=json.dumps(answer), env=env, capture_output=True, text=True)
    assert page.returncode == 0, page.stderr
    shown = json.loads(page.stdout)
    assert shown["card"]["more"] == [["margin", f"{best - second:.2f}"]]
    (row,) = csv.DictReader(shown["table"].splitlines())
    assert row["margin"] == f"{best - second:.2f}"


def test_the_names_of_fields_and_columns_stay():
    from lados.labels import CLASSES
    from lados.serve.predictor import ANSWER_FIELDS, answer_cells
    from lados.serve.table import columns
    from lados.ui.classifier import Card

    assert list(ANSWER_FIELDS) == ["label", "confidence", "probabilities", "prediction_set", "not_covered", "no_set", "abstain", "reason",
                                   "distance", "unlike_training", "rendering", "model", "engine", "synthetic"]
    answer = {"label": "oil", "confidence": 0.9, "probabilities": dict.fromkeys(CLASSES, 0.1), "prediction_set": ["oil", "sheen"],
              "not_covered": ["oil"], "no_set": None,
              "abstain": False, "reason": None, "distance": 1.0, "unlike_training": False, "rendering": None, "model": "m", "engine": "torch", "synthetic": 0.0}
    cells = answer_cells(answer)
    probabilities = [f"p_{c}" for c in CLASSES]
    assert list(cells) == ["predicted", "confidence", *probabilities, "prediction_set", "not_covered", "no_set", "abstain", "reason",
                           "distance", "rendering", "model", "engine", "synthetic"]
    assert cells["prediction_set"] == "oil|sheen" and cells["reason"] is None
    own = ["corrected_to", "confirmed", "total_ms", "sha256"]
    assert list(Card("1", "sea.png", answer=answer).row()) == [*columns(list(CLASSES)), *own], "the page's table begins with that of `lados predict`"
