"""What a visitor keeps: images by content, their answers, jobs, settings. It outlives a reload, a closed browser and a killed process."""

import hashlib
import json
import os
import re
import secrets
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

from .images import TINY, About, is_zip, look, shown, smaller, unpacked
from .texts import Texts

TABLES = """
CREATE TABLE IF NOT EXISTS images (key TEXT PRIMARY KEY, name TEXT, added REAL, state TEXT, answer TEXT, error TEXT DEFAULT '', remedy TEXT
    DEFAULT '', label TEXT, width INT, height INT, lat REAL, lon REAL, taken TEXT, bytes INT, job TEXT, place INT, past INT DEFAULT 0);
CREATE TABLE IF NOT EXISTS jobs (id TEXT PRIMARY KEY, made REAL, keys TEXT, view TEXT, collected INT DEFAULT 0);
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS changes (n INT);
INSERT INTO changes SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM changes);
""" + "".join(f"CREATE TRIGGER IF NOT EXISTS {table}_{what} AFTER {what} ON {table} BEGIN UPDATE changes SET n = n + 1; END;\n"
              for table in ("images", "jobs") for what in ("insert", "update", "delete"))
FORGOTTEN_AFTER = 30 * 86400.0 # seconds without a visit, and for what was put away
STATES = ("new", "waiting", "sending", "job", "done", "failed")
PENDING = STATES[:4]


@dataclass
class Item:
    "One image with what is known of it."

    key: str # SHA-256 of its bytes
    name: str # as the visitor knows it
    added: float # seconds since 1970
    state: str # of `STATES`
    answer: dict[str, Any] = field(default_factory=dict) # as `predict` gives it
    error: str = ""
    remedy: str = ""
    label: str | None = None # as a person put it right
    width: int | None = None
    height: int | None = None
    lat: float | None = None
    lon: float | None = None
    taken: str | None = None
    bytes: int = 0
    job: str | None = None
    place: int = 0 # in the order of arrival
    past: int = 0 # 1: put away, and found in the history only

    @property
    def doubtful(self) -> bool:
        "Whether a human should look, and none has."
        return self.state == "done" and bool(self.answer.get("abstain")) and not self.label

    @property
    def says(self) -> str | None:
        "The class: a person's word before the model's."
        return self.label or self.answer.get("label")

    @property
    def confidence(self) -> float:
        "The probability of the likeliest class; 0 without an answer."
        return float(self.answer.get("confidence") or 0.0)


def doubtful_first(items: Iterable[Item]) -> list[Item]:
    "Sort: those a human should look at, the least sure leading; the others in the same way; what waits; what failed."
    rank = {"done": 1, "failed": 3}
    return sorted(items, key=lambda i: (0 if i.state == "done" and i.answer.get("abstain") else rank.get(i.state, 2), i.confidence, i.place))


def keeping_folder() -> Path:
    "Return the folder of all visitors: LADOS_FRONTS, a device's own storage, or `fronts` in LADOS_HOME."
    own = os.environ.get("LADOS_FRONTS") or os.environ.get("FLET_APP_STORAGE_DATA")
    return Path(own).expanduser() if own else Path(os.environ.get("LADOS_HOME") or ".lados").expanduser() / "fronts"


def new_visitor() -> str:
    "Return a name that nobody guesses."
    return secrets.token_hex(16)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(data)
    Path(file.name).replace(path)


