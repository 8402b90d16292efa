"""Texts of the front ends: which there are, which lack a translation, and the compiled catalogues.

    python tools/texts.py            say what is missing, changing nothing
    python tools/texts.py write      add missing texts to the .po files, drop those that are gone, and compile
"""
import ast
import sys
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

FRONTS = Path(__file__).resolve().parents[1] / "fronts"
LOCALE = FRONTS / "lados_fronts" / "locale"
CALLS = {"t": 1, "self": 1, "many": 2} # names by which texts are asked for -> how many texts a call has


def called(node: ast.Call) -> int:
    """How many texts a call has: `t("...")`, `self("...")`, `t.many("...", "...", n)`, `here.t(...)`."""
    name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr if isinstance(node.func, ast.Attribute) else ""
    return CALLS.get(name, 0)


def used() -> dict[tuple[str, ...], str]:
    """Every text with the file that has it first; those the service says are listed in phrases.py."""
    found: dict[tuple[str, ...], str] = {}
    for path in sorted(FRONTS.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            words = []
            if isinstance(node, ast.Call) and (n := called(node)):
                words = [a.value for a in node.args[:n] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            elif path.name == "phrases.py" and isinstance(node, ast.Tuple):
                for word in node.elts:
                    found.setdefault((word.value,), path.relative_to(FRONTS).as_posix())
            if words and all(words):
                found.setdefault(tuple(words), path.relative_to(FRONTS).as_posix())
    return found


def catalogues() -> dict[Path, Catalog]:
    """The .po files by path."""
    return {p: read_po(p.open("rb"), p.parts[-3]) for p in sorted(LOCALE.glob("*/LC_MESSAGES/*.po"))}


def missing(catalogue: Catalog) -> list[str]:
    """Texts without a translation, with a doubtful one, or with other values in braces; and translations of texts that are gone."""
    import re

    texts, bad = used(), []
    for words in texts:
        m = catalogue.get(words[0])
        strings = [] if m is None else [m.string] if isinstance(m.string, str) else list(m.string)
        fields = set(re.findall(r"\{\w+\}", words[-1]))
        if not strings or not all(strings) or m.fuzzy or (len(words) > 1) != (len(strings) > 1):
            bad.append(f"not translated: {words[0]}")
        elif any(set(re.findall(r"\{\w+\}", s)) != fields for s in strings):
            bad.append(f"other values in braces: {words[0]}")
    known = {w[0] for w in texts}
    return bad + [f"not used any more: {m.id}" for m in catalogue if m.id and (m.id if isinstance(m.id, str) else m.id[0]) not in known]


def compiled(catalogue: Catalog) -> bytes:
    """The .mo file."""
    import io

    out = io.BytesIO()
    write_mo(out, catalogue)
    return out.getvalue()


def write(path: Path, catalogue: Catalog) -> None:
    """Bring a .po file and its .mo in step with the texts."""
    new = Catalog(locale=catalogue.locale, project="lados", fuzzy=False)
    for words, place in used().items():
        old = catalogue.get(words[0])
        new.add(words if len(words) > 1 else words[0], old.string if old else None, locations=[(place, 1)])
    with path.open("wb") as file:
        write_po(file, new, width=140, omit_header=False, no_location=True, sort_output=True)
    path.with_suffix(".mo").write_bytes(compiled(new))


def main() -> None:
    """Check, or write."""
    wrong = []
    for path, catalogue in catalogues().items():
        if sys.argv[1:] == ["write"]:
            write(path, catalogue)
            catalogue = read_po(path.open("rb"), path.parts[-3])
        wrong += [f"{path.parts[-3]}: {w}" for w in missing(catalogue)]
        if path.with_suffix(".mo").read_bytes() != compiled(catalogue):
            wrong.append(f"{path.name}: its .mo is older: python tools/texts.py write")
    sys.exit("\n".join(wrong) or None)


if __name__ == "__main__":
    main()
