"Alerts: each is tested firing and quiet, explained, and routed."

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docker" / "monitoring"
RULES = sorted((FOLDER / "prometheus" / "rules").glob("*.yml"))
TESTS = sorted((FOLDER / "prometheus" / "tests").glob("*.yml"))

if not FOLDER.is_dir():
    pytest.skip("needs a checkout", allow_module_level=True)


def load(path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


ALERTS = {r["alert"]: r for path in RULES for g in load(path)["groups"] for r in g["rules"] if "alert" in r}


def tool(*words) -> str:
    if not shutil.which(words[0]):
        pytest.skip(f"{words[0]} is not installed")
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "GOGC": "off"}) # it collects garbage a quarter of its time
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_rules_and_configuration_are_valid():
    tool("promtool", "check", "rules", *RULES)
    tool("promtool", "check", "config", "--syntax-only", FOLDER / "prometheus" / "prometheus.yml")


def test_every_alert_fires_and_stays_quiet_when_it_should():
    named = {t["name"] for path in TESTS for t in load(path)["tests"]}
    for alert in ALERTS:
        assert any(n.startswith(f"{alert}: fires") for n in named), alert
        assert f"{alert}: stays quiet" in named or alert == "Watchdog", alert
    tool("promtool", "test", "rules", *TESTS)


def test_every_alert_is_explained():
    page = (ROOT / "docs" / "how-to" / "runbooks.md").read_text(encoding="utf-8")
    anchors = {h.lower() for h in re.findall(r"^#{2,3} (\w+)$", page, re.M)}
    for name, rule in ALERTS.items():
        assert rule["labels"]["severity"] in ("page", "ticket", "none")
        assert rule["annotations"]["summary"] and rule["annotations"]["impact"]
        assert rule["annotations"]["runbook_url"] == f"docs/how-to/runbooks.md#{name.lower()}" and name.lower() in anchors
    assert {h.lower() for h in re.findall(r"^###? (Lados\w+)$", page, re.M)} == {n.lower() for n in ALERTS if n != "Watchdog"}


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_reaches_its_receiver(alert):
    severity = ALERTS[alert]["labels"]["severity"]
    wanted = "watchdog" if alert == "Watchdog" else severity
    path = FOLDER / "alertmanager" / "alertmanager.yml"
    assert tool("amtool", "config", "routes", "test", f"--config.file={path}", f"alertname={alert}", f"severity={severity}").strip() == wanted


def test_inhibitions_name_alerts_that_exist():
    tool("amtool", "check-config", FOLDER / "alertmanager" / "alertmanager.yml")
    for rule in load(FOLDER / "alertmanager" / "alertmanager.yml")["inhibit_rules"]:
        for matcher in (*rule["source_matchers"], *rule["target_matchers"]):
            name, _, pattern = re.match(r'(\w+) (=~|=) "?([^"]+)"?', matcher).groups()
            assert name in ("severity", "slo") or any(re.fullmatch(p, a) for p in [pattern] for a in ALERTS), matcher
            for part in pattern.split("|") if name == "alertname" else ():
                assert any(re.fullmatch(part, a) for a in ALERTS), f"{matcher}: {part}"


def test_the_names_that_rules_use_are_exported():
    "A rule over a metric that nobody exports would stay silent for ever."
    import lados.jobs.exporter
    import lados.jobs.routes
    import lados.serve.telemetry

    code = "".join(Path(m.__file__).read_text() for m in (lados.jobs.exporter, lados.jobs.routes, lados.serve.telemetry))
    used = {n for path in RULES for g in load(path)["groups"] for r in g["rules"] for n in re.findall(
        r"\b((?:http|inference|batch|model|disk|backup|lados_part)_\w+)", re.sub(r'"[^"]*"|lados:\w+(?::\w+)*', "", r["expr"]))}
    assert len(used) > 15
    for name in used:
        bare = re.sub(r"_(total|bucket|count|sum)$", "", name)
        assert f'"{bare}"' in code or f'"{name}"' in code, name


def test_dashboards_are_those_that_the_script_makes():
    spec = importlib.util.spec_from_file_location("dashboards", ROOT / "tools" / "dashboards.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert {p: p.read_text(encoding="utf-8") for p in tool.FOLDER.glob("*.json")} == tool.files()
    source = load(FOLDER / "grafana" / "provisioning" / "datasources" / "lados.yaml")["datasources"][0]
    assert {"type": source["type"], "uid": source["uid"]} == tool.SOURCE
