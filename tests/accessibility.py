"axe-core, and what it says of a page that Chromium shows."

from axe_playwright_python.base import AXE_SCRIPT

SERIOUS = ("serious", "critical")
# What fades or slides is looked at as it ends, not on its way; a browser's own wish for less motion does not stop all of it.
STILL = "document.getAnimations().forEach(a => { try { a.finish() } catch { a.cancel() } })"


def faults(page, where) -> list[str]:
    "Serious and critical faults of a page as it stands."
    if not page.evaluate("() => Boolean(window.axe)"):
        page.evaluate(AXE_SCRIPT)
    page.evaluate(STILL)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']}).then(r => r.violations)")
    return [f"{where}: {v['id']} ({v['impact']}): {n['html'][:160]} {n['failureSummary'][:200]}"
            for v in found if v["impact"] in SERIOUS for n in v["nodes"][:3]]
