"""Texts in the reader's language, and numbers and dates as that language writes them. English is the source; `locale/` has the others."""

import gettext
from collections.abc import Callable
from datetime import datetime
from functools import cache
from pathlib import Path

LOCALE = Path(__file__).with_name("locale")
LANGUAGES = {"en": "English", "ru": "Русский"}
MONTHS = {"en": ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"],
          "ru": ["янв.", "февр.", "мар.", "апр.", "мая", "июн.", "июл.", "авг.", "сент.", "окт.", "нояб.", "дек."]}
NARROW = "\u202f" # between thousands, and before a unit


class Texts:
    "One language."

    def __init__(
        self,
        language: str, # a key of `LANGUAGES`
    ):
        self.language = language
        found = gettext.translation("lados_fronts", LOCALE, [language], fallback=True)
        self._: Callable[[str], str] = lambda text: found.gettext(text) if text else ""
        self.n: Callable[[str, str, int], str] = found.ngettext

    def __call__(self, text: str, /, **values: object) -> str:
        "Return a text in this language, with values in its braces."
        return self._(text).format(**values) if values else self._(text)

    def many(self, one: str, more: str, /, n: int, **values: object) -> str:
        "Return the form of a text that fits a number, with the number as {n}."
        return self.n(one, more, n).format(n=self.number(n), **values)

    def number(
        self,
        value: float,
        digits: int = 0, # behind the decimal sign
    ) -> str:
        "Return a number as it is written here."
        point = "," if self.language == "ru" else "."
        return f"{value:,.{digits}f}".replace(",", "\0").replace(".", point).replace("\0", NARROW)

    def percent(
        self,
        share: float, # 0..1
    ) -> str:
        "Return a share in per cent, never as certain or impossible."
        if share >= 0.995:
            return f">{NARROW}99{NARROW}%"
        return f"<{NARROW}1{NARROW}%" if 0 < share < 0.005 else f"{round(100 * share)}{NARROW}%"

    def size(
        self,
        count: float, # bytes
    ) -> str:
        "Return a file's size in megabytes, or in kilobytes where it is small."
        if count < 1e5:
            return f"{self.number(count / 1e3, 0 if count >= 1e4 else 1)}{NARROW}{self('kB')}"
        return f"{self.number(count / 1e6, 0 if count >= 1e7 or count % 1e6 == 0 else 1)}{NARROW}{self('MB')}"

    def seconds(
        self,
        spent: float, # seconds
    ) -> str:
        "Return a time span, in milliseconds where it is short."
        if spent < 1:
            return f"{self.number(spent * 1e3, 1 if spent < 0.01 else 0)}{NARROW}{self('ms')}"
        if spent < 120:
            return f"{self.number(spent, 1 if spent < 10 else 0)}{NARROW}{self('s')}"
        return f"{self.number(spent / 60)}{NARROW}{self('min')}"

    def when(
        self,
        at: float | datetime, # seconds since 1970, or a camera's own time
    ) -> str:
        "Return a date with its time."
        at = at if isinstance(at, datetime) else datetime.fromtimestamp(at)
        return f"{at.day} {MONTHS[self.language][at.month - 1]} {at.year}, {at:%H:%M}"

    def sentence(self, text: str) -> str:
        "Return a message as a sentence of its own."
        text = self(text.strip()).replace("`", "")
        return text and text[0].upper() + text[1:] + ("" if text[-1] in ".!?" else ".")


@cache
def texts(language: str) -> Texts:
    "Return the texts of a language."
    return Texts(language)


def reader_language(
    *wishes: str | None, # what a reader or a browser asks for, the strongest first: ru-RU
) -> str: # a key of `LANGUAGES`
    "Return the language to show."
    for wish in wishes:
        if wish and (short := wish.replace("_", "-").split("-")[0].lower()) in LANGUAGES:
            return short
    return "en"
