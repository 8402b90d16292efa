"A retraining is judged before it is served: on images that neither model knows, and never by luck alone."

import shutil
from dataclasses import replace

import numpy as np
import pytest
from commands import refused
from serving import KEY, edit_card, make_run, serving, wait_for
from toy import toy_manifest

from lados.core import DataError, RunError, ServeError, settings
from lados.data.manifest import Manifest, load_manifest
from lados.files import hold_lock, read_json, write_json
from lados.jobs import leases
from lados.jobs.kinds import run_training
from lados.jobs.promotion import (
    drift_now,
    new_labels,
    promote_run,
    propose_run,
    read_proposal,
    served_bundle,
    serving_settings,
    should_promote,
)
from lados.jobs.store import add_job, open_store
from lados.model.evaluate import compare_models, unknown_to_both
from lados.runs.folders import find_run, set_latest
from lados.serve.server import serving_note
from lados.trail import read_trail


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    "Two runs on the same toy: `good` has learned it, `poor` has the weights it began with."
    folder = tmp_path_factory.mktemp("pair")
    make_run(folder / "good", epochs=6)
    make_run(folder / "poor", epochs=0)
    return folder


@pytest.fixture
def place(home, pair, monkeypatch):
    "The two as trainings that succeeded, `poor` the latest; no service is named."
    for name in ("MODEL_PATH", "LADOS_API_URL", "AUTO_PROMOTE", "API_KEY", "LADOS_ENGINE"):
        monkeypatch.delenv(name, raising=False)
    settings.cache_clear()
    for name in ("good", "poor"):
        path = settings().lados_runs / name
        shutil.copytree(pair / name, path)
        write_json(path / "params.json", {})
        write_json(path / "run.json", {"format": 1, "job": "train", "name": name, "state": "succeeded"})
    set_latest(find_run("poor"))
    return settings().lados_runs


def setting(monkeypatch, **values):
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))
    settings.cache_clear()


# --- the comparison


def test_a_better_candidate_is_found_better_and_the_other_way_round_worse(pair):
    found = compare_models(pair / "good", pair / "poor")
    assert found["better"] and not found["worse"] and found["images"] == found["groups"] == 24
    low, high = found["difference"]["macro_f1"]["interval"]
    assert 0 < low <= found["difference"]["macro_f1"]["value"] <= high <= 1
    assert "is better" in found["verdict"] and found["candidate"]["scores"]["accuracy"] > found["served"]["scores"]["accuracy"]
    back = compare_models(pair / "poor", pair / "good")
    assert back["worse"] and not back["better"]
    assert np.allclose(back["difference"]["macro_f1"]["interval"], [-high, -low])
    assert back["disagreement"]["candidate_right"] == found["disagreement"]["served_right"]


def test_equal_models_are_not_better(pair, tmp_path):
    shutil.copytree(pair / "good", tmp_path / "twin")
    found = compare_models(tmp_path / "twin", pair / "good")
    assert not found["better"] and not found["worse"] and found["disagreement"]["images"] == 0
    assert found["difference"]["macro_f1"] == {"value": 0, "interval": [0, 0]}


def test_pairing_sees_what_intervals_side_by_side_do_not(pair):
    "The paired interval is what resampling both tables with the same draws gives, computed the long way."
    from lados.labels import CLASSES
    from lados.model.evaluate import paired_difference
    from lados.model.metrics import scores

    rng, n = np.random.default_rng(3), 120
    groups, truth = np.arange(n) // 4, rng.integers(0, 3, n)
    one, two = (np.where(rng.random(n) < share, truth, rng.integers(0, 3, n)) for share in (0.8, 0.6))
    found = paired_difference(truth, one, two, groups, 4000, 1)["macro_f1"]

    def macro(said, rows):
        return scores(truth[rows], np.eye(6)[said[rows]], CLASSES, n_boot=2)["macro_f1"]

    slow = []
    for _ in range(300):
        rows = np.concatenate([np.flatnonzero(groups == g) for g in rng.integers(0, 30, 30)])
        slow.append(macro(one, rows) - macro(two, rows))
    assert found["value"] == pytest.approx(macro(one, np.arange(n)) - macro(two, np.arange(n)))
    assert np.allclose(found["interval"], np.quantile(slow, [0.025, 0.975]), atol=0.04)


