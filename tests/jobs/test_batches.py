"Batches: from a stream or a place to a folder that workers read, within limits, and without a trace where it fails."

import asyncio
import contextlib
import io
import os
import random
import shutil
import signal
import stat
import struct
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import fsspec
import pytest
from serving import KEY, START, Memory, colours, runs, serving, wait_for
from toy import small_disk

from lados.core import ConfigError, DataError, DiskFull, ImageError, ImageTooLarge, settings
from lados.files import read_json
from lados.jobs import batches
from lados.jobs.batches import Batch, batch_entries, check_allowed, fetch_image, sweep_batches
from lados.serve.uploads import BadForm, Budget, Limits, SlowBody, discarding, read_uploads

LIMITS = Limits(10_000_000, 16, 65_536 + 16 * 1024)
KIND = "multipart/form-data; boundary=xyz"


@pytest.fixture
def places(home, monkeypatch):
    "Settings of a test: what is uploaded is small."
    monkeypatch.setenv("MAX_UPLOAD_SIZE_MB", "1")
    monkeypatch.setenv("MAX_BATCH_MB", "50")
    monkeypatch.setenv("LADOS_SOURCES", f"{home / 'flights'}, memory://season/2026, s3://key:secret@spills/")
    settings.cache_clear()
    return home


def left(home) -> list[str]:
    "What is in the folder of batches."
    folder = home / "lados_home" / "batches"
    return sorted(p.name for p in folder.iterdir() if p.name != ".lock") if folder.exists() else []


def sealed(*files, name="b", sources=()) -> Path:
    with Batch.begin() as batch:
        for shown, data in files:
            batch.file(shown)
            batch.write(data)
        for where in sources:
            batch.source(where, trusted=True)
        return batch.seal(name)


def told(folder) -> list[tuple[str, str]]:
    return [(e.name, e.error) for e in batch_entries(folder)]


def zipped(members, **options) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", **options) as z:
        for name, data in members:
            z.writestr(name, data)
    return out.getvalue()


def part(name, content, kind="image/jpeg") -> bytes:
    head = f'--xyz\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\nContent-Type: {kind}\r\n\r\n'
    return head.encode() + content + b"\r\n"


async def stream(pieces, size=65_536):
    "Pieces as they come from a socket: cut anywhere."
    held = bytearray()
    for piece in pieces:
        held += piece
        while len(held) >= size:
            yield bytes(held[:size])
            del held[:size]
    yield bytes(held)


async def read(body, kind=KIND, limits=LIMITS, budget=None):
    budget = budget or Budget(256 << 20)
    with budget.hold() as held:
        async with discarding(Batch.begin) as begin:
            found = await read_uploads(body, kind, limits, held, overflow=begin)
            assert isinstance(found, list) or budget.held == 0, "the memory is given back before the answer"
            return found


# --- streams


def test_thousands_of_images_go_to_the_disk_in_little_memory(places):
    rng = random.Random(0)
    data = [rng.randbytes(rng.choice((0, 1, 500, 20_000))) for _ in range(3000)]

    def form():
        for i, content in enumerate(data):
            yield part(f"flight/{i}.jpg", content)
        yield b"--xyz--\r\n"

    with Memory(os.getpid()) as memory:
        folder = asyncio.run(read(stream(form()))).seal("big")
    assert memory.grown < 16
    found = batch_entries(folder)
    assert [e.name for e in found] == [f"{i}.jpg" for i in range(3000)] and not any(e.error for e in found)
    assert all(fetch_image(e, folder).read_bytes() == d for e, d in zip(found, data, strict=True))
    assert batch_entries(folder, 2499, 2502) == found[2499:2502] and batch_entries(folder, 999, 1001) == found[999:1001]
    assert batch_entries(folder, 2990) == found[2990:] and batch_entries(folder, 3000, 3128) == batch_entries(folder, 5, 5) == []


