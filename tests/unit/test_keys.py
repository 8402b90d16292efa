"API keys at rest: made once, kept as hashes, added and removed by several processes, read anew; rates that processes share."

import json
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
from commands import refused, runner

from lados.keys import (
    SCOPES,
    ApiKey,
    Buckets,
    KeyRing,
    RateLimited,
    ScopeMissing,
    Unauthorized,
    add_key,
    read_keys,
    remove_key,
)


def together(code, count, *words) -> list[str]:
    "What `count` processes print that begin at the same moment; each knows its number as `me`."
    start = str(time.time() + 0.8)
    code = f"import sys, time; me = int(sys.argv[1]); time.sleep(max(0, float(sys.argv[2]) - time.time()))\n{code}"
    processes = [subprocess.Popen([sys.executable, "-c", code, str(i), start, *map(str, words)], stdout=subprocess.PIPE, text=True) for i in range(count)]
    printed = [p.communicate(timeout=60)[0] for p in processes]
    assert not any(p.returncode for p in processes)
    return printed


def test_a_key_is_nowhere_but_with_its_user(tmp_path):
    path = tmp_path / "home" / "keys.json"
    key = add_key(path, "desk", ["train", "predict", "predict"])
    assert key not in path.read_text() and key[6:] not in path.read_text() and path.stat().st_mode & 0o777 == 0o600
    (kept,) = read_keys(path)
    assert (kept.name, kept.scopes, kept.expires, kept.rate) == ("desk", ("predict", "train"), None, None)
    path.chmod(0o640)
    add_key(path, "other", ["admin"])
    assert path.stat().st_mode & 0o777 == 0o640, "who lets a group read it keeps that"


@pytest.mark.parametrize("scopes", [["predict"], ["train"], ["admin"], ["predict", "admin"]])
def test_a_scope_opens_itself_and_no_other(scopes):
    key = ApiKey("x", "0" * 64, tuple(scopes))
    for scope in SCOPES:
        if scope in scopes:
            key.require(scope)
            continue
        with pytest.raises(ScopeMissing) as e:
            key.require(scope)
        assert scope in e.value.problem and f"--scope {scope}" in e.value.remedy
    key.require()
    key.require("admin", "predict", "train")


def test_old_and_new_are_both_valid_until_the_old_one_is_removed(tmp_path):
    path, ring = tmp_path / "keys.json", KeyRing(tmp_path / "keys.json", "m", every=0)
    old = add_key(path, "camera", ["predict"])
    new = add_key(path, "camera-2", ["predict"])
    assert [ring.admit(k, "predict").name for k in (old, new, "m")] == ["camera", "camera-2", "API_KEY"]
    remove_key(path, "camera")
    with pytest.raises(Unauthorized):
        ring.admit(old)
    assert ring.admit(new).name == "camera-2"
    path.unlink()
    with pytest.raises(Unauthorized):
        ring.admit(new)


def test_requests_do_not_wait_for_the_disk(tmp_path):
    path = tmp_path / "keys.json"
    ring, eager = KeyRing(path, "m", every=3600), KeyRing(path, "m", every=0)
    ring.admit("m")
    key = add_key(path, "late", ["predict"])
    assert eager.admit(key).name == "late"
    with pytest.raises(Unauthorized):
        ring.admit(key) # its next look is in an hour


def test_a_key_whose_time_is_over_is_closed(tmp_path):
    path = tmp_path / "keys.json"
    key, ring = add_key(path, "guest", ["predict"], days=1), KeyRing(path, every=0)
    ring.admit(key)
    document = json.loads(path.read_text())
    document["keys"][0]["expires"] = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    path.write_text(json.dumps(document))
    with pytest.raises(Unauthorized, match="expired"):
        ring.admit(key)


@pytest.mark.parametrize("text", ["{", "[]", '{"keys": [{"name": "x"}]}', '{"keys": [{"name": "x", "sha256": "short", "scopes": []}]}',
                                  '{"keys": [{"name": "x", "sha256": "%s", "scopes": ["all"]}]}' % ("0" * 64),
                                  '{"keys": [{"name": "x", "sha256": "%s", "scopes": [], "expires": "soon"}]}' % ("0" * 64), "\0", ""])
def test_a_damaged_file_opens_nothing(tmp_path, text):
    "Not even what was in it before: the slip may be in the line that was to go."
    path = tmp_path / "keys.json"
    key, ring = add_key(path, "desk", ["predict"]), KeyRing(path, "m", every=0)
    ring.admit(key)
    path.write_text(text)
    for given in (key, "", None, "x"):
        with pytest.raises(Unauthorized) as e:
            ring.admit(given)
        assert str(tmp_path) not in str(e.value)
    assert ring.admit("m").name == "API_KEY"
    with refused("invalid-value", "keys.json"):
        add_key(path, "another", ["predict"])
    assert path.read_text() == text, "nothing is written over it"


