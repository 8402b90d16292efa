"""Make a folder that `flet build` turns into an application: `python pack.py DIR`. It holds the program and the client of the service."""

import shutil
import sys
from pathlib import Path

import lados.client

HERE = Path(__file__).resolve().parent
PROJECT = """[project]
name = "lados-flet"
version = "0.1.0"
description = "What is on the water? Aerial images of the sea, classified by lados"
requires-python = ">=3.11"
dependencies = ["flet>=1.0.5", "httpx>=0.28", "pillow>=11.1"]

[tool.flet]
org = "invalid.lados"
product = "lados"

[tool.flet.android.permission]
"android.permission.INTERNET" = true
"android.permission.CAMERA" = true
"""


def main() -> None:
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(HERE.parent / "lados_fronts", target / "lados_fronts", dirs_exist_ok=True, ignore=skip)
    shutil.copy(HERE / "main.py", target)
    (target / "lados").mkdir(exist_ok=True)
    (target / "lados" / "__init__.py").write_text('"""The client of lados alone."""\n')
    shutil.copy(lados.client.__file__, target / "lados")
    (target / "pyproject.toml").write_text(PROJECT)
    print(f"cd {target} && flet build apk")


if __name__ == "__main__":
    main()
