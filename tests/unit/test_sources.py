"Downloading, against a local server that speaks Roboflow's and Zenodo's protocol and fails in every way they do."

import io
import json
import logging
import resource
import subprocess
import sys
import time
import traceback
import zipfile
from collections import Counter
from email.utils import formatdate
from pathlib import Path

import pytest
from commands import refused
from protocol_server import CATEGORIES, KEY, Service, export_zip

from lados.core import DataError, SourceError, settings
from lados.data.archives import unzip
from lados.data.download import CITATION, MARK, download, small_sample
from lados.data.transfer import RetryPolicy
from lados.files import disk_trouble

ARCHIVE = export_zip()
QUICK = RetryPolicy(attempts=3, backoff=0.01, longest_wait=2, timeout=(5, 5), poll=0.01, polls=20)


@pytest.fixture
def service(monkeypatch):
    server = Service(ARCHIVE)
    monkeypatch.setenv("ROBOFLOW_URL", server.url)
    monkeypatch.setenv("ZENODO_URL", server.url + "/")
    monkeypatch.setenv("ROBOFLOW_API_KEY", KEY)
    settings.cache_clear()
    yield server
    server.stop()
    settings.cache_clear()


def get(source: str, out: Path, **options) -> Path:
    return download(source, out, progress=False, **{"patience": QUICK, **options})


def failure(source: str, out: Path, **options) -> SourceError:
    with pytest.raises(SourceError) as caught:
        get(source, out, **options)
    error = caught.value
    assert error.remedy, "an error without a remedy"
    text = "".join(traceback.format_exception(error)) + repr(error)
    assert KEY not in text and "link-secret" not in text
    assert error.__cause__ is None, "a cause may show the address"
    return error


def part_of(out: Path) -> Path:
    return out.with_name(f".{out.name}.download") / "export.zip.part"


def is_whole(out: Path, images: int = 400) -> bool:
    leftovers = [p.name for p in out.parent.iterdir() if p.name.startswith(".")]
    return len(list(out.rglob("*.jpg"))) == images and not leftovers


# --- the straight way

@pytest.mark.parametrize("source", ["roboflow", "zenodo"])
def test_download_then_nothing_left_to_do(service, tmp_path, source):
    out = get(source, tmp_path / "lados")
    assert out == (tmp_path / "lados").resolve() and is_whole(out)
    mark = json.loads((out / MARK).read_text())
    assert (mark["licence"], mark["citation"]) == ("CC BY 4.0", CITATION) and mark["archive"]["bytes"] == len(ARCHIVE)
    with zipfile.ZipFile(io.BytesIO(ARCHIVE)) as z:
        assert all((out / n).read_bytes() == z.read(n) for n in z.namelist())
    asked = len(service.seen)
    assert get(source, tmp_path / "lados") == out and len(service.seen) == asked


def test_one_folder_around_everything_is_taken_off(service, tmp_path):
    service.archive = export_zip(top="LADOS/")
    assert (get("roboflow", tmp_path / "x") / "train/_annotations.coco.json").is_file()


def test_progress_bar_goes_to_stderr(service, tmp_path, capsys):
    service.faults["export"] = [{"code": 202, "json": {"progress": 0.45}}]
    download("roboflow", tmp_path / "x", patience=QUICK)
    shown = capsys.readouterr()
    assert shown.out == "" and "45%" in shown.err and "LADOS from Roboflow" in shown.err
    assert KEY not in shown.err and "link-secret" not in shown.err


@pytest.mark.parametrize("waiting", [{"code": 202, "json": {"progress": 0.3}}, {"json": {"ready": False, "progress": 0.3}},
                                     {"code": 202, "json": {"progress": None}}])
def test_roboflow_is_polled_while_it_prepares_the_export(service, tmp_path, waiting):
    service.faults["export"] = [waiting, waiting]
    assert is_whole(get("roboflow", tmp_path / "x")) and len(service.of("export")) == 3


