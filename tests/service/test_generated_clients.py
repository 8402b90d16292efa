"""Clients that public generators make from the OpenAPI document come out without warnings, and work against a running service.

The generators are not ours and bring packages of their own: each gets a folder of its own, from its registry. Where that is out of
reach, the tests skip."""

import json
import shutil
import subprocess
import sys
import venv

import pytest
from serving import KEY, colours, runs, serving

USE = """
import sys
from io import BytesIO
from pathlib import Path

from generated.api.images import predict, predict_batch
from generated.api.jobs import jobs, submit
from generated.api.models import promote
from generated.api.service import ready
from generated.client import AuthenticatedClient
from generated.models import JobRequest, PredictBatchBody, PredictBody, Problem, Promotion
from generated.types import File

url, key, sea = sys.argv[1], sys.argv[2], Path(sys.argv[3]).read_bytes()
image = lambda: File(BytesIO(sea), "sea.png", "image/png")
with AuthenticatedClient(url, key, prefix="", auth_header_name="X-API-Key") as client:
    assert ready.sync(client=client).status == "ready"
    answer = predict.sync(client=client, body=PredictBody(image()))
    assert answer.label in answer.probabilities.additional_properties and answer.filename == "sea.png"
    assert predict_batch.sync(client=client, body=PredictBatchBody([image(), image()])).answered == 2
    refused = predict.sync(client=client, body=PredictBody(File(BytesIO(b"no image"), "sea.png", "image/png")))
    assert isinstance(refused, Problem) and refused.status == 415, refused
    assert isinstance(promote.sync(client=client, body=Promotion("nobody")), Problem)
    assert promote.sync(client=client, body=Promotion(answer.model)).model == answer.model
    assert jobs.sync(client=client).jobs == []
    unknown = submit.sync(client=client, body=JobRequest("washing"))
    assert isinstance(unknown, Problem) and unknown.status == 422, unknown
"""

SCRIPT = """
import createClient from "openapi-fetch"
import { readFileSync } from "node:fs"
import type { components, paths } from "./api.js"

const [url, key, file] = process.argv.slice(2) as [string, string, string]
const client = createClient<paths>({ baseUrl: url, headers: { "X-API-Key": key } })
const form = (bytes: Buffer) => ({
  body: { file: "" },
  bodySerializer: () => { const f = new FormData(); f.append("file", new Blob([new Uint8Array(bytes)]), "sea.png"); return f },
})
const good = await client.POST("/predict", form(readFileSync(file)))
const label: string = good.data!.label
if (!(label in good.data!.probabilities)) throw new Error(JSON.stringify(good))
const bad = await client.POST("/predict", form(Buffer.from("no image")))
const problem: components["schemas"]["Problem"] = bad.error!
if (problem.status !== 415 || !problem.type.startsWith("/problems/")) throw new Error(JSON.stringify(bad.error))
const promoted = await client.POST("/models/promote", { body: { model: good.data!.model, engine: "openvino" } })
if (promoted.data!.model !== good.data!.model) throw new Error(JSON.stringify(promoted))
"""


def fetched(command, **options):
    "Run what fetches a generator; skip where its registry is out of reach."
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, **options)
    except (OSError, subprocess.TimeoutExpired) as e:
        pytest.skip(f"the generator cannot be fetched: {e}")
    if done.returncode:
        pytest.skip(f"the generator cannot be fetched: {done.stderr[-300:]}")


def run(command, **options):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=180, **options)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    "A service with jobs, its document as a file, and an image."
    folder = tmp_path_factory.mktemp("service")
    with serving(folder / "home", runs() / "first", app="lados.jobs.routes:app") as server:
        document, image = folder / "openapi.json", folder / "sea.png"
        document.write_text(json.dumps(server.ready().get("/openapi.json").json()))
        image.write_bytes(colours(1)[0])
        yield server.url, document, image


@pytest.mark.long
def test_a_client_by_openapi_python_client(service, tmp_path):
    url, document, image = service
    venv.create(tmp_path / "venv") # pip, which takes seconds to install, can be that of this Python
    python = tmp_path / "venv/bin/python"
    fetched([sys.executable, "-m", "pip", "--python", python, "install", "-q", "openapi-python-client>=0.29,<1"])
    run([python, "-m", "openapi_python_client", "generate", "--path", document, "--output-path", tmp_path / "generated", "--meta", "none",
         "--fail-on-warning"])
    (tmp_path / "use.py").write_text(USE)
    run([python, "use.py", url, KEY, image], cwd=tmp_path)


@pytest.mark.long
@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_a_client_by_openapi_typescript(service, tmp_path):
    url, document, image = service
    (tmp_path / "package.json").write_text('{"type": "module"}')
    fetched(["npm", "install", "--no-audit", "--no-fund", "openapi-typescript@7", "openapi-fetch@0", "typescript@5", "@types/node@20"],
            cwd=tmp_path)
    told = run(["npx", "--no-install", "openapi-typescript", document, "-o", "api.ts"], cwd=tmp_path)
    assert "warn" not in told.lower(), told
    (tmp_path / "use.ts").write_text(SCRIPT)
    run(["npx", "--no-install", "tsc", "--strict", "--target", "es2022", "--module", "nodenext", "--skipLibCheck", "--types", "node",
         "use.ts"], cwd=tmp_path)
    run(["node", "use.js", url, KEY, image], cwd=tmp_path)

