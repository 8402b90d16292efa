"""Each new folder of a flight becomes a batch, and its table is kept.

    new_flights -> batch -> table (both once a folder) -> notify

The service reads the folder itself (it must lie below LADOS_DATA or LADOS_SOURCES there), so no image goes through Airflow. A folder that has a
table is done; one whose batch failed is tried again in the next run, and does not keep the others from their tables.

What a scheduled run is given, the environment variable SCORE_FLIGHTS says: a JSON object of parameters that stand above those below.
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import Param, dag, get_current_context, task, task_group
from airflow.sdk.exceptions import AirflowFailException
from lados_airflow.hooks import LadosHook
from lados_airflow.notifications import WebhookNotifier
from lados_airflow.operators import LadosJobOperator
from lados_airflow.params import with_defaults

PARAMS = with_defaults({
    "conn_id": Param("lados_default", type="string", description="the connection to the service"),
    "notify": Param("", type="string", description="a connection that names a webhook, which is told; empty: the log is"),
    "flights": Param("/mnt/flights", type="string", description="folder of folders, as Airflow sees it"),
    "served_as": Param("", type="string", description="the same folder, as the service sees it; empty: at the same place"),
    "tables": Param("/mnt/tables", type="string", description="where tables are kept, as Airflow sees it"),
    "quiet_s": Param(300, type="integer", minimum=0, description="a folder that changed more recently is still being copied"),
}, "SCORE_FLIGHTS")
TOLD = WebhookNotifier(conn_id="{{ params.notify }}") # of a task that has failed for good


def changed(
    folder: Path,
) -> float: # seconds since 1970
    "Return when something in a folder changed last."
    return max(p.stat().st_mtime for p in (folder, *folder.rglob("*")))


@dag(schedule="*/15 * * * *", start_date=datetime(2026, 1, 1, tzinfo=UTC), catchup=False, max_active_runs=1, params=PARAMS, tags=["lados"],
     doc_md=__doc__, default_args={"retries": 2, "retry_delay": timedelta(minutes=1), "on_failure_callback": TOLD})
def score_flights() -> None:
    "Folders, to tables."

    @task
    def new_flights() -> list[dict[str, str]]:
        "Return the folders that have no table yet, as parameters of batches."
        wanted = get_current_context()["params"]
        flights, there = Path(wanted["flights"]), Path(wanted["served_as"] or wanted["flights"])
        done = {p.stem for p in Path(wanted["tables"]).glob("*.csv")}
        latest = datetime.now(UTC).timestamp() - wanted["quiet_s"]
        names = sorted(p.name for p in flights.iterdir() if p.is_dir() and p.name not in done and changed(p) <= latest)
        return [{"source": str(there / name)} for name in names]

    @task
    def table(request: dict[str, str], job: dict[str, Any]) -> str:
        "Keep the table of a batch, and return a line about it."
        wanted = get_current_context()["params"]
        with LadosHook(wanted["conn_id"]).get_conn() as service:
            rows = service.results(job["id"], "csv")
        target = Path(wanted["tables"]) / f"{Path(request['source']).name}.csv"
        part = target.with_suffix(".part")
        part.write_text(rows, encoding="utf-8")
        part.replace(target) # whole or not there
        return f"{target.name}: {rows.count(chr(10)) - 1} images"

    @task(trigger_rule="all_done", retries=0, on_failure_callback=None)
    def notify(flights: list[dict[str, str]], lines: list[str] | str | None = None) -> str | None:
        "Tell people, if anything is new. AirflowFailException if a flight has no table, so that the run is red."
        context, told = get_current_context(), [lines] if isinstance(lines, str) else list(lines or []) # of one table Airflow gives its line alone
        if not flights:
            return None
        text = "lados: " + "; ".join(told or ["no table"]) + f" ({len(told)} of {len(flights)} new flights)"
        WebhookNotifier(text=text, conn_id=context["params"]["notify"]).notify(context)
        if len(told) < len(flights):
            raise AirflowFailException(text)
        return text

    @task_group
    def flight(request: dict[str, str]) -> Any:
        "One folder; none waits for another."
        batch = LadosJobOperator(task_id="batch", kind="predict", job_params=request, lados_conn_id="{{ params.conn_id }}", deferrable=True)
        return table(request, batch.output)

    flights = new_flights()
    notify(flights, flight.expand(request=flights))


score_flights()
