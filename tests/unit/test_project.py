"The project's outside: who imports what, what an install carries, how the code reads, what the README promises."

import ast
import functools
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lados.core import Settings

ROOT = Path(__file__).resolve().parents[2]
LEVELS = ("core", "files", "processes", "labels", "client", "metrics", "rasters", "pages", "keys", "trail", "logs", "remote", "traces", "data", "synthetic", "runs", "model", "serve", "jobs", "ui", "bench", "public", "cli")
SHUT = {"serve": {"fastai", "matplotlib", "papermill"}} # what a level must not load
NEEDS = {"core": [], "files": [], "processes": [], "labels": [], "client": [], "metrics": ["data"], "rasters": ["geo"], "pages": [], "keys": [], "trail": [], "logs": [], "remote": ["s3"], "traces": ["otel"], "data": ["data"], "synthetic": ["data"], "runs": ["train"], "cli": ["data", "predict", "train"],
         "model": ["data", "predict", "train", "serve", "export"], "serve": ["data", "predict", "serve", "export"],
         "ui": ["data", "predict", "serve", "jobs", "app"], "jobs": ["data", "predict", "train", "serve", "jobs"], "bench": ["data", "predict", "train", "serve", "jobs"], "public": ["data"]} # level -> extras that its imports may come from; the base requirements always
SELF_TELLING = {"seed", "path", "name", "root", "title", "width", "height", "size", "text", "progress"} # argument names

if not (ROOT / "nbs").is_dir():
    pytest.skip("needs a checkout", allow_module_level=True)


class Module:
    "One generated module, read as text."

    def __init__(self, path: Path):
        self.path, self.text = path, path.read_text(encoding="utf-8")
        self.name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        self.tree = ast.parse(self.text)
        part = self.name.split(".")[1]
        self.level = part
        self.notebook = re.search(r"File to edit: [./]*(nbs/\S+\.ipynb)", self.text)[1]

    @property
    def number(self) -> int:
        "Place of its notebook in its folder's reading order."
        return int(re.match(r"(\d\d)_", Path(self.notebook).name)[1])

    def imports(self) -> Iterator[str]:
        "Dotted names of everything imported anywhere in the module; of `from a import b` both `a` and `a.b`."
        package = self.name.split(".")[:-1]
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (a.name for a in node.names)
            elif isinstance(node, ast.ImportFrom):
                start = package[:len(package) - node.level + 1] if node.level else []
                base = ".".join([*start, *filter(None, [node.module])])
                yield base
                yield from (f"{base}.{a.name}" for a in node.names)

    def house(self) -> set[str]:
        "Modules of lados that it imports."
        return {i for i in self.imports() if i in MODULES} - {self.name}

    def others(self) -> set[str]:
        "Top-level packages that are neither of lados nor of Python."
        return {i.split(".")[0] for i in self.imports()} - {"lados"} - sys.stdlib_module_names


MODULES = {m.name: m for m in map(Module, sorted((ROOT / "lados").rglob("[!_]*.py")))}


# --- who imports what


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_one_way(name):
    m = MODULES[name]
    if m.level == "fronts":
        assert {MODULES[i].level for i in m.house()} <= {"fronts"}
        return
    for other in map(MODULES.get, m.house()):
        assert other.level in LEVELS[:LEVELS.index(m.level) + 1], f"{m.name} ({m.level}) imports {other.name} ({other.level})"
        assert other.level != m.level or other.number < m.number, f"{m.notebook} imports {other.notebook}, which a reader meets later"


@pytest.mark.parametrize("level", SHUT)
def test_doors_that_stay_shut(level):
    for m in (m for m in MODULES.values() if m.level == level):
        reached, todo = set(), [m]
        while todo:
            new = todo.pop()
            reached.add(new.name)
            todo += [MODULES[i] for i in new.house() if i not in reached]
        loaded = set().union(*(MODULES[r].others() for r in reached))
        assert not loaded & SHUT[level], f"{m.name} reaches {loaded & SHUT[level]}"
        assert "lados.model.train" not in reached


BLOCKED = """if True:
    import importlib, sys
    class NotInstalled:
        def find_spec(self, name, *_):
            if name.split(".")[0] in {blocked}:
                raise ModuleNotFoundError(name)
    sys.meta_path.insert(0, NotInstalled())
    for name in {modules}:
        importlib.import_module(name)"""


