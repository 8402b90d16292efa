"The way to the service: an Airflow connection of the type `lados`, whose host is the address and whose password is the API key."

import asyncio
import ssl
from collections.abc import Mapping
from typing import Any

from airflow.sdk import BaseHook

from lados.client import ApiError, AsyncClient, Client


class LadosHook(BaseHook):
    "Gives clients of the service that a connection names."

    conn_name_attr, default_conn_name, conn_type, hook_name = "lados_conn_id", "lados_default", "lados", "lados"

    def __init__(
        self,
        lados_conn_id: str = default_conn_name,
        **options: Any, # of the client, above those of the connection: timeout, retries, patience
    ):
        super().__init__()
        self.lados_conn_id, self.options = lados_conn_id, options

    def get_conn(self) -> Client:
        "Return a client, to be closed: `with hook.get_conn() as client`."
        return Client(**self._client_options())

    async def get_async_conn(self) -> AsyncClient:
        "Return a client for an event loop, to be closed: `async with await hook.get_async_conn() as client`."
        return AsyncClient(**await asyncio.to_thread(self._client_options)) # `airflow dags test` has no other way to a connection

    def _client_options(self) -> dict[str, Any]:
        connection = self.get_connection(self.lados_conn_id)
        return client_options(connection, connection.extra_dejson) | self.options

    def test_connection(self) -> tuple[bool, str]:
        "Return whether the service answers and the key is good, and what is said of it."
        try:
            with self.get_conn() as client:
                version = client.health()["version"]
                client.jobs(limit=1)
            return True, f"lados {version} answers, and the key is good"
        except (ApiError, OSError) as e:
            return False, str(e)


def client_options(
    connection: Any, # of Airflow
    extra: Mapping[str, Any], # what else its form has: timeout, authority
) -> dict[str, Any]:
    "Return what a client is made with."
    scheme, _, rest = (connection.host or "127.0.0.1").rpartition("://")
    host, slash, prefix = rest.partition("/")
    port = f":{connection.port}" if connection.port else ""
    made = {"url": f"{scheme or connection.schema or 'http'}://{host}{port}{slash}{prefix}", "key": connection.password}
    if extra.get("timeout"):
        made["timeout"] = float(extra["timeout"])
    if extra.get("authority"):
        made["verify"] = ssl.create_default_context(cafile=extra["authority"])
    return made
