"The audit trail: whole lines from many writers, also killed ones; what is asked of it."

import json
import signal
import subprocess
import sys
import time

import pytest
from commands import refused, runner

from lados.trail import note_action, read_trail

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