@pytest.mark.parametrize(("modules", "blocked"), [
    (("model.bundle", "runs.events", "runs.folders", "runs.execution", "model.params"), ("torch", "fastai", "timm", "pandas", "matplotlib")),
    (("serve.engines", "serve.predictor", "serve.service", "serve.app", "serve.server"), ("torch", "fastai", "timm", "papermill", "matplotlib", "pandas")),
    (("jobs.store", "jobs.queue", "jobs.workers", "jobs.routes"), ("torch", "fastai", "timm", "matplotlib")),
])
def test_borders_hold_where_packages_are_missing(modules, blocked):
    "Modules that serve, keep runs or carry jobs come up without what training needs."
    code = BLOCKED.format(blocked=set(blocked), modules=[f"lados.{m}" for m in modules])
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("module", ["lados", "lados.core", "lados.files", "lados.processes", "lados.labels", "lados.cli.main", "lados.model.params",
                                    "lados.runs.events", "lados.runs.execution"])
def test_light_modules_load_nothing_heavy(module):
    heavy = {"torch", "pandas", "matplotlib", "sklearn", "fastai", "timm", "IPython", "cv2"}
    code = f"import sys, {module}; print(*sorted({heavy} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()
    assert not loaded


# --- what an install carries


def plain(name: str) -> str:
    "A distribution's name as all its spellings have it."
    return name.lower().replace("_", "-")


def requirements(*extras: str) -> set[str]:
    "Distributions that settings.ini names for lados with these extras, lower case."
    import configparser

    ini = configparser.ConfigParser(delimiters=["="], interpolation=None)
    ini.read(ROOT / "settings.ini", encoding="utf-8")
    keys = ["requirements", *(f"{e}_requirements" for e in extras)]
    return {plain(re.match(r"[\w.-]+", r)[0]) for k in keys for r in ini["DEFAULT"][k].split()}


@functools.cache
def distributions() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())


@pytest.mark.parametrize("level", NEEDS)
def test_every_import_is_required_by_the_right_extra(level):
    named = requirements(*NEEDS[level])
    for m in (m for m in MODULES.values() if m.level == level):
        for package in m.others():
            owners = {plain(d) for d in distributions().get(package, [package])}
            assert owners & named, f"{m.name} imports {package} ({owners}), which no extra of {NEEDS[level]} requires"


def test_every_requirement_is_used():
    "Nothing is installed for nothing; what is used without being imported is named here, with its reason."
    unseen = {"ipykernel": "papermill runs notebooks in it", "torchvision": "torch's partner that fastai loads",
              "pyarrow": "pandas writes parquet with it", "uvloop": "uvicorn's event loop", "httptools": "uvicorn's parser",
              "opentelemetry-exporter-otlp-proto-http": "found by its entry point", "onnx": "torch writes ONNX with it", "onnxscript": "torch writes ONNX with it",
              "psycopg": "SQLAlchemy speaks to PostgreSQL through it", "voila": "serves the pages, in a process of its own", "ipywidgets": "what anywidget builds on"}
    used = {plain(d) for m in MODULES.values() for package in m.others() for d in distributions().get(package, [])}
    assert requirements("data", "predict", "train", "serve", "export", "app", "jobs", "otel") - used - set(unseen) == set()


def test_constraints_pin_every_requirement():
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r'[\w.-]+==[\w.!+]+( ; python_full_version >= "3.11.\d+")?', p) for p in pins), "one name==version a line"
    assert requirements("data", "predict", "train", "serve", "export", "app", "jobs", "s3", "otel", "lab", "docs", "dev") <= {plain(p.split("==")[0]) for p in pins}


