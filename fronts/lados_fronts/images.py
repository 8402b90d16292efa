"""Files that a visitor gives: zips are opened, and of an image its size, time, place and a small copy are taken."""

import io
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from pathlib import PurePosixPath

from PIL import Image, ImageOps

try:
    from pillow_heif import register_heif_opener
except ImportError: # phones' own builds may lack it; such images have no small copy then
    pass
else:
    register_heif_opener()

THUMB = 384 # pixels, of the longer side
LARGE = 1400
TINY = 112
DIFFUSE = 0.33 # above this `spread` no place stands out, and nothing is tinted unless somebody asks for it
UNPACKED = 4_000_000_000 # bytes of a zip at most
MEMBERS = 5000
SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".heic", ".heif", ".jp2", ".jfif"}
MOST_PIXELS = 150_000_000 # are decoded: 450 MB
Image.MAX_IMAGE_PIXELS = None # it is looked at here, after a JPEG's decoder was asked for a part of them


@dataclass(frozen=True)
class About:
    "What an image's file says of itself."

    width: int | None = None
    height: int | None = None
    lat: float | None = None # degrees, WGS 84
    lon: float | None = None
    taken: str | None = None # ISO 8601, the camera's own time
    thumb: bytes = b"" # JPEG; empty: it cannot be shown


def is_zip(name: str, data: bytes) -> bool:
    "Return True for an archive."
    return name.lower().endswith(".zip") or data[:4] == b"PK\x03\x04"


def unpacked(name: str, data: bytes) -> Iterator[tuple[str, bytes | None]]: # path in the zip; bytes, None: it cannot be read
    "Yield the images of a zip. ValueError if it is none."
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except zipfile.BadZipFile:
        raise ValueError(name) from None
    left = UNPACKED
    with archive:
        for member in archive.infolist()[:MEMBERS]:
            path = PurePosixPath(member.filename.replace("\\", "/"))
            hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
            if member.is_dir() or hidden or path.suffix.lower() not in SUFFIXES:
                continue
            left -= member.file_size
            try:
                yield str(path), archive.read(member) if left > 0 else None
            except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError, EOFError):
                yield str(path), None


def look(data: bytes) -> About:
    "Return what an image says of itself; nothing where it cannot be opened here (the service may still read it)."
    try:
        with Image.open(io.BytesIO(data)) as image:
            size, exif = image.size, image.getexif()
            lat, lon = _position(exif)
            thumb = _small(image, THUMB) if _asked_for(image, (THUMB, THUMB)) else b""
    except Exception: # a torn or strange file is the service's to judge
        return About()
    return About(*size, lat, lon, _time(exif), thumb)


def _asked_for(image: Image.Image, size: tuple[int, int]) -> bool:
    "Have a JPEG's decoder make half, a quarter ... of an image, no smaller than a size. Return True if what will be decoded fits into memory."
    image.draft("RGB", size)
    return image.width * image.height <= MOST_PIXELS


def _small(image: Image.Image, side: int) -> bytes:
    shown = ImageOps.exif_transpose(image)
    shown.thumbnail((side, side))
    if shown.mode not in ("RGB", "L"):
        shown = shown.convert("RGB")
    out = io.BytesIO()
    shown.save(out, "JPEG", quality=82)
    return out.getvalue()


def shown(data: bytes, side: int = LARGE) -> bytes: # JPEG; empty: it cannot be shown
    "Return an image for a page, its longer side at most so many pixels."
    try:
        with Image.open(io.BytesIO(data)) as image:
            return _small(image, side) if _asked_for(image, (side, side)) else b""
    except Exception:
        return b""


_ONE = threading.Lock() # one after the other, for memory's sake


def smaller(data: bytes, limit: int) -> bytes: # JPEG with the EXIF of the old one, its place too; empty: it is no JPEG, or cannot be read
    "Return a photograph with fewer pixels, so that it has at most so many bytes."
    try:
        with _ONE, Image.open(io.BytesIO(data)) as image:
            if image.format not in ("JPEG", "MPO"):
                return b""
            exif, icc, scale = image.info.get("exif", b""), image.info.get("icc_profile"), (limit / len(data)) ** 0.5
            whole = image.size
            if not _asked_for(image, tuple(round(s * scale) for s in whole)):
                return b""
            image.load()
            while min(size := [round(s * scale) for s in whole]) > 0:
                out = io.BytesIO()
                image.resize(size, Image.Resampling.BOX).save(out, "JPEG", quality=90, exif=exif, icc_profile=icc)
                if out.tell() <= limit:
                    return out.getvalue()
                scale *= 0.8
    except Exception: # the service says what is wrong with it
        pass
    return b""


def with_heat(data: bytes, heat: bytes, opacity: float) -> bytes: # JPEG
    "Return an image with its heat map (a PNG that is transparent where cold) over it."
    with Image.open(io.BytesIO(data)) as image, Image.open(io.BytesIO(heat)) as over:
        base = image.convert("RGBA")
        warm = over.convert("RGBA").resize(base.size, Image.Resampling.BICUBIC)
        warm.putalpha(warm.getchannel("A").point(lambda a: round(a * opacity)))
        out = io.BytesIO()
        Image.alpha_composite(base, warm).convert("RGB").save(out, "JPEG", quality=88)
    return out.getvalue()


def spread(heat: bytes) -> float: # 0..1
    "Return the share of an image that holds half of a heat map's warmth: 0.5 where nothing stands out, small where a place does."
    with Image.open(io.BytesIO(heat)) as over:
        alphas = over.convert("RGBA").getchannel("A").resize((64, 64)).tobytes()
    warmth = sorted(((a / 255) ** (1 / 0.7) for a in alphas), reverse=True) # alpha is warmth to the power of 0.7
    half = sum(warmth) / 2
    return next((n / len(warmth) for n, seen in enumerate(accumulate(warmth), 1) if seen >= half), 0.0)


def _time(exif: Image.Exif) -> str | None:
    text = exif.get_ifd(0x8769).get(0x9003) or exif.get(0x0132)
    try:
        return datetime.strptime(str(text).strip("\0 "), "%Y:%m:%d %H:%M:%S").isoformat()
    except ValueError:
        return None


def _position(exif: Image.Exif) -> tuple[float | None, float | None]: # degrees
    gps = exif.get_ifd(0x8825)
    try:
        lat, lon = (_degrees(gps[i + 1], gps[i]) for i in (1, 3))
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None, None
    right = abs(lat) <= 90 and abs(lon) <= 180 and (lat, lon) != (0.0, 0.0) # drones without a fix write zeros
    return (lat, lon) if right else (None, None)


def _degrees(parts: tuple, side: str) -> float:
    d, m, s = (float(p) for p in parts)
    return round((d + m / 60 + s / 3600) * (-1 if str(side).strip("\0 ").upper() in ("S", "W") else 1), 7)
