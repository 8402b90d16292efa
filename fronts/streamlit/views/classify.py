"""Classify: images in, cards out, doubtful ones first."""

from collections.abc import Sequence
from pathlib import PurePosixPath

import parts
import streamlit as st
from lados_fronts import exports, images
from lados_fronts.keep import PENDING, Item, doubtful_first

PAGE = 24 # cards at once
here = parts.visit_again()
t, keep = here.t, here.keep


def guide() -> None:
    "Say how it works, where there is nothing yet."
    steps = [(t("Drop a flight's images"), t("One or many, a folder or a zip. They stay on the machine that serves this page, and go to the service.")),
             (t("Doubtful ones come first"), t("Probabilities are calibrated, and beside the class stands the set of classes that hold the truth "
                                               "9 times in 10. More than one in it: ask a human.")),
             (t("Put wrong labels right"), t("One click keeps the image and its right label for the next training."))]
    listed = "".join(f"<li><b>{parts.say(a)}</b>{parts.say(b)}</li>" for a, b in steps)
    legend = "".join(f'<li>{parts.dot(c.colour)}<span><b>{parts.say(t(c.title))}</b><span>{parts.say(t(c.hint))}</span></span></li>' for c in here.served.classes)
    head = f'<h2 style="font-size: 16px">{parts.say(t("The classes"))}</h2>' if legend else ""
    st.html(f'<ol class="l-steps">{listed}</ol>{head}<ul class="l-legend">{legend}</ul>' if legend else f'<ol class="l-steps">{listed}</ol>')


def take(files: Sequence) -> None:
    "Keep what was dropped, and let it be sent."
    known, bar = 0, st.progress(0.0)
    for number, file in enumerate(files):
        bar.progress(number / len(files), text=t("Taking in image {n} of {all}", n=t.number(number + 1), all=t.number(len(files))))
        name, data = file.name, file.getvalue()
        if not folder or images.is_zip(name, data) or PurePosixPath(name).suffix.lower() in images.SUFFIXES:
            known += keep.take(name, data, t)
    keep.release()
    if known:
        st.toast(t.many("{n} image is here already", "{n} images are here already", known))


def uploader() -> None:
    "Offer to drop files; what came is taken in once."
    global folder
    number = st.session_state.setdefault("upload", 0)
    most = here.served.limits.get("image_bytes")
    limit = t("up to {size} an image, larger JPEGs are sent smaller; more than {n} at once become a job", size=t.size(most), n=here.served.threshold) if most else ""
    folder = st.session_state.get("whole_folder", False)
    found = st.file_uploader(f"{t('Drop images here')}  \n:gray[:small[{limit}]]", accept_multiple_files="directory" if folder else True,
                             key=f"files-{number}-{folder}")
    st.toggle(t("Choose a whole folder"), key="whole_folder")
    if found:
        take(found)
        st.session_state.upload += 1
        st.rerun()


FILTERS = {"all": "", "human": "", "corrected": "", "failed": ""}


def matches(item: Item, name: str) -> bool:
    "Return True if a filter shows an image."
    special = {"all": True, "human": item.doubtful, "corrected": bool(item.label), "failed": item.state == "failed"}
    return special.get(name, item.state == "done" and item.says == name)


def chosen_filter(items: Sequence[Item]) -> str:
    "Offer the filters with their numbers; the one that is chosen."
    titles = {"all": t("All"), "human": t("Ask a human"), **{c.name: here.title(c.name) for c in here.served.classes},
              "corrected": t("Corrected"), "failed": t("Not read")}
    counted = {n: sum(matches(i, n) for i in items) for n in titles}
    shown = [n for n in titles if counted[n] or n == "all"]
    return st.pills(t("Show only"), shown, default="all", format_func=lambda n: f"{titles.get(n, n)} {counted.get(n, 0)}", key="filter",
                    label_visibility="collapsed", required=True) or "all"


