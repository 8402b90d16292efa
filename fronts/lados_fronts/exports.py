"""Results to take home: CSV for spreadsheets, JSON for programs, GeoJSON for maps where images carry GPS."""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from .keep import Item, doubtful_first

PLAIN = ("prediction_set", "not_covered", "no_set", "abstain", "reason", "distance", "rendering", "model", "engine", "synthetic") # of the answer, as they are
OTHERWISE = {"label", "confidence", "probabilities", "unlike_training", "filename", "timing_ms", "request_id"} # of the answer, told otherwise or not at all


def _cell(value: Any) -> Any:
    "A table's cell that no spreadsheet takes for a formula."
    text = "|".join(map(str, value)) if isinstance(value, list) else value
    return f"'{text}" if isinstance(text, str) and text[:1] in tuple("=+-@\t\r") else "" if text is None else text


def row(
    item: Item,
    classes: Sequence[str], # of the label set, in its order
) -> dict[str, Any]: # column -> value
    "Return an image's row: the columns of `lados predict`, those that a package has added, and what only a front end knows."
    a = item.answer
    shares, confirmed = a.get("probabilities") or {}, bool(item.label) and item.label == a.get("label")
    plain = {n: a.get(n) for n in (*PLAIN, *(n for n, v in a.items() if n not in {*PLAIN, *OTHERWISE} and not isinstance(v, dict)))}
    return {"image": item.name, "predicted": a.get("label"), "confidence": a.get("confidence"), **{f"p_{c}": shares.get(c) for c in classes}, **plain,
            "error": item.error, "corrected_to": None if confirmed else item.label, "confirmed": "True" if confirmed else None,
            "sha256": item.key if item.bytes else "", "taken": item.taken, "latitude": item.lat, "longitude": item.lon}


def as_csv(items: Sequence[Item], classes: Sequence[str]) -> bytes: # UTF-8, marked as such for spreadsheets
    "Return all answers as a table, doubtful ones first."
    out = io.StringIO(newline="")
    rows = [row(i, classes) for i in doubtful_first(items)]
    columns = dict.fromkeys(n for r in (row(Item("", "", 0, ""), classes), *rows) for n in r)
    writer = csv.DictWriter(out, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows({n: _cell(v) for n, v in r.items()} for r in rows)
    return out.getvalue().encode("utf-8-sig")


def as_json(items: Sequence[Item], classes: Sequence[str]) -> bytes:
    "Return all answers as a list of objects."
    return json.dumps([row(i, classes) for i in doubtful_first(items)], ensure_ascii=False, indent=1).encode()


def as_geojson(items: Sequence[Item], classes: Sequence[str]) -> bytes: # empty: no image carries a place
    "Return the images with a place as points (RFC 7946: longitude first)."
    placed = [i for i in doubtful_first(items) if i.lat is not None and i.lon is not None]
    points = [{"type": "Feature", "geometry": {"type": "Point", "coordinates": [i.lon, i.lat]},
               "properties": {k: v for k, v in row(i, classes).items() if v is not None}} for i in placed]
    return json.dumps({"type": "FeatureCollection", "features": points}, ensure_ascii=False, indent=1).encode() if points else b""
