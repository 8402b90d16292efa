"What was said of an image is read where its meaning is plain, and costs the image its place where it is not; it never turns into clean sea."

import json

import numpy as np
import pytest
from commands import refused
from PIL import Image
from pycocotools import mask as mask_utils

from lados.core import DataError
from lados.data.annotations import BadOutline, Notes, box_of, class_areas, run_lengths, shapes_in
from lados.data.coco import id_key, read_coco
from lados.data.importers import import_dataset

SIZE = (100, 80) # of every image, pixels
SQUARE = [10, 10, 50, 10, 50, 50, 10, 50] # a fifth of it
BOX = [10, 10, 40, 40]
CATEGORIES = [{"id": 1, "name": "oil"}, {"id": 2, "name": "ship"}]
BLOT = np.zeros(SIZE[::-1], np.uint8, order="F")
BLOT[10:50, 10:50] = 1
PACKED = mask_utils.encode(BLOT)["counts"].decode()
RUNS = run_lengths(PACKED)
NAN = float("nan")


def picture(path, size=SIZE, turned=False, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1
    pixels = np.random.default_rng(len(path.name)).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, exif=exif)


def export(folder, annotations, images=None, categories=CATEGORIES, disk=True):
    "A COCO export of a.jpg (id 1) and b.jpg (id 2), unless other entries are given."
    entries = images or [{"id": i + 1, "file_name": f"{n}.jpg", "width": SIZE[0], "height": SIZE[1]} for i, n in enumerate("ab")]
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"images": entries, "annotations": annotations, "categories": categories})
    (folder / "_annotations.coco.json").write_text(text)
    for e in entries if disk else ():
        picture(folder / e["file_name"])
    return folder


def oil(image_id=1, **fields):
    return {"image_id": image_id, "category_id": 1, **fields}


SHIP = {"image_id": 2, "category_id": 2, "segmentation": [SQUARE]}


def labels(folder):
    frame = import_dataset(folder).frame
    return dict(zip(frame["image"], frame["label"], strict=True))


# ids


@pytest.mark.parametrize("given, listed", [(1.0, 1), ("1", 1), (" 1 ", 1), ("1.0", 1), (1, "1"), (1, 1.0), ("a.jpg", 1), ("A.JPG", 1), ("a", 1),
                                           ("img_1", "img_1"), ("img_1 ", "img_1"), ("000000000001", 1), (10**15, 1e15), (-1, "-1")])
def test_an_id_of_another_spelling_is_the_same_id(tmp_path, given, listed):
    entries = [{"id": listed, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}]
    assert labels(export(tmp_path, [oil(given, segmentation=[SQUARE]), SHIP], entries)) == {"a.jpg": "oil", "b.jpg": "ship"}


@pytest.mark.parametrize("given", [None, "", NAN, [], {}, True, "what", "x.jpg"])
def test_an_annotation_of_no_image_makes_no_image_clean_sea(tmp_path, given):
    entries = [{"id": i, "file_name": f"{n}.jpg"} for i, n in ((1, "a"), (2, "b"), (3, "c"))]
    folder = export(tmp_path, [oil(given, segmentation=[SQUARE]), {**SHIP}, {**SHIP, "image_id": 3}], entries)
    manifest = import_dataset(folder)
    assert list(manifest.frame["label"]) == ["ship", "ship"]
    told = [w for w in manifest.meta["warnings"] if w["kind"] == "lost-annotation"]
    assert len(told) == 1 and told[0]["file"].endswith("a.jpg")


def test_all_references_lost_stops(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        import_dataset(export(tmp_path, [oil(f"uuid-{i}", segmentation=[SQUARE]) for i in range(2)]))


def test_ids_of_deleted_images_harm_nobody(tmp_path):
    assert labels(export(tmp_path, [oil(77, segmentation=[SQUARE]), SHIP])) == {"a.jpg": "background", "b.jpg": "ship"}


def test_two_images_of_one_id_are_both_left_out(tmp_path):
    entries = [{"id": i, "file_name": f"{n}.jpg"} for i, n in ((1, "a"), ("1", "c"), (2, "b"), (3, "d"), (4, "e"))]
    rest = [{**SHIP, "image_id": i} for i in (2, 3, 4)]
    assert labels(export(tmp_path, [oil(segmentation=[SQUARE]), *rest], entries)) == dict.fromkeys(["b.jpg", "d.jpg", "e.jpg"], "ship")


def test_an_image_that_is_listed_twice_keeps_what_both_entries_say(tmp_path):
    entries = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}, {"id": 3, "file_name": "./a.jpg"}]
    assert labels(export(tmp_path, [oil(3, segmentation=[SQUARE]), SHIP], entries)) == {"a.jpg": "oil", "b.jpg": "ship"}


