"Reading datasets: real names, real images, every form of export, and every kind of damage."

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from commands import refused
from PIL import Image
from pycocotools import mask as mask_utils

from lados.core import ConfigError, DataError, settings
from lados.data.annotations import Notes, class_areas, clip_polygon
from lados.data.coco import coco_files, read_coco
from lados.data.importers import import_dataset, recognise
from lados.data.manifest import connected_groups, load_manifest, source_stem
from lados.labels import CLASSES, LADOS, POLICIES

SHARED = Path(os.environ.get("LADOS_SHARED_DATA", Path(__file__).parents[2] / "../shared/data"))
NAMES = ("oils-emulsions", "emulsion", "oil", "oil-platform", "sheen", "ship")
CATEGORIES = [{"id": i, "name": n} for i, n in enumerate(NAMES)]


def shared(name: str) -> Path:
    if not (SHARED / name).exists():
        pytest.skip(f"no {name} under {SHARED}: set LADOS_SHARED_DATA")
    return SHARED / name


def image(path: Path, size: tuple[int, int] = (100, 80), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def rectangle(x: float, y: float, w: float, h: float) -> list[list[float]]:
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def document(names, annotations=(), categories=CATEGORIES, size=(100, 80)) -> dict:
    images = [{"id": i, "file_name": n, "width": size[0], "height": size[1]} for i, n in enumerate(names)]
    boxes = [{"id": i, "image_id": im, "category_id": c, "segmentation": s} for i, (im, c, s) in enumerate(annotations)]
    return {"images": images, "annotations": boxes, "categories": list(categories)}


def export(folder: Path, names, annotations=(), name="_annotations.coco.json", images=True, **kw) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(document(names, annotations, **kw)))
    for i, n in enumerate(names if images else ()):
        image(folder / n, seed=i)
    return folder


def kinds(manifest) -> dict[str, int]:
    return manifest.meta["warning_counts"]


def messages(manifest, kind: str) -> list[str]:
    return [f"{w['file']}: {w['message']}" for w in manifest.meta["warnings"] if w["kind"] == kind]


# real data


def test_stems_of_the_real_names():
    stems = {}
    for split in ("train", "val", "test"):
        with (shared("lados_names") / f"{split}.csv").open() as f:
            stems[split] = [source_stem(r["image_path"]) for r in csv.DictReader(f)]
    train = set(stems["train"])
    assert sum(map(len, stems.values())) == 3388
    assert len({s for names in stems.values() for s in names}) == 1402
    assert sum(s in train for s in stems["test"]) == 255 and len(stems["test"]) == 343
    assert sum(s in train for s in stems["val"]) == 499 and len(stems["val"]) == 675


@pytest.mark.parametrize("tail", ["", "labels.csv"])
def test_real_photographs_keep_group_and_event_together(tail):
    manifest = import_dataset(shared("marine") / tail)
    frame = manifest.frame
    assert len(manifest) == 150 and kinds(manifest) == {} and manifest.meta["policy"]["name"] == "as-given"
    assert set(frame["label"]) == set(CLASSES)
    for column in ("group", "event"):
        tied = frame[frame[column] != ""].groupby(column)["source_group"].nunique()
        assert (tied == 1).all(), f"one {column}, one source group"
    assert len(frame[frame["event"] != ""]) == 68 and frame["source_group"].nunique() == 69
    only_group = import_dataset(shared("marine") / tail, group_columns=["group"])
    assert only_group.frame["source_group"].nunique() == 96


def test_real_names_without_images_say_so():
    with refused("no-images", "3388 reasons", "not on disk"):
        import_dataset(shared("lados_names"))


# the forms an export comes in


def coco_in_split_folders(root):
    for split in ("train", "val", "test"):
        export(root / split, [f"{split}.jpg"], [(0, 4, rectangle(0, 0, 50, 80))])


def coco_with_images_below(root):
    for split in ("train", "valid", "test"):
        export(root / split, [f"{split}.jpg"], [(0, 4, rectangle(0, 0, 50, 80))], images=False)
        image(root / split / "images" / f"{split}.jpg")


def coco_central(root, images="{}2017"):
    for split in ("train", "val", "test"):
        export(root / "annotations", [f"{split}.jpg"], [(0, 4, rectangle(0, 0, 50, 80))],
               name=f"instances_{split}2017.json", images=False)
        image(root / images.format(split) / f"{split}.jpg")