def test_shared_sources_are_left_out_whoever_learned_from_them(pair, tmp_path):
    manifest = load_manifest(pair / "good")
    test = manifest.frame["split"] == "test"
    frame = manifest.frame[test].reset_index(drop=True)
    frame.loc[0, "source_group"] = "train3" # a crop of what both trained on
    frame.loc[1, "source_group"] = "valid2" # and of what they were selected on
    learned = load_manifest(pair / "good").frame
    learned.loc[learned["image"] == frame["image"][2], "split"] = "train" # the served model alone has learned from it
    shutil.copytree(pair / "poor", tmp_path / "poor")
    Manifest(learned, pair / "good", {}).save(tmp_path / "poor")
    left = unknown_to_both(pair / "good", tmp_path / "poor", Manifest(frame, pair / "good"))
    assert left.frame["image"].tolist() == frame["image"].tolist()[3:]
    twin = frame.iloc[[2]].assign(source_group="under another name")
    with pytest.raises(DataError, match="none of the 1 images"):
        unknown_to_both(pair / "good", tmp_path / "poor", Manifest(twin, pair / "good"))


def test_one_source_decides_nothing(pair):
    manifest = load_manifest(pair / "good")
    one = Manifest(manifest.frame[manifest.frame["split"] == "test"].assign(source_group="one film"), manifest.root)
    found = compare_models(pair / "good", pair / "poor", one)
    assert found["difference"]["macro_f1"]["value"] > 0 and found["difference"]["macro_f1"]["interval"] is None
    assert not found["better"] and not found["worse"] and "one source" in found["verdict"]


@pytest.mark.parametrize("refitted", ["good", "poor"])
def test_a_refitted_model_has_learned_from_its_test_images(pair, tmp_path, refitted):
    for name in ("good", "poor"):
        shutil.copytree(pair / name, tmp_path / name)
    edit_card(tmp_path / refitted / "bundle", refit=True)
    with pytest.raises(DataError, match="new to both"):
        compare_models(tmp_path / "good", tmp_path / "poor")
    strangers = toy_manifest(tmp_path / "others", train=0, held=12, seed=9)
    frame = strangers.frame.assign(source_group="other " + strangers.frame["source_group"])
    assert compare_models(tmp_path / "good", tmp_path / "poor", Manifest(frame, strangers.root))["images"] == len(frame)


def test_a_bundle_without_its_run_is_told_of(pair, tmp_path):
    shutil.copytree(pair / "poor" / "bundle", tmp_path / "alone")
    found = compare_models(pair / "good", tmp_path / "alone")
    assert found["better"] and "not known" in found["notes"][0]
    with pytest.raises(DataError, match="nobody knows"):
        compare_models(tmp_path / "alone", pair / "good")


def test_an_image_that_cannot_be_read_is_counted_for_neither(pair, tmp_path):
    manifest = load_manifest(pair / "good")
    shutil.copytree(pair / "good", tmp_path / "good")
    (tmp_path / "good" / "test0.png").write_bytes(b"no image")
    frame = manifest.frame[manifest.frame["split"] == "test"].copy()
    frame.loc[frame["image"] == "test0.png", "sha256"] = "" # it is not what it was
    found = compare_models(pair / "good", pair / "poor", Manifest(frame, tmp_path / "good"))
    assert found["images"] == 23 and found["unread"] == 1


# --- the proposal


def test_a_better_retraining_is_proposed_with_a_report(place, monkeypatch):
    proposal = propose_run(find_run("good"), served_bundle())
    assert proposal == read_proposal(find_run("good"))
    assert proposal["better"] and not proposal["promoted"] and proposal["served"].endswith("poor/bundle")
    report = find_run("compare-good").path / "report.html"
    assert proposal["report"] == str(report) and "The candidate is better" in report.read_text()
    assert {p.name for p in (report.parent / "figures").iterdir()} == {"class_f1.png", "differences.png"}
    assert find_run("latest") == find_run("poor"), "nothing was promoted"
    assert not should_promote(proposal)[0] and "AUTO_PROMOTE" in should_promote(proposal)[1]
    setting(monkeypatch, AUTO_PROMOTE="true")
    assert should_promote(proposal)[0]
    assert not should_promote({**proposal, "groups": 2})[0]
    assert not should_promote({**proposal, "promoted": True})[0]
    set_latest(find_run("good"))
    assert "another model" in should_promote(proposal)[1]


