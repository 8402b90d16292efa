"""Pages of the documentation site that are made from notebooks, and the navigation: hooks that mkdocs calls (see mkdocs.yml).

A library notebook becomes a page of the reference: prose, examples and their outputs as they are; of exported code the signature, the
docstring and a table of the parameters with their comments, and the source folded below. Everything is read from the notebooks' text, so
that a build imports nothing of lados. Tutorials become pages of the guide, README's notebook the home page.
"""
import ast
import base64
import functools
import html
import io
import json
import posixpath
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"
LEVELS = {".": "Core", "data": "Data", "synthetic": "Drawn sample", "runs": "Runs", "model": "Model", "serve": "Serving", "jobs": "Jobs",
          "ui": "Pages", "bench": "Benchmarks", "cli": "Commands"} # folders of nbs/, lowest first
# files of the project that are pages, or are linked from some
PAPERS = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "papermill_runs/README.md": "how-to/run-folder.md", "README.ru.md": "ru/index.md",
          "env.example": "how-to/settings.md", "LICENSE": "files/LICENSE.txt", "constraints.txt": "files/constraints.txt"}
HOW_TO = ("laptop", "own-data", "label-sets", "honest-split", "train", "gpu-and-cluster", "many-machines", "capacity", "run-folder", "serve-and-promote", "front-ends", "jobs-and-schedules", "commands",
          "settings", "extend", "errors", "tested")


# --- where things go


def source_of(path: str) -> str | None:
    "The page that a file of the project becomes, by their paths below the project and below the site; None: it becomes none."
    if path in PAPERS:
        return PAPERS[path]
    if path in ("nbs/index.ipynb", "README.md"):
        return "index.md"
    if path.startswith("nbs/images/"):
        return path.removeprefix("nbs/")
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.startswith("nbs/tutorials/") and path.endswith(".ipynb"):
        return f"tutorials/{posixpath.basename(path)[:-6]}.md"
    if path.startswith("nbs/") and path.endswith(".ipynb") and (ROOT / path) in modules():
        return f"reference/{modules()[ROOT / path].replace('.', '/')}.md"
    return None


def relink(text: str, origin: str, base: str) -> str:
    "Markdown of a file of the project with links that lead to pages; `base` is the folder that its links start from."
    page = source_of(origin)

    def put(m: re.Match) -> str:
        target, _, anchor = m[2].partition("#")
        found = None if "://" in m[2] or not target else source_of(posixpath.normpath(posixpath.join(base, target)))
        if not found:
            return m[0]
        return f"{m[1]}({posixpath.relpath(found, posixpath.dirname(page) or '.')}{'#' + anchor if anchor else ''})"
    return re.sub(r"(\[[^\]]*\])\(([^)\s]+)\)", put, text)


@functools.cache
def notebook(path: Path) -> list[tuple[str, str, list[dict]]]:
    "Kind, source and outputs of a notebook's cells."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [(c["cell_type"], "".join(c["source"]), c.get("outputs", [])) for c in cells]


@functools.cache
def modules() -> dict[Path, str]:
    "Library notebooks in reading order, with the modules that they export, such as `data.split`."
    found = {}
    for folder in LEVELS:
        for path in sorted((NBS / folder).glob("[0-9]*.ipynb")):
            named = next(filter(None, (re.search(r"^#\|\s*default_exp\s+(\S+)", s, re.M) for _, s, _ in notebook(path))), None)
            found |= {path: named[1]} if named else {}
    return found


def heading(path: Path) -> tuple[str, str]:
    "A notebook's title and the line below it."
    first = notebook(path)[0][1]
    said = re.search(r"^> (.+)$", first, re.M)
    return re.match(r"# (.+)", first)[1], said[1] if said else ""