def test_processes_lose_no_key(tmp_path):
    path = tmp_path / "keys.json"
    code = "from lados.keys import add_key\nfrom pathlib import Path\nfor n in range(5): add_key(Path(sys.argv[3]), f'k{me}-{n}', ['predict'])"
    together(code, 3, path)
    assert sorted(k.name for k in read_keys(path)) == [f"k{i}-{n}" for i in range(3) for n in range(5)]


def test_processes_share_a_rate(tmp_path):
    "Sixty a minute, asked 300 times by three: sixty, and what has come in meanwhile."
    code = ("from lados.keys import *\nfrom pathlib import Path\nb, k = Buckets(Path(sys.argv[3])), ApiKey('k', '0' * 64, (), rate=60)\n"
            "start = time.time(); print(sum(b.take(k) == 0 for _ in range(100)), time.time() - start)")
    answers = [line.split() for line in together(code, 3, tmp_path)]
    let, spent = sum(int(n) for n, _ in answers), max(float(s) for _, s in answers)
    assert 60 <= let <= 62 + 3 * spent, answers


def test_a_rate_says_when_to_ask_again(tmp_path):
    key = ApiKey("k", "0" * 64, (), rate=2)
    for buckets in (Buckets(), Buckets(tmp_path)):
        waits = [buckets.take(key) for _ in range(4)]
        assert waits[:2] == [0, 0] and all(0 < w <= 30 for w in waits[2:])
    assert RateLimited("k", 0.2).retry_after == 1 and RateLimited("k", 29.1).retry_after == 30


def test_commands(home, monkeypatch, capsys):
    command = runner(monkeypatch, capsys)
    code, printed = command("keys", "add", "desk", "--scope", "predict", "--days", "30", "--rate", "60")
    assert code == 0 and (key := printed.split()[0]).startswith("lados_")
    assert KeyRing(home / "lados_home" / "keys.json").admit(key, "predict").name == "desk"
    code, printed = command("keys", "list")
    assert code == 0 and "desk" in printed and key not in printed
    assert json.loads(command("keys", "list", "--json")[1])[0]["rate"] == 60
    for words in (("add", "desk", "--scope", "train"), ("add", "x"), ("add", "x", "--scope", "al"), ("add", "API_KEY", "--scope", "train"),
                  ("add", "a b", "--scope", "train"), ("add", "x", "--scope", "train", "--days", "0"), ("remove", "dusk")):
        code, printed = command("keys", *words)
        assert code == 2 and "->" in printed, words
    assert command("keys", "remove", "desk")[0] == 0 and "no keys" in command("keys", "list")[1]
    code, printed = command("trail", "--json")
    entries = [json.loads(line) for line in printed.splitlines()]
    assert [(e["action"], e["target"], e["result"]) for e in entries][:2] == [("key-add", "desk", "done"), ("key-add", "desk", "invalid-value")]
    assert entries[-1]["action"] == "key-remove" and entries[-1]["who"].startswith("user:") and key not in printed
    monkeypatch.setenv("LADOS_KEYS", str(home / "elsewhere.json"))
    from lados.core import settings

    settings.cache_clear()
    assert command("keys", "add", "x", "--scope", "admin")[0] == 0 and (home / "elsewhere.json").exists()


def test_who_asks_while_the_file_is_read_has_the_keys_of_the_look_before(tmp_path, monkeypatch):
    path = tmp_path / "keys.json"
    key = add_key(path, "camera", ["predict"])
    ring, reading, go_on = KeyRing(path, "s3cret", every=0), threading.Event(), threading.Event()

    def slowly(path):
        reading.set()
        assert go_on.wait(30)
        return read_keys(path)

    new = add_key(path, "other", ["predict"])
    monkeypatch.setattr("lados.keys.read_keys", slowly)
    first = threading.Thread(target=ring.find, args=(new,))
    first.start()
    assert reading.wait(30) and ring.find(key).name == "camera"
    go_on.set()
    first.join()
    assert ring.find(new).name == "other"


def test_a_new_ring_has_the_keys_before_the_first_request(tmp_path):
    add_key(tmp_path / "keys.json", "camera", ["predict"])
    assert [k.name for k in KeyRing(tmp_path / "keys.json", "s3cret").keys] == ["API_KEY", "camera"]
