"What both front ends stand on: what they import, their languages, what a visitor keeps, and what is taken home."

import ast
import csv
import io
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from serving import wait_for

ROOT = Path(__file__).resolve().parents[2]
FRONTS = ROOT / "fronts"
sys.path[:0] = [str(FRONTS), str(ROOT / "tools")]

from lados_fronts import exports, images  # noqa: E402
from lados_fronts import session as sessions  # noqa: E402
from lados_fronts.keep import Item, Keep, doubtful_first, new_visitor  # noqa: E402
from lados_fronts.service import Place, problem_of, served_now  # noqa: E402
from lados_fronts.session import answer_of  # noqa: E402
from lados_fronts.texts import reader_language, texts  # noqa: E402
from lados_fronts.wording import Wording  # noqa: E402

from lados.client import Client, Forbidden, Unavailable  # noqa: E402

ANSWER = {"label": "oil", "confidence": 0.9, "probabilities": {"oil": 0.9, "ship": 0.1}, "prediction_set": ["oil"], "abstain": False, "reason": None}


def photo(shade, gps=None) -> bytes:
    image = Image.new("RGB", (64, 48), shade)
    exif = image.getexif()
    exif[0x0132] = "2026:05:01 12:30:00"
    if gps:
        exif.get_ifd(0x8825).update({1: "S", 2: (36.0, 30.0, 0.0), 3: "E", 4: (25.0, 15.0, 0.0)})
    out = io.BytesIO()
    image.save(out, "JPEG", exif=exif)
    return out.getvalue()


@pytest.fixture
def keep(tmp_path):
    return Keep(new_visitor(), tmp_path)


@pytest.mark.parametrize("path", sorted(FRONTS.rglob("*.py")), ids=lambda p: p.relative_to(FRONTS).as_posix())
def test_fronts_know_nothing_of_the_house_but_its_client(path):
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names |= {a.name for a in node.names} if isinstance(node, ast.Import) else {node.module or ""} if isinstance(node, ast.ImportFrom) else set()
    assert {n for n in names if n.split(".")[0] == "lados"} <= {"lados.client"}


def test_every_text_has_its_russian():
    pytest.importorskip("babel", reason="catalogues are read with babel")
    import texts as tool

    assert len(tool.used()) > 150
    for path, catalogue in tool.catalogues().items():
        assert not tool.missing(catalogue)
        assert path.with_suffix(".mo").read_bytes() == tool.compiled(catalogue), "python tools/texts.py write"


def test_numbers_dates_and_plurals_are_those_of_the_language():
    en, ru = texts("en"), texts("ru")
    assert en.number(1234.5, 1) == "1\u202f234.5" and ru.number(1234.5, 1) == "1\u202f234,5"
    assert [ru.many("{n} image classified", "{n} images classified", n) for n in (1, 3, 11, 21)] == [
        "Классифицирован 1 снимок", "Классифицировано 3 снимка", "Классифицировано 11 снимков", "Классифицирован 21 снимок"]
    assert en.percent(0.999) == ">\u202f99\u202f%" and en.percent(0.001) == "<\u202f1\u202f%"
    assert "мая" in ru.when(1_777_600_000) and "May" in en.when(1_777_600_000)
    assert reader_language("", "ru-RU") == "ru" and reader_language(None, "fr") == "en" and reader_language("en", "ru") == "en"
    assert ru("Не из каталога") == "Не из каталога" and ru("") == ""


def test_a_problem_is_a_line_and_a_remedy():
    place = Place("http://someone:secret@127.0.0.1:1")
    with pytest.raises(Unavailable) as e, place.client(timeout=2) as client:
        client.health()
    said = problem_of(e.value, place, texts("en"))
    assert said.away and "does not answer" in said.line and "secret" not in str(said) and "kept" in said.remedy
    assert "API_KEY" in problem_of(Forbidden("no"), place, texts("ru")).remedy
    assert isinstance(place.client(), Client)


def test_an_image_is_kept_once_and_sent_by_one(keep):
    data = [photo((8 * i, 0, 0)) for i in range(30)]
    assert all(keep.add(f"{i}.jpg", d) for i, d in enumerate(data)) and not keep.add("again.jpg", data[0])
    assert keep.claim(5) == [], "nothing is sent before it is released"
    assert keep.release() == 30
    others = Keep(keep.visitor, keep.folder.parent) # a second process
    with ThreadPoolExecutor(8) as threads:
        taken = [i.key for part in threads.map(lambda n: (keep, others)[n % 2].claim(3), range(16)) for i in part]
    assert len(taken) == len(set(taken)) == 30
    others.recover() # both died
    assert keep.counts()["waiting"] == 30 and [i.name for i in keep.claim(3)] == ["0.jpg", "1.jpg", "2.jpg"]


