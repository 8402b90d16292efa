"""What the pages share: the visitor, the header, the calm line, cards, and one image in large."""

import base64
import html
from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError as Late
from dataclasses import dataclass
from typing import Any

import streamlit as st
from lados_fronts import images
from lados_fronts.keep import Item, Keep, forget_old, new_visitor
from lados_fronts.service import Served
from lados_fronts.session import Session, session_of
from lados_fronts.texts import Texts, reader_language, texts
from lados_fronts.wording import Wording

FIRST_LOOK_S = 2.0
ASK_S = 120.0 # for one answer of the service
FONT = '"Source Sans", sans-serif' # of Streamlit
REMEMBER = """
export default function ({ data, setStateValue }) {
  let visitor = data.suggested
  try {
    const known = localStorage.getItem("lados-visitor")
    if (/^[0-9a-f]{32}$/.test(known)) visitor = known
    else localStorage.setItem("lados-visitor", visitor)
  } catch { /* a browser that keeps nothing */ }
  setStateValue("visitor", visitor)
  document.documentElement.lang = data.language
}
"""


@dataclass(frozen=True)
class Visit:
    "What a page needs."

    keep: Keep
    t: Texts
    dark: bool

    @property
    def session(self) -> Session:
        "The outbox: asked for anew each time, as another address or a long absence makes another one."
        return session_of(self.keep)

    @property
    def served(self) -> Served:
        "What the service serves, as far as is known."
        return self.session.served

    @property
    def words(self) -> Wording:
        "How answers read."
        return Wording(self.t, self.served)

    def title(self, name: str | None) -> str:
        "Return a class's name in the reader's language."
        return self.words.title(name)


@st.cache_resource
def _once() -> Callable[..., Any]:
    forget_old()
    return st.components.v2.component("lados_visitor", js=REMEMBER)


@st.cache_resource(max_entries=200)
def _keep(visitor: str) -> Keep:
    return Keep(visitor)


def _language(keep: Keep | None) -> str:
    return reader_language(keep and keep.setting("language"), st.context.locale)


def language_now() -> Texts:
    "Return the texts of the visitor's language, or of the browser's while nobody knows who it is."
    known = st.session_state.get("visitor")
    return texts(_language(_keep(known) if known else None))


def visit() -> Visit:
    "Return the visitor, who is known by a name that the browser keeps."
    state = st.session_state
    state.setdefault("suggested", new_visitor())
    known = state.get("visitor")
    language = _language(_keep(known) if known else None)
    told = _once()(key="remembered", data={"suggested": state.suggested, "language": language}, default={"visitor": None},
                   on_visitor_change=lambda: None)
    if not known and not told.visitor:
        st.stop() # the browser answers in a moment
    if not known:
        state.visitor = told.visitor
        st.rerun() # with the language that this visitor has chosen, from the menu on
    keep = _keep(known)
    if keep.setting("language", "") == "" :
        keep.set(language=language)
    session_of(keep).looked.wait(FIRST_LOOK_S) # so that the first page has what the service says, and is not drawn again a moment later
    return Visit(keep, texts(language), st.context.theme.type == "dark")


def visit_again() -> Visit:
    "Return the visitor of a page that is running."
    keep = _keep(st.session_state.visitor)
    return Visit(keep, texts(_language(keep)), st.context.theme.type == "dark")


