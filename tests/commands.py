"What tests of commands share: a command run in this process, and a package that brings something to lados."

import sys

import pytest

from lados.cli import main


def runner(monkeypatch, capsys):
    "Give a function that runs a command of lados in this process: its exit code, and what it printed."
    def command(*words):
        monkeypatch.setattr(sys, "argv", ["lados", *map(str, words)])
        with pytest.raises(SystemExit) as e:
            main.main()
            raise SystemExit(0)
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return e.value.code or 0, printed.out + printed.err

    return command


def install_package(folder, name, source, group, **records):
    "Write a module and the entry points by which lados finds what it brings; `folder` belongs on PYTHONPATH then."
    (folder / f"{name}.py").write_text(source)
    about = folder / f"{name}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"{record} = {name}:{attribute}\n" for record, attribute in records.items()]
    (about / "entry_points.txt").write_text(f"[{group}]\n" + "".join(lines))