def test_whatever_changes_is_seen_and_stays(keep):
    keep.add("a.jpg", photo((1, 2, 3), gps=True))
    key, before = keep.items()[0].key, keep.stamp()
    keep.change(key, state="done", answer=ANSWER)
    assert keep.stamp() != before
    item = Keep(keep.visitor, keep.folder.parent).get(key)
    assert (item.lat, item.lon, item.taken, item.width) == (-36.5, 25.25, "2026-05-01T12:30:00", 64) and item.says == "oil"
    assert keep.thumb(key).exists() and keep.path(key).stat().st_size == item.bytes
    keep.set(language="ru")
    keep.clear()
    assert not keep.items() and not keep.path(key).exists() and keep.setting("language") == "ru"
    with pytest.raises(ValueError, match="visitor"):
        Keep("../../etc", keep.folder)


def test_a_photograph_that_is_too_large_is_made_smaller_and_keeps_place_and_time(keep):
    large, torn = photo((1, 2, 3), gps=True) + bytes(50_000), b"\xff\xd8" + bytes(50_000)
    keep.add("a.jpg", large)
    keep.add("b.jpg", torn)
    for item in keep.items():
        keep.fit(item.key, None)
        assert keep.sent(item) == 0
        keep.fit(item.key, 20_000)
    whole, broken = keep.items()
    less = keep.path(whole.key).read_bytes()
    assert 0 < keep.sent(whole) == len(less) <= 20_000 and keep.path(broken.key).read_bytes() == torn, "the service says what is wrong with it"
    about = images.look(less)
    assert (about.lat, about.lon, about.taken) == (whole.lat, whole.lon, whole.taken) == (-36.5, 25.25, "2026-05-01T12:30:00")
    assert not keep.add("again.jpg", large), "it is known by what it was"


