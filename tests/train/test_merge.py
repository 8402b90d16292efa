"Several datasets as one, and what people said of answers: whose label counts, and where each image stays."

import pytest
from toy import tiny, toy_manifest
from typer.testing import CliRunner

from lados.cli.main import app
from lados.core import DataError
from lados.data.corrections import Corrections
from lados.data.manifest import Manifest, load_manifest
from lados.data.merge import merge_manifests
from lados.labels import LabelClass, LabelSet
from lados.model.datamodule import open_dataset


@pytest.fixture
def base(home):
    return toy_manifest(home / "base", train=48, held=12)


def test_corrections_overrule_and_nothing_held_out_moves(base, home):
    before = open_dataset(tiny(data=base.root)).manifest.frame.set_index("sha256")
    kept, tested = Corrections(), before.index[before["split"] == "test"][0]
    row = base.frame.index[base.frame["sha256"] == tested][0]
    said = next(c for c in ("oil", "ship") if c != before.at[tested, "label"])
    kept.save(base.paths[row], "seen-before.png", said, predicted="background")
    for path in toy_manifest(home / "flight", train=9, held=0, seed=9).paths:
        kept.save(path, f"flight-{path.name}", "oil", predicted="oil")
    after = open_dataset(tiny(data=base.root, corrections=True)).manifest.frame.set_index("sha256")
    assert len(after) == len(before) + 9 and after.at[tested, "label"] == said and after.at[tested, "split"] == "test"
    assert (after.loc[before.index, "split"] == before["split"]).all()
    assert open_dataset(tiny(data=base.root, corrections=home / "nobody")).manifest.hash == open_dataset(tiny(data=base.root)).manifest.hash


def test_two_labels_of_one_image_stop_a_training_and_a_merge(base, home):
    other = base.frame.assign(label=["oil" if c == "ship" else c for c in base.frame["label"]])
    (home / "other").mkdir()
    Manifest(other, base.root).save(home / "other")
    with pytest.raises(DataError, match="two labels") as error:
        open_dataset(tiny(data=[base.root, home / "other"]))
    assert "lados data merge" in error.value.remedy
    asked = ["data", "merge", str(base.root), str(home / "other"), "--out", str(home / "both"), "--no-audit"]
    assert CliRunner().invoke(app, asked).exit_code != 0 and not (home / "both" / "manifest.csv").exists()
    answer = CliRunner().invoke(app, [*asked, "--on-conflict", "last"])
    assert answer.exit_code == 0 and "two labels" in answer.output, answer.output
    both = load_manifest(home / "both")
    assert len(both) == len(base) and "ship" not in set(both.frame["label"])


def test_classes_are_one_by_their_records(base, home):
    names = LabelSet((LabelClass("vessel"), LabelClass("kelp"), LabelClass("calm", background=True)))
    (home / "coast").mkdir()
    drawn = toy_manifest(home / "coast", train=6, held=0, seed=4)
    told = {"oil": "kelp", "ship": "vessel", "background": "calm"}
    coast = Manifest(drawn.frame.assign(label=drawn.frame["label"].map(told), source_group="coast " + drawn.frame["image"]).drop(
        columns=[c for c in drawn.frame if c.startswith("area_")]), drawn.root, {"label_set": names.to_dict()})
    merged = merge_manifests([base, coast], look=False).manifest
    assert merged.label_set.names == (*base.label_set.names, "kelp")
    assert set(merged.frame["label"][-6:]) == {"kelp", "ship", "background"}
