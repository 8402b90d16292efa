"TIFFs as remote sensing writes them: read rightly, or refused with the way out; never noise, never one even grey."

import itertools
import os
import re
import resource

import numpy as np
import pytest

from lados import rasters
from lados.core import ImageError, ImageTooLarge, settings
from lados.data.images import FILL, decode, load_square, probe
from lados.serve.predictor import Predictor

rasterio = pytest.importorskip("rasterio", reason="the extra geo is not installed")
RNG = np.random.default_rng(0)
PHOTO = np.kron(RNG.integers(2, 128, (6, 8, 3)), np.ones((16, 16, 1), int)).astype(np.uint8) # 96 x 128
DEPTHS = {"uint8": 1, "uint16": 16, "int16": 16, "int32": 16, "uint32": 16, "float32": 1 / 255, "float64": 1 / 255} # what a photograph's numbers are multiplied by


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.delenv("LADOS_BANDS", raising=False)
    settings.cache_clear()
    yield
    settings.cache_clear()


def write(path, values, **options):
    "A TIFF of values [h, w, bands]."
    values = values if values.ndim == 3 else values[..., None]
    names = options.pop("names", ())
    profile = {"driver": "GTiff", "height": values.shape[0], "width": values.shape[1], "count": values.shape[2], "dtype": values.dtype}
    with rasterio.open(path, "w", **profile, **options) as ds:
        ds.write(np.moveaxis(values, -1, 0))
        for i, name in enumerate(names, 1):
            ds.set_band_description(i, name)
    return path


def deep(dtype, image=PHOTO):
    return (image.astype(float) * DEPTHS[dtype]).astype(dtype)


LAYOUTS = [*itertools.product(DEPTHS, (1, 3, 5), ("pixel", "band"), (False, True)), *itertools.product(("uint8", "float32"), (2, 4), ("pixel", "band"), (False,))]


@pytest.mark.parametrize(("dtype", "count", "interleave", "tiled"), LAYOUTS)
def test_every_layout_gives_the_photograph(tmp_path, dtype, count, interleave, tiled):
    values = deep(dtype, np.dstack([PHOTO, PHOTO])[..., :count])
    tiles = {"tiled": True, "blockxsize": 32, "blockysize": 32} if tiled else {}
    for compress, endian in (("none", "LITTLE"), ("deflate", "LITTLE"), ("lzw", "BIG")):
        path = write(tmp_path / "x.tif", values, interleave=interleave, compress=compress, photometric="RGB" if count > 2 else "MINISBLACK",
                     ENDIANNESS=endian, ALPHA="NO", **tiles)
        want = PHOTO if count > 2 else PHOTO[..., :1].repeat(3, 2)
        assert np.abs(decode(path).astype(int) - want).max() <= 1, (compress, endian)


@pytest.mark.parametrize("dtype", DEPTHS)
def test_planes_of_rgb_are_not_noise(tmp_path, dtype):
    path = write(tmp_path / "x.tif", deep(dtype), interleave="band", photometric="RGB")
    assert np.abs(decode(path).astype(int) - PHOTO).max() <= 1 and (decode(path.read_bytes()) == decode(path)).all()


HOLE = np.zeros(PHOTO.shape[:2], bool)
HOLE[:, :20] = True


@pytest.mark.parametrize(("dtype", "value", "tag"), [
    ("float32", -9999, -9999), ("float32", float(np.finfo(np.float32).min), float(np.finfo(np.float32).min)), ("float32", np.nan, np.nan),
    ("float32", np.nan, None), ("float32", -9999, None), ("float32", float(np.finfo(np.float32).min), None), ("float64", 1e20, 1e20), ("int16", -32768, -32768),
    ("uint16", 65535, 65535), ("uint16", 0, 0), ("uint8", 0, 0), ("int32", -9999, -9999)])