@functools.cache
def index() -> dict[str, tuple[str, str]]:
    "Page and anchor of every module, and of every exported name that only one module has."
    found: dict[str, list[tuple[str, str]]] = {}
    for path, module in modules().items():
        page = source_of(path.relative_to(ROOT).as_posix())
        found.setdefault(f"lados.{module}", []).append((page, ""))
        for _, s, _ in filter(lambda c: is_export(c[1]), notebook(path)):
            for node in public(ast.parse(s)):
                found.setdefault(node.name, []).append((page, node.name))
                found.setdefault(f"lados.{module}.{node.name}", []).append((page, node.name))
    return {name: places[0] for name, places in found.items() if len(places) == 1}


def link(name: str, page: str) -> str | None:
    "The way from a page to a name of lados; None if there is no such name, or several, or it is on that page as a module."
    if name not in index():
        return None
    target, anchor = index()[name]
    way = "" if target == page else posixpath.relpath(target, posixpath.dirname(page))
    return f"{way}#{anchor}" if anchor else way or None


# --- what is exported, as tables


@dataclass
class Row:
    "One line of a table: a parameter, a field, or what is returned."

    name: str
    type: str
    default: str
    text: str


def is_export(source: str) -> bool:
    return bool(re.search(r"^#\|\s*export", source, re.M))


def public(tree: ast.Module | ast.ClassDef) -> list[ast.FunctionDef | ast.ClassDef]:
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return [n for n in tree.body if isinstance(n, kinds) and not n.name.startswith("_")]


def comments(source: str) -> dict[int, str]:
    "The comment at the end of each line."
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT and t.line.strip()[0] != "#"}


def unwrapped(annotation: ast.expr | None, default: ast.expr | None) -> tuple[str, str, str]:
    "Type, default and description, where these hide in `Annotated[...]`, `Field(...)`, `field(...)` or an option of a command."
    said, kind, value = "", annotation, default
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value).endswith("Annotated") and isinstance(annotation.slice, ast.Tuple):
        kind, *more = annotation.slice.elts
        said = " ".join(filter(None, map(described, more)))
    if isinstance(default, ast.Call) and ast.unparse(default.func).split(".")[-1] in ("Field", "field", "Option", "Argument", "Query", "File", "Form", "Header"):
        said, inside = described(default), {k.arg: k.value for k in default.keywords}
        made = inside.get("default_factory")
        value = inside.get("default", default.args[0] if default.args else None) or (made and ast.Call(made, [], []))
        value = None if isinstance(value, ast.Constant) and value.value is Ellipsis else value
    kind_text = ast.unparse(kind).strip("'\"") if kind else ""
    return kind_text, ast.unparse(value) if value else "", said


def described(call: ast.expr) -> str:
    "The help or description that a call is given."
    said = [k.value for k in getattr(call, "keywords", []) if k.arg in ("help", "description")]
    return ast.literal_eval(said[0]) if said and isinstance(said[0], ast.Constant) else ""


def parameters(f: ast.FunctionDef, notes: dict[int, str]) -> list[Row]:
    "A row for each argument of a function, and one for what it returns."
    a, rows = f.args, []
    plain = [*a.posonlyargs, *a.args]
    defaults = [None] * (len(plain) - len(a.defaults)) + a.defaults
    pairs = [*zip(plain, defaults, strict=True), (a.vararg, None), *zip(a.kwonlyargs, a.kw_defaults, strict=True), (a.kwarg, None)]
    for x, default in pairs:
        if not x or x.arg in ("self", "cls"):
            continue
        kind, value, said = unwrapped(x.annotation, default)
        stars = "*" if x is a.vararg else "**" if x is a.kwarg else ""
        rows.append(Row(stars + x.arg, kind, value, said or notes.get((default or x).end_lineno, "")))
    if f.returns and ast.unparse(f.returns) != "None":
        last = f.body[0].lineno - 1
        note = next((notes[i] for i in range(f.returns.end_lineno, last + 1) if i in notes), "")
        rows.append(Row("returns", ast.unparse(f.returns).strip("'\""), "", note))
    return rows


