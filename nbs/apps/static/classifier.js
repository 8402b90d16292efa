// The classifier's page: what one sees. What it does not do itself it asks of the kernel by messages (lados/ui/session.py).
// Texts from outside (names of files, messages) only ever become text nodes.

const WINDOW = 4 // pieces of a file that may be on their way unacknowledged
const SILENCE_MS = 30_000 // after which the connection counts as lost
const LOGO = "M16 5c4.6 5.7 7.4 9 7.4 12.8a7.4 7.4 0 0 1-14.8 0C8.6 14 11.4 10.7 16 5z"
const WAVE = "M4 27c2-1.8 4-1.8 6 0s4 1.8 6 0 4-1.8 6 0 4 1.8 6 0"

// --- small tools

function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag)
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value)
    else if (name === "style") for (const [k, v] of Object.entries(value)) node.style.setProperty(k, v)
    else if (value === true) node.setAttribute(name, "")
    else if (value !== false && value != null) node.setAttribute(name, value)
  }
  node.append(...children.flat().filter((c) => c != null && c !== false))
  return node
}

function svg(size, box, ...paths) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", "svg")
  for (const [k, v] of Object.entries({ width: size, height: size, viewBox: box, "aria-hidden": "true" })) node.setAttribute(k, v)
  for (const attributes of paths) {
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path")
    for (const [k, v] of Object.entries(attributes)) path.setAttribute(k, v)
    node.append(path)
  }
  return node
}

const line = { fill: "none", stroke: "currentColor", "stroke-width": 1.8, "stroke-linecap": "round", "stroke-linejoin": "round" }
const ICONS = {
  upload: "M12 16V5m0 0L7.5 9.5M12 5l4.5 4.5M4 16v2.5A1.5 1.5 0 0 0 5.5 20h13a1.5 1.5 0 0 0 1.5-1.5V16",
  download: "M12 4v11m0 0l4.5-4.5M12 15l-4.5-4.5M4 16v2.5A1.5 1.5 0 0 0 5.5 20h13a1.5 1.5 0 0 0 1.5-1.5V16",
  flag: "M6 21V4m0 1h11l-2.5 4L17 13H6", close: "M6 6l12 12M18 6L6 18", left: "M14.5 5l-7 7 7 7", right: "M9.5 5l7 7-7 7",
  check: "M5 12.5l4.5 4.5L19 7.5", pen: "M5 19l1-4L16 5l3 3L9 18l-4 1z",
}
const icon = (name, size = 18) => svg(size, "0 0 24 24", { d: ICONS[name], ...line })

const percent = (p) => (p >= 0.995 ? "> 99 %" : p > 0 && p < 0.005 ? "< 1 %" : `${Math.round(100 * p)} %`)
const count = (n, one, many = `${one}s`) => `${n} ${n === 1 ? one : many}`
const megabytes = (bytes) => `${+(bytes / 1e6).toFixed(1)} MB`
const spoken = (text) => text.split("`").map((part, i) => (i % 2 ? h("code", {}, part) : part)) // `code` in messages
const sentence = (text) => (text ? text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".") : "")
const blobUrl = (buffer, type) => URL.createObjectURL(new Blob([buffer], { type }))

// Files of a drop, those in dropped folders too. Entries must be taken before the event is over.
async function droppedFiles(transfer, suffixes) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean)
  if (!entries.some((e) => e.isDirectory)) return [...transfer.files].map((file) => ({ file, name: file.name }))
  return (await Promise.all(entries.map((e) => filesBelow(e, false, suffixes)))).flat()
}

const isImage = (name, suffixes) => !name.startsWith(".") && suffixes.some((s) => name.toLowerCase().endsWith(s))

