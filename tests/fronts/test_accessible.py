"Every page of both front ends, light and dark, on a desk and on a phone: axe-core finds no serious fault."

import pytest
from accessibility import faults
from fronting import FRONTS, part, press, remembered, said, settled, shot, visitor

pytestmark = pytest.mark.fronts
INK = {"light": "#16212e", "dark": "#e6edf3"} # of Streamlit's pages
SIZES = {"desk": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}


def looked_at(page, name) -> list[str]:
    "Serious faults of what is shown, light and dark, on a desk and on a phone; it ends as it began."
    found, streamlit = [], not page.locator("flutter-view").count()
    for scheme, size in (("dark", "desk"), ("dark", "phone"), ("light", "phone"), ("light", "desk")):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size(SIZES[size])
        if streamlit:
            page.wait_for_function("ink => getComputedStyle(document.documentElement).getPropertyValue('--l-ink').trim() === ink", arg=INK[scheme])
        settled(page)
        shot(page, f"{name}-{scheme}-{size}")
        found += faults(page, f"{name}, {scheme}, {size}")
    return found


@pytest.mark.parametrize("name", FRONTS)
def test_front_ends_have_no_serious_fault(name, visit, fronts):
    page = visit(name, script=remembered(visitor(fronts.kept)))
    said(page, "4 images classified")
    found = looked_at(page, f"{name}-classify")
    press(page, "Open")
    said(page, "What speaks for sheen lies mostly")
    found += looked_at(page, f"{name}-large")
    if name == "streamlit":
        page.keyboard.press("Escape")
        parts = {"Flight": "All images", "Jobs": "Handed in from here", "Service": "Models", "Settings": "Address of the service"}
    else:
        press(page, "Close")
        parts = {"Jobs": "Handed in from here", "History": "flight-000.jpg", "Settings": "Appearance"}
    page.locator("[role=dialog], [role=alertdialog]").wait_for(state="detached")
    for place, words in parts.items():
        part(page, place)
        said(page, words)
        found += looked_at(page, f"{name}-{place.lower()}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", FRONTS)
def test_an_empty_page_has_no_serious_fault(name, visit, fronts):
    page = visit(name, script=remembered(visitor(fronts.kept, images=0)))
    said(page, "The classes")
    found = looked_at(page, f"{name}-empty")
    assert not found, "\n".join(found)
