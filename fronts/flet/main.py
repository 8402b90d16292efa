"""The Flutter front end, through Flet: for desks, tablets and phones. `lados app flet` serves it; README.md says how to build an APK."""

import asyncio
import os
import secrets
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(p) for p in (HERE.parent, HERE.parent.parent) if str(p) not in sys.path] # beside it in a checkout; an APK has it inside

import flet as ft  # noqa: E402
from lados_fronts import exports, images  # noqa: E402
from lados_fronts.keep import PENDING, Item, Keep, doubtful_first, forget_old, keeping_folder, new_visitor  # noqa: E402
from lados_fronts.service import Place  # noqa: E402
from lados_fronts.session import LIVE, session_of  # noqa: E402
from lados_fronts.texts import LANGUAGES, Texts, reader_language, texts  # noqa: E402
from lados_fronts.wording import Wording  # noqa: E402

PAGE = 24 # cards at once
SETTINGS = 3 # the last of the four parts
WIDE = 760 # pixels, from which a rail stands where a phone has a bar
UPLOADS = os.environ.get("LADOS_UPLOADS") or str(keeping_folder().absolute() / f"uploads-{os.getpid()}") # on the disk that keeps images
SEED = "#0b5fa5"
AMBER, AMBER_INK = ft.Colors.TERTIARY_CONTAINER, ft.Colors.ON_TERTIARY_CONTAINER # of both themes, so that dark or light changes no control
AMBERS = {"theme": ("#fff3d1", "#694700"), "dark theme": ("#3d2f06", "#ffdf8a")}


def spoken(label: str, content: ft.Control, **options: Any) -> ft.Semantics:
    "Return a control that a screen reader calls by a name."
    return ft.Semantics(label=label, content=content, exclude_semantics=True, container=True, **options)


def heading(text: str, level: int = 2, size: int = 18) -> ft.Semantics:
    "Return a heading."
    return ft.Semantics(content=ft.Text(text, size=size, weight=ft.FontWeight.W_600), header=True, heading_level=level, container=True)


def amber_theme(back: str, ink: str) -> ft.Theme:
    "Return a theme of the house's colour, and of an amber for what wants attention."
    return ft.Theme(color_scheme_seed=SEED, color_scheme=ft.ColorScheme(tertiary_container=back, on_tertiary_container=ink))


class Kept:
    "Keeps controls as long as they show the same: a press on one that was exchanged meanwhile would go unheard."

    def __init__(self) -> None:
        self.made: dict[Any, tuple[Any, Any]] = {} # by place: what it shows, and the control or controls

    def kept(
        self,
        place: Any, # where it stands
        shows: Any, # all that it depends on
        make: Callable[[], Any],
    ) -> Any: # what `make` gave for this
        "Return the control of a place, the same one until what it shows has changed."
        if place not in self.made or self.made[place][0] != shows:
            self.made[place] = (shows, make())
        return self.made[place][1]