def fields(c: ast.ClassDef, notes: dict[int, str]) -> list[Row]:
    "A row for each annotated attribute of a class."
    found = [n for n in c.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name) and not n.target.id.startswith("_")]
    cells = ((n, *unwrapped(n.annotation, n.value)) for n in found)
    return [Row(n.target.id, kind, value, said or notes.get(n.end_lineno, "")) for n, kind, value, said in cells]


def short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[:most - 1] + "…"


def coded(text: str) -> str:
    "Text as inline code in a cell of a table."
    return f"<code>{html.escape(text).replace('|', '&#124;').replace('*', '&#42;').replace('_', '&#95;').replace('[', '&#91;').replace(']', '&#93;').replace('`', '&#96;')}</code>" if text else ""


def typed(text: str, page: str) -> str:
    "A type, with a link where it names one class of lados."
    ways = [way for name in re.findall(r"[A-Za-z_]\w+", text) if name[0].isupper() and (way := link(name, page))]
    return f"[{coded(text)}]({ways[0]})" if len(set(ways)) == 1 else coded(text)


def prose(text: str) -> str:
    "A comment or docstring as Markdown: what looks like a tag is none."
    parts = re.split(r"(`[^`]+`)", " ".join(text.split()))
    return "".join(p if p.startswith("`") else re.sub(r"([*_])", r"\\\1", p.replace("<", "&lt;").replace("[", "\\[")) for p in parts)


def table(rows: list[Row], page: str) -> str:
    "Parameters or fields; columns of defaults and of comments only if there are some."
    if not rows:
        return ""
    defaults, texts = any(r.default for r in rows), any(r.text for r in rows)
    lines = ["| | type |" + " default |" * defaults + " |" * texts, "|---|---|" + "---|" * defaults + "---|" * texts]
    for r in rows:
        cells = ["*returns*" if r.name == "returns" else coded(r.name), typed(r.type, page)]
        cells += [coded(short(r.default))] * defaults + [prose(r.text).replace("|", "&#124;")] * texts
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def signature(name: str, f: ast.FunctionDef) -> str:
    "A call as one would write it, without types: the table has them."
    a = f.args
    plain = [*a.posonlyargs, *a.args]
    defaults = [None] * (len(plain) - len(a.defaults)) + a.defaults
    said = [x.arg + (f"={short(unwrapped(x.annotation, d)[1] or '…', 30)}" if d else "") for x, d in zip(plain, defaults, strict=True) if x.arg not in ("self", "cls")]
    said += [f"*{a.vararg.arg}"] if a.vararg else ["*"] if a.kwonlyargs else []
    said += [x.arg + (f"={short(unwrapped(x.annotation, d)[1] or '…', 30)}" if d else "") for x, d in zip(a.kwonlyargs, a.kw_defaults, strict=True)]
    said += [f"**{a.kwarg.arg}"] if a.kwarg else []
    line = f"{name}({', '.join(said)})"
    return line if len(line) <= 80 else f"{name}(\n    " + ",\n    ".join(said) + ",\n)"