COLOURS = {
    False: {"ink": "#16212e", "soft": "#4f5f72", "line": "#dce2e9", "paper": "#fff", "track": "#e3e9ef", "amber": "#fff3d1", "amber-line": "#e0a100",
            "amber-ink": "#694700", "red": "#fdecea", "red-ink": "#a3190f", "green-ink": "#17663a", "pill": "#e7eef5", "pill-ink": "#123a5b",
            "deep": "#0b3d5c", "on-deep": "#fff", "ring": "rgb(16 33 50 / 18%)"},
    True: {"ink": "#e6edf3", "soft": "#a9b8c6", "line": "#2a3a4a", "paper": "#16232f", "track": "#2b3b4a", "amber": "#3d2f06", "amber-line": "#b98500",
           "amber-ink": "#ffdf8a", "red": "#3b1614", "red-ink": "#ffb4ab", "green-ink": "#7fd6a3", "pill": "#20354a", "pill-ink": "#cfe3f3",
           "deep": "#7cc0f0", "on-deep": "#0e1822", "ring": "rgb(255 255 255 / 45%)"},
}
CSS = """
.block-container h2, .block-container h3 { font-size: 17px !important; padding: 6px 0 2px; }
.block-container { padding-top: 4.2rem; max-width: 1560px; }
[data-testid="stCaptionContainer"] { opacity: 1 !important; }
[data-stale="true"] { opacity: 1 !important; transition: none !important; }
[data-testid="stProgress"] [role="progressbar"] > div > div { background-color: var(--l-track); }
[data-testid="stCaptionContainer"] p { color: var(--l-soft); }
[data-testid^="stBaseButton-primary"] p { color: var(--l-on-deep); }
.l-top { display: flex; flex-wrap: wrap; gap: 10px 28px; align-items: center; justify-content: space-between; }
.l-brand { display: flex; gap: 14px; align-items: center; }
.l-brand h1 { font-size: 21px; line-height: 1.2; font-weight: 650; margin: 0; padding: 0; letter-spacing: -0.01em; color: var(--l-ink); }
.l-brand p, .l-soft { color: var(--l-soft); font-size: 14px; margin: 0; }
.l-status { display: flex; gap: 6px 10px; align-items: center; flex-wrap: wrap; font-size: 14px; color: var(--l-soft); }
.l-status b { color: var(--l-ink); font-weight: 600; overflow-wrap: anywhere; }
.l-lamp { width: 9px; height: 9px; border-radius: 50%; background: #2a9d5c; box-shadow: 0 0 0 3px rgb(42 157 92 / 25%); flex: none; }
.l-lamp.away { background: #e0a100; box-shadow: 0 0 0 3px rgb(224 161 0 / 25%); }
.l-pill { padding: 1px 10px; border-radius: 99px; background: var(--l-pill); color: var(--l-pill-ink); font-size: 13px; white-space: nowrap; }
.l-pill.running, .l-pill.queued { background: var(--l-amber); color: var(--l-amber-ink); }
.l-pill.failed { background: var(--l-red); color: var(--l-red-ink); }
.l-calm { background: var(--l-amber); color: var(--l-amber-ink); border: 1px solid var(--l-amber-line); border-radius: 10px; padding: 8px 14px; margin: 0; }
.l-calm.bad { background: var(--l-red); color: var(--l-red-ink); border-color: currentColor; }
.l-dot { width: 14px; height: 14px; border-radius: 50%; background: var(--c); box-shadow: 0 0 0 1px var(--l-ring); flex: none; display: inline-block; }
.l-verdict { display: flex; gap: 9px; align-items: center; font-size: 17px; line-height: 1.3; margin: 0; color: var(--l-ink); }
.l-verdict b { font-weight: 650; }
.l-sure { margin-left: auto; font-weight: 600; font-variant-numeric: tabular-nums; white-space: nowrap; }
.l-mark { margin-left: auto; color: var(--l-green-ink); font-size: 13px; font-weight: 600; }
.l-stack { display: flex; height: 8px; border-radius: 99px; overflow: hidden; background: var(--l-track); gap: 1px; margin: 6px 0; }
.l-stack i { background: var(--c); width: calc(100% * var(--w)); }
.l-reason { color: var(--l-amber-ink); font-weight: 600; font-size: 13.5px; margin: 0; }
.l-doubt { display: inline-block; padding: 1px 10px; border-radius: 99px; background: var(--l-amber); border: 1px solid var(--l-amber-line);
  color: var(--l-amber-ink); font-size: 13px; font-weight: 650; margin-bottom: 4px; }
.l-set, .l-name { font-size: 13.5px; color: var(--l-soft); margin: 0; overflow-wrap: anywhere; }
.l-name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.l-error { color: var(--l-red-ink); font-weight: 600; margin: 0; overflow-wrap: anywhere; }
.l-bars { display: grid; grid-template-columns: minmax(110px, auto) 1fr 58px; gap: 9px 10px; align-items: center; color: var(--l-ink); margin: 0; padding: 0; }
.l-bars .what { display: flex; gap: 9px; align-items: center; }
.l-bars .in { background: var(--l-deep); color: var(--l-on-deep); font-weight: 600; padding: 0 8px; border-radius: 99px; }
.l-track { height: 10px; border-radius: 99px; background: var(--l-track); overflow: hidden; }
.l-track i { display: block; height: 100%; width: calc(100% * var(--w)); background: var(--c); border-radius: 99px; box-shadow: inset 0 0 0 1px var(--l-ring); }
.l-value { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.l-steps { display: grid; grid-template-columns: repeat(auto-fit, minmax(250px, 1fr)); gap: 18px; counter-reset: step; list-style: none; margin: 0 !important; padding: 0 !important; }
.l-steps li { counter-increment: step; padding: 2px 0 2px 52px; position: relative; margin: 0; color: var(--l-soft); }
.l-steps li b { display: block; color: var(--l-ink); }
.l-steps li::before { content: counter(step); position: absolute; left: 0; top: 2px; width: 36px; height: 36px; border-radius: 50%; display: grid;
  place-items: center; background: var(--l-pill); color: var(--l-pill-ink); font-weight: 650; }
.l-legend { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 12px; list-style: none; padding: 0 !important; margin: 0 !important; }
.l-legend li { display: flex; gap: 12px; background: var(--l-paper); border: 1px solid var(--l-line); border-radius: 14px; padding: 12px 16px; margin: 0; }
.l-legend .l-dot { margin-top: 4px; }
.l-legend span span { display: block; color: var(--l-soft); font-size: 13px; }
.l-tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 14px; margin: 0 !important; padding: 0 !important; }
.l-tiles div { background: var(--l-paper); border: 1px solid var(--l-line); border-radius: 14px; padding: 12px 16px; }
.l-tiles dd { margin: 0; font-size: 24px; font-weight: 620; font-variant-numeric: tabular-nums; color: var(--l-ink); overflow-wrap: anywhere; }
.l-tiles dt { font-size: 13px; color: var(--l-soft); font-weight: 400; }
[class*="st-key-card-"] { background: var(--l-paper); }
[class*="st-key-card-"] img { aspect-ratio: 4 / 3; object-fit: cover; border-radius: 8px; }
[data-testid="stFileUploaderDropzone"] { border: 2px dashed #7f96ab; align-items: center; min-height: 92px; background: var(--l-paper); }
@media (min-width: 641px) { .l-status { justify-content: flex-end; } }
@media (max-width: 640px) {
  [class*="st-key-card-"], div:has(> [class*="st-key-card-"]) { width: 100% !important; max-width: 100% !important; flex: 1 1 100% !important; }
}
"""
RUSSIAN_UPLOADER = """
[data-testid="stFileUploaderDropzone"] button p { font-size: 0; }
[data-testid="stFileUploaderDropzone"] button p::after { content: "%(button)s"; font-size: 1rem; }
[data-testid="stFileUploaderDropzoneInstructions"] > * { display: none; }
[data-testid="stFileUploaderDropzoneInstructions"]::after { content: "%(limit)s"; font-size: 0.875rem; }
"""


