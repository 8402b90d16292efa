"Jobs as tasks: handed in, waited for without a slot, and cancelled when the task is."

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from airflow.sdk import BaseOperator
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from lados.client import ApiError, Busy, Client

from .hooks import LadosHook
from .triggers import SAID, LadosJobTrigger


def ended_well(
    job: Mapping[str, Any], # with `SAID`, and the states of a trigger's event
) -> dict[str, Any]: # what is worth an XCom
    """Return a job that has succeeded. AirflowFailException if it has failed or was cancelled, since the same work fails again;
    AirflowException, after which Airflow may try again, if nobody knows."""
    if job["state"] == "succeeded":
        return {n: job[n] for n in SAID if n != "error"}
    known = job["state"] in ("failed", "cancelled")
    raise (AirflowFailException if known else AirflowException)(f"job {job['id']}: {job['state']}. {job['error'] or ''}".rstrip())


class LadosJobOperator(BaseOperator):
    "Hands in a job of any kind and returns it once it has succeeded. A retried task is given the same job while that is queued or running."

    template_fields: Sequence[str] = ("lados_conn_id", "kind", "job_params", "job_name")
    template_fields_renderers: ClassVar[dict[str, str]] = {"job_params": "json"}
    ui_color = "#dcebf5"

    def __init__(
        self,
        *,
        kind: str = "", # train, predict, export, merge, audit, or one that a package brings
        job_params: Mapping[str, Any] | str | None = None, # what the kind knows
        job_name: str = "", # for people
        lados_conn_id: str = LadosHook.default_conn_name,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        away_s: float = 3600.0, # for how long the service may be away during the wait
        cancel_on_kill: bool = True, # cancel the job when the task is stopped
        **options: Any, # of every operator
    ):
        super().__init__(**options)
        self.kind, self.job_params, self.job_name, self.lados_conn_id = kind, job_params or {}, job_name, lados_conn_id
        self.deferrable, self.away_s, self.cancel_on_kill = deferrable, away_s, cancel_on_kill
        self._job_id: str | None = None

    def execute(self, context: Any) -> dict[str, Any]:
        "Hand the job in, and wait."
        with LadosHook(self.lados_conn_id).get_conn() as client:
            job = self._submit(client)
            self._job_id = job["id"]
            self.log.info("%s job %s%s", self.kind, job["id"], ", which is there already" * bool(job.get("attached")))
            if not self.deferrable:
                return self.execute_complete(context, client.wait(job["id"]))
        self.defer(trigger=LadosJobTrigger(job["id"], self.lados_conn_id, self.away_s, self.cancel_on_kill),
                   method_name="execute_complete", timeout=self.execution_timeout)

    def _submit(self, client: Client) -> dict[str, Any]:
        "Return the job. AirflowFailException if the service refuses it, which it would again."
        try:
            return client.submit(self.kind, dict(self.job_params), name=self.job_name)
        except ApiError as e:
            refused = e.status is not None and 400 <= e.status < 500 and not isinstance(e, Busy)
            raise (AirflowFailException if refused else AirflowException)(str(e)) from e

    def execute_complete(self, context: Any, event: Mapping[str, Any]) -> dict[str, Any]:
        "Return the job: id, kind, state, run."
        return ended_well(event)

    def on_kill(self) -> None:
        "Cancel the job of a task that is stopped while it runs; one that is deferred, its trigger looks after."
        if self._job_id and self.cancel_on_kill:
            with LadosHook(self.lados_conn_id).get_conn() as client:
                client.cancel(self._job_id)


class LadosTrainOperator(LadosJobOperator):
    "Trains: `training` has a preset, and parameters that stand above it."

    template_fields: Sequence[str] = ("lados_conn_id", "job_params", "job_name")

    def __init__(
        self,
        *,
        training: Mapping[str, Any] | str, # as in POST /train
        **options: Any, # of a LadosJobOperator
    ):
        super().__init__(kind="train", job_params=training, **options)
