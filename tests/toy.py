"A toy that any network learns in a few epochs: coloured squares with a little noise, three of the classes."

import contextlib
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from lados.data.manifest import Manifest, load_manifest
from lados.files import sha256_file
from lados.model.batches import Dataset, prepare_dataset
from lados.model.params import make_params
from lados.runs.folders import new_run

COLOURS = {"oil": (30, 30, 30), "ship": (200, 60, 60), "background": (40, 90, 170)}
TINY = {"backbone": "test_resnet", "pretrained": False, "size": 32, "cache_size": 32, "augment": "none", "batch_size": 8,
        "epochs": 4, "lr": 0.003, "precision": "fp32", "patience": None}

ROUNDING = 0.01 if torch.cpu._is_amx_tile_supported() else 0.0 # of probabilities: with AMX torch runs in bfloat16, and batches round differently


def toy_manifest(folder, train=24, held=6, noise=40, classes=tuple(COLOURS), seed=0):
    "Draw the toy into `folder` and write its manifest there."
    rng, rows = np.random.default_rng(seed), []
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for split, n in (("train", train), ("valid", held), ("test", held)):
        for i in range(n):
            label = classes[i % len(classes)]
            pixels = np.array(COLOURS[label]) + rng.normal(0, noise, (32, 32, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{split}{i}.png")
            rows.append({"image": f"{split}{i}.png", "split": split, "label": label, "width": 32, "height": 32,
                         "source_group": f"{split}{i}", "sha256": sha256_file(folder / f"{split}{i}.png")})
    Manifest(pd.DataFrame(rows), folder, {"origin": {"path": "toy", "kind": "drawn"}}).save(folder)
    return load_manifest(folder)


def toy(folder, **options) -> Dataset:
    "The toy, decoded."
    return prepare_dataset(toy_manifest(folder, **options), 32, 32)


def tiny(**changes):
    "Parameters that train in a second."
    return make_params({**TINY, **changes})


def trained_run(name, **params):
    "Train a run in this process, by the sections of the notebook but its figures, and return its report; a kernel takes ten seconds longer."
    from lados.model import reports

    run = new_run("train", name, make_params({"audit": False, "name": name, **params}).model_dump(mode="json"))
    job = reports.begin_training(run.path, run.params)
    sections = reports.open_data, reports.fit, reports.evaluate_run, reports.cross_validation, reports.cost, reports.write_bundle
    job.shown = {section.__name__: section(job) for section in sections}
    run.update(state="succeeded")
    return job


@contextlib.contextmanager
def small_disk(folder, size):
    "A file system of its own."
    folder.mkdir(parents=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
