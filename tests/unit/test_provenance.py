"The audit finds what was planted, and the known figures on real names and images."
import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import refused
from PIL import Image, ImageEnhance
from sklearn.metrics import accuracy_score, f1_score

from lados.core import DataError, ImageError
from lados.data.audit import audit, find_links, linked_groups, lookup_baseline, manifest_of_names
from lados.data.manifest import Manifest
from lados.data.phash import MAX_DISTANCE, Hashes, hash_images, image_hash, near_duplicates, turned
from lados.data.split import group_split

SHARED = Path(os.environ.get("LADOS_SHARED_DATA", Path(__file__).parents[2] / "../shared/data"))


def shared(name: str) -> Path:
    if not (SHARED / name).exists():
        pytest.skip(f"{SHARED / name} is absent: set LADOS_SHARED_DATA")
    return SHARED / name


def names() -> Manifest:
    folder = shared("lados_names")
    rows = pd.concat([pd.read_csv(folder / f"{s}.csv") for s in ("train", "val", "test")])
    return manifest_of_names(rows["image_path"].tolist(), rows["class"].tolist(), rows["split"].tolist())


def marine() -> pd.DataFrame:
    return pd.read_csv(shared("marine") / "labels.csv", dtype={"group": object}, keep_default_na=False)


def sea(seed: int, size: int = 256) -> Image.Image:
    rng = np.random.default_rng(seed)
    waves = [Image.fromarray(rng.normal(0, s, (n, n)).astype("float32")).resize((size, size), Image.Resampling.BICUBIC)
             for n, s in ((5, 30), (15, 20), (40, 15))]
    return Image.fromarray((120 + sum(map(np.asarray, waves))).clip(0, 255).astype("uint8")).convert("RGB")


# the real names


def test_known_figures_on_lados_names():
    found = audit(names(), hashes=False).to_dict()
    assert found["source_groups"] == 1402
    assert found["leaks"]["test"]["same_source"] >= 255 and found["leaks"]["valid"]["same_source"] >= 499
    assert found["leaks"]["test"]["any"] >= 255 and found["leaks"]["valid"]["any"] >= 499
    test = found["baselines"]["test"]
    assert (round(test["lookup"]["accuracy"], 3), round(test["lookup"]["macro_f1"], 3)) == (0.813, 0.722)
    assert (round(test["majority"]["accuracy"], 3), round(test["majority"]["macro_f1"], 3)) == (0.461, 0.126)
    assert found["conflicts"]["groups"] == 122
    assert [found["support"][s]["oil_platform"] for s in ("train", "valid", "test")] == [5, 3, 3]
    assert found["largest"]["images"] < 0.1 * found["images"], "no chain through the dataset"


def test_a_split_by_linked_groups_leaves_no_leak():
    manifest = names()
    new, report = group_split(manifest, groups=linked_groups(audit(manifest, hashes=False)))
    after = audit(new, hashes=False)
    assert not len(after.leaks)
    base = after.to_dict()["baselines"]["test"]
    assert base["known"] == 0 and base["lookup"]["accuracy"] == base["majority"]["accuracy"]
    assert all(abs(report.reached[s] - w) < 0.01 for s, w in report.wished.items())


def test_lookup_scores_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    for _ in range(20):
        n, labels = 200, np.array(["oil", "sheen", "ship", "emulsion"])
        manifest = manifest_of_names([f"s{rng.integers(90)}_jpg.rf.{i:032x}.jpg" for i in range(n)], rng.choice(labels, n).tolist(),
                                     rng.choice(["train", "val", "test"], n).tolist())
        frame, got = manifest.frame, lookup_baseline(manifest, "valid")
        train, held = frame[frame["split"] == "train"], frame[frame["split"] == "valid"]
        top = train["label"].value_counts()
        first = train.groupby("source_group")["label"].agg(lambda x: x.value_counts(sort=False).idxmax())
        answer = held["source_group"].map(first).fillna(got["majority"]["label"])
        assert top[got["majority"]["label"]] == top.max()
        assert got["lookup"]["accuracy"] == pytest.approx(accuracy_score(held["label"], answer), abs=1e-12)
        assert got["lookup"]["macro_f1"] == pytest.approx(f1_score(held["label"], answer, average="macro", zero_division=0), abs=1e-12)


