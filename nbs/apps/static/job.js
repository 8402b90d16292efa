// One job in a notebook cell: its state, how far it is, and the curve so far. Texts only ever become text nodes.

function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag)
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value)
    else if (value !== false && value != null) node.setAttribute(name, value === true ? "" : value)
  }
  node.append(...children.flat().filter((c) => c != null && c !== false))
  return node
}

function curve(epochs) {
  const W = 320, H = 90, svg = document.createElementNS("http://www.w3.org/2000/svg", "svg")
  for (const [k, v] of Object.entries({ viewBox: `0 0 ${W} ${H}`, width: W, height: H, role: "img", "aria-label": "macro-F1 by epoch" })) svg.setAttribute(k, v)
  const points = epochs.filter((e) => e.macro_f1 != null).map((e) => [e.epoch, e.macro_f1])
  const last = Math.max(1, ...points.map((p) => p[0]))
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path")
  const d = points.map(([x, y], i) => `${i ? "L" : "M"}${(4 + (x / last) * (W - 8)).toFixed(1)} ${(H - 6 - y * (H - 12)).toFixed(1)}`).join("")
  for (const [k, v] of Object.entries({ d, fill: "none", stroke: "#0b5fa5", "stroke-width": 2 })) path.setAttribute(k, v)
  svg.append(path)
  return svg
}

function render({ model, el }) {
  const box = h("div", { class: "panel" })
  const root = h("div", { class: "lados monitor job", style: "min-height: 0; padding: 8px" }, box)
  el.append(root)

  function show() {
    const job = model.get("job"), epochs = model.get("epochs"), run = model.get("run"), said = model.get("said")
    if (!job.id) return
    const active = ["queued", "running"].includes(job.state)
    const left = job.eta_s == null ? "" : `, ${Math.round(job.eta_s)} s left`
    const far = job.total > 1 ? `, ${job.done} of ${job.total} ${job.unit}` : ""
    const best = Math.max(0, ...epochs.map((e) => e.macro_f1 ?? 0))
    box.replaceChildren(...[
      h("h2", {}, h("span", {}, `${job.kind} ${job.name} `, h("small", {}, job.id.slice(0, 8))), h("span", { class: `state ${job.state}` }, job.cancelling ? "stopping" : job.state)),
      h("p", {}, h("progress", { max: 1, value: job.fraction, style: "width: 260px" }), ` ${Math.round(100 * job.fraction)} %${far}${left}`),
      epochs.length ? h("div", {}, curve(epochs), h("small", {}, ` best macro-F1 ${best.toFixed(3)}`)) : null,
      job.error ? h("p", { class: "said bad" }, job.error) : null,
      said ? h("p", { class: "said bad" }, said) : null,
      run ? h("p", {}, h("small", {}, `run ${run}`)) : null,
      active ? h("button", { class: "button small", onclick: () => model.send({ kind: "stop" }) }, "Stop") : null,
    ].filter(Boolean))
  }

  model.on("change", show)
  show()
}

export default { render }
