"""The synthetic sample across processes: same bytes whoever draws it, whole or not there at all."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from commands import refused
from pycocotools import mask as rle
from pycocotools.coco import COCO

from lados.core import ConfigError, DataError
from lados.files import sha256_file
from lados.synthetic.drawing import Scene
from lados.synthetic.sample import RECIPES, SPLITS_OF_LADOS, plan_photographs, synthetic

SIZE = 96


def digests(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def stem(name: str) -> str:
    return re.sub(r"(_[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})?_jpg\.rf\.[0-9a-f]{32}\.jpg$", "", name)


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Path:
    return synthetic(tmp_path_factory.mktemp("sample") / "one", 24, 3, SIZE, workers=1)


def test_same_seed_same_bytes_for_any_number_of_workers(sample, tmp_path):
    assert digests(synthetic(tmp_path / "three", 24, 3, SIZE, workers=3)) == digests(sample)


def test_other_seed_other_bytes(sample, tmp_path):
    other = digests(synthetic(tmp_path / "other", 24, 4, SIZE, workers=1))
    images = {d for p, d in other.items() if p.endswith(".jpg")}
    assert images.isdisjoint(digests(sample).values())


@pytest.mark.parametrize("seed", range(4))
def test_leaks_as_lados_does(seed):
    shots = [(s.stem, split) for s in plan_photographs(240, np.random.default_rng(seed)) for split, _ in s.shots]
    trained = {s for s, split in shots if split == "train"}
    for split, (images, leaks) in SPLITS_OF_LADOS.items():
        mine = [s for s, where in shots if where == split]
        assert len(mine) / len(shots) == pytest.approx(images / 3388, abs=0.002)
        assert sum(s in trained for s in mine) / len(mine) == pytest.approx(leaks / images, abs=0.01)


@pytest.mark.parametrize("seed", range(4))
def test_every_class_can_be_tested(seed):
    sources = plan_photographs(240, np.random.default_rng(seed))
    images, repeated = Counter(), Counter()
    for s in sources:
        images[s.kind] += len(s.shots)
        repeated[s.kind] += len(s.shots) > 1
    assert min(images.values()) * 0.15 >= 9 and min(repeated.values()) >= 15
    assert {s.kind for s in sources} == set(RECIPES)


def test_is_a_readable_coco_export(sample, capsys):
    seen, classes = Counter(), set()
    for split in ("train", "valid", "test"):
        export = COCO(str(sample / split / "_annotations.coco.json"))
        on_disk = {p.name for p in (sample / split).glob("*.jpg")}
        assert {i["file_name"] for i in export.imgs.values()} == on_disk and on_disk
        assert all(stem(n) != n for n in on_disk)
        for a in export.anns.values():
            covered = rle.area(export.annToRLE(a)) / SIZE**2
            assert 0 < covered <= 1 and covered == pytest.approx(a["area"] / SIZE**2, abs=0.08)
            classes.add(export.cats[a["category_id"]]["name"])
        seen[split] = len(on_disk)
    assert classes == {"emulsion", "oil", "oil-platform", "sheen", "ship"}
    assert json.loads((sample / "synthetic.json").read_text())["images"] == dict(seen)


def test_asking_again_returns_the_sample(sample):
    before = {p: p.stat().st_mtime_ns for p in sample.rglob("*")}
    assert synthetic(sample, 24, 3, SIZE) == sample
    assert {p: p.stat().st_mtime_ns for p in sample.rglob("*")} == before


def test_refuses_a_folder_that_holds_something_else(sample, tmp_path):
    with refused("place-taken"):
        synthetic(sample, 24, 9, SIZE)
    (tmp_path / "thesis.txt").write_text("mine")
    with refused("place-taken"):
        synthetic(tmp_path, 24, 3, SIZE)
    with refused("place-taken"):
        synthetic(tmp_path / "thesis.txt", 24, 3, SIZE)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_an_empty_folder_is_filled(tmp_path):
    assert (synthetic(tmp_path, 6, 0, 64, workers=1) / "synthetic.json").is_file()


@pytest.mark.parametrize("wrong", [{"sources": 5}, {"size": 32}, {"seed": -1}])
def test_impossible_numbers_are_refused(tmp_path, wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        synthetic(tmp_path / "x", **wrong)
    assert not any(tmp_path.iterdir())


def test_a_parent_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        synthetic(tmp_path / "file" / "x", 6, 0, 64, workers=1)


def test_killed_half_way_leaves_nothing_that_looks_whole(tmp_path):
    code = "from pathlib import Path; from lados.synthetic.sample import synthetic; synthetic(Path('out'), 200, 0, 320, workers=1)"
    job = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out.*/train/*.jpg")) and time.monotonic() < deadline:
        time.sleep(0.02)
    job.send_signal(signal.SIGKILL)
    job.wait()
    assert list(tmp_path.glob(".out.*/train/*.jpg")) and not (tmp_path / "out").exists()
    assert synthetic(tmp_path / "out", 6, 0, 64, workers=1).is_dir()


@pytest.mark.parametrize("kind", RECIPES)
def test_the_class_a_photograph_is_named_for_dominates(kind):
    for seed in range(8):
        scene = Scene(np.random.default_rng(seed), 160)
        RECIPES[kind](scene)
        areas = {c: m.mean() for c, m in scene.masks.items()}
        assert max(areas, key=areas.get, default="background") == kind
