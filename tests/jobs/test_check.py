"`lados check` beside what it looks at: servers that are up, down, full, locked, silent, and endless."

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import redis
from serving import Server, wait_for

from lados.core import settings
from lados.jobs import healthcheck
from lados.jobs.broker import redacted, redis_server

LADOS = [sys.executable, "-c", "from lados.cli.main import main; main()"]
ASKED = ("LADOS_API_URL", "CELERY_BROKER_URL", "LADOS_JOBS_URL", "LADOS_BATCHES", "PROMETHEUS_URL", "ALERTMANAGER_URL",
         "GRAFANA_URL", "ELASTICSEARCH_URL", "KIBANA_URL")
SECRET = "hush-hush"
DEAD = "http://127.0.0.1:1"


@pytest.fixture
def look(home, monkeypatch):
    "Set variables, look, and have the findings by name; a password is in none of them."
    for name in ASKED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(home) # away from a .env

    def looked(**env):
        for name, value in env.items():
            monkeypatch.setenv(name, str(value))
        settings.cache_clear()
        found = {f.name: f for f in healthcheck.run_checks()}
        assert SECRET not in str(found)
        return found

    looked.home = home
    return looked


@contextlib.contextmanager
def redis_on(folder, *options, port=0, **ask):
    "A Redis of its own, on a socket in the folder and perhaps on a port; its client."
    folder.mkdir(exist_ok=True)
    path = folder / "r.sock"
    process = subprocess.Popen([redis_server(), "--port", str(port), "--unixsocket", str(path), "--save", "", "--dir",
                                str(folder), *options], stdout=subprocess.DEVNULL)
    client = redis.Redis(unix_socket_path=str(path), **ask)

    def answers():
        with contextlib.suppress(redis.ConnectionError):
            return client.ping()

    try:
        wait_for(answers, 30)
        yield client
    finally:
        client.close()
        process.terminate()
        process.wait()


class Peer(BaseHTTPRequestHandler):
    "Speaks what Elasticsearch, Kibana, Grafana, Alertmanager, Prometheus and lados answer; none of the real ones is started."

    def do_GET(self):
        status, body = self.server.answers.get(self.path, (404, "no such page"))
        if self.server.password and self.headers.get("Authorization") != self.server.password:
            status, body = 401, "{}"
        self.send_response(status)
        self.end_headers()
        self.wfile.write((body if isinstance(body, str) else json.dumps(body)).encode())
        while self.server.endless and not self.server.over.wait(0.2):
            self.wfile.write(b" ")

    def log_message(self, *_):
        "Quiet."


@contextlib.contextmanager
def peer(answers, password="", endless=False, port=0):
    "Such a server for a while; its port."
    server = ThreadingHTTPServer(("127.0.0.1", port), Peer)
    server.answers, server.password, server.endless, server.over = answers, password, endless, threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def silent():
    "A port that accepts and never answers."
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock.getsockname()[1]


def lados(home, *words, **env):
    clean = {k: v for k, v in os.environ.items() if k not in ASKED}
    return subprocess.run([*LADOS, *words], env={**clean, **env}, cwd=home, capture_output=True, text=True, timeout=120)


# --- broker and workers


def test_nothing_is_missed_that_was_not_asked_for(look):
    found = look()
    assert "down" not in {f.state for f in found.values()} and found["Redis"].state == found["workers"].state == "off"
    assert not healthcheck.is_healthy([*found.values()]), "nothing runs, so nothing is down, and nothing is well"
    assert found["job store"].state == "up" and "made when" in found["job store"].detail
    assert not (look.home / "lados_home" / "jobs").exists(), "to look makes no store"


