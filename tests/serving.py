"Real servers for the tests of the HTTP service: bundles made on the spot, processes on free ports, and impolite clients."

import atexit
import contextlib
import fcntl
import functools
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image
from toy import tiny, toy_manifest

ROOT = Path(__file__).resolve().parents[1]
KEY = "a-key-that-nobody-guesses-0123456789"
PORT = re.compile(r"^port (\d+)$", re.M)
START = """
from lados.serve.server import listen, serve
if __name__ == "__main__":
    sock = listen("127.0.0.1", {port})
    print("port", sock.getsockname()[1], flush=True)
    serve(sock, {workers}, "{app}")
"""


def make_run(folder, seed=0, backbone="test_resnet", size=32, epochs=4, train=48, held=24, **card):
    "A run folder with a toy's manifest and a bundle: trained and calibrated, or, without epochs, of random weights."
    import torch

    from lados.model.backbones import make_backbone, preprocessing
    from lados.model.batches import prepare_dataset
    from lados.model.bundle import make_card
    from lados.model.evaluate import evaluate_trained
    from lados.model.inference import Model, add_reference, save_bundle
    from lados.model.train import train as fit

    folder = Path(folder)
    manifest = toy_manifest(folder, train=train, held=held, seed=seed)
    card = {"run": folder.name, **card}
    if epochs:
        params, data = tiny(epochs=epochs, seed=seed), prepare_dataset(manifest, size, size)
        model = evaluate_trained(fit(params, data), params, data).model
        add_reference(model, data)
    else:
        torch.manual_seed(seed)
        net = make_backbone(backbone, size=size).eval()
        model = Model(net, make_card(backbone, preprocessing(net, size)))
    model.card |= card
    save_bundle(folder / "bundle", model)
    return folder


def copy_run(run, folder):
    "The same run under another name."
    shutil.copytree(run, folder)
    edit_card(Path(folder, "bundle"), run=Path(folder).name)
    return Path(folder)


def edit_card(bundle, **changes):
    "Change entries of a card, take those out that are `...`, and seal the bundle anew."
    from lados.files import read_json, write_json
    from lados.model.bundle import seal

    card = {**read_json(bundle / "card.json"), **changes}
    write_json(bundle / "card.json", {k: v for k, v in card.items() if v is not ...})
    seal(bundle)


@functools.cache
def _shared_folder() -> Path:
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    folder = Path(tempfile.gettempdir(), f"lados-tests-{run}") if run else Path(tempfile.mkdtemp(prefix="lados-tests-"))
    folder.mkdir(exist_ok=True)
    atexit.register(shutil.rmtree, folder, ignore_errors=True) # processes of a test run end together
    return folder


def made_once(name, make) -> Path:
    "A folder that `make` has filled, once for all processes of a test run."
    folder = _shared_folder() / name
    with (_shared_folder() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (_shared_folder() / f"{name}.made").exists():
            make(folder)
            (_shared_folder() / f"{name}.made").touch()
    return folder


def runs() -> Path:
    """A folder of runs: `first`, a trained toy with every export, and `second`, another one, exported to OpenVINO."""
    return made_once("runs", _make_runs)


def draw_bench_images(home):
    "Give a home the images that benches use; drawing them takes longer than the tests of what is done with them."
    from lados.synthetic.sample import synthetic

    Path(home, "bench").mkdir(parents=True, exist_ok=True)
    Path(home, "bench", "images").symlink_to(made_once("bench", lambda folder: synthetic(folder, sources=24, workers=1)))


def _make_runs(folder):
    from lados.core import settings
    from lados.serve.export import export_run

    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("LADOS_HOME", folder / ".home"), ("LADOS_RUNS", folder), ("LADOS_THREADS", "1")):
            patch.setenv(name, str(value))
        settings.cache_clear()
        export_run(make_run(folder / "first"), ["onnx", "openvino-int8"])
        export_run(make_run(folder / "second", seed=1, epochs=1), ["openvino"])
    settings.cache_clear()