def test_a_photograph_of_hundreds_of_megapixels_is_decoded_at_a_part_of_its_size():
    data = io.BytesIO()
    Image.new("L", (20_000, 18_000), 90).save(data, "JPEG")
    about = images.look(data.getvalue())
    assert (about.width, about.height) == (20_000, 18_000) and about.thumb
    with Image.open(io.BytesIO(images.smaller(data.getvalue(), len(data.getvalue()) // 9))) as less:
        assert 1000 < less.width < 8000


def test_no_photograph_takes_all_memory_to_be_made_smaller(monkeypatch):
    "A decoder that makes a half or a quarter of it is asked first; what is too much even then is left to the service."
    noise, data = np.random.default_rng(0).integers(0, 256, (1200, 1600, 3), np.uint8), io.BytesIO()
    Image.fromarray(noise).save(data, "JPEG", quality=90)
    monkeypatch.setattr(images, "MOST_PIXELS", 800 * 600)
    less = images.smaller(data.getvalue(), len(data.getvalue()) // 8)
    assert Image.open(io.BytesIO(less)).width < 600
    assert images.smaller(data.getvalue(), len(data.getvalue()) - 1) == b""


def test_what_is_put_away_stays_in_the_history_and_comes_back_with_its_answer(keep):
    keep.add("a.jpg", photo(1))
    keep.add("b.jpg", photo(2))
    first, second = (i.key for i in keep.items())
    keep.change(first, state="done", answer=ANSWER)
    keep.change(second, state="failed", error="torn")
    keep.put_away()
    assert not keep.items() and [i.key for i in keep.history()] == [first] and not keep.path(second).exists()
    assert keep.add("again.jpg", photo(1)) and keep.items()[0].state == "done", "it is not sent a second time"
    again = Keep(keep.visitor, keep.folder.parent)
    assert [i.says for i in again.items()] == ["oil"]
    again.put_away()
    again.change(first, added=0)
    assert not Keep(keep.visitor, keep.folder.parent).history() and not keep.path(first).exists()


def test_a_session_whose_visitor_has_gone_ends(keep, monkeypatch):
    "Not while something waits to be sent: that is why it is there."
    monkeypatch.setattr(sessions, "IDLE", 0.0)
    keep.set(url="http://127.0.0.1:9")
    keep.add("a.jpg", photo(1))
    keep.release()
    session = sessions.session_of(keep)
    wait_for(lambda: session.away, 20)
    assert sessions.session_of(keep) is session and not session.over
    keep.clear()
    wait_for(lambda: session.over, 20)
    assert keep.visitor not in sessions._sessions


def test_doubtful_ones_come_first():
    def item(name, state, confidence, abstain=False):
        return Item(name, name, 0, state, {"confidence": confidence, "abstain": abstain})

    items = [item("sure", "done", 0.9), item("failed", "failed", 0), item("unsure", "done", 0.6), item("ask", "done", 0.7, True), item("wait", "waiting", 0), item("ask first", "done", 0.5, True)]
    assert [i.name for i in doubtful_first(items)] == ["ask first", "ask", "unsure", "sure", "wait", "failed"]


def test_results_are_taken_home_as_table_objects_and_map():
    items = [Item("a" * 64, "=1+1.jpg", 0, "done", ANSWER, lat=36.5, lon=25.25, bytes=5), Item("b" * 64, "b.jpg", 0, "failed", error="torn", bytes=5)]
    rows = list(csv.DictReader(io.StringIO(exports.as_csv(items, ["oil", "ship"]).decode("utf-8-sig"))))
    assert rows[0]["image"] == "'=1+1.jpg" and rows[0]["p_oil"] == "0.9" and rows[1]["error"] == "torn"
    assert json.loads(exports.as_json(items, ["oil", "ship"]))[0]["prediction_set"] == ["oil"]
    points = json.loads(exports.as_geojson(items, ["oil", "ship"]))["features"]
    assert [p["geometry"]["coordinates"] for p in points] == [[25.25, 36.5]] and points[0]["properties"]["predicted"] == "oil"
    assert exports.as_geojson(items[1:], ["oil"]) == b""


def test_a_field_that_a_package_adds_to_the_answer_is_taken_home():
    served = served_now({}, {"served": "m", "engine": "e", "models": []})
    of_job = answer_of({"image": "a", "predicted": "oil", "confidence": 0.8, "p_oil": 0.8, "prediction_set": "oil", "not_covered": "", "abstain": "", "error": "", "slick_km2": 1.5}, served)
    items = [Item("a" * 64, "a.jpg", 0, "done", {**ANSWER, "slick_km2": 2.5, "timing_ms": {"total": 3}, "request_id": "5f"}, bytes=5), Item("b" * 64, "b.jpg", 0, "done", of_job, bytes=5),
             Item("c" * 64, "c.jpg", 0, "failed", error="torn", bytes=5)]
    rows = {r["image"]: r for r in csv.DictReader(io.StringIO(exports.as_csv(items, ["oil", "ship"]).decode("utf-8-sig")))}
    assert [rows[n]["slick_km2"] for n in ("a.jpg", "b.jpg", "c.jpg")] == ["2.5", "1.5", ""] and not {"timing_ms", "request_id"} & rows["a.jpg"].keys()
    assert {r["image"]: r.get("slick_km2") for r in json.loads(exports.as_json(items, ["oil", "ship"]))} == {"a.jpg": 2.5, "b.jpg": 1.5, "c.jpg": None}


def test_a_zip_gives_its_images_and_nothing_else():
    f = io.BytesIO()
    with zipfile.ZipFile(f, "w") as z:
        for name in ("flight/a.jpg", "flight/notes.txt", "__MACOSX/._a.jpg", ".hidden.png", "b.PNG"):
            z.writestr(name, b"x")
    assert [n for n, _ in images.unpacked("z.zip", f.getvalue())] == ["flight/a.jpg", "b.PNG"]
    with pytest.raises(ValueError, match="torn"):
        list(images.unpacked("torn.zip", f.getvalue()[:60]))
    assert images.look(b"no image").thumb == b""


def test_classes_and_limits_are_those_that_the_service_tells():
    card = {"label_set": {"classes": [{"name": "weed", "title": "kelp", "colour": "#123456", "hint": "brown"}]}}
    served = served_now({"limits": {"images": 3, "image_bytes": 5}}, {"served": "m", "engine": "e", "models": [{"served": True, "card": card}]})
    assert served["weed"].title == "kelp" and served["gone"].title == "gone" and served.threshold == 3
    row = {"image": "a", "predicted": "weed", "confidence": 0.8, "p_weed": 0.8, "prediction_set": "weed|oil", "not_covered": "", "abstain": "True", "error": ""}
    answer = answer_of(row, served)
    assert answer["prediction_set"] == ["weed", "oil"] and answer["abstain"] is True and answer["model"] == "m" and answer["probabilities"] == {"weed": 0.8}
    assert answer_of({"error": "torn"}, served) == {}


def test_a_class_that_could_not_be_checked_is_said_in_each_language():
    served = served_now({}, {"served": "m", "models": [{"served": True, "card": {"label_set": {"classes": [{"name": n, "title": n} for n in ("oil", "ship")]}}}]})
    answer = ANSWER | {"prediction_set": ["ship", "oil"], "not_covered": ["oil"], "label": "ship"}
    for language, words in (("en", "Too few independent sources"), ("ru", "источников слишком мало")):
        wording = Wording(texts(language), served)
        assert words in wording.set_line(answer) and words not in wording.set_line(ANSWER)
    assert words in wording.reason(answer | {"label": "oil", "prediction_set": ["oil"]}) and words not in wording.reason(answer)


def test_the_folder_for_flet_build_has_the_client_alone(tmp_path):
    "What `flet build` takes: the program, and of lados nothing but its client, which is all that the program asks for."
    folder = tmp_path / "phone"
    done = subprocess.run([sys.executable, FRONTS / "flet" / "pack.py", folder], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert "flet build apk" in done.stdout, done.stderr
    assert {p.name for p in (folder / "lados").iterdir()} == {"__init__.py", "client.py"}
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    assert any(d.startswith("httpx") for d in project["project"]["dependencies"]) and project["tool"]["flet"]["android"]["permission"]
    code = "import sys, lados_fronts.session, lados_fronts.wording; print(*(m for m in sys.modules if m.startswith('lados.')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)}, capture_output=True, text=True)
    assert done.stdout.split() == ["lados.client"], done.stderr