def test_a_wheel_carries_job_notebooks_presets_and_pages(tmp_path):
    tree = tmp_path / "tree"
    shutil.copytree(ROOT, tree, ignore=lambda folder, names: [n for n in names if Path(folder) == ROOT and n not in (
        "lados", "nbs", "fronts", "setup.py", "settings.ini", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")])
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, tree], check=True)
    wheel = zipfile.ZipFile(next(tmp_path.glob("*.whl")))
    inside = wheel.namelist()
    about = wheel.read(next(n for n in inside if n.endswith("/METADATA"))).decode()
    named = re.findall(r"^(\w+)_requirements", (ROOT / "settings.ini").read_text(), re.M)
    assert {*re.findall(r"^Provides-Extra: (\w+)", about, re.M)} == {*named, "all"}, "every extra of settings.ini can be asked for"
    jobs = {p.name for p in (ROOT / "nbs" / "papermill").iterdir() if p.suffix in (".ipynb", ".yaml")}
    assert {f"lados/papermill/{n}" for n in jobs} <= set(inside) and "train.ipynb" in jobs
    pages = {f"lados/{p.relative_to(ROOT / 'nbs').as_posix()}" for p in (ROOT / "nbs" / "apps").rglob("*") if p.is_file()}
    pages = {p for p in pages if "/." not in p}
    assert pages == {n for n in inside if n.startswith("lados/apps/")} and "lados/apps/static/classifier.js" in pages
    fronts = {f"lados/{p.relative_to(ROOT).as_posix()}" for p in (ROOT / "fronts").rglob("*") if p.suffix in (".py", ".mo", ".svg")}
    assert fronts <= set(inside) and "lados/fronts/lados_fronts/run.py" in fronts
    assert {m.path.relative_to(ROOT).as_posix() for m in MODULES.values()} <= set(inside)
    installed = tmp_path / "installed"
    zipfile.ZipFile(next(tmp_path.glob("*.whl"))).extractall(installed)
    code = ("from lados.model.params import presets; from lados.runs.folders import jobs_folder; from lados.ui.voila import apps_folder; "
            "print(jobs_folder(), apps_folder(), *presets())")
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path,
                           env={**os.environ, "PYTHONPATH": str(installed)}).stdout.split()
    assert found[:2] == [str(installed / "lados" / n) for n in ("papermill", "apps")] and "demo" in found[2:]


def test_datasets_are_handled_without_torch(tmp_path):
    "`lados[data]` draws, imports, audits and splits; nothing of `train` is loaded on the way."
    code = """if True:
        import sys
        class NotInstalled:
            def find_spec(self, name, *_):
                if name.split(".")[0] in ("torch", "torchvision", "timm", "fastai", "papermill", "IPython"):
                    raise ModuleNotFoundError(name)
        sys.meta_path.insert(0, NotInstalled())
        from lados.cli.main import main
        for line in ("synthetic --out raw --sources 12 --size 64", "import raw --out m", "audit m --out a", "split m --out s"):
            sys.argv = ["lados", "data", *line.split()]
            try:
                main()
            except SystemExit as e:
                assert not e.code, line"""
    (tmp_path / "use.py").write_text(code.replace("if True:", 'if __name__ == "__main__":'))
    env = {**os.environ, "LADOS_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "use.py"], cwd=tmp_path, env=env, check=True)
    assert (tmp_path / "s" / "manifest.csv").exists() and (tmp_path / "a" / "audit.json").exists()


# --- how the code reads


CALLBACKS = {"Callback", "MixedPrecision", "GradientAccumulation", "MixUp", "ParamScheduler"} # fastai documents the events that they answer


def public(m: Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    "Functions a reader may call: those in `__all__`, and public methods of the classes there."
    names = next(ast.literal_eval(n.value) for n in m.tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "__all__")
    for node in m.tree.body:
        if isinstance(node, ast.FunctionDef) and node.name in names:
            yield node.name, node
        if isinstance(node, ast.ClassDef) and node.name in names and not any(b.id in CALLBACKS for b in node.bases if isinstance(b, ast.Name)):
            yield from ((f"{node.name}.{f.name}", f) for f in node.body if isinstance(f, ast.FunctionDef) and f.name[0] != "_")


def arguments(f: ast.FunctionDef) -> list[ast.arg]:
    a = f.args
    both = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, [a.vararg, a.kwarg])]
    return [x for x in both if x.arg not in ("self", "cls")]


def says_itself(x: ast.arg) -> bool:
    "Whether name or type of an argument leave nothing to explain: a class of the house, say, or help for the terminal."
    plain = re.compile(r"\b(int|float|str|bool|bytes|dict|list|tuple|Sequence|Iterable|Mapping|Callable|ndarray|Path|Any)\b")
    kind = ast.unparse(x.annotation)
    return x.arg in SELF_TELLING or "help=" in kind or not plain.search(kind)


@pytest.mark.parametrize("name", MODULES)
def test_public_functions_are_annotated_and_documented(name):
    m, lines, missing = MODULES[name], MODULES[name].text.splitlines(), []
    for label, f in public(m):
        doc = ast.get_docstring(f) or ""
        missing += [] if doc else [f"{label} has no docstring"]
        missing += [f"{label}({x.arg}) has no annotation" for x in arguments(f) if not x.annotation]
        missing += [f"{label}({x.arg}) is not explained" for x in arguments(f) if x.annotation and not (
            "#" in lines[x.end_lineno - 1] or x.arg in doc or says_itself(x))]
    assert not missing, f"{m.notebook}: {'; '.join(missing)}"