def test_other_requests_are_answered_while_a_disk_is_slow(places):
    slow = threading.Event()

    class Slow:
        def file(self, name):
            slow.wait(20)

        def write(self, data):
            pass

    async def both():
        with Budget(1 << 20).hold() as held:
            body = stream([part(f"{i}.jpg", b"x") for i in range(3)] + [b"--xyz--\r\n"])
            task = asyncio.ensure_future(read_uploads(body, KIND, Limits(1000, 1), held, overflow=Slow))
            await asyncio.sleep(0.1)
            assert not task.done(), "the loop runs, and the sink waits"
            slow.set()
            assert isinstance(await task, Slow)

    asyncio.run(both())


def test_few_images_stay_in_memory(places):
    found = asyncio.run(read(stream([part("a.jpg", b"1"), part("b.jpg", b"2"), b"--xyz--\r\n"])))
    assert [u.name for u in found] == ["a.jpg", "b.jpg"] and left(places) == []


@pytest.mark.parametrize("kind, body", [
    ("application/zip", zipped([("1.jpg", b"one"), ("2.jpg", b"two")])),
    (KIND, part("flight.ZIP", zipped([("1.jpg", b"one"), ("2.jpg", b"two")])) + b"--xyz--\r\n"),
    (KIND, part("flight", zipped([("1.jpg", b"one"), ("2.jpg", b"two")]), "application/zip") + b"--xyz--\r\n")])
def test_a_zip_is_a_batch_however_small(places, kind, body):
    folder = asyncio.run(read(stream([body], 10), kind)).seal("z")
    assert told(folder) == [("1.jpg", ""), ("2.jpg", "")]
    assert [fetch_image(e, folder).read_bytes() for e in batch_entries(folder)] == [b"one", b"two"]
    assert len(list((folder / "images").iterdir())) == 2, "the zip itself is gone"


def many(cut=None):
    whole = b"".join(part(f"{i}.jpg", bytes(2000)) for i in range(2000)) + b"--xyz--\r\n"
    return stream([whole[:cut]])


async def gone():
    async for chunk in many(3_000_000):
        yield chunk
    raise ConnectionResetError("the client went")


async def stuck():
    async for chunk in many(3_000_000):
        yield chunk
    await asyncio.sleep(60)


@pytest.mark.parametrize("body, kind", [
    (lambda: many(3_000_000), BadForm), (gone, ConnectionResetError), (stuck, SlowBody),
    (lambda: stream([part("a.jpg", b"x")] * 20 + [b'--xyz\r\nContent-Disposition: form-data; name="n"\r\n\r\n', bytes(200_000)]), BadForm),
    (lambda: stream([part("a.jpg", b"x")] * 20 + [part("large.jpg", bytes(1_100_000)), b"--xyz--\r\n"]), ImageTooLarge),
    (lambda: stream([*(part("a.jpg", bytes(900_000)) for _ in range(60)), b"--xyz--\r\n"]), ImageTooLarge)])
def test_a_stream_that_fails_leaves_nothing(places, body, kind):
    limits = Limits(10_000_000, 16, LIMITS.rest, 0.5 if body is stuck else 60)
    with pytest.raises(kind):
        asyncio.run(read(body(), limits=limits))
    assert left(places) == []


def test_a_cancelled_stream_leaves_nothing(places):
    async def cut():
        task = asyncio.ensure_future(read(stuck()))
        while not left(places):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cut())
    assert left(places) == []


def test_a_time_limit_is_on_progress_and_not_on_the_whole(places):
    async def slowly():
        for i in range(30):
            yield part(f"{i}.jpg", bytes(100))
            await asyncio.sleep(0.1)
        yield b"--xyz--\r\n"

    folder = asyncio.run(read(slowly(), limits=Limits(10_000, 2, seconds=1.5))).seal("slow")
    assert len(batch_entries(folder)) == 30


# --- what a batch is


def test_names_may_repeat_and_order_is_kept(places):
    folder = sealed(("a.jpg", b"1"), ("a.jpg", b"2"), ("ж\x00\n.jpg", b"3"), ("", b""), ("x" * 999, b"5"))
    assert [n for n, _ in told(folder)] == ["a.jpg", "a.jpg", "ж__.jpg", "image", "x" * 300]
    assert [fetch_image(e, folder).read_bytes() for e in batch_entries(folder)] == [b"1", b"2", b"3", b"", b"5"]
    assert len((folder / "list.jsonl").read_text().splitlines()) == 5 == read_json(folder / "batch.json")["images"]