def test_redis_and_its_worker(look):
    with redis_on(look.home / "r") as client:
        url = f"redis+socket://{look.home}/r/r.sock"
        found = look(CELERY_BROKER_URL=url)
        assert found["Redis"].state == "up" and client.info()["redis_version"] in found["Redis"].detail
        assert found["workers"].state == "down" and "lados worker" in found["workers"].remedy
        code = "from lados.jobs.queue import run_worker; run_worker('predict')"
        with (look.home / "log").open("w") as log:
            worker = subprocess.Popen([sys.executable, "-c", code], stdout=log, stderr=log)
        try:
            up = wait_for(lambda: (f := look()["workers"]).state == "up" and f, 60)
            assert "predict: 1 workers" in up.detail and "train: 0 workers" in up.detail
            keys = set(client.keys())
            client.lpush("train", "{}") # nobody takes from there
            down = look()["workers"]
            assert down.state == "down" and "train: 0 workers, 1 waiting" in down.detail
            assert set(client.keys()) - keys - {b"lados:check"} == {b"train"}, "looks leave nothing behind"
        finally:
            worker.terminate()
            worker.wait()


def test_a_redis_with_a_password(look):
    port = Server.free_port()
    with redis_on(look.home / "r", "--requirepass", SECRET, port=port, password=SECRET):
        assert look(CELERY_BROKER_URL=f"redis://:{SECRET}@127.0.0.1:{port}/0")["Redis"].state == "up"
        for wrong in (f":{SECRET}-not@", ""):
            found = look(CELERY_BROKER_URL=f"redis://{wrong}127.0.0.1:{port}/0")
            assert found["Redis"].state == "down" and "password" in found["Redis"].detail, found["Redis"]
            assert found["workers"].state == "down"


def test_a_redis_that_is_full(look):
    with redis_on(look.home / "r", "--maxmemory", "1500kb", "--maxmemory-policy", "noeviction") as client:
        with pytest.raises(redis.ResponseError, match="maxmemory"):
            for i in range(10_000):
                client.set(f"x{i}", "x" * 1000)
        found = look(CELERY_BROKER_URL=f"redis+socket://{look.home}/r/r.sock")["Redis"]
        assert found.state == "down" and "full" in found.detail and "maxmemory" in found.remedy


def test_a_redis_that_takes_nothing(look):
    "It answers PING, and belongs to a master that is gone."
    with redis_on(look.home / "r", "--replicaof", "127.0.0.1", "1"):
        found = look(CELERY_BROKER_URL=f"redis+socket://{look.home}/r/r.sock")["Redis"]
        assert found.state == "down" and "takes nothing" in found.detail


@pytest.mark.parametrize("url", ["redis://:{}/x@127.0.0.1:1/0", "redis://:a#{}@127.0.0.1/0", "amqp://u:{}@127.0.0.1", "{}"])
def test_an_address_that_is_none_is_told_without_its_password(look, url):
    found = look(CELERY_BROKER_URL=url.format(SECRET) if "@" in url else "nonsense")
    assert found["Redis"].state == found["workers"].state == "down" and "redis://" in found["Redis"].remedy


@pytest.mark.parametrize("url", ["http://u:{}/x@host:1/a", "http://u:a#{}@host", "http://u:a?{}@host:x", "http://[{}"])
def test_the_same_of_a_service(look, url):
    found = look(GRAFANA_URL=url.format(SECRET) if "@" in url else "http://[nonsense", LADOS_API_URL=f"http://u:{SECRET}/@h")
    assert found["Grafana"].state == found["API"].state == "down"


def test_passwords_are_hidden_wherever_they_stand():
    for url in ("redis://:p@h", "redis://u:p/@h:1", "postgresql://u:p@p@h/d", "redis://h?password=p"):
        assert "***" in redacted(url) and "p" not in redacted(url).replace("postgresql", "").replace("password", "")
    assert redacted("http://h:80/a") == "http://h:80/a" and redacted("redis+socket:///a/b.sock") == "redis+socket:///a/b.sock"


# --- services