def test_a_file_for_each_class(tmp_path):
    for i, name in enumerate(("oil", "ship")):
        export(tmp_path, [{"image_id": 1, "category_id": 1, "segmentation": [SQUARE if i else [0, 0, 90, 0, 90, 70, 0, 70]]}],
               categories=[{"id": 1, "name": name}])
        (tmp_path / "_annotations.coco.json").rename(tmp_path / f"{name}.json")
    notes = Notes()
    records = {r.path.name: r.areas for r in read_coco(tmp_path, notes)}
    assert set(records["a.jpg"]) == {"oil", "ship"} and records["b.jpg"] == {} and notes.counts() == {"listed-twice": 2}


@pytest.mark.parametrize("given", [1.0, "1", "1.0", "oil", "Oil"])
def test_a_category_of_another_spelling(tmp_path, given):
    assert labels(export(tmp_path, [{**oil(segmentation=[SQUARE]), "category_id": given}, SHIP])) == {"a.jpg": "oil", "b.jpg": "ship"}


@pytest.mark.parametrize("categories", [[{"id": 1, "name": "oil"}, {"id": 1.0, "name": "ship"}], [{"id": 1}], [{"id": 1, "name": None}],
                                        [{"id": 1, "name": " "}], [{"name": "oil"}], []])
def test_a_category_that_cannot_be_told_stops(tmp_path, categories):
    with refused("dataset-unreadable" if len(categories) > 1 else "unknown-class"):
        import_dataset(export(tmp_path, [oil(segmentation=[SQUARE])], categories=categories))


def test_ids_as_keys():
    assert id_key(True) is None and id_key(float("inf")) is None and id_key("1e3") == "1000" and id_key("a b") == "a b"


# outlines


READ = {
    "pairs": [[[10, 10], [50, 10], [50, 50], [10, 50]]], "points": [{"x": 10, "y": 10}, {"x": 50, "y": 10}, {"x": 50, "y": 50}, {"x": 10, "y": 50}],
    "pairs without a list": [[10, 10], [50, 10], [50, 50], [10, 50]], "flat": SQUARE, "text numbers": [list(map(str, SQUARE))],
    "one list more": [[SQUARE]], "as text": json.dumps([SQUARE]), "flat as text": json.dumps(SQUARE), "an empty part": [[], SQUARE],
    "a part of two points": [SQUARE, [0, 0, 5, 5]], "several": [SQUARE, SQUARE], "closed": [[*SQUARE, 10, 10]],
    "annotator": {"all_points_x": SQUARE[::2], "all_points_y": SQUARE[1::2]},
    "packed": {"size": [80, 100], "counts": PACKED}, "packed, size as text": {"size": ["80", "100.0"], "counts": PACKED},
    "packed without a size": {"counts": PACKED}, "runs": {"size": [80, 100], "counts": RUNS}, "packed in a list": [{"size": [80, 100], "counts": PACKED}],
    "runs as floats": {"size": [80.0, 100.0], "counts": list(map(float, RUNS))}, "runs as text": {"size": [80, 100], "counts": list(map(str, RUNS))},
    "runs in a text": {"size": [80, 100], "counts": json.dumps(RUNS)},
}


@pytest.mark.parametrize("how", READ)
def test_an_outline_in_another_dialect_is_read(tmp_path, how):
    frame = import_dataset(export(tmp_path, [oil(segmentation=READ[how]), SHIP])).frame
    assert list(frame["label"]) == ["oil", "ship"] and frame["area_oil"][0] == pytest.approx(0.2)


