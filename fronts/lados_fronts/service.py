"""The service as the fronts know it: where it is, what it serves, and how its refusals read."""

import os
import re
from dataclasses import dataclass, field
from typing import Any

from lados.client import ApiError, AsyncClient, Busy, Client, Forbidden, Unavailable

from .texts import Texts

URL = "http://127.0.0.1:8000"
SPARE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#F0E442") # Okabe & Ito, for classes without a colour
OPTIONS = {"retries": 0, "timeout": 60.0, "trust_env": False} # the outbox repeats; a proxy of the environment is not asked


@dataclass(frozen=True)
class Place:
    "Where the service is, and the key that opens what changes it."

    url: str = URL
    key: str = ""

    @classmethod
    def from_environment(cls) -> "Place":
        "Return what LADOS_API_URL and API_KEY say."
        return cls((os.environ.get("LADOS_API_URL") or URL).rstrip("/"), os.environ.get("API_KEY") or "")

    def client(self, **options: Any) -> Client:
        "Return a client that waits."
        return Client(self.url, self.key or None, **{**OPTIONS, **options})

    def async_client(self, **options: Any) -> AsyncClient:
        "Return a client for an event loop."
        return AsyncClient(self.url, self.key or None, **{**OPTIONS, **options})

    @property
    def shown(self) -> str:
        "The address without a password."
        return re.sub(r"//[^@/]*@", "//", self.url)


@dataclass(frozen=True)
class ImageClass:
    "A class of the label set, as the service describes it."

    name: str
    title: str
    colour: str
    hint: str


@dataclass(frozen=True)
class Served:
    "What the service serves."

    model: str = ""
    engine: str = ""
    classes: tuple[ImageClass, ...] = ()
    limits: dict[str, Any] = field(default_factory=dict) # image_bytes, images; empty: the service does not say
    synthetic: float = 0.0 # share of drawn images among those that the model has learned, 0..1

    def __getitem__(self, name: str) -> ImageClass:
        "Return a class by name, also one that the label set does not have any more."
        return next((c for c in self.classes if c.name == name), ImageClass(name, name.replace("_", " "), "#767676", ""))

    @property
    def threshold(self) -> int:
        "How many images one request may have; more are a job."
        return int(self.limits.get("images") or 16)


def served_now(about: dict[str, Any], models: dict[str, Any]) -> Served:
    "Return what is served, from the answers of / and /models."
    card = next((m.get("card") or {} for m in models.get("models", []) if m.get("served")), {})
    known = (card.get("label_set") or {}).get("classes") or [{"name": n} for n in card.get("classes", [])]
    classes = tuple(ImageClass(c["name"], c.get("title") or c["name"].replace("_", " "), c.get("colour") or SPARE[i % len(SPARE)],
                               c.get("hint", "")) for i, c in enumerate(known))
    return Served(models.get("served") or "", models.get("engine") or "", classes, about.get("limits") or {}, float(card.get("synthetic") or 0))


@dataclass(frozen=True)
class Problem:
    "Something that did not work, for people: one line, and what to do."

    line: str
    remedy: str = ""
    away: bool = False # the service will be back by itself, and what was entered waits

    def __str__(self) -> str:
        return " ".join(filter(None, (self.line, self.remedy)))


def problem_of(error: Exception, place: Place, t: Texts) -> Problem:
    "Return an error in the reader's words."
    if isinstance(error, Forbidden) and error.status != 403: # a key that fits, and lacks a scope, says so itself
        return Problem(t("The service does not accept the key."), t("Enter the key that API_KEY has where the service runs, in Settings."))
    if isinstance(error, Unavailable):
        return Problem(t("The service at {place} does not answer.", place=place.shown), t("What you entered is kept; it goes on by itself."), True)
    if isinstance(error, Busy):
        return Problem(t.sentence(error.detail), t("What you entered is kept; it goes on by itself."), True)
    if isinstance(error, ApiError):
        title = t(error.title) if error.title and t.language != "en" else ""
        return Problem(". ".join(filter(None, [title, t.sentence(error.detail)])), t.sentence(error.remedy))
    if isinstance(error, OSError) and error.strerror:
        return Problem(f"{error.filename or ''}: {error.strerror}".strip(": "), t("Check that the disk has room."))
    return Problem(t("Something went wrong that should not."), t("The terminal that serves the page says more."))
