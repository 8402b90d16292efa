"Parameters of a DAG whose defaults a deployment sets, without touching the DAG."

import json
import os
from collections.abc import Mapping

from airflow.sdk import Param


def with_defaults(
    params: Mapping[str, Param], # of a DAG
    variable: str, # of the environment: a JSON object, parameter -> default
) -> dict[str, Param]:
    "Return the parameters with the defaults that the environment gives. ValueError where it names one that there is not."
    given = json.loads(os.environ.get(variable) or "{}")
    if unknown := given.keys() - params.keys():
        raise ValueError(f"{variable}: there is no parameter '{min(unknown)}'; there are {', '.join(params)}")
    return dict(params) | {n: Param(value, params[n].description, schema=params[n].schema) for n, value in given.items()}
