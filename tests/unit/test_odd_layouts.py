"The layouts and dialects of tables that people have are read, and what is not read is named."

import json

import numpy as np
import pytest
from commands import refused
from PIL import Image

from lados.core import DataError
from lados.data.formats import folder_class, read_rows, table_form
from lados.data.importers import import_dataset, recognise
from lados.data.manifest import load_manifest
from lados.data.walk import split_of

BOX = [8, 8, 32, 32]


def place(folder, *names):
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    return folder


def coco(path, *names):
    "A COCO file: the first image shows oil, the second a ship."
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = range(1, len(names) + 1)
    path.write_text(json.dumps({
        "images": [{"id": i, "file_name": n, "width": 64, "height": 64} for i, n in zip(ids, names, strict=True)],
        "annotations": [{"image_id": i, "category_id": i, "bbox": BOX} for i in ids],
        "categories": [{"id": 1, "name": "oil"}, {"id": 2, "name": "ship"}]}))


def rows(folder):
    frame = import_dataset(folder).frame
    return sorted(zip(frame["image"], frame["split"], frame["label"], strict=True))


# COCO


@pytest.mark.parametrize("name, split", [("result.json", ""), ("train.json", "train"), ("via_export_coco.json", ""), ("annotations_val.json", "valid"),
                                         ("coco-test.json", "test"), ("dev.json", "valid"), ("Labels.JSON", ""), ("my export (2).json", "")])
def test_a_lone_json_of_any_name(tmp_path, name, split):
    coco(place(tmp_path, "images/a.png", "images/b.png") / name, "a.png", "b.png")
    (tmp_path / "package.json").write_text('{"images": 3}')
    (tmp_path / "other.json").write_text("[1]")
    assert rows(tmp_path) == [("images/a.png", split, "oil"), ("images/b.png", split, "ship")]
    assert import_dataset(tmp_path).meta["files"]["left_aside"] == 2


@pytest.mark.parametrize("folder", ["annotations", "Annotations", "labels"])
def test_a_json_in_a_folder_of_its_own(tmp_path, folder):
    coco(place(tmp_path, "images/a.png", "images/b.png") / folder / "result.json", "a.png", "b.png")
    assert rows(tmp_path) == [("images/a.png", "", "oil"), ("images/b.png", "", "ship")]


def test_a_json_for_each_split(tmp_path):
    for split in ("train", "val", "test_set"):
        coco(place(tmp_path, f"images/{split}_a.png", f"images/{split}_b.png") / f"{split}.json", f"{split}_a.png", f"{split}_b.png")
    assert [r[1] for r in rows(tmp_path)] == ["test", "test", "train", "train", "valid", "valid"]


def test_a_split_folder_without_its_json_is_named(tmp_path):
    coco(place(tmp_path, "train/a.png", "train/b.png", "valid/c.png") / "train/_annotations.coco.json", "a.png", "b.png")
    manifest = import_dataset(tmp_path)
    assert [w["file"].split("/")[-1] for w in manifest.meta["warnings"] if w["kind"] == "unlisted-image"] == ["c.png"]


# splits


@pytest.mark.parametrize("name, split", [("dev", "valid"), ("test_set", "test"), ("test set", "test"), ("Test-Set", "test"), ("Validation", "valid"), ("trainset", "train"),
                                         ("training_data", "train"), ("val2017", "valid"), ("train_images", "train"), ("01_train", "train"), ("holdout", "test"),
                                         ("oil", None), ("trainer", None), ("tests of oil", None), ("", None), ("set", None), ("2017", None)])
def test_a_split_by_any_name(name, split):
    assert split_of(name) == split


def test_split_folders_that_are_none_are_told(tmp_path):
    place(tmp_path, *(f"{s}/{c}/{s[0]}{c[0]}.png" for s in ("train", "dev", "test set", "evaluation") for c in ("oil", "ship")))
    manifest = import_dataset(tmp_path)
    assert sorted(manifest.frame["split"]) == ["test"] * 2 + ["train"] * 2 + ["valid"] * 2
    assert manifest.meta["files"]["left_out"] == manifest.meta["warning_counts"]["unlisted-image"] == 2