@pytest.mark.parametrize("bands", [1, 3, 5])
def test_pixels_without_data_are_left_out_of_the_range(tmp_path, dtype, value, tag, bands):
    image = np.dstack([PHOTO, PHOTO])[..., :bands]
    values = (image.astype(float) * DEPTHS[dtype]).astype(dtype)
    values[HOLE] = value
    got = decode(write(tmp_path / "x.tif", values, nodata=tag, photometric="RGB" if bands > 1 else "MINISBLACK"))
    want = np.dstack([image] * 3)[..., :3] if bands == 1 else PHOTO
    assert (got[HOLE] == FILL).all() and np.abs(got[~HOLE].astype(int) - want[~HOLE]).max() <= 1
    assert "15.6% of the pixels hold no data" in got.rendering


@pytest.mark.parametrize(("dtype", "tag"), [("float32", -9999), ("uint16", 0), ("float32", np.nan)])
@pytest.mark.parametrize("bands", [1, 3])
def test_an_image_without_data_has_no_answer(tmp_path, dtype, tag, bands):
    path = write(tmp_path / "x.tif", np.full((8, 9, bands), tag, dtype), nodata=tag)
    with pytest.raises(ImageError, match=r"x\.tif: no pixel .* holds data"):
        decode(path)


def test_reflectances_are_stretched_by_percentiles_of_valid_pixels(tmp_path):
    values = (RNG.normal(500, 40, (90, 120, 3))).astype(np.uint16)
    values[3, 60], values[:, :30] = 9000, 0 # a glint, and the edge of the swath
    got = decode(write(tmp_path / "x.tif", values, nodata=0))
    assert got[:, 30:].std() > 40 and (got[:, :30] == FILL).all()
    low, high = map(float, re.search(r"values ([\d.]+) to ([\d.]+) \(percentiles 2 and 98", got.rendering).groups())
    assert abs(low - (500 - 2.05 * 40)) < 5 and abs(high - (500 + 2.05 * 40)) < 5


def test_the_user_chooses_the_bands(tmp_path, monkeypatch):
    path = write(tmp_path / "x.tif", np.dstack([PHOTO[..., ::-1], PHOTO, PHOTO]), photometric="MINISBLACK")
    assert "--bands chooses" in decode(path).rendering
    monkeypatch.setenv("LADOS_BANDS", "3,2,1")
    settings.cache_clear()
    assert (decode(path) == PHOTO).all() and decode(path).rendering == "bands 3, 2, 1 of 9 as red, green, blue"
    monkeypatch.setenv("LADOS_BANDS", "12,1,1")
    settings.cache_clear()
    with pytest.raises(ImageError, match=r"x\.tif: there is no band 12"):
        decode(path)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("interleave", ["pixel", "band"])
def test_of_two_bands_one_is_shown_and_the_answer_says_which(tmp_path, dtype, interleave):
    path = write(tmp_path / "x.tif", deep(dtype)[..., :2], photometric="MINISBLACK", interleave=interleave, ALPHA="NO")
    assert "band 1 of 2" in decode(path).rendering
    assert not getattr(decode(write(tmp_path / "y.tif", deep("uint8")[..., :1])), "rendering", "")


def test_the_file_may_name_its_bands(tmp_path):
    path = write(tmp_path / "x.tif", np.dstack([PHOTO, PHOTO])[..., :4][..., [2, 1, 0, 3]], names=["blue", "green", "red", "nir"],
                 photometric="MINISBLACK")
    assert (decode(path) == PHOTO).all() and "3, 2, 1 of 4" in decode(path).rendering


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_raster_is_upright(tmp_path, orientation):
    from PIL import Image

    stored = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.transpose(1, 0, 2),
              6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(a, 2).transpose(1, 0, 2), 8: lambda a: np.rot90(a, -1)}[orientation](PHOTO)
    Image.fromarray(np.ascontiguousarray(stored)).save(path := tmp_path / "x.tif", tiffinfo={274: orientation})
    with pytest.MonkeyPatch.context() as m:
        m.setenv("LADOS_BANDS", "1,2,3")
        settings.cache_clear()
        assert (decode(path) == PHOTO).all()
        assert (probe(path).height, probe(path).width) == stored.shape[:2]


@pytest.mark.parametrize(("dtype", "bands", "options"), [
    ("uint16", 3, {"interleave": "band"}), ("uint8", 4, {"interleave": "band"}), ("uint16", 5, {}), ("float64", 1, {}), ("float32", 3, {})])