class Keep:
    "One visitor's things. Threads and processes may share it."

    def __init__(
        self,
        visitor: str, # from `new_visitor`
        root: Path | None = None, # none: `keeping_folder()`
    ):
        if not re.fullmatch(r"[0-9a-f]{32}", visitor):
            raise ValueError("not a visitor's name")
        self.visitor, self.folder = visitor, (root or keeping_folder()) / visitor
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._open() as db:
            db.execute("PRAGMA journal_mode=WAL")
            db.executescript(TABLES)
            if "past" not in {r["name"] for r in db.execute("PRAGMA table_info(images)")}: # kept by an earlier version
                db.execute("ALTER TABLE images ADD COLUMN past INT DEFAULT 0")
            old = [r["key"] for r in db.execute("SELECT key FROM images WHERE past=1 AND added<?", (time.time() - FORGOTTEN_AFTER,))]
        for key in old:
            self.drop(key)
        os.utime(self.folder)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.folder / "kept.sqlite", timeout=30)) as db:
            db.row_factory = sqlite3.Row
            db.execute("PRAGMA synchronous=NORMAL") # what a killed process wrote is there; a power cut may take the last moments
            with db:
                yield db

    # images

    def path(self, key: str) -> Path:
        "The file with an image's bytes."
        return self.folder / "images" / key

    def thumb(self, key: str) -> Path:
        "The file with its small copy."
        return self.folder / "thumbs" / f"{key}.jpg"

    def tiny(self, key: str) -> bytes: # JPEG; empty: there is none
        "Return an image as lists show it."
        path = self.thumb(key).with_suffix(".tiny")
        if not path.exists() and self.thumb(key).exists():
            _write(path, shown(self.thumb(key).read_bytes(), TINY))
        return path.read_bytes() if path.exists() else b""

    def add(
        self,
        name: str, # as the visitor knows it
        data: bytes,
    ) -> bool: # False: it was here already
        "Keep an image, to be sent once `release` is called; one that was put away comes back with its answer."
        key = hashlib.sha256(data).hexdigest()
        if known := self.get(key):
            if known.past:
                self.change(key, past=0)
            return bool(known.past)
        about = look(data)
        _write(self.path(key), data)
        if about.thumb:
            _write(self.thumb(key), about.thumb)
        return self._insert(key, name, "new", about, len(data))

    def fit(self, key: str, limit: int | None) -> None: # bytes; none: nobody knows
        "Make a photograph small enough to be sent; where it was taken and when stays in it."
        if limit and self.path(key).stat().st_size > limit and (less := smaller(self.path(key).read_bytes(), limit)):
            _write(self.path(key), less)

    def sent(self, item: Item) -> int: # bytes; 0: all of it, or nothing yet
        "Return how large an image was sent that was too large."
        try:
            now = self.path(item.key).stat().st_size
        except OSError:
            return 0
        return now if now < item.bytes else 0

    def take(
        self,
        name: str, # as the visitor knows it
        data: bytes, # an image, or a zip with some
        t: Texts,
    ) -> int: # how many were here already
        "Keep an image, or those of a zip; one that cannot be read says why."
        if not is_zip(name, data):
            return int(not self.add(name, data))
        known, members = 0, 0
        try:
            for member, content in unpacked(name, data):
                members += 1
                if content is None:
                    self.refuse(member, t("cannot be unpacked"))
                else:
                    known += not self.add(member, content)
        except ValueError:
            self.refuse(name, t("not a readable zip"), t("pack it anew"))
        else:
            if not members:
                self.refuse(name, t("no images in this zip"), t("pack images into it"))
        return known

    def refuse(self, name: str, error: str, remedy: str = "") -> None:
        "Keep a file that is no image, with why."
        key = hashlib.sha256(f"{name}\0{error}".encode()).hexdigest()
        self._insert(key, name, "failed", About(), 0)
        self.change(key, error=error, remedy=remedy)

    def _insert(self, key: str, name: str, state: str, about: About, size: int) -> bool:
        with self._open() as db:
            made = db.execute(
                "INSERT OR IGNORE INTO images (key, name, added, state, width, height, lat, lon, taken, bytes, place) "
                "VALUES (?,?,?,?,?,?,?,?,?,?,(SELECT COALESCE(MAX(place), 0) + 1 FROM images))",
                (key, name, time.time(), state, about.width, about.height, about.lat, about.lon, about.taken, size))
        return bool(made.rowcount)

    def release(self) -> int: # how many
        "Let the images that were added be sent."
        with self._open() as db:
            return db.execute("UPDATE images SET state='waiting' WHERE state='new'").rowcount

    def recover(self) -> None:
        "Put back what was on its way when a process died, into this machine or out of it."
        with self._open() as db:
            db.execute("UPDATE images SET state='waiting' WHERE state IN ('new', 'sending')")

    def claim(self, most: int) -> list[Item]:
        "Take waiting images to send; nobody else gets them."
        with self._open() as db:
            rows = db.execute("UPDATE images SET state='sending' WHERE key IN (SELECT key FROM images WHERE state='waiting' "
                              "ORDER BY place LIMIT ?) RETURNING *", (most,)).fetchall()
        return sorted(map(_item, rows), key=lambda i: i.place)

    def change(self, key: str, **values: Any) -> None:
        "Change what is known of an image."
        values = {n: json.dumps(v) if n == "answer" else v for n, v in values.items()}
        with self._open() as db:
            db.execute(f"UPDATE images SET {', '.join(f'{n}=?' for n in values)} WHERE key=?", (*values.values(), key))

    def answered(
        self,
        rows: list[tuple[str, str, dict[str, Any], str]], # key, state, answer, error
    ) -> None:
        "Keep what came of many images at once."
        with self._open() as db:
            db.executemany("UPDATE images SET state=?, answer=?, error=?, remedy='' WHERE key=?", [(s, json.dumps(a), e, k) for k, s, a, e in rows])

    def change_all(self, state: str, to: str, job: str | None = None) -> int:
        "Move images from one state to another; of one job only, where one is named."
        with self._open() as db:
            where, values = ("AND job=?", (job,)) if job else ("", ())
            return db.execute(f"UPDATE images SET state=? WHERE state=? {where}", (to, state, *values)).rowcount

    def get(self, key: str) -> Item | None:
        "Return an image."
        with self._open() as db:
            row = db.execute("SELECT * FROM images WHERE key=?", (key,)).fetchone()
        return _item(row) if row else None

    def items(self) -> list[Item]:
        "Return the images at hand, in the order in which they came."
        with self._open() as db:
            return [_item(r) for r in db.execute("SELECT * FROM images WHERE past=0 ORDER BY place")]

    def history(self, most: int = 200) -> list[Item]:
        "Return what has been classified, put away or not, newest first."
        with self._open() as db:
            return [_item(r) for r in db.execute("SELECT * FROM images WHERE state='done' ORDER BY place DESC LIMIT ?", (most,))]

    def counts(self) -> dict[str, int]: # by state; those without images too
        "Count the images by state."
        with self._open() as db:
            found = dict(db.execute("SELECT state, COUNT(*) FROM images GROUP BY state").fetchall())
        return {s: found.get(s, 0) for s in STATES}

    def stamp(self) -> int:
        "Return a number that is another one whenever an image or a job has changed."
        with self._open() as db:
            return db.execute("SELECT n FROM changes").fetchone()[0]

    def drop(self, key: str) -> None:
        "Forget one image."
        with self._open() as db:
            db.execute("DELETE FROM images WHERE key=?", (key,))
        for path in (self.path(key), self.thumb(key), self.thumb(key).with_suffix(".tiny")):
            path.unlink(missing_ok=True)

    def stop(self) -> None:
        "Forget what was not sent yet."
        for item in self.items():
            if item.state in ("new", "waiting"):
                self.drop(item.key)

    def put_away(self) -> None:
        "Leave what has been classified to the history, and forget the rest."
        with self._open() as db:
            db.execute("UPDATE images SET past=1 WHERE state='done'")
        for item in self.items():
            self.drop(item.key)

    def clear(self) -> None:
        "Forget all images; jobs and settings stay."
        with self._open() as db:
            db.execute("DELETE FROM images")
        for name in ("images", "thumbs", "heat"):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    # heat maps

    def heat(self, key: str, label: str) -> tuple[bytes, dict[str, float]] | None:
        "Return a heat map that was asked for before: PNG, and its shares of the image's thirds."
        path = self.folder / "heat" / f"{key}-{label}"
        try:
            return path.with_suffix(".png").read_bytes(), json.loads(path.with_suffix(".json").read_text("utf-8"))
        except (OSError, ValueError):
            return None

    def save_heat(self, key: str, label: str, png: bytes, thirds: dict[str, float]) -> None:
        "Keep a heat map."
        path = self.folder / "heat" / f"{key}-{label}"
        _write(path.with_suffix(".png"), png)
        _write(path.with_suffix(".json"), json.dumps(thirds).encode())

    # jobs

    def begin_job(self, view: dict[str, Any], keys: list[str]) -> None:
        "Remember a job and its images, in their order."
        with self._open() as db:
            db.execute("INSERT OR REPLACE INTO jobs (id, made, keys, view) VALUES (?,?,?,?)",
                       (view["id"], time.time(), json.dumps(keys), json.dumps(view)))
            db.executemany("UPDATE images SET state='job', job=? WHERE key=?", [(view["id"], k) for k in keys])

    def jobs(self) -> list[dict[str, Any]]: # as the service showed them last, with `keys` and `collected`
        "Return the jobs that were handed in from here, newest first."
        with self._open() as db:
            rows = db.execute("SELECT * FROM jobs ORDER BY made DESC").fetchall()
        return [{**json.loads(r["view"]), "keys": json.loads(r["keys"]), "collected": bool(r["collected"])} for r in rows]

    def see_job(self, view: dict[str, Any], collected: bool = False) -> None:
        "Keep how a job stands."
        with self._open() as db:
            db.execute("UPDATE jobs SET view=?, collected=MAX(collected, ?) WHERE id=?", (json.dumps(view), int(collected), view["id"]))

    # settings

    def setting(self, name: str, default: str = "") -> str:
        "Return a setting of the visitor."
        with self._open() as db:
            row = db.execute("SELECT value FROM settings WHERE name=?", (name,)).fetchone()
        return row[0] if row else default

    def set(self, **values: str) -> None:
        "Keep settings."
        with self._open() as db:
            db.executemany("INSERT OR REPLACE INTO settings VALUES (?,?)", values.items())


def _item(row: sqlite3.Row) -> Item:
    return Item(**{**dict(row), "answer": json.loads(row["answer"] or "{}")})


def forget_old(root: Path | None = None) -> None:
    "Remove what visitors left who have not been here for long, and uploads that were cut off."
    root = root or keeping_folder()
    with suppress(OSError):
        for folder in root.iterdir():
            kept = FORGOTTEN_AFTER if re.fullmatch(r"[0-9a-f]{32}", folder.name) else 86400.0 if folder.name.startswith("uploads-") else inf
            if time.time() - folder.stat().st_mtime > kept:
                shutil.rmtree(folder, ignore_errors=True)