def summary(items: Sequence[Item]) -> None:
    "Say in a line what came of it, or how far it is."
    settled = sum(i.state not in PENDING for i in items)
    if settled < len(items):
        queue = sum(i.state == "job" for i in items)
        text = t("Classified {done} of {all}", done=t.number(settled), all=t.number(len(items)))
        if here.session.handing:
            text = t.many("Handing in {n} image as a job", "Handing in {n} images as a job", here.session.handing)
        elif queue and (job := next((j for j in keep.jobs() if not j["collected"]), None)):
            text = t("Job {id}: {done} of {all}", id=job["id"][:8], done=t.number(job.get("done", 0)), all=t.number(job.get("total", queue)))
            settled += int(job.get("done") or 0)
        st.progress(min(1.0, settled / len(items)), text=text)
        return
    doubtful, failed = sum(i.doubtful for i in items), sum(i.state == "failed" for i in items)
    said = [t.many("{n} image classified", "{n} images classified", settled - failed)]
    said += [t.many("{n} needs a human", "{n} need a human", doubtful)] if doubtful else []
    said += [t.many("{n} could not be read", "{n} could not be read", failed)] if failed else []
    st.markdown(f"{', '.join(said)}. {t('Doubtful ones come first.')}")


def tools(items: Sequence[Item], busy: bool) -> None:
    "Offer results to take home, and to begin anew."
    classes = [c.name for c in here.served.classes]
    with st.container(horizontal=True):
        kinds = [("CSV", exports.as_csv, "text/csv"), ("JSON", exports.as_json, "application/json")]
        kinds += [("GeoJSON", exports.as_geojson, "application/geo+json")] if any(i.lat is not None for i in items) else []
        for kind, make, mime in kinds: # made when somebody clicks, as cards are drawn again and again
            st.download_button(t("Download {kind}", kind=kind), lambda make=make: make(keep.items(), classes), f"lados-results.{kind.lower()}", mime, on_click="ignore", icon=":material/download:")
        if any(i.state == "failed" and i.bytes for i in items):
            st.button(t("Send failed images again"), on_click=here.session.again, icon=":material/refresh:")
        if busy:
            st.button(t("Stop"), on_click=keep.stop, icon=":material/stop_circle:")
        st.button(t("Clear"), on_click=keep.clear, type="tertiary")


def open_image(key: str) -> None:
    "Open an image in large."
    st.session_state.open = key


def card(item: Item) -> None:
    "Show an image with its answer."
    with st.container(border=True, width=268, key=f"card-{item.key[:16]}"):
        parts.thumbnail(here, item)
        st.html(parts.card_html(here, item))
        if item.state == "done":
            with st.container(horizontal=True):
                if st.button(t("Open"), key=f"open-{item.key}", icon=":material/zoom_in:", help=item.name):
                    st.session_state.open = item.key
                    st.rerun()
                with st.popover(t("Change") if item.label else t("Fix label"), type="tertiary"):
                    parts.corrector(here, item, "card")


def busy_now() -> bool:
    "Return True while answers are to come."
    counts = keep.counts()
    return any(counts[s] for s in PENDING)


busy = busy_now()


@st.fragment(run_every=1.2 if busy and not st.session_state.get("open") else None)
def gallery() -> None:
    "Show all cards; while answers come, again and again."
    items = doubtful_first(keep.items())
    if busy and not busy_now():
        st.rerun()
    name = chosen_filter(items)
    summary(items)
    tools(items, busy)
    shown = [i for i in items if matches(i, name)]
    pages = -(-len(shown) // PAGE)
    at = min(st.session_state.get("gallery_page", 1), max(1, pages))
    with st.container(horizontal=True, key="grid"):
        for item in shown[(at - 1) * PAGE:at * PAGE]:
            card(item)
    if pages > 1:
        st.segmented_control(t("Page"), list(range(1, pages + 1)), default=at, key="gallery_page", required=True)


uploader()
if keep.items():
    gallery()
    if st.session_state.get("open"):
        parts.viewer(here, st.session_state.open)
else:
    guide()
