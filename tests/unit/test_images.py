"Images of every kind, damaged ones, huge ones; and a cache that survives kills, full disks and company."

import contextlib
import io
import os
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFile, features

from lados.core import DataError, ImageError
from lados.data.augment import AUGMENTS, augment
from lados.data.cache import build_cache
from lados.data.images import FILL, decode, load_square, probe, resize
from lados.files import sha256_file

ROOT = Path(__file__).parents[2]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
HUGE = 10_000 # pixels a side

# not ru_maxrss, which a new program inherits from the one that started it
PEAK = r'print(int(re.search(r"VmHWM:\s*(\d+)", open("/proc/self/status").read())[1]) / 1024)'


def photo(height=96, width=144, seed=0):
    "Coarse blocks and a little noise: every quarter differs, and JPEG keeps it."
    rng = np.random.default_rng(seed)
    blocks = np.kron(rng.integers(20, 235, (height // 24, width // 24, 3)), np.ones((24, 24, 1), int))
    return (blocks + rng.integers(-4, 5, blocks.shape)).astype(np.uint8)


def encoded(image, fmt="PNG", **options):
    b = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(b, fmt, **options)
    return b.getvalue()


def run(code, *args, **options):
    "Run Python in a process of its own."
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code), *map(str, args)], env=ENV, text=True,
                          capture_output=True, timeout=240, **options)


PHOTO = photo()
IM = Image.fromarray(PHOTO)
LOSSLESS = {
    "png": encoded(IM), "webp": encoded(IM, "WEBP", lossless=True, exact=True), "bmp": encoded(IM, "BMP"),
    "tiff": encoded(IM, "TIFF"), "tiff-lzw": encoded(IM, "TIFF", compression="tiff_lzw"),
    "tiff-deflate": encoded(IM, "TIFF", compression="tiff_deflate"), "tiff-big": encoded(IM, "TIFF", big_tiff=True),
    "tiff-pages": encoded(IM, "TIFF", save_all=True, append_images=[Image.new("RGB", (9, 9))]),
    "rgba": encoded(IM.convert("RGBA")), "tiff-rgba": encoded(IM.convert("RGBA"), "TIFF"),
}
LOSSY = {"jpeg": encoded(IM, "JPEG", quality=95), "progressive": encoded(IM, "JPEG", quality=95, progressive=True),
         "webp": encoded(IM, "WEBP", quality=95), "gif": encoded(IM, "GIF"),
         "tiff-jpeg": encoded(IM, "TIFF", compression="jpeg"),
         "palette": encoded(IM.convert("P", palette=Image.Palette.ADAPTIVE)),
         "cmyk": encoded(IM.convert("CMYK"), "JPEG", quality=95),
         "tiff-cmyk": encoded(IM.convert("CMYK"), "TIFF"),
         "mpo": encoded(IM, "MPO", save_all=True, append_images=[IM.rotate(180)], quality=95)}
if features.check("jpg_2000"):
    LOSSLESS["jpeg2000"] = encoded(IM, "JPEG2000")
if features.check("avif"):
    LOSSY["avif"] = encoded(IM, "AVIF", quality=95)
ALL = {**LOSSLESS, **{f"{k}-lossy": v for k, v in LOSSY.items()}}


# ---- every kind --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_formats_give_the_same_pixels(kind):
    assert (decode(LOSSLESS[kind]) == PHOTO).all()
    assert (probe(LOSSLESS[kind]).width, probe(LOSSLESS[kind]).height) == (144, 96)


@pytest.mark.parametrize("kind", LOSSY)
def test_lossy_formats_give_nearly_the_same_pixels(kind):
    assert np.abs(decode(LOSSY[kind]).astype(int) - PHOTO).mean() < 9


def test_only_the_first_frame_counts():
    pages = LOSSLESS["tiff-pages"]
    assert probe(pages).frames == 2 and decode(pages).shape == PHOTO.shape
    red, blue = (Image.new("RGB", (20, 20), c) for c in ("red", "blue"))
    film = encoded(red, "GIF", save_all=True, append_images=[blue])
    assert probe(film).frames == 2 and decode(film)[5, 5].tolist() == [255, 0, 0]


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_gives_the_upright_image(fmt, orientation):
    stored = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.transpose(1, 0, 2),
              6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
              8: lambda a: np.rot90(a, -1)}[orientation](PHOTO)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95, "subsampling": 0} if fmt == "JPEG" else {"lossless": True} if fmt == "WEBP" else {}
    data = encoded(np.ascontiguousarray(stored), fmt, exif=exif, **options)
    upright = decode(data)
    assert upright.shape == PHOTO.shape and np.abs(upright.astype(int) - PHOTO).mean() < 3
    info = probe(data)
    assert (info.height, info.width) == stored.shape[:2] and info.orientation == orientation