ALL_WELL = {"/health": (200, {"status": "alive", "version": "1"}), "/-/ready": (200, "ready"),
            "/ready": (200, {"status": "ready", "model": "sea", "engine": "torch", "waiting": 0}),
            "/api/v1/targets?state=active": (200, {"data": {"activeTargets": [
                {"health": "up", "scrapeUrl": "http://h/metrics", "lastError": ""}]}}),
            "/api/health": (200, {"database": "ok"}), "/_cluster/health": (200, {"status": "yellow"}),
            "/api/status": (200, {"status": {"overall": {"level": "available"}}})}
URLS = ("LADOS_API_URL", "PROMETHEUS_URL", "ALERTMANAGER_URL", "GRAFANA_URL", "ELASTICSEARCH_URL", "KIBANA_URL")
NAMES = ("API", "Prometheus", "Alertmanager", "Grafana", "Elasticsearch", "Kibana")


def test_services_that_are_up(look):
    with peer(ALL_WELL) as port:
        found = look(**dict.fromkeys(URLS, f"http://127.0.0.1:{port}/"))
    assert [found[n].state for n in (*NAMES, "model")] == ["up"] * 7, found
    assert "sea" in found["model"].detail and "torch" in found["model"].detail


def test_services_that_are_down(look):
    found = look(**{name: DEAD.replace("//", f"//u:{SECRET}@") for name in URLS})
    assert [found[n].state for n in NAMES] == ["down"] * 6 and all(found[n].remedy for n in NAMES)
    assert found["model"].state == "off"


def test_services_that_are_not_well(look):
    bad = {**ALL_WELL, "/_cluster/health": (200, {"status": "red"}), "/api/status": (200, {"status": "odd"}),
           "/api/health": (503, {"database": "failing"}), "/-/ready": (200, "ready"),
           "/ready": (503, {"detail": "the model is being loaded", "remedy": "ask again"}),
           "/api/v1/targets?state=active": (200, {"data": {"activeTargets": [
               {"health": "down", "scrapeUrl": f"http://u:{SECRET}@lost/metrics", "lastError": "refused"}]}})}
    with peer(bad) as port:
        found = look(**dict.fromkeys(URLS, f"http://127.0.0.1:{port}"))
    assert found["API"].state == "up" and found["model"].state == "down" and found["model"].remedy == "ask again"
    assert "lost" in found["Prometheus"].detail and "red" in found["Elasticsearch"].detail
    assert {found[n].state for n in ("Prometheus", "Grafana", "Elasticsearch", "Kibana")} == {"down"}


@pytest.mark.parametrize("body", ["<html>", "[]", "null", '{"status": null}', "\x00"])
def test_services_that_are_others(look, body):
    "Of what is asked for JSON, something that is none of them crashes none of them."
    with peer(dict.fromkeys(ALL_WELL, (200, body))) as port:
        found = look(**dict.fromkeys(URLS, f"http://127.0.0.1:{port}"))
    assert [found[n].state for n in ("API", "Prometheus", "Grafana", "Kibana")] == ["down"] * 4
    assert "report this" not in str(found)


def test_a_stranger_on_the_usual_port_is_none_of_ours(look):
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(peer({"/health": (200, {"status": "UP"}), "/ready": (404, {"detail": "Not Found"})}, port=8000))
        except OSError:
            pytest.skip("port 8000 is in use")
        found = look()
    assert found["API"].state == found["model"].state == "off"


def test_what_hangs_on_the_usual_port_is_down(look):
    try:
        sock = socket.create_server(("127.0.0.1", 8000))
    except OSError:
        pytest.skip("port 8000 is in use")
    with sock:
        assert look()["API"].state == "down"


def test_credentials_are_used(look):
    with peer(ALL_WELL, "Basic dTpodXNoLWh1c2gvMQ==") as port: # u:hush-hush/1
        assert look(ELASTICSEARCH_URL=f"http://u:{SECRET}%2F1@127.0.0.1:{port}")["Elasticsearch"].state == "up"
        found = look(ELASTICSEARCH_URL=f"http://127.0.0.1:{port}")["Elasticsearch"]
    assert found.state == "down" and "401" in found.detail and "PASSWORD" in found.remedy