def documented(node: ast.FunctionDef | ast.ClassDef, notes: dict[int, str], page: str, owner: str = "") -> str:
    "A function or class: heading, signature, docstring, table; of a class its public methods, too."
    name = f"{owner}.{node.name}" if owner else node.name
    said = ast.get_docstring(node) or ""
    out = [f"{'####' if owner else '###'} `{name}` {{ #{name} .api }}", ""]
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(map(ast.unparse, node.bases))
        made = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
        rows = fields(node, notes) + ([r for r in parameters(made, notes) if r.name != "returns"] if made else [])
        out += ["```python", f"class {name}({bases})" if bases else f"class {name}", "```", "", *paragraphs(said), table(rows, page)]
        methods = [m for m in public(node) if isinstance(m, ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(m)]
        return "\n".join(out) + "\n" + "\n".join(documented(m, notes, page, node.name) for m in methods)
    rows, tail = parameters(node, notes), ""
    if [r.name for r in rows] == ["returns"] and not rows[0].text:
        rows, tail = [], f" -> {rows[0].type}"
    kept = {ast.unparse(d).split(".")[-1] for d in node.decorator_list}
    shown = name if kept & {"property", "cached_property"} else signature(name, node)
    return "\n".join([*out, "```python", shown + tail, "```", "", *paragraphs(said), table(rows, page)])


def paragraphs(text: str) -> Iterator[str]:
    for part in re.split(r"\n\s*\n", text):
        yield from (prose(part), "")


# --- notebooks as pages


class Page:
    "The Markdown of a notebook's page, and the figures that it shows."

    def __init__(self, path: Path):
        self.origin, self.figures = path.relative_to(ROOT).as_posix(), {}
        self.path, self.page = path, source_of(self.origin)
        self.library = path in modules()

    def markdown(self) -> str:
        title, said = heading(self.path)
        if self.library:
            module = modules()[self.path]
            top = f"---\ntitle: lados.{module}\n---\n\n# <code>lados.<wbr>{module.replace('.', '.<wbr>')}</code> {{ .module }}\n\n<p class=\"lead\" markdown>{said}</p>\n"
        else:
            top = f"# {title}\n\n<p class=\"lead\" markdown>{said}</p>\n" if said else f"# {title}\n"
        cells = notebook(self.path)
        rest = re.sub(r"\A# .*\n*(> .*\n*)*", "", cells[0][1])
        parts = [self.text(rest)] + [self.text(s) if kind == "markdown" else self.code(s, outputs) for kind, s, outputs in cells[1:] if kind != "raw"]
        return "\n\n".join([top, *filter(None, parts)]) + "\n"

    def text(self, source: str) -> str:
        "Prose, with links to pages and to the names that it speaks of."
        base = "." if self.path.name == "index.ipynb" else posixpath.dirname(self.origin)
        source = source.replace("](images/", "](nbs/images/") if base == "." else source
        return "".join(part if part.startswith("```") else self.named(formulas(relink(part, self.origin, base)))
                       for part in re.split(r"(^```.*?^```)", source, flags=re.M | re.S))

    def named(self, text: str) -> str:
        def put(m: re.Match) -> str:
            name = m[1].removesuffix("()")
            way = link(name, self.page) if re.search(r"[a-z]_[a-z]|[a-z][A-Z]|^[A-Z][a-z]+$|^lados\.\w", name) else None
            return f"[`{m[1]}`]({way})" if way else m[0]
        return re.sub(r"(?<![\[`])`([\w.]+(?:\(\))?)`(?![\]`])", put, text)

    def code(self, source: str, outputs: list[dict]) -> str:
        shown = re.sub(r"^#\|.*\n?", "", source, flags=re.M).strip()
        if (re.search(r"^#\|\s*(hide|default_exp)", source, re.M) and not is_export(source)) or not shown:
            return ""
        if is_export(source):
            return self.exported(shown)
        if self.library:
            shown = without_imports(shown)
        block = f"```python\n{shown}\n```" if shown else ""
        return "\n\n".join(filter(None, [block, *map(self.output, outputs)]))

    def exported(self, source: str) -> str:
        tree, notes = ast.parse(source), comments(source)
        if all(isinstance(n, ast.Import | ast.ImportFrom) or ast.unparse(n).startswith(("if TYPE_CHECKING", "with collector_paused"))
               for n in tree.body):
            return ""
        names = public(tree)
        if not any(isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) for n in tree.body): # constants
            return f"```python\n{without_imports(source)}\n```"
        source = f"<details class=\"source\" data-search-exclude markdown>\n<summary>Source</summary>\n\n```python\n{source}\n```\n\n</details>"
        return "\n".join(documented(n, notes, self.page) for n in names) + f"\n{source}"

    def output(self, o: dict) -> str:
        data = {k: "".join(v) for k, v in (o.get("data") or {"text/plain": o.get("text", "")}).items()}
        for kind in ("image/png", "image/jpeg"):
            if kind in data:
                name = f"{Path(self.page).stem}-{len(self.figures)}.{kind[6:]}"
                self.figures[f"{posixpath.dirname(self.page)}/{name}"] = base64.b64decode(data[kind])
                return f"![{html.escape(description(self.figures[f'{posixpath.dirname(self.page)}/{name}']))}]({name}){{ loading=lazy .figure }}"
        if "text/markdown" in data:
            return f"<div class=\"output\" markdown>\n\n{data['text/markdown']}\n\n</div>"
        if "text/html" in data and "<script" not in data["text/html"]:
            text = re.sub(r"<style.*?</style>", "", data["text/html"], flags=re.S)
            text = re.sub(r"<table[^>]*class=\"dataframe\"[^>]*>", "<table>", text)
            return "<div class=\"output\">" + re.sub(r"\n\s*", "\n", text).strip() + "</div>"
        if not data.get("text/plain", "").strip():
            return ""
        text = re.sub(r"\x1b\[[0-9;]*m", "", data["text/plain"]).rstrip()
        fence = "````" if "```" in text else "```"
        return f"{fence} {{ .text .output }}\n{text}\n{fence}"