def coco_central_images(root):
    coco_central(root, "images/{}")


def coco_central_one_folder(root):
    coco_central(root, "images")


def masks(root):
    for split in ("train", "valid", "test"):
        image(root / split / f"{split}.jpg")
        mask = np.zeros((80, 100), np.uint8)
        mask[:, :50] = 4
        Image.fromarray(mask).save(root / split / f"{split}_mask.png")
        (root / split / "_classes.csv").write_text("Pixel Value, Class\n0, background\n4, sheen\n")


def class_tree(root):
    for split in ("Train", "validation", "test"):
        image(root / split / "Sheen" / f"{split}.jpg")


def table(root):
    for split in ("train", "val", "test"):
        image(root / "images" / f"{split}.jpg")
    rows = "".join(f"images\\{s}.jpg,Sheen,{s}\n" for s in ("train", "val", "test"))
    (root / "anything.csv").write_text("filename,Class,Split\n" + rows)


FORMS = {"coco": (coco_in_split_folders, coco_with_images_below, coco_central, coco_central_images,
                  coco_central_one_folder),
         "masks": (masks,), "folders": (class_tree,), "table": (table,)}


@pytest.mark.parametrize(("kind", "make"), [(k, m) for k, makes in FORMS.items() for m in makes])
def test_every_form_is_recognised_and_reads_alike(tmp_path, kind, make):
    make(tmp_path)
    assert recognise(tmp_path) == kind
    manifest = import_dataset(tmp_path)
    assert kinds(manifest) == {"single-class": 1}
    assert list(manifest.frame["split"].sort_values()) == ["test", "train", "valid"]
    assert set(manifest.frame["label"]) == {"sheen"}
    assert manifest.meta["origin"] == {"path": str(tmp_path), "kind": kind}
    if kind in ("coco", "masks"):
        assert list(manifest.frame["area_sheen"]) == [0.5] * 3 and list(manifest.frame["area_background"]) == [0] * 3
    else:
        assert manifest.frame["area_sheen"].isna().all()
    assert load_manifest(manifest.save(tmp_path / "out")).hash == manifest.hash
    assert recognise(tmp_path) == kind, "a manifest beside the data changes nothing"


def test_one_folder_one_file_no_split(tmp_path):
    export(tmp_path, ["a.jpg"], [(0, 0, rectangle(0, 0, 10, 10))], name="labels.coco.json")
    for path in (tmp_path, tmp_path / "labels.coco.json"):
        frame = import_dataset(path).frame
        assert list(frame["split"]) == [""] and list(frame["label"]) == ["oil"], "oils-emulsions counts as oil"
    assert [f.split for f in coco_files(tmp_path)] == [""]


def test_same_bytes_same_manifest_whatever_the_workers(tmp_path):
    coco_in_split_folders(tmp_path)
    one, four = (import_dataset(tmp_path, workers=n) for n in (1, 4))
    assert one.frame.equals(four.frame)


# areas


def random_polygon(rng, size=100.0, spread=0.6) -> list[float]:
    turns = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 20)))
    radius = rng.uniform(5, spread * size, len(turns))
    centre = rng.uniform(0, size, 2)
    return (centre + radius[:, None] * np.stack([np.cos(turns), np.sin(turns)], 1)).ravel().tolist()


def quiet(kind, message):
    pass


@pytest.mark.parametrize("seed", range(30))
def test_a_union_is_at_most_the_sum_and_the_image(seed):
    rng = np.random.default_rng(seed)
    outlines = [("oil", {"segmentation": [random_polygon(rng)]}) for _ in range(6)]
    union = class_areas(outlines, 100, 80, quiet)[0].get("oil", 0)
    single = [class_areas([o], 100, 80, quiet)[0].get("oil", 0) for o in outlines]
    assert max(single) <= union <= min(1, sum(single) + 1e-12)
    assert class_areas(outlines * 2, 100, 80, quiet)[0].get("oil", 0) == union, "drawn twice, counted once"
    assert class_areas(outlines[::-1], 100, 80, quiet)[0].get("oil", 0) == union


