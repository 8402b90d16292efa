"A kind of job from outside: one record in a package of its own, and everything follows."

import json
import subprocess
import sys

import pytest
from commands import install_package, run_here
from serving import KEY, ROOT, wait_for
from toy import toy_manifest
from working import ended, environment, service, working

from lados.core import ConfigError, settings
from lados.data.corrections import Corrections
from lados.data.manifest import load_manifest
from lados.files import read_json
from lados.jobs.kinds import TRAIN
from lados.jobs.store import add_job, get_job, open_store
from lados.jobs.tasks import job_kind, job_results, run_task
from lados.model.datamodule import open_dataset
from lados.model.params import make_params

KEYED = {"X-API-Key": KEY}
PLUGIN = """
import json
from pathlib import Path

from lados.core import ConfigError
from lados.jobs.batches import check_allowed
from lados.jobs.tasks import PREDICT, JobKind, job_folder


def prepare(params, folder):
    if not Path(params.get("folder", "/nowhere")).is_dir():
        raise ConfigError("there is no such folder to count", "name one")
    return {"folder": params["folder"], "files": len(list(Path(params["folder"]).iterdir()))}


def work(lease, heart):
    while Path(lease.params["folder"], "wait").exists():
        heart.tell(did=1)
        heart.check()
    folder = job_folder(lease.job)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "count.json").write_text(json.dumps({"files": len(list(Path(lease.params["folder"]).iterdir()))}))


COUNT = JobKind(
    "counts the files of a folder", PREDICT, "files", work, prepare, lambda params: {"folder": check_allowed(params["folder"])},
    title=lambda params: Path(params["folder"]).name, cut=lambda params: [params["files"]], results={"json": "application/json"},
    result=lambda job, format: job_folder(job.id) / "count.json", keeps_folder=True)
"""
FORGET = """
import time
import sqlalchemy as sa
from lados.jobs.store import JOBS, open_store
from lados.jobs.workers import Retention
with open_store().writing() as c:
    c.execute(sa.update(JOBS).values(created=0.0, ended=time.time() - 400 * 86400))
print(*Retention(every=0, first=0)(open_store()))
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    "An installed package that brings the kind `count`."
    folder = tmp_path_factory.mktemp("package")
    install_package(folder, "counting", PLUGIN, "lados.job_kinds", count="COUNT", broken="NOTHING")
    return {"PYTHONPATH": f"{ROOT}:{folder}"}


def lados(home, package, *words):
    command = [sys.executable, "-c", "from lados.cli.main import main; main()", *map(str, words)]
    return subprocess.run(command, env=environment(home, **package), capture_output=True, text=True)


@pytest.mark.long
def test_a_kind_from_outside_goes_all_the_way(tmp_path, package):
    folder = tmp_path / "data" / "flight"
    folder.mkdir(parents=True)
    for name in ("1", "2", "wait"):
        (folder / name).touch()
    body = {"kind": "count", "params": {"folder": str(folder)}}
    with working(tmp_path, train=0, **package), service(tmp_path, **package) as server:
        answer = server.post("/jobs", json=body, headers=KEYED)
        assert answer.status_code == 202, answer.text
        job = answer.json()
        assert answer.headers["location"] == f"/job/{job['id']}" and job["name"] == "flight" and job["unit"] == "files"
        assert server.post("/jobs", json=body, headers=KEYED).json()["attached"]
        far = wait_for(lambda: (j := server.get(f"/job/{job['id']}").json())["done"] == 1 and j, 60)
        assert far["state"] == "running" and far["total"] == 3 and far["fraction"] == pytest.approx(1 / 3) and far["eta_s"] is not None
        early = server.get(f"/job/{job['id']}/results")
        assert early.status_code == 409 and "1 of 3 files" in early.json()["detail"]

        server.client.delete(f"/job/{job['id']}", headers=KEYED)
        assert ended(server, job["id"])["state"] == "cancelled"
        (folder / "wait").unlink()
        assert server.post(f"/job/{job['id']}/retry", headers=KEYED).status_code == 202
        assert ended(server, job["id"])["state"] == "succeeded"
        results = server.get(f"/job/{job['id']}/results")
        assert results.json() == {"files": 2} and results.headers["content-type"] == "application/json"
        assert [j["id"] for j in server.get("/jobs?kind=count", headers=KEYED).json()["jobs"]] == [job["id"]]
        text = server.get("/metrics/prometheus").text
        assert 'batch_units_total{kind="count",unit="files"} 3.0' in text
        assert 'batch_jobs_total{kind="count",state="succeeded"} 1.0' in text

        assert "count" in lados(tmp_path, package, "job", "list").stdout
        done = lados(tmp_path, package, "job", "submit", "count", f"--set=folder={folder}", f"--out={tmp_path / 'out.json'}")
        assert done.returncode == 0, done.stderr
        assert json.loads((tmp_path / "out.json").read_text()) == {"files": 2}
        refused = lados(tmp_path, package, "job", "submit", "count", folder)
        assert refused.returncode == 2 and "takes no paths" in refused.stderr
        kept = tmp_path / "h" / "batches" / job["id"]
        assert kept.is_dir()
        gone = subprocess.run([sys.executable, "-c", FORGET], env=environment(tmp_path, **package), capture_output=True, text=True)
        assert job["id"] in gone.stdout.split() and not kept.exists(), gone.stderr
        assert server.get(f"/job/{job['id']}").status_code == 404


def test_what_a_kind_does_not_admit_is_refused(tmp_path, package):
    with service(tmp_path, **package) as server:
        for kind, params, says in (("count", {"folder": "/etc"}, "not among what jobs may read"), ("cuont", {}, "unknown kind"),
                                   ("broken", {}, "unknown kind"), ("export", {"run": "/etc"}, "not the name of a run"),
                                   ("merge", {"data": "/etc"}, "not among what jobs may read"), ("audit", {"data": ["/etc"]}, "not among what jobs may read"),
                                   ("merge", {"epochs": 1}, "unknown parameter 'epochs'"), ("audit", {"hash": 1}, "unknown parameter 'hash'"),
                                   ("train", {"epochz": 1}, "unknown parameter 'epochz'"), ("predict", {"source": "/etc"}, ""),
                                   ("predict", {"folder": 3}, "name no images"), ("export", {"formats": 3}, ""),
                                   ("compare", {"run": "/etc"}, "not the name of a run"), ("compare", {"with": 3}, "unknown parameter 'with'")):
            answer = server.post("/jobs", json={"kind": kind, "params": params}, headers=KEYED)
            assert answer.status_code in (409, 422) and says in answer.json()["detail"], answer.text
        assert server.post("/jobs", json={"kind": "count"}).status_code == 401
        assert server.post("/jobs", json={"params": {}}, headers=KEYED).status_code == 422


def test_without_its_package_a_job_can_still_be_listed_and_cancelled(tmp_path, package):
    folder = tmp_path / "data" / "flight"
    folder.mkdir(parents=True)
    assert lados(tmp_path, package, "job", "submit", "count", f"--set=folder={folder}").returncode == 0
    with service(tmp_path) as server:
        (job,) = server.get("/jobs", headers=KEYED).json()["jobs"]
        assert (job["kind"], job["state"]) == ("count", "queued")
        assert server.client.delete(f"/job/{job['id']}", headers=KEYED).json()["state"] == "cancelled"


def done_here(kind, params, folder) -> dict:
    "The results of a job that is done at once."
    checked = job_kind(kind).prepare(params, folder)
    job, _ = add_job(open_store(), kind, checked, job_kind(kind).key(checked), [(TRAIN, 1)], job_kind(kind).title(checked))
    run_task(open_store(), job.id, 0, "worker")
    job = get_job(open_store(), job.id)
    assert job.state == "succeeded", job.error
    return read_json(job_results(job)) | {"name": job.name}


def test_a_training_keeps_what_a_merge_has_split_and_an_audit_has_seen(home):
    toy = toy_manifest(settings().lados_data / "toy")
    held = next(row for row in toy.frame.itertuples() if row.split == "test" and row.label != "oil")
    Corrections().save((toy.root / held.image).read_bytes(), held.image, "oil")
    asked = {"data": str(toy.root), "corrections": True, "split": "official"}
    found = done_here("merge", asked, home)
    assert found["name"] == "toy + corrections" and found["images"] == 36 and sum(found["counts"]["test"].values()) == 6
    assert str(home) not in str(found), "results are for everybody who knows the job"
    folder = settings().lados_data / found["dataset"]
    merged, trained = load_manifest(folder), open_dataset(make_params({"data": str(folder)})).manifest
    assert merged.hash == trained.hash == open_dataset(make_params(asked)).manifest.hash
    assert merged.frame.loc[merged.frame["sha256"] == held.sha256, ["split", "label"]].values.tolist() == [["test", "oil"]]
    assert done_here("merge", asked, home)["dataset"] == found["dataset"], "done twice it is the same"
    leaks = done_here("audit", {"data": str(folder)}, home)["leaks"]
    assert leaks["test"] | {"any": 0} == leaks["test"] and leaks["test"]["images"] == 6


def test_a_dataset_in_an_object_store_is_refused_with_what_to_do(home, monkeypatch):
    monkeypatch.setenv("LADOS_SOURCES", "s3://flights")
    settings.cache_clear()
    says = "s3://flights/june is a URL.*copy them to each machine that trains"
    for kind, data in (("train", "s3://flights/june"), ("merge", ["s3://flights/june", "s3://flights/may"]), ("audit", "s3://flights/june")):
        with pytest.raises(ConfigError, match=says):
            job_kind(kind).prepare(job_kind(kind).admit({"data": data}), home)
    done = run_here(home, environment(home), "train", "--data", "s3://flights/june")
    assert done.returncode == 2 and "s3://flights/june is a URL" in " ".join(done.stderr.split()), done.stderr
