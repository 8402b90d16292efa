"""Outputs of the notebooks: kept, true and small.

    python tools/outputs.py run [--all] [NOTEBOOK ...]   execute those whose code changed, or all, or these; save their outputs
    python tools/outputs.py check                        what is missing, stale, too large, or tells of this machine

A notebook runs under a real kernel, from an empty home and an empty working folder, so that it depends on nothing around it. What is
saved is normalised: no standard error, no widgets, no addresses, no temporary names; figures become small PNG files. Where an output
differs from the saved one only in what changes at each run, such as a duration, the saved one stays.
"""
import ast
import base64
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OTHERS = {"papermill", "apps"} # folders of notebooks that keep no outputs
IMAGE_KB, LONGEST, TIMEOUT_S = 60, 40, 600
IMAGES = ("image/png", "image/jpeg")
SHOWN = ("text/markdown", "text/html", "image/svg+xml", *IMAGES, "text/plain")
MACHINE = re.compile(r"(?<![\w.])/(?:home|root|work|Users|var/folders)/|(?<![\w./])/tmp/|site-packages|/envs/")
# what changes at each run: identifiers, moments, durations, speeds, sizes of processes
VARIES = re.compile(r"b'[^']*\\\\x[^']*'|"
                    r"\b[0-9a-f]{8}-[0-9a-f-]{27}\b|\b[0-9a-f]{8,}\b|\d+ [A-Z][a-z][a-z]\b|\d+-\d\d-\d\d[T ]?|\d+:\d\d(?::\d\d)?(?:\.\d+)?"
                    r"|\d[\d.,]*(?:e-?\d+)?\s?(?:ns|[µum]?s|sec\w*|min\w*|h|x|[kMG]i?B|(?:\w+ )?(?:/s|a second))(?!\w)")