def test_without_the_extra_the_message_names_it(tmp_path, monkeypatch, dtype, bands, options):
    path = write(tmp_path / "x.tif", deep(dtype, np.dstack([PHOTO, PHOTO])[..., :bands]), **options)
    monkeypatch.setattr(rasters, "_rasterio", lambda: None)
    with pytest.raises(ImageError, match=r"x\.tif: a TIFF of .*rasterio") as e:
        decode(path)
    assert "lados[geo]" in e.value.remedy and "damaged" not in str(e.value)


def test_complex_numbers_are_refused_by_name(tmp_path):
    path = write(tmp_path / "x.tif", np.ones((9, 9), np.complex64))
    with pytest.raises(ImageError, match="complex"):
        decode(path)


@pytest.mark.parametrize("compress", ["none", "deflate"])
def test_a_cut_raster_is_refused(tmp_path, compress):
    data = write(tmp_path / "x.tif", deep("uint16"), interleave="band", compress=compress).read_bytes()
    for cut in RNG.integers(8, len(data) - 1, 20):
        with pytest.raises(ImageError):
            decode(data[:cut])


def test_names_that_are_no_text_are_read(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9 \xff.tif")
    path.write_bytes(write(tmp_path / "x.tif", deep("float64")).read_bytes())
    assert np.abs(decode(path).astype(int) - PHOTO).max() <= 1


@pytest.fixture(scope="module")
def mosaic(tmp_path_factory):
    "A tiled mosaic of 169 million pixels with overviews, most of it never written."
    path = tmp_path_factory.mktemp("mosaic") / "m.tif"
    profile = {"driver": "GTiff", "height": 13_000, "width": 13_000, "count": 3, "dtype": "uint8", "tiled": True, "sparse_ok": True,
               "compress": "deflate", "nodata": 0}
    with rasterio.open(path, "w", **profile) as ds:
        ds.write(np.full((3, 3250, 13_000), 90, np.uint8), window=rasterio.windows.Window(0, 0, 13_000, 3250))
    bare = path.with_name("bare.tif")
    bare.write_bytes(path.read_bytes())
    with rasterio.open(path, "r+") as ds:
        ds.build_overviews([4, 16, 64], rasterio.enums.Resampling.average)
    return path, bare


def test_a_mosaic_is_read_from_its_overviews(mosaic):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    image = load_square(mosaic[0], 224)
    assert image.shape == (224, 224, 3) and (image[:50] == 90).all() and (image[60:] == FILL).all()
    assert (probe(mosaic[0]).width, probe(mosaic[0]).height) == (13_000, 13_000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000, "kB"


def test_a_mosaic_without_overviews_is_refused_or_read_in_bounded_memory(mosaic, monkeypatch):
    with pytest.raises(ImageTooLarge):
        load_square(mosaic[1], 224)
    monkeypatch.setenv("MAX_PIXELS", "200000000")
    settings.cache_clear()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (load_square(mosaic[1], 224)[:50] == 90).all()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000, "kB"


def test_the_answer_says_how_the_image_was_made(tmp_path):
    import torch

    from lados.model.backbones import make_backbone, preprocessing
    from lados.model.bundle import make_card
    from lados.model.inference import Model, save_bundle
    from lados.serve.table import classify

    torch.manual_seed(0)
    net = make_backbone("test_resnet", size=32).eval()
    predictor = Predictor.setup(save_bundle(tmp_path / "bundle", Model(net, make_card("test_resnet", preprocessing(net, 32)))))
    deep_one, plain = write(tmp_path / "deep.tif", deep("uint16")), write(tmp_path / "plain.tif", PHOTO)
    table = classify(predictor, [deep_one, plain])
    assert "values 0 to 4095" in table["rendering"][0] and table["rendering"].isna()[1]


def test_a_compression_that_only_the_package_reads(tmp_path, monkeypatch):
    "Pillow knows WebP in a TIFF by name, and is built without it: that is no damage."
    path = write(tmp_path / "webp.tif", PHOTO, compress="webp", webp_lossless=True)
    assert (decode(path) == PHOTO).all()
    monkeypatch.setattr(rasters, "_rasterio", lambda: None)
    with pytest.raises(ImageError, match="needs the package rasterio"):
        decode(path)
