"Both front ends as they are used: in Chromium, against an API and a worker that run, are killed, and come back."

import base64
import io
import json
import zipfile
from pathlib import Path

import httpx
import numpy as np
import pytest
from fronting import (
    FRONTS,
    PHONE,
    WORDS,
    app,
    awake,
    files,
    give,
    part,
    photo,
    press,
    remembered,
    said,
    settled,
    shot,
    typed,
    visitor,
)
from PIL import Image
from serving import KEY, encoded, wait_for

pytestmark = pytest.mark.fronts
both = pytest.mark.parametrize("name", FRONTS)


@both
def test_an_afternoon(name, api, visit):
    "Images in, doubtful first, one in large with its heat map, put right, taken home; a reload loses nothing."
    page = visit(name)
    said(page, "first")
    first = {"streamlit": 1, "flet": 11}[name] # other images for each: a correction is kept once an image
    give(page, name, [*files(*range(first, first + 6), gps=True), {"name": "notes.jpg", "mimeType": "image/jpeg", "buffer": b"no image"}])
    said(page, "6 images classified")
    said(page, "1 could not be read")
    shot(page, f"{name}-cards")
    press(page, "Open")
    said(page, "The evidence for", "lies mostly")
    said(page, "How likely each class is")
    shot(page, f"{name}-large")
    before = len(httpx.get(f"{api.url}/corrections", headers={"X-API-Key": KEY}, trust_env=False).json()["corrections"])
    if name == "streamlit":
        page.get_by_role("dialog").get_by_role("radio", name="sheen").click()
    else:
        press(page, "Close")
        page.locator("[role=alertdialog]").wait_for(state="detached")
        press(page, "Fix label")
        press(page, "sheen", "menuitem")
    wait_for(lambda: len(httpx.get(f"{api.url}/corrections", headers={"X-API-Key": KEY}, trust_env=False).json()["corrections"]) == before + 1, 120)
    said(page, "Kept for the next training")
    if name == "streamlit":
        page.keyboard.press("Escape")
        page.get_by_role("dialog").wait_for(state="detached")
    with page.expect_download() as waiting:
        press(page, "GeoJSON")
    assert len(json.loads(Path(waiting.value.path()).read_text())["features"]) == 6
    again = visit(name, state=page.context.storage_state())
    said(again, "6 images classified")


@both
def test_the_api_dies_and_comes_back(name, api, visit):
    "One calm line; what was given waits, and is sent once, whether the browser is still open or not."
    page = visit(name)
    said(page, "first")
    api.server.stop(9)
    give(page, name, files(*range(20, 25)))
    said(page, "does not answer")
    said(page, "Classified 0 of 5") # they are kept
    shot(page, f"{name}-away")
    state = page.context.storage_state()
    page.context.close()
    api.start()
    wait_for(lambda: api.answers() >= 5, 180)
    again = visit(name, state=state)
    said(again, "5 images classified")
    assert api.answers() == 5


@both
def test_a_hundred_images_are_a_job_that_is_found_again(name, visit):
    page = visit(name)
    said(page, "first")
    give(page, name, files(*range(100, 200)))
    said(page, "Job ", "100 images classified") # handed in: from now on nobody needs this browser
    state = page.context.storage_state()
    page.context.close()
    again = visit(name, state=state)
    said(again, "100 images classified")
    shot(again, f"{name}-hundred")
    page = again
    part(page, "Jobs")
    said(page, "100 of 100 images")


@both
def test_an_image_of_twenty_megabytes_is_refused_in_words(name, visit, tmp_path):
    page = visit(name)
    said(page, "first")
    pixels = np.random.default_rng(0).integers(0, 255, (2600, 2600, 3), np.uint8)
    large, small = tmp_path / "large.png", tmp_path / "small.jpg"
    large.write_bytes(encoded(Image.fromarray(pixels), compress_level=0))
    small.write_bytes(photo(31))
    assert large.stat().st_size > 20_000_000
    give(page, name, [large, small])
    said(page, "1 could not be read")
    said(page, "MB")
    said(page, "1 image classified")


