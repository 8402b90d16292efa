"A dataset brings its own classes: kelp, algae and clean water go the whole way, and no class of LADOS appears on it."

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import refused, run_here
from PIL import Image
from serving import KEY, Server, make_run
from toy import TINY, tiny

from lados.core import ConfigError, RunError, settings
from lados.data.importers import import_dataset
from lados.data.manifest import Manifest, load_manifest
from lados.files import read_json, write_json
from lados.labels import LADOS as LADOS_SET
from lados.labels import LabelSet, label_set_from, read_label_set

SEA = {"kelp": (30, 120, 30), "algae": (160, 160, 30), "clean": (30, 60, 160)}
FILE = """
name: coast
classes:
  - {name: kelp, title: Kelp forest, colour: "#117733", hint: brown fronds at the surface, aliases: [seaweed]}
  - algae
  - {name: clean, background: true}
"""
SMALL = {"backbone", "size", "cache_size", "augment", "batch_size", "lr", "precision", "patience", "pretrained"}
STRANGERS = re.compile(r"\b(oil|emulsion|oil_platform|oil platform|sheen|ship|background)\b|(?<=[a-z]_)(oil|emulsion|sheen|ship)\b")


def squares(folder, each=24, names=tuple(SEA), seed=0) -> Path:
    "Folders of coloured squares; a name beyond the three has the colour of one of them."
    rng = np.random.default_rng(seed)
    for k, name in enumerate(names):
        for i in range(each):
            path = Path(folder, name, f"{name}{i}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.array(list(SEA.values())[k % 3]) + rng.normal(0, 20, (32, 32, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return Path(folder)


def strangers(text) -> set[str]:
    "Classes of LADOS that a text, or what JSON makes of a value, names."
    text = text if isinstance(text, str) else json.dumps(text)
    return {m[0] for m in STRANGERS.finditer(re.sub(r'\\*"background\\*":', "", text))} # a record's field


@pytest.fixture(scope="module")
def coast(tmp_path_factory):
    "The whole way as a user types it: import, train, evaluate, export, predict. Gives the folder and what was printed."
    folder = tmp_path_factory.mktemp("coast")
    squares(folder / "kelp_algae_clean")
    Path(folder, "coast.yaml").write_text(FILE)
    own = {"LADOS_HOME": "home", "LADOS_RUNS": "runs", "LADOS_DATA": "data"}
    env = {**{k: str(folder / v) for k, v in own.items()}, "OMP_NUM_THREADS": "1", "LADOS_THREADS": "1"}
    options = [f"--set={k}={'null' if v is None else str(v).lower()}" for k, v in TINY.items() if k in SMALL]
    printed = ""
    for line in ("data import kelp_algae_clean --out set --label-set coast.yaml", ["train", "--data=set", "--name=coast", "--epochs=3",
                 "--set=audit=false", "--set=mixup=0.2", "--set=balance=loss", *options], "evaluate --out scores.json",
                 "export latest --formats openvino", "predict kelp_algae_clean/kelp --out answers.csv"):
        words = line.split() if isinstance(line, str) else line
        done = run_here(folder, env, *words)
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        printed += done.stdout
    return folder, printed


@pytest.fixture(scope="module")
def run(coast) -> Path:
    return (coast[0] / "runs" / "latest").resolve()


# --- the way


def test_names_alone_make_a_label_set(tmp_path):
    manifest = import_dataset(squares(tmp_path / "kelp_algae_clean", 2))
    assert manifest.label_set.names == ("algae", "kelp", "clean") and manifest.label_set.background == "clean"
    assert set(manifest.frame) >= {"area_kelp", "area_algae", "area_clean"} and not strangers(" ".join(manifest.frame))
    back = load_manifest(manifest.save(tmp_path / "set"))
    assert back.label_set == manifest.label_set and list(back.counts()[""].values()) == [2, 2, 2]


def test_the_command_line_speaks_of_these_classes_only(coast, run):
    folder, printed = coast
    assert "kelp" in printed and "algae" in printed and not strangers(printed)
    table = pd.read_csv(folder / "answers.csv")
    assert [c for c in table if c.startswith("p_")] == ["p_kelp", "p_algae", "p_clean"]
    assert (table["predicted"] == "kelp").mean() > 0.8 and not strangers(table.to_csv())


def test_run_and_bundle_know_their_classes(run):
    card = read_json(run / "bundle" / "card.json")
    assert card["classes"] == ["kelp", "algae", "clean"]
    assert label_set_from(card["label_set"])["kelp"].title == "Kelp forest" and card["conformal"]["support"].keys() == SEA.keys()
    files = ["manifest.json", "metrics.json", "split.json", "predictions.csv", "bundle/card.json", "bundle/parity.json"]
    assert not {n: named for n in files if (named := strangers((run / n).read_text()))}
    report = (run / "report.html").read_text()
    assert "kelp" in report and not re.search(r"\b(emulsion|oil platform|oil_platform|sheen)\b", report)
    assert {p.stem for p in (run / "figures").glob("*.png")} >= {"class_balance", "confusion", "class_scores"}


@pytest.fixture(scope="module")
def service(run, tmp_path_factory):
    home = tmp_path_factory.mktemp("service")
    shutil.copytree(run, home / "runs" / run.name)
    make_run(home / "runs" / "lados-toy", epochs=0)
    server = Server(home, home / "runs" / run.name).ready()
    yield server
    server.stop()


def test_the_service_speaks_of_these_classes_only(coast, run, service):
    answer = service.predict((coast[0] / "kelp_algae_clean/algae/algae0.png").read_bytes()).json()
    assert list(answer["probabilities"]) == ["kelp", "algae", "clean"] and answer["label"] == "algae"
    document = service.get("/openapi.json").json()
    label = document["components"]["schemas"]["Answered"]["properties"]["label"]
    assert label["enum"] == ["kelp", "algae", "clean"] and not strangers(document)
    own, = (m for m in service.get("/models").json()["models"] if m["served"])
    assert own["card"]["classes"] == ["kelp", "algae", "clean"] and not strangers(own)
    assert service.get("/metrics").json()["inference"]["recent"]["class_share"].keys() == SEA.keys()
    data = (coast[0] / "kelp_algae_clean/kelp/kelp0.png").read_bytes()
    assert service.post("/explain", params={"label": "algae"}, files={"file": ("a.png", data)}).json()["label"] == "algae"
    wrong = service.post("/explain", params={"label": "algea"}, files={"file": ("a.png", data)}).json()
    assert "did you mean 'algae'" in wrong["remedy"]


def test_a_model_of_other_classes_is_not_promoted(service):
    refused = service.promote("lados-toy", "torch")
    assert refused.status_code == 409 and "another label set" in refused.json()["detail"] and "MODEL_PATH" in refused.json()["remedy"]
    assert service.get("/ready").json()["model"] != "lados-toy"


def test_the_page_follows_the_model(coast, run, home, monkeypatch):
    from lados.data.corrections import Corrections
    from lados.ui.classifier import Card, LocalClassifier, class_list, results_table
    from lados.ui.session import ClassifierHandle

    monkeypatch.setenv("LADOS_ENGINE", "openvino")
    settings.cache_clear()
    told, image = [], coast[0] / "kelp_algae_clean/kelp/kelp1.png"
    door = ClassifierHandle(told.append, lambda: LocalClassifier(run))
    answer = door().classify(image, image.name)
    assert told[-1]["classes"] == class_list(door.label_set) and told[-1]["classes"][0] == {
        "name": "kelp", "title": "Kelp forest", "colour": "#117733", "hint": "brown fronds at the surface"}
    card = Card("1", image.name, image, "done", answer=answer)
    assert not strangers(results_table([Card("0", "x.txt"), card]).decode() + json.dumps(told))
    kept = Corrections(home / "corrections")
    with refused("unknown-name", "did you mean 'algae'"):
        kept.save(image, image.name, "algea", door.label_set)
    kept.save(image, image.name, "algae", door.label_set)
    assert import_dataset(kept.table).label_set == door.label_set, "the table says what its classes are"
    with pytest.raises(ConfigError, match="another label set"):
        kept.save(image, image.name, "ship")


def test_comparison_on_the_own_classes_and_not_with_others(run, tmp_path):
    from lados.jobs.promotion import propose_run
    from lados.model.evaluate import compare_models
    from lados.runs.folders import Run

    result = compare_models(run, Path(shutil.copytree(run, tmp_path / "twin")))
    assert result["candidate"]["scores"]["per_class"].keys() == SEA.keys() and not strangers(result)
    other = make_run(tmp_path / "lados-toy", epochs=0)
    with refused("label-set-differs"):
        compare_models(run, other)
    candidate = Run(Path(shutil.copytree(run, tmp_path / "candidate")))
    proposal = propose_run(candidate, other / "bundle")
    assert not proposal["better"] and "another label set" in proposal["verdict"]


def test_a_batch_in_the_queue_has_these_columns(run):
    from lados.serve.predictor import Predictor
    from lados.serve.table import classify

    table = classify(Predictor.setup(run, "torch"), load_manifest(run).paths[:3])
    assert [c for c in table if c.startswith("p_")] == ["p_kelp", "p_algae", "p_clean"]


# --- label sets are not mixed


def test_scoring_on_other_classes_is_refused(run, tmp_path):
    from lados.model.evaluate import evaluate_on
    from lados.model.inference import load_model

    manifest = import_dataset(squares(tmp_path / "mixed", 2, ("oil", "ship")))
    with refused("label-set-differs", "kelp, algae, clean"):
        evaluate_on(load_model(run), manifest)
    with refused("unknown-class"):
        import_dataset(tmp_path / "mixed", label_set=load_model(run).label_set)


def test_a_training_does_not_go_on_with_other_classes(tmp_path):
    from lados.model.batches import prepare_dataset
    from lados.model.datamodule import dataset_changes
    from lados.model.train import train

    manifest = import_dataset(squares(tmp_path / "sea", 4))
    frame = manifest.frame.assign(split=["train", "train", "valid", "test"] * 3)
    before = Manifest(frame, manifest.root, manifest.meta)
    train(tiny(epochs=1), prepare_dataset(before, 32, 32), tmp_path / "run")
    turned = LabelSet(manifest.label_set.classes[::-1])
    after = Manifest(frame, manifest.root, {"label_set": turned.to_dict()})
    assert "the order" in dataset_changes(before, after) and before.hash != after.hash
    with refused("resume-refused", "algae, kelp, clean"):
        train(tiny(epochs=2), prepare_dataset(after, 32, 32), tmp_path / "run")


def test_promotion_without_a_service_refuses_other_classes(run, tmp_path, home, monkeypatch):
    from lados.jobs.promotion import promote_run

    monkeypatch.setenv("MODEL_PATH", str(make_run(tmp_path / "lados-toy", epochs=0)))
    monkeypatch.delenv("LADOS_API_URL", raising=False)
    settings.cache_clear()
    with refused("label-set-differs"):
        promote_run({"candidate": str(run / "bundle"), "groups": 9})


# --- what the import makes of names


@pytest.mark.parametrize("names", [("oil", "sheen", "clean"), ("Oils-Emulsions", "boat", "none")])
def test_known_names_and_aliases_are_lados(tmp_path, names):
    assert import_dataset(squares(tmp_path / "x", 1, names)).label_set == LADOS_SET


def test_a_near_miss_among_known_names_asks(tmp_path):
    squares(tmp_path / "x", 1, ("oil", "ship", "oil_platfrom"))
    with refused("unknown-class", "oil_platfrom", "did you mean 'oil_platform'", "--label-set"):
        import_dataset(tmp_path / "x")
    Path(tmp_path, "own.yaml").write_text("merge: {oil_platfrom: oil_platform}")
    merged = import_dataset(tmp_path / "x", label_set=read_label_set(tmp_path / "own.yaml"))
    assert set(merged.frame["label"]) == {"oil", "ship", "oil_platform"} and not merged.label_set.differs(LADOS_SET)


def test_a_file_merges_classes_whatever_the_form(tmp_path):
    squares(tmp_path / "tree", 1, ("oil", "emulsion", "clean"))
    Path(tmp_path, "tree", "label_set.yaml").write_text("merge: {emulsion: oil}")
    assert sorted(import_dataset(tmp_path / "tree").frame["label"]) == ["background", "oil", "oil"], "it lies beside the data"
    Path(tmp_path, "table.csv").write_text("file,label\ntree/oil/oil0.png,oil\ntree/emulsion/emulsion0.png,emulsion\n")
    fewer = read_label_set(tmp_path / "tree" / "label_set.yaml")
    assert set(import_dataset(tmp_path / "table.csv", label_set=fewer).frame["label"]) == {"oil"} and "emulsion" not in fewer


def test_coco_categories_make_a_label_set_with_a_class_for_nothing(tmp_path):
    squares(tmp_path / "x", 2, ("kelp",))
    images = [{"id": i, "file_name": f"kelp/kelp{i}.png", "width": 32, "height": 32} for i in range(2)]
    outline = {"id": 0, "image_id": 0, "category_id": 3, "segmentation": [[0, 0, 16, 0, 16, 16, 0, 16]]}
    write_json(tmp_path / "x" / "_annotations.coco.json", {"images": images, "annotations": [outline], "categories": [
        {"id": 3, "name": "Kelp-Forest"}, {"id": 4, "name": "unused"}]})
    manifest = import_dataset(tmp_path / "x")
    assert manifest.label_set.names == ("kelp_forest", "background") and manifest.label_set.background == "background"
    assert sorted(manifest.frame["label"]) == ["background", "kelp_forest"]
    assert list(manifest.frame["area_background"]) == [0, 1] and manifest.frame["area_kelp_forest"][0] == pytest.approx(0.25, abs=0.02)
    no_class_for_nothing = label_set_from({"classes": ["kelp_forest"]})
    left = import_dataset(tmp_path / "x", label_set=no_class_for_nothing)
    assert len(left) == 1 and left.meta["warning_counts"] == {"no-class": 1, "single-class": 1}


def test_old_manifests_and_cards_mean_lados(tmp_path):
    from lados.model.bundle import card_label_set, read_card

    bundle = make_run(tmp_path / "run", epochs=0) / "bundle"
    card = {k: v for k, v in read_json(bundle / "card.json").items() if k not in ("label_set", "sealed")}
    (bundle / "SHA256SUMS").unlink()
    write_json(bundle / "card.json", card)
    assert card_label_set(read_card(bundle)) == LADOS_SET
    write_json(bundle / "card.json", {**card, "classes": ["kelp"]})
    with pytest.raises(RunError, match="its classes are"):
        read_card(bundle)
    (tmp_path / "run" / "manifest.json").unlink()
    assert load_manifest(tmp_path / "run").label_set == LADOS_SET
    with refused("unknown-class", "kelp"):
        Manifest(pd.DataFrame({"image": ["a"], "label": ["kelp"]}), ".")


def test_promotion_of_the_same_classes_still_works(run, service):
    assert service.promote(run.name).status_code == 200 and KEY