@pytest.mark.parametrize("seed", range(30))
def test_clipping_agrees_with_painting_on_a_larger_canvas(seed):
    rng = np.random.default_rng(seed)
    polygon = np.array(random_polygon(rng)).reshape(-1, 2)
    far = mask_utils.frPyObjects([(polygon + 100).ravel().tolist()], 300, 300)[0]
    painted = mask_utils.decode(far)[100:180, 100:200].sum()
    area = class_areas([("oil", {"segmentation": [polygon.ravel().tolist()]})], 100, 80, quiet)[0].get("oil", 0) * 8000
    assert abs(area - painted) <= 0.02 * painted + 40
    assert len(clip_polygon(polygon + 1000, 100, 80)) == 0


@pytest.mark.parametrize("seed", range(10))
def test_polygons_and_both_run_length_codes_agree(seed):
    polygon = np.clip(random_polygon(np.random.default_rng(seed), 80, 0.4), 0, 80).tolist()
    code = mask_utils.frPyObjects([polygon], 80, 100)[0]
    runs, value, flat = [], 0, mask_utils.decode(code).ravel(order="F")
    while len(flat):
        stop = np.flatnonzero(flat != value)
        runs.append(int(stop[0]) if len(stop) else len(flat))
        flat, value = flat[runs[-1]:], 1 - value
    packed = code["counts"].decode()
    forms = ([polygon], polygon, {"size": [80, 100], "counts": packed}, {"size": [80, 100], "counts": runs})
    found = [class_areas([("oil", {"segmentation": f})], 100, 80, quiet)[0] for f in forms]
    assert found[0]["oil"] > 0 and all(f == found[0] for f in found)


def test_masks_and_outlines_agree(tmp_path):
    code = mask_utils.frPyObjects([random_polygon(np.random.default_rng(1), 80)], 80, 100)[0]
    export(tmp_path / "coco", ["a.png"], [(0, 2, {"size": [80, 100], "counts": code["counts"].decode()})])
    image(tmp_path / "masks/a.png")
    Image.fromarray(mask_utils.decode(code) * 2).save(tmp_path / "masks/a_mask.png")
    (tmp_path / "masks/_classes.csv").write_text("Pixel Value, Class\n0, background\n2, oil\n")
    frames = [import_dataset(tmp_path / k).frame for k in ("coco", "masks")]
    assert frames[0]["area_oil"][0] == frames[1]["area_oil"][0] > 0 and frames[0].equals(frames[1])


# policies


def test_policies_and_how_often_they_disagree(tmp_path):
    small = [(0, 5, rectangle(5 * i, 0, 2, 2)) for i in range(4)]
    export(tmp_path, ["a.jpg", "b.jpg", "c.jpg"],
           [(0, 4, rectangle(0, 40, 100, 40)), *small, (1, 1, rectangle(0, 0, 9, 9))])
    labels = {p: list(import_dataset(tmp_path, policy=p).frame["label"]) for p in POLICIES}
    assert labels == {"dominant-area": ["sheen", "emulsion", "background"],
                      "most-annotations": ["ship", "emulsion", "background"],
                      "presence": ["sheen|ship", "emulsion", "background"]}
    manifest = import_dataset(tmp_path, min_area=0.02)
    assert list(manifest.frame["label"]) == ["sheen", "background", "background"]
    assert manifest.meta["policy"] == {"name": "dominant-area", "version": 1, "min_area": 0.02}
    assert import_dataset(tmp_path).meta["policy_disagreement"] == pytest.approx(
        {"images": 3, "several_classes": 1 / 3, "most-annotations": 1 / 3, "presence-primary": 0})
    assert list(manifest.frame["area_background"]) == [0, 0, 1]


@pytest.mark.parametrize("wrong", [{"policy": "dominant"}, {"min_area": 1.5}, {"min_area": float("nan")},
                                   {"group_columns": ["event"]}])
def test_a_wrong_parameter_is_refused(tmp_path, wrong):
    export(tmp_path, ["a.jpg"])
    with pytest.raises(ConfigError):
        import_dataset(tmp_path, **wrong)


# bad input: nothing usable is an error that names file and remedy


def test_nothing_there(tmp_path):
    with refused("dataset-not-found"):
        import_dataset(tmp_path / "nowhere")
    with refused("no-images", "empty"):
        import_dataset(tmp_path)
    image(tmp_path / "deep/er/a.jpg")
    with refused("dataset-unreadable", "COCO", "masks", "CSV", "folders named after classes"):
        import_dataset(tmp_path)
    (tmp_path / "lados.zip").write_bytes(b"PK")
    with refused("dataset-unreadable", "unpack"):
        import_dataset(tmp_path / "lados.zip")


