"What is sent to hurt: files that claim to be small, clients that never stop. The memory is watched, and others are still served."

import contextlib
import io
import json
import random
import struct
import threading
import time
import zlib

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image
from serving import Memory, Server, colours, encoded, read_all, runs, serving, wait_for

from lados.core import ImageError, ImageTooLarge, NotAnImage
from lados.data.images import load_square, probe

IMAGE = colours(1)[0]
MOST = 320 # MB that a process may grow by, whatever is sent to it
BUDGET = 256 << 20 # bytes, the default of MAX_DECODE_MB


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("hostile"), runs() / "first").ready()
    server.predict(IMAGE)
    server.rest = psutil.Process(server.process.pid).memory_info().rss # what it holds when nothing has hurt it
    yield server
    server.stop()


# --- files, written by hand where no library would


def png(width, height, depth=8, colour=2, end=b"", before=b"") -> bytes:
    "Any number of black pixels."
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = 1 + (width * {0: 1, 2: 3, 4: 2, 6: 4}[colour] * depth + 7) // 8
    squeeze = zlib.compressobj(9)
    data = b"".join(squeeze.compress(bytes(100 * row)) for _ in range(height // 100)) + squeeze.compress(
        bytes(height % 100 * row)) + squeeze.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)) + before + chunk(
        b"IDAT", data) + chunk(b"IEND", end)


def png_text(size) -> bytes:
    "A PNG with a compressed note of `size` bytes."
    note = b"zTXt" + b"Comment\0\0" + zlib.compress(bytes(size), 9)
    return png(64, 64, before=struct.pack(">I", len(note) - 4) + note + struct.pack(">I", zlib.crc32(note)))