def test_roboflow_that_never_finishes_preparing(service, tmp_path):
    service.faults["export"] = [{"code": 202, "json": {"progress": 0.3}}] * 50
    assert "still preparing" in failure("roboflow", tmp_path / "x").problem and len(service.of("export")) == QUICK.polls


def test_roboflow_without_the_segmentation_format(service, tmp_path):
    service.formats = ("coco",)
    assert is_whole(get("roboflow", tmp_path / "x"))
    assert [s.path.rpartition("/")[2] for s in service.of("export")] == ["coco-segmentation", "coco"]


# --- the key

def test_key_travels_in_a_header(service, tmp_path):
    get("roboflow", tmp_path / "x")
    assert not any(s.query.get("api_key") for s in service.seen)
    assert not any(s.bearer for s in service.of("file")), "the key must not go where the link leads"


def test_key_as_parameter_where_the_header_is_not_read(service, tmp_path, caplog):
    service.bearer_works = False
    with caplog.at_level(logging.DEBUG):
        get("roboflow", tmp_path / "x")
    assert [bool(s.query.get("api_key")) for s in service.of("export")] == [False, True]
    assert caplog.records and KEY not in caplog.text and "link-secret" not in caplog.text


@pytest.mark.parametrize("key", [None, "", "wrong", "wröng–key"])
def test_key_missing_or_wrong(service, tmp_path, monkeypatch, key, caplog):
    monkeypatch.delenv("ROBOFLOW_API_KEY")
    if key is not None:
        monkeypatch.setenv("ROBOFLOW_API_KEY", key)
    settings.cache_clear()
    with caplog.at_level(logging.DEBUG):
        error = failure("roboflow", tmp_path / "x")
    assert key == "wröng–key" or ("ROBOFLOW_API_KEY" in error.remedy and "https://app.roboflow.com" in error.remedy)
    assert not key or (key not in str(error).replace("went wrong", "") and key not in caplog.text)
    assert not (tmp_path / "x").exists()


# --- what a server answers

@pytest.mark.parametrize(("source", "route", "status", "hint"), [
    ("roboflow", "export", 403, "ROBOFLOW_API_KEY"), ("roboflow", "export", 404, "universe.roboflow.com"),
    ("zenodo", "record", 404, "zenodo.org/records/15888341"), ("zenodo", "record", 403, "--source roboflow"),
    ("zenodo", "record", 410, "--source roboflow"), ("zenodo", "file", 404, "run the same command again"),
    ("roboflow", "file", 403, "run the same command again"), ("zenodo", "record", 418, "lados data import"),
])
def test_refusals_name_the_remedy(service, tmp_path, source, route, status, hint):
    service.faults[route] = [{"status": status}] * 2
    error = failure(source, tmp_path / "x")
    assert str(status) in error.problem and hint in error.remedy and not (tmp_path / "x").exists()


@pytest.mark.parametrize("route", ["record", "file"])
def test_too_many_requests_then_success(service, tmp_path, route):
    service.faults[route] = [{"status": 429, "headers": {"Retry-After": "1"}}]
    began = time.monotonic()
    assert is_whole(get("zenodo", tmp_path / "x")) and time.monotonic() - began >= 1


def test_too_many_requests_for_ever(service, tmp_path):
    service.faults["record"] = [{"status": 429, "headers": {"Retry-After": "0"}}] * 99
    assert "429" in failure("zenodo", tmp_path / "x").problem and len(service.seen) == QUICK.attempts


@pytest.mark.parametrize("header, value", [("Retry-After", lambda now: "900"),
                                           ("Retry-After", lambda now: formatdate(now + 900, usegmt=True)),
                                           ("X-RateLimit-Reset", lambda now: str(int(now) + 900))], ids=["seconds", "date", "epoch"])
def test_a_long_wait_is_told_not_waited(service, tmp_path, header, value):
    service.faults["record"] = [{"status": 429, "headers": {header: value(time.time())}}]
    error = failure("zenodo", tmp_path / "x")
    assert 800 < error.wait <= 900 and f"wait {error.wait:.0f} s" in error.remedy and len(service.seen) == 1


