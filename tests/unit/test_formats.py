"A format is one record: what is registered is imported, hashed, cached, predicted, unpacked and served, and refused the same way everywhere."

import io
import zipfile

import numpy as np
import pytest
from PIL import Image, PpmImagePlugin
from serving import START, encoded, make_run, serving

from lados.core import ImageError
from lados.data.annotations import inspect_image
from lados.data.archives import unpack_images
from lados.data.cache import build_cache
from lados.data.images import (
    FORMATS,
    ImageFormat,
    decode,
    image_suffixes,
    open_image,
    probe,
    reader,
    register_format,
)
from lados.data.importers import import_dataset
from lados.data.manifest import source_stem
from lados.data.phash import hash_images, image_hash
from lados.data.walk import images_in
from lados.ui.uploads import upload_limits

PORTABLE = ImageFormat("PPM", rb"P[56]\s", (".ppm", ".pgm"), "image/x-portable-pixmap", reader(PpmImagePlugin.PpmImageFile))
REGISTER = """
from PIL import PpmImagePlugin
from lados.data.images import ImageFormat, reader, register_format
register_format(ImageFormat("PPM", rb"P[56]\\s", (".ppm", ".pgm"), "image/x-portable-pixmap", reader(PpmImagePlugin.PpmImageFile)))
"""


@pytest.fixture
def portable():
    "PPM and PGM for one test."
    before = dict(FORMATS)
    register_format(PORTABLE)
    yield
    FORMATS.clear()
    FORMATS.update(before)


def sea(seed=0, side=(48, 64)):
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(0, 255, (side[0] // 8, side[1] // 8, 3), np.uint8), np.ones((8, 8, 1), np.uint8))


def dataset(folder):
    "Two classes, one image each, in a format that lados does not come with."
    for i, name in enumerate(("oil", "ship")):
        (folder / name).mkdir(parents=True)
        (folder / name / f"{i}.ppm").write_bytes(encoded(sea(i), "PPM"))
    return folder


def test_a_format_from_outside_is_imported_hashed_and_cached(portable, home):
    manifest = import_dataset(dataset(home / "data"))
    assert [(p.name, w) for p, w in zip(manifest.paths, manifest.frame["width"], strict=True)] == [("0.ppm", 64), ("1.ppm", 64)]
    assert manifest.frame["source_group"].tolist() == ["0", "1"] and source_stem("a/DJI_7.PGM") == "DJI_7"
    hashes = hash_images(manifest.paths)
    assert not hashes.errors and len(hashes.usable) == 2
    cache = build_cache(manifest.paths, manifest.frame["sha256"], size=32)
    assert not cache.errors and (cache[0] == build_cache([home / "data" / "oil" / "0.ppm"], size=32)[0]).all()
    assert probe(manifest.paths[0]).format == "PPM" and (decode(manifest.paths[1]) == sea(1)).all()


def test_a_format_from_outside_is_unpacked_and_taken_by_the_page(portable, home):
    with zipfile.ZipFile(home / "flight.zip", "w") as z:
        z.writestr("a/1.PPM", encoded(sea(), "PPM"))
        z.writestr("a/notes.txt", "no image")
    members = list(unpack_images(home / "flight.zip", "flight.zip", lambda: home / "1", 10**6))
    assert [(m.name, m.error) for m in members] == [("a/1.PPM", "")] and (decode(members[0].path) == sea()).all()
    assert {".ppm", ".pgm", ".zip", ".jfif"} <= set(upload_limits()["suffixes"])
    with pytest.raises(ImageError) as error:
        probe(b"no image")
    assert "PPM" in error.value.remedy


def test_a_format_from_outside_is_predicted_and_served(portable, home):
    from lados.serve.predictor import Predictor

    run, data = make_run(home / "run", epochs=0), encoded(sea(), "PPM")
    predictor = Predictor.setup(run / "bundle", "torch")
    probs, _ = predictor.predict(predictor.decode(data)[None])
    here = predictor.encode(probs[0])
    with serving(home / "served", run, code=REGISTER + START, LADOS_ENGINE="torch") as server:
        answer = server.ready().predict(data, "sea.ppm")
        assert answer.status_code == 200 and answer.json()["label"] == here.label
        raw = server.post("/predict", content=data, headers={"Content-Type": PORTABLE.media_type})
        assert raw.status_code == 200 and raw.json()["label"] == here.label
        assert PORTABLE.media_type in server.get("/openapi.json").json()["paths"]["/predict"]["post"]["requestBody"]["description"]


def test_it_is_gone_again():
    assert "PPM" not in FORMATS and ".ppm" not in image_suffixes()


def hollow():
    whole = encoded(sea(3, (320, 320)), "JPEG")
    return whole[:len(whole) // 2] + bytes(len(whole) // 2)


def run_length_coded():
    "A BMP of two colours as run lengths."
    b = encoded(Image.new("P", (8, 8)), "BMP")
    return b[:30] + (1).to_bytes(4, "little") + b[34:]


@pytest.mark.parametrize("data", [b"", b"<html>404</html>", b"\0\0\0\x18ftypheic", encoded(sea())[:300], encoded(sea(3), "TIFF")[:400],
                                  hollow(), run_length_coded(), encoded(sea(), "PPM"), encoded(np.zeros((300, 300, 3), np.uint8))],
                         ids=["empty", "page", "heic", "cut-png", "cut-tiff", "hollow-jpeg", "rle-bmp", "foreign", "bomb"])
def test_a_file_is_refused_with_the_same_words_everywhere(data, home, monkeypatch):
    from lados.core import settings

    if len(data) < 2000 and data[:4] == b"\x89PNG" and len(data) != 300:
        monkeypatch.setattr(settings(), "max_pixels", 50_000)
    path, words = home / "sea.jpg", set()
    path.write_bytes(data)
    for use in (inspect_image, image_hash, decode, lambda p: build_cache([p], size=32)[0]):
        with pytest.raises(ImageError) as error:
            use(path)
        words.add((type(error.value), error.value.problem, error.value.remedy))
    assert len(words) == 1 and str(path) in next(iter(words))[1]


@pytest.mark.parametrize("name", FORMATS)
def test_every_suffix_of_a_format_is_found_and_opened(name, tmp_path):
    data = encoded(sea(), name)
    for suffix in FORMATS[name].suffixes:
        (tmp_path / f"sea{suffix.upper()}").write_bytes(data)
    paths = images_in(tmp_path)
    assert len(paths) == len(FORMATS[name].suffixes)
    for path in paths:
        with open_image(path) as opened:
            assert opened.format.name == name
        assert inspect_image(path)[:2] == (64, 48)


def test_a_mark_at_the_end_saves_decoding(tmp_path):
    "Damage behind a whole header and before the end mark is found where the image is decoded, and nowhere earlier."
    whole = encoded(sea(3, (320, 320)), "JPEG")
    with open_image(whole) as opened:
        opened.check_whole()
        assert getattr(opened.image, "_im", None) is None, "not decoded"
    with open_image(whole[:-700]) as opened, pytest.raises(ImageError, match="cut short"):
        opened.check_whole()


def test_files_of_several_views_are_jpegs(tmp_path):
    first, second = Image.fromarray(sea()), Image.fromarray(sea(1))
    first.save(b := io.BytesIO(), "MPO", save_all=True, append_images=[second])
    assert probe(b.getvalue()).format == "JPEG" and probe(b.getvalue()).frames == 2
    (tmp_path / "left.mpo").write_bytes(b.getvalue())
    assert inspect_image(tmp_path / "left.mpo")[:2] == (64, 48)