BAD = {
    "nan": [[10, 10, NAN, 10, 50, 50]], "a nan part": [SQUARE, [10, 10, NAN, 10, 50, 50]], "odd": [[10, 10, 50, 10, 50]], "words": [["a"] * 6],
    "a word": "polygon", "null part": [None], "a number": 3, "a number of numbers": [SQUARE, 3], "no runs": {"size": [80, 100]},
    "short": {"size": [80, 100], "counts": [5]}, "long": {"size": [80, 100], "counts": [9000]}, "no form": {"size": [80, 100], "counts": "\u00ff!"},
    "halves": {"size": [80, 100], "counts": [100.5, 7899.5]}, "negative": {"size": [80, 100], "counts": [-1, 8001]}, "cut": {"size": [80, 100], "counts": PACKED[:-3]},
    "infinite": [[10, 10, float("inf"), 10, 50, 50]], "another mapping": {"points": SQUARE}, "outside": [[200, 200, 300, 200, 300, 300]],
    "left of it": [[-90, 10, -50, 10, -50, 50]], "in fractions": [[0.1, 0.1, 0.5, 0.1, 0.5, 0.5]], "true": True, "texts": [["1,2", "3,4", "5,6"]],
}
EMPTY = {"nothing": [], "null": None, "an empty list": [[]], "two lists": [[], []], "a line": [[10, 10, 50, 50]], "a point": [[10, 10]],
         "three points of a line": [[10, 10, 10, 20, 10, 30]], "no pixel": {"size": [80, 100], "counts": [8000]}, "empty text": "", "empty list as text": "[]"}


@pytest.mark.parametrize("how", [*BAD, *EMPTY])
def test_a_good_box_stands_in_for_a_bad_outline(tmp_path, how):
    frame = import_dataset(export(tmp_path, [oil(segmentation={**BAD, **EMPTY}[how], bbox=BOX), SHIP])).frame
    assert list(frame["label"]) == ["oil", "ship"] and frame["area_oil"][0] == pytest.approx(0.2)


@pytest.mark.parametrize("box", [None, [], [NAN] * 4, [1, 2, 3], "box", [10, 10, 0, 0], [300, 300, 10, 10], [0.1, 0.1, 0.4, 0.4], {"x": 1}, [None] * 4])
@pytest.mark.parametrize("how", ["nan", "cut", "nothing", "a line", "no pixel"])
def test_without_a_good_box_the_image_is_left_out_by_name(tmp_path, how, box):
    manifest = import_dataset(export(tmp_path, [oil(segmentation={**BAD, **EMPTY}[how], bbox=box), SHIP]))
    assert list(manifest.frame["image"]) == ["b.jpg"]
    told = [w for w in manifest.meta["warnings"] if w["kind"] == "unreadable-annotation"]
    assert len(told) == 1 and told[0]["file"].endswith("a.jpg") and "oil" in told[0]["message"]


@pytest.mark.parametrize("how", BAD)
def test_a_bad_outline_costs_the_image_its_place(tmp_path, how):
    assert labels(export(tmp_path, [oil(segmentation=BAD[how]), SHIP])) == {"b.jpg": "ship"}
    assert labels(export(tmp_path, [oil(segmentation=BAD[how]), oil(segmentation=[SQUARE]), SHIP])) == {"b.jpg": "ship"}, "beside a good one, too"


def test_a_line_beside_a_good_outline_of_its_class_is_no_fault(tmp_path):
    assert labels(export(tmp_path, [oil(segmentation=EMPTY["a line"]), oil(segmentation=[SQUARE]), SHIP])) == {"a.jpg": "oil", "b.jpg": "ship"}
    of_ship = {**oil(segmentation=EMPTY["a line"]), "category_id": 2}
    assert labels(export(tmp_path / "other", [of_ship, oil(segmentation=[SQUARE]), SHIP])) == {"b.jpg": "ship"}, "of another class it is"


def test_key_points_alone_are_no_area(tmp_path):
    points = oil(keypoints=[10, 10, 2, 50, 50, 2], num_keypoints=2)
    assert labels(export(tmp_path, [points, SHIP])) == {"b.jpg": "ship"}
    assert labels(export(tmp_path / "box", [{**points, "bbox": BOX}, SHIP])) == {"a.jpg": "oil", "b.jpg": "ship"}


@pytest.mark.parametrize("box", [["10", "10", "40", "40"], "10, 10, 40, 40", "[10, 10, 40, 40]", {"x": 10, "y": 10, "width": 40, "height": 40},
                                 {"xmin": 10, "ymin": "10", "xmax": 50, "ymax": 50}, [50, 50, -40, -40], [10.0, 10, 40.0, 40], (10, 10, 40, 40)])
def test_a_box_in_another_dialect(tmp_path, box):
    frame = import_dataset(export(tmp_path, [oil(bbox=box), SHIP])).frame
    assert list(frame["label"]) == ["oil", "ship"] and frame["area_oil"][0] == pytest.approx(0.2)


