"Traces within one process: off they cost nothing and load nothing; on, client and service are one trace that tells no secrets."

import asyncio
import json
import os
import subprocess
import sys

import httpx
import pytest
from serving import KEY, ROOT

from lados.client import ApiError, AsyncClient
from lados.core import DataError
from lados.logs import FIELDS, private_words
from lados.serve.http import RequestLayer
from lados.traces import errors_told, flush_traces, inject, past_span, span, start_traces, stop_traces, tracing


def run(code, **environment) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
    done = subprocess.run([sys.executable, "-c", code], env={**clean, "PYTHONPATH": str(ROOT), **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_off_nothing_of_opentelemetry_is_loaded():
    "FastAPI loads its API, and redis what it measures with; what makes and sends spans is loaded by nobody."
    run("""
import sys
import lados.cli.main, lados.client, lados.runs.execution
from lados.serve.predictor import classify_files
from lados.traces import inherited_trace, past_span, span, start_traces
assert not start_traces("worker") and inherited_trace() == {}
with span("task predict", {"lados.images": 1}, "consumer", {}, "key") as told:
    told.set({"x": 1}); told.fail(KeyError()); told.drop(); past_span("epoch", 1.0)
assert "opentelemetry" not in sys.modules
import lados.jobs.workers, lados.jobs.routes
loaded = {m for m in sys.modules if m.startswith(("opentelemetry.sdk.trace", "opentelemetry.exporter", "opentelemetry.proto"))}
assert not loaded, loaded
""")


@pytest.fixture(scope="module")
def exporter():
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter", reason="lados[otel] is not installed")
    exporter = memory.InMemorySpanExporter()
    assert start_traces("flight", [exporter])
    yield exporter
    stop_traces()
    assert not tracing()


@pytest.fixture
def told(exporter):
    "A function that gives what was told since the test began."
    flush_traces()
    exporter.clear()

    def spans():
        flush_traces()
        return exporter.get_finished_spans()

    return spans


def client_of(seen: list) -> AsyncClient:
    "A client of an application that is one layer over an endpoint; `seen` gets the fields of its log lines."
    async def answers(scope, receive, send):
        seen.append(dict(FIELDS.get()))
        scope["state"]["labels"].update(outcome="answered", key="otto's key", **{"class": "oil"})
        status = 409 if "teapot" in scope["path"] else 200
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": b'{"label": "oil"}'})

    return AsyncClient("http://lados", KEY, transport=httpx.ASGITransport(RequestLayer(answers)))


def test_client_and_service_are_one_trace(told):
    seen = []

    async def fly():
        async with client_of(seen) as client:
            with span("flight"):
                await client.predict(b"plum", "/home/otto/plum.png")
                await client.job("c0ffee" * 5 + "00")
            await client.job("c0ffee" * 5 + "00")

    asyncio.run(fly())
    spans = {(s.name, s.kind.name): s for s in told()}
    names = [("POST /predict", "CLIENT"), ("POST /predict", "SERVER"), ("GET /job/{id}", "CLIENT"), ("GET", "SERVER"), ("flight", "INTERNAL")]
    assert set(spans) == set(names) and len(told()) == 5, "the last look is nobody's"
    assert len({s.context.trace_id for s in spans.values()}) == 1
    for child, parent in ((names[1], names[0]), (names[0], names[4]), (names[3], names[2]), (names[2], names[4])):
        assert spans[child].parent.span_id == spans[parent].context.span_id, child
    server = spans[names[1]]
    assert (seen[0]["trace.id"], seen[0]["span.id"]) == (f"{server.context.trace_id:032x}", f"{server.context.span_id:016x}")
    everything = "".join(s.to_json() for s in told())
    assert not [x for x in ("plum", "otto", "oil", KEY, "c0ffee") if x in everything] and '"http.response.status_code": 200' in everything


def test_a_refusal_is_told_at_the_client_and_a_strange_request_starts_a_trace_of_its_own(told):
    async def ask():
        async with client_of([]) as client:
            with pytest.raises(ApiError):
                await client.undo_correction("teapot")
            for headers in ({"traceparent": "00-zz"}, {"traceparent": f"00-{7:032x}-{8:016x}-01"}, {}):
                await client._http.request("BREW", "http://lados/x", headers=headers)
                await client._http.get("http://lados/ready", headers=headers)

    asyncio.run(ask())
    server, client, *rest = told()
    assert (client.name, server.name) == ("DELETE /corrections/{id}", "DELETE") and server.parent.span_id == client.context.span_id
    assert not client.status.is_ok and client.attributes["http.response.status_code"] == 409 and server.status.is_ok
    assert [s.name for s in rest] == ["_OTHER", "GET", "_OTHER", "GET", "_OTHER"]
    assert [s.parent and s.parent.span_id for s in rest] == [None, None, 8, 8, None]


def test_errors_are_told_by_their_code_alone(told):
    with pytest.raises(DataError), span("task predict"), errors_told():
        raise DataError("/home/otto/secret.png: damaged", "send another", code="image-damaged")
    with pytest.raises(SystemExit), span("lados train"):
        raise SystemExit(0)
    first, second = told()
    assert dict(first.attributes) == {"error.type": "image-damaged"} and not first.events and not first.status.description
    assert second.status.is_ok and not second.attributes


def test_texts_are_cut_and_struck(told, monkeypatch):
    past_span("epoch", 2.0, {"lados.run.name": "x" * 999, "lados.worker": None}, parent={"traceparent": f"00-{7:032x}-{8:016x}-01"})
    (epoch,) = told()
    assert len(epoch.attributes["lados.run.name"]) == 200 and len(epoch.attributes) == 1 and epoch.parent.span_id == 8
    assert epoch.end_time - epoch.start_time == 2_000_000_000
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20kumquat,x-team=sea")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "https://otto:persimmon@collector")
    strike = private_words()
    assert strike("Bearer kumquat, Bearer%20kumquat, https://otto:persimmon@collector sea") == "***, ***, https://otto:***@collector sea"


def test_a_child_of_a_fork_sends_its_own_spans(tmp_path):
    from collector import collecting

    with collecting() as collector:
        run("""
import os
from lados.traces import flush_traces, span, start_traces, stop_traces
assert start_traces("flight")
with span("flight"):
    child = os.fork()
    if not child:
        with span("in the child"):
            pass
        flush_traces()
        os._exit(0)
    os.waitpid(child, 0)
stop_traces()
""", **collector.environment)
    assert sorted(s["name"] for s in collector.spans) == ["flight", "in the child"]
    assert len({s["trace"] for s in collector.spans}) == 1 and len({s["id"] for s in collector.spans}) == 2


@pytest.mark.parametrize(("variables", "said"), [
    ({"OTEL_EXPORTER_OTLP_PROTOCOL": "smoke"}, "nothing is installed that sends spans as otlp by smoke"),
    ({"OTEL_TRACES_EXPORTER": "pigeon"}, "nothing is installed that sends spans as pigeon"),
    ({"OTEL_BSP_MAX_QUEUE_SIZE": "-3"}, "there are no traces"),
])
def test_variables_that_make_no_sense_are_said_and_stop_nobody(variables, said):
    code = "import logging; logging.basicConfig(format='%(message)s', stream=__import__('sys').stdout)\nfrom lados.traces import start_traces; print(start_traces('api'))"
    shown = run(code, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", **variables)
    assert said in shown and shown.endswith("False\n"), shown


def test_a_collector_that_is_away_is_said_once():
    shown = run("""
import logging, sys
logging.basicConfig(format="%(message)s", stream=sys.stdout)
from lados.traces import flush_traces, span, start_traces, stop_traces
start_traces("api")
for _ in range(3):
    with span("decode"):
        pass
    flush_traces(0.3)
stop_traces()
""", OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", OTEL_EXPORTER_OTLP_TIMEOUT="1")
    assert shown.startswith("spans are not sent") and shown.count("\n") == 1, shown


def test_nothing_is_handed_on_where_nothing_is_begun(told):
    assert inject() == {} and json.dumps(inject()) == "{}"
