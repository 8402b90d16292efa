"""What both front ends look like, beside stored screenshots, loosely: a changed colour, a lost bar or a broken layout shows, another font's
edges do not. `LADOS_LOOKS=write pytest -m fronts tests/fronts/test_looks.py` stores them anew, for somebody to look at."""

import io
import os
import time
from pathlib import Path

import numpy as np
import pytest
from fronting import FRONTS, PHONE, press, remembered, said, settled, visitor
from PIL import Image
from serving import wait_for

pytestmark = pytest.mark.fronts
STORED = Path(__file__).with_name("looks")
WIDTH, COARSE = {"desk": 480, "phone": 260}, 96 # pixels: as stored, as compared
LOOKS = {"desk-light": {"color_scheme": "light"}, "phone-dark-ru": {"color_scheme": "dark", "locale": "ru-RU", **PHONE}}
WORDS = {"en": ("4 images classified", "Open", "What speaks for sheen lies mostly"),
         "ru": ("Классифицировано 4 снимка", "Открыть", "Признаки класса «плёнка» — прежде всего")}


def coarse(image) -> np.ndarray:
    side = (COARSE, round(COARSE * image.height / image.width))
    return np.asarray(image.convert("RGB").resize(side, Image.Resampling.BOX), np.float32)


def apart(a, b) -> tuple[float, float]: # of 255; 0..1
    "How far two screenshots are apart: on average, and in which share of the places clearly."
    far = np.abs(coarse(a) - coarse(b)).max(axis=2)
    return float(far.mean()), float((far > 40).mean())


def seen(page, name) -> Image.Image:
    shot = Image.open(io.BytesIO(page.screenshot(animations="disabled", caret="hide"))).convert("RGB")
    width = WIDTH["phone" if "phone" in name else "desk"]
    return shot.resize((width, round(width * shot.height / shot.width)), Image.Resampling.LANCZOS)


def store(page, name):
    "Store what is shown once it has not changed for some seconds: a canvas tells of nothing that it is still to draw."
    shots = []
    wait_for(lambda: page.wait_for_timeout(700) or shots.append(seen(page, name)) or (len(shots) > 8 and all(s == shots[-1] for s in shots[-8:])), 120)
    STORED.mkdir(exist_ok=True)
    shots[-1].save(STORED / f"{name}.jpg", quality=72)


def compared(page, name):
    "Wait until a page looks as stored."
    settled(page)
    if os.environ.get("LADOS_LOOKS") == "write":
        store(page, name)
    end = time.monotonic() + 60
    while True:
        mean, share = apart(seen(page, name), Image.open(STORED / f"{name}.jpg"))
        if mean < 5 and share < 0.05:
            return
        assert time.monotonic() < end, f"{name}: {mean:.1f} of 255 apart on average, clearly in {share:.0%} of the places"
        page.wait_for_timeout(500)


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("name", FRONTS)
def test_front_ends_look_as_stored(name, look, visit, fronts):
    language = "ru" if "ru" in look else "en"
    page = visit(name, script=remembered(visitor(fronts.kept, language=language)), **LOOKS[look])
    classified, large, evidence = WORDS[language]
    said(page, classified)
    compared(page, f"{name}-cards-{look}")
    press(page, large)
    said(page, evidence)
    compared(page, f"{name}-large-{look}")


def test_the_comparison_sees_another_theme_another_page_and_a_lost_card():
    cards = Image.open(STORED / "streamlit-cards-desk-light.jpg")
    lost = cards.copy()
    lost.paste(lost.getpixel((3, 3)), (0, lost.height // 2, lost.width // 3, lost.height))
    for other in (lost, Image.open(STORED / "streamlit-large-desk-light.jpg"), Image.open(STORED / "flet-cards-desk-light.jpg")):
        mean, share = apart(cards, other)
        assert mean >= 5 or share >= 0.05
