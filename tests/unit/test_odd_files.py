"Every file below a folder is read, refused with a reason, or left aside and counted: by import, predict, jobs and archives alike."

import asyncio
import io
import os
import zipfile

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin
from serving import encoded

from lados.cli.models import images
from lados.core import ImageError, ImageTooLarge, NotAnImage
from lados.data.archives import unpack_images
from lados.data.images import decode, probe
from lados.data.importers import import_dataset
from lados.data.walk import ASIDE, IMAGE, REFUSED, grouped_reasons, images_in, judge_name, walk
from lados.jobs.batches import references
from lados.serve.uploads import Budget, Limits, read_uploads

PIXELS = np.kron(np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
JPEG = encoded(PIXELS, "JPEG")
READ = ["a.jpg", "b.JPG", "c.jfif", "d.jpe", "e.JPE", "f.mpo", "g.png", "h.webp", "i.jp2", "j.j2k", "k.avif", "l.heic", "m.HEIF", "n.tiff", "o.bmp"]
REFUSE = ["r.DNG", "r.cr2", "r.cr3", "r.NEF", "r.arw", "r.gpr", "x.jxl", "x.tga", "x.exr", "p.jpg.part", ".q.heic.icloud", "s.png.crdownload"]
LEAVE = [".ipynb_checkpoints/a-checkpoint.jpg", "@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", ".thumbnails/t.jpg", "__MACOSX/._a.jpg", "._b.jpg",
         "#recycle/old.jpg", "$RECYCLE.BIN/z.jpg", ".Trash-1000/files/y.jpg", "@Recycle/w.jpg", "lost+found/v.jpg", ".hidden.jpg", "README", "notes.txt",
         "film.MP4", "flight.zip", "Thumbs.db", "a.jpg~"]
FORMATS = {".png": "PNG", ".webp": "WEBP", ".jp2": "JPEG2000", ".j2k": "JPEG2000", ".avif": "AVIF", ".heic": "HEIC", ".heif": "HEIC", ".tiff": "TIFF", ".bmp": "BMP"}


def fill(folder):
    "A folder with all of it."
    for name in (*READ, *REFUSE, *LEAVE):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(PIXELS, FORMATS.get(path.suffix.lower(), "JPEG")))
    return folder


@pytest.mark.parametrize("name, verdict", [*((n, IMAGE) for n in READ), *((n, REFUSED) for n in REFUSE), *((n, ASIDE) for n in LEAVE),
                                           ("flight\\@eaDir\\a.jpg", ASIDE), ("#1.jpg", IMAGE), ("@home/a.jpg", IMAGE), ("trash/a.jpg", IMAGE)])
def test_a_name_has_one_verdict_and_a_reason(name, verdict):
    got, reason = judge_name(name)
    assert got == verdict and bool(reason) == (verdict != IMAGE)


def test_one_folder_is_told_alike_by_all(tmp_path, capsys):
    folder = fill(tmp_path / "flight")
    listing = walk(folder)
    assert listing.counts == {IMAGE: len(READ), REFUSED: len(REFUSE), ASIDE: len(LEAVE)} and sum(listing.counts.values()) == len(listing.files)
    rows = [p.relative_to(folder).as_posix() for p in images(str(folder))]
    assert sorted(rows) == sorted([*READ, *REFUSE])
    told = capsys.readouterr().err
    assert f"{len(LEAVE)} of {len(listing.files)}" in told.replace("\n", " ") and "@eaDir" in told
    aside = {}
    listed = references(str(folder), trusted=True, aside=aside)
    assert {r.name for r in listed if not r.error} == set(READ) and {r.name for r in listed if r.error} == set(REFUSE)
    assert sum(g["files"] for g in aside.values()) == len(LEAVE)
    with zipfile.ZipFile(tmp_path / "f.zip", "w") as z:
        for f in listing.files:
            z.write(f.path, f.path.relative_to(folder))
    packed, count = {}, iter(range(100))
    members = list(unpack_images(tmp_path / "f.zip", "f.zip", lambda: tmp_path / f"u{next(count)}", 10**6, aside=packed))
    assert {m.name for m in members if m.path} == set(READ)
    assert {m.name for m in members if not m.path} == {*REFUSE, "flight.zip"}, "an archive in an archive has a row"
    assert sum(g["files"] for g in packed.values()) == len(LEAVE) - 1


