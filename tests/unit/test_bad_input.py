"What cannot be trained on is refused or said, with the file or parameter and the way out named; nothing is lost."

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from commands import refused
from safetensors.torch import save_file
from toy import small_disk, tiny, toy, toy_manifest

from lados.core import ConfigError, LadosError, TrainingError
from lados.data.manifest import Manifest, load_manifest
from lados.model.backbones import make_backbone
from lados.model.batches import prepare_dataset
from lados.model.datamodule import open_dataset
from lados.model.params import load_params, make_params
from lados.model.train import load_state, read_history, train


@pytest.fixture(autouse=True)
def _home(home):
    return home


def changed(folder, **columns):
    "The toy's manifest with other columns."
    manifest = load_manifest(folder)
    return Manifest(manifest.frame.assign(**columns), folder, manifest.meta)


# images and labels


def test_a_class_without_training_images_is_told(tmp_path):
    manifest = toy_manifest(tmp_path)
    frame = manifest.frame
    without = Manifest(frame[(frame["label"] != "ship") | (frame["split"] != "train")], tmp_path, manifest.meta)
    trained = train(tiny(epochs=2), prepare_dataset(without, 32, 32))
    assert len(trained.history) == 2
    told = "\n".join(trained.problems)
    assert "class ship has no training image" in told and "no images of emulsion, oil_platform, sheen" in told


def test_one_class_teaches_nothing(tmp_path):
    with pytest.raises(TrainingError, match=r"two classes.*oil") as e:
        train(tiny(), toy(tmp_path, classes=("oil",)))
    assert "import more images" in e.value.remedy


def test_several_labels_an_image_are_refused(tmp_path):
    toy_manifest(tmp_path)
    frame = load_manifest(tmp_path).frame
    both = changed(tmp_path, label=frame["label"].where(frame["label"] != "oil", "oil|ship"))
    with pytest.raises(TrainingError, match="several labels") as e:
        train(tiny(), prepare_dataset(both, 32, 32))
    assert "--policy dominant-area" in e.value.remedy


@pytest.mark.parametrize("batch_size", [25, 10_000])
def test_a_batch_larger_than_the_data_is_cut_and_told(tmp_path, batch_size):
    trained = train(tiny(batch_size=batch_size, epochs=1), toy(tmp_path))
    assert [p for p in trained.problems if f"batch_size {batch_size}" in p and "24 is used" in p]


def test_one_training_image_a_class(tmp_path):
    trained = train(tiny(epochs=1, mixup=0.2, accumulate=4), toy(tmp_path, train=3))
    assert len(trained.history) == 1


def test_nothing_to_validate_on(tmp_path):
    trained = train(tiny(epochs=2, patience=1), toy(tmp_path, held=0))
    assert not trained.selected and trained.best_epoch == 1 and not trained.stopped


def test_images_that_moved(tmp_path):
    toy_manifest(tmp_path / "here")
    (tmp_path / "here" / "train7.png").rename(tmp_path / "train7.png")
    with refused("images-gone", "1 of 36 images", "train7.png") as e:
        open_dataset(tiny(data=tmp_path / "here"))
    assert "manifest.csv" in e.value.problem and "lados data import" in e.value.remedy
    shutil.move(tmp_path / "here", tmp_path / "there")
    (tmp_path / "train7.png").rename(tmp_path / "there" / "train7.png")
    assert len(open_dataset(tiny(data=tmp_path / "there", audit=False)).manifest) == 36, "a dataset moves as a whole"


def test_images_that_cannot_be_read_are_left_out_and_named(tmp_path):
    manifest = toy_manifest(tmp_path)
    (tmp_path / "train3.png").write_bytes(b"")
    (tmp_path / "valid2.png").write_bytes((tmp_path / "valid2.png").read_bytes()[:60])
    data = prepare_dataset(manifest, 32, 32)
    assert len(data.labels) == 34 and len(train(tiny(epochs=1), data).history) == 1
    assert any("train3.png" in p for p in data.problems) and any("valid2.png" in p for p in data.problems)


# parameters


@pytest.mark.parametrize(("text", "said"), [
    ("epohcs: 3\n", ["epohcs", "epochs"]),
    ("backbone: resnet10t\nlr: fast\n", ["lr", "fast"]),
    ("batch_size: 0\n", ["batch_size"]),
    ("epochs: 3\n  size: 2\n", ["YAML"]),
    ("- epochs\n", ["mapping"]),
    ("preset: resnet5O\n", ["resnet5O", "resnet50"]),
    ("fractions: [0.5, 0.1, 0.1]\n", ["sum to 1"]),
])
def test_a_parameters_file_with_a_fault_is_named(tmp_path, text, said):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as e:
        load_params(path)
    named = str(e.value)
    assert all(word in named for word in said), named
    if "preset" not in text:
        assert "mine.yaml" in named


