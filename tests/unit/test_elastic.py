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


# Options of Filebeat 9 by the pages of its documentation, for the parts that are used: of an input, of its scanner and parsers, of processors and their conditions, of the output.
OPTIONS = {
    "filestream": "type id enabled paths encoding exclude_lines include_lines buffer_size message_max_bytes parsers file_identity prospector ignore_older ignore_inactive close "
                  "clean_inactive clean_removed backoff harvester_limit delete take_over compression tags fields fields_under_root processors pipeline keep_null index "
                  "publisher_pipeline",
    "filestream.file_identity": "native path inode_marker fingerprint",
    "filestream.prospector": "scanner",
    "filestream.prospector.scanner": "recursive_glob exclude_files include_files symlinks resend_on_touch check_interval fingerprint",
    "filestream.prospector.scanner.fingerprint": "enabled offset length",
    "filestream.parsers": "multiline ndjson container syslog include_message",
    "filestream.parsers.ndjson": "target overwrite_keys expand_keys add_error_key message_key document_id ignore_decoding_error",
    "copy_fields": "fields fail_on_error ignore_missing when",
    "copy_fields.fields": "from to",
    "drop_event": "when",
    "drop_event.when": "equals contains regexp range network has_fields or and not",
    "drop_event.when.not": "equals contains regexp range network has_fields or and not",
    "output.elasticsearch": "enabled hosts protocol path username password api_key ssl proxy_url headers parameters index indices pipeline pipelines worker workers loadbalance bulk_max_size "
                            "compression_level escape_html backoff max_retries timeout idle_connection_timeout allow_older_versions preset queue kerberos non_indexable_policy",
}


def nested(options: dict) -> dict:
    "Options of which some have dots in their names, as Filebeat reads them."
    found: dict = {}
    for name, value in options.items():
        for part in reversed(name.split(".")[1:]):
            value = {part: value}
        head = name.partition(".")[0]
        found[head] = {**found.get(head, {}), **value} if isinstance(found.get(head), dict) and isinstance(value, dict) else value
    return found


def unknown_options(place: str, options) -> list[str]:
    "What Filebeat does not know below a place of `OPTIONS`."
    wrong: list[str] = []
    for one in options if isinstance(options, list) else [options]:
        if place in OPTIONS and isinstance(one, dict):
            for name, value in nested(one).items():
                wrong += [] if name in OPTIONS[place].split() else [f"{place}.{name}"]
                wrong += unknown_options(f"{place}.{name}", value)
    return wrong


def unknown_to_filebeat(config: dict) -> list[str]:
    wrong = [n for n in config if n not in ("filebeat.inputs", "processors", "setup.template.enabled", "setup.ilm.enabled", "output.elasticsearch")]
    for one in config["filebeat.inputs"]:
        wrong += unknown_options(one["type"], one) if one["type"] in OPTIONS else [one["type"]]
    for one in config["processors"]:
        wrong += [w for name, options in one.items() for w in (unknown_options(name, options) if name in OPTIONS else [name])]
    return wrong + unknown_options("output.elasticsearch", config["output.elasticsearch"])


def test_filebeat_knows_every_option():
    config = yaml.safe_load((FOLDER / "filebeat.yml").read_text())
    assert unknown_to_filebeat(config) == []
    config["filebeat.inputs"][0] |= {"prospector.scanner.fingerprint.enable": False, "json.keys_under_root": True} # the old input's; a slip
    config["processors"] += [{"drop_event": {"when.not.has_field": ["x"]}}, {"copy_field": {}}]
    assert sorted(unknown_to_filebeat(config)) == ["copy_field", "drop_event.when.not.has_field", "filestream.json", "filestream.prospector.scanner.fingerprint.enable"]


def test_filebeat_and_rsyslog_read_the_files_that_processes_keep_and_name_documents_by_their_id():
    beat = yaml.safe_load((FOLDER / "filebeat.yml").read_text())
    assert beat["filebeat.inputs"][0]["paths"] == ["/var/lib/lados/home/logs/*.jsonl*"]
    assert {"from": "event.id", "to": "@metadata._id"} in beat["processors"][0]["copy_fields"]["fields"]
    assert beat["output.elasticsearch"]["index"] == elastic.INDEX
    rsyslog = (FOLDER / "rsyslog.conf").read_text()
    assert '"/var/lib/lados/home/logs/*.jsonl*"' in rsyslog and f'searchIndex="{elastic.INDEX}"' in rsyslog and "%$!event!id%" in rsyslog
