"What tests of commands and of refusals share: a command run in this process, an error by its code, a package that brings something to lados."

import contextlib
import io
import os
import sys
from subprocess import CompletedProcess

import pytest

from lados.cli import main
from lados.core import LadosError, settings


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


@contextlib.contextmanager
def refused(code, *named):
    "What is done here raises the error of this code, which names these things, and a remedy."
    with pytest.raises(LadosError) as e:
        yield e
    assert e.value.code == code and e.value.remedy, (e.value.code, str(e.value))
    assert all(name in str(e.value) for name in named), str(e.value)


def run_here(folder, env, *words):
    "Run a command of lados in this process, from a folder and with an environment: what `subprocess.run` gives, in a fraction of its time."
    out, err, before = io.StringIO(), io.StringIO(), dict(os.environ)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["lados", *map(str, words)])
        try:
            os.environ |= env
            settings.cache_clear()
            main.main()
            code = 0
        except SystemExit as e:
            code = e.code or 0
        finally:
            os.environ.clear()
            os.environ.update(before)
            settings.cache_clear()
    return CompletedProcess(words, code, out.getvalue(), err.getvalue())


def install_package(folder, name, source, group, **records):
    "Write a module and the entry points by which lados finds what it brings; `folder` belongs on PYTHONPATH then."
    (folder / f"{name}.py").write_text(source)
    about = folder / f"{name}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"{record} = {name}:{attribute}\n" for record, attribute in records.items()]
    (about / "entry_points.txt").write_text(f"[{group}]\n" + "".join(lines))