def certify_only(bundle, *engines):
    "Take the other engines out of the certificate, so that measuring is quick."
    from lados.files import read_json, write_json
    from lados.model.bundle import seal

    found = read_json(bundle / "parity.json")
    write_json(bundle / "parity.json", {**found, "engines": {n: found["engines"][n] for n in engines}})
    seal(bundle)


def encoded(pixels, fmt="PNG", **options) -> bytes:
    "An image file of an array or a Pillow image."
    buffer, im = io.BytesIO(), pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    if fmt == "HEIC":
        import pillow_heif

        pillow_heif.from_pillow(im).save(buffer, **options)
    else:
        im.save(buffer, fmt, **options)
    return buffer.getvalue()


def colours(count, seed=0, side=(40, 60)) -> list[bytes]:
    "PNG files of one colour each with some noise; a trained toy answers each of them otherwise."
    rng = np.random.default_rng(seed)
    shades = rng.integers(0, 255, (count, 3))
    return [encoded((s + rng.normal(0, 12, (*side, 3))).clip(0, 255).astype(np.uint8)) for s in shades]


class Server:
    "A process that serves; its environment is what a user would set."

    def __init__(self, home, model, workers=1, port=0, python=sys.executable, code=START, app="lados.serve.app:app", **env):
        self.home = Path(home)
        self.home.mkdir(parents=True, exist_ok=True)
        self.out, self.err = self.home / "out.log", self.home / "err.log"
        names = {"LADOS_HOME": self.home, "LADOS_RUNS": self.home / "runs", "MODEL_PATH": model, "LADOS_ENGINE": "openvino",
                 "LADOS_THREADS": 1, "MAX_DECODE_MB": 256, "OMP_NUM_THREADS": 1, "PYTHONPATH": ROOT, "API_KEY": KEY, **env}
        clean = {k: v for k, v in os.environ.items() if k not in ("PROMETHEUS_MULTIPROC_DIR", "CORS_ORIGINS")}
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [python, "-c", code.format(port=port, workers=workers, app=app)], cwd=self.home, stdout=out, stderr=err,
                env={**clean, **{k: str(v) for k, v in names.items() if v is not None}})
        self.port = int(wait_for(lambda: PORT.search(self.out.read_text()), 60, self)[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    @staticmethod
    def free_port(count=1) -> int:
        """The first of `count` ports in a row that nobody listens on, and that nobody asks for twice in a test run.

        They lie below those that Linux gives to clients unless it was told otherwise: one of those may be taken between the asking and the listening.
        """
        while True:
            with made_once("ports", Path.mkdir).joinpath("next").open("a+") as last:
                fcntl.flock(last, fcntl.LOCK_EX)
                last.seek(0)
                port = int(last.read() or random.randrange(10_000, 30_000))
                last.truncate(0)
                last.write(str(port + count if port < 30_000 else 10_000))
            if all(map(_is_free, range(port, port + count))):
                return port

    def logs(self) -> list[Path]:
        return [self.out, self.err]

    def alive(self) -> "Server":
        "Wait until it answers at all."
        wait_for(lambda: self.get("/health").status_code == 200, 60, self)
        return self

    def ready(self, seconds=120) -> "Server":
        "Wait until a model is loaded."
        wait_for(lambda: self.get("/ready").status_code == 200, seconds, self)
        return self

    def get(self, path, **options) -> httpx.Response:
        return self.client.get(path, **options)

    def post(self, path, **options) -> httpx.Response:
        return self.client.post(path, **options)

    def predict(self, data, name="sea.png") -> httpx.Response:
        return self.post("/predict", files={"file": (name, data)})

    def promote(self, model, engine="openvino", key=KEY) -> httpx.Response:
        return self.post("/models/promote", json={"model": model, "engine": engine}, headers={"X-API-Key": key} if key else {})

    def connect(self, seconds=20) -> socket.socket:
        "A connection of its own, for what no client library would send."
        return socket.create_connection(("127.0.0.1", self.port), timeout=seconds)

    def lines(self) -> list[dict]:
        "The log, a document a line; whatever else is printed fails here."
        return [json.loads(line) for line in self.out.read_text().rpartition("\n")[0].splitlines() if not PORT.match(line)]

    def family(self) -> list[psutil.Process]:
        process = psutil.Process(self.process.pid)
        return [process, *process.children(recursive=True)]

    def stop(self, how=signal.SIGTERM, seconds=60) -> int:
        "End it; the exit code."
        self.client.close()
        if self.process.poll() is None:
            family = self.family()
            self.process.send_signal(how)
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                for p in family:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        p.kill()
                self.process.wait()
                raise
        return self.process.returncode


def keep_to_the_document(server, mode, only="", examples=20, known="") -> list[str]:
    """Ask the operations whose paths begin so whatever the document allows, or what it does not: no 5xx, only documented statuses and
    types, bodies that match their schema. `known` is a job that there is. Gives the paths, once for each question."""
    import hypothesis
    import schemathesis
    from schemathesis.specs.openapi import checks

    wanted = [schemathesis.checks.not_a_server_error, checks.status_code_conformance, checks.content_type_conformance,
              checks.response_headers_conformance, checks.response_schema_conformance, checks.unsupported_method,
              checks.negative_data_rejection]
    asked, may = [], hypothesis.strategies.booleans()
    for operation in schemathesis.openapi.from_url(f"{server.url}/openapi.json").get_all_operations():
        what = operation.ok()

        @hypothesis.settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck))
        @hypothesis.given(case=what.as_strategy(generation_mode=mode), key=may, there=may)
        def ask(case, key, there):
            if known and there and "job_id" in case.path_parameters:
                case.path_parameters["job_id"] = known
            case.call_and_validate(checks=wanted, headers={"X-API-Key": KEY} if key else {})
            asked.append(case.path)

        if what.path.startswith(only or "/") and (mode == schemathesis.GenerationMode.POSITIVE or what.method.upper() == "POST"):
            with contextlib.suppress(hypothesis.errors.Unsatisfiable): # nothing can be wrong in what is only a name in the path
                ask()
    return asked