@pytest.mark.parametrize("status", [500, 502, 503])
def test_server_in_trouble_then_well(service, tmp_path, status):
    service.faults["record"] = service.faults["file"] = [{"status": status}] * 2
    assert is_whole(get("zenodo", tmp_path / "x"))


def test_server_in_trouble_for_ever(service, tmp_path):
    service.faults["file"] = [{"status": 500}] * 99
    error = failure("zenodo", tmp_path / "x")
    assert "500" in error.problem and len(service.of("file")) == QUICK.attempts


def test_no_network_names_three_ways_on(service, tmp_path):
    service.stop()
    for source in ("zenodo", "roboflow"):
        error = failure(source, tmp_path / "x")
        assert all(way in error.remedy for way in ("--source", "lados data import", "lados data synthetic"))


@pytest.mark.parametrize("body", [b"<html>please log in</html>", b"[1, 2]", b""])
def test_login_page_instead_of_json(service, tmp_path, body):
    service.faults["record"] = [{"status": 200, "body": body}]
    assert "not JSON" in failure("zenodo", tmp_path / "x").problem


@pytest.mark.parametrize("record", [{}, {"files": []}, {"files": [{"key": "a.pdf"}]}, {"files": [{"key": "a.zip"}]}, {"files": 3}])
def test_record_without_a_usable_file(service, tmp_path, record):
    service.faults["record"] = [{"json": record}]
    assert "zenodo.org/records" in failure("zenodo", tmp_path / "x").remedy


# --- the transfer

def test_cut_connections_are_resumed_within_one_call(service, tmp_path):
    service.faults["file"] = [{"cut": 300_000}, {"cut": 200_000}, {"cut": 0}, {"cut": 0}, {"cut": 100_000}]
    assert is_whole(get("zenodo", tmp_path / "x"))
    seen = service.of("file")
    assert seen[0].range is None and all(s.range and s.if_range == service.etag and s.status == 206 for s in seen[1:])
    # a block that the cut leaves unfinished is asked for again: at most 64 kB a cut
    assert sum(s.sent for s in seen) <= len(ARCHIVE) + 5 * 65536


def test_cut_for_ever_keeps_the_part_and_the_next_call_goes_on(service, tmp_path):
    out = tmp_path / "x"
    service.faults["file"] = [{"cut": 500_000}] + [{"cut": 0}] * 9
    error = failure("zenodo", out)
    kept = part_of(out).stat().st_size
    assert "cut after" in error.problem and "run the same command again" in error.remedy and kept >= 400_000
    service.faults["file"] = []
    assert is_whole(get("zenodo", out))
    assert service.seen[-1].start == kept and service.seen[-1].sent == len(ARCHIVE) - kept


def test_server_that_ignores_ranges(service, tmp_path):
    service.faults["file"] = [{"cut": 400_000}, {"ignore_range": True}]
    assert is_whole(get("zenodo", tmp_path / "x"))
    assert [s.status for s in service.of("file")] == [200, 200]


def test_server_that_ignores_ranges_and_cuts_at_one_place_is_given_up(service, tmp_path):
    service.faults["file"] = [{"cut": 400_000, "ignore_range": True}] * 99
    assert "cut after" in failure("zenodo", tmp_path / "x").problem and len(service.of("file")) == QUICK.attempts + 1


def test_file_that_changed_between_two_attempts(service, tmp_path):
    out = tmp_path / "x"
    service.faults["file"] = [{"cut": 400_000}] + [{"cut": 0}] * 9
    failure("roboflow", out)
    service.archive, service.etag, service.faults["file"] = export_zip(top="new/"), '"etag-2"', []
    assert is_whole(get("roboflow", out))
    assert service.seen[-1].range and service.seen[-1].status == 200