def test_the_same_batch_has_the_same_key(places, home):
    def key(folder):
        return read_json(folder / "batch.json")["key"]

    files = [("a.jpg", b"one"), ("b.jpg", b"two")]
    same, again = sealed(*files, name="1"), sealed(*files, name="2")
    others = [sealed(*files[::-1], name="3"), sealed(("a.jpg", b"onet"), ("b.jpg", b"wo"), name="4"), sealed(files[0], name="5")]
    assert key(same) == key(again) and len({key(f) for f in [same, *others]}) == 4
    (home / "f").mkdir()
    (home / "f" / "1.jpg").write_bytes(b"one")
    first = key(sealed(sources=[str(home / "f")], name="6"))
    assert first == key(sealed(sources=[str(home / "f")], name="7"))
    (home / "f" / "1.jpg").write_bytes(b"longer")
    assert first != key(sealed(sources=[str(home / "f")], name="8"))


def test_nothing_is_no_batch(places):
    with pytest.raises(DataError, match="no images"):
        sealed()
    with pytest.raises(DataError, match=r"no images in the batch: a\.zip: .*not a readable zip"):
        sealed(("a.zip", b"PK"))
    assert left(places) == []


@pytest.mark.parametrize("name", ["../b", "", ".b", "a/b", "there"])
def test_a_batch_needs_a_name_of_its_own(places, name):
    sealed(("a.jpg", b"1"), name="there")
    with pytest.raises(DataError, match="no name for a batch"):
        sealed(("a.jpg", b"2"), name=name)
    assert left(places) == ["there"]


def test_a_batch_that_ended_takes_no_more(places):
    batch = Batch.begin()
    batch.file("a.jpg")
    folder = batch.seal("b")
    batch.discard()
    assert folder.exists()
    for late in (lambda: batch.file("b.jpg"), lambda: batch.write(b"1"), lambda: batch.seal("c")):
        with pytest.raises(DataError, match="ended already"):
            late()


# --- archives


def locked_member() -> bytes:
    "A zip whose second member says that it is encrypted."
    data = bytearray(zipped([("1.jpg", b"one"), ("2.jpg", b"two")]))
    local, central = data.rfind(b"PK\3\4"), data.rfind(b"PK\1\2")
    data[local + 6] |= 1
    data[central + 8] |= 1
    return bytes(data)


def link() -> bytes:
    info = zipfile.ZipInfo("2.jpg")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return zipped([("1.jpg", b"one"), (info, b"/etc/passwd")])


def damaged() -> bytes:
    data = bytearray(zipped([("1.jpg", b"one"), ("2.jpg", b"two" * 100)]))
    at = data.find(b"twotwo")
    data[at:at + 6] = b"no pic"
    return bytes(data)


@pytest.mark.parametrize("data, why", [
    (lambda: zipped([("1.jpg", b"one"), ("../../2.jpg", b"x")]), "out of the archive"),
    (lambda: zipped([("1.jpg", b"one"), ("/etc/2.jpg", b"x")]), "out of the archive"),
    (lambda: zipped([("1.jpg", b"one"), ("C:\\2.jpg", b"x")]), "out of the archive"),
    (lambda: zipped([("1.jpg", b"one"), ("2.zip", zipped([("3.jpg", b"x")]))]), "archive in an archive"),
    (lambda: zipped([("1.jpg", b"one"), ("2.jpg", bytes(1_100_000))], compression=zipfile.ZIP_DEFLATED), "more than 1 MB"),
    (locked_member, "password"), (link, "a link"), (damaged, "damaged")])
def test_a_bad_member_is_a_row(places, data, why):
    folder = sealed(("before.jpg", b"0"), ("f.zip", data()), ("after.jpg", b"9"))
    found = told(folder)
    assert [e for _, e in found[:2]] == ["", ""] and why in found[2][1] and found[3] == ("after.jpg", "")
    assert sorted(p.read_bytes() for p in (folder / "images").iterdir()) == [b"0", b"9", b"one"]
    assert read_json(folder / "batch.json")["left_out"] == 1
    with pytest.raises(ImageError, match=why):
        fetch_image(batch_entries(folder)[2], folder)


