"""What both front ends look like, beside stored screenshots, loosely: a changed colour, a lost bar or a broken layout shows, another font's
edges do not. `LADOS_LOOKS=write pytest -m fronts tests/fronts/test_looks.py` stores them anew, for somebody to look at."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from fronting import FRONTS, PHONE, press, remembered, said, settled, visitor
from PIL import Image

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


def compared(page, name):
    settled(page)
    now = Image.open(io.BytesIO(page.screenshot(animations="disabled", caret="hide")))
    width = WIDTH["phone" if "phone" in name else "desk"]
    now = now.convert("RGB").resize((width, round(width * now.height / now.width)), Image.Resampling.LANCZOS)
    path = STORED / f"{name}.jpg"
    if os.environ.get("LADOS_LOOKS") == "write":
        path.parent.mkdir(exist_ok=True)
        now.save(path, quality=72)
    mean, share = apart(now, Image.open(path))
    assert mean < 5 and share < 0.05, f"{name}: {mean:.1f} of 255 apart on average, clearly in {share:.0%} of the places"


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