def test_an_import_accounts_for_every_file(tmp_path):
    for name in ("oil", "ship"):
        fill(tmp_path / name)
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "loose.jpg").write_bytes(JPEG)
    (tmp_path / "evaluation" / "q.txt").write_text("no image")
    manifest = import_dataset(tmp_path)
    files = manifest.meta["files"]
    assert (files["read"], files["left_out"], files["left_aside"]) == (len(manifest), 2 * len(REFUSE) + 1, 2 * len(LEAVE) + 1) == (
        2 * len(READ), 2 * len(REFUSE) + 1, 2 * len(LEAVE) + 1)
    assert files["total"] == files["read"] + files["annotations"] + files["left_out"] + files["left_aside"] == len(walk(tmp_path).files)
    assert sum(g["files"] for g in files["aside"].values()) == files["left_aside"]
    assert manifest.meta["warning_counts"]["not-read"] == 2 * len(REFUSE) and manifest.meta["warning_counts"]["unlisted-image"] == 1


def test_links_are_followed_once_and_never_lost(tmp_path):
    for name in ("flight/a.jpg", "flight/sub/b.jpg", "other/c.jpg", "other/deep/d.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(JPEG)
    links = {"z_real": "sub", "a_link": "sub", "o1": "../other", "o2": "../other", "up": "..", "self.jpg": "self.jpg", "gone.jpg": "/nowhere/x.jpg",
             "gone": "/nowhere", "image.jpg": "../other/c.jpg"}
    for name, to in links.items():
        (tmp_path / "flight" / name).symlink_to(to)
    (tmp_path / "other" / "back").symlink_to("../flight")
    os.mkfifo(tmp_path / "flight" / "pipe.jpg")
    listing = walk(tmp_path / "flight")
    verdicts = {f.path.relative_to(tmp_path / "flight").as_posix(): f.verdict for f in listing.files}
    assert {n for n, v in verdicts.items() if v == IMAGE} == {"a.jpg", "sub/b.jpg", "o1/c.jpg", "o1/deep/d.jpg", "image.jpg"}
    assert {n for n, v in verdicts.items() if v == REFUSED} == {"self.jpg", "gone.jpg"}
    assert {n for n, v in verdicts.items() if v == ASIDE} == {"z_real", "a_link", "o2", "up", "gone", "pipe.jpg", "o1/back"}
    assert "/nowhere/x.jpg, which is not there" in next(f.reason for f in listing.files if f.path.name == "gone.jpg")
    with pytest.raises(ImageError, match="a link to /nowhere"):
        decode(tmp_path / "flight" / "gone.jpg")


def test_a_job_over_http_does_not_look_behind_links(tmp_path, monkeypatch):
    from lados.core import settings

    (tmp_path / "data").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "s.jpg").write_bytes(JPEG)
    (tmp_path / "data" / "a.jpg").write_bytes(JPEG)
    (tmp_path / "data" / "way").symlink_to("../secret")
    (tmp_path / "data" / "s.jpg").symlink_to("../secret/s.jpg")
    monkeypatch.setattr(settings(), "lados_data", tmp_path / "data")
    listed = {r.name: r.error for r in references(str(tmp_path / "data"))}
    assert listed == {"a.jpg": "", "s.jpg": "a link out of what jobs may read", "way": "a link out of what jobs may read"}