def _is_free(port) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def serving(home, model, **options) -> Iterator[Server]:
    "A server for a while."
    server = Server(home, model, **options)
    try:
        yield server
    finally:
        server.stop()


def wait_for(condition, seconds, server=None):
    """What `condition` gives once it is true; asked less and less often, since who asks takes time from what is waited for.

    `server` has a `process`, whose end ends the waiting, and `logs`, files that are shown then.
    """
    end, pause = time.monotonic() + seconds, 0.05
    while True:
        with contextlib.suppress(httpx.TransportError):
            if found := condition():
                return found
        died = server is not None and server.process.poll() is not None
        if died or time.monotonic() > end:
            told = "\n".join(f"{log}: {log.read_text()[-3000:]}" for log in server.logs()) if server else ""
            raise AssertionError(f"{'the server ended' if died else f'not within {seconds} s'}: {told}")
        time.sleep(pause)
        pause = min(1.15 * pause, 0.2)


class Memory:
    "How far a process grows while a block runs."

    def __init__(self, pid):
        self.process, self.peak = psutil.Process(pid), 0

    def __enter__(self):
        self.before, self.over = self.process.memory_info().rss, threading.Event()
        self.peak = self.before
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def watch(self):
        while not self.over.wait(0.003):
            with contextlib.suppress(psutil.NoSuchProcess):
                self.peak = max(self.peak, self.process.memory_info().rss)

    def __exit__(self, *error):
        self.over.set()
        self.thread.join()

    @property
    def grown(self) -> float: # MB
        return max(0, self.peak - self.before) / 1e6


def read_all(sock, most=1 << 20) -> bytes:
    "What comes until the other side closes; what came before an abrupt end counts, too."
    found = b""
    with contextlib.suppress(OSError):
        while len(found) < most and (more := sock.recv(65536)):
            found += more
    return found