# the real images


def test_hash_links_on_marine_are_right():
    rows = marine()
    hashes = hash_images([shared("marine") / f for f in rows["file"]])
    assert not hashes.errors and len(hashes.usable) == len(rows)
    group = rows["group"].to_numpy(dtype=object)
    pairs = [(i, j) for a, b, _ in near_duplicates(hashes) for i, j in zip(a, b, strict=True)]
    assert len(pairs) >= 10, "the copies that are there"
    assert all(group[i] == group[j] for i, j in pairs), "and no strangers"


def test_copies_of_real_images_are_found_and_strangers_are_not(tmp_path):
    rows = marine()[::5]
    changes = {"small": lambda p: p.resize((416, 416)), "bright": lambda p: ImageEnhance.Brightness(p).enhance(1.3),
               "flat": lambda p: ImageEnhance.Contrast(p).enhance(0.6), "turned": lambda p: p.transpose(Image.Transpose.ROTATE_90),
               "mirrored": lambda p: p.transpose(Image.Transpose.FLIP_LEFT_RIGHT)}
    found = asked = 0
    for k, file in enumerate(rows["file"]):
        original = shared("marine") / file
        first = image_hash(original)[0]
        with Image.open(original) as image:
            image = image.convert("RGB")
        name, change = list(changes.items())[k % len(changes)]
        change(image).save(tmp_path / f"{name}.jpg", quality=30)
        other = image_hash(tmp_path / f"{name}.jpg")[0]
        asked += 1
        found += min(int(np.bitwise_count(t[0] ^ other).sum()) for t in turned(first[None])) <= MAX_DISTANCE
    assert found == asked


def test_drone_frames_link_within_a_clip_only():
    files = sorted(shared("seadronessee").glob("images/*.jpg"), key=lambda p: int(p.stem))
    number, hashes = np.array([int(p.stem) for p in files]), hash_images(files)
    gaps = np.concatenate([np.abs(number[i] - number[j]) for i, j, _ in near_duplicates(hashes)])
    assert len(gaps) > 300 and gaps.max() <= 30


# planted twins


@pytest.fixture
def planted(tmp_path) -> Manifest:
    "Ten seas; in test: a copy of one under another name, a mirrored one, the same bytes, and a new one."
    for i in range(10):
        sea(i).save(tmp_path / f"train{i}-a.jpg", quality=90)
    sea(0).resize((200, 200)).save(tmp_path / "found_on_a_blog.png")
    sea(1).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(tmp_path / "upside.jpg")
    (tmp_path / "again.jpg").write_bytes((tmp_path / "train2-a.jpg").read_bytes())
    sea(99).save(tmp_path / "new.jpg")
    files = sorted(p.name for p in tmp_path.iterdir())
    frame = pd.DataFrame({"image": files, "label": "oil", "split": ["train" if f.startswith("train") else "test" for f in files]})
    return Manifest(frame, tmp_path)


def test_planted_copies_are_found_with_their_twin(planted):
    found = audit(planted)
    twins = dict(zip(found.leaks["image"], found.leaks["twin"], strict=True))
    assert twins == {"again.jpg": "train2-a.jpg", "found_on_a_blog.png": "train0-a.jpg", "upside.jpg": "train1-a.jpg"}
    assert found.to_dict()["leaks"]["test"]["not_by_name"] == 3
    groups = linked_groups(found)
    assert groups.nunique() == 11 and groups.name == "source_group"
    assert audit(planted, hashes=False).leaks.empty


def test_saved_audit_is_complete(planted, tmp_path):
    folder = audit(planted).save(tmp_path / "out" / "audit")
    values = json.loads((folder / "audit.json").read_text())
    assert values["leaks"]["test"]["any"] == len(pd.read_csv(folder / "leaks.csv")) == 3
    with Image.open(folder / "audit.png") as figure:
        assert figure.width > 500