def test_file_that_changed_on_a_server_without_etags(service, tmp_path):
    out = tmp_path / "x"
    service.etag = 'W/"weak"'
    service.faults["file"] = [{"cut": 400_000}] + [{"cut": 0}] * 9
    failure("roboflow", out)
    service.archive, service.faults["file"] = export_zip(top="new/"), []
    assert is_whole(get("roboflow", out))
    assert [(s.status, s.if_range) for s in service.of("file")[-2:]] == [(206, None), (200, None)]


def test_416_on_a_part_that_is_too_long(service, tmp_path):
    out = tmp_path / "x"
    service.faults["file"] = [{"cut": 400_000}] + [{"cut": 0}] * 9
    failure("roboflow", out)
    with part_of(out).open("ab") as f:
        f.write(bytes(len(ARCHIVE)))
    service.faults["file"] = []
    assert is_whole(get("roboflow", out)) and [s.status for s in service.of("file")[-2:]] == [416, 200]


def test_416_on_a_part_that_is_complete(service, tmp_path):
    out = tmp_path / "x"
    service.faults["file"] = [{"no_length": True, "cut": 400_000}]
    # without a length the cut looks like the end, and the zip's directory is missing
    assert "not a whole zip" in failure("roboflow", out).problem
    service.faults["file"] = [{"cut": 400_000}, {"unsatisfiable": True}]
    assert is_whole(get("roboflow", out))


def test_wrong_checksum_deletes_the_file(service, tmp_path):
    service.md5 = "0" * 32
    error = failure("zenodo", tmp_path / "x")
    assert "md5" in error.problem and "run the same command again" in error.remedy
    assert not part_of(tmp_path / "x").exists() and not (tmp_path / "x").exists()
    service.md5 = Service(ARCHIVE).md5
    assert is_whole(get("zenodo", tmp_path / "x")) and service.seen[-1].range is None


def test_size_that_differs_from_the_record(service, tmp_path):
    service.faults["file"] = [{"length": 1000, "cut": 1000}]
    assert "its record says" in failure("zenodo", tmp_path / "x").problem


def test_part_of_another_source_is_not_continued(service, tmp_path):
    out = tmp_path / "x"
    service.faults["file"] = [{"cut": 400_000}] + [{"cut": 0}] * 9
    failure("zenodo", out)
    service.faults["file"] = []
    assert is_whole(get("roboflow", out)) and service.seen[-1].range is None


# --- processes

SCRIPT = """
import sys
from lados.core import LadosError
from lados.data.download import download
from lados.data.transfer import RetryPolicy as Patience
try:
    download(sys.argv[1], sys.argv[2], progress=False, patience=Patience(backoff=0.01, attempts=2))
except LadosError as e:
    sys.exit(str(e))
"""


def start(source: str, out: Path, **options) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", SCRIPT, source, str(out)], stderr=subprocess.PIPE, text=True, **options)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_kill_9_in_the_middle_then_only_the_missing_bytes(service, tmp_path):
    out = tmp_path / "x"
    service.faults["file"] = [{"step": 32768, "pause": 0.02}]
    process = start("zenodo", out)
    wait_for(lambda: part_of(out).exists() and part_of(out).stat().st_size > 300_000)
    process.kill()
    process.wait()
    kept = part_of(out).stat().st_size
    assert 300_000 < kept < len(ARCHIVE) and not out.exists()
    assert is_whole(get("zenodo", out))
    assert service.seen[-1].start == kept and service.seen[-1].sent == len(ARCHIVE) - kept


def test_two_downloads_into_one_folder(service, tmp_path):
    out = tmp_path / "x"
    service.faults["file"] = [{"step": 32768, "pause": 0.03}]
    process = start("zenodo", out)
    wait_for(lambda: part_of(out).exists() and part_of(out).stat().st_size > 0)
    error = failure("zenodo", out)
    assert str(process.pid) in error.problem and "--out" in error.remedy
    assert process.wait(60) == 0 and is_whole(out)
    process.stderr.close()


