"The splits keep their promises on many random datasets."
import numpy as np
import pandas as pd
import pytest
from commands import refused

from lados.core import ConfigError, DataError
from lados.data.manifest import SPLITS, Manifest
from lados.data.split import SPLITTERS, group_folds, group_split, leak_free_rows, split_by
from lados.labels import CLASSES


def dataset(seed: int) -> Manifest:
    "A random dataset: 3 to 80 groups of 1 to 40 images, one to six classes, pure and mixed groups, sometimes two labels an image."
    rng = np.random.default_rng(seed)
    groups, classes = int(rng.integers(3, 81)), int(rng.integers(1, 7))
    sizes = rng.integers(1, int(rng.choice([2, 6, 40])) + 1, groups)
    weights = rng.dirichlet(np.full(classes, rng.choice([0.3, 3.0])))
    main, mixed, double = rng.choice(classes, groups, p=weights), rng.choice([0, 0.2]), rng.choice([0, 0.1])
    rows = []
    for g in np.repeat(np.arange(groups), sizes):
        c = int(rng.integers(classes)) if rng.random() < mixed else int(main[g])
        labels = {c, int(rng.integers(classes))} if rng.random() < double else {c}
        rows.append({"image": f"{len(rows)}.jpg", "label": "|".join(CLASSES[i] for i in sorted(labels)), "source_group": f"g{g}"})
    frame = pd.DataFrame(rows)
    frame["sha256"] = [f"{i:064x}" for i in range(len(frame))]
    return Manifest(frame, ".")


def shuffled(manifest: Manifest, seed: int = 1) -> Manifest:
    return Manifest(manifest.frame.sample(frac=1, random_state=seed), manifest.root)


def groups_with(manifest: Manifest, c: str) -> int:
    has = manifest.frame["label"].map(lambda x: c in x.split("|"))
    return manifest.frame.loc[has, "source_group"].nunique()


def try_split(manifest: Manifest, **more):
    "The split, or None where the data cannot be split without losing a class from training; that must be said."
    try:
        return group_split(manifest, **more)
    except DataError as e:
        assert e.remedy and "training without it" in e.problem
        singles = [c for c in manifest.classes if groups_with(manifest, c) == 1]
        assert singles, "refused although no class depends on one group"
        return None


@pytest.mark.parametrize("block", range(5))
def test_no_group_in_two_splits_and_every_row_once(block):
    done = 0
    for seed in range(block * 20, block * 20 + 20):
        manifest = dataset(seed)
        if (out := try_split(manifest, seed=seed)) is None:
            continue
        new, report = out
        assert new.frame["image"].tolist() == manifest.frame["image"].tolist(), "rows and their order stay"
        assert set(new.frame["split"]) == set(SPLITS), "no split is empty"
        assert new.frame.groupby("source_group")["split"].nunique().max() == 1
        assert sum(report.images.values()) == len(manifest)
        assert new.counts() == report.counts
        for split in ("valid", "test"):
            assert len(leak_free_rows(new, split)) == len(new.only(split))
        done += 1
    assert done >= 14


def test_same_seed_same_split_whatever_the_row_order():
    for seed in range(15):
        manifest = dataset(seed)
        if (first := try_split(manifest, seed=seed)) is None:
            assert try_split(shuffled(manifest), seed=seed) is None
            continue
        again, other = group_split(manifest, seed=seed), group_split(shuffled(manifest), seed=seed)
        assert first[0].frame.equals(again[0].frame) and first[1] == again[1]
        assert other[0].hash == first[0].hash == other[0].meta["split"]["hash"]
        assert other[1].notes == first[1].notes


def test_each_class_is_where_its_groups_allow():
    missing, asked = [], 0
    for seed in range(60):
        manifest = dataset(seed)
        if (out := try_split(manifest)) is None:
            continue
        counts, notes = out[1].counts, " ".join(out[1].notes)
        for c in manifest.classes:
            n = groups_with(manifest, c)
            assert counts["train"][c], f"seed {seed}: {c} is never trained"
            wished = SPLITS if n >= 3 else ("train", "test")[:n]
            asked += 1
            for split in wished:
                if not counts[split][c]:
                    missing.append((seed, c, n, split))
                    assert f"class {c}:" in notes, "what is missing is said"
    # groups of several classes, one of which has no other group, can tie a class's groups to training
    assert len(missing) <= 0.02 * asked, missing


def test_balance_is_near_where_groups_are_many():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"source_group": np.repeat(np.arange(600), rng.integers(1, 8, 600))}).astype(str)
    label = dict(zip(frame["source_group"].unique(), rng.choice(CLASSES[:4], 600, p=[0.5, 0.3, 0.15, 0.05]), strict=True))
    frame["label"], frame["image"] = frame["source_group"].map(label), [f"{i}.jpg" for i in range(len(frame))]
    _, report = group_split(Manifest(frame, "."), fractions=(0.6, 0.1, 0.3))
    for split, wished in report.wished.items():
        assert abs(report.reached[split] - wished) < 0.005
        for c in CLASSES[:4]:
            assert abs(report.counts[split][c] - wished * (frame["label"] == c).sum()) <= 3
    assert not report.notes


