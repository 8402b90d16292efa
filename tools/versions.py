"""Versions that were tested together.

    python tools/versions.py freeze > constraints.txt   what this environment has of lados' requirements and theirs
    python tools/versions.py keep   > /tmp/c.txt        constraints.txt, but a torch >= 2.11 that is already here stays
"""
import re
import sys
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.version import Version

KEPT = ("torch", "torchvision")
# torch asks for these itself, with other versions for each torch and each kind of machine
TORCHS_OWN = re.compile(r"nvidia-|cuda-|triton")


def closure(name: str, extras: set[str], found: dict[str, str]) -> dict[str, str]:
    """Name and version of everything installed that `name` with its extras leads to."""
    for text in distribution(name).requires or []:
        need = Requirement(text)
        wanted = not need.marker or any(need.marker.evaluate({"extra": e}) for e in extras | {""})
        if not wanted or need.name.lower() in found or TORCHS_OWN.match(need.name):
            continue
        try:
            found[need.name.lower()] = version(need.name).split("+")[0]
        except PackageNotFoundError:
            continue
        closure(need.name, need.extras, found)
    return found


def freeze() -> str:
    """constraints.txt for what is installed here."""
    pins = closure("lados", {"train", "serve", "export", "app", "jobs", "s3", "geo", "otel", "lab", "docs", "dev"}, {})
    head = "# Tested together. Any torch >= 2.11 that is already installed is kept by `make setup`.\n"
    return head + "".join(f"{n}=={v}{newer_python(n)}\n" for n, v in sorted(pins.items()))


def newer_python(name: str) -> str:
    """The marker of a pin that an older patch release of Python, such as Debian 12's 3.11.2, cannot have."""
    asked = re.search(r">=(3\.11\.[1-9]\d*)", (distribution(name).metadata["Requires-Python"] or "").replace(" ", ""))
    return f' ; python_full_version >= "{asked[1]}"' if asked else ""


def keep() -> str:
    """constraints.txt with the installed torch and torchvision in place of the tested ones, if new enough."""
    text = (Path(__file__).parents[1] / "constraints.txt").read_text()
    try:
        if Version(version("torch")) < Version("2.11"):
            return text
    except PackageNotFoundError:
        return text
    for name in KEPT:
        try:
            pin = f"{name}=={version(name)}"
        except PackageNotFoundError:
            pin = "" # pip finds the one that belongs to this torch
        text = re.sub(rf"^{name}==.*$", pin, text, flags=re.M)
    return text


if __name__ == "__main__":
    sys.stdout.write({"freeze": freeze, "keep": keep}[sys.argv[1]]())