def test_cmyk_of_adobe_programs_has_its_colours():
    colours = {"red": (0, 255, 255, 0), "green": (255, 0, 255, 0), "white": (0, 0, 0, 0), "dark": (0, 0, 0, 255)}
    wanted = {"red": (255, 0, 0), "green": (0, 255, 0), "white": (255, 255, 255), "dark": (0, 0, 0)}
    for name, cmyk in colours.items():
        plain = encoded(Image.new("CMYK", (32, 32), cmyk), "JPEG", quality=95)
        assert np.abs(decode(plain)[16, 16].astype(int) - wanted[name]).max() < 8, name
        # YCCK, which Pillow does not write: colours turned by hand, then Adobe's transform byte says so
        ycc = Image.new("RGB", (32, 32), cmyk[:3]).convert("YCbCr").split()
        hand = Image.merge("CMYK", [*(c.point(lambda v: 255 - v) for c in ycc), Image.new("L", (32, 32), cmyk[3])])
        data = bytearray(encoded(hand, "JPEG", quality=95))
        data[data.index(b"Adobe") + 11] = 2
        assert np.abs(decode(bytes(data))[16, 16].astype(int) - wanted[name]).max() < 8, f"{name} as YCCK"


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_deep_grey_and_colour_span_their_bits(bits):
    ramp = np.linspace(0, 2 ** bits - 1, 64 * 96).reshape(64, 96).astype(np.uint16)
    for fmt in ("PNG", "TIFF"):
        grey = decode(encoded(ramp, fmt))
        assert grey.min() == 0 and grey.max() == 255 and (np.diff(grey[32, :, 0].astype(int)) >= 0).all()
    colour = np.dstack([ramp, ramp // 2, ramp * 0])
    for suffix in (".png", ".tiff"):
        rgb = decode(cv2.imencode(suffix, colour[..., ::-1])[1].tobytes())
        assert rgb[..., 0].max() == 255 and abs(int(rgb[..., 1].max()) - 127) <= 1 and rgb[..., 2].max() == 0, (suffix, bits)


def test_float_images():
    unit = np.linspace(0, 1, 64 * 64).reshape(64, 64).astype(np.float32)
    assert decode(encoded(unit, "TIFF"))[0, 0, 0] == 0 and decode(encoded(unit, "TIFF"))[-1, -1, 0] == 255
    assert decode(encoded(unit * 200, "TIFF"))[-1, -1, 0] == 200
    kelvin = 270 + 30 * unit
    kelvin[3, 3] = np.nan
    scaled = decode(encoded(kelvin, "TIFF"))
    assert scaled[-1, -1, 0] == 255 and scaled[0, 0, 0] == 0 and scaled[3, 3].tolist() == list(FILL)
    with pytest.raises(ImageError, match="holds data"):
        decode(encoded(np.full((4, 4), np.nan, np.float32), "TIFF"))
    signed = encoded(np.linspace(-500, 70000, 256).reshape(16, 16).astype(np.int32), "TIFF")
    assert decode(signed).min() == 0 and decode(signed).max() == 255


def test_transparency_becomes_the_neutral_colour():
    alpha = np.zeros(PHOTO.shape[:2], np.uint8)
    alpha[:48] = 255
    for fmt in ("PNG", "WEBP", "TIFF"):
        data = encoded(np.dstack([PHOTO, alpha]), fmt, **({"lossless": True} if fmt == "WEBP" else {}))
        assert (decode(data)[:48] == PHOTO[:48]).all() and (decode(data)[48:] == FILL).all(), fmt
    palette = Image.new("P", (10, 10), 1)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.paste(0, (0, 0, 10, 5))
    shown = decode(encoded(palette, transparency=1))
    assert shown[0, 0].tolist() == [255, 0, 0] and shown[9, 9].tolist() == list(FILL)
    assert decode(encoded(Image.new("LA", (5, 5), (200, 0))))[0, 0].tolist() == list(FILL)
    assert decode(encoded(Image.new("RGB", (5, 5), (1, 2, 3)), transparency=(1, 2, 3)))[0, 0].tolist() == list(FILL)


def test_one_bit_grey_and_tiny():
    assert decode(encoded(Image.new("1", (9, 9), 1)))[4, 4].tolist() == [255, 255, 255]
    assert decode(encoded(Image.new("L", (9, 9), 77), "JPEG"))[4, 4].tolist() == [77, 77, 77]
    for width, height in ((1, 1), (1, 3000), (3000, 1), (7, 5)):
        for fmt in ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF"):
            data = encoded(Image.new("RGB", (width, height), (90, 90, 90)), fmt)
            assert decode(data).shape == (height, width, 3)
            assert load_square(data, 64).shape == (64, 64, 3)


def tiled_tiff(tile=16):
    "An uncompressed tiled TIFF, written by hand: Pillow writes strips only."
    rows, columns = PHOTO.shape[0] // tile, PHOTO.shape[1] // tile
    tiles = [PHOTO[y * tile:(y + 1) * tile, x * tile:(x + 1) * tile].tobytes()
             for y in range(rows) for x in range(columns)]
    start = 8 + 2 + 12 * 11 + 4
    bits, offsets = start, start + 6
    counts = offsets + 4 * len(tiles)
    data = counts + 4 * len(tiles)
    tags = [(256, 4, 1, 144), (257, 4, 1, 96), (258, 3, 3, bits), (259, 3, 1, 1), (262, 3, 1, 2), (277, 3, 1, 3),
            (284, 3, 1, 1), (322, 4, 1, tile), (323, 4, 1, tile), (324, 4, len(tiles), offsets), (325, 4, len(tiles), counts)]
    ifd = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *t) for t in tags) + bytes(4)
    places = np.array([data + i * tile * tile * 3 for i in range(len(tiles))], "<u4").tobytes()
    sizes = np.full(len(tiles), tile * tile * 3, "<u4").tobytes()
    return b"II*\0" + struct.pack("<I", 8) + ifd + struct.pack("<HHH", 8, 8, 8) + places + sizes + b"".join(tiles)