def test_a_zip_without_its_end_is_a_row(places):
    folder = sealed(("a.jpg", b"0"), ("f.zip", zipped([("1.jpg", b"one")])[:-10]), ("b.jpg", zipped([("2.jpg", b"2")])))
    assert [n for n, _ in told(folder)] == ["a.jpg", "f.zip", "2.jpg"] and "not a readable zip" in told(folder)[1][1]
    assert len(list((folder / "images").iterdir())) == 2


@pytest.mark.parametrize("data, why", [
    (lambda: zipped([(f"{i}.png", bytes(900_000)) for i in range(60)], compression=zipfile.ZIP_DEFLATED), r"would unpack to 54\.0 MB"),
    (lambda: b"PK\5\6" + bytes(8) + struct.pack("<I", 500_000_000) + bytes(6), "suspiciously long")])
def test_a_bomb_refuses_the_batch(places, data, why):
    assert len(data()) < 1_000_000
    with pytest.raises(DataError, match=why) as e:
        sealed(("a.jpg", b"0"), ("f.zip", data()))
    assert e.value.remedy and left(places) == []


def test_what_two_archives_unpack_to_counts_together(places):
    half = zipped([(f"{i}.png", bytes(900_000)) for i in range(30)], compression=zipfile.ZIP_DEFLATED)
    assert len(batch_entries(sealed(("1.zip", half), name="one"))) == 30
    with pytest.raises(DataError, match="would unpack to"):
        sealed(("1.zip", half), ("2.zip", half), name="two")
    assert left(places) == ["one"]


def test_an_archive_may_have_more_members_than_a_zip_of_32_bits(places, monkeypatch):
    "More than 65,535 of them take the 64-bit form, which is written here from the third on."
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)
    data = zipped((f"{i:05d}.jpg", b"") for i in range(1200))
    assert data.count(zipfile.stringEndArchive64) == data.count(zipfile.stringEndArchive64Locator) == 1
    found = batch_entries(sealed(("f.zip", data)))
    assert len(found) == 1200 and found[-1].name == "01199.jpg" and not any(e.error for e in found)


def test_a_batch_has_a_most(places, monkeypatch):
    monkeypatch.setattr(batches, "MAX_IMAGES", 5)
    assert len(batch_entries(sealed(("f.zip", zipped((f"{i}.jpg", b"") for i in range(4))), ("a.jpg", b""), name="five"))) == 5
    for files in ([("a.jpg", b"")] * 6, [("f.zip", zipped((f"{i}.jpg", b"") for i in range(6)))]):
        with pytest.raises(DataError, match="more than 5 images"):
            sealed(*files, name="six")
    assert left(places) == ["five"]


# --- disks and deaths


def test_no_batch_begins_on_a_disk_with_little_room(places, monkeypatch):
    with small_disk(places / "disk", "8m") as disk:
        monkeypatch.setenv("LADOS_BATCHES", str(disk))
        settings.cache_clear()
        with pytest.raises(DiskFull, match=r"must stay free") as e:
            Batch.begin()
        assert str(disk) in e.value.problem and "LADOS_BATCHES" in e.value.remedy
        assert [p.name for p in disk.iterdir() if p.name != ".lock"] == []


@pytest.mark.parametrize("spare", [0, 2_000_000])
@pytest.mark.parametrize("packed", [False, True])
def test_a_disk_that_fills_up_keeps_nothing(places, monkeypatch, spare, packed):
    monkeypatch.setattr(batches, "SPARE_BYTES", spare)
    noise = random.Random(0).randbytes(900_000)
    files = [(f"{i}.jpg", noise) for i in range(12)]
    if packed: # fits itself, and its images do not
        files = [("f.zip", zipped(((f"{i}.jpg", bytes(900_000)) for i in range(12)), compression=zipfile.ZIP_DEFLATED))]
    with small_disk(places / "disk", "8m") as disk:
        monkeypatch.setenv("LADOS_BATCHES", str(disk))
        settings.cache_clear()
        with pytest.raises(DiskFull) as e:
            sealed(*files)
        assert e.value.remedy and [p.name for p in disk.iterdir() if p.name != ".lock"] == []