def test_every_preset_is_valid_and_complete(tmp_path):
    from lados.runs.folders import jobs_folder
    for path in jobs_folder().glob("*.yaml"):
        assert load_params(path.stem).preset == path.stem
        assert set(yaml.safe_load(path.read_text())) <= set(type(make_params({})).model_fields)


# weights


@pytest.mark.parametrize("content", [None, b"", b"\x00" * 100, b"not a weights file"])
def test_weights_that_are_missing_or_damaged(tmp_path, content):
    path = tmp_path / "mine.safetensors"
    if content is not None:
        path.write_bytes(content)
    with refused("weights-not-found" if content is None else "weights-unusable", "mine.safetensors") as e:
        train(tiny(pretrained=path), toy(tmp_path / "toy"))
    assert ("--pretrained false" if content is None else "--backbone") in e.value.remedy


def test_weights_of_another_network(tmp_path):
    save_file(make_backbone("test_vit", size=160).state_dict(), tmp_path / "vit.safetensors")
    with refused("weights-unusable", "vit.safetensors", "test_resnet"):
        train(tiny(pretrained=tmp_path / "vit.safetensors"), toy(tmp_path / "toy"))


def test_weights_that_fit(tmp_path):
    net = make_backbone("test_resnet", size=32, classes=1000)
    save_file(net.state_dict(), tmp_path / "own.safetensors")
    from lados.model.train import start_network
    body = start_network(tiny(pretrained=tmp_path / "own.safetensors")).state_dict()
    first = next(k for k in body if k.endswith("weight"))
    assert torch.equal(body[first], net.state_dict()[first])


HUB = """
from lados.core import WeightsError
from lados.model.params import make_params
from lados.model.train import start_network
try:
    start_network(make_params({"backbone": "resnet18", "pretrained": True, "size": 64}))
except WeightsError as e:
    print(e)
"""


def test_a_hub_out_of_reach_names_three_ways_on(tmp_path, environment):
    env = {**environment, "HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    said = subprocess.run([sys.executable, "-c", HUB], env=env, capture_output=True, text=True, timeout=120).stdout
    assert "resnet18 could not be fetched" in said
    assert all(way in said for way in ("(1)", "HF_ENDPOINT", "(2)", ".safetensors", "(3)", "--pretrained false"))


@pytest.mark.parametrize("changes", [{"backbone": "resnet5O"}, {"backbone": "no such thing at all"}])
def test_unknown_backbone(tmp_path, changes):
    with refused("unknown-name", changes["backbone"]) as e:
        train(tiny(**changes), toy(tmp_path))
    assert len(e.value.remedy) > 10


def test_half_floats_need_a_gpu(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match="fp16"):
        train(tiny(precision="fp16"), toy(tmp_path))


# disk


@pytest.mark.parametrize("left", [0, 200_000])
def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, left):
    data = toy(tmp_path / "toy")
    with small_disk(tmp_path / "disk", "16m") as disk:
        run = disk / "run"
        train(tiny(epochs=1), data, run)
        last = run / "checkpoint" / "last.safetensors"
        whole, free = last.read_bytes(), shutil.disk_usage(disk).free
        (disk / "others").write_bytes(os.urandom(free - left // 4096 * 4096))
        with pytest.raises(TrainingError, match="cannot be written") as e:
            train(tiny(epochs=3), data, run)
        assert "checkpoint" in e.value.problem and "free some space" in e.value.remedy
        assert last.read_bytes() == whole and load_state(last)[1]["keeper"]["epochs_done"] == 1
        assert not list(run.rglob("*.tmp*")), "no half files"
        (disk / "others").unlink()
        assert len(train(tiny(epochs=3), data, run).history) == 3
        assert read_history(run / "history.csv")["epoch"].tolist() == [0, 1, 2]


def test_every_refusal_has_a_remedy(tmp_path):
    data = toy(tmp_path / "toy")
    for faulty in ({"backbone": "x"}, {"pretrained": Path("/nowhere.safetensors")}):
        with pytest.raises(LadosError) as e:
            train(tiny(**faulty), data)
        assert e.value.remedy