async function filesBelow(entry, inFolder, suffixes) { // of a folder only what is named as an image or a zip; the rest has no `file`
  if (entry.isFile) {
    if (inFolder && !isImage(entry.name, suffixes)) return [{ name: entry.fullPath.replace(/^\//, "") }]
    const file = await new Promise((good, bad) => entry.file(good, bad))
    return [{ file, name: entry.fullPath.replace(/^\//, "") }]
  }
  const reader = entry.createReader(), found = []
  for (;;) { // a reader hands out a hundred at a time
    const some = await new Promise((good, bad) => reader.readEntries(good, bad))
    if (!some.length) break
    found.push(...some)
  }
  return (await Promise.all(found.map((e) => filesBelow(e, true, suffixes)))).flat()
}

// Cameras make files that are larger than the service takes. A JPEG is made smaller here, and upright, until it fits; 224 or 448 pixels
// are all that a model looks at, so nothing that an answer rests on is lost. What is no JPEG is left to the service to refuse.
const SIDES = [6000, 4500, 3400, 2600, 2000]

async function fitting(file, limit) {
  const jpeg = file.size > limit && /^\xff\xd8/.test(String.fromCharCode(...new Uint8Array(await file.slice(0, 2).arrayBuffer())))
  if (!jpeg) return file
  const bitmap = await createImageBitmap(file).catch(() => null) // upright: the browser heeds EXIF
  for (const side of bitmap ? SIDES : []) {
    const scale = Math.min(1, side / Math.max(bitmap.width, bitmap.height)), canvas = document.createElement("canvas")
    Object.assign(canvas, { width: Math.round(bitmap.width * scale), height: Math.round(bitmap.height * scale) })
    canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height)
    const blob = await new Promise((good) => canvas.toBlob(good, "image/jpeg", 0.92))
    if (blob && blob.size <= limit) {
      bitmap.close()
      return blob
    }
  }
  bitmap?.close()
  return file
}

// The share of an image that holds half of a heat map's warmth: 0.5 where nothing stands out, and small where a place does.
async function spread(buffer) {
  const bitmap = await createImageBitmap(new Blob([buffer], { type: "image/png" })), side = 64, canvas = document.createElement("canvas")
  Object.assign(canvas, { width: side, height: side })
  const pen = canvas.getContext("2d", { willReadFrequently: true })
  pen.drawImage(bitmap, 0, 0, side, side)
  const warmth = [...pen.getImageData(0, 0, side, side).data].filter((_, i) => i % 4 === 3).map((a) => (a / 255) ** (1 / 0.7)).sort((a, b) => b - a)
  const half = warmth.reduce((a, b) => a + b, 0) / 2
  let sum = 0, n = 0
  while (n < warmth.length && sum < half) sum += warmth[n++]
  return n / warmth.length
}
const DIFFUSE = 0.33 // above this share no place stands out

// --- sending files: one after the other, in acknowledged pieces

class Sender {
  constructor(model, onProgress, onShrunk) {
    Object.assign(this, { model, onProgress, onShrunk, queue: [], acks: new Map(), running: false })
  }

  add(items) {
    this.queue.push(...items)
    if (!this.running) this.run()
  }

  async run() {
    this.running = true
    while (this.queue.length) {
      const item = this.queue.shift()
      try {
        await this.send(item)
      } catch (error) { // the file was deleted or changed meanwhile
        this.onProgress(item, null)
      }
      this.acks.delete(item.id)
    }
    this.running = false
  }

  async send(item) {
    const { id, name } = item, step = this.model.get("limits").chunk
    const file = await fitting(item.file, this.model.get("limits").image)
    if (file !== item.file) this.onShrunk(item, file.size)
    const ack = { got: 0, wanted: true, wake: () => {} }
    this.acks.set(id, ack)
    const until = (n) => new Promise((good) => { ack.wake = () => (ack.got >= n || !ack.wanted) && good(); ack.wake() })
    this.model.send({ kind: "begin", id, name, size: file.size })
    await until(1)
    for (let offset = 0, sent = 1; ack.wanted && (offset < file.size || sent === 1); offset += step, sent++) {
      const piece = await file.slice(offset, offset + step).arrayBuffer()
      if (!ack.wanted) return
      this.model.send({ kind: "piece", id, offset, last: offset + step >= file.size }, undefined, [piece])
      this.onProgress(item, Math.min(1, (offset + step) / (file.size || 1)))
      await until(sent + 1 - WINDOW + 1)
    }
  }

  acknowledge({ id, wanted }) {
    const ack = this.acks.get(id)
    if (!ack) return
    ack.got += 1
    ack.wanted = ack.wanted && wanted
    ack.wake()
  }

  stop() {
    this.queue = []
    for (const ack of this.acks.values()) {
      ack.wanted = false
      ack.wake()
    }
  }
}

// The name of this tab, which a reload keeps: the page's images come back under it. Notebooks have several pages in a tab, and get none.
function tabName() {
  if (!document.body.dataset.voila) return ""
  try {
    const known = sessionStorage.getItem("lados-tab")
    const name = /^[0-9a-f]{32}$/.test(known) ? known : [...crypto.getRandomValues(new Uint8Array(16))].map((b) => b.toString(16).padStart(2, "0")).join("")
    sessionStorage.setItem("lados-tab", name)
    return name
  } catch { return "" } // a browser that keeps nothing
}

// --- the page

class Page {
  constructor(model, el) {
    this.model = model
    this.takeClasses()
    this.cards = new Map() // id -> what the kernel told, plus `url` of the thumbnail, `node`, `sent`
    this.filter = "all"
    this.stamp = Date.now().toString(36)
    this.serial = 0
    this.sender = new Sender(model, (item, share) => this.sent(item, share), (item, size) => this.shrunk.set(item.id, [item.file.size, size]))
    this.shrunk = new Map() // id -> bytes before and after
    this.outlook = "" // what will come of labels
    this.viewer = new Viewer(this)
    this.build(el)
    this.listen()
    this.update()
  }

  // known once the model is loaded
  takeClasses() {
    this.classes = this.model.get("classes")
    this.byName = new Map(this.classes.map((c) => [c.name, c]))
  }

  build(el) {
    this.input = h("input", { type: "file", multiple: true, hidden: true, accept: this.model.get("limits").suffixes.join(","), onchange: () => this.picked(), "data-test": "files" })
    this.folder = h("input", { type: "file", multiple: true, hidden: true, webkitdirectory: true, onchange: () => this.pickedFolder(), "data-test": "folder" })
    this.status = h("div", { class: "status", role: "status" })
    this.lost = h("div", { class: "lost", role: "alert", hidden: true },
      "The connection to this page's kernel is lost. Reload the page: images, answers and corrections are kept.")
    this.hold = h("div", { class: "hold" })
    this.guide = this.buildGuide()
    this.progress = h("div", { class: "progress", hidden: true })
    this.filters = h("div", { class: "filters", role: "group", "aria-label": "Show only" })
    this.tools = h("div", { class: "tools" },
      h("button", { class: "button", onclick: () => this.model.send({ kind: "download" }) }, icon("download"), "Download CSV"),
      h("button", { class: "button quiet", onclick: () => this.clear() }, "Clear"))
    this.summary = h("p", { class: "summary", "aria-live": "polite" })
    this.bar = h("div", { class: "bar" }, this.summary, this.tools)
    this.found = h("div", { class: "found", hidden: true }, this.filters, this.bar)
    this.grid = h("div", { class: "grid", role: "list", "aria-label": "Images, doubtful ones first" })
    this.notices = h("div", { class: "notices", "aria-live": "polite" })
    this.root = h("div", { class: "lados" }, this.buildHeader(), this.lost,
      h("main", {}, this.hold, this.guide, this.progress, this.found, this.grid),
      this.input, this.folder, this.viewer.node, this.notices)
    el.replaceChildren(this.root)
  }

  buildHeader() {
    const logo = svg(40, "0 0 32 32", { d: "M8 0h16a8 8 0 0 1 8 8v16a8 8 0 0 1-8 8H8a8 8 0 0 1-8-8V8a8 8 0 0 1 8-8z", fill: "#0b3d5c" },
      { d: LOGO, fill: "#fff" }, { d: WAVE, fill: "none", stroke: "#56b4e9", "stroke-width": 1.8, "stroke-linecap": "round" })
    return h("header", {}, h("div", { class: "brand" }, logo,
      h("div", {}, h("h1", {}, "What is on the water?"), h("p", {}, "Aerial images of the sea, classified by lados"))), this.status)
  }

  buildGuide() {
    const legend = this.classes.map((c) => h("li", {}, this.dot(c.name), h("span", {}, h("b", {}, c.title), h("small", {}, c.hint))))
    const steps = [["Drop a flight's images", "One or many, a folder or a zip. They stay on the machine that serves this page."],
      ["Doubtful ones come first", "Probabilities are calibrated, and beside the class stands the set of classes that hold the truth " +
        "9 times in 10. More than one in it: ask a human."],
      ["Put wrong labels right, confirm right ones", "One click keeps the image and its label for trainings that learn from them."]]
    return h("section", { class: "guide", "aria-label": "How it works" },
      h("ol", { class: "steps" }, steps.map(([title, text]) => h("li", {}, h("b", {}, title), h("span", {}, text)))),
      legend.length ? h("h2", {}, "The classes") : null, h("ul", { class: "legend" }, legend))
  }

  dot(name) {
    return h("i", { class: "dot", style: { "--c": this.byName.get(name)?.colour ?? "#fff" } })
  }

  title(name) {
    return this.byName.get(name)?.title ?? name
  }

  listen() {
    const { model, root } = this
    this.heard = Date.now()
    this.onMessage = (message, buffers) => {
      this.heard = Date.now()
      this.lost.hidden = true
      this[`got_${message.kind}`]?.(message, buffers)
    }
    this.onAbout = () => this.update()
    this.onClasses = () => {
      this.takeClasses()
      const guide = this.buildGuide()
      guide.hidden = this.guide.hidden
      this.guide.replaceWith(guide)
      this.guide = guide
      this.filterKey = ""
      for (const card of this.cards.values()) if (card.node) card.node.dataset.key = ""
      this.update()
    }
    model.on("msg:custom", this.onMessage)
    model.on("change:about", this.onAbout)
    model.on("change:classes", this.onClasses)
    model.send({ kind: "hello", tab: tabName() })
    this.beat = setInterval(() => this.listenForSilence(), 5_000)
    let inside = 0
    const onDrag = (change) => (event) => {
      event.preventDefault()
      inside = Math.max(0, change ? inside + change : inside)
      root.classList.toggle("dragging", inside > 0)
    }
    root.addEventListener("dragenter", onDrag(1))
    root.addEventListener("dragleave", onDrag(-1))
    root.addEventListener("dragover", onDrag(0))
    root.addEventListener("drop", async (event) => {
      event.preventDefault()
      inside = 0
      root.classList.remove("dragging")
      this.add(await droppedFiles(event.dataTransfer, this.model.get("limits").suffixes))
    })
  }

  listenForSilence() {
    const silent = Date.now() - this.heard
    if (silent > SILENCE_MS) this.lost.hidden = false
    if (silent > 5_000) this.model.send({ kind: "ping" })
  }

  leave() {
    clearInterval(this.beat)
    this.model.off("msg:custom", this.onMessage)
    this.model.off("change:about", this.onAbout)
    this.model.off("change:classes", this.onClasses)
    for (const card of this.cards.values()) URL.revokeObjectURL(card.url)
  }

  // --- files

  picked() {
    this.add([...this.input.files].map((file) => ({ file, name: file.webkitRelativePath || file.name })))
    this.input.value = ""
  }

  pickedFolder() {
    const { suffixes } = this.model.get("limits")
    this.add([...this.folder.files].map((file) => (isImage(file.name, suffixes) ? { file, name: file.webkitRelativePath } : { name: file.webkitRelativePath })))
    this.folder.value = ""
  }

  add(found) {
    const files = found.filter((f) => f.file), aside = found.filter((f) => !f.file).map((f) => f.name)
    if (aside.length)
      this.notice(`Left aside, since they are no images: ${aside.slice(0, 6).join(", ")}${aside.length > 6 ? ` and ${aside.length - 6} more` : ""}`)
    const room = Math.max(0, this.model.get("limits").cards - this.cards.size)
    if (!files.length) this.notice("There were no images in what was dropped", "bad")
    if (files.length > room)
      this.notice(`Only ${room} of ${files.length} files were taken: the page holds ${this.model.get("limits").cards}. ` +
        "Download the results, clear the page, and go on.", "bad")
    const items = files.slice(0, room).map(({ file, name }) => ({ id: `${this.stamp}-${this.serial++}`, file, name }))
    for (const { id, name } of items) this.cards.set(id, { id, name, state: "sending", sent: 0 })
    this.sender.add(items)
    this.update()
  }

  sent(item, share) {
    const card = this.cards.get(item.id)
    if (!card || card.state !== "sending") return
    card.sent = share ?? 0
    if (share === null) Object.assign(card, { state: "failed", error: "the browser could not read it", remedy: "drop it again" })
    this.update()
  }

  // --- what the kernel tells

  got_ack(message) {
    this.sender.acknowledge(message)
  }

  got_card(message, buffers) {
    const old = this.cards.get(message.id)
    const url = buffers?.length ? blobUrl(buffers[0], "image/jpeg") : old?.url
    if (old?.url && old.url !== url) URL.revokeObjectURL(old.url)
    this.cards.set(message.id, { ...message, url, node: old?.node })
    if (this.viewer.id === message.id) this.viewer.draw()
    this.update()
  }

  got_gone({ ids }) {
    for (const id of ids) {
      const card = this.cards.get(id)
      card?.node?.remove()
      if (card?.url) URL.revokeObjectURL(card.url)
      this.cards.delete(id)
    }
    if (!this.cards.has(this.viewer.id)) this.viewer.close()
    this.update()
  }

  got_large(message, buffers) {
    this.viewer.large(message.id, buffers[0])
  }

  got_heat(message, buffers) {
    this.viewer.heat(message, buffers?.[0])
  }

  got_table({ name }, buffers) {
    const url = blobUrl(buffers[0], "text/csv;charset=utf-8")
    h("a", { href: url, download: name }).click()
    setTimeout(() => URL.revokeObjectURL(url), 10_000)
  }

  got_outlook({ text }) {
    this.outlook = text
    this.viewer.draw()
  }

  got_notice({ text, tone }) {
    this.notice(text, tone)
  }

  notice(text, tone = "plain") {
    const close = () => node.remove()
    const node = h("div", { class: `notice ${tone}`, role: tone === "bad" ? "alert" : "status" }, h("span", {}, spoken(sentence(text))),
      h("button", { class: "bare", "aria-label": "Dismiss", onclick: close }, icon("close", 16)))
    this.notices.append(node)
    while (this.notices.children.length > 4) this.notices.firstChild.remove()
    setTimeout(close, tone === "bad" ? 20_000 : 8_000)
  }

  // --- what the user asks

  correct(card, label) {
    this.model.send({ kind: "correct", id: card.id, label })
  }

  clear() {
    this.stop("clear")
    this.filter = "all"
  }

  stop(kind = "stop") {
    this.sender.stop()
    this.got_gone({ ids: [...this.cards.values()].filter((c) => c.state === "sending" || kind === "clear").map((c) => c.id) })
    this.model.send({ kind })
  }

  // --- drawing: at most once a frame, however many messages come

  update() {
    if (this.planned) return
    this.planned = requestAnimationFrame(() => {
      this.planned = 0
      this.draw()
    })
  }

  label(card) {
    return card.label ?? card.answer?.label
  }

  matches(card, filter = this.filter) {
    if (filter === "all") return true
    if (filter === "human") return card.state === "done" && card.answer.abstain && !card.label
    if (filter === "corrected") return Boolean(card.label) && card.label !== card.answer?.label
    if (filter === "confirmed") return Boolean(card.label) && card.label === card.answer?.label
    if (filter === "failed") return card.state === "failed"
    return card.state === "done" && this.label(card) === filter
  }

  // doubtful first, the least sure of them leading; then the others in the same way; then what has no answer
  sorted() {
    const rank = (c) => (c.state === "done" ? (c.answer.abstain ? 0 : 1) : c.state === "failed" ? 3 : 2)
    const cards = [...this.cards.values()]
    const place = new Map(cards.map((c, i) => [c, i]))
    return cards.sort((a, b) => rank(a) - rank(b) || (a.answer?.confidence ?? 0) - (b.answer?.confidence ?? 0) || place.get(a) - place.get(b))
  }

  draw() {
    const cards = this.sorted(), about = this.model.get("about")
    this.shown = cards.filter((c) => this.matches(c))
    if (!this.shown.length && cards.length && this.filter !== "all" && !cards.some((c) => this.matches(c))) {
      this.filter = "all"
      this.shown = cards
    }
    this.drawStatus(about)
    this.drawHold(about, cards.length > 0)
    this.guide.hidden = cards.length > 0 || about.state === "failed"
    this.found.hidden = !cards.length
    this.drawProgress(cards)
    this.drawFilters(cards)
    this.drawGrid()
  }

  drawStatus(about) {
    const told = { loading: [h("i", { class: "spinner" }), "Loading the model …"], failed: [h("i", { class: "lamp bad" }), "No model"] }
    const ready = () => [h("i", { class: "lamp" }), h("span", { title: "The training run that made the model" }, h("b", {}, about.model)),
      h("span", { class: "pill", title: "What computes the answers" }, about.engine || "engine unknown"), h("span", { class: "place" }, about.place)]
    this.status.replaceChildren(h("div", { class: "model" }, told[about.state] ?? ready()),
      about.caution ? h("p", { class: "caution" }, sentence(about.caution)) : h("small", {}, "Probabilities are calibrated; sets hold the truth 9 times in 10"))
  }

  drawHold(about, slim) {
    const state = about.state === "failed" ? "failed" : slim ? "slim" : "wide"
    const key = state + (about.problem ?? "")
    if (this.held === key) return // rebuilding it would take the keyboard's focus away
    this.held = key
    this.hold.replaceChildren(...(state === "failed" ? [this.problem(about)] : [this.dropzone(slim), h("button", { class: "button quiet folder",
      onclick: () => this.folder.click() }, "Choose a folder")]))
  }

  dropzone(slim) {
    const { image, archive, cards } = this.model.get("limits")
    return h("button", { class: `drop ${slim ? "slim" : ""}`, "data-test": "drop", onclick: () => this.input.click() }, icon("upload", slim ? 22 : 40),
      h("span", { class: "words" }, h("b", {}, slim ? "Drop more images" : "Drop images here"),
        h("span", {}, slim ? "or choose files" : "or choose files: one or many, or a zip")),
      h("small", {}, `up to ${megabytes(image)} an image (larger JPEGs are made smaller here), ${megabytes(archive)} a zip, ${cards} images at once`))
  }

  problem(about) {
    return h("section", { class: "problem", role: "alert" }, h("h2", {}, "There is no model to ask yet"),
      h("p", {}, spoken(sentence(about.problem))), h("p", { class: "remedy" }, spoken(sentence(about.remedy))),
      h("button", { class: "button primary", onclick: () => this.model.send({ kind: "hello" }) }, "Try again"))
  }

  drawProgress(cards) {
    const settled = cards.filter((c) => c.state === "done" || c.state === "failed").length
    const busy = settled < cards.length
    this.progress.hidden = !busy
    document.title = busy ? `${settled} of ${cards.length} – lados` : "lados – what is on the water?"
    if (busy) {
      const share = cards.reduce((sum, c) => sum + (c.state === "sending" ? 0.3 * c.sent : c.state === "waiting" ? 0.5 : 1), 0) / cards.length
      this.meter ??= h("progress", { max: 1, "aria-label": "Progress" })
      this.meter.value = share
      this.told ??= h("span", {})
      this.told.textContent = `Classified ${settled} of ${cards.length}`
      if (!this.progress.firstChild)
        this.progress.append(this.told, this.meter, h("button", { class: "button quiet", onclick: () => this.stop() }, "Stop"))
    }
    const doubtful = cards.filter((c) => this.matches(c, "human")).length, failed = cards.filter((c) => c.state === "failed").length
    const parts = [count(settled - failed, "image") + " classified", doubtful && `${count(doubtful, "needs", "need")} a human`,
      failed && `${failed} could not be read`].filter(Boolean)
    const text = cards.length && !busy ? `${parts.join(", ")}.${doubtful ? " Doubtful ones come first." : ""}` : ""
    if (this.summary.textContent !== text) this.summary.textContent = text
  }

  drawFilters(cards) {
    const number = (name) => cards.filter((c) => this.matches(c, name)).length
    const chips = [["all", "All"], ["human", "Ask a human"], ...this.classes.map((c) => [c.name, c.title]), ["corrected", "Corrected"], ["confirmed", "Confirmed"], ["failed", "Not read"]]
    const shown = chips.map(([name, title]) => ({ name, title, n: number(name) }))
    const key = JSON.stringify([shown, this.filter])
    if (this.filterKey === key) return
    this.filterKey = key
    const focused = this.filters.contains(document.activeElement) ? document.activeElement.dataset.filter : null
    this.filters.replaceChildren(...shown.filter(({ name, n }) => n || this.byName.has(name) || name === "all").map(({ name, title, n }) =>
      h("button", { class: `chip ${name}`, "data-filter": name, "aria-pressed": String(this.filter === name), disabled: !n && name !== "all",
        onclick: () => { this.filter = name; this.update() } },
      this.byName.has(name) ? this.dot(name) : name === "human" ? icon("flag", 15) : null, title, h("b", {}, n))))
    if (focused) this.filters.querySelector(`[data-filter="${focused}"]`)?.focus()
  }

  drawGrid() {
    const wanted = this.shown.map((card) => this.node(card))
    const keep = new Set(wanted)
    for (const node of [...this.grid.children]) if (!keep.has(node)) node.remove()
    wanted.forEach((node, i) => { if (this.grid.children[i] !== node) this.grid.insertBefore(node, this.grid.children[i] ?? null) })
  }

  // a card's element is made anew only when what it shows has changed
  node(card) {
    const key = JSON.stringify([card.state, card.error, card.label, card.answer, card.url, card.also, card.state === "sending" && Math.round(20 * card.sent)])
    if (card.node?.dataset.key === key) return card.node
    const fresh = h("article", { class: `card ${card.state}`, role: "listitem", "data-name": card.name }, this.content(card))
    fresh.dataset.key = key
    const focused = card.node?.contains(document.activeElement) ? document.activeElement.dataset.act : null
    card.node?.replaceWith(fresh)
    card.node = fresh
    if (focused) fresh.querySelector(`[data-act="${focused}"]`)?.focus()
    return fresh
  }

  content(card) {
    const also = card.also ?? [] // names of files with the same bytes, which have rows of their own in the table
    const name = h("p", { class: "name", title: [card.name, ...also].join(", ") }, also.length ? `${card.name} (${also.length + 1} files)` : card.name)
    if (card.state === "failed")
      return [card.url ? h("div", { class: "image" }, h("img", { src: card.url, alt: "" })) : h("div", { class: "image none" }, icon("close", 30)),
        h("div", { class: "body" }, h("p", { class: "error" }, sentence(card.error)), card.remedy && h("p", { class: "remedy" }, spoken(sentence(card.remedy))),
          card.again && h("button", { class: "button", onclick: () => this.model.send({ kind: "again" }) }, "Try again"), name)]
    if (card.state !== "done")
      return [card.url ? h("div", { class: "image" }, h("img", { src: card.url, alt: "" })) : h("div", { class: "image shimmer" }),
        h("div", { class: "body" }, h("p", { class: "wait" }, card.state !== "sending" || card.sent === 1 ? "Waiting" : card.sent ? `Sending, ${percent(card.sent)}` : "To be sent"), name)]
    return this.answered(card, name)
  }

  answered(card, name) {
    const { answer } = card, label = this.label(card), options = answer.prediction_set ?? []
    const doubt = answer.abstain && !card.label
    const spoke = `Open ${card.name}: ${this.title(label)}, ${card.label ? "by you" : percent(answer.confidence)}${doubt ? `, ${answer.reason}` : ""}`
    return [
      h("button", { class: "image", "aria-label": spoke, "data-act": "open", onclick: () => this.viewer.open(card.id) },
        h("img", { src: card.url, alt: "", loading: "lazy" }), doubt && h("span", { class: "doubt" }, icon("flag", 15), "Ask a human")),
      h("div", { class: "body" },
        h("p", { class: "verdict" }, this.dot(label), h("b", {}, this.title(label)),
          card.label ? h("span", { class: "mark" }, icon("check", 15), card.label === answer.label ? "confirmed" : "corrected") : h("span", { class: "sure" }, percent(answer.confidence))),
        this.stack(answer),
        h("p", { class: doubt ? "reason" : "set" }, doubt ? sentence(answer.reason)
          : options.length ? `Set: ${options.map((o) => this.title(o)).join(", ")}` : `No set: ${answer.no_set ?? "the model knows no thresholds"}`),
        h("div", { class: "foot" }, name, this.corrector(card)))]
  }

  stack(answer) {
    const parts = this.classes.map((c) => h("i", { style: { "--c": c.colour, "--w": answer.probabilities[c.name] ?? 0 } }))
    const told = this.classes.map((c) => `${c.title} ${percent(answer.probabilities[c.name] ?? 0)}`).join(", ")
    return h("div", { class: "stack", role: "img", "aria-label": `Probabilities: ${told}`, title: told }, parts)
  }

  corrector(card) {
    const menu = h("details", { class: "corrector" }, h("summary", { "data-act": "correct" }, icon("pen", 15), card.label ? "Change" : "Fix label"),
      h("div", { class: "menu", role: "group", "aria-label": "What it really is" }, h("b", {}, "What is it really?"), this.labels(card)))
    menu.addEventListener("toggle", () => {
      if (!menu.open) return
      for (const other of this.grid.querySelectorAll("details[open]")) if (other !== menu) other.open = false
    })
    menu.addEventListener("keydown", (event) => event.key === "Escape" && (menu.open = false))
    return menu
  }

  labels(card) {
    return [...this.classes.map((c, i) => h("button", { class: "chip", "data-label": c.name, "aria-pressed": String(card.label === c.name),
      title: `${c.hint} (key ${i + 1})`, onclick: () => this.correct(card, c.name) }, this.dot(c.name), c.title)),
    card.label && h("button", { class: "chip undo", "data-label": "undo", onclick: () => this.correct(card, null) }, "Undo")]
  }
}

// --- one image in large, with where its answer comes from

class Viewer {
  constructor(page) {
    this.page = page
    this.opacity = 60
    this.node = h("dialog", { class: "viewer", "aria-label": "Image", onclose: () => this.closed(), onkeydown: (e) => this.key(e),
      onclick: (e) => e.target === this.node && this.close() })
  }

  get card() {
    return this.page.cards.get(this.id)
  }

  open(id) {
    Object.assign(this, { id, map: null, mapFor: null, image: null, problem: null, shown: false })
    this.draw()
    if (!this.node.open) this.node.showModal()
    this.page.model.send({ kind: "look", id })
  }

  close() {
    if (this.node.open) this.node.close()
  }

  closed() {
    const { id } = this
    this.release()
    this.id = null
    this.page.cards.get(id)?.node?.querySelector('[data-act="open"]')?.focus()
  }

  release() {
    for (const url of [this.image, this.map?.url]) if (url) URL.revokeObjectURL(url)
    Object.assign(this, { image: null, map: null })
  }

  step(by) {
    const openable = this.page.shown.filter((c) => c.state === "done")
    const next = openable[openable.findIndex((c) => c.id === this.id) + by]
    if (!next) return
    this.release()
    this.open(next.id)
  }

  key(event) {
    if (event.target.type === "range") return
    const label = this.page.classes[Number(event.key) - 1]
    if (event.key === "ArrowLeft") this.step(-1)
    else if (event.key === "ArrowRight") this.step(1)
    else if (label && !event.ctrlKey && !event.metaKey && !event.altKey) this.page.correct(this.card, label.name)
  }

  large(id, buffer) {
    if (id !== this.id) return
    this.image = blobUrl(buffer, "image/jpeg")
    this.draw()
  }

  async heat(message, buffer) {
    const share = buffer ? await spread(buffer) : 0
    if (message.id !== this.id) return
    if (this.map) URL.revokeObjectURL(this.map.url)
    this.problem = message.problem ?? null
    this.map = buffer ? { url: blobUrl(buffer, "image/png"), label: message.label, thirds: message.thirds, share, diffuse: share > DIFFUSE } : null
    this.draw()
  }

  explain(label) {
    this.mapFor = label
    this.page.model.send({ kind: "look", id: this.id, label, large: false })
    this.draw()
  }

  draw() {
    const { card, page } = this
    if (!card || card.state !== "done") return
    const focused = this.node.contains(document.activeElement) ? document.activeElement.dataset.act : null
    const openable = page.shown?.filter((c) => c.state === "done") ?? []
    const place = openable.findIndex((c) => c.id === card.id)
    const arrow = (by, name, words) => h("button", { class: "bare", "data-act": name, "aria-label": words, disabled: !openable[place + by],
      onclick: () => this.step(by) }, icon(name, 22))
    this.node.replaceChildren(
      h("header", {}, h("h2", { title: card.name }, card.name), place >= 0 && h("span", { class: "place" }, `${place + 1} of ${openable.length}`),
        arrow(-1, "left", "Previous image"), arrow(1, "right", "Next image"),
        h("button", { class: "bare", "data-act": "close", "aria-label": "Close", onclick: () => this.close() }, icon("close", 22))),
      h("div", { class: "halves" }, this.drawImage(card), this.drawAnswer(card)))
    if (focused) this.node.querySelector(`[data-act="${focused}"]`)?.focus()
  }

  drawImage(card) {
    const heat = this.map && h("img", { class: "heat", src: this.map.url, alt: "", style: { opacity: this.map.diffuse && !this.shown ? 0 : this.opacity / 100 } })
    const slide = (event) => {
      this.opacity = Number(event.target.value)
      this.shown = true // whoever moves the slider wants to see it, diffuse or not
      heat?.style.setProperty("opacity", this.opacity / 100)
    }
    const slider = h("input", { type: "range", min: 0, max: 100, "data-act": "slider", id: "lados-opacity", disabled: !this.map, oninput: slide })
    slider.value = this.map?.diffuse && !this.shown ? 0 : this.opacity
    const waiting = !this.map && !this.problem
    const layers = h("div", { class: "layers" }, h("img", { class: "photo", src: this.image ?? card.url, alt: card.name }), heat)
    return h("figure", { style: { "--ratio": card.size[0] / card.size[1] } },
      h("div", { class: "frame" }, h("div", { class: "stage" }, layers),
        waiting && h("span", { class: "hint" }, h("i", { class: "spinner" }), "Looking where the answer comes from …")),
      h("figcaption", {}, h("label", { for: "lados-opacity" }, "Heat map"), slider,
        h("div", { class: "scale", "aria-hidden": "true" }, h("span", {}, "says little"), h("i"), h("span", {}, "says most")),
        h("p", {}, this.problem ? `No heat map: ${this.problem}` : this.map ? this.where() : "Warm places are those that the answer comes from.")))
  }

  where() {
    const { thirds, label } = this.map, most = (names) => names.reduce((a, b) => (thirds[b] > thirds[a] ? b : a))
    const across = most(["left", "centre", "right"]), down = most(["top", "middle", "bottom"])
    if (this.map.diffuse)
      return `The evidence for ${this.page.title(label)} is diffuse: no place stands out (half of it needs ${percent(this.map.share)} of the image), so nothing is tinted. The slider shows the map all the same.`
    const even = thirds[across] < 0.4 && thirds[down] < 0.4
    const spot = even ? "in several places" : down === "middle" && across === "centre" ? "mostly in the middle"
      : `mostly ${down} ${across}, with ${percent(thirds[down])} of the heat in the ${down} third and ${percent(thirds[across])} in the ${across} third`
    return `What speaks for ${this.page.title(label)}: ${spot}.`
  }

  drawAnswer(card) {
    const { answer } = card, { page } = this, label = page.label(card)
    return h("section", { class: "answer" },
      h("p", { class: "verdict" }, page.dot(label), h("b", {}, page.title(label)),
        card.label ? h("span", { class: "mark" }, icon("check", 16), card.label === answer.label ? "confirmed by you" : `corrected; the model said ${page.title(answer.label)}`)
          : h("span", { class: "sure" }, percent(answer.confidence))),
      answer.abstain && !card.label && h("p", { class: "reason" }, icon("flag", 17), sentence(answer.reason)),
      h("h3", {}, "How likely each class is"),
      h("div", { class: "bars" }, page.classes.map((c) => this.row(c, answer))),
      h("p", { class: "note" }, answer.prediction_set ? "A filled name is in the set, which is made to hold the truth 9 times in 10. Choose a class to see what speaks for it."
        : `There is no set: ${answer.no_set ?? "the model knows no thresholds"}. Choose a class to see what speaks for it.`),
      answer.not_covered?.length > 0 && h("p", { class: "note", "data-of": "not-covered" },
        sentence(`${answer.not_covered.map((o) => page.title(o)).join(", ").replace(/, ([^,]*)$/, " and $1")}: too few independent sources to check on, so ${answer.not_covered.length > 1 ? "they stay" : "it stays"} in every set`)),
      h("h3", {}, "What it really is"), h("div", { class: "labels" }, page.labels(card)),
      h("p", { class: "note" }, `A click keeps the image and this label; keys 1 to ${Math.min(9, page.classes.length)} do the same. The label that the model gave confirms it. ${page.outlook.replaceAll("`", "")}`),
      this.facts(card))
  }

  row(c, answer) {
    const p = answer.probabilities[c.name] ?? 0, within = answer.prediction_set?.includes(c.name)
    const asked = (this.map?.label ?? this.mapFor ?? answer.label) === c.name
    return h("button", { class: `row ${within ? "within" : ""}`, "data-act": `map-${c.name}`, "aria-pressed": String(asked),
      "aria-label": `${c.title} ${percent(p)}${within ? ", in the set" : ""}: show what speaks for it`, onclick: () => this.explain(c.name) },
    h("span", { class: "what" }, this.page.dot(c.name), h("span", {}, c.title)), h("span", { class: "track" }, h("i", { style: { "--c": c.colour, "--w": p } })),
    h("span", { class: "value" }, percent(p)))
  }

  shrinking(card) {
    const [before, after] = this.page.shrunk.get(card.id) ?? []
    return before ? `, made smaller by this browser (${megabytes(before)} to ${megabytes(after)})` : ""
  }

  facts(card) {
    const { answer, size } = card, t = answer.timing_ms ?? {}, ms = (x) => `${x < 10 ? x.toFixed(1) : Math.round(x)} ms`
    const known = [["Latency", t.total != null && `${ms(t.total)} (decode ${ms(t.decode)}, wait ${ms(t.queue)}, engine ${ms(t.engine)})`],
      ["Engine", answer.engine], ["Model", answer.model], ["Image", size && `${size[0]} × ${size[1]} pixels${this.shrinking(card)}`], ["Rendering", answer.rendering],
      ["Unlike training", answer.distance != null && `distance ${answer.distance.toFixed(2)}${answer.unlike_training ? ", beyond the threshold" : ""}`], ...(card.more ?? [])]
    return h("dl", {}, known.filter(([, v]) => v).flatMap(([k, v]) => [h("dt", {}, k), h("dd", {}, v)]))
  }
}

export default {
  render({ model, el }) {
    const page = new Page(model, el)
    return () => page.leave()
  },
}