@pytest.mark.skipif(not shutil.which("prometheus"), reason="no prometheus here")
def test_a_real_prometheus(look):
    port = Server.free_port()
    with peer({"/metrics": (200, "up 1\n")}) as ours:
        config = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": [
            {"job_name": "lados", "static_configs": [{"targets": [f"127.0.0.1:{ours}"]}]}]}
        (look.home / "p.yml").write_text(json.dumps(config))
        with (look.home / "log").open("w") as log:
            process = subprocess.Popen(["prometheus", "--config.file=p.yml", "--storage.tsdb.path=tsdb",
                                        f"--web.listen-address=127.0.0.1:{port}"], cwd=look.home, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            up = wait_for(lambda: (f := look(PROMETHEUS_URL=url)["Prometheus"]).state == "up" and f, 60)
            assert "1 targets" in up.detail
        except BaseException:
            process.kill()
            raise
    try:
        found = wait_for(lambda: (f := look()["Prometheus"]).state == "down" and f, 60) # what it watched has ended
        assert "does not reach" in found.detail and str(ours) in found.detail
    finally:
        process.terminate()
        process.wait()


# --- what hangs


def test_what_never_answers_takes_nobody_with_it(look):
    with silent() as port, peer(ALL_WELL) as fine:
        start = time.monotonic()
        found = look(LADOS_API_URL=f"http://127.0.0.1:{port}", GRAFANA_URL=f"http://127.0.0.1:{port}",
                     CELERY_BROKER_URL=f"redis://127.0.0.1:{port}/0", KIBANA_URL=f"http://127.0.0.1:{fine}",
                     LADOS_JOBS_URL=f"postgresql://u:{SECRET}@127.0.0.1:{port}/d")
        assert time.monotonic() - start < healthcheck.SECONDS + 5
    assert {found[n].state for n in ("API", "Grafana", "Redis", "workers", "job store")} == {"down"}
    assert found["Kibana"].state == "up"


@pytest.mark.long
def test_an_answer_without_end_does_not_keep_the_process(look):
    with peer(ALL_WELL, endless=True) as port:
        done = lados(look.home, "check", "--json", GRAFANA_URL=f"http://127.0.0.1:{port}")
        look(GRAFANA_URL=f"http://127.0.0.1:{port}")
        look() # the second look joins the first
        assert sum(t.name == "check Grafana" for t in threading.enumerate()) == 1
    assert done.returncode == 1
    found = {f["name"]: f for f in json.loads(done.stdout)["checks"]}
    assert "no answer within" in found["Grafana"]["detail"] and found["Grafana"]["took_ms"] >= 1000


# --- folders and the store


def test_folders_that_cannot_be_written(look):
    (look.home / "file").touch()
    for place in ("/proc/nowhere", look.home / "file" / "below"):
        found = look(LADOS_DATA=place)["folders"]
        assert found.state == "down" and "LADOS_DATA" in found.remedy, found


def test_a_folder_without_rights(look):
    closed = look.home / "closed"
    closed.mkdir(mode=0o555)
    code = ("import os; from lados.jobs.healthcheck import check_folders\nif os.getuid() == 0: os.setgid(65534); os.setuid(65534)\n"
            "print(*check_folders().to_dict().values())")
    for folder in [look.home, *look.home.parents][:3]: # pytest keeps them to itself
        folder.chmod(folder.stat().st_mode | 0o111)
    env = {**os.environ, "LADOS_RUNS": str(closed / "runs"), "LADOS_HOME": "/tmp", "LADOS_DATA": "/tmp", "HOME": "/tmp"}
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd="/tmp", capture_output=True, text=True)
    assert "down" in done.stdout and "LADOS_RUNS" in done.stdout and "Permission denied" in done.stdout, done.stderr