def notebooks() -> list[Path]:
    """Library notebooks and tutorials, in reading order."""
    found = (p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
    return sorted(p for p in found if p.parent.name not in OTHERS and p.name != "index.ipynb")


def load(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def save(path: Path, nb: dict) -> None:
    """Write a notebook as nbdev-clean does."""
    path.write_text(json.dumps(nb, sort_keys=True, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def code(nb: dict) -> list[tuple[dict, str]]:
    """Code cells with their source."""
    return [(c, "".join(c["source"])) for c in nb["cells"] if c["cell_type"] == "code"]


def is_export(source: str) -> bool:
    return bool(re.search(r"^#\|\s*(export|default_exp)", source, re.M))


def keeps_none(source: str) -> bool:
    """Whether a cell's output is not for readers."""
    return is_export(source) or bool(re.search(r"^#\|\s*hide", source, re.M))


def fingerprint(nb: dict) -> str:
    """Stands for the code that the outputs were made by."""
    return hashlib.sha256("\0".join(s for _, s in code(nb)).encode()).hexdigest()[:16]


# --- executing


def plain(text: str, home: str) -> str:
    """Text without colours, addresses, places and ports of this run."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    text = re.sub(r"[^\n]*\r(?!\n)", "", text) # what a progress bar wrote over
    text = re.sub(rf"{re.escape(home)}/tmp/(lados-|tmp)\w*", "tmp", text)
    for place, name in ((f"{home}/tmp", "tmp"), (f"{home}/home", "~"), (f"{home}/here", "."), (sys.prefix, ".venv"), (str(ROOT), ".")):
        text = text.replace(place, name)
    text = re.sub(r"\b0x[0-9a-f]{6,}", "0x…", text)
    return re.sub(r"127\.0\.0\.1:(?:3[2-9]|[45]\d|6[0-5])\d{3}\b", "127.0.0.1:8000", text)


def small(data: str, kind: str, alt: str) -> str:
    """A base64 figure that is small enough: only its description beside the pixels, then with a palette, then fewer pixels."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    image, note = Image.open(io.BytesIO(base64.b64decode(data))), PngInfo()
    if said := alt or image.info.get("Description", ""):
        note.add_itxt("Description", said)
    image = image.convert("RGB") if kind == "JPEG" or image.mode not in ("L", "P") else image
    tries = [image] + ([image.quantize(256, dither=Image.Dither.NONE)] if kind == "PNG" else [])
    while True:
        for candidate in tries:
            out = io.BytesIO()
            candidate.save(out, kind, optimize=True, **({"pnginfo": note} if kind == "PNG" else {}))
            if out.tell() <= IMAGE_KB * 1000:
                return base64.b64encode(out.getvalue()).decode()
        image = image.resize([round(n * 0.85) for n in image.size], Image.Resampling.LANCZOS)
        tries = [image.quantize(256, dither=Image.Dither.NONE) if kind == "PNG" else image]


def clean_html(data: dict[str, str]) -> dict[str, str]:
    """Nothing for HTML that shows nothing, such as a bar that is gone; a table of fastprogress without its twins, which pages would show as code."""
    html = data.get("text/html")
    if html is None or any(k in data for k in IMAGES):
        return data
    if not re.sub(r"(?s)<style.*?</style>|<!--.*?-->|<(?!img|svg|canvas|iframe|input)[^>]*>", "", html).strip():
        return {}
    if 'class="fastprogress"' not in html:
        return data
    rows = [re.findall(r"(?s)<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"(?s)<tr.*?</tr>", html)]
    return {"text/html": html, "text/plain": "\n".join("  ".join(f"{cell.strip():>10}" for cell in row) for row in rows)}


def normal(outputs: list[dict], home: str) -> list[dict]:
    """A cell's outputs as they are saved."""
    kept = []
    for o in outputs:
        if o["output_type"] == "stream":
            if o["name"] != "stdout":
                continue
            if kept and kept[-1]["output_type"] == "stream":
                kept[-1]["text"] += o["text"]
            else:
                kept.append({"name": "stdout", "output_type": "stream", "text": o["text"]})
            continue
        data = clean_html({k: o["data"][k] for k in SHOWN if k in o["data"]})
        if not data or "application/vnd.jupyter.widget-view+json" in o["data"]:
            continue
        alt = {k: m.get("alt", "") for k, m in o.get("metadata", {}).items() if k in IMAGES} # nbdev-clean would drop it: into the file
        data = {k: small(v, k[6:].upper(), alt.get(k, "")) if k in IMAGES else plain(v, home).splitlines(keepends=True) for k, v in data.items()}
        if re.match(r"<pre style=.white-space:pre", "".join(data.get("text/html", ""))): # rich's table, of which the text is enough
            del data["text/html"]
        if not "".join("".join(v) for v in data.values()).strip():
            continue # a bar that is gone
        kept.append({"data": data, "metadata": {}, "output_type": o["output_type"]} | (
            {"execution_count": None} if o["output_type"] == "execute_result" else {}))
    for o in kept:
        if o["output_type"] == "stream":
            lines = plain(o["text"], home).splitlines(keepends=True)
            logged = [line for line in lines if line.startswith('{"@timestamp"')]
            o["text"] = [line for line in lines if line not in logged] if len(logged) > 3 else lines # a service that talks in between
    return kept


def unchanging(outputs: list[dict]) -> str:
    """What two runs of the same code have in common; figures count whole."""
    return re.sub(r"[\s─━-]+", " ", VARIES.sub("#", json.dumps(outputs, sort_keys=True, ensure_ascii=False)))


def execute(path: Path) -> tuple[Path, float, str]:
    """Execute a notebook and save its outputs; returns the seconds, and the error if it failed."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    nb, begun = load(path), time.monotonic()
    run = nbformat.from_dict(json.loads(json.dumps(nb)))
    for c in run.cells:
        c.source = "".join(c.source)
    run.cells = [c for c in run.cells if c.cell_type == "code" and not re.search(r"^#\|\s*eval:\s*false", c.source, re.M)]
    with tempfile.TemporaryDirectory(prefix="lados-outputs-", ignore_cleanup_errors=True) as home:
        for name in ("home", "tmp", "here"):
            (Path(home) / name).mkdir()
        (Path(home) / "matplotlibrc").write_text("figure.dpi: 72\nsavefig.dpi: 72\n")
        ours = {"HOME": f"{home}/home", "TMPDIR": f"{home}/tmp", "IPYTHONDIR": f"{home}/home/.ipython", "LADOS_HOME": f"{home}/home/.lados",
                "MATPLOTLIBRC": f"{home}/matplotlibrc", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "LADOS_THREADS": "1",
                "TQDM_DISABLE": "1", "COLUMNS": "120", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        env = {k: v for k, v in os.environ.items() if not k.startswith(("LADOS_", "JUPYTER_", "IPYTHON", "MPLBACKEND"))} | ours
        client = NotebookClient(run, timeout=TIMEOUT_S, startup_timeout=TIMEOUT_S, kernel_name="python3", resources={"metadata": {"path": f"{home}/here"}})
        try:
            client.execute(env=env, stderr=subprocess.DEVNULL)
        except (CellExecutionError, RuntimeError, TimeoutError) as e: # also a kernel that died or took too long
            return path, time.monotonic() - begun, re.sub(r"\x1b\[[0-9;]*m", "", str(e))[-2000:]
        made = {c.id: normal([json.loads(json.dumps(o)) for o in c.outputs], home) for c in run.cells}
    for c, source in code(nb):
        new = [] if keeps_none(source) else made.get(c["id"], [])
        if unchanging(new) != unchanging(c["outputs"]):
            c["outputs"] = new
        c["execution_count"] = None
    nb["metadata"]["outputs_of"] = fingerprint(nb)
    save(path, nb)
    return path, time.monotonic() - begun, ""


def run(paths: list[Path]) -> bool:
    """Execute notebooks, two at a time, slow ones first; says which failed."""
    failed = []
    with ProcessPoolExecutor(2) as pool:
        slow = ("tutorials", "bench", "serve", "jobs", "model")
        for path, seconds, error in pool.map(execute, sorted(paths, key=lambda p: p.parent.name not in slow)):
            print(f"{path.relative_to(ROOT)}: {'failed' if error else 'executed'}, {seconds:.0f} s", flush=True)
            failed += [f"{path.relative_to(ROOT)}\n{error}"] if error else []
    print("\n".join(failed), file=sys.stderr)
    return not failed


# --- checking


def says_something(body: list[ast.stmt]) -> bool:
    """Whether these statements surely print: branches, handlers and functions may not be reached."""
    for s in body:
        if isinstance(s, ast.Expr) and isinstance(s.value, ast.Call) and ast.unparse(s.value.func) == "print":
            if not any(k.arg == "file" for k in s.value.keywords):
                return True
        elif isinstance(s, ast.With | ast.AsyncWith) and says_something(s.body):
            return "redirect" not in ast.unparse(s.items[0]) and "capture" not in ast.unparse(s.items[0])
    return False


def shows(source: str) -> bool:
    """Whether a cell surely has an output: it prints, or ends in an expression that is no call (a call may return None)."""
    try:
        body = ast.parse(re.sub(r"^\s*[%!].*$", "pass", source, flags=re.M), mode="exec").body
    except SyntaxError: # await and the like
        return False
    last = body[-1] if body else None
    value = isinstance(last, ast.Expr) and not isinstance(last.value, ast.Call | ast.Await | ast.Constant) and not source.rstrip().endswith(";")
    return value or says_something(body)


def only_imports(source: str) -> bool:
    """Whether there is nothing in a cell that an example could use."""
    return all(isinstance(s, ast.Import | ast.ImportFrom) or ast.unparse(s).startswith(("if TYPE_CHECKING", "with collector_paused"))
               for s in ast.parse(source).body)


def broken(nb: dict) -> list[str]:
    """What is wrong with a notebook."""
    sources, out = [s for _, s in code(nb)], []
    exported = [s for s in sources if re.search(r"^#\|\s*export", s, re.M)]
    lines = [sum(not line.startswith("#|") for line in s.strip().splitlines()) for s in exported]
    missing = sum(not only_imports(s) for s in exported) - sum(not keeps_none(s) for s in sources)
    out += [f"{missing} example cells fewer than exported cells; add some that use what is exported"] if missing > 0 else []
    long = sum(n > LONGEST for n in lines)
    out += [f"{long} exported cells of more than {LONGEST} lines; cut them where a reader would pause"] if long else []
    out += ["its code changed since its outputs were made; run make outputs"] if nb["metadata"].get("outputs_of") != fingerprint(nb) else []
    out += [f"no output kept of a cell that shows something: {s.strip().splitlines()[-1]!r}; run make outputs"
            for c, s in code(nb) if not keeps_none(s) and not c["outputs"] and shows(s)]
    out += [f"an output of a cell whose output is not for readers: {s.strip().splitlines()[-1]!r}" for c, s in code(nb) if keeps_none(s) and c["outputs"]]
    for o in (o for c, _ in code(nb) for o in c["outputs"]):
        data = {k: "".join(v) for k, v in (o.get("data") or {"text": o.get("text", "")}).items()}
        large = [k for k, v in data.items() if k in IMAGES and len(v) * 3 / 4 > IMAGE_KB * 1000]
        out += [f"an image of more than {IMAGE_KB} kB; run make outputs"] if large else []
        out += ["an output that pages show as HTML code; run make outputs"] if "```html" in data.get("text/markdown", "") else []
        told = [m[0] for k, v in data.items() if k not in IMAGES and (m := MACHINE.search(v.replace(str(ROOT), "/work/")))]
        out += [f"an output names a place of this machine ({told[0]}...); print less of the path"] if told else []
    return out


def problems() -> list[str]:
    """One line for each thing that is wrong."""
    return [f"{p.relative_to(ROOT)}: {text}" for p in notebooks() for text in broken(load(p))]


def stale() -> list[Path]:
    """Notebooks whose code is not that of their outputs."""
    loaded = {p: load(p) for p in notebooks()}
    return [p for p, nb in loaded.items() if nb["metadata"].get("outputs_of") != fingerprint(nb)]


if __name__ == "__main__":
    command, *rest = sys.argv[1:] or ["check"]
    if command == "run":
        named = [Path(n).resolve() for n in rest if n != "--all"]
        sys.exit(not run(named or (notebooks() if "--all" in rest else stale())))
    elif command == "check" and (found := problems()):
        sys.exit("\n".join(found))
    elif command != "check":
        sys.exit(__doc__)