def test_a_folder_too_high_names_the_right_one(tmp_path):
    coco_in_split_folders(tmp_path / "LADOS-2")
    with refused("dataset-unreadable", "LADOS-2"):
        import_dataset(tmp_path)


@pytest.mark.parametrize("keep", [0, 1, 60, -1])
def test_json_cut_short(tmp_path, keep):
    file = export(tmp_path / "train", ["a.jpg"]) / "_annotations.coco.json"
    file.write_text(file.read_text()[:keep])
    with pytest.raises(DataError, match=r"_annotations.coco.json: .*cut short or damaged[\s\S]*-> export or copy"):
        import_dataset(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{}", '{"images": 3}', '{"images": [], "annotations": {}}', "null"])
def test_json_of_something_else(tmp_path, content):
    (tmp_path / "_annotations.coco.json").write_text(content)
    with refused("dataset-unreadable", "_annotations.coco.json"):
        import_dataset(tmp_path)


def test_unknown_category_is_named_with_the_known_ones(tmp_path):
    odd = [*CATEGORIES, {"id": 9, "name": "algae"}]
    export(tmp_path, ["a.jpg"], [(0, 9, rectangle(0, 0, 9, 9))], categories=odd)
    with refused("unknown-class", "_annotations.coco.json", "'algae'", "oil_platform"):
        import_dataset(tmp_path, label_set=LADOS)
    export(tmp_path, ["a.jpg"], [(0, 4, rectangle(0, 0, 9, 9))], categories=odd)
    assert list(import_dataset(tmp_path).frame["label"]) == ["sheen"], "an unknown category in no use is harmless"
    export(tmp_path, ["a.jpg"], [(0, 77, rectangle(0, 0, 9, 9))])
    with refused("unknown-class", "77", "3 oil-platform"):
        import_dataset(tmp_path)


def test_unknown_class_in_the_other_forms(tmp_path):
    class_tree(tmp_path / "tree")
    image(tmp_path / "tree/Train/algae/1.jpg")
    masks(tmp_path / "masks")
    (tmp_path / "masks/train/_classes.csv").write_text("Pixel Value, Class\n0, background\n4, algae\n")
    table(tmp_path / "table")
    with (tmp_path / "table/anything.csv").open("a") as f:
        f.write("images/test.jpg,algae,test\n")
    for form, where in {"tree": "Train/algae", "masks": "train/_classes.csv", "table": "anything.csv: line 5"}.items():
        with refused("unknown-class", where, "'algae'", "oil_platform"):
            import_dataset(tmp_path / form, label_set=LADOS)


def test_no_image_at_all(tmp_path):
    export(tmp_path, ["a.jpg", "b.jpg"], images=False)
    with refused("no-images", "a.jpg", "not on disk"):
        import_dataset(tmp_path)


# bad input: the rest is usable, and a warning names what is not


def test_json_and_disk_disagree(tmp_path):
    export(tmp_path, ["a.jpg", "b.jpg", "gone.jpg"], [(0, 4, rectangle(0, 0, 9, 9)), (2, 4, rectangle(0, 0, 9, 9)),
                                                      (55, 4, rectangle(0, 0, 9, 9)), (55, 5, rectangle(0, 0, 9, 9))])
    (tmp_path / "gone.jpg").unlink()
    image(tmp_path / "stray.jpg")
    manifest = import_dataset(tmp_path)
    assert list(manifest.frame["label"]) == ["sheen", "background"], "without annotation means background"
    assert kinds(manifest) == {"missing-image": 1, "unknown-image-id": 1, "unlisted-image": 1}
    missing = messages(manifest, "missing-image")[0]
    assert "gone.jpg" in missing and "1 annotations" in missing
    assert "2 annotations refer to image_id 55" in messages(manifest, "unknown-image-id")[0]
    assert "stray.jpg" in messages(manifest, "unlisted-image")[0]
    assert load_manifest(manifest.save(tmp_path / "out")).meta["warnings"] == manifest.meta["warnings"]


def test_odd_outlines(tmp_path):
    "Of each image one ship is outlined well; where the other outline has no area or is clipped it counts, where nobody can read it the image is out."
    fair = [[[0, 0, 9, 9]], rectangle(50, 0, 100, 80), [[]], rectangle(0, 0, 1e300, 10), {"size": [80, 100], "counts": [8000]}]
    bad = [rectangle(500, 0, 10, 10), [[0, 0, 1, "x", 2, 2]], None, {"size": [80, 100], "counts": [5]},
           {"size": [80, 100], "counts": "garbage\u00ff"}, [[float("nan")] * 6], {"size": [10**6, 10**6], "counts": [10**12]}, "what", [None]]
    names = [f"{i}.jpg" for i in range(len(fair + bad) + 9)]
    good = [(i, 5, rectangle(0, 0, 50, 10)) for i in range(len(names))]
    export(tmp_path, names, [*good, *((i, 5, o) for i, o in enumerate(fair + bad))])
    manifest = import_dataset(tmp_path)
    kept = [n for i, n in enumerate(names) if not len(fair) <= i < len(fair + bad)]
    assert list(manifest.frame["image"]) == kept and set(manifest.frame["label"]) == {"ship"}
    assert list(manifest.frame["area_ship"][:5]) == pytest.approx([1 / 16, 0.5 + 1 / 16, 1 / 16, 0.125, 1 / 16])
    assert "clipped" in messages(manifest, "outside")[0] and "1.jpg" in messages(manifest, "outside")[0]
    assert kinds(manifest) == {"no-area": 3, "outside": 2, "unreadable-annotation": 9, "single-class": 1}


def test_odd_entries(tmp_path):
    export(tmp_path, ["a.jpg", "b.jpg", "c.jpg"], [(0, 4, rectangle(0, 0, 50, 80)), (1, 4, rectangle(0, 0, 50, 80)),
                                                      (2, 5, rectangle(0, 0, 9, 9)), (9, 5, rectangle(50, 0, 10, 80))])
    file = tmp_path / "_annotations.coco.json"
    content = json.loads(file.read_text())
    content["images"] += [{"id": 7}, {"file_name": "c.jpg"}, "x"]
    content["images"] += [{"id": 1, "file_name": "d.jpg"}, {"id": 9, "file_name": "a.jpg"}]
    del content["images"][0]["width"]
    file.write_text(json.dumps(content))
    image(tmp_path / "d.jpg")
    manifest = import_dataset(tmp_path)
    assert list(manifest.frame["image"]) == ["a.jpg", "c.jpg"], "two images of one id: nobody can say whose the outline is"
    assert manifest.frame["area_sheen"][0] == 0.5, "a size that the file leaves out is read from the image"
    assert manifest.frame["area_ship"][0] == 0.1, "an image that is listed twice has the outlines of both entries"
    assert kinds(manifest) == {"bad-entry": 1, "lost-annotation": 2, "listed-twice": 2}
    assert any("b.jpg" in m and "another image" in m for m in messages(manifest, "lost-annotation"))


def test_names_from_another_machine_stay_inside_the_folder(tmp_path):
    names = ["C:\\data\\train\\a.jpg", "/home/somebody/b.jpg", "../../c.jpg"]
    export(tmp_path / "set", names, images=False)
    for n in "abc":
        image(tmp_path / "set" / f"{n}.jpg")
    image(tmp_path / "c.jpg")
    assert [r.path.parent for r in read_coco(tmp_path / "set")] == [tmp_path / "set"] * 3


def test_damaged_images(tmp_path, monkeypatch):
    names = [f"{n}.{e}" for e in ("jpg", "png", "webp", "tif", "bmp") for n in ("good", "empty", "cut")]
    export(tmp_path, [*names, "bomb.png", "text.jpg"])
    for n in names:
        file = tmp_path / n
        file.write_bytes({"good": file.read_bytes(), "empty": b"", "cut": file.read_bytes()[:-1500]}[file.stem])
    image(tmp_path / "bomb.png", (300, 300))
    (tmp_path / "text.jpg").write_text("<html>404</html>")
    monkeypatch.setattr(settings(), "max_pixels", 50_000)
    manifest = import_dataset(tmp_path)
    assert [p.name for p in manifest.paths] == [n for n in names if n.startswith("good")]
    assert kinds(manifest)["unreadable-image"] == 12
    told = " ".join(messages(manifest, "unreadable-image"))
    assert "empty.webp: the file is empty" in told and "300x300 pixels" in told


def test_a_whole_camera_file_with_more_behind_it_is_kept(tmp_path):
    export(tmp_path, ["a.jpg"])
    file = tmp_path / "a.jpg"
    file.write_bytes(file.read_bytes() + b"\0" * 100 + b"maker's own data" * 50)
    assert "unreadable-image" not in kinds(import_dataset(tmp_path))


def test_a_resized_image_keeps_its_fractions(tmp_path):
    export(tmp_path, ["a.jpg", "turned.jpg"], [(0, 4, rectangle(0, 0, 50, 80)), (1, 4, rectangle(0, 0, 50, 80))])
    image(tmp_path / "a.jpg", (200, 160))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 100)).save(tmp_path / "turned.jpg", exif=exif)
    manifest = import_dataset(tmp_path)
    assert list(manifest.frame["area_sheen"]) == [0.5, 0.5] and list(manifest.frame["width"]) == [200, 80]
    assert kinds(manifest)["size-differs"] == 1, "an EXIF turn is no other size"
    assert "200 x 160 pixels, but annotated as 100 x 80" in messages(manifest, "size-differs")[0]


