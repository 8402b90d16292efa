"The file that a list means is found, however the list writes it; where two could be meant, none is. Camera counters and lenses are understood."

import json
import unicodedata

import numpy as np
import pytest
from commands import refused
from PIL import Image

from lados.cli.models import images
from lados.data.audit import audit, is_generic, manifest_of_names
from lados.data.importers import import_dataset
from lados.data.manifest import is_counter, source_names, source_stem
from lados.data.walk import NameMatcher

NFC, NFD = (unicodedata.normalize(form, "d\u00e9lta.jpg") for form in ("NFC", "NFD"))
MEANT = [ # as the list has it, as the disk has it
    (NFC, NFD), (NFD, NFC), ("IMG_1.jpg", "IMG_1.JPG"), ("img_1.JPG", "IMG_1.jpg"), ("a%20b.jpg", "a b.jpg"), ("a b.jpg", "a%20b.jpg"),
    ("d%C3%A9lta.jpg", NFD), ("a.jpg?token=zz", "a.jpg"), ("https://host/x/a.jpg?token=zz&b=1", "a.jpg"), ("https://host/x/a%20b.jpg#top", "a b.jpg"),
    ("/data/local-files/?d=flight/b.jpg", "flight/b.jpg"), ("s3://bucket/flight/b.jpg", "flight/b.jpg"), ("file:///home/x/a.jpg", "a.jpg"),
    ("img\\a.jpg", "img/a.jpg"), (".\\img\\a.jpg", "img/a.jpg"), ("..\\..\\media\\upload\\4\\b.jpg", "images/b.jpg"), (" a.jpg", "a.jpg"),
    ("a.jpg ", "a.jpg"), ("\u00a0a.jpg", "a.jpg"), ("D:\\flights\\img\\a.jpg", "img/a.jpg"), ("d:/flights/img/a.jpg", "img/a.jpg"),
    ("\\\\server\\share\\img\\a.jpg", "img/a.jpg"), ("/home/other/img/a.jpg", "img/a.jpg"), ("./a.jpg", "a.jpg"), ("images/a.jpg", "a.jpg"),
    ("a.jpg", "images/a.jpg"), ("100%.jpg", "100%.jpg"), ("#1.jpg", "#1.jpg"), ("what?.jpg", "what?.jpg"), ("x[1].jpg", "x[1].jpg"), (" led.jpg", " led.jpg"),
    ("FLIGHT/A.JPG", "Flight/a.jpg"), ('"a.jpg"', "a.jpg"), ("a+b.jpg", "a+b.jpg"), ("stra\u00dfe.jpg", "STRASSE.jpg"),
]
NOT_MEANT = [ # the list, the disk
    (["b.jpg"], ["a.jpg"]), (["flight2/1.jpg"], ["flight1/1.jpg"]), (["1.jpg"], ["flight1/1.jpg", "flight2/1.jpg"]), (["A.jpg"], ["a.jpg", "a.JPG"]),
    (["camA/1.jpg", "camB/1.jpg"], ["1.jpg"]), (["C:\\a\\1.jpg", "C:\\b\\1.jpg"], ["1.jpg"]), (["../secret.jpg"], ["deep/er/none.jpg"]), ([""], ["a.jpg"]), (["a"], ["a.jpg"]),
]


def place(folder, *names):
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (64, 64, 3), np.uint8)).save(path, "JPEG")
    return folder


