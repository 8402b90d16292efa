"Codes of errors and problems: what programs compare, and therefore what no edit of a message or title changes."

import ast
import inspect
import pickle
import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from starlette.requests import ClientDisconnect

from lados import core
from lados.core import DataError, DiskFull, ImageTooLarge, LadosError, RunError, settings
from lados.jobs.routes import router
from lados.serve.app import create_app
from lados.serve.http import PROBLEMS, of_error

CODES = {
    "ImageTooLarge": "picture-too-large", "NotAnImage": "not-a-picture", "ImageError": "picture-cannot-be-read",
    "BadForm": "form-cannot-be-read", "DataError": "pictures-cannot-be-used", "DiskFull": "disk-full", "SlowBody": "body-did-not-arrive",
    "Overloaded": "overloaded", "NotReady": "not-ready", "Unauthorized": "not-allowed", "NoSuchModel": "no-such-model",
    "ScopeMissing": "scope-missing", "RateLimited": "rate-limited",
    "RunError": "model-cannot-be-served", "ServeError": "model-cannot-be-served", "ConfigError": "not-a-valid-request",
    "NoSuchJob": "no-such-job", "JobError": "not-in-this-state", "BrokerError": "no-queue", "StoreError": "no-job-store",
}
ROOT = Path(__file__).resolve().parents[2]
PLAIN = {"LadosError": "failed", "ConfigError": "invalid-value", "DataError": "dataset-unusable", "ImageError": "picture-cannot-be-read",
         "NotAnImage": "not-a-picture", "ImageTooLarge": "picture-too-large", "SourceError": "download-failed", "WeightsError": "weights-unusable",
         "TrainingError": "training-failed", "RunError": "run-unusable", "ServeError": "cannot-serve", "DiskFull": "disk-full"}


def raised():
    "All codes in the code: of classes, of raised errors, of kinds of problems."
    for path in (ROOT / "lados").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                given = [k.value for k in node.keywords if k.arg == "code"] + (node.args[1:2] if getattr(node.func, "id", "") == "ProblemKind" else [])
                yield from (v.value for v in given if isinstance(v, ast.Constant))
    todo = [LadosError]
    for kind in todo: # grows as it is walked
        todo += kind.__subclasses__()
        if kind.__module__.startswith("lados."):
            yield kind.code


def test_every_code_is_explained_and_nothing_else_is():
    page = (ROOT / "docs" / "how-to" / "errors.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([^`]+)` \|", page, re.M)
    assert sorted(listed) == sorted(set(raised()))
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", code) for code in listed)


def test_codes_of_classes_stay():
    kinds = {n: k.code for n, k in vars(core).items() if inspect.isclass(k) and issubclass(k, LadosError)}
    assert kinds == PLAIN


def test_a_cause_has_its_own_code_and_keeps_it_between_processes():
    error = pickle.loads(pickle.dumps(RunError("first: no such run", "`lados runs` lists them", code="run-not-found")))
    assert (error.code, error.problem, error.remedy) == ("run-not-found", "first: no such run", "`lados runs` lists them")
    assert DiskFull("full").code == "disk-full" and DataError("x").code == "dataset-unusable"
    assert of_error(error)[0]["code"] == "run-not-found" and of_error(error)[0]["type"] == "/problems/model-cannot-be-served"


def test_the_list_of_codes():
    known = PROBLEMS | router.problems
    assert {kind.__name__: known[kind].code for kind in known} == CODES


def test_the_code_is_the_type_and_the_title_is_for_people():
    document, outcome = of_error(ImageTooLarge("sea.png: larger than 10 MB", "send it smaller"))
    assert (document["type"], document["title"], outcome) == ("/problems/picture-too-large", "Image too large", "too_large")


@pytest.mark.parametrize(("error", "code", "outcome"), [(ClientDisconnect(), "client-gone", "cancelled"), (KeyError("x"), "internal-error", "error")])
def test_codes_of_what_is_no_error_of_the_house(error, code, outcome):
    document, counted = of_error(error)
    assert (document["type"], counted) == (f"/problems/{code}", outcome)


@pytest.mark.parametrize(("method", "path", "body", "status", "code"), [
    ("GET", "/nowhere", None, 404, "no-such-page"), ("PUT", "/health", None, 405, "method-not-allowed"),
    ("POST", "/models/promote", {"model": "x" * 70_000}, 413, "body-too-large")])
def test_codes_of_requests_that_fit_no_route(home, method, path, body, status, code):
    answer = TestClient(create_app(settings(), [router])).request(method, path, json=body)
    assert (answer.status_code, answer.json()["type"]) == (status, f"/problems/{code}")