NARROW = """
import resource, signal
from lados.core import DiskFull
from lados.jobs import batches
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
batch = batches.Batch.begin()
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
batch.file("a.jpg")
try:
    for _ in range(9):
        batch.write(bytes(50_000))
    print("all of it")
except DiskFull as e:
    print(e, *batch.folder.parent.glob(".incoming*"))
"""


def test_a_file_that_may_not_grow_is_a_full_disk(places, environment):
    "Where nothing can be mounted, a process with a limit on its files."
    done = subprocess.run([sys.executable, "-c", NARROW], capture_output=True, text=True, timeout=60,
                          env={**environment, "LADOS_HOME": str(places / "lados_home")})
    assert "the disk is full" in done.stdout and ".incoming" not in done.stdout, done.stderr


def test_a_folder_that_is_not_ours_is_told(places, monkeypatch):
    (places / "file").write_text("")
    monkeypatch.setenv("LADOS_BATCHES", str(places / "file"))
    settings.cache_clear()
    with pytest.raises(DiskFull, match="cannot be written"):
        Batch.begin()


UPLOAD = """
import asyncio, sys
sys.path.insert(0, {tests!r})
from test_batches import read, part
async def body():
    for i in range(40):
        yield part(f"{{i}}.jpg", bytes(100_000))
    print("waiting", flush=True)
    await asyncio.sleep(600)
asyncio.run(read(body()))
"""


def test_what_a_killed_process_left_is_swept(places, environment):
    env = {**environment, "LADOS_HOME": str(places / "lados_home"), "MAX_BATCH_MB": "50"}
    code = UPLOAD.format(tests=str(Path(__file__).parent))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=env)
    assert process.stdout.readline() == b"waiting\n"
    own = Batch.begin()
    assert len(left(places)) == 2 and sweep_batches() == [] and len(left(places)) == 2, "both are alive"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(sweep_batches()) == 1 and left(places) == [own.folder.name]
    own.file("a.jpg")
    own.seal("own")
    assert sweep_batches() == [] and left(places) == ["own"]


def test_discarding_waits_for_who_writes(places):
    for _ in range(20):
        batch, begun = Batch.begin(), threading.Event()

        def write(batch=batch, begun=begun):
            with contextlib.suppress(DataError):
                for i in range(10_000):
                    batch.file(f"{i}.jpg")
                    batch.write(b"x" * 100)
                    begun.set()

        thread = threading.Thread(target=write)
        thread.start()
        begun.wait()
        batch.discard()
        thread.join()
    assert left(places) == []


# --- places


@pytest.fixture
def flights(places):
    "An allowed folder with images, a zip, links, and secrets beside it."
    folder = places / "flights"
    (folder / "june" / "deep").mkdir(parents=True)
    for name in ("june/2.jpg", "june/1.png", "june/deep/3.TIF", "june/notes.txt", "june/.hidden.jpg"):
        (folder / name).write_bytes(name.encode())
    (folder / "july.zip").write_bytes(zipped([("1.jpg", b"one"), ("../2.jpg", b"two")]))
    (places / "secret").mkdir()
    (places / "secret" / "s.jpg").write_bytes(b"secret")
    (places / "flights-other").mkdir()
    return folder


def test_a_folder_is_referred_to_and_not_copied(flights):
    with Batch.begin() as batch:
        batch.file("first.jpg")
        batch.write(b"1")
        batch.source(str(flights / "june"))
        batch.source(f"file://{flights}/july.zip")
        batch.file("last.jpg")
        folder = batch.seal("b")
    assert [n for n, _ in told(folder)] == ["first.jpg", "1.png", "2.jpg", "deep/3.TIF", "1.jpg", "../2.jpg", "last.jpg"]
    assert fetch_image(batch_entries(folder)[3], folder).read_bytes() == b"june/deep/3.TIF"
    assert len(list((folder / "images").iterdir())) == 3 and (flights / "july.zip").exists()
    (flights / "june" / "2.jpg").unlink()
    with pytest.raises(ImageError, match="no longer"):
        fetch_image(batch_entries(folder)[2], folder)


