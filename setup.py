"""Packaging of `lados`: everything but the version is read from settings.ini."""
import configparser
import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
ini = configparser.ConfigParser(delimiters=["="], interpolation=None)
ini.read(here / "settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]
licences = {"apache2": "Apache-2.0"}


def words(key: str) -> list[str]:
    """The whitespace-separated entries of `key` in settings.ini."""
    return cfg[key].split()


class BuildWithNotebooks(build_py):
    """A wheel carries job notebooks, presets, pages and front ends below `lados/`; an editable install reads nbs."""

    def run(self) -> None:
        super().run()
        for path in [] if self.editable_mode else carried():
            inside = path.relative_to(here / "nbs") if path.is_relative_to(here / "nbs") else path.relative_to(here)
            target = Path(self.build_lib, "lados", inside)
            self.mkpath(str(target.parent))
            self.copy_file(str(path), str(target))


def carried() -> list[Path]:
    """Files that are used as they are: job notebooks and presets, pages with what belongs to them, and front ends."""
    kinds = {"papermill/*": (".ipynb", ".yaml"), "apps/**/*": (".ipynb", ".js", ".css", ".json", ".html", ".j2")}
    found = (p.relative_to(here) for where, endings in kinds.items() for p in (here / "nbs").glob(where) if p.suffix in endings)
    fronts = (p.relative_to(here) for p in (here / "fronts").rglob("*") if p.suffix in (".py", ".mo", ".po", ".svg", ".toml", ".md", ".png", ".json"))
    return sorted(here / p for p in (*found, *fronts) if not any(part.startswith((".", "__pycache__")) for part in p.parts))


extras = {key.removesuffix("_requirements"): words(key) for key in cfg if key.endswith("_requirements")}
extras["predict"] = extras["data"] + extras["predict"]
extras["train"] = extras["predict"] + extras["train"]
extras["app"] = extras["data"] + extras["serve"] + extras["app"]
extras["jobs"] = extras["data"] + extras["serve"] + extras["jobs"]
extras["export"] = extras["predict"] + extras["serve"] + extras["export"]
extras["all"] = sorted({r for rs in extras.values() for r in rs})
version = re.search(r'^__version__ = "(.+)"', (here / "lados/__init__.py").read_text(), re.M)[1]

setup(
    name=cfg["lib_name"],
    version=version,
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8") if (here / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    license=licences[cfg["license"]],
    keywords=words("keywords"),
    python_requires=f">={cfg['min_python']}",
    packages=find_packages(include=["lados", "lados.*"]),
    cmdclass={"build_py": BuildWithNotebooks},
    install_requires=words("requirements"),
    extras_require=extras,
    entry_points={"console_scripts": words("console_scripts"), "nbdev": ["lados=lados._modidx:d"]},
)