def test_a_box_of_two_corners_says_so():
    assert box_of({"bbox": [10, 10, 50, 50], "bbox_mode": 0}) == box_of({"bbox": BOX}) == [10, 10, 50, 50]
    with pytest.raises(BadOutline):
        box_of({"bbox": [1, 2, 3, 4, 5]})


def test_a_far_ship_smaller_than_a_pixel_is_there(tmp_path):
    tiny = {**SHIP, "image_id": 1, "segmentation": [[20.2, 20.2, 20.5, 20.2, 20.5, 20.5]]}
    assert labels(export(tmp_path, [tiny, SHIP])) == {"a.jpg": "ship", "b.jpg": "ship"}


def test_a_speck_in_the_corner_pixel_beside_an_outline_is_no_fault(tmp_path):
    speck = [0, 0, 1, 0, 1, 1]
    frame = import_dataset(export(tmp_path, [oil(segmentation=[SQUARE, speck]), SHIP])).frame
    assert list(frame["label"]) == ["oil", "ship"] and frame["area_oil"][0] == pytest.approx(0.2, abs=0.001)


def test_no_dialect_raises_anything_else():
    for how, outline in {**READ, **BAD, **EMPTY}.items():
        told = []
        class_areas([("oil", {"segmentation": outline})], *SIZE, lambda *what, told=told: told.append(what))
        assert any(kind == "bad-outline" for kind, _ in told) == (how not in READ), how
    assert list(shapes_in(None)) == []


def test_most_unreadable_stops_and_names_some(tmp_path):
    with pytest.raises(DataError, match=r"of 2 images the annotations cannot be read, of 0 they can: a\.jpg: oil"):
        import_dataset(export(tmp_path, [oil(segmentation=BAD["nan"]), {**SHIP, "segmentation": [[1]]}]))


# frames


@pytest.mark.parametrize("width, height", [(100.0, 80.0), ("100", "80"), (None, None), (0, 0), (-1, 80), ("", ""), (NAN, 80), (True, 1), ([100], [80])])
def test_a_size_of_another_spelling_or_none(tmp_path, width, height):
    entries = [{"id": 1, "file_name": "a.jpg", "width": width, "height": height}, {"id": 2, "file_name": "b.jpg"}]
    assert import_dataset(export(tmp_path, [oil(segmentation=[SQUARE]), SHIP], entries)).frame["area_oil"][0] == pytest.approx(0.2)


@pytest.mark.parametrize("size", [(None, None), (100, 80), (80, 100)])
@pytest.mark.parametrize("standing", [True, False])
def test_a_turned_camera(tmp_path, size, standing):
    "Outlines may refer to the image as it is stored or as it is shown; the one they fit in is meant."
    entries = [{"id": 1, "file_name": "a.jpg", **dict(zip(("width", "height"), size, strict=True))}, {"id": 2, "file_name": "b.jpg"}]
    low = [0, 60, 80, 60, 80, 100, 0, 100] if standing else [60, 0, 100, 0, 100, 80, 60, 80]
    folder = export(tmp_path, [oil(segmentation=[low]), SHIP], entries)
    picture(folder / "a.jpg", turned=True)
    assert import_dataset(folder).frame["area_oil"][0] == pytest.approx(0.4)


# masks


def masks(folder, saved, table="Pixel Value, Class\n0, background\n1, oil\n", name="a_mask.png"):
    "An export of a.jpg with the mask in question, and of two good ones."
    picture(folder / "a.jpg")
    saved.save(folder / name)
    for good in "bc":
        picture(folder / f"{good}.jpg")
        Image.fromarray(numbers(1)).save(folder / f"{good}_mask.png")
    (folder / "_classes.csv").write_text(table)
    return folder


def numbers(value, kind=np.uint8):
    a = np.zeros(SIZE[::-1], kind)
    a[:, :40] = value
    return a


def packed_palette():
    "A grey mask that a program has saved with a palette in another order."
    im = Image.fromarray(np.where(numbers(1) == 1, 3, 2).astype(np.uint8), "P")
    im.putpalette([9, 9, 9, 8, 8, 8, 0, 0, 0, 1, 1, 1])
    return im


def with_alpha(alpha):
    return Image.merge("LA", [Image.fromarray(numbers(1)), Image.fromarray(np.full(SIZE[::-1], alpha, np.uint8))])