def test_only_named_places_are_read(flights, places):
    assert check_allowed(str(flights)) == str(flights) and check_allowed(f"{flights}/june/../june/") == f"{flights}/june"
    (places / "lados_data").mkdir()
    assert check_allowed(str(places / "lados_data" / "x")) == f"{places}/lados_data/x", "LADOS_DATA is always one"
    (flights / "way-out").symlink_to(places / "secret")
    (places / "way-in").symlink_to(flights / "june")
    (flights / "circle").symlink_to(flights / "circle")
    assert check_allowed(str(places / "way-in")) == str(flights / "june")
    for where in (str(places / "secret"), f"{flights}/way-out", f"{flights}/way-out/s.jpg", f"{flights}/../secret", f"{flights}-other", "/", "",
                  ".", "a\0b", "x" * 5000, f"file://{places}/secret", f"FILE://{places}/secret", f"local://{flights}/../secret",
                  f"file://{flights}/../secret", f"simplecache::file://{flights}/june", f"zip://*.jpg::{flights}/july.zip"):
        with pytest.raises(ConfigError, match="LADOS_SOURCES") as e:
            check_allowed(where)
        assert str(flights) in e.value.problem and "secret@" not in str(e.value)


def test_links_in_a_folder_lead_nowhere_else(flights, places):
    (flights / "june" / "a.jpg").symlink_to(places / "secret" / "s.jpg")
    (flights / "june" / "b.jpg").symlink_to(flights / "june" / "2.jpg")
    (flights / "june" / "c").symlink_to(places / "secret")
    with Batch.begin() as batch:
        batch.source(str(flights / "june"))
        found = {e.name: e for e in batch_entries(batch.seal("b"))}
    assert "a link out" in found["a.jpg"].error and not found["a.jpg"].path and not found["b.jpg"].error
    assert not any("secret" in e.path for e in found.values())
    trusted = batch_entries(sealed(sources=[str(flights / "june")], name="t"))
    assert not any(e.error for e in trusted), "who sits at the machine may read what the machine may"


@pytest.mark.parametrize("where, fine", [
    ("memory://season/2026", True), ("memory://season/2026/", True), ("memory://season/2026/june/", True), ("s3://key:secret@spills/a", True),
    ("memory://season/20261", False), ("memory://season", False), ("memory://season/2026/../2025", False),
    ("memory://season/2026/%2e%2e/2025", False), ("memory://season/2026/%252E%252e/2025", False), ("memory://season/2026/.\t./2025", False),
    ("memory://season/2026/..\\2025", False), ("memory://season/2026/..", False), ("memory://season/2026::file:///etc", False),
    ("http://season/2026", False), ("MEMORY://season/2026/x", False), ("memory://season/2026@evil/x", False), ("s3://spills/a", False)])
def test_urls_are_compared_by_segments(places, where, fine):
    if fine:
        assert check_allowed(where) == where
    else:
        with pytest.raises(ConfigError) as e:
            check_allowed(where)
        assert "secret" not in str(e.value)


def test_images_behind_a_url(places):
    fs = fsspec.filesystem("memory")
    fs.pipe({"/season/2026/b/2.JPG": b"two", "/season/2026/1.png": b"one", "/season/2026/x.txt": b"-", "/season/2026/big.jpg": bytes(1_000_001),
             "/season/2025/old.jpg": b"old"})
    with Batch.begin() as batch:
        batch.source("memory://season/2026")
        folder = batch.seal("b")
    found = {e.name: e for e in batch_entries(folder)}
    assert list(found) == ["1.png", "b/2.JPG", "big.jpg"] and fetch_image(found["b/2.JPG"], folder) == b"two"
    with pytest.raises(ImageTooLarge, match="larger than 1 MB"):
        fetch_image(found["big.jpg"], folder)
    fs.rm("/season/2026/1.png")
    with pytest.raises(ImageError, match="cannot be read"):
        fetch_image(found["1.png"], folder)


@pytest.mark.parametrize("where, why", [("memory://season/empty", "no images"), ("nosuch://x", "cannot be read"), ("a\0b", "cannot be read"),
                                        ("/nowhere/at/all", "no folder"), ("memory://a::memory://b", "within another")])
def test_places_without_images(places, where, why):
    with Batch.begin() as batch, pytest.raises(DataError, match=why):
        batch.source(where, trusted=True)
    assert left(places) == []


