"A collector of traces for the tests: takes OTLP over HTTP, as protobuf, and keeps the spans."

import contextlib
import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class Collector(ThreadingHTTPServer):
    "Keeps every span as a dict; with `silent` set it takes requests and never answers."

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.spans, self.silent, self.over = [], False, threading.Event()

    @property
    def environment(self) -> dict[str, str]:
        "What sends the spans of a process here."
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.server_port}", "OTEL_BSP_SCHEDULE_DELAY": "200"}

    def named(self, name, **attributes) -> list[dict]:
        "Spans of a name with these attributes, `_` for the dots below `lados.`"
        wanted = {f"lados.{k.replace('_', '.')}": v for k, v in attributes.items()}
        return [s for s in self.spans if s["name"] == name and wanted.items() <= s["attributes"].items()]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.silent:
            self.server.over.wait()
            return
        assert self.path == "/v1/traces"
        body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            process = plain(group.resource.attributes)
            self.server.spans += [kept(s, process) for scope in group.scope_spans for s in scope.spans]
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def plain(attributes) -> dict:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in attributes}


def kept(s, process) -> dict:
    return {"name": s.name, "service": process["service.name"], "process": process, "trace": s.trace_id.hex(), "id": s.span_id.hex(),
            "parent": s.parent_span_id.hex(), "start": s.start_time_unix_nano, "end": s.end_time_unix_nano, "failed": s.status.code == 2,
            "attributes": plain(s.attributes), "events": [e.name for e in s.events], "why": s.status.message}


@contextlib.contextmanager
def collecting() -> Iterator[Collector]:
    "A collector for a while; skips where OpenTelemetry is not installed."
    pytest.importorskip("opentelemetry.sdk", reason="lados[otel] is not installed")
    server = Collector()
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