def test_across_splits(tmp_path):
    export(tmp_path / "train", ["a.jpg", "b.jpg"], [(0, 4, rectangle(0, 0, 9, 9))])
    export(tmp_path / "test", ["a.jpg", "c.jpg"], [(0, 3, rectangle(0, 0, 9, 9))])
    manifest = import_dataset(tmp_path)
    assert len(manifest) == 4 and list(manifest.frame["label"]) == ["sheen", "background", "oil_platform", "background"]
    assert kinds(manifest) == {"same-name": 1, "class-without-training": 1}
    assert messages(manifest, "same-name")[0].startswith("a.jpg: occurs in train and test")
    assert "oil_platform" in messages(manifest, "class-without-training")[0]


def test_masks_with_parts_missing(tmp_path):
    masks(tmp_path)
    image(tmp_path / "train/alone.jpg")
    Image.new("L", (5, 5)).save(tmp_path / "train/lost_mask.png")
    for name, mask in {"rgb": Image.new("RGB", (100, 80)), "odd": Image.new("L", (100, 80), 9)}.items():
        image(tmp_path / f"train/{name}.jpg")
        mask.save(tmp_path / f"train/{name}_mask.png")
    image(tmp_path / "train/cut.jpg")
    (tmp_path / "train/cut_mask.png").write_bytes((tmp_path / "train/train_mask.png").read_bytes()[:70])
    manifest = import_dataset(tmp_path)
    assert kinds(manifest) == {"missing-mask": 1, "missing-image": 1, "unreadable-mask": 1, "unknown-pixel-value": 1}
    assert sorted(p.stem for p in manifest.paths) == ["rgb", "test", "train", "valid"], "three equal colours are a mask of numbers"


