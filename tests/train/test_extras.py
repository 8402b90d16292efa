"Each extra works alone: nothing of the others is needed, and what is missing is named with its remedy."

import functools
import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import lados

ROOT = Path(__file__).resolve().parents[2]
MODULES = {
    "": ("core", "files", "processes", "labels", "client", "metrics", "public", "cli.main", "model.params", "model.bundle", "runs.events"),
    "data": ("data.importers", "data.audit", "data.split", "data.download", "synthetic.sample", "model.datamodule"),
    "predict": ("data.importers", "model.batches", "model.inference", "serve.predictor", "serve.table"),
    "train": ("model.train", "model.interactive", "model.reports", "runs.execution"),
    "serve": ("serve.predictor", "serve.explain", "serve.app", "serve.server"),
    "export": ("serve.export", "serve.server", "data.importers"),
    "jobs": ("jobs.queue", "jobs.workers", "jobs.routes", "jobs.healthcheck", "serve.server"),
    "app": ("ui.voila", "ui.classifier", "ui.session", "serve.server"),
    "otel": ("traces", "client", "cli.main"),
} # extra -> what comes up with it and nothing else
NAMES = {
    "": set(),
    "data": {"import_dataset", "audit", "split"},
    "predict": {"import_dataset", "audit", "split", "Dataset", "export"},
    "train": {"import_dataset", "audit", "split", "Dataset", "export", "learner", "train", "evaluate"},
    "serve": set(),
    "export": {"import_dataset", "audit", "split", "Dataset", "export"},
    "jobs": {"import_dataset", "audit", "split"},
    "app": {"import_dataset", "audit", "split"},
    "otel": set(),
} # and always `Client`, `label_set`, and `load`, which says by itself that no engine is there
ALONE = """if True:
    import importlib, json, sys
    from importlib.machinery import PathFinder
    class Installed(PathFinder):
        @classmethod
        def find_spec(cls, name, *more):
            return None if name.split(".")[0] in {blocked} else PathFinder.find_spec(name, *more)
    sys.meta_path[sys.meta_path.index(PathFinder)] = Installed
    import lados
    for name in {modules}:
        importlib.import_module(f"lados.{{name}}")
    said = {{}}
    for name in lados.__all__:
        try:
            getattr(lados, name)
        except lados.core.ConfigError as e:
            said[name] = str(e)
    for name, call in dict(audit=lados.audit, split=lados.split, train=lados.train, evaluate=lados.evaluate, export=lados.export).items():
        try:
            call("a/path/that/leads/nowhere")
        except lados.core.LadosError as e:
            if "is not installed" in str(e):
                said[name] = str(e)
    print(json.dumps(said))"""


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


@functools.cache
def needed(name):
    "Names of a distribution's requirements that are installed, its own included."
    found, todo = set(), [(name, frozenset())]
    while todo:
        name, extras = todo.pop()
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        if (plain(name), extras) in found:
            continue
        found.add((plain(name), extras))
        for r in map(Requirement, lines):
            if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in (*extras, "")):
                todo.append((r.name, frozenset(r.extras)))
    return {n for n, _ in found}


@functools.cache
def extras():
    "What setup.py makes of settings.ini: extra -> requirements, those of the package under an empty name."
    source, names = (ROOT / "setup.py").read_text(encoding="utf-8"), {"__file__": str(ROOT / "setup.py")}
    exec(compile(source.partition("\nsetup(")[0], "setup.py", "exec"), names)
    return {"": names["words"]("requirements"), **names["extras"]}


def missing(extra):
    "Top-level packages that are not there with this extra alone."
    asked = {Requirement(r) for r in extras()[""] + extras()[extra]}
    there = {plain(n) for n in set().union(*(needed(r.name) for r in asked))}
    return {p for p, owners in importlib.metadata.packages_distributions().items() if p != "lados" and not {plain(o) for o in owners} & there}


@pytest.mark.parametrize("extra", MODULES)
def test_lados_works_with_one_extra_alone(extra, tmp_path, environment):
    code = ALONE.format(blocked=missing(extra), modules=MODULES[extra])
    env = {**environment, "LADOS_HOME": str(tmp_path), "LADOS_RUNS": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert set(lados.__all__) - set(said) == NAMES[extra] | {"Client", "label_set", "load"}
    assert all(f"lados.{name} needs the package" in text and "pip install 'lados[" in text for name, text in said.items())


def test_every_extra_that_brings_modules_is_tried():
    assert set(extras()) - set(MODULES) <= {"lab", "dev", "docs", "geo", "s3", "mlflow", "streamlit", "flet", "all"} # tools, and packages that are asked for by name