def test_file_that_the_system_refuses_to_grow(service, tmp_path):
    out = tmp_path / "x"
    process = start("zenodo", out, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000)))
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1 and "cannot be written" in said and "--out" in said
    assert part_of(out).stat().st_size == 400_000
    assert is_whole(get("zenodo", out)) and service.seen[-1].start == 400_000


def test_what_a_kill_leaves_behind_is_cleared(service, tmp_path):
    out = tmp_path / "x"
    half = part_of(out).with_name("unpacked") / "train"
    half.mkdir(parents=True)
    (half / "half.jpg").write_bytes(b"half an image")
    assert is_whole(get("zenodo", out))
    # killed between the rename and the clearing up
    part_of(out).parent.mkdir()
    part_of(out).write_bytes(b"x")
    asked = len(service.seen)
    assert get("zenodo", out) == out and is_whole(out) and len(service.seen) == asked


# --- the disk

def test_too_little_space_is_seen_before_anything_is_written(service, tmp_path):
    size = 10**17
    file = {"key": "a.zip", "size": size, "checksum": "md5:0", "links": {"self": f"{service.url}/file"}}
    service.faults["record"], service.faults["file"] = [{"json": {"files": [file]}}], [{"length": size}]
    error = failure("zenodo", tmp_path / "x")
    assert "210000.0 TB" in error.problem and "--out" in error.remedy and not part_of(tmp_path / "x").exists()


def test_full_disk(tmp_path):
    with pytest.raises(SourceError, match="disk is full"), disk_trouble(tmp_path), Path("/dev/full").open("wb") as f:
        f.write(bytes(100_000))


def test_folder_that_cannot_be_made(service, tmp_path):
    (tmp_path / "file").write_text("x")
    assert "cannot be written" in failure("zenodo", tmp_path / "file" / "x").problem


def test_never_over_something_else(service, tmp_path):
    out = tmp_path / "x"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    assert "not made by this command" in failure("zenodo", out).problem
    (out / "thesis.txt").rename(tmp_path / "thesis.txt")
    assert is_whole(get("zenodo", out))
    assert "already holds" in failure("zenodo", out, small_sample=True).problem
    next(out.rglob("*.jpg")).unlink()
    assert "files are gone from" in failure("zenodo", out).problem and (tmp_path / "thesis.txt").exists()


def test_more_files_in_the_folder_do_no_harm(service, tmp_path):
    out = get("zenodo", tmp_path / "x")
    (out / "manifest.csv").write_text("image,label\n")
    assert get("zenodo", out) == out


# --- the archive

def evil(name: str, mode: int = 0) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as z:
        z.writestr("train/1.jpg", b"x")
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        z.writestr(info, b"/etc/passwd")
    return buffer.getvalue()


@pytest.mark.parametrize("archive", [evil("../evil"), evil("/tmp/evil"), evil("train/../../evil"), evil("..\\evil"), evil("C:/evil"),
                                     evil("train/link", 0o120777)])
def test_zip_that_climbs_out(service, tmp_path, archive):
    service.archive = archive
    assert "leads out of its folder" in failure("roboflow", tmp_path / "x").problem
    assert not list(tmp_path.rglob("*evil")) and not (tmp_path / "x").exists()


def test_zip_with_an_entry_for_the_folder_itself(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as z:
        z.writestr("./", "")
        z.writestr("./a.txt", "sea")
    unzip(tmp_path / "a.zip", tmp_path / "a")
    assert (tmp_path / "a" / "a.txt").read_text() == "sea"


def test_zip_bomb(tmp_path):
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("zeros", bytes(5_000_000))
    with pytest.raises(SourceError, match="would unpack to"):
        unzip(bomb, tmp_path / "a", limit=1_000_000)
    # one that lies about its size: the directory says 10 bytes
    data = bytearray(bomb.read_bytes())
    at = data.index(b"PK\x01\x02") + 24
    data[at : at + 4] = (10).to_bytes(4, "little")
    bomb.write_bytes(data)
    with pytest.raises(SourceError, match="not a whole zip"):
        unzip(bomb, tmp_path / "b")
    assert not bomb.exists() and sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()) <= 10


