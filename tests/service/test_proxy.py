"Behind a real nginx: a prefix, and what the proxy's limits do to clients. The configuration is the one of docs/how-to/serve-and-promote.md."

import re
import shutil
import socket
import subprocess
from pathlib import Path

import httpx
import pytest
from serving import ROOT, Server, colours, runs, wait_for

if not shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin"):
    pytest.skip("nginx: apt-get install nginx-light", allow_module_level=True)
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
MAIN = """daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log; worker_processes 1;
events {{ worker_connections 64; }}
http {{ access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
server {{ listen 127.0.0.1:{port}; {location} }} }}"""


def documented() -> str:
    "The server's part of the configuration, from the how-to."
    text = (Path(ROOT) / "docs" / "how-to" / "serve-and-promote.md").read_text(encoding="utf-8")
    return re.search(r"```nginx\n(.*?)```", text, re.S)[1]


@pytest.fixture(scope="module")
def proxy(tmp_path_factory):
    "The service under /oil, behind nginx with the documented configuration and shorter patience."
    folder = tmp_path_factory.mktemp("nginx")
    server = Server(folder / "home", runs() / "first", ROOT_PATH="/oil").ready()
    port = Server.free_port()
    location = documented().replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
    location = re.sub(r"(client_(?:body|header)_timeout) \d+s", r"\1 2s", location).replace("client_max_body_size 170m", "client_max_body_size 1m")
    (folder / "nginx.conf").write_text(MAIN.format(folder=folder, port=port, location=location))
    process = subprocess.Popen([NGINX, "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")])
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False)

    def answers() -> bool:
        try:
            return client.get("/oil/health").status_code == 200
        except httpx.HTTPError:
            assert process.poll() is None, (folder / "error.log").read_text()
            return False

    try:
        wait_for(answers, 30)
        yield client, port, server
    finally:
        process.terminate()
        process.wait(20)
        server.stop()


def test_everything_is_under_the_prefix(proxy):
    client, _, _ = proxy
    links = client.get("/oil/").json()
    paths = [v for v in (links.get("links") or links).values() if isinstance(v, str) and v.startswith("/")]
    assert paths and all(p.startswith("/oil/") for p in paths)
    assert all(client.get(p).status_code in (200, 401) for p in paths)
    page = client.get("/oil/docs").text
    assets = re.findall(r'(?:src|href)="(/[^"]+)"', page)
    assert assets and all(a.startswith("/oil/") and client.get(a).status_code == 200 for a in assets)
    assert re.search(r"/oil/openapi\.json", page) and client.get("/oil/openapi.json").json()["servers"][0]["url"] == "/oil"
    answer = client.post("/oil/predict", files={"file": ("a.png", colours(1)[0])})
    assert answer.status_code == 200 and answer.json()["label"]


def test_an_address_of_another_service_is_not_ours(proxy):
    assert proxy[0].get("/health").status_code == 404


def test_a_body_beyond_the_proxys_limit_is_refused_by_the_proxy(proxy):
    client, _, _ = proxy
    assert client.post("/oil/predict", files={"file": ("a.png", b"x" * 1_500_000)}).status_code == 413
    assert client.get("/oil/health").status_code == 200


def test_a_slow_client_is_cut_by_the_proxy_and_the_service_never_sees_it(proxy):
    client, port, server = proxy
    before = server.get("/metrics").json()
    slow = socket.create_connection(("127.0.0.1", port), timeout=30)
    slow.sendall(b"POST /oil/predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\nab")
    answer = slow.recv(1000) # or the proxy waits for a client that sends nothing, longer than this one for the proxy
    assert answer == b"" or b" 408 " in answer.partition(b"\r\n")[0], answer
    slow.close()
    assert server.get("/metrics").json().get("requests") == before.get("requests")
    assert client.get("/oil/ready").status_code == 200


def test_a_slow_head_is_cut_too(proxy):
    _, port, _ = proxy
    slow = socket.create_connection(("127.0.0.1", port), timeout=30)
    slow.sendall(b"GET /oil/health HT")
    answer = slow.recv(1000)
    assert answer == b"" or b" 408 " in answer.partition(b"\r\n")[0]
    slow.close()