def description(figure: bytes) -> str:
    "What a figure's file says that it shows."
    from PIL import Image

    return re.sub(r"[\[\]\s]+", " ", Image.open(io.BytesIO(figure)).info.get("Description", "")).strip() or "Figure"


def without_imports(source: str) -> str:
    "Code without the lines that import at its top level."
    lines = source.splitlines()
    try:
        body = ast.parse(source).body
    except SyntaxError: # magics, or await at the top level
        return source
    for n in reversed(body):
        if isinstance(n, ast.Import | ast.ImportFrom):
            del lines[n.lineno - 1:n.end_lineno]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def formulas(text: str) -> str:
    "TeX between dollars as MathML, which browsers draw themselves."
    from latex2mathml.converter import convert

    return re.sub(r"(?<![\w$`\\])\$([^$\n`]+)\$(?![\w$])", lambda m: convert(m[1]).replace("\n", ""), text)


# --- pages that follow from the code


def pattern(node: ast.expr | None) -> str:
    "A message with an ellipsis for everything that is not known before it happens."
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(v.value if isinstance(v, ast.Constant) else "…" for v in node.values)
    if isinstance(node, ast.BinOp):
        return pattern(node.left) + pattern(node.right)
    return "…" if node else ""


def errors() -> dict[str, set[tuple[str, str, str]]]:
    "Error class -> problem, remedy and module of every error that is raised with words."
    found: dict[str, set[tuple[str, str, str]]] = {}
    for path, module in modules().items():
        for _, source, _ in filter(lambda c: is_export(c[1]), notebook(path)):
            for node in ast.walk(ast.parse(source)):
                name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
                if re.fullmatch(r"[A-Z]\w*(Error|Full|AnImage|TooLarge)", name) and name in index() and node.args:
                    problem, remedy = (pattern(a) for a in [*node.args, None][:2])
                    if len(problem.strip("… ")) > 4:
                        found.setdefault(name, set()).add((problem, remedy, module))
    return found


def error_tables(page: str) -> str:
    "The errors by class; the class's docstring says what they have in common."
    said = {n.name: ast.get_docstring(n) or "" for path in modules() for _, s, _ in notebook(path) if is_export(s)
            for n in public(ast.parse(s)) if isinstance(n, ast.ClassDef)}
    out = []
    for name, rows in sorted(errors().items()):
        out += [f"## {name}", "", prose(said[name]), "", "| what was wrong | what helps | raised in |", "|---|---|---|"]
        for problem, remedy, module in sorted(rows):
            cells = [prose(text).replace("|", "&#124;") for text in (problem, remedy)]
            out.append(f"| {cells[0]} | {cells[1]} | [`{module}`]({link(f'lados.{module}', page)}) |")
        out.append("")
    return "\n".join(out)