@pytest.mark.parametrize("archive", [ARCHIVE[:-500], ARCHIVE[:200_000] + bytes(100) + ARCHIVE[200_100:], b"<!DOCTYPE html>", b""],
                         ids=["truncated", "flipped", "page", "empty"])
def test_zip_that_is_none(service, tmp_path, archive):
    service.archive = archive
    error = failure("roboflow", tmp_path / "x")
    assert "not a whole zip" in error.problem and "run the same command again" in error.remedy
    service.archive = ARCHIVE
    assert is_whole(get("roboflow", tmp_path / "x"))


# --- the sample

def strata(folder: Path) -> Counter:
    "Images for each split and dominant class, counted anew from the files."
    found = Counter()
    for path in folder.glob("*/_annotations.coco.json"):
        coco = json.loads(path.read_text())
        for image in coco["images"]:
            assert (path.parent / image["file_name"]).is_file()
            areas = Counter()
            for a in coco["annotations"]:
                areas[CATEGORIES[a["category_id"]]] += a["area"] * (a["image_id"] == image["id"])
            found[path.parent.name, areas.most_common(1)[0][0] if areas.total() else "background"] += 1
    return found


def test_small_sample_is_stratified_and_complete(service, tmp_path):
    whole, small = get("zenodo", tmp_path / "whole"), get("zenodo", tmp_path / "small", small_sample=True)
    all_of, taken = strata(whole), strata(small)
    assert is_whole(small, 200) and taken.total() == 200 and taken.keys() == all_of.keys()
    assert all(abs(taken[s] - all_of[s] / 2) <= 1 for s in all_of)
    for path in small.glob("*/_annotations.coco.json"):
        before, after = (json.loads((f / path.parent.name / path.name).read_text()) for f in (whole, small))
        ids = {i["id"] for i in after["images"]}
        assert after["annotations"] == [a for a in before["annotations"] if a["image_id"] in ids]
        assert all(after[k] == before[k] for k in ("info", "licenses", "categories"))
    assert (small / "README.dataset.txt").is_file()


def test_small_sample_is_seeded(service, tmp_path):
    whole = get("zenodo", tmp_path / "whole")
    names = [sorted(p.name for p in small_sample(whole, tmp_path / f"s{i}", 50, seed).rglob("*.jpg")) for i, seed in enumerate((1, 1, 2))]
    assert names[0] == names[1] != names[2] and len(names[0]) == 50
    assert len(list(small_sample(whole, tmp_path / "more", 9999).rglob("*.jpg"))) == 400


def test_small_sample_of_images_in_a_sub_folder(service, tmp_path):
    whole = get("zenodo", tmp_path / "whole")
    for split in ("train", "valid", "test"):
        images = list((whole / split).glob("*.jpg"))
        (whole / split / "images").mkdir()
        for p in images:
            p.rename(p.parent / "images" / p.name)
    assert len(list(small_sample(whole, tmp_path / "s", 20).glob("*/images/*.jpg"))) == 20


def test_small_sample_of_what_is_no_export(service, tmp_path):
    whole = get("zenodo", tmp_path / "whole")
    with pytest.raises(DataError, match="no _annotations"):
        small_sample(tmp_path / "nothing", tmp_path / "s")
    with refused("place-taken"):
        small_sample(whole, whole)
    train = whole / "train/_annotations.coco.json"
    coco = json.loads(train.read_text())
    for change, text in (({"images": [{"id": 1, "file_name": "../../x"}]}, "outside"), ({"images": [{"id": 1}]}, "not a COCO"),
                         ({"images": [{"id": 1, "file_name": "gone.jpg"}]}, "not there")):
        train.write_text(json.dumps({**coco, **change}))
        with pytest.raises(DataError, match=text):
            small_sample(whole, tmp_path / "s", 300)
        assert not (tmp_path / "s").exists() and list(tmp_path.iterdir()) == [whole]