@pytest.mark.parametrize(("content", "said"), [
    ("", "labels.csv: no column for the image"), ("a,b\n1,2\n", r"no column[\s\S]*filename[\s\S]*class"),
    ("file,label\n", "none of its images"), ("file,label\nx.jpg,oil\n", "x.jpg: labels.csv line 2: not on disk"),
])
def test_tables_of_no_use(tmp_path, content, said):
    (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(DataError, match=said):
        import_dataset(tmp_path / "labels.csv")


def test_a_table_in_another_encoding(tmp_path):
    (tmp_path / "labels.csv").write_bytes("file,label\nж.jpg,oil\n".encode("cp1251"))
    with refused("dataset-unreadable", "UTF-8"):
        import_dataset(tmp_path / "labels.csv")


def test_lines_are_counted_as_an_editor_does(tmp_path):
    image(tmp_path / "a.jpg")
    (tmp_path / "labels.csv").write_text("file;label;note\n\na.jpg;oil;\"two\nlines\"\n\nb.jpg;oil\n;oil;;;;\n")
    manifest = import_dataset(tmp_path)
    assert [w["message"].split(":")[0] for w in manifest.meta["warnings"][:2]] == ["labels.csv line 6", "line 7"]


def test_groups_are_connected_over_all_columns(tmp_path):
    rows = [("a", "g1", "", ""), ("b", "g1", "e1", ""), ("c", "", "e1", "s1"), ("d", "g9", "", "s1"), ("e", "", "", ""),
            ("f", "", "", ""), ("e-2_jpg.rf." + "0" * 32, "", "", "")]
    for name, *_ in rows:
        image(tmp_path / f"{name}.jpg")
    lines = "".join(f"{n}.jpg,oil,{g},{e},{s}\n" for n, g, e, s in rows)
    (tmp_path / "t.csv").write_text("file,label,group,event,Series\n" + lines)
    groups = list(import_dataset(tmp_path).frame["source_group"])
    assert len(set(groups[:4])) == 1 and groups[4:] == ["e", "f", "e-2"]
    assert list(import_dataset(tmp_path, group_columns=["series"]).frame["source_group"])[2:4] == ["s1", "s1"]


@pytest.mark.parametrize("seed", range(20))
def test_groups_agree_with_a_slow_search(seed):
    rng = np.random.default_rng(seed)
    rows = [{c: f"{c}{v}" if (v := rng.integers(0, 9)) < 6 else "" for c in "xyz"} for _ in range(12)]
    together = np.array([[any(a[c] and a[c] == b[c] for c in "xyz") for b in rows] for a in rows])
    for _ in rows:
        together = together @ together
    found = connected_groups(rows, "xyz")
    assert all((g is None) == (not any(r.values())) for g, r in zip(found, rows, strict=True))
    for i, j in np.ndindex(together.shape):
        if found[i] and found[j]:
            assert (found[i] == found[j]) == bool(together[i, j])


# scale

MEASURE = """
import resource, sys, time
from lados.data.importers import import_dataset
start = time.process_time()
n = len(import_dataset(sys.argv[1], workers=2))
print(n, time.process_time() - start, int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1]) / 1024)
"""


def large_export(root: Path, images: int) -> Path:
    rng = np.random.default_rng(0)
    one = image(root / "one.jpg", (640, 640)).read_bytes()
    annotations = [(i // 5, int(rng.integers(6)), [(200 + 0.4 * np.array(random_polygon(rng, 640, 0.2))).tolist()]) for i in range(5 * images)]
    names = [f"{i // 3}_jpg.rf.{i:032x}.jpg" for i in range(images)]
    export(root / "train", names, annotations, images=False, size=(640, 640))
    for i, name in enumerate(names): # a comment segment makes every file's content its own
        (root / "train" / name).write_bytes(one[:2] + b"\xff\xfe\x00\x08%06d" % i + one[2:])
    return root


def measure(root: Path) -> tuple[float, ...]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEASURE, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    return tuple(map(float, done.stdout.split()))


def test_the_size_of_lados_in_time_and_memory(tmp_path):
    few, many = measure(large_export(tmp_path / "few", 300)), measure(large_export(tmp_path / "many", 3388))
    assert (few[0], many[0]) == (300, 3388)
    assert many[1] < 20, f"{many[1]:.1f} s"
    text = (tmp_path / "many/train/_annotations.coco.json").stat().st_size / 2**20
    assert many[2] < 500 and many[2] - few[2] < 50 + 6 * text, f"{few[2]:.0f} MB, then {many[2]:.0f} MB"


def test_records_stream(tmp_path):
    root = large_export(tmp_path, 50)
    start, records = time.thread_time(), read_coco(root, Notes())
    assert next(records).path.is_file() and time.thread_time() - start < 2, "of the processor, whatever else it does"


def test_images_of_one_name_in_several_folders_are_not_mixed_up(tmp_path):
    "Two cameras number their images alike; a list that names folders which are not there must not guess."
    root = export(tmp_path / "train", ["camA/1.jpg", "camB/1.jpg"], [(0, 2, rectangle(0, 0, 50, 50)), (1, 5, rectangle(0, 0, 50, 50))])
    found = import_dataset(root)
    assert dict(zip(found.frame["image"], found.frame["label"], strict=True)) == {"camA/1.jpg": "oil", "camB/1.jpg": "ship"}
    for folder in ("camA", "camB"):
        (root / folder / "1.jpg").unlink()
    image(root / "1.jpg")
    with refused("no-images"):
        import_dataset(root)
    alone = export(tmp_path / "alone", ["elsewhere/1.jpg"], images=False)
    image(alone / "1.jpg")
    assert len(import_dataset(alone)) == 1, "one of that name: it is meant"


def test_an_image_that_two_lists_name_counts_once(tmp_path):
    root = export(tmp_path / "both", ["a.jpg", "b.jpg"], name="first.coco.json")
    (root / "second.coco.json").write_text(json.dumps(document(["b.jpg"])))
    notes = Notes()
    assert len(list(read_coco(root, notes))) == 2 and notes.counts()["listed-twice"] == 1