def test_a_linked_class_folder_is_imported(tmp_path):
    for name in ("store/oil/1.jpg", "data/ship/2.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(JPEG)
    (tmp_path / "data" / "oil").symlink_to(tmp_path / "store" / "oil")
    manifest = import_dataset(tmp_path / "data")
    assert sorted(manifest.frame["label"]) == ["oil", "ship"] and manifest.meta["files"]["read"] == 2


def test_an_image_without_an_ending_is_named(tmp_path):
    (tmp_path / "IMG_0001").write_bytes(JPEG)
    (tmp_path / "a.jpg_original").write_bytes(JPEG)
    (tmp_path / "BMW.txt").write_text("BMW")
    reasons = grouped_reasons((f.path.name, f.reason) for f in walk(tmp_path).files)
    assert {r: g["first"] for r, g in reasons.items() if "content" in r} == {
        "a JPEG by its content, not by its name: give it the ending .jpg": ["IMG_0001", "a.jpg_original"]}


def test_a_folder_within_a_hidden_one_may_be_named(tmp_path):
    (tmp_path / ".cache" / "flight").mkdir(parents=True)
    (tmp_path / ".cache" / "flight" / "a.jpg").write_bytes(JPEG)
    assert len(images_in(tmp_path / ".cache" / "flight", deep=True)) == 1


@pytest.mark.parametrize("pattern, names", [("*.jpg", ["a.jpg"]), ("*", ["a.jpg", "sub/b.jpg"]), ("**/*.jpg", ["a.jpg", "sub/b.jpg"]), ("sub*", ["sub/b.jpg"])])
def test_a_pattern_that_matches_a_folder_means_what_is_in_it(tmp_path, pattern, names):
    for name in ("a.jpg", "sub/b.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(JPEG)
    assert [p.relative_to(tmp_path).as_posix() for p in images(f"{tmp_path}/{pattern}")] == names


# formats


@pytest.mark.parametrize("name", ["HEIC", "AVIF"])
def test_images_of_phones_are_read(name):
    data = encoded(PIXELS, name, quality=95)
    info = probe(data)
    assert (info.format, info.width, info.height, info.orientation) == (name, 64, 64, 1)
    assert np.abs(decode(data).astype(int) - PIXELS).mean() < 12


def test_a_heic_is_turned_once():
    tall = np.concatenate([np.full((40, 64, 3), 250, np.uint8), np.zeros((80, 64, 3), np.uint8)])
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(tall, "HEIC", exif=exif.tobytes(), quality=95)
    got, info = decode(data), probe(data)
    assert got.shape[:2] in ((64, 120), (120, 64)) and (info.height, info.width) == got.shape[:2]


def test_a_damaged_heic_says_so():
    data = encoded(PIXELS, "HEIC")
    for bad in (data[:60], data[:-40], b"\0\0\0\x18ftypheic" + bytes(16), data[:200] + bytes(len(data) - 200)):
        with pytest.raises(ImageError):
            decode(bad, name="phone.heic")


def raw(**tags) -> bytes:
    "A TIFF as cameras write raw files: a small page in front."
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        info[int(tag[1:])] = value
    Image.fromarray(PIXELS).save(b := io.BytesIO(), "TIFF", tiffinfo=info)
    return b.getvalue()


@pytest.mark.parametrize("data, name", [(raw(t50706=b"\1\4\0\0"), "sent"), (b"II*\0\x10\0\0\0CR\2\0" + bytes(60), "sent"), (b"FUJIFILMCCD-RAW " + bytes(60), "sent"),
                                        (b"\0\0\0\x18ftypcrx " + bytes(60), "sent"), (b"IIU\0" + bytes(60), "sent")])
def test_a_raw_photograph_is_refused_by_its_content(data, name):
    "Never is the thumbnail in it taken for the photograph."
    with pytest.raises(NotAnImage, match="raw photograph"):
        decode(data, name=name)


def test_a_raw_photograph_is_refused_by_its_name(tmp_path):
    for name in ("a.dng", "b.NEF"):
        (tmp_path / name).write_bytes(raw())
        with pytest.raises(NotAnImage, match="raw photograph"):
            decode(tmp_path / name)
    (tmp_path / "c.tif").write_bytes(raw())
    assert decode(tmp_path / "c.tif").shape == (64, 64, 3)


def test_a_pointer_of_git_lfs_says_what_to_do():
    with pytest.raises(NotAnImage, match="git lfs pull"):
        decode(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


@pytest.mark.parametrize("name", ["JPEG", "PNG", "TIFF"])
def test_an_image_may_come_through_a_pipe(name):
    reading, writing = os.pipe()
    os.write(writing, encoded(PIXELS, name))
    os.close(writing)
    assert decode(f"/dev/fd/{reading}").shape == PIXELS.shape
    os.close(reading)


def test_a_pipe_without_an_end_is_refused(monkeypatch):
    reading, writing = os.pipe()
    monkeypatch.setattr("lados.data.images._PIPED", 100)
    os.write(writing, encoded(PIXELS, "PNG"))
    with pytest.raises(ImageTooLarge, match="from a pipe"):
        decode(f"/dev/fd/{reading}")
    os.close(writing)
    os.close(reading)


def test_a_body_of_another_type_is_called_by_its_whole_name():
    async def read():
        with Budget(1000).hold() as held:
            await read_uploads(None, "application/x-www-form-urlencoded; charset=utf-8", Limits(1000), held)

    with pytest.raises(NotAnImage, match="'application/x-www-form-urlencoded' is no image"):
        asyncio.run(read())