def style(here: Visit) -> None:
    "Put the palette of the other pages on this one."
    colours = "".join(f"--l-{n}: {v};" for n, v in COLOURS[here.dark].items())
    words = {"button": here.t("Choose files"), "limit": here.t("or drop them here")}
    st.html(f"<style>:root {{ {colours} }} {CSS} {RUSSIAN_UPLOADER % words}</style>")


def say(text: str) -> str:
    "Return text from outside for HTML."
    return html.escape(str(text))


def dot(colour: str) -> str:
    "Return a class's mark."
    return f'<span class="l-dot" style="--c: {colour}" aria-hidden="true"></span>'


LOGO = ('<svg xmlns="http://www.w3.org/2000/svg" width="40" height="40" viewBox="0 0 32 32"><path fill="#0b3d5c" d="M8 0h16a8 8 0 0 1 8 8v16a8 8 0 0 1-8 8H8a8 8 0 0 1-8-8V8a8'
        ' 8 0 0 1 8-8z"/><path fill="#fff" d="M16 5c4.6 5.7 7.4 9 7.4 12.8a7.4 7.4 0 0 1-14.8 0C8.6 14 11.4 10.7 16 5z"/><path fill="none" stroke="#56b4e9"'
        ' stroke-width="1.8" stroke-linecap="round" d="M4 27c2-1.8 4-1.8 6 0s4 1.8 6 0 4-1.8 6 0 4 1.8 6 0"/></svg>')


