"Telling people: one line of text to a webhook, as Slack, Mattermost, Teams and Rocket.Chat take it."

from collections.abc import Sequence
from typing import Any

import httpx
from airflow.sdk import BaseHook, BaseNotifier


class WebhookNotifier(BaseNotifier):
    "Posts `{\"text\": ...}` to the webhook that a connection names: its host is the address, and its password, if any, the secret end of it."

    template_fields: Sequence[str] = ("text", "conn_id")

    def __init__(
        self,
        *,
        text: str = "lados: {{ dag.dag_id }} failed in {{ ti.task_id }}: {{ exception or '' }}",
        conn_id: str = "", # empty: the log is all that hears it
    ):
        super().__init__()
        self.text, self.conn_id = text, conn_id

    def notify(self, context: Any) -> None:
        "Post the text, and write it into the log."
        self.log.warning("%s", self.text)
        if self.conn_id:
            httpx.post(webhook_address(self.conn_id), json={"text": self.text}, timeout=20).raise_for_status()


def webhook_address(conn_id: str) -> str:
    "Return the address of a webhook."
    c = BaseHook.get_connection(conn_id)
    base = c.host if "://" in (c.host or "") else f"{c.schema or 'https'}://{c.host}" + (f":{c.port}" if c.port else "")
    return f"{base.rstrip('/')}/{c.password}" if c.password else base
