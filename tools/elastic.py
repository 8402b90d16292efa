"Elasticsearch's index template, lifecycle and Kibana's objects for the lines of lados: `python tools/elastic.py` writes docker/monitoring/elastic/."

import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1] / "docker" / "monitoring" / "elastic"

# Field -> type: those of the Elastic Common Schema as in its `generated/csv/fields.csv` of 9.5 in development, and, below `lados.`, our own.
FIELDS = {
    "@timestamp": "date", "message": "match_only_text", "ecs.version": "keyword",
    "log.level": "keyword", "log.logger": "keyword",
    "event.dataset": "keyword", "event.id": "keyword", "event.duration": "long", "event.action": "keyword",
    "service.name": "keyword", "service.version": "keyword", "host.name": "keyword",
    "process.name": "keyword", "process.pid": "long",
    "http.request.id": "keyword", "http.request.method": "keyword", "http.response.status_code": "long", "url.path": "wildcard",
    "trace.id": "keyword", "span.id": "keyword", "error.type": "keyword", "error.code": "keyword", "error.message": "match_only_text",
    "error.stack_trace": "wildcard",
    "lados.job.id": "keyword", "lados.job.kind": "keyword", "lados.job.attempt": "long", "lados.run.name": "keyword",
    "lados.schedule.name": "keyword",
}
SHIPPED = {"agent.name": "keyword", "agent.type": "keyword", "agent.version": "keyword", "agent.id": "keyword", "agent.ephemeral_id": "keyword",
           "log.file.path": "keyword", "log.offset": "long", "input.type": "keyword"} # what Filebeat adds
RIGHT = {"keyword": str, "match_only_text": str, "wildcard": str, "long": int}


def flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    "Return the fields of a line by their dotted names."
    found: dict[str, Any] = {}
    for name, value in document.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def misfits(document: Mapping[str, Any]) -> Iterator[str]:
    "Yield what a strict mapping would refuse of a line: unknown fields, values of other types, a missing time, message or level."
    fields = flat(document)
    yield from (f"{name} is missing" for name in ("@timestamp", "message", "log.level", "event.id", "service.name") if name not in fields)
    for name, value in fields.items():
        kind = "keyword" if re.fullmatch(r"labels\.\w+", name) else FIELDS.get(name)
        if kind is None:
            yield f"{name} is not mapped"
        elif kind == "date":
            if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(value)) or not datetime.fromisoformat(value[:-1]):
                yield f"{name} is no time: {value}"
        elif type(value) is not RIGHT[kind]:
            yield f"{name} is no {kind}: {value!r}"
        elif kind == "keyword" and len(value) > 1024:
            yield f"{name} is too long"


# --- what is written

INDEX, SOURCE = "logs-lados-default", "lados-logs" # the data stream; Kibana's data view
SEARCHES = {
    "errors": ("lados: errors", 'log.level: ("error" or "critical")', ["service.name", "message", "lados.job.id", "error.code"]),
    "requests": ("lados: requests", "http.response.status_code: *",
                 ["http.request.method", "url.path", "http.response.status_code", "event.duration", "labels.outcome", "http.request.id"]),
    "slow": ("lados: requests that took a second", "event.duration > 1000000000", ["url.path", "event.duration", "http.request.id"]),
    "jobs": ("lados: jobs, from the request to the notebook", "lados.job.id: *", ["lados.job.id", "service.name", "lados.job.kind", "message"]),
    "kernels": ("lados: what notebooks print", 'log.logger: "lados.kernel"', ["lados.run.name", "message"]),
}
CHARTS = { # title, query, split, what is shown
    "statuses": ("Requests by status", "http.response.status_code: *", "http.response.status_code", ("count", "___records___")),
    "levels": ("Lines worse than info", 'not log.level: "info"', "service.name", ("count", "___records___")),
    "duration": ("Time of a request, 99th percentile", "event.duration: *", "url.path", ("percentile", "event.duration")),
}


def properties(fields: Mapping[str, str]) -> dict[str, Any]:
    "Return the nested properties of a mapping."
    found: dict[str, Any] = {}
    for name, kind in fields.items():
        *above, last = name.split(".")
        place = found
        for part in above:
            place = place.setdefault(part, {"properties": {}})["properties"]
        place[last] = {"type": kind, **({"ignore_above": 1024} if kind == "keyword" else {})}
    return found


def index_template() -> dict[str, Any]:
    "Return the template of the data stream. What it does not name is kept, and not searched: nothing that is shipped is refused."
    mappings = {"dynamic": False, "date_detection": False,
                "dynamic_templates": [{"labels": {"path_match": "labels.*", "mapping": {"type": "keyword", "ignore_above": 1024}}}],
                "properties": {**properties(FIELDS | SHIPPED), "labels": {"type": "object", "dynamic": True}}}
    return {"index_patterns": ["logs-lados-*"], "data_stream": {}, "priority": 200, "_meta": {"description": "lines of lados"},
            "template": {"settings": {"index": {"lifecycle": {"name": "lados-logs"}, "codec": "best_compression"}}, "mappings": mappings}}