def header(here: Visit) -> None:
    "Show what this is; which model answers stands beside it, and moves by itself."
    t = here.t
    brand = f'<div class="l-brand"><img src="data:image/svg+xml;base64,{base64.b64encode(LOGO.encode()).decode()}" width="40" height="40" alt=""><div><h1>{say(t("What is on the water?"))}</h1><p>{say(t("Aerial images of the sea, classified by lados"))}</p></div></div>'
    left, right = st.columns([3, 2], vertical_alignment="center")
    left.html(brand)
    with right:
        _status()


@st.fragment(run_every=2.0)
def _status() -> None:
    here = visit_again()
    t, served, problem = here.t, here.served, here.session.problem()
    if problem:
        st.html(f'<p class="l-calm{"" if problem.away else " bad"}" role="status">{say(problem)}</p>')
    elif not served.model:
        line = t("The service is up, but serves no model.") if served.limits else t("Looking for the service …")
        st.html(f'<div class="l-status" role="status"><span class="l-lamp away"></span>{say(line)}</div>')
    else:
        st.html(f'<div class="l-status" role="status"><span class="l-lamp"></span><b>{say(served.model)}</b><span class="l-pill">{say(served.engine)}</span>'
                f'{say(t("asked at {place}", place=here.session.place.shown))}</div>')
        if caution := here.words.caution():
            st.html(f'<p class="l-calm" role="status">{say(caution)}</p>')
    if (bool(served.model), here.session.away is None) != st.session_state.setdefault("shown_state", (bool(served.model), here.session.away is None)):
        st.session_state.shown_state = (bool(served.model), here.session.away is None)
        st.rerun()


def ask(here: Visit, coroutine: Any) -> Any: # what it gives; none: it failed, and the visitor was told
    "Ask the service for something now."
    try:
        return here.session.ask(coroutine).result(ASK_S)
    except Late:
        st.error(here.t("The service at {place} does not answer.", place=here.session.place.shown))
    except Exception as error:
        st.error(str(here.session.problem(error)))
    return None


# --- an image


def card_html(here: Visit, item: Item) -> str:
    "Return the words of a card."
    t = here.t
    name = f'<p class="l-name" title="{say(item.name)}">{say(item.name)}</p>'
    if item.state == "failed":
        return f'<p class="l-error">{say(here.words.failure(item))}</p><p class="l-set">{say(t.sentence(item.remedy))}</p>{name}'
    if item.state != "done":
        return f'<p class="l-set">{say(t("In a job") if item.state == "job" else t("Waiting"))}</p>{name}'
    answer, shown = item.answer, here.served[item.says or ""]
    mark = (f'<span class="l-mark">✓ {say(t("confirmed") if item.label == answer.get("label") else t("corrected"))}</span>' if item.label
            else f'<span class="l-sure">{t.percent(item.confidence)}</span>')
    doubt = f'<span class="l-doubt">⚑ {say(t("Ask a human"))}</span>' if item.doubtful else ""
    below = f'<p class="l-reason">{say(here.words.reason(answer))}</p>' if item.doubtful else f'<p class="l-set">{say(here.words.set_line(answer))}</p>'
    less = f'<p class="l-set">{say(here.words.sent(item, now))}</p>' if (now := here.keep.sent(item)) else ""
    return (f'{doubt}<p class="l-verdict">{dot(shown.colour)}<b>{say(here.title(item.says))}</b>{mark}</p>{stack(here, answer)}{below}{less}{name}')


def stack(here: Visit, answer: dict[str, Any]) -> str:
    "Return the probabilities as one bar."
    shares = answer.get("probabilities") or {}
    told = ", ".join(f"{here.title(n)} {here.t.percent(p)}" for n, p in shares.items())
    parts = "".join(f'<i style="--c: {here.served[n].colour}; --w: {p:.4f}"></i>' for n, p in shares.items())
    return f'<div class="l-stack" role="img" aria-label="{say(told)}" title="{say(told)}">{parts}</div>'


def bars(here: Visit, answer: dict[str, Any]) -> str:
    "Return the probabilities as a bar each; names in the set are filled."
    rows, within = [], answer.get("prediction_set") or []
    for name, p in (answer.get("probabilities") or {}).items():
        inside = ' class="in"' if name in within else ""
        rows.append(f'<span class="what">{dot(here.served[name].colour)}<span{inside}>{say(here.title(name))}</span></span>'
                    f'<span class="l-track"><i style="--c: {here.served[name].colour}; --w: {p:.4f}"></i></span><span class="l-value">{here.t.percent(p)}</span>')
    return f'<div class="l-bars">{"".join(rows)}</div>'