def test_unreadable_images_are_listed_and_stop_nothing(planted):
    (planted.root / "train3-a.jpg").write_bytes(b"")
    (planted.root / "train4-a.jpg").write_bytes((planted.root / "train4-a.jpg").read_bytes()[:400])
    (planted.root / "train5-a.jpg").unlink()
    values = audit(planted).to_dict()
    assert set(values["unreadable"]) == {"train3-a.jpg", "train4-a.jpg", "train5-a.jpg"}
    assert values["leaks"]["test"]["any"] == 3 and any("could not be read" in n for n in values["notes"])
    with pytest.raises(ImageError, match="the file is empty"):
        image_hash(planted.root / "train3-a.jpg")


@pytest.mark.parametrize("how", ["L", "P", "RGBA", "CMYK", "I;16", "1x1"])
def test_every_kind_of_image_gets_a_hash(how, tmp_path):
    image = sea(3)
    if how == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype("uint16") * 257)
    elif how == "1x1":
        image = image.resize((1, 1))
    else:
        image = image.convert(how)
    path = tmp_path / f"x.{'tif' if how in ('CMYK', 'I;16') else 'png'}"
    image.save(path)
    sea(3).save(tmp_path / "reference.png")
    bits, contrast = image_hash(path)
    if how == "1x1":
        assert contrast == 0
    elif how != "CMYK":
        assert np.bitwise_count(bits ^ image_hash(tmp_path / "reference.png")[0]).sum() <= 16


def test_plain_images_are_no_evidence(tmp_path):
    for i in range(6):
        Image.new("RGB", (100, 100), (10 * i, 90, 140)).save(tmp_path / f"{i}.png")
    frame = pd.DataFrame({"image": [f"{i}.png" for i in range(6)], "label": "background", "split": ["train", "test"] * 3})
    found = audit(Manifest(frame, tmp_path))
    assert found.leaks.empty and linked_groups(found).nunique() == 6
    assert any("too plain" in n for n in found.to_dict()["notes"])


# edges


def test_groups_from_a_person_overrule_names():
    frame = pd.DataFrame({"image": ["a/1.jpg", "b/1.jpg", "b/2.jpg"], "label": "oil", "split": ["train", "test", "test"]})
    assert len(audit(Manifest(frame, "."), hashes=False).leaks) == 1, "no group known: the stem counts"
    told = Manifest(frame.assign(source_group=["x", "y", "x"]), ".")
    assert audit(told, hashes=False).leaks["image"].tolist() == ["b/2.jpg"]


def test_empty_and_unsplit_data():
    with refused("no-images"):
        audit(Manifest(pd.DataFrame({"image": [], "label": []}), "."))
    alone = Manifest(pd.DataFrame({"image": ["a.jpg", "b.jpg"], "label": ["oil", "ship"]}), ".")
    found = audit(alone, hashes=False)
    assert found.to_dict()["leaks"] == {} and found.table().row_count and found.figure()
    with pytest.raises(DataError, match="baseline needs images"):
        lookup_baseline(alone)
    with pytest.raises(DataError, match="2 paths, 1 labels"):
        manifest_of_names(["a", "b"], ["oil"], ["train", "test"])


def test_one_image_under_many_names_does_not_fill_the_memory():
    n = 6000 # 18 million pairs: 430 MB if they were kept
    same = Hashes(np.tile(image_bits(), (n, 1)), np.full(n, 50.0))
    frame = pd.DataFrame({"image": [f"{i}x.jpg" for i in range(n)], "label": "oil", "split": ["train", "test"] * (n // 2)})
    manifest = Manifest(frame, ".")
    tracemalloc.start()
    links = find_links(manifest, same)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert links.pairs == n * (n - 1) // 2 and len(set(links.together["near_duplicate"])) == 1
    assert (links.twin["near_duplicate"][1::2] >= 0).all() and peak < 200e6


def image_bits() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2**63, 4, dtype=np.uint64) << np.uint64([8, 0, 0, 0])


def test_images_that_are_merely_numbered_are_no_film():
    "Every 24th of them would pass for a frame; where nearly all bare numbers are such multiples they are frames."
    def groups(numbers):
        frame = pd.DataFrame({"image": [f"{n}.jpg" for n in numbers], "label": "oil", "split": "train"})
        return audit(Manifest(frame, "."), hashes=False).groups.nunique()

    assert groups(range(100, 900)) == 800
    assert groups(range(120, 480, 24)) == 1