def test_an_api_that_up_has_started_is_missed_when_it_is_gone(look):
    told = look.home / "lados_home" / "up.json"
    told.parent.mkdir()
    with peer(ALL_WELL) as port:
        told.write_text(json.dumps({"api": f"http://127.0.0.1:{port}"}))
        found = look()
        assert found["API"].state == "up" and healthcheck.is_healthy([*found.values()])
    assert look()["API"].state == "down"


def test_a_store_that_is_none(look):
    path = Path(settings().lados_home, "jobs", "jobs.db")
    path.parent.mkdir(parents=True)
    path.write_text("this is no database\n" * 100)
    found = look()["job store"]
    assert found.state == "down" and found.remedy and "report this" not in found.remedy
    found = look(LADOS_JOBS_URL=f"postgresql://u:{SECRET}@127.0.0.1:1/d")["job store"]
    assert found.state == "down" and "127.0.0.1" in found.detail


# --- since when, and the command


def test_since_when(look):
    kept = look.home / "lados_home" / "check.json"
    look(GRAFANA_URL=DEAD)
    state, _ = json.loads(kept.read_text())["Grafana"]
    kept.write_text(json.dumps({"Grafana": [state, "2026-01-01T00:00:00+00:00"]}))
    since = look()["Grafana"].since
    assert since.startswith("2026-01-01"), "as long as nothing changes"
    with peer(ALL_WELL) as port:
        assert look(GRAFANA_URL=f"http://127.0.0.1:{port}")["Grafana"].since > since


@pytest.mark.parametrize("text", ["[]", "{", "null", '{"Grafana": 3}', '{"Grafana": ["off", "yesterday"]}', '{"Grafana": ["off", null]}'])
def test_a_memory_that_is_damaged_begins_anew(look, text):
    path = look.home / "lados_home" / "check.json"
    path.parent.mkdir()
    path.write_text(text)
    since = look()["Grafana"].since
    assert json.loads(path.read_text())["Grafana"] == ["off", since] and since.startswith("20")


def test_the_command(look):
    done = lados(look.home, "check")
    assert done.returncode == 1 and "[" not in done.stdout and done.stdout.count(" off ") >= 7, done.stdout
    assert "nothing of lados runs here" in done.stderr
    done = lados(look.home, "check", "--json", KIBANA_URL=DEAD)
    told = json.loads(done.stdout)
    assert done.returncode == 1 and not told["well"] and [f["name"] for f in told["checks"]] == list(healthcheck.CHECKS)
    assert lados(look.home, "check", "--wait=-1").returncode == 2
    assert lados(look.home, "check", MAX_PIXELS="many").returncode == 2
    done = lados(look.home, "check", KIBANA_URL=f"http://u:{SECRET}@127.0.0.1:1")
    assert done.returncode == 1 and "KIBANA_URL" in done.stdout and SECRET not in done.stdout + done.stderr


def test_wait_ends_when_all_is_well(look):
    port = Server.free_port()
    env = {**{k: v for k, v in os.environ.items() if k not in ASKED}, "KIBANA_URL": f"http://127.0.0.1:{port}",
           "LADOS_API_URL": f"http://127.0.0.1:{port}"}
    process = subprocess.Popen([*LADOS, "check", "--wait=300", "--json"], env=env, cwd=look.home, stdout=subprocess.PIPE, text=True)
    memory = look.home / "lados_home" / "check.json"
    wait_for(lambda: memory.exists() and json.loads(memory.read_text())["Kibana"][0] == "down", 60)
    assert process.poll() is None
    with peer(ALL_WELL, port=port):
        told, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and json.loads(told)["well"]
    late = lados(look.home, "check", "--wait=1", KIBANA_URL=DEAD)
    assert late.returncode == 1
