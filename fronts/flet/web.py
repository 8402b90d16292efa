"""What stands around the compiled client where it is served as a page: it asks no other host, takes files that are dropped on it, and has
a name for everything that a screen reader comes to."""

import asyncio
import json
from collections.abc import Awaitable, Callable

from lados_fronts.keep import Keep, keeping_folder
from lados_fronts.texts import LANGUAGES, reader_language, texts
from starlette.requests import Request
from starlette.responses import Response

POLICY = ("default-src 'self'; connect-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' 'wasm-unsafe-eval' blob:; "
          "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; object-src 'none'; base-uri 'self'")
MOST = 2_000_000_000 # bytes of a file
SCRIPT = """
(() => {
  const words = WORDS, veil = document.createElement("div")
  veil.style.cssText = "position: fixed; inset: 12px; z-index: 9; display: none; place-items: center; border: 3px dashed #0b5fa5; border-radius: 16px;"
    + "background: rgb(231 238 245 / 94%); color: #123a5b; font: 600 22px system-ui; pointer-events: none"
  veil.setAttribute("aria-hidden", "true")
  veil.textContent = words[(navigator.language || "").slice(0, 2)] || words.en
  addEventListener("DOMContentLoaded", () => document.body.append(veil))
  let away
  const show = on => { clearTimeout(away); veil.style.display = on ? "grid" : "none"; if (on) away = setTimeout(show, 400, false) }
  const carries = e => e.dataTransfer && [...e.dataTransfer.types].includes("Files")
  addEventListener("dragover", e => { if (carries(e)) { e.preventDefault(); show(true) } })

  const given = (reader) => new Promise((ok, no) => reader.readEntries(ok, no))
  async function* files(entry, path) {
    if (entry instanceof File) yield [entry.name, entry]
    else if (entry.isFile) yield [path + entry.name, await new Promise((ok, no) => entry.file(ok, no))]
    else for (let reader = entry.createReader(), some; (some = await given(reader)).length;)
      for (const e of some) yield* files(e, `${path}${entry.name}/`)
  }

  addEventListener("drop", async e => {
    if (!carries(e)) return
    e.preventDefault()
    show(false)
    const dropped = [...e.dataTransfer.items].filter(i => i.kind === "file").map(i => i.webkitGetAsEntry?.() || i.getAsFile())
    const visitor = JSON.parse(localStorage.getItem("flutter.lados.visitor"))
    const send = (name, body) => fetch("drop?" + new URLSearchParams({ visitor, name }), { method: "POST", body })
    for (const entry of dropped) for await (const [name, file] of files(entry, "")) await send(name, file)
    await send("", "") // all of them are there
  })

  // Flutter gives a dialog and the input of a slider no name, though parts of them, or what they are part of, have one
  const first = (node) => node.querySelector("[aria-label]")?.getAttribute("aria-label") || node.textContent.trim()
  const name = (what, of) => {
    for (const node of document.querySelectorAll(what)) if (!node.hasAttribute("aria-label") && of(node)) node.setAttribute("aria-label", of(node))
  }
  new MutationObserver(() => {
    name("[role=alertdialog], [role=dialog]", first)
    name("input[type=range]", node => node.closest("[aria-label]")?.getAttribute("aria-label").split("\\n")[0])
  }).observe(document, { subtree: true, childList: true, attributeFilter: ["role", "aria-label"] })
})()
"""


async def around(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    "Answer what the client does not know of, and put the policy on everything."
    path = request.url.path
    if path.endswith("/drop") and request.method == "POST":
        return await dropped(request)
    if path.endswith("/drop.js"):
        words = {n: texts(n)("Drop images here") for n in LANGUAGES}
        answer = Response(SCRIPT.replace("WORDS", json.dumps(words)), media_type="text/javascript")
    else:
        answer = await call_next(request)
        if answer.headers.get("content-type", "").startswith("text/html"):
            answer = await with_script(request, answer)
    answer.headers["Content-Security-Policy"] = POLICY
    return answer


async def with_script(request: Request, answer: Response) -> Response:
    "Return the client's page with the script, in the reader's language."
    page = b"".join([part async for part in answer.body_iterator])
    language = reader_language(*(w.split(";")[0].strip() for w in request.headers.get("accept-language", "").split(",")))
    page = page.replace(b"<html>", f'<html lang="{language}">'.encode(), 1).replace(b"</head>", b'  <script src="drop.js"></script>\n</head>', 1)
    kept = {n: v for n, v in answer.headers.items() if n not in ("content-length", "etag", "last-modified")}
    return Response(page, answer.status_code, kept)


async def dropped(request: Request) -> Response:
    "Keep a file for a visitor who is here; a name of nothing says that all of them have come."
    visitor, name = request.query_params.get("visitor", ""), request.query_params.get("name", "")
    if len(visitor) != 32 or not visitor.isalnum() or not (keeping_folder() / visitor).is_dir():
        return Response(status_code=403)
    if int(request.headers.get("content-length") or 0) > MOST:
        return Response(status_code=413)
    keep = Keep(visitor)
    if name:
        await asyncio.to_thread(keep.take, name, await request.body(), texts(keep.setting("language", "en")))
    else:
        keep.release()
    return Response(status_code=204)