@both
def test_a_photograph_above_the_limit_is_sent_smaller_and_keeps_its_place(name, visit, tmp_path):
    page = visit(name)
    said(page, "larger JPEGs are sent smaller")
    assert "per file" not in page.evaluate(WORDS)[0], "a limit that is not ours"
    large = tmp_path / "large.jpg"
    large.write_bytes(photo(32, gps=True, size=(3600, 2900)) + bytes(13_000_000))
    give(page, name, [large])
    said(page, "1 image classified")
    said(page, "Sent smaller: ")
    shot(page, f"{name}-smaller")
    with page.expect_download() as waiting:
        press(page, "GeoJSON")
    assert json.loads(Path(waiting.value.path()).read_text())["features"][0]["geometry"]["coordinates"] == [25.25, 36.5088889]


def packed(*numbers) -> dict:
    "A zip with images, one of them in a folder, and what else is in such archives."
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as z:
        z.writestr("flight/notes.txt", "wind from the north")
        for f in files(*numbers):
            z.writestr(f"flight/{f['name']}", f["buffer"])
    return {"name": "flight.zip", "mimeType": "application/zip", "buffer": data.getvalue()}


@both
def test_a_zip_is_opened_and_what_is_there_already_is_not_sent_again(name, api, visit):
    page = visit(name)
    said(page, "first")
    before = api.answers()
    give(page, name, [packed(61, 62, 63)])
    said(page, "3 images classified")
    give(page, name, [*files(63), *files(64)])
    said(page, "4 images classified")
    assert api.answers() == before + 4


DROP = """async ([name, data]) => {
  const box = new DataTransfer()
  box.items.add(new File([Uint8Array.from(atob(data), c => c.charCodeAt(0))], name))
  for (const what of ["dragover", "drop"]) dispatchEvent(new DragEvent(what, { dataTransfer: box, cancelable: true }))
}"""


def test_what_is_dropped_on_the_page_is_taken_in(api, visit):
    "On Streamlit's the uploader does it; on Flutter's page, which is one canvas, all of it does."
    page = visit("flet")
    said(page, "first")
    zipped = packed(65, 66)
    page.evaluate(DROP, [zipped["name"], base64.b64encode(zipped["buffer"]).decode()])
    said(page, "2 images classified")
    stranger = httpx.post(page.url + "drop?visitor=" + "0" * 32 + "&name=a.jpg", content=photo(67), trust_env=False)
    assert stranger.status_code == 403


def test_a_whole_folder(visit, tmp_path):
    page = visit("streamlit")
    said(page, "first")
    (tmp_path / "flight" / "low").mkdir(parents=True)
    for n, folder in ((71, "flight"), (72, "flight/low")):
        (tmp_path / folder / f"{n}.jpg").write_bytes(photo(n))
    (tmp_path / "flight" / "notes.txt").write_text("wind from the north")
    page.get_by_text("Choose a whole folder").click()
    page.wait_for_selector("[data-testid=stFileUploaderDropzoneInput][webkitdirectory]", state="attached")
    page.set_input_files("[data-testid=stFileUploaderDropzoneInput]", tmp_path / "flight")
    said(page, "2 images classified")


def test_a_click_in_a_chart_and_in_the_table_opens_the_image(visit, fronts):
    page = visit("streamlit", script=remembered(visitor(fronts.kept, 12)))
    said(page, "12 images classified")
    part(page, "Flight")
    bar = page.locator(".js-plotly-plot .barlayer .trace.bars .point path").first
    bar.wait_for()
    bar.scroll_into_view_if_needed()
    box = bar.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    dialog = page.get_by_role("dialog", name="flight-000.jpg")
    dialog.get_by_text("How likely each class is").wait_for()
    shot(page, "streamlit-flight-click")
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")


def test_an_address_leads_to_its_page(visit, fronts):
    page = visit("streamlit", script=remembered(visitor(fronts.kept, language="ru"))) # in a browser that speaks English
    page.goto(f"{page.url}flight")
    said(page, "Классы по ходу вылета")
    page.reload()
    said(page, "Классы по ходу вылета")
    page.get_by_role("heading", name="Что на воде?").wait_for()
    page.get_by_role("link", name="Снимки").wait_for()


