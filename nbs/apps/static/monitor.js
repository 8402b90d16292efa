// The monitor's page: shows what the kernel hears of the service once a second, and passes on what the visitor asks for.
// Texts from outside (names, messages) only ever become text nodes.

const COLOURS = ["#0b5fa5", "#c2410c", "#15803d", "#7e22ce", "#b91c1c", "#0f766e", "#a16207", "#475569"]

function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag)
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value)
    else if (value === true) node.setAttribute(name, "")
    else if (value !== false && value != null) node.setAttribute(name, value)
  }
  node.append(...children.flat(Infinity).filter((c) => c != null && c !== false))
  return node
}

function s(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag)
  for (const [k, v] of Object.entries(attributes)) node.setAttribute(k, v)
  node.append(...children)
  return node
}

const number = (x, digits = 3) => (x == null ? "–" : x.toFixed(digits))
const percent = (x) => (x == null ? "–" : `${Math.round(100 * x)} %`)
const milliseconds = (x) => (x == null ? "–" : x < 1 ? `${Math.round(1000 * x)} ms` : `${x.toFixed(1)} s`)
const when = (t) => new Date(1000 * t).toLocaleString(undefined, { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" })
const left = (x) => (x == null ? "" : x < 90 ? `${Math.round(x)} s left` : x < 5400 ? `${Math.round(x / 60)} min left` : `${(x / 3600).toFixed(1)} h left`)

// A sentence with commands between backticks.
const coded = (text) => (text || "").split("`").map((part, i) => (i % 2 ? h("code", {}, part) : part))

// Replace children only where something changed, so that focus, selection and scrolling stay.
function put(node, key, make) {
  const text = JSON.stringify(key)
  if (node.dataset.key === text) return
  node.dataset.key = text
  node.replaceChildren(...[make()].flat(Infinity).filter(Boolean))
}

// --- learning curves

function chart(series, title) {
  const W = 520, H = 220, L = 42, B = 26, T = 22, R = 10
  const points = series.flatMap((c) => c.points)
  const root = s("svg", { class: "chart", viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": title })
  root.append(s("text", { x: L, y: 13 }, title))
  if (!points.length) return root
  const xs = points.map((p) => p[0]), ys = points.map((p) => p[1])
  const x1 = Math.max(1, ...xs), y0 = Math.min(0, ...ys), y1 = Math.max(...ys) || 1
  const X = (x) => L + (x / x1) * (W - L - R), Y = (y) => H - B - ((y - y0) / (y1 - y0 || 1)) * (H - B - T)
  for (let i = 0; i <= 4; i++) {
    const y = y0 + (i / 4) * (y1 - y0)
    root.append(s("line", { x1: L, x2: W - R, y1: Y(y), y2: Y(y), stroke: "#e3e8ee" }), s("text", { x: 4, y: Y(y) + 4 }, y.toFixed(2)))
  }
  root.append(s("text", { x: W - R - 60, y: H - 6 }, `epoch ${x1}`))
  for (const c of series) {
    const path = c.points.map((p, i) => `${i ? "L" : "M"}${X(p[0]).toFixed(1)} ${Y(p[1]).toFixed(1)}`).join("")
    root.append(s("path", { d: path, fill: "none", stroke: c.colour, "stroke-width": 2, "stroke-dasharray": c.dashed ? "5 4" : "none" }))
    if (c.points.length === 1) root.append(s("circle", { cx: X(c.points[0][0]), cy: Y(c.points[0][1]), r: 3, fill: c.colour }))
  }
  return root
}

function curves(state) {
  const ids = Object.keys(state.curves || {}).filter((id) => state.curves[id].length)
  if (!ids.length) return h("p", { class: "empty" }, state.jobs.some((j) => j.unit === "epochs" && j.state === "running") ? "A training has begun; its curves come with its first epochs." : "No training is running. Tick trainings in the list to compare their curves.")
  const names = Object.fromEntries(state.jobs.map((j) => [j.id, `${j.name} ${j.id.slice(0, 8)}`]))
  const line = (id, i, column, dashed = false) => ({
    colour: COLOURS[i % COLOURS.length], dashed,
    points: state.curves[id].filter((e) => e[column] != null).map((e) => [e.epoch + 1, e[column]]),
  })
  const losses = ids.flatMap((id, i) => [line(id, i, "train_loss"), line(id, i, "valid_loss", true)])
  return [
    h("div", { class: "columns" }, chart(losses, "loss: training (line), validation (dashed)"), chart(ids.map((id, i) => line(id, i, "macro_f1")), "macro-F1 on validation")),
    h("div", { class: "legend" }, ids.map((id, i) => {
      const best = Math.max(...state.curves[id].map((e) => e.macro_f1 ?? 0))
      const dot = h("i", { class: "dot" })
      dot.style.setProperty("--c", COLOURS[i % COLOURS.length])
      return h("span", {}, dot, `${names[id] || id}: best macro-F1 ${number(best)}`)
    })),
  ]
}

// --- the page

function render({ model, el }) {
  document.title = "lados – monitor"
  const send = (message) => model.send({ ...message, key: key.value })
  const key = h("input", { type: "password", autocomplete: "off", placeholder: "for changes", "aria-label": "API key" })
  const said = h("p", { class: "said", role: "status", hidden: true })
  const lost = h("p", { class: "lost", role: "alert", hidden: true })
  const place = h("span", { class: "place" }), absent = h("p", { class: "absent", role: "status" })
  const parts = Object.fromEntries(["numbers", "shares", "jobs", "curves", "models", "schedules", "proposals", "workers"].map((n) => [n, h("div")]))
  const preset = h("select", { "aria-label": "preset" }), epochs = h("input", { type: "number", min: 1, max: 1000, placeholder: "as preset", "aria-label": "epochs" })
  preset.append(...model.get("presets").map((p) => h("option", { value: p, selected: p === "demo" }, p)))
  const dataset = h("select", { "aria-label": "dataset" }), corrections = h("input", { type: "checkbox", "aria-label": "learn from corrections" })
  const begin = (event) => {
    event.preventDefault()
    const params = { preset: preset.value }
    if (epochs.value) params.epochs = Number(epochs.value)
    if (dataset.value) params.data = dataset.value
    if (corrections.checked) params.corrections = true
    send({ kind: "train", params })
  }
  const panel = (title, ...content) => h("section", { class: "panel" }, h("h2", {}, title), content)
  const root = h("div", { class: "lados monitor" },
    h("header", {}, h("div", { class: "brand" }, h("div", {}, h("h1", {}, "Monitor"), h("p", {}, "Jobs, models, and how the service is"))),
      h("div", { class: "status" }, h("div", { class: "model" }, place), h("label", {}, h("small", {}, "API key "), key))),
    lost,
    h("main", { class: "nobody", hidden: true }, absent),
    h("main", {}, said,
      h("div", { class: "columns" }, panel("Service", parts.numbers), panel("What is seen", parts.shares)),
      panel("Jobs", h("form", { onsubmit: begin }, h("label", {}, "Training", preset), h("label", {}, "Dataset", dataset), h("label", {}, "Epochs", epochs),
        h("label", { class: "tick" }, corrections, "with labels from the page"),
        h("button", { class: "button primary", type: "submit" }, "Train")), h("div", { class: "scroll" }, parts.jobs)),
      panel("Learning", parts.curves),
      h("div", { class: "columns" }, panel("Schedules", parts.schedules), panel("Workers", parts.workers)),
      panel("Proposals", parts.proposals), panel("Models", h("div", { class: "scroll" }, parts.models))))
  const dialog = h("dialog", { class: "ask", "aria-label": "Serve another model" })
  root.append(dialog)
  el.append(root)
  const [nobody, everything] = root.querySelectorAll("main")

  // what is known of two models, side by side, before one takes the place of the other; a comparison goes on while one looks
  let asked = ""

  function ask(m) {
    asked = m.name
    delete dialog.dataset.key
    drawAsk()
    dialog.showModal()
    dialog.querySelector("[data-act=keep]").focus()
  }

  function drawAsk() {
    const state = model.get("state"), m = state.models.find((x) => x.name === asked)
    if (!m) return
    const now = state.models.find((x) => x.served)
    const proposal = (state.proposals || []).find((p) => p.model === m.name && p.against === state.served)
    const job = state.jobs.find((j) => j.kind === "compare" && j.name === m.name)
    const inside = dialog.contains(document.activeElement)
    put(dialog, [m, now, proposal, job && [job.id, job.state, job.error, job.links.report]], () => askParts(m, now, proposal, job))
    if (inside && !dialog.contains(document.activeElement)) dialog.querySelector("[data-act=keep]").focus()
  }

  function askParts(m, now, proposal, job) {
    const line = (what, of) => h("tr", {}, h("th", {}, what), [now, m].map((x) => h("td", {}, x ? of(x) : "–")))
    const busy = job && ["queued", "running"].includes(job.state)
    const report = job?.links.report && proposal && h("a", { href: model.get("state").url + job.links.report, target: "_blank", rel: "noopener" }, "report")
    const compare = h("button", { class: "button", "data-act": "compare", disabled: Boolean(busy), onclick: (e) => { e.target.disabled = true; send({ kind: "compare", model: m.name }) } }, proposal ? "Compare again" : "Compare them")
    return [h("h2", {}, "Serve another model?"),
      h("p", {}, h("b", {}, m.name), " will answer everybody from now on", now ? [", in place of ", h("b", {}, now.name)] : "", "."),
      uncertified(m) && h("p", { class: "warn" }, "It is not certified: nobody has tried whether an engine answers as the trained network does. ", h("code", {}, `lados export ${m.name}`), " does that."),
      h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, h("th", {}), h("th", {}, "served now"), h("th", {}, "this one"))),
        h("tbody", {}, line("Images of its own test", (x) => x.images ?? "–"), m.scores.map((s, i) => line(`${s.title[0].toUpperCase()}${s.title.slice(1)} there`, (x) => (x.scores[i].value == null ? "–" : number(x.scores[i].value)))),
          line("Backbone", (x) => x.backbone || "–"), line("Certificate", (x) => (uncertified(x) ? "not certified" : certificate(x)))))),
      busy ? h("p", { class: "comparing", role: "status" }, h("progress", {}), job.state === "queued" ? " The comparison waits for a worker." : " Both answer images that are new to them …")
        : proposal ? h("p", { class: `verdict ${proposal.better ? "" : "warn"}` }, proposal.verdict, report && [" ", report])
          : h("p", { class: "warn" }, "They have not been compared on the same images; each score is of the model's own test set."),
      !busy && job?.state === "failed" && h("p", { class: "warn" }, `The comparison failed: ${job.error || "see the job"}`),
      h("div", { class: "buttons" }, now && compare, h("button", { class: "button", "data-act": "keep", onclick: () => dialog.close() }, "Keep what is served"),
        h("button", { class: "button primary", "data-act": "serve", onclick: () => { dialog.close(); send({ kind: "promote", model: m.name }) } }, "Serve it"))]
  }

  function tick(id, on) {
    const chosen = model.get("chosen").filter((c) => c !== id)
    model.set("chosen", on ? [...chosen, id] : chosen)
    model.save_changes()
  }

  const rows = new Map() // id of a job -> its row, whose cells change one by one: a button must not go away under a click

  function row(job, url) {
    const active = ["queued", "running"].includes(job.state)
    const state = job.cancelling ? "stopping" : job.state
    const links = Object.entries(job.links).filter(([name]) => ["report", "results", "notebook"].includes(name))
    const far = job.total > 1 ? `, ${job.done} of ${job.total} ${job.unit}` : ""
    if (!rows.has(job.id)) {
      const cells = ["", "named", "", "", "", ""].map((c) => h("td", c ? { class: c } : {}))
      rows.set(job.id, { tr: h("tr", { "data-job": job.id }, cells), cells })
    }
    const { tr, cells } = rows.get(job.id), ticked = model.get("chosen").includes(job.id)
    put(cells[0], [job.links.history, ticked], () => job.links.history && h("input", { type: "checkbox", checked: ticked, "aria-label": `curves of ${job.name}`, onchange: (e) => tick(job.id, e.target.checked) }))
    put(cells[1], [job.name, job.error], () => [job.name || job.kind, h("br"), h("small", {}, `${job.id.slice(0, 8)}, ${job.kind}, ${job.origin}, ${when(job.created)}${job.model ? `, by ${job.model} (${job.engine})` : ""}`), job.error && h("div", { class: "error" }, job.error.split("\n")[0])])
    put(cells[2], [state, job.attempts], () => [h("span", { class: `state ${job.state}` }, state), job.attempts > 1 && h("small", {}, ` attempt ${job.attempts}`)])
    put(cells[3], [job.fraction, far, job.eta_s], () => [h("progress", { max: 1, value: job.fraction }), h("br"), h("small", {}, [`${percent(job.fraction)}${far}`, left(job.eta_s)].filter(Boolean).join(", "))])
    put(cells[4], links, () => links.map(([name, path]) => h("a", { href: url + path, target: "_blank", rel: "noopener" }, name)))
    put(cells[5], [active, job.state], () => active ? h("button", { class: "button small", onclick: () => send({ kind: "cancel", id: job.id }) }, "Stop")
      : ["failed", "cancelled"].includes(job.state) && h("button", { class: "button small", onclick: () => send({ kind: "retry", id: job.id }) }, "Retry"))
    return tr
  }

  function table(heads, rows, empty) {
    if (!rows.length) return h("p", { class: "empty" }, empty)
    return h("table", {}, h("thead", {}, h("tr", {}, heads.map((t) => h("th", {}, t)))), h("tbody", {}, rows.map((r) => labelled(r, heads))))
  }

  // on a phone a row is a card, and each cell says which column it is
  function labelled(r, heads) {
    ;[...r.children].forEach((cell, i) => { if (heads[i]) cell.dataset.label = heads[i] })
    return r
  }

  function numbers(state) {
    const n = state.numbers, recent = n.recent || {}
    const tile = (value, what) => h("div", { class: "tile" }, h("b", {}, value), h("small", {}, what))
    return h("div", { class: "tiles" }, tile(n.rate.toFixed(1), "images a second"), tile(String(n.total), "since the start"),
      tile(milliseconds(n.latency?.p50), "median answer"), tile(milliseconds(n.latency?.p95), "95 % within"),
      tile(percent(n.total ? (n.outcomes.abstained || 0) / n.total : null), "left to a human"),
      tile(recent.drift_score == null ? "–" : number(recent.drift_score, 2), "drift, 0 to 1"))
  }

  function shares(state) {
    const recent = state.numbers.recent || {}
    if (!recent.images) return h("p", { class: "empty" }, "The served model has answered no image yet. Batches are not counted here: their tables are with their jobs.")
    return [h("div", { class: "share" }, Object.entries(recent.class_share).map(([name, share]) => {
      const bar = h("i")
      bar.style.width = `${100 * share}%`
      return [h("span", {}, name.replace("_", " ")), h("div", { class: "bar" }, bar), h("span", {}, percent(share))]
    })), h("p", {}, h("small", {}, `of the latest ${recent.images} images that the service itself has answered, batches aside; mean confidence ${number(recent.confidence_mean, 2)}`))]
  }

  const certificate = (m) => Object.entries(m.engines).map(([name, state]) => `${name}: ${state}`).join(", ")
  const uncertified = (m) => !Object.values(m.engines).includes("passed")

  function schedules(state) {
    if (!state.schedules) return h("p", { class: "empty" }, "The service does not tell.")
    if (!state.schedules.length) return [h("p", { class: "empty" }, "No schedule begins trainings. ", h("code", {}, "lados schedule add --labels 50"), " adds one."), h("p", {}, h("small", {}, coded(state.outlook)))]
    return [table(["Schedule", "When", "Next", ""], state.schedules.map((x) => h("tr", {}, h("td", { class: "named" }, x.name, h("br"), h("small", {}, x.what)),
      h("td", {}, x.when), h("td", {}, x.next ? when(x.next) : "–"), h("td", {}, x.paused ? "paused" : x.corrections ? "with corrections" : ""))), ""), h("p", {}, h("small", {}, coded(state.outlook)))]
  }

  function workers(state) {
    const names = Object.entries(state.workers || {})
    if (!names.length) return h("p", { class: "empty" }, "No worker answers; what is queued waits. ", h("code", {}, "lados worker"), " starts some.")
    return table(["Worker", "Works on"], names.map(([name, queues]) => h("tr", {}, h("td", { class: "named" }, name), h("td", {}, queues.join(", ")))), "")
  }

  function proposals(state) {
    const rows = (state.proposals || []).map((p) => {
      const m = state.models.find((x) => x.name === p.model)
      return h("tr", { "data-proposal": p.model }, h("td", { class: "named" }, p.model, h("br"), h("small", {}, p.against ? `against ${p.against}` : "")), h("td", { class: "named" }, p.verdict),
        h("td", {}, p.images || "–"), h("td", {}, m?.served ? h("span", { class: "state succeeded" }, "served") : p.promoted ? "promoted before" : m && h("button", { class: "button small", onclick: () => ask(m) }, "Serve …")))
    })
    return table(["Proposed", "Verdict", "Images", ""], rows, "Nothing is proposed. What a schedule trains is compared with what is served, and proposed here.")
  }

  function modelRow(m) {
    const passed = certificate(m), trial = (model.get("state").dry_runs || []).includes(m.name)
    const score = m.macro_f1 == null ? "–" : `${number(m.macro_f1)} (${m.images ?? "?"} images${m.view ? `, ${m.view}` : ""})`
    const drawn = m.synthetic > 0 && h("div", {}, h("small", {}, m.synthetic < 1 ? "has learned drawn images, too" : "has learned only drawn images"))
    return h("tr", {}, h("td", { class: "named" }, m.name, m.error && h("div", { class: "error" }, m.error)), h("td", {}, m.backbone || "–"),
      h("td", {}, score, drawn), h("td", { class: "named" }, uncertified(m) ? h("span", { class: "state running" }, "not certified") : h("small", {}, passed)),
      h("td", {}, m.served ? h("span", { class: "state succeeded" }, "served") : trial ? h("small", {}, "dry run, not for serving") : !m.error && h("button", { class: "button small", onclick: () => ask(m) }, "Serve …")))
  }

  function show() {
    const state = model.get("state")
    const begun = Boolean(state.jobs) || everything.dataset.seen
    nobody.hidden = Boolean(begun)
    everything.hidden = !begun
    absent.textContent = state.problem ? `There is nothing to show yet: ${state.problem} This page looks again every second.` : "Asking the service …"
    lost.hidden = !state.problem || !begun
    lost.textContent = state.problem || ""
    if (!state.jobs) return
    everything.dataset.seen = "yes"
    if (dialog.open) drawAsk()
    put(dataset, state.datasets, () => [h("option", { value: "" }, "drawn sample"), ...(state.datasets || []).map((d) => h("option", { value: d }, d.split("/").pop()))])
    put(parts.schedules, [state.schedules, state.outlook], () => schedules(state))
    put(parts.workers, state.workers, () => workers(state))
    put(parts.proposals, [state.proposals, state.served], () => proposals(state))
    put(place, [state.served, state.engine], () => [h("span", { class: state.served ? "lamp" : "lamp bad" }), " ", h("b", {}, state.served || "no model"), " ", h("span", { class: "pill" }, state.engine || "–")])
    put(parts.numbers, state.numbers, () => numbers(state))
    put(parts.shares, state.numbers.recent, () => shares(state))
    const listed = state.jobs.map((j) => row(j, state.url))
    put(parts.jobs, state.jobs.map((j) => j.id), () => table(["", "Job", "State", "Progress", "Open", ""], listed, "No jobs yet."))
    put(parts.curves, state.curves, () => curves(state))
    put(parts.models, [state.models, state.dry_runs], () => table(["Model", "Backbone", "Macro-F1, test", "Certificate", ""], state.models.map(modelRow), "No models yet."))
  }

  let hide = 0
  model.on("msg:custom", (message) => {
    if (message.kind !== "said") return
    said.textContent = message.text
    said.classList.toggle("bad", !message.done)
    said.hidden = false
    if (dialog.open) {
      delete dialog.dataset.key // what was refused can be asked for again
      drawAsk()
    }
    (dialog.open ? dialog : everything).prepend(said)
    clearTimeout(hide)
    hide = setTimeout(() => { said.hidden = true }, message.done ? 5000 : 20000)
  })
  model.on("change:state", show)
  show()
  const here = () => model.send({ kind: "here" }) // without a visitor nobody asks the service
  here()
  const beat = setInterval(here, 20000)
  return () => clearInterval(beat)
}

export default { render }
