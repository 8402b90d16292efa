"Codes of problems: what programs compare, and therefore what no edit of a title changes."

import pytest
from fastapi.testclient import TestClient
from starlette.requests import ClientDisconnect

from lados.core import ImageTooLarge, settings
from lados.jobs.routes import router
from lados.serve.app import create_app
from lados.serve.http import PROBLEMS, of_error

CODES = {
    "ImageTooLarge": "picture-too-large", "NotAnImage": "not-a-picture", "ImageError": "picture-cannot-be-read",
    "BadForm": "form-cannot-be-read", "DataError": "pictures-cannot-be-used", "DiskFull": "disk-full", "SlowBody": "body-did-not-arrive",
    "Overloaded": "overloaded", "NotReady": "not-ready", "Unauthorized": "not-allowed", "NoSuchModel": "no-such-model",
    "RunError": "model-cannot-be-served", "ServeError": "model-cannot-be-served", "ConfigError": "not-a-valid-request",
    "NoSuchJob": "no-such-job", "JobError": "not-in-this-state", "BrokerError": "no-queue", "StoreError": "no-job-store",
}


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
