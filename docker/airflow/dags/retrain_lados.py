"""A model that keeps up: where people have put enough labels right, or images have drifted, train anew, and serve what is better.

    reason -> merge -> audit -> train -> compare -> export -> decide -> notify

Corrections and dataset are merged, audited and split by a job, and the audit is a gate: nothing is trained where held-out images are known to training.
The training compares itself with the model that is served, on images that neither has learned from. What is better by more than chance can explain is
promoted, if the parameter `promote` says so; all else stays a proposal. Every wait for a job is the triggerer's and takes no slot. Airflow asks
the service over HTTP and computes nothing.

What a scheduled run is given, the environment variable RETRAIN_LADOS says: a JSON object of parameters that stand above those below.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import Param, dag, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException
from lados_airflow.hooks import LadosHook
from lados_airflow.notifications import WebhookNotifier
from lados_airflow.operators import LadosJobOperator, LadosTrainOperator
from lados_airflow.params import with_defaults

PARAMS = with_defaults({
    "conn_id": Param("lados_default", type="string", description="the connection to the service"),
    "notify": Param("", type="string", description="a connection that names a webhook, which is told; empty: the log is"),
    "data": Param(None, type=["string", "array", "null"], description="the dataset, or several, on the service's machine; null: the drawn sample"),
    "training": Param({"preset": "resnet50"}, type="object", description="preset and parameters of the training"),
    "labels": Param(50, type="integer", minimum=0, description="new labels that are reason enough; 0: always a reason"),
    "drift": Param(0.3, type="number", minimum=0, maximum=1, description="drift of the latest images above which there is a reason"),
    "leaks": Param(0.0, type="number", minimum=0, maximum=1, description="share of held-out images that training may know"),
    "formats": Param([], type="array", description="what is exported and certified; empty: what is usual"),
    "promote": Param(False, type="boolean", description="serve what is better by more than chance can explain; else it is proposed"),
}, "RETRAIN_LADOS")
TOLD = WebhookNotifier(conn_id="{{ params.notify }}") # of a task that has failed for good
WAIT = {"deferrable": True, "lados_conn_id": "{{ params.conn_id }}"}


def client() -> Any:
    "Return a client of the service."
    return LadosHook(get_current_context()["params"]["conn_id"]).get_conn()


@dag(schedule="0 3 * * 1", start_date=datetime(2026, 1, 1, tzinfo=UTC), catchup=False, max_active_runs=1, params=PARAMS, tags=["lados"],
     render_template_as_native_obj=True, doc_md=__doc__,
     default_args={"retries": 2, "retry_delay": timedelta(minutes=1), "on_failure_callback": TOLD})
def retrain_lados() -> None:
    "Corrections or drift, to a model that is proposed or served."

    @task.short_circuit
    def reason() -> str | None:
        "Return why to train; none: there is no reason, and the rest is skipped."
        wanted = get_current_context()["params"]
        with client() as service:
            made = max((p["made"] for p in service.trainings()["proposals"]), default="")
            labels = sum(c["corrected_at"] > made for c in service.corrections()["corrections"])
            drift = service.metrics()["inference"]["recent"].get("drift_score") or 0.0
        if labels >= wanted["labels"]:
            return f"{labels} labels are new"
        return f"the latest images drift ({drift:.2f})" if drift > wanted["drift"] else None

    @task
    def merged(job: dict[str, Any]) -> dict[str, Any]:
        "Return what came of the merge: images, sources, and `data`, the folder where it is."
        with client() as service:
            found, folders = service.results(job["id"], "json"), service.trainings()["datasets"]
        return {**found, "data": next(path for path in folders if path.endswith(f"/{found['dataset']}"))}

    @task
    def audited(job: dict[str, Any]) -> str:
        "Return what the audit found. AirflowFailException if training knows too many of the held-out images."
        with client() as service:
            leaks = service.results(job["id"], "json")["leaks"].values()
        known, images = sum(s["any"] for s in leaks), sum(s["images"] for s in leaks)
        if known > get_current_context()["params"]["leaks"] * images:
            raise AirflowFailException(f"training knows {known} of {images} held-out images: scores would be of memory, not of sight")
        return f"training knows {known} of {images} held-out images"

    @task
    def training(data: dict[str, Any]) -> dict[str, Any]:
        "Return the parameters of the training: what was merged, as it was split, to be proposed."
        return {**get_current_context()["params"]["training"], "data": data["data"], "corrections": False, "split": "auto", "proposed": True}

    @task
    def compared(job: dict[str, Any]) -> dict[str, Any]:
        "Return the comparison with the served model."
        with client() as service:
            return next(p for p in service.trainings()["proposals"] if p["model"] == job["run"])

    @task
    def decided(proposal: dict[str, Any]) -> str:
        "Serve the model if it is better and that is wanted; return what happened."
        if proposal["promoted"]: # AUTO_PROMOTE is on where the service runs
            return f"{proposal['model']} is served. {proposal['verdict']}"
        if not (proposal["better"] and get_current_context()["params"]["promote"]):
            return f"{proposal['model']} is proposed. {proposal['verdict']}"
        with client() as service:
            service.promote(proposal["model"])
        return f"{proposal['model']} is served from now on. {proposal['verdict']}"

    @task
    def notify(why: str, data: dict[str, Any], audit: str, outcome: str) -> str:
        "Tell people."
        context = get_current_context()
        text = f"lados: {why}; {data['images']} images of {data['sources']} sources, {audit}; {outcome}"
        WebhookNotifier(text=text, conn_id=context["params"]["notify"]).notify(context)
        return text

    why = reason()
    merge = LadosJobOperator(task_id="merge", kind="merge", job_params="{{ {'data': params.data, 'corrections': True} }}", **WAIT)
    data = merged(merge.output)
    audit = LadosJobOperator(task_id="audit", kind="audit", job_params="{{ {'data': ti.xcom_pull(task_ids='merged')['data']} }}", **WAIT)
    found = audited(audit.output)
    train = LadosTrainOperator(task_id="train", training=training(data), job_name="retrain_lados", **WAIT)
    proposal = compared(train.output)
    export = LadosJobOperator(task_id="export", kind="export", **WAIT,
                              job_params="{{ {'run': ti.xcom_pull(task_ids='compared')['model'], 'formats': params.formats} }}")
    outcome = decided(proposal)
    why >> merge
    data >> audit
    found >> train
    proposal >> export >> outcome
    notify(why, data, found, outcome)


retrain_lados()
