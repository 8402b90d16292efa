"Waiting for a job that somebody else has handed in."

from collections.abc import Mapping, Sequence
from typing import Any

from airflow.sdk import BaseSensorOperator, PokeReturnValue
from airflow.sdk.configuration import conf

from .hooks import LadosHook
from .operators import ended_well
from .triggers import LadosJobTrigger


class LadosJobSensor(BaseSensorOperator):
    "Succeeds when a job has succeeded, and returns it; fails when it ends otherwise."

    template_fields: Sequence[str] = ("lados_conn_id", "job_id")
    ui_color = "#dcebf5"

    def __init__(
        self,
        *,
        job_id: str, # whole
        lados_conn_id: str = LadosHook.default_conn_name,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        away_s: float = 3600.0, # for how long the service may be away during the wait
        **options: Any, # of every sensor: poke_interval, timeout, mode ...
    ):
        super().__init__(**options)
        self.job_id, self.lados_conn_id, self.deferrable, self.away_s = job_id, lados_conn_id, deferrable, away_s

    def execute(self, context: Any) -> Any:
        "Wait, in the triggerer if that is wished."
        if not self.deferrable:
            return super().execute(context)
        if done := self.poke(context):
            return done.xcom_value
        trigger = LadosJobTrigger(self.job_id, self.lados_conn_id, self.away_s, cancel_on_kill=False) # the job is somebody else's
        self.defer(trigger=trigger, method_name="execute_complete", timeout=self.execution_timeout)

    def poke(self, context: Any) -> PokeReturnValue:
        "Return whether the job has ended, and the job."
        with LadosHook(self.lados_conn_id).get_conn() as client:
            job = client.job(self.job_id)
        over = job["ended"] is not None
        return PokeReturnValue(over, ended_well(job) if over else None)

    def execute_complete(self, context: Any, event: Mapping[str, Any]) -> dict[str, Any]:
        "Return the job: id, kind, state, run."
        return ended_well(event)