def lengths() -> list[int]:
    "Lines of every function, signature and docstring included."
    nodes = (n for m in MODULES.values() for n in ast.walk(m.tree) if isinstance(n, ast.FunctionDef))
    return [n.end_lineno - n.lineno + 1 for n in nodes]


def test_functions_are_short():
    found = lengths()
    assert statistics.median(found) <= 8
    assert statistics.quantiles(found, n=10)[-1] <= 25


LARGE = {"lados.client": "one file, so that a front end or a DAG can carry a copy"}
BORDERS = {"lados.serve.table": "pandas stays out of serving", "lados.model.torchrun": "an entry point", "lados.serve.api": "an entry point", "lados.cli.main": "an entry point",
           "lados.cli.console": "every command imports it"} # small for a reason


@pytest.mark.parametrize("name", MODULES)
def test_modules_have_a_readable_size_and_explicit_imports(name):
    "At most 600 lines; a small one has three importers, or its border is named."
    m = MODULES[name]
    lines = [line for line in m.text.splitlines() if not line.startswith("# ")]
    assert len(lines) <= 600 or name in LARGE, f"{m.notebook}: {len(lines)} lines; split it"
    importers = [o.name for o in MODULES.values() if name in o.house()]
    assert len(lines) >= 80 or len(importers) >= 3 or name in BORDERS, f"{m.notebook}: {len(lines)} lines, used by {importers}; merge it"
    made = next(n for n in m.tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "__all__") # by nbdev, in long lines
    long = [i for i, line in enumerate(m.text.splitlines(), 1) if len(line) > 120 and i not in range(made.lineno, made.end_lineno + 1)]
    assert not long, f"{m.path}: lines {long} are too long"
    stars = [n for n in ast.walk(m.tree) if isinstance(n, ast.ImportFrom) and n.names[0].name == "*"]
    assert not stars, f"{m.notebook}: import *"


def test_public_class_names_are_unique():
    classes = [(n.name, m.name) for m in MODULES.values() for n in m.tree.body if isinstance(n, ast.ClassDef) and n.name[0] != "_"]
    twice = {c: [m for name, m in classes if name == c] for c, _ in classes}
    assert not {c: where for c, where in twice.items() if len(where) > 1}


def test_notebooks_are_numbered_without_gaps_or_letters():
    for folder in {Path(m.notebook).parent for m in MODULES.values()}:
        names = sorted(p.name for p in (ROOT / folder).glob("*.ipynb") if p.name != "index.ipynb")
        assert [n[:3] for n in names] == [f"{i:02}_" for i in range(len(names))], folder


@pytest.mark.parametrize("path", sorted({m.notebook for m in MODULES.values()}))
def test_library_notebooks_teach(path):
    "The skeleton of the house."
    nb = json.loads((ROOT / path).read_text(encoding="utf-8"))
    cells = [("".join(c["source"]), c["cell_type"]) for c in nb["cells"]]
    assert cells[0][0].startswith("# ") and "\n> " in cells[0][0], "starts with `# name` and `> one line`"
    assert any("#| default_exp" in source for source, _ in cells[:2])
    assert not any(re.search(r"^#\|\s*export", s) and re.search(r"^assert ", s, re.M) for s, _ in cells), "asserts stand beside, not in"
    shows = any(c.get("outputs") for c in nb["cells"])
    assert shows or any(re.search(r"^\s*assert ", s, re.M) for s, _ in cells), "an example shows something, or holds it to be true"


@pytest.mark.parametrize("path", sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "nbs").rglob("[!.]*.ipynb")
                                        if ".ipynb_checkpoints" not in p.parts))