class App(Kept):
    "One visitor's application."

    def __init__(self, page: ft.Page, keep: Keep, language: str):
        super().__init__()
        self.page, self.keep, self.at, self.filter, self.shown = page, keep, 0, "all", PAGE
        self.dark_wish = keep.setting("theme", "system")
        self.uploads: dict[str, str] = {} # file on this machine -> the visitor's name for it
        self.t: Texts = texts(language)
        self.coming = self.expected = 0 # files on their way from the browser
        self.picker = ft.FilePicker(on_result=self.picked, on_upload=self.uploaded)
        self.saver = ft.FilePicker()
        page.services.extend([self.picker, self.saver])
        self.body = ft.Column(expand=True, scroll=ft.ScrollMode.AUTO, spacing=14)
        self.status = ft.Column(spacing=6)
        self.top = ft.Column(spacing=0)
        self.main = ft.Container(ft.Column([self.top, self.status, self.body], spacing=12, expand=True), expand=True)
        self.grid = ft.Row(wrap=True, spacing=16, run_spacing=16, vertical_alignment=ft.CrossAxisAlignment.START)
        self.seen: Any = None
        self.large: Large | None = None # the image that is open
        self.there = self.over = False # whether somebody looks; whether the session has ended

    # the frame

    @property
    def session(self) -> Any:
        "The outbox."
        return session_of(self.keep)

    @property
    def served(self) -> Any:
        "What the service serves."
        return self.session.served

    @property
    def size(self) -> tuple[float, float]:
        "Width and height of the window, in pixels."
        return self.page.width or 1200, self.page.height or 800

    @property
    def wording(self) -> Wording:
        "How answers read."
        return Wording(self.t, self.served)

    def title(self, name: str | None) -> str:
        "Return a class's name in the reader's language."
        return self.wording.title(name)

    def build(self) -> None:
        "Put the frame on the page: a rail where there is room, a bar on a phone; what stands in it stays the same."
        page, wide = self.page, (self.page.width or 1200) >= WIDE
        page.title = "lados"
        page.padding, page.spacing = 0, 0
        page.theme, page.dark_theme = (self.kept(n, None, lambda n=n: amber_theme(*AMBERS[n])) for n in AMBERS)
        page.theme_mode = {"light": ft.ThemeMode.LIGHT, "dark": ft.ThemeMode.DARK}.get(self.dark_wish, ft.ThemeMode.SYSTEM)
        self.top.controls = self.kept("top", self.t.language, self.header)
        self.main.padding = ft.Padding.symmetric(horizontal=24 if wide else 12, vertical=14)
        rail, bar = self.kept("places", self.t.language, self.navigation)
        divider = self.kept("divider", None, lambda: ft.VerticalDivider(width=1))
        rail.selected_index = bar.selected_index = self.at
        rail.visible, divider.visible, bar.visible, page.navigation_bar = wide, wide, not wide, bar
        frame = self.kept("frame", None, lambda: ft.Row(expand=True, spacing=0))
        frame.controls = [rail, divider, self.main]
        page.controls[:] = [self.kept("page", None, lambda: ft.SafeArea(frame, expand=True))]
        self.draw()

    def navigation(self) -> tuple[ft.NavigationRail, ft.NavigationBar]:
        "Return the parts, as a rail and as a bar."
        t = self.t
        places = [(ft.Icons.IMAGE_SEARCH, t("Classify")), (ft.Icons.CHECKLIST, t("Jobs")), (ft.Icons.HISTORY, t("History")), (ft.Icons.SETTINGS, t("Settings"))]
        rail = ft.NavigationRail(destinations=[ft.NavigationRailDestination(icon=i, label=n) for i, n in places], label_type=ft.NavigationRailLabelType.ALL,
                                 on_change=self.go, min_width=92)
        return rail, ft.NavigationBar(destinations=[ft.NavigationBarDestination(icon=i, label=n) for i, n in places], on_change=self.go)

    def header(self) -> list[ft.Control]:
        "Return the title."
        t = self.t
        return [heading(t("What is on the water?"), 1, 21), ft.Text(t("Aerial images of the sea, classified by lados"), size=14, color=ft.Colors.ON_SURFACE_VARIANT)]

    def go(self, e: Any) -> None:
        "Show another part; what was typed into the settings and not saved is gone when they are left."
        before, self.at = self.at, int(e.control.selected_index)
        if before == SETTINGS and self.at != SETTINGS:
            for place in ("settings", "url", "key"):
                self.made.pop(place, None)
        self.draw()

    def line(self, text: str, warn: bool = True) -> ft.Control:
        "Return a calm line."
        shown = ft.Container(ft.Text(text, color=AMBER_INK if warn else None), bgcolor=AMBER if warn else None, border_radius=10, padding=ft.Padding.symmetric(horizontal=14, vertical=8))
        return spoken(text, shown, live_region=True)

    def draw_status(self) -> None:
        "Say how the service is."
        t, problem, served = self.t, self.session.problem(), self.served
        if problem:
            waiting = self.keep.counts()["waiting"]
            more = f" {t.many('{n} image waits in the outbox.', '{n} images wait in the outbox.', waiting)}" if waiting else ""
            self.status.controls = [self.line(f"{problem}{more}")]
        elif served.model:
            self.status.controls = [ft.Row([ft.Icon(ft.Icons.CIRCLE, size=10, color="#2a9d5c"), ft.Text(served.model, weight=ft.FontWeight.W_600), ft.Text(served.engine),
                                            ft.Text(t("asked at {place}", place=self.session.place.shown), color=ft.Colors.ON_SURFACE_VARIANT)], wrap=True, spacing=10)]
            if caution := self.wording.caution():
                self.status.controls.append(self.line(caution))
        else:
            self.status.controls = [self.line(t("The service is up, but serves no model.") if served.limits else t("Looking for the service …"))]

    def draw(self) -> None:
        "Show the chosen part as things stand."
        self.draw_status()
        self.body.controls = [self.classify, self.jobs, self.history, self.settings][self.at]()
        self.page.update()

    async def live(self) -> None:
        "Follow what changes."
        self.there = True
        while not self.over:
            await asyncio.sleep(0.6)
            if not self.there:
                continue
            now = (self.keep.stamp(), str(self.session.problem()), self.served.model, self.session.handing, self.size)
            if now != self.seen and self.at != SETTINGS:
                self.seen = now
                with suppress(Exception): # the visitor may be gone this very moment
                    if self.large and self.large.size != self.size:
                        self.large.fit()
                    self.draw()
            elif self.at == SETTINGS and now[1:] != (self.seen or ("",))[1:]:
                self.seen = now
                self.draw_status()
                self.page.update()

    def left(self, e: Any) -> None:
        "Draw no more: the browser is closed, or lost its way."
        self.there = False

    def back(self, e: Any) -> None:
        "Draw again, all of it; what was on its way from the browser has broken off."
        self.there, self.coming = True, 0
        self.keep.release()
        self.build()

    def ended(self, e: Any) -> None:
        "Stop following: nobody has come back for an hour."
        self.over = True

    # images in

    async def picked(self, e: Any) -> None:
        "Take the files that were chosen."
        native = [f for f in e.files if f.path]
        for file in native:
            self.keep.take(file.name, Path(file.path).read_bytes(), self.t)
        wanted = []
        for file in (f for f in e.files if not f.path):
            name = secrets.token_hex(12)
            self.uploads[name] = file.name
            wanted.append(ft.FilePickerUploadFile(self.page.get_upload_url(name, 1200), id=file.id, name=file.name))
        self.names = {f.name: [] for f in e.files}
        for upload, name in zip(wanted, list(self.uploads)[-len(wanted):] if wanted else [], strict=True):
            self.names[upload.name].append(name)
        self.coming = self.expected = len(wanted)
        if wanted:
            await self.picker.upload(wanted)
        else:
            self.keep.release()

    async def uploaded(self, e: Any) -> None:
        "Take a file that has arrived, or say why it has not."
        if e.error:
            self.keep.refuse(e.file_name, self.t("could not be taken in"), str(e.error)[:120])
        elif e.progress is None or e.progress < 1:
            return
        else:
            for name in [n for n in self.names.get(e.file_name, []) if (Path(UPLOADS) / n).exists()]:
                self.names[e.file_name].remove(name)
                path = Path(UPLOADS) / name
                data = await asyncio.to_thread(path.read_bytes)
                path.unlink(missing_ok=True)
                await asyncio.to_thread(self.keep.take, self.uploads.pop(name, e.file_name), data, self.t)
        self.coming -= 1
        if self.coming <= 0:
            self.keep.release()

    def pick_button(self) -> ft.Control:
        "Return the button that opens the files, or on a phone the camera."
        most = self.served.limits.get("image_bytes")
        return self.kept("pick", (self.t.language, most, self.served.threshold), lambda: self.new_pick_button(most))

    def new_pick_button(self, most: int | None) -> ft.Control:
        "Return it for the service's limits."
        t = self.t
        hint = t("up to {size} an image, larger JPEGs are sent smaller; more than {n} at once become a job", size=t.size(most), n=self.served.threshold) if most else ""
        pick = ft.PickFiles(self.picker, allow_multiple=True, cancel_upload_on_window_blur=False)
        shot = ft.PickFiles(self.picker, file_type=ft.FilePickerFileType.IMAGE, cancel_upload_on_window_blur=False)
        return ft.Row([ft.FilledButton(t("Choose images"), icon=ft.Icons.UPLOAD, action=pick, height=48),
                       ft.OutlinedButton(t("Camera"), icon=ft.Icons.PHOTO_CAMERA, action=shot, height=48), ft.Text(hint, size=13, color=ft.Colors.ON_SURFACE_VARIANT)], wrap=True, spacing=12)

    # results

    def classify(self) -> list[ft.Control]:
        "Return the images' part."
        here = self.keep.items()
        items = doubtful_first(i for i in here if i.state != "new")
        coming = self.arriving(len(here) - len(items))
        if not items:
            return [self.pick_button(), *(coming or self.kept("guide", (self.t.language, self.served.classes, self.column()), self.guide))]
        shown = [i for i in items if self.matches(i)]
        more = len(shown) - self.shown
        self.grid.controls = [self.card(i) for i in shown[:self.shown]]
        words = self.t.many("Show {n} more", "Show {n} more", min(PAGE, more))
        button = [self.kept("more", words, lambda: ft.OutlinedButton(words, on_click=self.show_more))] if more > 0 else []
        return [self.pick_button(), *coming, *self.progress(items), self.filters(items), self.grid, *button, ft.Container(height=12)]

    def arriving(self, come: int) -> list[ft.Control]:
        "Say how many images have come, while more are on their way; cards for them would be drawn again with each."
        if not come and self.coming <= 0:
            return []
        text = self.t("Taking in images: {n}", n=self.t.number(come))
        if self.coming > 0:
            text = self.t("Taking in image {n} of {all}", n=self.t.number(self.expected - self.coming + 1), all=self.t.number(self.expected))
        far = (self.expected - self.coming) / self.expected if self.coming > 0 else None
        return [spoken(text, ft.Text(text), live_region=True), ft.ProgressBar(value=far, semantics_label=text, bar_height=8, border_radius=8)]

    def show_more(self, e: Any) -> None:
        "Show further cards."
        self.shown += PAGE
        self.draw()

    def guide(self) -> list[ft.Control]:
        "Say how it works, where there is nothing yet."
        t = self.t
        steps = [(t("Choose a flight's images"), t("One or many, or a zip. They are kept here until the service has answered.")),
                 (t("Doubtful ones come first"), t("Probabilities are calibrated, and beside the class stands the set of classes that hold the truth "
                                                   "9 times in 10. More than one in it: ask a human.")),
                 (t("Put wrong labels right"), t("One click keeps the image and its right label for the next training."))]
        rows = [ft.Row([ft.CircleAvatar(content=ft.Text(str(n)), radius=18), ft.Column([ft.Text(a, weight=ft.FontWeight.W_600), ft.Text(b, color=ft.Colors.ON_SURFACE_VARIANT)],
                                                                                        spacing=2, expand=True)], spacing=14) for n, (a, b) in enumerate(steps, 1)]
        classes = [ft.Container(ft.Row([self.dot(c.colour, 18), ft.Column([ft.Text(t(c.title), weight=ft.FontWeight.W_600), ft.Text(t(c.hint), size=13)], spacing=0, expand=True)]),
                                padding=12, border=ft.Border.all(1, ft.Colors.OUTLINE_VARIANT), border_radius=14, width=self.column()) for c in self.served.classes]
        return [*rows, *([heading(t("The classes")), ft.Row(classes, wrap=True, spacing=12, run_spacing=12)] if classes else [])]

    def column(self) -> float:
        "Return the width of a class's card: on a phone it fills the page between its margins."
        return 300 if self.size[0] >= WIDE else self.size[0] - 24

    def dot(self, colour: str, size: int = 14) -> ft.Control:
        "Return a class's mark."
        return ft.Container(width=size, height=size, border_radius=size, bgcolor=colour, border=ft.Border.all(1, ft.Colors.OUTLINE))

    def progress(self, items: list[Item]) -> list[ft.Control]:
        "Say in a line what came of it, or how far it is; and offer what can be done with all."
        t = self.t
        settled = sum(i.state not in PENDING for i in items)
        if settled < len(items):
            text = t("Classified {done} of {all}", done=t.number(settled), all=t.number(len(items)))
            job = next((j for j in self.keep.jobs() if not j["collected"]), None)
            if self.session.handing:
                text = t.many("Handing in {n} image as a job", "Handing in {n} images as a job", self.session.handing)
            elif job:
                text = t("Job {id}: {done} of {all}", id=job["id"][:8], done=t.number(job.get("done", 0)), all=t.number(job.get("total", 0)))
                settled += int(job.get("done") or 0)
            value = min(1.0, settled / len(items))
            stop = self.kept("stop", t.language, lambda: ft.TextButton(t("Cancel"), on_click=lambda e: self.page.run_task(self.cancel_all)))
            return [ft.Row([spoken(text, ft.Text(text), live_region=True), stop], alignment=ft.MainAxisAlignment.SPACE_BETWEEN, wrap=True),
                    ft.ProgressBar(value=value, semantics_label=text, semantics_value=round(100 * value), bar_height=8, border_radius=8)]
        doubtful, failed = sum(i.doubtful for i in items), sum(i.state == "failed" for i in items)
        said = [t.many("{n} image classified", "{n} images classified", settled - failed)]
        said += [t.many("{n} needs a human", "{n} need a human", doubtful)] if doubtful else []
        said += [t.many("{n} could not be read", "{n} could not be read", failed)] if failed else []
        return [ft.Text(f"{', '.join(said)}. {t('Doubtful ones come first.')}"), self.tools(items)]

    def tools(self, items: list[Item]) -> ft.Control:
        "Offer results to take home, and to begin anew."
        placed = any(i.lat is not None and i.lon is not None for i in items)
        again = any(i.state == "failed" and i.bytes for i in items)
        return self.kept("tools", (self.t.language, placed, again), lambda: self.new_tools(placed, again))

    def new_tools(self, placed: bool, again: bool) -> ft.Control:
        "Return the buttons, for images that carry places or do not, and for some that might be tried again."
        t, kinds = self.t, ["CSV", "JSON", *["GeoJSON"] * placed]
        buttons = [ft.OutlinedButton(t("Download {kind}", kind=k), icon=ft.Icons.DOWNLOAD, on_click=lambda e, k=k: self.page.run_task(self.save, k)) for k in kinds]
        if again:
            buttons.append(ft.OutlinedButton(t("Send failed images again"), icon=ft.Icons.REFRESH, on_click=lambda e: self.session.again()))
        return ft.Row([*buttons, ft.TextButton(t("Clear"), on_click=lambda e: self.clear())], wrap=True, spacing=8)

    async def save(self, kind: str) -> None:
        "Hand the results to the browser or the device, as a file of a kind."
        make = {"CSV": exports.as_csv, "JSON": exports.as_json, "GeoJSON": exports.as_geojson}[kind]
        data = make([i for i in self.keep.items() if i.state != "new"], [c.name for c in self.served.classes])
        await self.saver.save_file(file_name=f"lados-results.{kind.lower()}", src_bytes=data)

    def clear(self) -> None:
        "Put the images away; the history has them still."
        self.keep.put_away()
        self.drop_cards()
        self.draw()

    def forget(self) -> None:
        "Forget all images and answers."
        self.keep.clear()
        self.drop_cards()
        self.draw()

    def drop_cards(self) -> None:
        "Let go of what stands for single images."
        self.made = {place: made for place, made in self.made.items() if not isinstance(place, tuple)}

    async def cancel_all(self) -> None:
        "Stop what waits, and the jobs that run."
        self.keep.stop()
        for job in self.keep.jobs():
            if not job["collected"] and job["state"] in LIVE:
                await self.asked(self.session.cancel(job["id"]))
        self.draw()

    def matches(self, item: Item) -> bool:
        "Return True if the filter shows an image."
        special = {"all": True, "human": item.doubtful, "corrected": bool(item.label), "failed": item.state == "failed"}
        return special.get(self.filter, item.state == "done" and item.says == self.filter)

    def filters(self, items: list[Item]) -> ft.Control:
        "Offer the filters with their numbers."
        t, counted, chosen = self.t, [], self.filter
        titles = {"all": t("All"), "human": t("Ask a human"), **{c.name: self.title(c.name) for c in self.served.classes}, "corrected": t("Corrected"), "failed": t("Not read")}
        for name, title in titles.items():
            self.filter = name
            count = sum(map(self.matches, items))
            if count or name == "all":
                counted.append((name, f"{title} {count}"))
        self.filter = chosen
        row = self.kept("filters", (chosen, counted), lambda: ft.Row([self.chip(n, label) for n, label in counted], wrap=True, spacing=8, run_spacing=8))
        for (name, _), chip in zip(counted, row.controls, strict=True):
            chip.selected = name == chosen # a press on the chosen one must not leave it unmarked
        return row

    def chip(self, name: str, label: str) -> ft.Control:
        "Return a filter."
        return ft.Chip(label=label, selected=name == self.filter, on_select=lambda e: self.choose(name), show_checkmark=False)

    def choose(self, name: str) -> None:
        "Show only some."
        self.filter, self.shown = name, PAGE
        self.draw()

    def card(self, item: Item) -> ft.Control:
        "Return an image's card, as wide as there is room; only what shows something else is made anew, so that an open menu stays open."
        card = self.kept(("card", item.key), None, lambda: ft.Card(ft.Container(ft.Column(spacing=6), padding=12)))
        face, picture = self.kept(("face", item.key), (item, self.t.language, self.served.model, self.keep.sent(item)), lambda: self.face(item))
        card.content.content.controls = [face, *([self.foot(item)] if item.state == "done" else [])]
        room = self.size[0] - 24 # between the margins of a page without a rail
        beside = max(1, int(room // 270))
        card.content.width = 262 if self.size[0] >= WIDE else int((room - 16 * (beside - 1)) / beside) - 8 # that wide, they fill the row; a card has a margin of 4
        for image in picture:
            image.width = card.content.width - 24
        return card

    def face(self, item: Item) -> tuple[ft.Control, list[ft.Image]]:
        "Return what a card shows, and the image in it, if there is one."
        t, thumb = self.t, self.keep.thumb(item.key)
        picture = [ft.Image(src=thumb.read_bytes(), height=170, fit=ft.BoxFit.COVER, border_radius=8, exclude_from_semantics=True)] if thumb.exists() else []
        name = ft.Text(item.name, size=13, color=ft.Colors.ON_SURFACE_VARIANT, max_lines=1, overflow=ft.TextOverflow.ELLIPSIS)
        words = self.words(item)
        told = f"{item.name}: {', '.join(w.value for w in words if isinstance(w, ft.Text))}"
        if item.state == "done":
            told = f"{item.name}: {self.title(item.says)}, {t.percent(item.confidence)}{', ' + t('Ask a human') if item.doubtful else ''}"
            told += f". {less}" if (less := self.wording.sent(item, self.keep.sent(item))) else ""
        return spoken(told, ft.Column([*picture, *words, name], spacing=6)), picture

    def foot(self, item: Item) -> ft.Control:
        "Return what can be done with an image."
        t, name, foot = self.t, item.name, self.kept(("foot", item.key), None, lambda: ft.Row(alignment=ft.MainAxisAlignment.SPACE_BETWEEN))
        look = self.kept(("look", item.key), t.language, lambda: ft.TextButton(t("Open"), icon=ft.Icons.ZOOM_IN, tooltip=name, on_click=lambda e: self.page.run_task(self.view, item.key)))
        foot.controls = [look, self.kept(("fix", item.key), (item.label, t.language, self.served.classes), lambda: self.corrector(item))]
        return foot

    def words(self, item: Item) -> list[ft.Control]:
        "Return the lines of a card."
        t, a = self.t, item.answer
        if item.state == "failed":
            return [ft.Text(self.wording.failure(item), color=ft.Colors.ERROR, weight=ft.FontWeight.W_600), ft.Text(t.sentence(item.remedy), size=13)]
        if item.state != "done":
            return [ft.Text(t("In a job") if item.state == "job" else t("Waiting"))]
        mark = t("confirmed") if item.label == a.get("label") else t("corrected")
        verdict = ft.Row([self.dot(self.served[item.says or ""].colour), ft.Text(self.title(item.says), size=17, weight=ft.FontWeight.W_600, expand=True),
                          ft.Text(mark if item.label else t.percent(item.confidence), weight=ft.FontWeight.W_600)])
        stack = ft.Row([ft.Container(bgcolor=self.served[n].colour, height=8, expand=max(1, round(1000 * p))) for n, p in (a.get("probabilities") or {}).items() if p > 0.002], spacing=1)
        below = (ft.Text(self.wording.reason(a), size=13, weight=ft.FontWeight.W_600, color=AMBER_INK) if item.doubtful
                 else ft.Text(self.wording.set_line(a), size=13, color=ft.Colors.ON_SURFACE_VARIANT))
        now = self.keep.sent(item)
        less = [ft.Text(self.wording.sent(item, now), size=13, color=ft.Colors.ON_SURFACE_VARIANT)] if now else []
        return [*([self.doubt()] if item.doubtful else []), verdict, stack, below, *less]

    def doubt(self) -> ft.Control:
        "Return the mark of an image that a human should look at."
        words = ft.Row([ft.Icon(ft.Icons.FLAG_OUTLINED, size=15, color=AMBER_INK), ft.Text(self.t("Ask a human"), size=13, color=AMBER_INK, weight=ft.FontWeight.W_600)], spacing=4, tight=True)
        return ft.Row([ft.Container(words, bgcolor=AMBER, border_radius=99, padding=ft.Padding.symmetric(horizontal=10, vertical=2))])

    def corrector(self, item: Item) -> ft.Control:
        "Offer the classes; a click keeps the image with its right label."
        t = self.t
        rows = [ft.PopupMenuItem(content=self.title(c.name), icon=ft.Icons.CHECK if item.label == c.name else None, on_click=lambda e, n=c.name: self.page.run_task(self.correct, item.key, n))
                for c in self.served.classes]
        if item.label:
            rows.append(ft.PopupMenuItem(content=t("Take back"), on_click=lambda e: self.page.run_task(self.correct, item.key, None)))
        words = ft.Row([ft.Icon(ft.Icons.EDIT, size=17), ft.Text(t("Change") if item.label else t("Fix label"))], spacing=6, tight=True)
        menu = ft.PopupMenuButton(content=ft.Container(words, padding=10), items=rows, tooltip=t("What is it really?"))
        return ft.Semantics(content=menu, container=True, button=True)

    async def asked(self, coroutine: Any) -> Any:
        "Ask the service for something now; none: it failed, and the visitor was told."
        try:
            return await asyncio.wrap_future(self.session.ask(coroutine)) or True
        except Exception as error:
            self.say(str(self.session.problem(error)))
            return None

    def say(self, text: str) -> None:
        "Show a line at the edge."
        self.page.show_dialog(ft.SnackBar(ft.Text(text), show_close_icon=True))

    async def correct(self, key: str, label: str | None) -> None:
        "Keep what a person says."
        if await self.asked(self.session.correct(key, label)):
            self.say(self.t("Kept for the next training.") if label else self.t("Taken back."))
            if self.large:
                self.large.fit()
            self.draw()

    # one image in large

    async def view(self, key: str) -> None:
        "Open an image over the page."
        if item := self.keep.get(key):
            await Large(self, item).open()

    # the other parts

    def jobs(self) -> list[ft.Control]:
        "Return the jobs that were handed in from here."
        t, jobs = self.t, self.keep.jobs()
        states = {"queued": t("queued"), "running": t("running"), "succeeded": t("succeeded"), "failed": t("failed"), "cancelled": t("cancelled")}
        if not jobs:
            return [heading(t("Handed in from here")), ft.Text(t("None yet. More than {n} images at once become a job, which goes on when the browser is closed and is found here again.",
                                                                 n=self.served.threshold))]
        rows: list[ft.Control] = []
        for job in jobs:
            far = t("{done} of {all} {unit}", done=t.number(job.get("done", 0)), all=t.number(job.get("total", 0)), unit=t("images"))
            line = f"{t('Batch')} {job['id'][:8]}: {states.get(job['state'], job['state'])}, {far}, {t.when(job['created'])}"
            stop = [self.kept(("stop", job["id"]), t.language, lambda j=job["id"]: self.new_stop(j))] if job["state"] in LIVE else []
            rows.append(ft.Card(ft.Container(ft.Column([ft.Row([ft.Text(line, expand=True), *stop]), ft.ProgressBar(value=float(job.get("fraction") or 0), semantics_label=line)]), padding=14)))
        return [heading(t("Handed in from here")), *rows]

    def new_stop(self, job_id: str) -> ft.Control:
        "Return the button that stops a job."
        return ft.TextButton(self.t("Cancel"), on_click=lambda e: self.page.run_task(self.cancel_job, job_id))

    def tiny(self, item: Item) -> ft.Control:
        "Return an image as lists show it."
        data = self.keep.tiny(item.key)
        return ft.Image(src=data, width=72, height=54, fit=ft.BoxFit.COVER, border_radius=6, exclude_from_semantics=True) if data else ft.Container(width=72)

    async def cancel_job(self, job_id: str) -> None:
        "Stop a job."
        await self.asked(self.session.cancel(job_id))
        self.draw()

    def history(self) -> list[ft.Control]:
        "Return what was classified, newest first; it is kept on the device."
        t = self.t
        rows = [self.kept(("tile", i.key), (i, t.language, self.served.model), lambda i=i: self.tile(i)) for i in self.keep.history()]
        forget = self.kept("forget", t.language, lambda: [ft.TextButton(t("Forget the history"), icon=ft.Icons.DELETE_OUTLINE, on_click=lambda e: self.forget())]) if rows else []
        return [heading(t("History")), *(rows or [ft.Text(t("Nothing yet."))]), *forget]

    def tile(self, item: Item) -> ft.Control:
        "Return an image of the history."
        t = self.t
        return ft.ListTile(leading=self.tiny(item), title=ft.Text(item.name), subtitle=ft.Text(f"{t.when(item.added)} · {self.title(item.says)} · {t.percent(item.confidence)}"),
                           on_click=lambda e: self.page.run_task(self.view, item.key))

    def settings(self) -> list[ft.Control]:
        "Return the settings; what somebody is typing stays, whatever else changes."
        return self.kept("settings", (self.t.language, self.dark_wish), self.new_settings)

    def new_settings(self) -> list[ft.Control]:
        "Return the settings as they are kept."
        t, keep, given = self.t, self.keep, Place.from_environment()
        url = self.kept("url", None, lambda: ft.TextField(value=keep.setting("url") or given.url, width=420, keyboard_type=ft.KeyboardType.URL))
        key = self.kept("key", None, lambda: ft.TextField(value=keep.setting("key"), password=True, width=420))
        url.label, key.label = t("Address of the service"), t("Key")
        key.hint_text = t("in use: the one with which this page was started") if given.key else None

        def reveal(e: Any) -> None:
            key.password = not key.password
            key.update()

        eye = ft.TextButton(t("Show or hide the key"), icon=ft.Icons.VISIBILITY, on_click=reveal)

        async def save(e: Any) -> None:
            keep.set(url=(url.value or "").strip().rstrip("/"), key=(key.value or "").strip())
            if await self.asked(self.session.look()):
                self.say(t("Saved. The service answers: {model}.", model=self.served.model or t("no model yet")))

        def choose(name: str) -> Any:
            return lambda e: self.put(name, next(iter(e.control.selected)))

        language = ft.SegmentedButton(segments=[ft.Segment(value=k, label=v) for k, v in LANGUAGES.items()], selected=[t.language], on_change=choose("language"))
        theme = ft.SegmentedButton(segments=[ft.Segment(value=k, label=v) for k, v in {"system": t("As the system"), "light": t("Light"), "dark": t("Dark")}.items()],
                                   selected=[self.dark_wish], on_change=choose("theme"))
        return [heading(t("Language")), language, heading(t("Appearance")), theme, heading(t("Service")), url, key, ft.Row([ft.FilledButton(t("Save"), on_click=save), eye], wrap=True)]

    def put(self, name: str, value: str) -> None:
        "Keep a setting, and show it."
        self.keep.set(**{name: value})
        self.dark_wish, self.t = self.keep.setting("theme", "system"), texts(self.keep.setting("language", self.t.language))
        self.build()


class Large(Kept):
    "One image in large: heat map, bars, set; beside each other where there is room."

    def __init__(self, app: App, item: Item):
        super().__init__()
        self.app, self.item, self.t = app, item, app.t
        self.image = images.shown(app.keep.path(item.key).read_bytes())
        self.heat, self.opacity, self.words = b"", 0.0, "" # the map, how strong it is, and what it says
        self.dialog = ft.AlertDialog(semantics_label=item.name, title=ft.Text(item.name, size=16), actions_alignment=ft.MainAxisAlignment.SPACE_BETWEEN, inset_padding=ft.Padding.all(16),
                                     on_dismiss=self.closed)

    async def open(self) -> None:
        "Show it, and look where the answer comes from."
        self.app.large = self
        self.fit()
        self.app.page.show_dialog(self.dialog)
        await self.explain(self.item.answer.get("label"))

    def closed(self, e: Any) -> None:
        "Follow the window no more."
        if self.app.large is self:
            self.app.large = None

    def fit(self) -> None:
        "Lay it out for the window as it is now, with what is known by now."
        t, app = self.t, self.app
        self.item, self.size = app.keep.get(self.item.key) or self.item, app.size
        wide, side, high = self.room()
        below = self.kept("image", None, lambda: self.shown(self.image))
        self.layer = self.kept("layer", self.heat, lambda: self.shown(self.heat or self.image, gapless_playback=True))
        self.layer.opacity = self.opacity
        below.width = self.layer.width = side
        below.height = self.layer.height = high
        photo = spoken(self.item.name, ft.Stack([below, self.layer], width=side, height=high), image=True)
        self.note = ft.Text(self.words, size=13, width=side)
        self.slider = self.kept("slider", None, lambda: ft.Slider(min=0, max=100, divisions=20, label="{value} %", on_change=self.fade))
        self.slider.value, self.slider.disabled, self.slider.width = 100 * self.opacity, not self.heat, side
        strength = ft.MergeSemantics(ft.Column([ft.Text(t("Heat map"), size=13), self.slider], spacing=8, tight=True)) # one node: the slider gets its name
        picture = [photo, strength, self.note]
        more = [ft.Text(app.wording.set_line(self.item.answer), size=13)] if self.item.doubtful else []
        answer = [*app.words(self.item), *more, heading(t("How likely each class is"), 2, 15), *self.bars(), *self.facts()]
        rows = [ft.Row([ft.Column(picture, width=side, tight=True, spacing=8), ft.Column(answer, width=400, spacing=8, tight=True)], spacing=24, tight=True,
                       vertical_alignment=ft.CrossAxisAlignment.START)] if wide else [*picture, *answer]
        self.dialog.content = ft.Column(rows, scroll=ft.ScrollMode.AUTO, width=None if wide else side, spacing=8, tight=True)
        self.dialog.actions = [self.kept("fix", (self.item.label, app.served.classes), lambda: app.corrector(self.item)),
                               self.kept("close", None, lambda: ft.TextButton(t("Close"), on_click=lambda e: app.page.pop_dialog()))]

    def room(self) -> tuple[bool, float, float]: # beside each other; width and height of the image
        "Return how an image fits into the window."
        width, height = self.app.size
        wide = width >= 1000
        side, most = (min(620, width - 560), max(240, height - 330)) if wide else (min(560, width - 90), 10_000)
        high = side * (self.item.height or 3) / (self.item.width or 4)
        return (wide, side * most / high, most) if high > most else (wide, side, high)

    def shown(self, src: bytes, **options: Any) -> ft.Image:
        "Return an image, which is given its size by the window."
        return ft.Image(src=src, fit=ft.BoxFit.FILL, exclude_from_semantics=True, **options)

    def bars(self) -> list[ft.Control]:
        "Return the classes with their probabilities."
        within = self.item.answer.get("prediction_set") or []
        shares = self.item.answer.get("probabilities") or {}
        return [self.kept(("bar", n), (p, n in within), lambda n=n, p=p: self.bar(n, p, n in within)) for n, p in shares.items()]

    def bar(self, name: str, p: float, within: bool) -> ft.Control:
        "Return a class's probability; a click shows what speaks for it."
        t, app = self.t, self.app
        told = f"{app.title(name)}, {t.percent(p)}{', ' + t('in the set') if within else ''}"
        label = ft.Container(ft.Text(app.title(name), color=ft.Colors.ON_PRIMARY if within else ft.Colors.ON_SURFACE), bgcolor=ft.Colors.PRIMARY if within else None,
                             border_radius=99, padding=ft.Padding.symmetric(horizontal=8))
        row = ft.Row([app.dot(app.served[name].colour), ft.Container(ft.Row([label]), width=150),
                      ft.ProgressBar(value=p, color=app.served[name].colour, bgcolor=ft.Colors.OUTLINE_VARIANT, bar_height=10, border_radius=9, expand=True),
                      ft.Text(t.percent(p), width=50, text_align=ft.TextAlign.RIGHT, color=ft.Colors.ON_SURFACE)])
        return ft.TextButton(content=spoken(told, row), on_click=lambda e: app.page.run_task(self.explain, name), height=34,
                             style=ft.ButtonStyle(padding=0, shape=ft.RoundedRectangleBorder(radius=9)))

    def fade(self, e: Any) -> None:
        "Set how strong the heat map is."
        self.opacity = self.layer.opacity = self.slider.value / 100
        self.layer.update()

    async def explain(self, label: str | None) -> None:
        "Fetch a heat map and lay it over the image; diffuse evidence tints nothing until somebody moves the slider."
        try:
            self.note.value = self.t("Looking at what speaks for {name} …", name=self.app.title(label))
            self.note.update()
            png, thirds, name = await asyncio.wrap_future(self.app.session.ask(self.app.session.explain(self.item.key, label)))
            share = images.spread(png)
            self.opacity = 0.0 if share > images.DIFFUSE else self.opacity or 0.6
            self.heat, self.words = png, self.app.wording.where(name, thirds, share)
        except Exception as error:
            self.words = str(self.app.session.problem(error))
        with suppress(Exception): # closed meanwhile
            self.fit()
            self.app.page.update()

    def facts(self) -> list[ft.Control]:
        "Return what else is known."
        t, item, a = self.t, self.item, self.item.answer
        total = (a.get("timing_ms") or {}).get("total")
        known = {t("Model"): a.get("model"), t("Engine"): a.get("engine"), t("Latency"): t.seconds(total / 1e3) if total else None,
                 t("Taken"): item.taken and item.taken.replace("T", " "), t("Place"): item.lat is not None and f"{item.lat:.5f}, {item.lon:.5f}"}
        return [ft.Text(f"{n}: {v}", size=13, color=ft.Colors.ON_SURFACE_VARIANT) for n, v in known.items() if v]


async def main(page: ft.Page) -> None:
    "Begin, for a visitor whom the browser or the device remembers."
    prefs = ft.SharedPreferences()
    visitor = await prefs.get("lados.visitor")
    if not isinstance(visitor, str) or len(visitor) != 32:
        visitor = new_visitor()
        await prefs.set("lados.visitor", visitor)
    keep, wish = Keep(visitor), None
    with suppress(Exception):
        wish = getattr(await page.get_device_info(), "language", None)
    language = reader_language(keep.setting("language"), wish)
    keep.set(language=language)
    keep.release() # what had arrived when the browser was closed
    app = App(page, keep, language)
    page.on_platform_brightness_change = lambda e: app.build()
    page.on_disconnect, page.on_connect, page.on_close = app.left, app.back, app.ended
    await asyncio.to_thread(app.session.looked.wait, 2.0) # so that the first page has what the service says
    app.build()
    page.on_resize = lambda e: app.build() if ((page.width or 1200) >= WIDE) == page.navigation_bar.visible else None
    await app.live()


def start() -> None:
    "Serve it, or run as an application where it was built into one."
    forget_old()
    os.environ.setdefault("FLET_SECRET_KEY", secrets.token_hex(16))
    os.environ.setdefault("FLET_MAX_UPLOAD_SIZE", str(2_000_000_000))
    if os.environ.get("FLET_SERVER_PORT"):
        serve(os.environ.get("FLET_SERVER_IP") or "127.0.0.1", int(os.environ["FLET_SERVER_PORT"]))
    else:
        ft.run(main, upload_dir=UPLOADS)


def serve(host: str, port: int) -> None:
    "Serve the compiled client of flet-web; its pages may ask no other host, whatever the client has in it."
    import uvicorn
    from web import around

    app = ft.run(main, upload_dir=UPLOADS, no_cdn=True, export_asgi_app=True)
    app.middleware("http")(around)
    uvicorn.run(app, host=host, port=port, log_level="warning", ws_max_size=64 << 20)


if __name__ == "__main__":
    start()