def test_tiled_tiff():
    assert (decode(tiled_tiff()) == PHOTO).all()


def test_the_suffix_does_not_matter(tmp_path):
    (tmp_path / "a.jpg").write_bytes(LOSSLESS["png"])
    assert probe(tmp_path / "a.jpg").format == "PNG" and (decode(tmp_path / "a.jpg") == PHOTO).all()


# ---- sizes -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["png", "webp", "tiff", "bmp"])
def test_at_least_keeps_the_shorter_side(kind):
    big = photo(960, 1440)
    data = encoded(big, kind.upper())
    small = decode(data, at_least=200)
    assert small.shape == (240, 360, 3)
    assert np.abs(resize(small, 120).astype(int) - resize(decode(data), 120)).mean() < 3


def test_scaled_jpeg_is_the_same_image():
    big = cv2.resize(photo(192, 288), (2880, 1920), interpolation=cv2.INTER_CUBIC)
    data = encoded(big, "JPEG", quality=92)
    for goal in (100, 224, 400, 900, 1920, 5000):
        small = decode(data, at_least=goal)
        assert min(small.shape[:2]) >= min(goal, 1920)
        assert np.abs(resize(small, 96).astype(int) - resize(big, 96)).mean() < 3, goal


@pytest.fixture(scope="module")
def giants(tmp_path_factory):
    "Images of 100 million pixels, of one colour."
    folder = tmp_path_factory.mktemp("giants")
    out = run("""
        import sys
        from PIL import Image
        im = Image.new("RGB", (int(sys.argv[2]),) * 2, (20, 80, 200))
        im.save(sys.argv[1] + "/giant.png", compress_level=1)
        im.save(sys.argv[1] + "/giant.jpg")
    """, folder, HUGE)
    assert out.returncode == 0, out.stderr
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize(("call", "name", "limit_mb"), [
    ("decode(path)", "giant.png", 1200), ("decode(path)", "giant.jpg", 1200),
    ("decode(path, at_least=256)", "giant.jpg", 400),
    ("load_square(path, 256)", "giant.jpg", 400), ("load_square(path, 256)", "giant.png", 700)])
def test_a_hundred_million_pixels_in_bounded_memory(giants, call, name, limit_mb):
    out = run(f"""
        import re, sys
        from lados.data.images import decode, load_square
        path = sys.argv[1]
        image = {call}
        assert abs(image[7, 7].astype(int) - (20, 80, 200)).max() < 4
        {PEAK}
    """, giants / name)
    assert out.returncode == 0, out.stderr
    assert float(out.stdout) < limit_mb


