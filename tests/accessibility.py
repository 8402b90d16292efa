"axe-core, and what it says of a page that Chromium shows."

import functools
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest

AXE = "4.14.1"
SERIOUS = ("serious", "critical")


@functools.cache
def axe_script() -> str:
    "The script of axe-core, fetched from the npm registry once a test run; skips where that cannot be done."
    if not shutil.which("npm"):
        pytest.skip("axe-core is fetched with npm, which is not here")
    with tempfile.TemporaryDirectory(prefix="lados-axe-") as folder:
        done = subprocess.run(["npm", "pack", "--silent", f"axe-core@{AXE}"], cwd=folder, capture_output=True, text=True, timeout=120)
        if done.returncode:
            pytest.skip(f"axe-core {AXE} cannot be had: {done.stderr.strip()[-200:]}")
        with tarfile.open(next(Path(folder).glob("*.tgz"))) as archive:
            return archive.extractfile("package/axe.min.js").read().decode()


def faults(page, where) -> list[str]:
    "Serious and critical faults of a page as it stands."
    page.evaluate(axe_script())
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']}).then(r => r.violations)")
    return [f"{where}: {v['id']} ({v['impact']}): {n['html'][:160]} {n['failureSummary'][:200]}"
            for v in found if v["impact"] in SERIOUS for n in v["nodes"][:3]]
