"""Flight: what a batch says as a whole, as charts; a click in a chart opens the image."""

import base64
from collections import Counter

import parts
import plotly.graph_objects as go
import streamlit as st
from lados_fronts.keep import Item

here = parts.visit_again()
t, keep, served = here.t, here.keep, here.served
done = sorted((i for i in keep.items() if i.state == "done"), key=lambda i: (i.taken or "", i.place))
INK = {"font": {"color": parts.COLOURS[here.dark]["ink"], "size": 13, "family": parts.FONT}, "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)",
       "margin": {"l": 50, "r": 12, "t": 40, "b": 44}, "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "traceorder": "normal"}}
GRID = {"gridcolor": parts.COLOURS[here.dark]["line"], "zerolinecolor": parts.COLOURS[here.dark]["line"]}
CONFIG = {"displaylogo": False, "displayModeBar": False}


def axis(text: str) -> dict:
    "Return an axis' title, as large as the other words of a chart."
    return {"text": text, "font": {"size": 13}}


def edge(colour: str) -> str:
    "Return a colour that black and white marks stand out with, in light and in dark."
    return "#ffffff" if here.dark else "#16212e"


def share_chart(items: list[Item]) -> go.Figure:
    "Return the classes over the flight: a bar an image, stacked probabilities."
    figure = go.Figure(layout={**INK, "barmode": "stack", "bargap": 0, "height": 300})
    for c in served.classes:
        figure.add_bar(name=here.title(c.name), x=list(range(1, len(items) + 1)), y=[(i.answer.get("probabilities") or {}).get(c.name, 0) for i in items],
                       marker={"color": c.colour, "line": {"width": 0.5, "color": edge(c.colour)} if c.colour == "#000000" and here.dark else {"width": 0}},
                       customdata=[i.key for i in items], hovertext=[i.name for i in items], hovertemplate="%{hovertext}<br>%{y:.0%}<extra>%{fullData.name}</extra>")
    figure.update_xaxes(title=axis(t("Image, in the order of the flight")), **GRID)
    figure.update_yaxes(title=axis(t("Share")), tickformat=".0%", range=[0, 1], **GRID)
    return figure


def confidence_chart(items: list[Item]) -> go.Figure:
    "Return how many images are how sure, by class: bars of five per cent."
    figure = go.Figure(layout={**INK, "barmode": "stack", "bargap": 0.06, "height": 300})
    for c in served.classes:
        its = [i.confidence for i in items if i.says == c.name]
        if its:
            figure.add_histogram(name=here.title(c.name), x=its, xbins={"start": 0, "end": 1.0001, "size": 0.05},
                                 marker={"color": c.colour, "line": {"width": 0.5, "color": edge(c.colour)}})
    figure.update_xaxes(title=axis(t("Confidence")), tickformat=".0%", range=[0, 1], **GRID)
    most = max(Counter(int(i.confidence * 20) for i in items).values())
    figure.update_yaxes(title=axis(t("Images")), tickformat=",d", dtick=1 if most < 8 else None, **GRID) # there are no halves of images
    return figure


def clicked(state: dict) -> str | None: # an image's key
    "Return the image that was clicked in the chart."
    points = ((state or {}).get("selection") or {}).get("points") or []
    key = next((p.get("customdata") for p in points), None)
    return key[0] if isinstance(key, list) else key


def table(items: list[Item]) -> None:
    "Show all images as a table; a chosen row opens its image."
    rows = [{t("Image"): f"data:image/jpeg;base64,{base64.b64encode(d).decode()}" if (d := keep.tiny(i.key)) else None, t("File"): i.name,
             t("Class"): here.title(i.says), t("Confidence"): i.confidence, t("Ask a human"): i.doubtful, t("Taken"): (i.taken or "").replace("T", " "),
             t("Place"): f"{i.lat:.5f}, {i.lon:.5f}" if i.lat is not None else ""} for i in items]
    chosen = st.dataframe(rows, hide_index=True, row_height=56, height=min(640, 60 + 56 * len(rows)), on_select="rerun", selection_mode="single-row", key="flight_table",
                          column_config={t("Image"): st.column_config.ImageColumn(width="small"),
                                         t("Confidence"): st.column_config.ProgressColumn(format="percent", min_value=0, max_value=1)},
                          alt=t("All images of the flight with class and confidence"))
    for number in chosen.selection.rows:
        open_once("table", items[number].key)


def open_once(where: str, key: str | None) -> None:
    "Open an image that was clicked, once a click."
    if key and st.session_state.get(f"clicked_{where}") != key:
        st.session_state.open = key
    st.session_state[f"clicked_{where}"] = key


if not done:
    st.info(t("No answers yet: drop a flight's images on the page Classify."))
else:
    doubtful = sum(i.doubtful for i in done)
    tiles = [(t("Images"), t.number(len(done))), (t("Ask a human"), t.number(doubtful)), (t("Confidence, mean"), t.percent(sum(i.confidence for i in done) / len(done))),
             (t("With a place"), t.number(sum(i.lat is not None for i in done)))]
    st.html('<dl class="l-tiles">' + "".join(f"<div><dt>{parts.say(a)}</dt><dd>{parts.say(b)}</dd></div>" for a, b in tiles) + "</dl>")
    st.subheader(t("Classes over the flight"))
    st.caption(t("A click on a bar opens its image."))
    state = st.plotly_chart(share_chart(done), key="share", on_select="rerun", selection_mode="points", config=CONFIG, theme=None,
                            alt=t("Probabilities of the classes, image by image"))
    open_once("share", clicked(state))
    st.subheader(t("How sure the answers are"))
    st.plotly_chart(confidence_chart(done), key="sure", config=CONFIG, theme=None, alt=t("Histogram of confidence by class"))
    st.subheader(t("All images"))
    table(done)
    if st.session_state.get("open"):
        parts.viewer(here, st.session_state.open)