def test_splits_below_classes(tmp_path):
    place(tmp_path, *(f"{c}/{s}/1.png" for s in ("train", "test") for c in ("oil", "ship")))
    assert {r[:2] for r in rows(tmp_path)} == {(f"{c}/{s}/1.png", s) for s in ("train", "test") for c in ("oil", "ship")}


@pytest.mark.parametrize("names", [("01_oil", "02_ship"), ("1. oil", "2. ship"), ("00-Oil", "01-Ship"), ("1 oil platform", "2 ship")])
def test_numbered_folders_of_classes(tmp_path, names):
    place(tmp_path, *(f"{n}/{i}.png" for i, n in enumerate(names)))
    assert [r[2] for r in rows(tmp_path)] == [folder_class(n) for n in names] and "ship" in [r[2] for r in rows(tmp_path)]
    assert len(import_dataset(tmp_path).label_set) == 6


@pytest.mark.parametrize("folder", ["thumbs", "_thumbs", "Thumbnails", "_thumbnails", "@eaDir", ".thumbs"])
def test_small_copies_that_a_program_has_made_are_no_images_of_their_own(tmp_path, folder):
    place(tmp_path, "oil/a.png", "ship/b.png", f"oil/{folder}/a.png", f"{folder}/b.png")
    assert rows(tmp_path) == [("oil/a.png", "", "oil"), ("ship/b.png", "", "ship")]


def test_numbers_in_front_of_all_folders_are_no_part_of_their_names(tmp_path):
    place(tmp_path, "1_oil/a.png", "2_kelp/b.png")
    assert [r[2] for r in rows(tmp_path)] == ["oil", "kelp"]
    place(tmp_path / "years", "2024/a.png", "2025/b.png")
    assert [r[2] for r in rows(tmp_path / "years")] == ["2024", "2025"], "numbers alone are names"


def test_a_dataset_further_down_is_named(tmp_path):
    place(tmp_path, "unpacked/dataset/oil/a.png", "unpacked/dataset/ship/b.png")
    with refused("dataset-unreadable", "unpacked/dataset is one"):
        import_dataset(tmp_path)


# masks