def lifecycle() -> dict[str, Any]:
    "Return the policy: a new index each week or 10 GB, and 30 days after that it is deleted."
    hot = {"actions": {"rollover": {"max_age": "7d", "max_primary_shard_size": "10gb"}, "set_priority": {"priority": 100}}}
    return {"policy": {"phases": {"hot": hot, "delete": {"min_age": "30d", "actions": {"delete": {}}}}}}


def saved(kind: str, name: str, attributes: dict[str, Any], references: list[dict[str, str]]) -> dict[str, Any]:
    "Return a saved object of Kibana."
    return {"type": kind, "id": f"lados-{name}", "attributes": attributes, "references": references, "coreMigrationVersion": "8.8.0"}


def search_source(query: str) -> dict[str, str]:
    "Return what is asked of the data view, as Kibana keeps it: JSON in JSON."
    source = {"query": {"query": query, "language": "kuery"}, "filter": [], "indexRefName": "kibanaSavedObjectMeta.searchSourceJSON.index"}
    return {"searchSourceJSON": json.dumps(source)}


def chart(name: str) -> dict[str, Any]:
    "Return a chart over time, drawn by Lens."
    title, query, split, (operation, field) = CHARTS[name]
    value = {"operationType": operation, "sourceField": field, "dataType": "number", "isBucketed": False, "label": title,
             **({"params": {"percentile": 99}} if operation == "percentile" else {})}
    columns = {"time": {"operationType": "date_histogram", "sourceField": "@timestamp", "dataType": "date", "isBucketed": True, "label": "time",
                        "params": {"interval": "auto"}},
               "split": {"operationType": "terms", "sourceField": split, "dataType": "string", "isBucketed": True, "label": split,
                         "params": {"size": 8, "orderBy": {"type": "column", "columnId": "value"}, "orderDirection": "desc"}},
               "value": value}
    layer = {"layerId": "lines", "layerType": "data", "seriesType": "line", "xAccessor": "time", "splitAccessor": "split", "accessors": ["value"]}
    state = {"datasourceStates": {"formBased": {"layers": {"lines": {"columns": columns, "columnOrder": ["split", "time", "value"]}}}},
             "visualization": {"preferredSeriesType": "line", "legend": {"isVisible": True, "position": "right"}, "layers": [layer]},
             "query": {"query": query, "language": "kuery"}, "filters": []}
    reference = {"type": "index-pattern", "id": SOURCE, "name": "indexpattern-datasource-layer-lines"}
    return saved("lens", name, {"title": f"lados: {title}", "visualizationType": "lnsXY", "state": state}, [reference])


def dashboard() -> dict[str, Any]:
    "Return the dashboard: charts above, searches below."
    parts = [("lens", n, 16, 12) for n in CHARTS] + [("search", n, 48, 16) for n in ("errors", "jobs", "requests")]
    panels, references, x, y = [], [], 0, 0
    for i, (kind, name, w, h) in enumerate(parts):
        panels.append({"type": kind, "panelIndex": str(i), "panelRefName": f"panel_{i}", "embeddableConfig": {},
                       "gridData": {"x": x, "y": y, "w": w, "h": h, "i": str(i)}})
        references.append({"type": kind, "id": f"lados-{name}", "name": f"{i}:panel_{i}"})
        x, y = ((x + w) % 48, y + h * (x + w >= 48))
    attributes = {"title": "lados", "description": "Requests, errors and jobs", "panelsJSON": json.dumps(panels), "optionsJSON": "{}",
                  "timeRestore": True, "timeFrom": "now-24h", "timeTo": "now",
                  "kibanaSavedObjectMeta": {"searchSourceJSON": json.dumps({"query": {"query": "", "language": "kuery"}, "filter": []})}}
    return saved("dashboard", "dashboard", attributes, references)


def kibana() -> list[dict[str, Any]]:
    "Return Kibana's objects: the data view, saved searches, charts, and the dashboard of them."
    view = {"title": "logs-lados-*", "name": "lados", "timeFieldName": "@timestamp"}
    reference = {"type": "index-pattern", "id": SOURCE, "name": "kibanaSavedObjectMeta.searchSourceJSON.index"}
    searches = [saved("search", name, {"title": title, "columns": columns, "sort": [["@timestamp", "desc"]],
                                       "kibanaSavedObjectMeta": search_source(query)}, [reference])
                for name, (title, query, columns) in SEARCHES.items()]
    return [{"type": "index-pattern", "id": SOURCE, "attributes": view, "references": []}, *searches, *map(chart, CHARTS), dashboard()]


def files() -> dict[str, str]: # name in HERE -> content
    "Return what belongs into the folder."
    return {"index-template.json": json.dumps(index_template(), indent=1) + "\n", "lifecycle.json": json.dumps(lifecycle(), indent=1) + "\n",
            "kibana.ndjson": "".join(f"{json.dumps(o)}\n" for o in kibana())}


if __name__ == "__main__":
    for name, content in files().items():
        (HERE / name).write_text(content, encoding="utf-8")
