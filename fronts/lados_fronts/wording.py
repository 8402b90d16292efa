"""Answers in the reader's words: the prediction set, why a human should look, where the evidence lies."""

from typing import Any

from .images import DIFFUSE
from .keep import Item
from .service import Served
from .texts import Texts


class Wording:
    "How answers read in one language, with the classes of one label set."

    def __init__(self, t: Texts, served: Served):
        self.t, self.served = t, served

    def title(self, name: str | None) -> str:
        "Return a class's name in the reader's language."
        return self.t(self.served[name or ""].title)

    def caution(self) -> str: # empty where at least half are photographs
        "Say that the model has learned drawings."
        t, share = self.t, self.served.synthetic
        if share <= 0.5:
            return ""
        if share == 1:
            return t("The model has learned only drawn images: what it says of photographs, and how sure it is, has not been tested.")
        return t("The model has learned mostly drawn images ({share}): what it says of photographs, and how sure it is, has not been tested.", share=t.percent(share))

    def set_line(self, answer: dict[str, Any]) -> str:
        "Return the prediction set."
        if options := answer.get("prediction_set"):
            said = self.t("Set: {classes}", classes=", ".join(map(self.title, options)))
            return f"{said}. {held}" if (held := self.not_covered(answer)) else said
        return self.t("No set: {why}", why=self.t(answer.get("no_set") or "the model knows no thresholds"))

    def not_covered(self, answer: dict[str, Any]) -> str: # empty: every class is covered
        "Return which classes are in every set, and why."
        names = ", ".join(map(self.title, answer.get("not_covered") or []))
        return self.t("Too few independent sources to check on, so in every set: {classes}.", classes=names) if names else ""

    def reason(self, answer: dict[str, Any]) -> str:
        "Return why a human should look."
        t, held = self.t, answer.get("not_covered") or []
        options = [o for o in answer.get("prediction_set") or [] if o not in held or o == answer.get("label")]
        if t.language == "en":
            return t.sentence(answer.get("reason") or "")
        if answer.get("unlike_training"):
            return t("Unlike the training images: ask a human.")
        if len(options) > 1:
            return t("{classes}: ask a human.", classes=" / ".join(map(self.title, options)))
        if answer.get("label") in held:
            return t("{classes}, which too few independent sources could check: ask a human.", classes=self.title(answer["label"]))
        return t("Less sure than most: ask a human.")

    def failure(self, item: Item) -> str:
        "Return why an image has no answer: in another language than the service's, its kind of problem first."
        title = item.answer.get("title") or ""
        return " ".join(filter(None, [self.t.sentence(title) if self.t.language != "en" else "", self.t.sentence(item.error)]))

    def sent(self, item: Item, now: int) -> str: # bytes that were sent of it; 0: all
        "Say that a photograph was sent smaller than it is, as the service takes none so large."
        t = self.t
        if not now:
            return ""
        kept = f" {t('Place and time are kept.')}" if item.taken or item.lat is not None else ""
        return t("Sent smaller: {now} instead of {size}.", now=t.size(now), size=t.size(item.bytes)) + kept

    def where(
        self,
        label: str, # the class that is explained
        thirds: dict[str, float], # share of the heat in each third of the image, across and down
        spread: float, # as from `images.spread`
    ) -> str:
        "Return where the evidence for a class lies."
        t = self.t
        if spread > DIFFUSE:
            return t("The evidence for {name} is diffuse: half of it needs {share} of the image, so nothing is tinted. The slider shows the map all the same.",
                     name=self.title(label), share=t.percent(spread))
        names = {"left": t("left"), "centre": t("centre"), "right": t("right"), "top": t("top"), "middle": t("middle"), "bottom": t("bottom")}
        across, down = (max(group, key=lambda n: thirds.get(n, 0)) for group in (("left", "centre", "right"), ("top", "middle", "bottom")))
        return t("What speaks for {name} lies mostly {across} ({a}) and {down} ({d}).", name=self.title(label), across=names[across],
                 a=t.percent(thirds.get(across, 0)), down=names[down], d=t.percent(thirds.get(down, 0)))
