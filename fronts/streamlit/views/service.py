"""Service: how it is, how it has been, and which model answers."""

import time
from collections import deque

import parts
import plotly.graph_objects as go
import streamlit as st

here = parts.visit_again()
t = here.t
COLOURS = parts.COLOURS[here.dark]


@st.cache_resource(max_entries=20)
def samples(place: str) -> deque: # of (time, answers so far, seconds of half the answers, drift)
    "Return what was seen of a service while this page was open."
    return deque(maxlen=600)


def line(points: list[tuple[float, float | None]], title: str, fmt: str = "") -> go.Figure:
    "Return a chart over time."
    from datetime import datetime

    figure = go.Figure(layout={"height": 210, "margin": {"l": 50, "r": 10, "t": 30, "b": 30}, "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)",
                               "font": {"color": COLOURS["ink"], "family": parts.FONT}, "title": {"text": title, "font": {"size": 14}}, "showlegend": False})
    figure.add_scatter(x=[datetime.fromtimestamp(a) for a, _ in points], y=[b for _, b in points], mode="lines+markers", marker={"size": 4},
                       line={"color": "#7cc0f0" if here.dark else "#0b5fa5"})
    figure.update_xaxes(gridcolor=COLOURS["line"], tickformat="%H:%M:%S", nticks=4)
    figure.update_yaxes(gridcolor=COLOURS["line"], rangemode="tozero", tickformat=fmt)
    return figure


@st.fragment(run_every=3.0)
def numbers() -> None:
    "Show health and the metrics, live."
    metrics = parts.ask(here, here.session.client.metrics()) if not here.session.away else None
    seen = samples(here.session.place.url)
    if metrics:
        found = metrics["inference"]
        latency, recent = (found.get("latency") or {}).get("total") or {}, found.get("recent") or {}
        if not seen or time.time() - seen[-1][0] > 2:
            seen.append((time.time(), sum(found["outcomes"].values()), latency.get("p50"), recent.get("drift_score")))
        share = found["outcomes"].get("abstained", 0) / max(1, sum(found["outcomes"].values()))
        tiles = [(t("Answers"), t.number(sum(found["outcomes"].values()))), (t("Latency, half of them"), t.seconds(latency["p50"]) if latency.get("p50") else "–"),
                 (t("Latency, 99 in 100"), t.seconds(latency["p99"]) if latency.get("p99") else "–"), (t("Left to a human"), t.percent(share)),
                 (t("Drift"), t.number(recent["drift_score"], 2) if recent.get("drift_score") is not None else "–")]
        st.html('<dl class="l-tiles">' + "".join(f"<div><dt>{parts.say(a)}</dt><dd>{parts.say(b)}</dd></div>" for a, b in tiles) + "</dl>")
        st.caption(t("Drift compares the latest answers' distances to the training images with those of new images in training: near 0 is as usual."))
    rates = [(b[0], max(0.0, (b[1] - a[1]) / (b[0] - a[0]))) for a, b in zip(seen, list(seen)[1:], strict=False)]
    if len(rates) > 1:
        columns = st.columns(3)
        for column, points, title in zip(columns, (rates, [(s[0], s[2]) for s in seen], [(s[0], s[3]) for s in seen]),
                                         (t("Answers a second"), t("Latency, seconds"), t("Drift")), strict=True):
            column.plotly_chart(line(points, title), config={"displayModeBar": False}, theme=None, key=f"over-time-{title}", alt=title)
    else:
        st.caption(t("Curves begin in a few seconds, and go on while this page is open."))


async def promoted(model: str) -> dict:
    "Serve another model from now on."
    answer = await here.session.client.promote(model)
    await here.session.look()
    return answer


def models() -> None:
    "List the models; with the key, another one can be served."
    st.subheader(t("Models"))
    found = parts.ask(here, here.session.client.models()) if not here.session.away else None
    for model in (found or {}).get("models", []):
        card = model.get("card") or {}
        test = (card.get("metrics") or {}).get("test") or {}
        with st.container(border=True):
            left, right = st.columns([4, 1], vertical_alignment="center")
            scores = [card.get("backbone") or "", f"macro-F1 {t.number(test['macro_f1'], 3)}" if test.get("macro_f1") is not None else "",
                      (t("has learned only drawn images") if card["synthetic"] == 1 else t("has learned drawn images, too")) if card.get("synthetic") else "",
                      ", ".join(f"{e} {t(state)}" for e, state in (model.get("engines") or {}).items())]
            served = f' <span class="l-pill">{parts.say(t("served"))}</span>' if model["served"] else ""
            left.html(f'<p class="l-verdict"><b>{parts.say(model["name"])}</b>{served}</p><p class="l-set">{parts.say(" · ".join(filter(None, scores)))}</p>'
                      + (f'<p class="l-error">{parts.say(model["error"])}</p>' if model.get("error") else ""))
            if not model["served"] and not model.get("error") and right.button(
                    t("Promote"), key=f"promote-{model['name']}", disabled=not here.session.place.key, help=None if here.session.place.key else t("needs the key, in Settings")):
                with st.spinner(t("Loading and measuring {name} …", name=model["name"])):
                    if parts.ask(here, promoted(model["name"])):
                        st.toast(t("Served from now on: {name}", name=model["name"]))
                        st.rerun()
    if not here.session.place.key:
        st.caption(t("To promote a model, enter the key in Settings."))


st.subheader(t("How it is"))
numbers()
models()