@pytest.mark.parametrize("saved", [
    Image.fromarray(numbers(1)), Image.fromarray(numbers(255)), Image.fromarray(numbers(255)).convert("1"), Image.fromarray(numbers(1, np.uint16)),
    Image.fromarray(numbers(65535, np.uint16)), Image.fromarray(numbers(1)).convert("RGB"), Image.fromarray(numbers(1)).convert("RGBA"),
    with_alpha(255), Image.fromarray(numbers(1), "P"), packed_palette()],
    ids=["8 bits", "255", "1 bit", "16 bits", "65535", "rgb", "rgba", "grey and alpha", "palette", "palette in another order"])
def test_a_mask_saved_in_another_way_is_read(tmp_path, saved):
    frame = import_dataset(masks(tmp_path, saved)).frame
    assert list(frame["label"]) == ["oil"] * 3 and frame["area_oil"][0] == pytest.approx(0.4)


def colours():
    return Image.fromarray(np.stack([numbers(255), numbers(0), numbers(0)], 2))


@pytest.mark.parametrize("saved", [Image.fromarray(numbers(7)), Image.fromarray(np.where(numbers(1), 1, 255).astype(np.uint8)), with_alpha(0),
                                   colours(), Image.fromarray(numbers(300, np.uint16))],
                         ids=["unknown", "a class and a border", "transparent", "colours", "16 bits"])
def test_a_mask_that_cannot_be_told_is_no_clean_sea(tmp_path, saved):
    manifest = import_dataset(masks(tmp_path, saved))
    assert list(manifest.frame["image"]) == ["b.jpg", "c.jpg"]
    assert [w["file"].endswith("a.jpg") for w in manifest.meta["warnings"] if w["kind"] in ("unreadable-mask", "unknown-pixel-value")] == [True]


def test_255_of_several_classes_is_none_of_them(tmp_path):
    folder = masks(tmp_path, Image.fromarray(numbers(255)), "Pixel Value, Class\n0, background\n1, oil\n2, ship\n")
    assert list(import_dataset(folder).frame["image"]) == ["b.jpg", "c.jpg"]
    for name in "bc":
        Image.fromarray(numbers(255)).save(folder / f"{name}_mask.png")
    with pytest.raises(DataError, match="of 3 images the annotations cannot be read"):
        import_dataset(folder)


@pytest.mark.parametrize("table", ["0,background\n1,oil\n", "Class, Pixel Value\nbackground, 0\noil, 1\n", "Pixel Value;Class\n0;background\n1.0;oil\n",
                                   "\ufeffPixel Value, Class\n\n0, background\n 1 , oil \n", "sep=,\nPixel Value, Class\n0, background\n1, oil\n"])
def test_a_table_of_pixel_values_in_another_dialect(tmp_path, table):
    assert list(import_dataset(masks(tmp_path, Image.fromarray(numbers(1)), table)).frame["label"]) == ["oil"] * 3


@pytest.mark.parametrize("text", ["Pixel Value, Class\n1, oil\n1, ship\n", "Pixel Value, Class\n1, oil\n2,\n", "Pixel Value, Class\nx, oil\n"])
def test_a_table_of_pixel_values_of_no_use_stops(tmp_path, text):
    with refused("dataset-unreadable", "_classes.csv"):
        import_dataset(masks(tmp_path, Image.fromarray(numbers(1)), text))


def test_a_table_in_latin_1_says_utf_8_and_utf_16_is_read(tmp_path):
    folder = masks(tmp_path, Image.fromarray(numbers(1)))
    (folder / "_classes.csv").write_bytes("Pixel Value, Class\n0, background\n1, \u00e9mulsion\n".encode("latin-1"))
    with refused("dataset-unreadable", "UTF-8"):
        import_dataset(folder)
    (folder / "_classes.csv").write_bytes("Pixel Value, Class\n0, background\n1, oil\n".encode("utf-16"))
    assert list(import_dataset(folder).frame["label"]) == ["oil"] * 3


def test_json_with_a_mark_of_byte_order(tmp_path):
    folder = export(tmp_path, [oil(segmentation=[SQUARE]), SHIP])
    file = folder / "_annotations.coco.json"
    text = file.read_text()
    for encoding in ("utf-8-sig", "utf-16"):
        file.write_bytes(text.encode(encoding))
        assert labels(folder) == {"a.jpg": "oil", "b.jpg": "ship"}