# --- over HTTP


WITH_OVERFLOW = """
import asyncio
from lados.jobs.routes import app
from lados.jobs.batches import Batch
from lados.serve.http import respond
class Overflow:
    begin = staticmethod(Batch.begin)
    async def submit(self, request, sink, loaded, options):
        folder = await asyncio.to_thread(sink.seal, options["name"])
        return respond(202, {{"folder": str(folder), "model": loaded.predictor.name}})
    async def source(self, request, loaded):
        return respond(202, await request.json())
app.state.overflow = Overflow()
""" + START


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("batches"), runs() / "first", code=WITH_OVERFLOW, app="lados.jobs.routes:app", BATCH_JOB_THRESHOLD=4, MAX_BATCH_MB=30,
                 MAX_UPLOAD_SIZE_MB=1) as server:
        yield server.ready()


def test_more_images_than_the_threshold_become_a_batch(service):
    image = colours(1)[0]
    few = service.post("/predict_batch", files=[("files", ("a.png", image))] * 4)
    assert few.status_code == 200 and few.json()["answered"] == 4
    many = service.post("/predict_batch?name=many", files=[("files", (f"{i}.png", image)) for i in range(300)])
    assert many.status_code == 202 and many.json()["model"] == "first"
    found = batch_entries(many.json()["folder"])
    assert [e.name for e in found] == [f"{i}.png" for i in range(300)]
    assert fetch_image(found[299], many.json()["folder"]).read_bytes() == image
    packed = service.post("/predict_batch?name=packed", content=zipped([("1.png", image)]), headers={"content-type": "application/zip"})
    assert packed.status_code == 202 and told(packed.json()["folder"]) == [("1.png", "")]
    named = service.post("/predict_batch", json={"source": "/data"}, headers={"X-API-Key": KEY})
    assert named.status_code == 202 and named.json() == {"source": "/data"}
    shutil.rmtree(service.home / "batches" / "many")
    shutil.rmtree(service.home / "batches" / "packed")


@pytest.mark.parametrize("body, kind, status, detail", [
    (lambda: b"PK", "application/zip", 422, "not a readable zip"),
    (lambda: zipped([(f"{i}.png", bytes(900_000)) for i in range(40)], compression=zipfile.ZIP_DEFLATED), "application/zip", 422, "would unpack"),
    (lambda: [part("a.jpg", bytes(900_000))] * 40, KIND, 413, "more than 30 MB"), # of no declared length
    (lambda: b"".join([part("a.jpg", bytes(900_000))] * 40), KIND, 413, "MB in one request"),
    (lambda: [part("a.jpg", b"1")] * 9, KIND, 400, "cut short"),
    (lambda: [part("a.jpg", b"1")] * 9 + [part("b.jpg", bytes(1_100_000))], KIND, 413, "b.jpg: larger than 1 MB"),
    (lambda: b'{"source": "' + b"x" * 100_000 + b'"}', "application/json", 413, "more than 64 kB")])
def test_what_is_refused_leaves_nothing(service, body, kind, status, detail):
    data = body()
    answer = service.post("/predict_batch?name=x", content=iter(data) if isinstance(data, list) else data,
                          headers={"content-type": kind, "X-API-Key": KEY})
    assert answer.status_code == status and detail in answer.json()["detail"]
    assert list((service.home / "batches").glob("[!.]*")) == list((service.home / "batches").glob(".incoming*")) == []


def test_a_client_that_goes_in_the_middle_leaves_nothing(service):
    folder = service.home / "batches"
    with service.connect() as sock:
        sock.sendall(b"POST /predict_batch HTTP/1.1\r\nHost: x\r\nContent-Length: 20000000\r\n"
                     b"Content-Type: multipart/form-data; boundary=xyz\r\n\r\n")
        for i in range(40):
            sock.sendall(part(f"{i}.jpg", bytes(100_000)))
        wait_for(lambda: len(list(folder.glob(".incoming*/images/*"))) > 20, 30, service)
        assert service.get("/health").status_code == 200
    wait_for(lambda: not list(folder.glob(".incoming*")), 30, service)
    wait_for(lambda: 'outcome="cancelled"' in service.get("/metrics/prometheus").text, 30, service)
