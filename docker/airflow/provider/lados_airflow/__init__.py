"Airflow's provider for lados: jobs are handed in over HTTP and waited for by the triggerer. Nothing of lados but its client is used."

from typing import Any

__version__ = "0.1.0"


def get_provider_info() -> dict[str, Any]:
    "Return what Airflow asks every provider: who it is, what it brings, and the form of its kind of connection."
    name, modules = "lados", {n: [f"lados_airflow.{n}"] for n in ("operators", "sensors", "hooks", "triggers")}
    brought = {n: [{"integration-name": name, "python-modules": m}] for n, m in modules.items()}
    return {"package-name": "lados-airflow", "name": name, "description": "Trainings and batches of lados, over HTTP", "versions": [__version__],
            "integrations": [{"integration-name": name, "tags": ["service"]}], **brought,
            "connection-types": [{"connection-type": "lados", "hook-name": name, "hook-class-name": "lados_airflow.hooks.LadosHook", **FORM}],
            "notifications": ["lados_airflow.notifications.WebhookNotifier"]}


FORM = {
    "conn-fields": {
        "timeout": {"label": "Timeout", "schema": {"type": ["number", "null"], "default": 60}, "description": "seconds for one answer"},
        "authority": {"label": "Authority", "schema": {"type": ["string", "null"]},
                      "description": "path of the certificate that vouches for the service, if it is none of the public ones"}},
    "ui-field-behaviour": {
        "hidden-fields": ["schema", "login"], "relabeling": {"host": "Address", "password": "API key"},
        "placeholders": {"host": "https://lados.example:8443", "password": "of the scopes train and predict, admin to promote"}},
}
