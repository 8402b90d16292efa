"All is destroyed and put back: the same answers, the same history, in SQLite and in PostgreSQL."

import shutil
import threading

import numpy as np
import pytest
from serving import colours, make_run

from lados.core import settings
from lados.files import read_json
from lados.jobs import leases
from lados.jobs.backup import BackupError, restore_backup, take_backup
from lados.jobs.promotion import served_bundle
from lados.jobs.schedule import Schedule, add_schedule, list_schedules
from lados.jobs.store import Store, _opened, add_job, list_jobs, open_store
from lados.keys import KeyRing, add_key, keys_path
from lados.runs.folders import find_run, new_run, set_latest
from lados.serve.predictor import Predictor
from lados.serve.service import record_promotion
from lados.trail import note_action, read_trail, trail_path


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request, home, monkeypatch):
    "An installation whose jobs are in one of the two; `forget` empties it of everything."
    for name in ("LADOS_BATCHES", "MODEL_PATH", "LADOS_JOBS_URL"):
        monkeypatch.delenv(name, raising=False)
    if request.param == "postgresql":
        monkeypatch.setenv("LADOS_JOBS_URL", request.getfixturevalue("postgres"))
    settings.cache_clear()
    yield open_store()
    _drop(open_store())
    _opened.cache_clear()


def _drop(store: Store) -> None:
    from lados.jobs.store import _tables

    _tables.drop_all(store.engine)
    store.engine.dispose()


def destroy(home):
    "Every volume is gone."
    _drop(open_store())
    for name in ("lados_home", "lados_runs", "lados_data"):
        shutil.rmtree(home / name, ignore_errors=True)
    _opened.cache_clear()


def fill(store, home):
    "A run that is promoted, jobs of three states, a schedule, a correction, the table of a batch."
    run = new_run("train", "may", {"preset": "demo"})
    made = make_run(home / "made", epochs=0)
    shutil.copytree(made / "bundle", run.path / "bundle")
    run.update(state="succeeded")
    set_latest(run)
    record_promotion(settings(), run.path / "bundle", "torch")
    for n in range(3):
        job, _ = add_job(store, "train", {"run": str(run.path), "n": n}, f"key{n}", [("train", 2)], name=f"job {n}")
        claim = leases.claim(store, job.id, 0, "w") if n else None
        if n == 2:
            leases.finish(store, claim)
    add_schedule(store, Schedule("weekly", {"preset": "demo"}, "0 3 * * 1"))
    for path, text in ((settings().lados_data / "corrections" / "labels.csv", "image,label,corrected_at\na.png,oil,2026-01-01\n"),
                       (settings().batches_folder / job.id / "results.csv", "image,label\n")):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return run


def picture():
    "Answers and history as a user sees them."
    predictor, jobs = Predictor.setup(served_bundle(), "torch"), list_jobs(open_store(), None, None, 100)
    answers = predictor.predict(np.stack([predictor.decode(data) for data in colours(3)]))[0].tolist()
    return answers, [j.to_dict() for j in jobs], list_schedules(open_store()), find_run("latest").path.name


def test_after_a_restore_everything_is_as_it_was(store, home):
    run = fill(store, home)
    before = picture()
    about = take_backup(home / "backup")
    destroy(home)
    assert restore_backup(home / "backup")["made"] == about["made"]
    assert picture() == before and find_run("latest").path == run.path
    assert (settings().lados_data / "corrections" / "labels.csv").read_text().endswith("a.png,oil,2026-01-01\n")
    assert next(settings().batches_folder.glob("*/results.csv")).read_text() == "image,label\n"
    with pytest.raises(BackupError, match="jobs here already"):
        restore_backup(home / "backup")


def test_keys_and_trail_come_back_for_their_owner_only(home, monkeypatch):
    monkeypatch.delenv("LADOS_JOBS_URL", raising=False)
    settings.cache_clear()
    keys, trail = keys_path(settings()), trail_path(settings())
    key = add_key(keys, "camera", ["predict"])
    note_action("promote", "spring")
    take_backup(home / "backup")
    assert all((home / "backup" / p.name).stat().st_mode & 0o777 == 0o600 for p in (keys, trail))
    destroy(home)
    add_key(keys, "another", ["predict"])
    with pytest.raises(BackupError, match="other keys"):
        restore_backup(home / "backup")
    keys.unlink()
    note_action("restore", "backup", result="backup-error") # the trail has begun anew
    restore_backup(home / "backup")
    assert KeyRing(keys).find(key).name == "camera" and keys.stat().st_mode & 0o777 == 0o600
    (old,) = trail.parent.glob("audit.jsonl.*")
    assert [e["target"] for p in (old, trail) for e in read_trail(p)] == ["spring", "backup"] and old.stat().st_mode & 0o777 == 0o600
    destroy(home)
    restore_backup(home / "backup")
    assert [e["target"] for e in read_trail()] == ["spring"] and trail.stat().st_mode & 0o777 == 0o600
    _opened.cache_clear()


def test_jobs_move_from_sqlite_to_postgresql(home, monkeypatch, postgres):
    for name in ("LADOS_BATCHES", "MODEL_PATH", "LADOS_JOBS_URL"):
        monkeypatch.delenv(name, raising=False)
    settings.cache_clear()
    job, _ = add_job(open_store(), "train", {"a": "ü"}, "k", [("train", 2)])
    take_backup(home / "backup")
    monkeypatch.setenv("LADOS_JOBS_URL", postgres)
    settings.cache_clear()
    restore_backup(home / "backup")
    assert [j.to_dict() for j in list_jobs(open_store(), None, None, 9)] == [job.to_dict()]
    _drop(open_store())
    _opened.cache_clear()


def test_a_backup_while_jobs_are_handed_in_is_of_one_moment(store, home):
    "No job without its tasks, no task without its job."
    over = threading.Event()

    def hand_in():
        for n in range(10_000):
            if over.is_set():
                return
            add_job(store, "predict", {}, f"k{n}", [("predict", 1), ("predict", 1)])

    thread = threading.Thread(target=hand_in)
    thread.start()
    try:
        while len(list_jobs(store, None, None, 5)) < 5:
            pass
        rows = [take_backup(home / f"backup{n}")["rows"] for n in range(3)]
    finally:
        over.set()
        thread.join()
    assert all(r["lados_parts"] == 2 * r["lados_jobs"] and r["lados_jobs"] >= 5 for r in rows)


@pytest.mark.parametrize("damage", ["changed", "gone", "unfinished"])
def test_a_damaged_backup_is_refused_before_anything_is_written(home, damage, monkeypatch):
    monkeypatch.delenv("LADOS_JOBS_URL", raising=False)
    add_job(open_store(), "train", {}, "k", [("train", 1)])
    take_backup(home / "backup")
    victim = home / "backup" / ("SHA256SUMS" if damage == "unfinished" else "jobs/lados_jobs.jsonl")
    victim.write_text("{}") if damage == "changed" else victim.unlink()
    destroy(home)
    with pytest.raises(BackupError):
        restore_backup(home / "backup")
    assert not list_jobs(open_store(), None, None, 9) and not settings().lados_runs.exists()
    _opened.cache_clear()


def test_a_backup_overwrites_nothing(home, monkeypatch):
    monkeypatch.delenv("LADOS_JOBS_URL", raising=False)
    (home / "full").mkdir()
    (home / "full" / "x").touch()
    for folder in (home / "full", settings().lados_runs / "inside"):
        with pytest.raises(BackupError):
            take_backup(folder)
    assert read_json(take_backup(home / "fresh") and home / "fresh" / "backup.json")["format"] == 1
    _opened.cache_clear()