# --- what mkdocs calls


def settings_page() -> str:
    text = (ROOT / "env.example").read_text(encoding="utf-8")
    return ("# Settings\n\nSettings come from the environment, or from a file `.env` in the working folder. An empty value means unset. This file is\n"
            f"`env.example`: every setting, with its default.\n\n```sh\n{text.strip()}\n```\n")


def reference_index() -> str:
    "Every module with its one line."
    out = ["# Reference\n\nA folder of notebooks is a level: its modules import lower levels only. Each page is a notebook of the project: reasons, examples with what\n"
           "they show, and a table of the parameters of everything that is exported.\n"]
    for folder, title in LEVELS.items():
        out.append(f"\n## {title}\n\n| module | |\n|---|---|")
        for path, module in modules().items():
            if path.parent == (NBS / folder).resolve():
                page = posixpath.relpath(source_of(path.relative_to(ROOT).as_posix()), "reference")
                out.append(f"| [`lados.{module}`]({page}) | {heading(path)[1]} |")
    return "\n".join(out) + "\n"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    "The navigation, in reading order."
    for cached in (notebook, modules, index): # `mkdocs serve` builds again in the same process
        cached.cache_clear()
    tutorials = [f"tutorials/{p.stem}.md" for p in sorted((NBS / "tutorials").glob("[0-9]*.ipynb"))]
    levels = {title: [{m.split(".")[-1]: source_of(p.relative_to(ROOT).as_posix())} for p, m in modules().items() if p.parent == (NBS / folder).resolve()]
              for folder, title in LEVELS.items()}
    how_to = [*HOW_TO, *sorted({p.stem for p in (ROOT / "docs" / "how-to").glob("*.md")} - set(HOW_TO))]
    config.nav = [{"Guide": [{"lados": "index.md"}, *tutorials]}, {"How to": [{"What is in a run folder": page} if "run-folder" in page else page for page in (f"how-to/{name}.md" for name in how_to)]},
                  {"По-русски": ["ru/index.md", *(f"ru/{name}.md" for name in how_to if (ROOT / "docs" / "ru" / f"{name}.md").exists())]}, {"Reference": ["reference/index.md", *({t: pages} for t, pages in levels.items() if pages)]},
                  {"Changelog": "changelog.md"}, {"Contributing": "contributing.md"}]
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    "A page of docs/, whose links lead to files of the project, so that they hold in the repository, too; and the table of errors."
    origin = f"docs/{page.file.src_uri}"
    markdown = relink(markdown, origin, posixpath.dirname(origin)) if (ROOT / origin).exists() else markdown
    return markdown.replace("<!-- errors -->", error_tables(page.file.src_uri)) if "<!-- errors -->" in markdown else markdown


def on_post_page(output: str, **_: Any) -> str:
    """A page whose search, a dialog, has a name for screen readers."""
    return output.replace('data-md-component="search" role="dialog"', 'data-md-component="search" role="dialog" aria-label="Search"')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    "Pages of notebooks, their figures, and the papers beside the code."
    def add(name: str, content: str | bytes) -> None:
        files.append(File.generated(config, name, content=content))

    for path in [NBS / "index.ipynb", *sorted((NBS / "tutorials").glob("[0-9]*.ipynb")), *modules()]:
        page = Page(path)
        add(page.page, page.markdown())
        for name, figure in page.figures.items():
            add(name, figure)
    for path in sorted((NBS / "images").glob("*.png")):
        add(f"images/{path.name}", path.read_bytes())
    for origin, name in PAPERS.items():
        text = (ROOT / origin).read_text(encoding="utf-8")
        add(name, relink(text, origin, posixpath.dirname(origin)) if origin.endswith(".md") else text if name.startswith("files/") else settings_page())
    add("reference/index.md", reference_index())
    return files