def test_too_little_memory_is_an_error_of_that_image(giants):
    out = run("""
        import resource, sys
        from lados.core import ImageError
        from lados.data.images import decode
        grown = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        for room in (200, 500):
            resource.setrlimit(resource.RLIMIT_AS, (grown + room * 2 ** 20, resource.RLIM_INFINITY))
            try:
                decode(sys.argv[1])
            except ImageError as e:
                print(e)
    """, giants / "giant.png")
    assert out.stdout.count("giant.png: not enough memory") == 2, out.stderr


# ---- damaged and hostile -----------------------------------------------------------------------------------------

def bomb_png(side=60_000, real=False):
    "A one-bit PNG that claims side x side pixels, and where `real` also unpacks to them."
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    packer, row = zlib.compressobj(), bytes(side // 8 + 1)
    rows = b"".join(packer.compress(row) for _ in range(side if real else 1)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def bomb_tiff(side=60_000):
    tags = [(256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8), (277, 3, 1, 1),
            (278, 4, 1, side), (279, 4, 1, side)]
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(struct.pack("<HHII", *t) for t in tags) + bytes(4)


@pytest.mark.parametrize("data", [bomb_png(), bomb_tiff(), bomb_png(40_000, real=True)], ids=["png", "tiff", "real"])
def test_bombs_are_refused_before_they_go_off(data, tmp_path):
    (tmp_path / "bomb.png").write_bytes(data)
    start = time.thread_time()
    decode(encoded(np.zeros((2000, 2000, 3), np.uint8)))
    ordinary = time.thread_time() - start
    for call in (probe, decode):
        start = time.thread_time()
        with pytest.raises(ImageError, match=r"bomb\.png.*000x[46]0000 pixels(.|\n)*MAX_PIXELS"):
            call(tmp_path / "bomb.png")
        assert time.thread_time() - start < ordinary, "of the processor; one of four megapixels takes longer"


def test_the_limit_is_a_parameter():
    with pytest.raises(ImageError, match="1 to 1,000"):
        decode(LOSSLESS["png"], max_pixels=1000)
    assert decode(LOSSLESS["png"], max_pixels=PHOTO.size // 3).shape == PHOTO.shape


@pytest.mark.parametrize("data", [b"", b"not an image", b"<html>404</html>", b"%PDF-1.7", b"\xff\xd8\xff", bytes(5000),
                                  b"RIFF\0\0\0\0WEBP", b"BM" + bytes(80), b"II*\0" + bytes(8), b"GIF89a" + bytes(20)])
def test_what_is_no_image_names_the_file_and_a_remedy(data, tmp_path):
    (tmp_path / "sea 7.jpg").write_bytes(data)
    with pytest.raises(ImageError, match=r"sea 7\.jpg") as e:
        decode(tmp_path / "sea 7.jpg")
    assert e.value.remedy
    with pytest.raises(ImageError, match="upload 3"):
        decode(data, name="upload 3")


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.jpg", tmp_path):
        with pytest.raises(ImageError, match=str(path)):
            decode(path)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.filterwarnings("ignore")
def test_a_cut_image_is_refused_or_whole_never_half(kind):
    data, rng = ALL[kind], np.random.default_rng(1)
    whole, refused, points = decode(data), 0, {*rng.integers(1, len(data), 60).tolist(), *range(len(data) - 12, len(data))}
    for cut in points:
        start = time.thread_time() # whatever else the machine does
        for at_least in (None, 20):
            try:
                if at_least is None:
                    assert (decode(data[:cut]) == whole).all(), f"half an image at byte {cut} of {len(data)}"
                else:
                    decode(data[:cut], at_least=at_least)
            except ImageError:
                refused += 1
        assert time.thread_time() - start < 2
    assert refused > len(points) // 2


def test_a_jpeg_filled_up_with_zeros_is_refused():
    data = LOSSY["jpeg"]
    for cut in (len(data) // 3, len(data) - 40):
        with pytest.raises(ImageError, match="zeros"):
            decode(data[:cut] + bytes(4096))
    assert (decode(data + bytes(4096)) == decode(data)).all(), "padding behind the end is harmless"


def test_another_library_cannot_make_ours_accept_half_images():
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        with pytest.raises(ImageError):
            decode(LOSSY["jpeg"][:3000])
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False


@pytest.mark.filterwarnings("ignore")
def test_scrambled_bytes_never_raise_anything_else():
    rng = np.random.default_rng(2)
    for data in ALL.values():
        for _ in range(15):
            broken = np.frombuffer(data, np.uint8).copy()
            broken[rng.integers(0, len(broken), 1 + len(broken) // 2000)] = rng.integers(0, 256)
            with contextlib.suppress(ImageError):
                assert decode(broken.tobytes(), max_pixels=10_000_000).ndim == 3


def test_threads_read_the_same_pixels():
    alone = {k: decode(v) for k, v in ALL.items()}
    with ThreadPoolExecutor(4) as pool:
        for kind, image in pool.map(lambda k: (k, decode(ALL[k])), list(ALL) * 10):
            assert (image == alone[kind]).all(), kind


def test_mixed_shapes_resize():
    for shape in ((1, 1), (1, 900), (900, 1), (100, 3000), (3000, 100)):
        for mode in ("squash", "crop", "pad"):
            assert resize(np.full((*shape, 3), 50, np.uint8), 224, mode).shape == (224, 224, 3)


# ---- cache -------------------------------------------------------------------------------------------------------

@pytest.fixture()
def images(tmp_path):
    "Sixty JPEG files."
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(60):
        (folder / f"{i:02}.jpg").write_bytes(encoded(photo(240, 240, i), "JPEG"))
    return sorted(folder.iterdir())


BUILD = """
    import sys
    from pathlib import Path
    from lados.data.cache import build_cache
    cache = build_cache(sorted(Path(sys.argv[1]).iterdir()), size=128, home=sys.argv[2], workers=2)
    print(len(cache), len(cache.errors))
"""


def entries(home):
    return {p.name: p.read_bytes() for p in Path(home).rglob("*.npy") if p.parent.name != "tmp"}


def test_cache_holds_the_recipe_and_is_shared(images, tmp_path):
    sums = [sha256_file(p) for p in images]
    cache = build_cache(images, sums, size=128, home=tmp_path)
    assert not cache.errors and all((cache[i] == load_square(p, 128)).all() for i, p in enumerate(images))
    moved = tmp_path / "elsewhere.jpg"
    shutil.copy(images[5], moved)
    other = build_cache([moved, images[9]], size=128, home=tmp_path)
    assert other.path(0) == cache.path(5) and len(entries(tmp_path)) == 60


def test_cache_goes_on_past_unreadable_images(images, tmp_path):
    images[3].write_bytes(b"")
    images[4].write_bytes(images[4].read_bytes()[:2000])
    images[5].unlink()
    cache = build_cache(images, size=128, home=tmp_path)
    assert sorted(cache.errors) == [3, 4, 5] and "03.jpg" in str(cache.errors[3])
    assert cache[6].shape == (128, 128, 3)
    with pytest.raises(ImageError, match=r"04\.jpg"):
        cache[4]


def test_a_file_changed_since_its_import_does_not_poison_the_cache(images, tmp_path):
    sums = [sha256_file(p) for p in images]
    original = images[0].read_bytes()
    images[0].write_bytes(images[1].read_bytes())
    assert list(build_cache(images, sums, size=128, home=tmp_path).errors) == [0]
    images[0].write_bytes(original)
    cache = build_cache(images, sums, size=128, home=tmp_path)
    assert not cache.errors and (cache[0] == load_square(original, 128)).all()


def test_two_builders_at_once(images, tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(BUILD), str(images[0].parent), str(tmp_path / "both")]
    builders = [subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [b.communicate(timeout=120)[0].split() for b in builders] == [["60", "0"]] * 2
    build_cache(images, size=128, home=tmp_path / "alone")
    assert entries(tmp_path / "both") == entries(tmp_path / "alone")


def test_kill_9_leaves_whole_entries_only(images, tmp_path):
    home = tmp_path / "home"
    command = [sys.executable, "-c", textwrap.dedent(BUILD), str(images[0].parent), str(home)]
    builder = subprocess.Popen(command, env=ENV)
    until = time.time() + 60
    while len(list(home.rglob("*.npy"))) < 8 and time.time() < until and builder.poll() is None:
        time.sleep(0.002)
    builder.send_signal(signal.SIGKILL)
    builder.wait()
    early = {p: p.stat().st_mtime_ns for p in home.rglob("*.npy") if p.parent.name != "tmp"}
    assert early and all(np.load(p).shape == (128, 128, 3) for p in early)
    old = next(home.rglob("tmp")) / "left-behind.npy"
    old.write_bytes(b"half")
    os.utime(old, (time.time() - 3600,) * 2)
    cache = build_cache(images, size=128, home=home)
    assert all((cache[i] == load_square(p, 128)).all() for i, p in enumerate(images))
    assert all(p.stat().st_mtime_ns == t for p, t in early.items()), "what was there is not made again"
    assert not old.exists()


def test_a_short_or_missing_entry_is_made_again(images, tmp_path):
    cache = build_cache(images[:3], size=128, home=tmp_path)
    cache.path(1).write_bytes(b"")
    cache.path(2).unlink()
    for i in (1, 2):
        with pytest.raises(DataError, match="build the cache again"):
            cache[i]
    assert (build_cache(images[:3], size=128, home=tmp_path)[1] == load_square(images[1], 128)).all()


@pytest.fixture(params=["size=1m", "size=64m,nr_inodes=40"], ids=["bytes", "inodes"])
def small_disk(tmp_path, request):
    "A real file system with room for a few images, or for few files."
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    if os.geteuid() or not mount or subprocess.run([mount, "-t", "tmpfs", "-o", request.param, "none", place],
                                                   capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root and the permission to mount")
    yield place
    subprocess.run(["umount", place], check=True)


def test_disk_full(small_disk, images, tmp_path):
    with pytest.raises(DataError, match=r"disk(.|\n)*MB needed, .* MB free(.|\n)*LADOS_HOME"):
        build_cache(images, size=128, home=small_disk)
    assert not list(next(small_disk.rglob("tmp")).iterdir()), "no temporary file is left"
    kept = entries(small_disk)
    assert all(len(v) == 128 + 3 * 128 * 128 for v in kept.values())
    assert not build_cache(images[:3], size=128, home=small_disk).errors, "a smaller job still fits"
    assert not build_cache(images, size=128, home=tmp_path / "larger").errors


def test_a_write_that_fails_half_way(images, tmp_path):
    "A limit on file size cuts every write short, as a disk does that fills up in the middle of an image."
    out = run("""
        import resource, signal, sys
        from pathlib import Path
        from lados.core import DataError
        from lados.data.cache import build_cache
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            build_cache(sorted(Path(sys.argv[1]).iterdir()), size=128, home=sys.argv[2])
        except DataError as e:
            print(e)
    """, images[0].parent, tmp_path / "home")
    assert "no room for the image cache" in out.stdout and "LADOS_HOME" in out.stdout, out.stderr
    assert not list((tmp_path / "home").rglob("*.npy"))


def test_a_home_that_cannot_be_written(images, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="LADOS_HOME"):
        build_cache(images, size=128, home=tmp_path / "file")


def test_sums_and_paths_must_match(images):
    with pytest.raises(DataError, match="60 images but 1"):
        build_cache(images, ["0"], size=128)


def test_memory_does_not_grow_with_the_number_of_images(images, tmp_path):
    peaks = []
    for n in (120, 1200):
        folder = tmp_path / f"n{n}"
        folder.mkdir()
        data = images[0].read_bytes()
        for i in range(n):
            (folder / f"{i:04}.jpg").write_bytes(data + i.to_bytes(4, "big")) # another content, the same image
        out = run(BUILD + f"    import re\n    {PEAK}",
                  folder, tmp_path / f"home{n}")
        assert out.stdout.split()[:2] == [str(n), "0"], out.stderr
        peaks.append(float(out.stdout.split()[2]))
    assert peaks[1] - peaks[0] < 15, f"{peaks} MB"


# ---- augmentation and real images ------------------------------------------------------------------------------

@pytest.mark.parametrize("preset", AUGMENTS)
def test_augmentation_of_any_shape(preset):
    for shape in ((1, 1), (3, 700), (64, 64), (256, 256), (1000, 1500)):
        image = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
        rng = np.random.default_rng(3)
        views = [augment(image, 64, rng, preset) for _ in range(8)]
        assert all(v.shape == (64, 64, 3) and v.dtype == np.uint8 for v in views)
        again = np.random.default_rng(3)
        assert all((augment(image, 64, again, preset) == v).all() for v in views)


def test_every_real_photograph_is_read(tmp_path):
    images = Path(os.environ.get("LADOS_SHARED_DATA") or ROOT.parent / "shared" / "data") / "marine" / "images"
    if not images.is_dir():
        pytest.skip("the folder of real photographs is not here")
    paths = sorted(images.iterdir())
    cache = build_cache(paths, size=256, home=tmp_path)
    assert len(cache) == 150 and not cache.errors
    for i, path in enumerate(paths):
        with Image.open(path) as im:
            assert sorted((probe(path).width, probe(path).height)) == sorted(im.size)
        assert cache[i].std() > 3