def test_notebooks_are_light_and_tell_nothing_of_their_machine(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    outputs = [json.dumps(o) for c in json.loads(text)["cells"] for o in c.get("outputs", [])]
    assert len(text) < 300_000
    assert max(map(len, outputs), default=0) < 100_000
    told = [re.search(r"site-packages|/home/|/root/|Traceback", o) for o in outputs]
    assert not any(told), f"{path}: {[m[0] for m in told if m]} in an output"


@pytest.mark.parametrize("path", sorted((ROOT / "nbs" / "papermill").glob("*.ipynb")), ids=lambda p: p.stem)
def test_job_notebooks_hold_no_code_of_their_own(path):
    cells = [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    assert sum("parameters" in c["metadata"].get("tags", []) for c in cells) == 1
    for c in cells:
        assert not any(isinstance(n, ast.FunctionDef | ast.ClassDef | ast.Lambda) for n in ast.walk(ast.parse("".join(c["source"]))))
        assert not c["outputs"]


# --- outputs


@functools.cache
def outputs_tool():
    "tools/outputs.py as a module."
    import importlib.util

    spec = importlib.util.spec_from_file_location("outputs", ROOT / "tools" / "outputs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made_up(*cells: tuple[str, list]) -> dict:
    "A notebook of code cells with these sources and outputs, whose outputs are said to be of this code."
    nb = {"cells": [{"cell_type": "code", "id": f"cell{i}", "execution_count": None, "metadata": {}, "source": s.splitlines(keepends=True), "outputs": o}
                    for i, (s, o) in enumerate(cells)], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    nb["metadata"]["outputs_of"] = outputs_tool().fingerprint(nb)
    return nb


def stream(text: str) -> list[dict]:
    return [{"output_type": "stream", "name": "stdout", "text": [text]}]


def test_outputs_are_kept_true_and_small():
    assert not outputs_tool().problems()


@pytest.mark.parametrize(("cells", "said"), [
    ([("print(1)", [])], "no output kept"),
    ([("with a:\n    print(1)", [])], "no output kept"),
    ([("x = 1\nx", [])], "no output kept"),
    ([("#| export\ndef f(): ...", []), ("#| export\ndef g(): ...", []), ("f()", [])], "fewer than exported"),
    ([("#| export\n" + "x = 1\n" * 41, []), ("f()", [])], "more than 40 lines"),
    ([("f()", stream("/home/ada/run"))], "a place of this machine"),
    ([("f()", stream(f"wrote {ROOT}/x"))], "a place of this machine"),
    ([("f()", [{"output_type": "display_data", "metadata": {}, "data": {"image/png": "A" * 100_000}}])], "an image of more than"),
    ([("#| hide\nf()", stream("1"))], "not for readers"),
])
def test_the_check_of_outputs_sees_what_is_wrong(cells, said):
    found = outputs_tool().broken(made_up(*cells))
    assert len(found) == 1 and said in found[0]


def test_the_check_of_outputs_sees_code_that_changed():
    nb = made_up(("x = 1", []))
    nb["cells"][0]["source"] = ["x = 2"]
    assert "changed" in outputs_tool().broken(nb)[0]


@pytest.mark.parametrize("source", ["f()", "x = 1", "x;", "if x:\n    print(1)", "def f():\n    print(1)", "#| hide\nprint(1)", "import os\n# print(1)"])
def test_cells_that_may_show_nothing_need_no_output(source):
    assert not outputs_tool().broken(made_up((source, [])))


def test_executing_twice_gives_the_same_notebook(tmp_path):
    "Without places, addresses, standard error and moments of the run; hidden cells run, and keep nothing."
    cells = ("#| hide\nimport sys, tempfile, time\nprint('set-up')", "print(tempfile.mkdtemp(), object()); print('bar', file=sys.stderr)",
             "print(f'took {time.perf_counter_ns() % 100} ms')", "sys.prefix", "import matplotlib.pyplot as plt\n_ = plt.plot([1, 2])")
    path = tmp_path / "nb.ipynb"
    tool = outputs_tool()
    tool.save(path, made_up(*((c, []) for c in cells)))
    assert not tool.execute(path)[2]
    first = path.read_bytes()
    shown = [c["outputs"] for c in json.loads(first)["cells"]]
    assert shown[0] == [] and shown[1][0]["text"] == ["tmp <object object at 0x…>\n"] and shown[3][0]["data"]["text/plain"] == ["'.venv'"]
    assert shown[2] and list(shown[4][0]["data"]) == ["image/png", "text/plain"] and not tool.broken(tool.load(path))
    assert not tool.execute(path)[2] and path.read_bytes() == first


def test_a_notebook_that_fails_is_left_as_it_was(tmp_path):
    path = tmp_path / "nb.ipynb"
    outputs_tool().save(path, made_up(("print('kept')", stream("kept\n")), ("1 / 0", [])))
    before = path.read_bytes()
    assert "ZeroDivisionError" in outputs_tool().execute(path)[2] and path.read_bytes() == before


# --- what the papers beside the code promise


def test_env_example_documents_every_setting():
    text = (ROOT / "env.example").read_text(encoding="utf-8")
    shown = dict(re.findall(r"^#?\s?([A-Z_]+)=(.*)$", text, re.M))
    fields = {n.upper(): f.default for n, f in Settings.model_fields.items()}
    assert list(shown) == list(fields), "same variables, same order"
    assert {n: v for n, v in shown.items() if v} == {n: str(v) for n, v in fields.items() if v is not None}


def blocks(text: str) -> list[str]:
    "Lines of the shell blocks of a Markdown text, comments taken off."
    found = re.findall(r"```(?:sh|bash)\n(.*?)```", text, re.S)
    return [line.split(" #")[0].strip() for b in found for line in b.splitlines() if line.strip() and line[0] != "#"]


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "nbs/index.ipynb", *sorted(
    p.relative_to(ROOT).as_posix() for p in (ROOT / "docs" / "how-to").glob("*.md"))])
def test_every_command_that_is_shown_exists(name):
    import typer

    from lados.cli.main import app

    text = (ROOT / name).read_text(encoding="utf-8")
    if name.endswith(".ipynb"):
        text = "\n\n".join("".join(c["source"]) for c in json.loads(text)["cells"])
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    shown = blocks(text) + re.findall(r"`((?:lados|make) [^`\n]+)`", text)
    assert any(line.startswith("make test") for line in shown) or name.startswith("docs/")
    for line in shown:
        words = line.split()
        if words[0] == "make":
            assert all(w in targets for w in shlex.split(line)[1:] if "=" not in w), line
        if words[0] != "lados":
            continue
        command, rest = typer.main.get_command(app), words[1:]
        while rest and rest[0] in getattr(command, "commands", {}):
            command, rest = command.commands[rest[0]], rest[1:]
        assert not hasattr(command, "commands") or command.name == "runs" or not rest, f"no such command: {' '.join(words)}"
        options = {o for p in command.params for o in [*p.opts, *p.secondary_opts]} | {"--help"}
        assert {w.split("=")[0] for w in rest if w.startswith("--")} <= options, " ".join(words)


def test_the_how_to_page_lists_the_aliases_of_the_classes():
    from lados.labels import LADOS

    text = (ROOT / "docs" / "how-to" / "label-sets.md").read_text(encoding="utf-8")
    listed = {name: tuple(re.findall(r"`(\w+)`", aliases)) for name, aliases in re.findall(r"^\| `(\w+)` \| (.+) \|$", text, re.M)}
    assert listed == {c.name: c.aliases for c in LADOS.classes}


def test_the_records_of_the_how_to_page_can_be_made():
    text = (ROOT / "docs" / "how-to" / "extend.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) == 5
    subprocess.run([sys.executable, "-c", "\n".join(blocks)], check=True, cwd=ROOT)


@pytest.mark.parametrize("name", ["README.md", "README.ru.md", "CONTRIBUTING.md", "CHANGELOG.md", "papermill_runs/README.md", *sorted(
    p.relative_to(ROOT).as_posix() for folder in ("docs", "docker") for p in (ROOT / folder).rglob("*.md"))])
def test_links_lead_somewhere(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text) + re.findall(r'src="([^"]+)"', text):
        if "://" not in target:
            assert (ROOT / name).parent.joinpath(target).exists(), f"{name}: {target}"


def test_figures_of_the_readme_are_small():
    images = list((ROOT / "nbs" / "images").glob("*"))
    assert images and all(p.stat().st_size < 150_000 for p in images)


def test_settings_ini_is_the_one_source():
    "pyproject.toml names the package and nothing else that settings.ini says."
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(project) == {"name", "dynamic"}


def test_installing_the_hooks_leaves_the_checkout_as_it_is(tmp_path):
    "The drivers that nbdev defines are those that .gitattributes already names."
    repo = tmp_path / "repo"
    repo.mkdir()
    for name in (".gitattributes", ".gitignore", "pyproject.toml"):
        shutil.copy(ROOT / name, repo)
    run = functools.partial(subprocess.run, cwd=repo, check=True, capture_output=True, text=True,
                            env={**os.environ, "HOME": str(tmp_path), "GIT_CONFIG_GLOBAL": os.devnull})
    run(["git", "init", "-q"])
    run(["git", "add", "."])
    run([Path(sys.executable).with_name("nbdev-install-hooks")])
    assert run(["git", "status", "--porcelain", "--untracked-files=all"]).stdout.split("\n") == [
        *(f"A  {n}" for n in (".gitattributes", ".gitignore", "pyproject.toml")), ""]