@pytest.mark.parametrize("listed, there", MEANT)
def test_a_name_from_elsewhere_is_found_by_all(tmp_path, listed, there):
    folder = place(tmp_path / "set", there, "other/another.jpg")
    assert NameMatcher([folder], [listed]).find(listed) == folder / there
    (folder / "labels.csv").write_text(f'file,label\n"{listed.replace(chr(34), chr(34) * 2)}",oil\nother/another.jpg,ship\n', encoding="utf-8")
    table = import_dataset(folder / "labels.csv")
    assert list(table.frame["label"]) == ["oil", "ship"] and images(str(folder / "labels.csv"))[0] == folder / there
    (folder / "labels.csv").unlink()
    entries = [{"id": 1, "file_name": listed}, {"id": 2, "file_name": "other/another.jpg"}]
    annotations = [{"image_id": i, "category_id": i, "bbox": [9, 9, 30, 30]} for i in (1, 2)]
    text = json.dumps({"images": entries, "annotations": annotations, "categories": [{"id": 1, "name": "oil"}, {"id": 2, "name": "ship"}]})
    (folder / "_annotations.coco.json").write_text(text)
    assert list(import_dataset(folder).frame["label"]) == ["oil", "ship"]


@pytest.mark.parametrize("listed, there", NOT_MEANT)
def test_what_could_be_two_is_none(tmp_path, listed, there):
    matcher = NameMatcher([place(tmp_path, *there)], listed)
    assert [matcher.find(n) for n in listed] == [None] * len(listed)


def test_an_exact_name_comes_before_a_like_one(tmp_path):
    place(tmp_path, "a.jpg", "A.jpg", "sub/a.jpg", "a%20b.jpg", "a b.jpg", NFC, NFD)
    matcher = NameMatcher([tmp_path])
    for name in ("a.jpg", "A.jpg", "sub/a.jpg", "a%20b.jpg", "a b.jpg", NFC, NFD):
        assert matcher.find(name) == tmp_path / name


def test_nothing_above_the_folders_is_found(tmp_path):
    place(tmp_path, "secret.jpg", "set/a.jpg")
    for name in ("../secret.jpg", str(tmp_path / "secret.jpg"), "file:///" + str(tmp_path / "secret.jpg"), "..%2Fsecret.jpg"):
        assert NameMatcher([tmp_path / "set"], [name]).find(name) is None