def test_what_cannot_be_compared_is_proposed_as_such(place, monkeypatch):
    setting(monkeypatch, AUTO_PROMOTE="true")
    good, poor = find_run("good"), find_run("poor")
    assert "nothing is served" in propose_run(good, None)["reason"]
    assert "served already" in propose_run(poor, served_bundle())["reason"]
    edit_card(good.path / "bundle", refit=True)
    proposal = propose_run(good, served_bundle())
    assert "new to both" in proposal["reason"] and not should_promote(proposal)[0] and proposal["report"]
    good.update(state="failed")
    with pytest.raises(RunError, match="cannot be proposed"):
        propose_run(good, served_bundle())


# --- the promotion


def candidate(place):
    return {"candidate": str(place / "good" / "bundle"), "served": str(served_bundle()), "better": True, "groups": 24, "promoted": False}


def test_a_note_is_followed_by_a_service_that_runs(place, monkeypatch):
    with serving(settings().lados_home, None, LADOS_RUNS=place, LADOS_ENGINE="auto") as server:
        assert server.ready().get("/ready").json()["model"] == "poor"
        told = promote_run(candidate(place))
        assert told["promoted"] and read_json(place / "good" / "proposal.json") == told
        wait_for(lambda: server.get("/ready").json()["model"] == "good", 30, server)
    assert served_bundle() == place / "good" / "bundle"
    setting(monkeypatch, MODEL_PATH=place / "poor")
    assert served_bundle() == place / "poor" / "bundle", "who names a model means it"


def test_what_is_served_is_what_a_service_of_this_home_was_told_to(place, monkeypatch):
    "In another terminal, which knows nothing of its options."
    setting(monkeypatch, MODEL_PATH=place / "good", LADOS_ENGINE="torch")
    with serving_note("http://127.0.0.1:9"):
        monkeypatch.delenv("MODEL_PATH")
        monkeypatch.delenv("LADOS_ENGINE")
        settings.cache_clear()
        assert served_bundle() == (place / "good" / "bundle").resolve()
        assert serving_settings().lados_engine == "torch"
        killed = settings().lados_home / "serve" / "api-1.json" # nobody holds it
        write_json(killed, {"url": "http://127.0.0.1:7", "model": "/gone", "engine": "auto"})
        assert served_bundle() == (place / "good" / "bundle").resolve()
        write_json(killed, {"url": "http://127.0.0.1:7", "model": str(place / "poor"), "engine": "auto"})
        with hold_lock(killed):
            assert served_bundle() == (place / "poor" / "bundle").resolve(), "two that differ: the latest, as if nobody had said anything"
            assert serving_settings().lados_engine == "auto"
    assert served_bundle() == (place / "poor" / "bundle").resolve(), "the latest"


def test_what_a_schedule_promotes_is_in_the_trail_under_its_name(place, monkeypatch):
    setting(monkeypatch, AUTO_PROMOTE="true")
    job, _ = add_job(open_store(), "train", {"proposed": True}, "k", [("train", 1)], origin="schedule:weekly")
    lease = replace(leases.claim(open_store(), job.id, 0, "w"), run=str(place / "good"))
    run_training(lease, leases.Heartbeat(open_store(), lease))
    assert [(e["who"], e["target"], e["result"]) for e in read_trail(action="promote")] == [("schedule:weekly", "good", "done")]


def test_a_service_is_asked_with_its_key(place, monkeypatch):
    with serving(settings().lados_home, place / "poor", LADOS_RUNS=place, LADOS_ENGINE="torch") as server:
        server.ready()
        setting(monkeypatch, LADOS_API_URL=server.url)
        for key in ("", "wrong"):
            setting(monkeypatch, API_KEY=key)
            with pytest.raises(ServeError, match="key"):
                promote_run(candidate(place))
        assert server.get("/ready").json()["model"] == "poor" and not (place / "good" / "proposal.json").exists()
        setting(monkeypatch, API_KEY=KEY)
        assert promote_run(candidate(place))["promoted"] and server.get("/ready").json()["model"] == "good"
        assert drift_now() is None, "it has seen no images"
    with pytest.raises(ServeError, match="does not answer"):
        promote_run(candidate(place))
    assert drift_now() is None


def test_a_model_that_does_not_load_is_not_written_down(place):
    (place / "good" / "bundle" / "model.safetensors").write_bytes(b"half")
    with refused("bundle-damaged"):
        promote_run(candidate(place))
    assert served_bundle() == place / "poor" / "bundle" and not (settings().lados_home / "serve").exists()


# --- when to train again


def test_a_table_without_times_is_refused(home):
    path = toy_manifest(home / "toy", train=3, held=0).root
    with pytest.raises(DataError, match="corrected_at"):
        new_labels(path)