def segment(marker, data) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def jpeg(width, height, components=3, progressive=False, scans=1) -> bytes:
    "A grey JPEG of one scan a component; progressive: coarse first, then `scans` times the rest of the first component."
    blocks = -(-width // 8) * -(-height // 8)
    parts = b"".join(bytes([i + 1, 0x11, 0]) for i in range(components))
    table = bytes([1, *[0] * 15]) # one code, of one bit
    head = (b"\xff\xd8" + segment(0xDB, b"\0" + b"\x01" * 64) + segment(0xC2 if progressive else 0xC0, struct.pack(
        ">BHHB", 8, height, width, components) + parts) + segment(0xC4, b"\x00" + table + b"\x00"))

    def zeros(bits):
        return bytes(bits // 8) + (bytes([(1 << (8 - bits % 8)) - 1]) if bits % 8 else b"")

    if not progressive:
        tables = segment(0xC4, b"\x10" + table + b"\x00")
        each = [segment(0xDA, bytes([1, i + 1, 0, 0, 63, 0])) + zeros(2 * blocks) for i in range(components)]
        return head + tables + b"".join(each) + b"\xff\xd9"
    coarse = segment(0xDA, bytes([components]) + b"".join(bytes([i + 1, 0]) for i in range(components)) + bytes(3))
    runs = "".join("0" + "1" * 14 for _ in range(-(-blocks // 32767))) # "the next 32767 blocks are over"
    runs += "1" * (-len(runs) % 8)
    fine = bytes(int(runs[i:i + 8], 2) for i in range(0, len(runs), 8)).replace(b"\xff", b"\xff\0")
    scan = segment(0xC4, b"\x10" + table + b"\xe0") + (segment(0xDA, bytes([1, 1, 0, 1, 63, 0])) + fine) * scans
    return head + coarse + zeros(blocks * components) + scan + b"\xff\xd9"


def flat(width, height, fmt, mode="RGB", **options) -> bytes:
    return encoded(Image.new(mode, (width, height)), fmt, **options)


def bmp_runs(width, height) -> bytes:
    "A BMP whose rows are one run and then an end of line, which Pillow fills pixel by pixel in Python."
    data = b"\x01\x01\x00\x00" * height
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 1078) + struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(data), 0, 0, 256, 0) + bytes(1024) + data


def tiff_tile(side) -> bytes:
    "A small TIFF that says its one tile is large."
    values = {256: 64, 257: 64, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 200, 325: 1000}
    entries = b"".join(struct.pack("<HHII", k, 4, 1, v) for k, v in values.items())
    body = b"II*\0" + struct.pack("<IH", 8, len(values)) + entries + bytes(4)
    return body.ljust(200, b"\0") + zlib.compress(bytes(1_000_000))


def gif_frames(count) -> bytes:
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return b"GIF89a" + struct.pack("<HHBBB", 64, 64, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff" + frame * count + b"\x3b"


def turned(orientation) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.open(io.BytesIO(IMAGE)), "JPEG", exif=exif, quality=95)


BOMBS = { # name -> file; whatever they claim, they are a few kilobytes to a few megabytes
    "png-100-megapixels": lambda: png(10_000, 10_000),
    "png-200-megapixels": lambda: png(20_000, 10_000, depth=1, colour=0),
    "png-just-allowed": lambda: png(8000, 8000),
    "png-with-transparency": lambda: png(8000, 7900, colour=6),
    "png-16-bit-colour": lambda: png(8000, 7800, depth=16),
    "png-note": lambda: png_text(200_000_000),
    "jpeg-progressive": lambda: jpeg(9000, 8900, progressive=True),
    "jpeg-progressive-cmyk": lambda: jpeg(8000, 7900, 4, progressive=True),
    "jpeg-several-scans": lambda: jpeg(12_000, 12_000),
    "jpeg-thousands-of-scans": lambda: jpeg(6000, 6000, 1, progressive=True, scans=8000),
    "jpeg-100-megapixels": lambda: flat(10_000, 10_000, "JPEG"),
    "tiff-100-megapixels": lambda: flat(10_000, 10_000, "TIFF", compression="tiff_adobe_deflate"),
    "tiff-one-strip": lambda: flat(8000, 8000, "TIFF", compression="tiff_adobe_deflate", strip_size=1 << 30),
    "tiff-floats": lambda: flat(8000, 7900, "TIFF", "F", compression="tiff_adobe_deflate"),
    "tiff-large-tile": lambda: tiff_tile(30_000),
    "webp": lambda: flat(5000, 5000, "WEBP", lossless=True),
    "webp-just-allowed": lambda: flat(4000, 4000, "WEBP"),
    "avif-just-allowed": lambda: flat(4300, 4300, "AVIF", speed=10),
    "jpeg2000": lambda: flat(4000, 4000, "JPEG2000", "RGBA"),
    "jpeg2000-just-allowed": lambda: flat(3200, 3200, "JPEG2000", "RGBA"),
    "gif": lambda: flat(8000, 8000, "GIF", "P"),
    "gif-200-megapixels": lambda: b"GIF89a" + struct.pack("<HHBBB", 20_000, 10_000, 0x80, 0, 0) + gif_frames(1)[13:],
    "gif-frames": lambda: gif_frames(400_000),
    "bmp-runs": lambda: bmp_runs(60_000, 1000),
}


@pytest.fixture(scope="module")
def bombs():
    return {name: make() for name, make in BOMBS.items()}


def test_bombs_are_answered_or_refused_in_little_memory(service, bombs):
    "One after another."
    told = {}
    for name, data in bombs.items():
        assert len(data) < 10e6, name
        with Memory(service.process.pid) as memory:
            start = time.monotonic()
            answer = service.post("/predict", content=data, timeout=60)
        told[name] = (answer.status_code, round((memory.peak - service.rest) / 1e6), round(time.monotonic() - start, 1))
    assert {status for status, *_ in told.values()} <= {200, 413, 422, 503}, told
    assert max(grown for _, grown, _ in told.values()) < MOST, told
    assert psutil.Process(service.process.pid).memory_info().rss < service.rest + 60e6, "and it is given back"
    for name in ("png-100-megapixels", "png-16-bit-colour", "jpeg-progressive", "jpeg-several-scans", "webp", "jpeg2000",
                 "tiff-100-megapixels", "tiff-large-tile", "gif-200-megapixels"):
        assert told[name][0] in (413, 422), (name, told[name])
    assert told["jpeg-100-megapixels"][0] == 200, "a plain JPEG is shrunk on the way"
    assert service.predict(IMAGE).status_code == 200
    print(json.dumps(told, indent=1))


def test_many_bombs_at_once_leave_room_for_others(service, bombs):
    "Large images take turns, so that their memory does not add up; a small one does not wait for them."
    large = [bombs[n] for n in ("png-just-allowed", "gif", "tiff-floats", "jpeg-100-megapixels", "jpeg-several-scans")] * 3
    statuses, waited, seconds, over = [], [], [], threading.Event()

    def hurt(data):
        start = time.monotonic()
        statuses.append(httpx.post(f"{service.url}/predict", content=data, timeout=60, trust_env=False).status_code)
        waited.append(time.monotonic() - start)

    with Memory(service.process.pid) as memory:
        threads = [threading.Thread(target=hurt, args=(d,)) for d in large]
        for t in threads:
            t.start()
        while any(t.is_alive() for t in threads):
            start = time.monotonic()
            assert service.predict(IMAGE).status_code == 200
            seconds.append(time.monotonic() - start)
            over.wait(0.05)
    assert set(statuses) <= {200, 413, 503}, statuses # on a busy machine none of them may be decoded in time
    grown = (memory.peak - service.rest) / 1e6
    assert grown < 1.5 * MOST
    assert np.median(seconds) < np.median(waited) / 2 and max(seconds) < max(waited), (seconds, waited)
    print(f"{grown:.0f} MB; small images beside them {np.median(seconds):.3f} s, at most {max(seconds):.3f} s")


@pytest.mark.parametrize("name", BOMBS)
def test_a_budget_for_decoding_is_kept_by_every_format(name, bombs):
    "The same files without a server: decoded, or refused as one of three kinds of error, before anything large is held."
    import os

    try:
        with Memory(os.getpid()) as memory:
            load_square(bombs[name], 64, name=name, max_memory=BUDGET)
    except (ImageTooLarge, NotAnImage):
        assert memory.grown < 60
    except ImageError:
        pass
    assert memory.grown < 1.15 * BUDGET / 1e6


def test_a_header_is_read_without_decompressing(bombs):
    for name in ("png-100-megapixels", "jpeg-progressive", "tiff-100-megapixels", "gif"):
        start = time.thread_time()
        assert probe(bombs[name]).width >= 8000
        assert time.thread_time() - start < 0.1, name


# --- honest and odd images


def test_unusual_images_are_answered(service):
    rgb = Image.open(io.BytesIO(IMAGE))
    noisy = np.random.default_rng(0).integers(0, 65535, (40, 60), np.uint16)
    film = [Image.new("RGB", (40, 40), c) for c in ("red", "green", "blue")]
    odd = {"16-bit": encoded(noisy), "16-bit-tiff": encoded(noisy, "TIFF"), "cmyk": encoded(rgb.convert("CMYK"), "JPEG"),
           "cmyk-tiff": encoded(rgb.convert("CMYK"), "TIFF"), "palette": encoded(rgb.convert("P")), "grey": encoded(rgb.convert("L")),
           "bits": encoded(rgb.convert("1")), "floats": encoded(rgb.convert("F"), "TIFF"), "see-through": encoded(rgb.convert("RGBA")),
           "animated-gif": encoded(film[0], "GIF", save_all=True, append_images=film[1:]),
           "animated-webp": encoded(film[0], "WEBP", save_all=True, append_images=film[1:]),
           "animated-png": encoded(film[0], "PNG", save_all=True, append_images=film[1:]),
           "pages": encoded(rgb, "TIFF", save_all=True, append_images=film), "one-pixel": encoded(Image.new("RGB", (1, 1))),
           "strip": encoded(Image.new("RGB", (1, 20_000))), "avif": encoded(rgb, "AVIF"), "jpeg2000": encoded(rgb, "JPEG2000"),
           "progressive": encoded(rgb, "JPEG", progressive=True), **{f"turned-{o}": turned(o) for o in (3, 6, 8)}}
    for name, data in odd.items():
        assert service.predict(data, name).status_code == 200, name
    upright = encoded(Image.open(io.BytesIO(turned(1))).rotate(-90, expand=True), "PNG")
    one, other = (service.predict(d).json()["probabilities"] for d in (turned(6), upright))
    assert one == pytest.approx(other, abs=0.02), "EXIF is obeyed"


def test_files_that_are_no_images_are_refused_as_what_they_are(service):
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\nshowpage\n"
    wrong = {"empty": b"", "text": b"Dear all,", "html": b"<html><img src=x onerror=alert(1)>", "svg": svg, "pdf": b"%PDF-1.7\n",
             "eps": eps, "zip": b"PK\x03\x04" + bytes(100), "elf": b"\x7fELF" + bytes(100),
             "zeros": bytes(1000), "pickle": b"\x80\x04\x95\x10\x00", "ico": b"\0\0\1\0\1\0\x10\x10", "psd": b"8BPS\0\1" + bytes(50)}
    for name, data in wrong.items():
        answer = service.predict(data, f"{name}.jpg")
        assert (answer.status_code == 415 and "convert it to" in answer.text) or name == "empty", (name, answer.text)
    assert "damaged" in service.predict(b"\0\0\0\x18ftypheic" + bytes(99)).text


def test_damaged_images_are_refused_and_name_the_file(service):
    rng = random.Random(0)
    whole = [IMAGE, encoded(Image.open(io.BytesIO(IMAGE)), "JPEG"), encoded(Image.open(io.BytesIO(IMAGE)), "TIFF"),
             encoded(Image.open(io.BytesIO(IMAGE)), "WEBP"), encoded(Image.open(io.BytesIO(IMAGE)), "GIF"),
             encoded(Image.open(io.BytesIO(IMAGE)), "AVIF"), encoded(Image.open(io.BytesIO(IMAGE)), "JPEG2000")]
    for data in whole:
        for cut in (40, len(data) // 2, len(data) - len(data) // 8):
            answer = service.predict(data[:cut], "mine.bin")
            assert answer.status_code in (413, 422) and "mine.bin" in answer.json()["detail"], (data[:4], cut, answer.text)
        for _ in range(20):
            bad = bytearray(data)
            for _ in range(8):
                bad[rng.randrange(len(bad))] = rng.randrange(256)
            assert service.predict(bytes(bad)).status_code in (200, 413, 415, 422)


def test_an_image_that_is_something_else_too_is_only_an_image(service):
    "An archive or a script behind the pixels is neither run nor an error; pixels behind a script are no image."
    page = b"<?php system($_GET['c']); ?><script>alert(1)</script>"
    for data in (IMAGE + page, IMAGE + b"PK\x03\x04" + bytes(100), encoded(Image.open(io.BytesIO(IMAGE)), "GIF") + page):
        assert service.predict(data).status_code == 200
    assert service.predict(page + IMAGE).status_code == 415


def test_names_lead_nowhere_and_break_nothing(service):
    names = {"../../etc/passwd": "passwd", "..\\..\\boot.ini": "boot.ini", "/etc/shadow": "shadow", "C:\\x\\sea.png": "sea.png",
             "a" * 3000 + ".png": "a" * 200, "": "image", "..": None, "sea\u202egnp.exe": "sea_gnp.exe", "\u00fcber.png": "\u00fcber.png",
             "<script>.png": "<script>.png", "{0.__class__}": "{0.__class__}", "%2e%2e%2f": "%2e%2e%2f", "日本.png": "日本.png"}
    for name, kept in names.items():
        body = (b'--x\r\nContent-Disposition: form-data; name="file"; filename="' + name.replace("\\", "\\\\").encode()
                + b'"\r\n\r\n' + IMAGE + b"\r\n--x--\r\n")
        answer = service.post("/predict", content=body, headers={"Content-Type": "multipart/form-data; boundary=x"})
        assert answer.status_code == 200, (name, answer.text)
        said = answer.json()["filename"]
        assert "/" not in said and len(said) <= 200 and (kept is None or said == kept), (name, said)
    for line in service.out.read_text().splitlines()[1:]:
        json.loads(line)


# --- forms


def form(*parts, boundary=b"x") -> bytes:
    return b"".join(b"--" + boundary + b"\r\n" + p + b"\r\n" for p in parts) + b"--" + boundary + b"--\r\n"


def sent(service, body, content_type="multipart/form-data; boundary=x", path="/predict") -> httpx.Response:
    return service.post(path, content=body, headers={"Content-Type": content_type})


FILE = b'Content-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n' + IMAGE


def test_forms_that_are_too_much_are_refused(service):
    field = b'Content-Disposition: form-data; name="f%d"\r\n\r\nx'
    with Memory(service.process.pid) as memory:
        many = sent(service, form(*[field % i for i in range(10_000)], FILE))
        assert many.status_code == 400 and "fields" in many.json()["detail"]
        large = sent(service, form(b'Content-Disposition: form-data; name="f"\r\n\r\n' + bytes(5_000_000), FILE))
        assert large.status_code == 400 and "beside images" in large.json()["detail"]
        for head in (b"X-Long: " + b"a" * 3_000_000, b"\r\n".join(b"X-%d: a" % i for i in range(100_000)),
                     b'Content-Disposition: form-data; name="' + b"a" * 3_000_000 + b'"'):
            assert sent(service, form(head + b"\r\n\r\nx", FILE)).status_code == 400
        behind = sent(service, form(FILE) + bytes(5_000_000))
        assert behind.status_code in (200, 400)
        nested = sent(service, form(b'Content-Type: multipart/mixed; boundary=y\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
                                    + form(FILE, boundary=b"y")))
        assert nested.status_code == 400
    assert memory.grown < 60


def test_forms_that_are_broken_are_refused(service):
    rng = random.Random(1)
    odd = ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=" + "b" * 10_000,
           "multipart/form-data; boundary=\"\"", "multipart/form-data; charset=x; boundary=y", "multipart/mixed; boundary=x",
           "multipart/form-data; boundary*0=x; boundary*1=y", "multipart/form-data; boundary*=utf-8''%ff"]
    assert {sent(service, form(FILE), kind).status_code for kind in odd} <= {400, 415}
    for disposition in (b"form-data; name=file; filename*=utf-8''a%ff.png", b'form-data; filename*=bogus\'x; name="f"', b"",
                        b'form-data; filename="a', b";;;;filename=", b"form-data; filename*0=a; filename*1=b", b"\xff\xfe; filename=\xff"):
        answer = sent(service, form(b"Content-Disposition: " + disposition + b"\r\n\r\n" + IMAGE))
        assert answer.status_code in (200, 400), (disposition, answer.text)
    for _ in range(150):
        body = bytearray(form(FILE))
        for _ in range(rng.randrange(1, 6)):
            body[rng.randrange(120 if rng.random() < 0.7 else len(body))] = rng.randrange(256)
        assert sent(service, bytes(body)).status_code in (200, 400, 413, 415, 422)
    assert service.predict(IMAGE).status_code == 200


def test_a_body_for_those_who_send_no_images_is_small(service):
    with Memory(service.process.pid) as memory:
        endless = (b"[" * 65_536 for _ in range(1000))
        answer = service.post("/models/promote", content=endless, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413 and memory.grown < 30
    for body in (b'{"model": "\\ud800"}', b'{"\\ud800": 1}', b"[" * 60_000, b"\xff\xfe", b'{"model": ' + b"9" * 5000 + b"}", b"null"):
        answer = service.post("/models/promote", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 401, 422), answer.text


# --- clients that never stop


def endless(service, start, more, seconds=4.0) -> tuple[int, bytes, float]:
    "Send `start`, then pieces for ever: bytes that went through, what came back, MB the process grew by."
    gone, came = 0, []
    with Memory(service.process.pid) as memory, service.connect(5) as sock:
        reader = threading.Thread(target=lambda: came.append(read_all(sock)), daemon=True)
        reader.start()
        end = time.monotonic() + seconds
        try:
            sock.sendall(start)
            while time.monotonic() < end:
                piece = more(gone)
                sock.sendall(piece)
                gone += len(piece)
        except OSError:
            pass
        else:
            sock.shutdown(2)
        reader.join(5)
    return gone, b"".join(came), memory.grown


CHUNKED = b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Type: %s\r\nTransfer-Encoding: chunked\r\n\r\n"
PIECE = b"10000\r\n" + bytes(65_536) + b"\r\n"
BEGIN = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n'
ENDLESS = { # name -> what begins it, what never ends, the answer that may come
    "body": (CHUNKED % (b"/predict", b"image/png"), PIECE, b"413"),
    "body-of-a-form": (CHUNKED % (b"/predict", b"multipart/form-data; boundary=x") + b"%x\r\n" % (len(BEGIN) + 2) + BEGIN
                       + b"\r\n\r\n", PIECE, b"413"),
    "part-headers": (CHUNKED % (b"/predict", b"multipart/form-data; boundary=x") + b"%x\r\n" % len(BEGIN) + BEGIN + b"\r\n",
                     b"8000\r\n" + b"X-Long: a\r\n".ljust(32_768, b"a") + b"\r\n", b"400"),
    "body-of-a-promotion": (CHUNKED % (b"/models/promote", b"application/json"), PIECE, b"413"),
    "body-of-nothing": (CHUNKED % (b"/nowhere", b"image/png"), PIECE, b"404"),
    "headers": (b"GET / HTTP/1.1\r\n", b"".join(b"X-%d: aaaaaaaa\r\n" % i for i in range(2000)), b"400"),
    "one-header": (b"GET / HTTP/1.1\r\nX: ", b"a" * 65_536, b"400"),
    "address": (b"GET /", b"a" * 65_536, b"400"),
    "short-trailers": (CHUNKED % (b"/health", b"image/png") + b"0\r\n", b"a:b\r\n" * 10_000, b"400"),
    "trailers": (CHUNKED % (b"/predict", b"image/png") + b"1\r\na\r\n0\r\n", b"X: " + b"a" * 65_536 + b"\r\n", b"400"),
    "one-trailer": (CHUNKED % (b"/health", b"image/png") + b"0\r\nX: ", b"a" * 65_536, b"400"),
    "chunk-extension": (CHUNKED % (b"/predict", b"image/png") + b"1;", b"a" * 65_536, b"400"),
    "requests": (b"", b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n" * 2000, b""),
    "requests-with-images": (b"", b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n0123456789" * 1000, b""),
    "nonsense": (b"", random.Random(0).randbytes(65_536), b"400"),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_what_never_ends_takes_no_memory(service, name):
    start, piece, answer = ENDLESS[name]
    gone, came, grown = endless(service, start, lambda n: piece, seconds=1.2)
    assert grown < 40, f"{grown:.0f} MB for {gone / 1e6:.0f} MB"
    assert answer in came[:2000] or not came, came[:300]
    assert service.predict(IMAGE).status_code == 200


def test_answers_are_seen_by_clients_that_send_everything_first(service):
    "A refusal that comes as a broken connection would leave a user guessing."
    import http.client

    for path, length, status in (("/predict", 30_000_000, 413), ("/models/promote", 5_000_000, 413), ("/nowhere", 30_000_000, 404)):
        client = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
        client.request("POST", path, bytes(length), {"Content-Type": "application/json" if "promote" in path else "image/png"})
        assert client.getresponse().status == status
        client.close()


def test_a_thousand_idle_connections_take_little_and_stop_nobody(service):
    with Memory(service.process.pid) as memory:
        idle = [service.connect() for _ in range(1000)]
        half = idle[::2]
        for sock in half:
            sock.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n")
        assert httpx.get(f"{service.url}/health", trust_env=False).status_code == 200
        assert httpx.post(f"{service.url}/predict", content=IMAGE, trust_env=False).status_code == 200
    for sock in idle:
        sock.close()
    assert memory.grown < 60


def test_more_connections_than_the_process_takes_are_told_so(service):
    from lados.serve.server import CONNECTIONS

    many = [service.connect() for _ in range(CONNECTIONS + 20)]
    told = read_all(many[-1])
    assert b"503" in told[:20] and b"retry-after: 1" in told and json.loads(told.partition(b"\r\n\r\n")[2])["status"] == 503
    for sock in many:
        sock.close()
    wait_for(lambda: httpx.get(f"{service.url}/health", trust_env=False).status_code == 200, 10, service)


IMPATIENT = """
import lados.serve.server as server
server.HEAD_SECONDS, server.IDLE_SECONDS, server.LOOK_SECONDS = 0.4, 0.8, 0.1
"""


def test_clients_that_dawdle_are_let_go(tmp_path):
    "With less patience than usual, so that the test need not have it."
    from serving import START

    with serving(tmp_path, runs() / "second", code=IMPATIENT + START) as server:
        server.ready()
        slow = {"nothing": [], "half a head": [b"GET / HT"], "a head by bytes": [b"G", b"E", b"T", b" ", b"/", b" ", b"H"] * 3,
                "lines after an answer": [b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n", *[b"\r\n"] * 20],
                "a body after an answer": [b"GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n", *[b"a"] * 20],
                "trailers after an answer": [CHUNKED % (b"/nowhere", b"image/png") + b"0\r\n", *[b"X: a\r\n"] * 20]}
        for pieces in slow.values():
            with server.connect(30) as sock:
                try:
                    for piece in pieces:
                        sock.sendall(piece)
                        time.sleep(0.1)
                except OSError:
                    pass
                with contextlib.suppress(ConnectionError): # it ends, one way or another; a wait in vain raises TimeoutError
                    while sock.recv(65536):
                        pass
        with server.connect(10) as sock: # asks for megabytes and reads none of them
            sock.sendall(b"GET /static/swagger-ui-bundle.js HTTP/1.1\r\nHost: a\r\n\r\n" * 12)
            time.sleep(2.5)
            assert len(read_all(sock, 1 << 26)) < 12 * 1_400_000
        assert server.predict(IMAGE).status_code == 200


def test_a_closed_connection_is_a_cancelled_image(service):
    from test_api import counted

    before = counted(service, "cancelled")
    noise = encoded(np.random.default_rng(0).integers(0, 255, (1300, 1900, 3), np.uint8))
    for _ in range(6):
        with service.connect() as sock:
            sock.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(noise) + noise)
    wait_for(lambda: counted(service, "cancelled") >= before + 3, 20, service)
    wrong = [x for x in service.lines() if x["log.level"] == "error"]
    assert not wrong, json.dumps(wrong[0])[-3000:] # nothing that was sent to this service, here and above, is a defect of it