@pytest.mark.parametrize("image, mask", [(NFC, f"{NFD[:-4]}_mask.png"), ("A.JPG", "A_mask.PNG"), ("a.jpg", "A_MASK.png"), ("a.jpg", "a-mask.png")])
def test_masks_are_found_by_the_same_rules(tmp_path, image, mask):
    place(tmp_path, image)
    Image.fromarray(np.ones((64, 64), np.uint8)).save(tmp_path / mask)
    (tmp_path / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, oil\n")
    assert list(import_dataset(tmp_path).frame["label"]) == ["oil"]


def test_two_files_that_could_be_meant_are_named(tmp_path):
    place(tmp_path, "x/1.jpg", "y/1.jpg", "2.jpg")
    (tmp_path / "labels.csv").write_text("file,label\n1.jpg,oil\n2.jpg,ship\n")
    told = import_dataset(tmp_path / "labels.csv").meta["warnings"]
    assert "it could be any of x/1.jpg, y/1.jpg" in told[0]["message"]


@pytest.mark.parametrize(("text", "code"), [("file,label\n", "no-images"), ("file\n", "no-images"), ("label,class\noil,ship\n", "dataset-unreadable")])
def test_a_table_that_lists_nothing_says_so(tmp_path, text, code):
    (tmp_path / "t.csv").write_text(text)
    with refused(code, "t.csv"):
        images(str(tmp_path / "t.csv"))


def test_predict_finds_a_file_whose_accents_are_written_otherwise(tmp_path):
    place(tmp_path, NFD)
    assert images(str(tmp_path / NFC)) == [tmp_path / NFD] and images(str(tmp_path / "gone.jpg")) == [tmp_path / "gone.jpg"]


# sources


COUNTERS = ["DJI_0001", "DSC_0042", "DSC00012", "_DSC1234", "DSCN0007", "DSCF0100", "IMG_0915", "_MG_1234", "GOPR0001", "GX010123", "GH010001", "P1010001",
            "PA230045", "MVI_0001", "PICT0001", "SAM_0001", "CIMG0001", "IMGP0001", "R0010001", "L1000001", "YUN00001", "100_0001", "101-0005", "MAX_0001", "IRX_0001"]
UNIQUE = ["DJI_20230101120000_0001", "IMG_20230101_120000", "PXL_20230101_120000123", "12", "oil-spill-3", "4704", "slick"]


@pytest.mark.parametrize("stem", COUNTERS)
def test_a_counter_that_starts_again_names_two_sources(stem):
    assert is_counter(stem) and is_generic(stem)
    assert source_names([f"train/flight1/{stem}.JPG", f"test/flight2/{stem}.JPG"]) == [f"train/flight1/{stem}", f"test/flight2/{stem}"]
    assert source_names([f"flight1/{stem}.JPG", f"flight1/{stem[:-1]}9.JPG"]) == [stem, f"{stem[:-1]}9"], "in one folder nothing starts again"
    copies = [f"{split}/{stem}_jpg.rf.{c * 32}.jpg" for split, c in (("train", "a"), ("test", "b"))]
    assert source_names(copies) == [stem] * 2, "copies of one photograph are one source"


@pytest.mark.parametrize("stem", UNIQUE)
def test_a_name_that_no_counter_made_is_one_source_everywhere(stem):
    assert not is_counter(stem) and source_names([f"a/{stem}.jpg", f"b/{stem}.jpg"]) == [stem] * 2


@pytest.mark.parametrize("lenses", ["TVWZ", ("T", "W"), ("WIDE", "ZOOM", "THRM"), ("D", "MS_G", "MS_NIR", "MS_RE")])
@pytest.mark.parametrize("stem", ["DJI_0042", "DJI_20230101120000_0042"])
def test_the_lenses_of_one_trigger_are_one_source(stem, lenses):
    names = [f"{stem}_{lens}.JPG" for lens in lenses]
    assert {source_stem(n) for n in names} == {stem} and len(set(source_names([f"oil/{n}" for n in names]))) == 1
    apart = [f"{'train' if i else 'test'}/f{i}/{n}" for i, n in enumerate(names)]
    assert len(set(source_names(apart))) == 1, "a split that tears them apart leaks"
    assert source_stem("DJI_0042_V_point1.JPG") == "DJI_0042_point1" and source_stem("oil_T.jpg") == "oil_T"


def test_lenses_of_two_flights_are_two_sources():
    names = [f"flight{f}/DJI_0001_{lens}.JPG" for f in (1, 2) for lens in "TW"]
    assert source_names(names) == ["flight1/DJI_0001"] * 2 + ["flight2/DJI_0001"] * 2


def test_the_audit_sees_no_false_leak_and_no_true_one_less(tmp_path):
    paths = [f"{split}/oil/{flight}/DJI_{i:04}.JPG" for split, flight in (("train", "f1"), ("test", "f2")) for i in range(10)]
    splits = [p.split("/")[0] for p in paths]
    found = audit(manifest_of_names(paths, ["oil"] * 20, splits), hashes=False).to_dict()
    assert found["leaks"]["test"]["any"] == 0 and found["source_groups"] == 20 and found["baselines"]["test"]["known"] == 0
    torn = [f"{'test' if lens == 'T' else 'train'}/oil/DJI_{i:04}_{lens}.JPG" for i in range(10) for lens in "TW"]
    found = audit(manifest_of_names(torn, ["oil"] * 20, [p.split("/")[0] for p in torn]), hashes=False).to_dict()
    assert found["leaks"]["test"]["any"] == 10 and found["source_groups"] == 10


def test_an_import_keeps_flights_apart(tmp_path):
    place(tmp_path, *(f"{c}/{f}/DJI_{i:04}.JPG" for c, f in (("oil", "f1"), ("ship", "f2")) for i in range(3)))
    assert import_dataset(tmp_path).frame["source_group"].nunique() == 6


def test_many_flights_are_told_apart_in_time():
    names = [f"flight{f:03}/DJI_{i:04}.JPG" for f in range(60) for i in range(300)]
    assert len(set(source_names(names))) == len(names)
