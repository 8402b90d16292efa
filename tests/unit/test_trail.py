"The audit trail: whole lines from many writers, also killed ones; what is asked of it."

import asyncio
import json
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from commands import refused, runner

from lados.serve.http import PROBLEMS, audited
from lados.trail import note_action, noted, read_trail

WRITE = """
import sys
from pathlib import Path
from lados.trail import note_action
n = 0
print("ready", flush=True); sys.stdin.readline()
while n < int(sys.argv[3]):
    note_action("cancel", f"{sys.argv[1]}-{n}", who=sys.argv[1], path=Path(sys.argv[2]), padding="x" * 150 * (n % 40))
    n += 1
"""


def writers(path, count, entries) -> list[subprocess.Popen]:
    started = [subprocess.Popen([sys.executable, "-c", WRITE, f"w{i}", str(path), str(entries)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
               for i in range(count)]
    for p in started:
        assert p.stdout.readline() == "ready\n"
    for p in started:
        p.stdin.write("\n")
        p.stdin.flush()
    return started


def test_many_writers_one_is_killed_and_the_file_is_rotated(tmp_path):
    "Every entry of the living is there once, whole and in order, whichever of the two files it went to."
    path, old = tmp_path / "audit.jsonl", tmp_path / "audit.jsonl.1"
    *living, victim = writers(path, 4, 60)
    while len(list(read_trail(path))) < 30:
        time.sleep(0.005)
    victim.send_signal(signal.SIGKILL)
    path.rename(old)
    assert all(p.wait(60) == 0 for p in living)
    victim.wait()
    found = [e["target"] for p in (old, path) for e in read_trail(p)]
    for i in range(3):
        assert [t for t in found if t.startswith(f"w{i}-")] == [f"w{i}-{n}" for n in range(60)]
    whole = [line for p in (old, path) for line in p.read_bytes().splitlines() if line]
    assert len(found) >= len(whole) - 1, "at most the killed one's last line is cut off"


def test_half_a_line_is_left_alone_and_spoils_no_other(tmp_path):
    path = tmp_path / "audit.jsonl"
    note_action("promote", "a", path=path)
    path.write_bytes(path.read_bytes() + b'{"at": "20')
    note_action("promote", "b", path=path)
    path.write_bytes(path.read_bytes() + b"[1]\nnull\n\xff\xfe\n")
    note_action("promote", "c", path=path)
    assert [e["target"] for e in read_trail(path)] == ["a", "b", "c"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_entry_is_one_line_whatever_it_is_about(tmp_path):
    path = tmp_path / "audit.jsonl"
    note_action("promote", 'a\n{"who": "root"}\u2028\u0085\x1b[31m' + "x" * 500, who="k\r", path=path)
    (entry,) = read_trail(path)
    assert path.read_bytes().count(b"\n") == 1 and len(entry["target"]) <= 200 and "\x1b" not in entry["target"] and entry["who"] == "k_"


def test_an_action_goes_on_where_the_trail_cannot_be_written(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    note_action("promote", "spring", path=tmp_path / "file" / "audit.jsonl")
    assert "spring" in caplog.text and "cannot be written" in caplog.text


def test_half_an_entry_on_a_full_disk_goes_to_the_log_and_the_next_is_whole(tmp_path):
    "The kernel takes what fits, and says so only at the next write."
    path = tmp_path / "audit.jsonl"
    code = ("import resource, sys; from pathlib import Path; from lados.trail import note_action\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (50, resource.RLIM_INFINITY))\n"
            "note_action('promote', 'spring', path=Path(sys.argv[1]))")
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert path.stat().st_size == 50 and "cannot be written" in done.stderr and "spring" in done.stderr
    note_action("promote", "summer", path=path)
    assert [e["target"] for e in read_trail(path)] == ["summer"]


def test_what_is_interrupted_is_not_said_to_be_done(home):
    for error in (KeyboardInterrupt, SystemExit):
        with pytest.raises(error), noted("promote", "spring"):
            raise error
    with noted("promote", "spring"):
        pass
    assert [e["result"] for e in read_trail()] == ["interrupted", "interrupted", "done"]


def test_a_request_that_is_cancelled_is_not_said_to_have_been_done(tmp_path):
    "Twice, as a server that stops cancels a request that is being cancelled."
    async def promote(waits):
        async with audited(request, "promote", "spring"):
            inside.set()
            await asyncio.sleep(60 if waits else 0)

    async def both():
        for waits in (True, False):
            inside.clear()
            task = asyncio.create_task(promote(waits))
            await inside.wait()
            if waits:
                task.cancel()
                await asyncio.sleep(0)
                task.cancel()
            await asyncio.wait([task])
        while len(list(read_trail(path))) < 2:
            await asyncio.sleep(0.01)

    path, inside = tmp_path / "audit.jsonl", asyncio.Event()
    request = SimpleNamespace(state=SimpleNamespace(key=SimpleNamespace(name="camera"), request_id="flight-7"),
                              app=SimpleNamespace(state=SimpleNamespace(trail=path, problems=PROBLEMS)))
    asyncio.run(both())
    assert sorted(e["result"] for e in read_trail(path)) == ["done", "interrupted"]


def test_a_training_from_a_notebook_is_in_it(home):
    pytest.importorskip("anywidget", reason="anywidget is not installed: `make setup` installs it")
    from lados.ui.monitor import submit_training

    view = submit_training("demo")
    view.close()
    (entry,) = read_trail(action="submit")
    assert (entry["target"], entry["kind"], entry["result"]) == (view.job_id, "train", "done")


def test_questions(home, monkeypatch, capsys):
    command = runner(monkeypatch, capsys)
    assert "no entry" in command("trail")[1]
    for n in range(5):
        note_action("cancel" if n % 2 else "promote", f"job-{n}", who="desk" if n < 3 else "release", request_id=f"r{n}")

    def targets(*words):
        return [json.loads(line)["target"] for line in command("trail", "--json", *words)[1].splitlines()]

    assert targets("--who", "desk") == ["job-0", "job-1", "job-2"] and targets("--action", "cancel") == ["job-1", "job-3"]
    assert targets("--limit", "2") == ["job-3", "job-4"] and targets("--target", "job-2") == ["job-2"]
    assert targets("--since", "1h") == targets() and targets("--since", "2126-01-01") == []
    assert "release" in command("trail")[1]
    for words in (("--action", "promot"), ("--since", "yesterday"), ("--since", "d")):
        code, printed = command("trail", *words)
        assert code == 2 and "->" in printed
    with refused("invalid-value"):
        list(read_trail(action="nothing"))


@pytest.mark.parametrize("words", [("job", "cancel", "0" * 32), ("job", "retry", "0" * 32), ("schedule", "remove", "none"), ("schedule", "pause", "none"),
                                   ("schedule", "add", "0 3 * * 1", "--name", "weekly", "--preset", "demo"), ("schedule", "remove", "weekly")])
def test_commands_leave_an_entry(home, monkeypatch, capsys, words):
    code, _ = runner(monkeypatch, capsys)(*words)
    (entry,) = read_trail()
    assert entry["who"].startswith("user:") and (entry["result"] == "done") == (code == 0)
    assert entry["action"] == (words[1] if words[0] == "job" else "schedule") and entry["target"] in (*words[2:], "weekly")