def test_folds_hold_every_row_out_once():
    for seed in range(40):
        manifest = dataset(seed)
        group, k = manifest.frame["source_group"].to_numpy(dtype=object), 2 + seed % 4
        if len(set(group)) < k:
            with pytest.raises(DataError):
                group_folds(manifest, k)
            continue
        folds = group_folds(manifest, k, seed)
        assert len(folds) == k and np.array_equal(np.sort(np.concatenate(folds)), np.arange(len(manifest)))
        assert sum(len(set(group[f])) for f in folds) == len(set(group)), "a group is in one fold only"
        moved = shuffled(manifest)
        other = group_folds(moved, k, seed)
        assert all({*manifest.frame["image"].iloc[a]} == {*moved.frame["image"].iloc[b]} for a, b in zip(folds, other, strict=True))


def rows(labels, groups, splits=None) -> Manifest:
    frame = {"image": [f"{i}.jpg" for i in range(len(labels))], "label": labels, "source_group": groups}
    return Manifest(pd.DataFrame(frame | ({"split": splits} if splits else {})), ".")


def test_what_cannot_be_split_is_refused_with_a_remedy():
    empty = Manifest(pd.DataFrame({"image": [], "label": []}), ".")
    for manifest in (empty, rows(["oil"] * 9, ["a"] * 9), rows(["oil"] * 9, ["a", "b", "b"] * 3)):
        with pytest.raises(DataError) as e:
            group_split(manifest)
        assert e.value.remedy
        with pytest.raises(DataError):
            group_folds(manifest, 3)
    with refused("split-impossible"):
        group_split(rows(["oil", "ship", "sheen"] * 3, ["a", "b", "c"] * 3))
    with pytest.raises(ConfigError, match="are no shares"):
        group_split(dataset(0), fractions=(0.7, 0.2, 0.2))
    with pytest.raises(ConfigError, match="folds"):
        group_folds(dataset(0), 1)
    with refused("unknown-name", "'radnom'"):
        split_by(dataset(0), "radnom")
    with pytest.raises(DataError, match="groups for"):
        group_split(dataset(0), groups=["x"])


def test_two_groups_can_fill_two_splits():
    new, report = group_split(rows(["oil"] * 9, ["a", "b", "b"] * 3), fractions=(0.7, 0.0, 0.3))
    assert report.images == {"train": 6, "test": 3} and "valid" not in set(new.frame["split"])


def test_one_class_only():
    _, report = group_split(rows(["oil"] * 100, [str(i // 5) for i in range(100)]))
    assert report.images == {"train": 70, "valid": 15, "test": 15}
    assert set(report.class_groups) == {"oil"} and not report.notes


def test_scarce_classes_and_giants_are_placed_and_named():
    labels = ["oil"] * 60 + ["oil"] * 40 + ["ship"] * 4 + ["sheen"] * 6
    groups = ["giant"] * 60 + [f"o{i // 2}" for i in range(40)] + ["only"] * 4 + ["s1"] * 4 + ["s2"] * 2
    new, report = group_split(rows(labels, groups))
    split = dict(zip(new.frame["source_group"], new.frame["split"], strict=True))
    assert split["giant"] == split["only"] == "train"
    assert (split["s1"], split["s2"]) == ("train", "test")
    notes = "\n".join(report.notes)
    assert "'giant' alone has 60 of 110" in notes
    assert "class ship: all 4 images are of one source group: only in train" in notes
    assert "class sheen: 6 images of 2 source groups: none in valid" in notes
    assert "oil (21 groups)" in list(report.table().columns[0].cells)


def test_official_stays_and_gets_a_valid_part_where_it_has_none():
    manifest = dataset(3)
    split = np.where(np.arange(len(manifest)) % 5 == 0, "test", "train")
    own = Manifest(manifest.frame.assign(split=split), ".")
    new, _ = split_by(own, "official", seed=4)
    assert (new.frame.loc[split == "test", "split"] == "test").all()
    assert len(leak_free_rows(new, "valid")) == len(new.only("valid")) > 0
    assert new.meta["split"]["name"] == "official" and new.meta["split"]["version"] == SPLITTERS["official"].version
    whole, _ = split_by(new, "official", seed=9)
    assert whole.hash == new.hash, "a complete official split is left as it is"
    for wrong in ("", "val"):
        with refused("split-impossible"):
            split_by(Manifest(own.frame.assign(split=[wrong, *split[1:]]), "."), "official")


def test_random_leaks_and_says_so():
    new, report = split_by(dataset(5), "random")
    assert "several splits" in report.notes[0]
    assert len(leak_free_rows(new)) < len(new.only("test"))
    assert new.frame["source_group"].tolist() == dataset(5).frame["source_group"].tolist()


def test_given_groups_become_the_source_groups():
    manifest = dataset(7)
    merged = manifest.frame["source_group"].map(lambda g: f"m{int(g[1:]) // 3}")
    new, _ = group_split(manifest, groups=merged)
    assert new.frame["source_group"].tolist() == merged.tolist() and new.meta["split"]["groups"] == "given"
    assert new.frame.groupby("source_group")["split"].nunique().max() == 1
