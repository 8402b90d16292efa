"What GitHub runs, as far as it can be told without GitHub; and whether the page on security names tests that there are."

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))

if not WORKFLOWS:
    pytest.skip("needs a checkout", allow_module_level=True)


def program(name) -> str:
    "Where a program is: in this environment, or on the PATH."
    found = shutil.which(name, path=Path(sys.executable).parent) or shutil.which(name)
    return found or pytest.skip(f"{name} is not installed: `pip install {name}`")


def test_zizmor_finds_nothing():
    told = subprocess.run([program("zizmor"), "--offline", "--no-progress", "--no-config", *WORKFLOWS], capture_output=True, text=True)
    assert told.returncode == 0, told.stdout + told.stderr


def test_actionlint_finds_nothing():
    told = subprocess.run([program("actionlint"), *WORKFLOWS], capture_output=True, text=True)
    assert told.returncode == 0, told.stdout + told.stderr


def test_workflows_keep_to_their_schema():
    told = subprocess.run([program("check-jsonschema"), "--builtin-schema", "vendor.github-workflows", *WORKFLOWS], capture_output=True, text=True)
    assert told.returncode == 0, told.stdout + told.stderr


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_actions_are_pinned_and_rights_are_least(path):
    text = path.read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    events = workflow[True] # YAML 1.1 reads `on` so
    assert workflow["permissions"] == {}, "none but what a job asks for"
    assert "pull_request_target" not in events and "workflow_run" not in events, "they give secrets to what comes from a fork"
    for used in re.findall(r"uses: (.*)", text):
        assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", used), used
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] and "permissions" in job, name
        written = {k for k, v in job["permissions"].items() if v == "write"}
        assert not written or "pull_request" not in events or job["if"] == "github.event_name == 'push'", name
        assert all("persist-credentials" in s["with"] for s in job["steps"] if "checkout@" in s.get("uses", "")), name
    secrets = set(re.findall(r"secrets\.(\w+)", text))
    assert secrets <= {"GITHUB_TOKEN"} and not (secrets and "pull_request" in events)


def test_workflows_run_targets_that_there_are():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    asked = set(re.findall(r"(?:run: |^ +)make ([a-z-]+)", "\n".join(p.read_text(encoding="utf-8") for p in WORKFLOWS), re.M))
    nightly = yaml.safe_load((ROOT / ".github" / "workflows" / "nightly.yml").read_text(encoding="utf-8"))
    assert asked | set(nightly["jobs"]["make"]["strategy"]["matrix"]["target"]) <= targets
    assert {"test-fast", "setup", "docs"} <= asked


def test_every_test_that_the_page_on_security_names_exists():
    text = (ROOT / "docs" / "how-to" / "security.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:tests|nbs)/[\w/.]+)(?:::(\w+))?`", text)
    assert len(named) > 20
    for path, function in named:
        assert (ROOT / path).is_file(), path
        if function:
            tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
            assert any(isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef) and n.name == function for n in tree.body), f"{path}::{function}"
    threats = [line for line in text.splitlines() if line.startswith("| ") and "tested in" not in line and line.count("|") == 4]
    assert len(threats) >= 12 and all("`tests/" in line or "`nbs/" in line for line in threats), "each threat has its test"


def test_images_are_those_that_compose_names():
    targets = re.search(r"^TARGETS = \((.*)\)", (ROOT / "tools/containers.py").read_text(encoding="utf-8"), re.M)[1]
    targets = re.findall(r'"(\w+)"', targets)
    workflow = yaml.safe_load((ROOT / ".github/workflows/images.yml").read_text(encoding="utf-8"))
    assert workflow["jobs"]["image"]["strategy"]["matrix"]["target"] == targets
    assert f",{' '.join(targets)})" in (ROOT / "Makefile").read_text(encoding="utf-8"), "make images builds all of them"
    named = set(re.findall(r"lados-(\w+):\$\{LADOS_VERSION", (ROOT / "docker/compose.yaml").read_text(encoding="utf-8")))
    assert named and named <= set(targets)
