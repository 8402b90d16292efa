"What Elasticsearch and Kibana are given: made by code, consistent, about fields that lines have."

import importlib.util
import json
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docker" / "monitoring" / "elastic"

if not FOLDER.is_dir():
    pytest.skip("needs a checkout", allow_module_level=True)

spec = importlib.util.spec_from_file_location("elastic", ROOT / "tools" / "elastic.py")
elastic = importlib.util.module_from_spec(spec)
spec.loader.exec_module(elastic)
OBJECTS = [json.loads(line) for line in (FOLDER / "kibana.ndjson").read_text().splitlines()]


def test_the_files_are_what_the_tool_makes():
    assert {name: (FOLDER / name).read_text() for name in elastic.files()} == elastic.files()


def test_the_template_maps_every_field_of_a_line_once():
    mapped = elastic.index_template()["template"]["mappings"]["properties"]
    for name, kind in elastic.FIELDS.items():
        place = {"properties": mapped}
        for part in name.split("."):
            place = place["properties"][part]
        assert place["type"] == kind


def test_kibanas_objects_refer_to_each_other_and_to_fields_that_are_there():
    known = {(o["type"], o["id"]) for o in OBJECTS}
    assert len(known) == len(OBJECTS)
    assert {(r["type"], r["id"]) for o in OBJECTS for r in o["references"]} <= known
    queries = " ".join(q for _, q, _ in elastic.SEARCHES.values()) + " ".join(q for _, q, _, _ in elastic.CHARTS.values())
    named = {*re.findall(r"([a-z][\w.]+\w) ?[:>]", queries), *(c for _, _, cs in elastic.SEARCHES.values() for c in cs),
             *(c[2] for c in elastic.CHARTS.values())}
    assert {n for n in named if not n.startswith("labels.")} <= elastic.FIELDS.keys()


def test_a_strict_mapping_refuses_what_does_not_belong():
    line = {"@timestamp": "2026-11-27T00:00:00.000Z", "message": "x", "log.level": "info", "event": {"id": "1"}, "service": {"name": "lados-api"}}
    assert not list(elastic.misfits(line))
    assert list(elastic.misfits({**line, "process": {"pid": "7"}, "picture": "oil", "labels": {"n": 3}})) == [
        "process.pid is no long: '7'", "picture is not mapped", "labels.n is no keyword: 3"]
    assert list(elastic.misfits({**line, "@timestamp": "today"})) == ["@timestamp is no time: today"]


def test_filebeat_and_rsyslog_read_the_files_that_processes_keep_and_name_documents_by_their_id():
    beat = yaml.safe_load((FOLDER / "filebeat.yml").read_text())
    assert beat["filebeat.inputs"][0]["paths"] == ["/var/lib/lados/home/logs/*.jsonl*"]
    assert {"from": "event.id", "to": "@metadata._id"} in beat["processors"][0]["copy_fields"]["fields"]
    assert beat["output.elasticsearch"]["index"] == elastic.INDEX
    rsyslog = (FOLDER / "rsyslog.conf").read_text()
    assert '"/var/lib/lados/home/logs/*.jsonl*"' in rsyslog and f'searchIndex="{elastic.INDEX}"' in rsyslog and "%$!event!id%" in rsyslog