def mask(path, value=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((64, 64), np.uint8)
    pixels[:, :32] = value
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize("images, masks, table", [
    ("images/{}.png", "masks/{}.png", "_classes.csv"), ("images/{}.png", "masks/{}.png", "masks/_classes.csv"), ("Images/{}.png", "Masks/{}_mask.png", "classes.csv"),
    ("train/images/{}.png", "train/masks/{}.png", "_classes.csv"), ("images/train/{}.png", "masks/train/{}.png", "_classes.csv"),
    ("img/{}.png", "mask/{}.tif", "_classes.csv"), ("images/{}.png", "labels/{}.png", "_classes.csv"), ("{}.png", "{}_mask.png", "_classes.csv")])
def test_images_and_masks(tmp_path, images, masks, table):
    for i, name in enumerate("ab", 1):
        place(tmp_path, images.format(name))
        mask(tmp_path / masks.format(name), i)
    (tmp_path / table).write_text("Pixel Value, Class\n0, background\n1, oil\n2, ship\n")
    split = "train" if "train" in images else ""
    assert rows(tmp_path) == [(images.format("a"), split, "oil"), (images.format("b"), split, "ship")]
    files = import_dataset(tmp_path).meta["files"]
    assert (files["total"], files["read"], files["annotations"]) == (5, 2, 3)


def test_masks_without_a_table_say_which_to_write(tmp_path):
    mask(place(tmp_path, "images/a.png") / "masks/a.png")
    with refused("dataset-unreadable", "_classes.csv"):
        import_dataset(tmp_path)


# tables


ONE_HOT = "filename, oil, ship\na.png, 1, 0\nb.png, 0, 1\n"


def test_roboflow_s_classification(tmp_path):
    for split in ("train", "valid"):
        place(tmp_path, *(f"{split}/{n}.png" for n in "ab"))
        (tmp_path / split / "_classes.csv").write_text(ONE_HOT)
    assert recognise(tmp_path) == "table"
    assert rows(tmp_path) == [(f"{s}/{n}.png", s, c) for s in ("train", "valid") for n, c in (("a", "oil"), ("b", "ship"))]


@pytest.mark.parametrize("text", [ONE_HOT, "file;oil;ship\na.png;1.0;0.0\nb.png;0.0;1.0\n", "image,oil,ship\na.png,True,False\nb.png,false,true\n",
                                  "image,oil,ship\na.png,x,\nb.png,,x\n", "file\tship\toil\na.png\tno\tyes\nb.png\tyes\tno\n", "file,oil,ship,split\na.png,1,0,\nb.png,0,1,\n",
                                  "file,group,oil,ship,altitude\na.png,1,1,0,120.5\nb.png,2,0,1,99\n", "file,oil,ship,Unlabeled\na.png,1,0,0\nb.png,0,1,0\n"])
def test_a_column_for_each_class(tmp_path, text):
    (place(tmp_path, "a.png", "b.png") / "labels.csv").write_text(text)
    assert [r[2] for r in rows(tmp_path)] == ["oil", "ship"]


def test_zeros_are_none_of_the_classes_and_blanks_are_nothing(tmp_path):
    (place(tmp_path, *(f"{n}.png" for n in "abcd")) / "labels.csv").write_text("file,oil,ship\na.png,1,1\nb.png,0,0\nc.png,,\nd.png,0,1\n")
    assert [r[2] for r in rows(tmp_path)] == ["oil|ship", "background", "ship"]
    own = place(tmp_path / "own", "a.png", "b.png", "c.png")
    (own / "labels.csv").write_text("file,kelp,sand\na.png,1,0\nb.png,0,0\nc.png,0,1\n")
    assert [r[2] for r in rows(own)] == ["kelp", "background", "sand"]


@pytest.mark.parametrize("label", ["nan", "NaN", "NULL", "n/a", "<NA>", "-", "?", "unlabeled", "None", '""'])
def test_what_programs_write_for_no_label_is_no_class(tmp_path, label):
    (place(tmp_path, "a.png", "b.png", "c.png") / "labels.csv").write_text(f"file,label\na.png,{label}\nb.png,ship\nc.png,oil\n")
    found = import_dataset(tmp_path)
    assert list(found.frame["label"]) == ["ship", "oil"] and len(found.label_set) == 6
    said, = (n for n in found.meta["warnings"] if n["file"].endswith("a.png"))
    assert said["kind"] == "empty-cell" and "line 2" in said["message"]


def test_a_person_s_word_for_clean_sea_is_background(tmp_path):
    (place(tmp_path, "a.png", "b.png") / "labels.csv").write_text("file,label\na.png,none\nb.png,ship\n")
    assert [r[2] for r in rows(tmp_path)] == ["background", "ship"]


@pytest.mark.parametrize("name", ["unlabeled", "Unlabelled", "not-labeled", "unannotated"])
@pytest.mark.parametrize("classes", [("oil", "sheen"), ("kelp", "sand")])
def test_what_waits_for_its_label_is_left_out_by_name(tmp_path, name, classes):
    place(tmp_path, *(f"{folder}/{n}.png" for n in "ab" for folder in (*classes, name)))
    found = import_dataset(tmp_path)
    assert sorted({*found.frame["label"]}) == sorted(classes) and name not in found.label_set.names
    assert [n["file"] for n in found.meta["warnings"] if n["kind"] == "unlisted-image"] == [str(tmp_path / name / f"{n}.png") for n in "ab"]
    assert (found.meta["files"]["read"], found.meta["files"]["left_out"]) == (4, 2)


@pytest.mark.parametrize("text", ["file,score\na.png,0.7\n", "file,reviewed\na.png,1\n", "file,oil\na.png,0.7\n", "file,x,y\na.png,1,17\n"])
def test_numbers_are_no_classes(tmp_path, text):
    (tmp_path / "t.csv").write_text(text)
    assert table_form(tmp_path / "t.csv") is None


@pytest.mark.parametrize("text", [
    "sep=;\nfile;label\na.png;oil\nb.png;ship\n", '"sep=;"\r\nfile;label\r\na.png;oil\r\nb.png;ship\r\n', "SEP=\t\nfile\tlabel\na.png\toil\nb.png\tship\n",
    "\n\n\nfile,label\na.png,oil\nb.png,ship\n", ";;\nfile;label\na.png;oil\nb.png;ship\n", "file;label;note, free, of commas\na.png;oil;\nb.png;ship;x\n",
    "\ufefffile,label\na.png,oil\nb.png,ship\n", "file|label\na.png|oil\nb.png|ship\n", "File Name,Class Name\na.png,oil\nb.png,ship\n", "#file,label\na.png,oil\nb.png,ship\n",
    "# made by hand\nfile,label\na.png,oil\nb.png,ship\n", '"file","label"\n"a.png","oil"\n"b.png","ship"\n', "file,label\ra.png,oil\rb.png,ship\r", "file , label\n a.png , oil \nb.png,\u00a0ship\n",
    "image-path,Category\na.png,Oil\nb.png,SHIP\n", "filename,label,width,height\na.png,oil,64,64\nb.png,ship,64,64\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le"])
def test_a_table_in_another_dialect(tmp_path, text, encoding):
    (place(tmp_path, "a.png", "b.png") / "labels.csv").write_bytes(text.encode(encoding))
    assert [r[2] for r in rows(tmp_path)] == ["oil", "ship"]
    assert [r[2] for r in rows(tmp_path / "labels.csv")] == ["oil", "ship"]


@pytest.mark.parametrize("label", ["oil\u00a0platform", "oil  platform", "Oil-Platform", " oil_platform\u200b", "oil \u2013 platform"])
def test_a_label_with_other_blanks(tmp_path, label):
    (place(tmp_path, "a.png", "b.png") / "labels.csv").write_text(f"file,label\na.png,{label}\nb.png,ship\n", encoding="utf-8")
    if "\u2013" in label:
        with refused("unknown-class"):
            import_dataset(tmp_path)
    else:
        assert [r[2] for r in rows(tmp_path)] == ["oil_platform", "ship"]


def test_lines_are_counted_behind_what_stands_in_front(tmp_path):
    (tmp_path / "t.csv").write_text("sep=;\n\nfile;label\na.png;oil\n")
    assert [line for line, _ in read_rows(tmp_path / "t.csv")] == [4]
    (tmp_path / "t.csv").write_text("file;label;label\na.png;oil;ship\n")
    with refused("dataset-unreadable", "'label'"):
        read_rows(tmp_path / "t.csv")


def test_a_manifest_that_a_spreadsheet_saved_again(tmp_path):
    manifest = import_dataset(place(tmp_path, "oil/1.png", "ship/2.png"))
    file = manifest.save(tmp_path)
    file.write_bytes(file.read_text().encode("utf-8-sig"))
    assert load_manifest(tmp_path).hash == manifest.hash


def test_a_label_set_with_a_mark_of_byte_order(tmp_path):
    place(tmp_path, "kelp/1.png", "sand/2.png")
    (tmp_path / "label_set.yaml").write_bytes("classes: [kelp, sand]\n".encode("utf-8-sig"))
    assert import_dataset(tmp_path).label_set.names == ("kelp", "sand")


@pytest.mark.parametrize("lone", [True, False], ids=["file", "folder"])
def test_a_project_of_another_annotator_is_refused_by_name(tmp_path, lone):
    entry = {"filename": "1.jpg", "size": 9, "file_attributes": {}, "regions": [
        {"shape_attributes": {"name": "rect", "x": 1, "y": 1, "width": 9, "height": 9}, "region_attributes": {"class": "oil"}}]}
    path = place(tmp_path, "1.jpg") / "via_project.json"
    path.write_text(json.dumps({"_via_settings": {}, "_via_img_metadata": {"1.jpg9": entry}} if lone else {"1.jpg9": entry}))
    with pytest.raises(DataError, match=r"(?s)VGG Image Annotator.*COCO format"):
        import_dataset(path if lone else tmp_path)