def test_the_first_visitor_of_all_may_come_by_the_address_of_a_page(chromium, api, tmp_path):
    with app(tmp_path, "streamlit", API_KEY=KEY, LADOS_API_URL=api.url) as (url, _):
        page = chromium.new_page(locale="en-GB")
        page.set_default_timeout(180_000)
        page.goto(f"{url}/service")
        page.get_by_role("heading", name="Models").wait_for()
        page.close()


def test_history_stays_on_the_device(visit, fronts):
    page = visit("flet", script=remembered(visitor(fronts.kept)))
    said(page, "4 images classified")
    press(page, "Clear")
    said(page, "Choose a flight's images")
    page.reload()
    awake(page)
    part(page, "History")
    said(page, "flight-002.jpg")
    shot(page, "flet-history")
    press(page, "flight-002.jpg")
    said(page, "What speaks for sheen lies mostly")


def test_a_press_while_the_page_is_laid_out_anew_is_heard(visit, fronts):
    "What has not changed stays the same control, so that no press meets one that was exchanged meanwhile."
    page = visit("flet", script=remembered(visitor(fronts.kept)))
    said(page, "4 images classified")
    for width in (1180, 1240, 1120, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        page.get_by_role("button", name="Open").first.dispatch_event("click")
        dialog = page.get_by_role("alertdialog").or_(page.get_by_role("dialog"))
        dialog.first.wait_for(state="attached")
        page.set_viewport_size({"width": width - 20, "height": 880})
        page.get_by_role("button", name="Close").first.dispatch_event("click")
        dialog.first.wait_for(state="detached")
    for width, scheme in ((390, "dark"), (1280, "light")): # and from a rail to a bar and back
        page.set_viewport_size({"width": width, "height": 880})
        page.emulate_media(color_scheme=scheme)
        page.get_by_role("button", name="Open").first.dispatch_event("click")
        dialog.first.wait_for(state="attached")
        page.get_by_role("button", name="Close").first.dispatch_event("click")
        dialog.first.wait_for(state="detached")


def test_promoting_behind_the_key(api, visit):
    page = visit("streamlit")
    said(page, "first")
    try:
        part(page, "Service")
        press(page, "Promote")
        page.locator(".l-status b", has_text="second").wait_for() # loaded and measured first, which takes a while
        assert api.server.get("/models").json()["served"] == "second"
        shot(page, "streamlit-promoted")
    finally:
        assert api.server.promote("first").status_code == 200


def test_what_is_being_typed_outlives_another_theme_and_language_and_is_gone_unless_saved(visit):
    page = visit("flet")
    said(page, "first")
    part(page, "Settings")
    typed(page, "Key", "half a ke")
    press(page, "Dark")
    press(page, "Русский")
    said(page, "Ключ")
    field = page.get_by_label("Ключ", exact=True)
    settled(page)
    assert field.input_value() == "half a ke"
    part(page, "История")
    field.wait_for(state="detached")
    part(page, "Настройки")
    field.wait_for(state="attached")
    settled(page)
    assert field.input_value() != "half a ke", "nobody has saved it"


@both
def test_a_wrong_key_is_said_and_changes_nothing(name, api, visit):
    page = visit(name)
    said(page, "first")
    part(page, "Settings")
    typed(page, "Key", "wrong")
    press(page, "Save")
    said(page, "Saved")
    if name == "streamlit":
        part(page, "Service")
        press(page, "Promote")
    else:
        part(page, "Classify")
        give(page, name, files(81))
        said(page, "1 image classified")
        press(page, "Fix label")
        press(page, "sheen", "menuitem")
    said(page, "does not accept the key")
    assert api.server.get("/models").json()["served"] == "first"


@both
def test_a_russian_phone_in_the_dark(name, visit):
    page = visit(name, locale="ru-RU", color_scheme="dark", **PHONE)
    said(page, "Что на воде?")
    give(page, name, files(41, 42), button="Выбрать снимки")
    said(page, "Классифицировано 2 снимка")
    shot(page, f"{name}-phone")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth + 1"), "nothing runs out of the screen"