def thumbnail(here: Visit, item: Item) -> None:
    "Show an image in small, or a line where it cannot be shown here."
    path = here.keep.thumb(item.key)
    if path.exists():
        st.image(str(path), alt=item.name, width="stretch")


def corrector(here: Visit, item: Item, where: str) -> None:
    "Offer the classes; a click keeps the image with its right label."
    names = [c.name for c in here.served.classes]

    def put() -> None:
        chosen = st.session_state.get(f"fix-{where}-{item.key}")
        if chosen != item.label:
            st.session_state.fixing = (item.key, chosen)

    st.pills(here.t("What is it really?"), names, default=item.label if item.label in names else None, format_func=here.title,
             key=f"fix-{where}-{item.key}", on_change=put)
    if (fixing := st.session_state.get("fixing")) and fixing[0] == item.key:
        st.session_state.pop("fixing")
        if ask(here, _done(here.session.correct(*fixing))):
            st.toast(here.t("Kept for the next training.") if fixing[1] else here.t("Taken back."))
            st.rerun(scope="fragment")


async def _done(coroutine: Any) -> bool:
    await coroutine
    return True


def viewer(here: Visit, key: str, items: Sequence[Item] = ()) -> None:
    "Open an image in large, over the page."
    item = here.keep.get(key)
    if not item:
        st.session_state.pop("open", None)
        return

    @st.dialog(item.name, width="large", on_dismiss=lambda: st.session_state.pop("open", None))
    def shown() -> None:
        _large(visit_again(), key)

    shown()


def _large(here: Visit, key: str) -> None:
    t, item = here.t, here.keep.get(key)
    left, right = st.columns([3, 2])
    with right:
        if item.state == "done":
            st.html(card_html(here, item))
            st.html(f'<h3 class="l-soft">{say(t("How likely each class is"))}</h3>{bars(here, item.answer)}')
            corrector(here, item, "large")
            _facts(here, item)
        else:
            st.html(card_html(here, item))
    with left:
        _picture(here, item)


def _picture(here: Visit, item: Item) -> None:
    t = here.t
    try:
        data = here.keep.path(item.key).read_bytes()
    except OSError:
        return
    choices = ["", *(item.answer.get("probabilities") or {})]
    label = st.selectbox(t("What speaks for"), choices, format_func=lambda n: here.title(n) if n else t("no heat map"),
                         index=choices.index(item.answer["label"]) if item.answer.get("label") in choices else 0, key=f"heat-{item.key}")
    found = None
    if label:
        with st.spinner(t("Looking at what speaks for {name} …", name=here.title(label))):
            found = ask(here, here.session.explain(item.key, label))
    share = images.spread(found[0]) if found else 0.0
    diffuse = share > images.DIFFUSE
    strength = st.slider(t("Heat map"), 0, 100, 0 if diffuse else 60, format="%d %%", key=f"opacity-{diffuse}", disabled=not found)
    large = images.shown(data)
    if large and found:
        large = images.with_heat(large, found[0], strength / 100)
    if large:
        st.image(large, alt=item.name, width="stretch")
    if found:
        st.caption(here.words.where(label, found[1], share))


def _facts(here: Visit, item: Item) -> None:
    t, a = here.t, item.answer
    total = (a.get("timing_ms") or {}).get("total")
    facts = {t("Model"): a.get("model"), t("Engine"): a.get("engine"), t("Latency"): t.seconds(total / 1e3) if total else None,
             t("Image"): t("{w} × {h} pixels, {size}", w=item.width, h=item.height, size=t.size(item.bytes)) if item.width else t.size(item.bytes),
             t("Taken"): item.taken and item.taken.replace("T", " "), t("Place"): item.lat is not None and f"{item.lat:.5f}, {item.lon:.5f}",
             t("Unlike training"): a.get("distance") is not None and t.number(a["distance"], 2)}
    st.caption("  \n".join(f"{n}: {v}".replace("_", r"\_").replace("*", r"\*") for n, v in facts.items() if v))
