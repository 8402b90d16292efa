"What can be wrong with a broker or a job store, each with its message; and the same store in PostgreSQL."

import contextlib
import re
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import redis
import sqlalchemy
from commands import refused, run_here
from serving import KEY, Server, colours, runs, wait_for
from toy import toy_manifest
from working import TRAINING, end_pauses, ended, environment, redis_server, service, tls_before, working

from lados.core import ConfigError, settings
from lados.files import hold_lock
from lados.jobs import leases
from lados.jobs import store as job_store
from lados.jobs.leases import Heartbeat
from lados.jobs.store import JobError, Store, add_job, get_job

LADOS = [sys.executable, "-c", "from lados.cli.main import main; main()"]
KEYED = {"X-API-Key": KEY}


def lados(home, *arguments, **more) -> subprocess.CompletedProcess:
    return subprocess.run([*LADOS, *arguments], cwd=home, env=environment(home, **more), capture_output=True, text=True, timeout=120)


def here(home, *arguments, **more) -> subprocess.CompletedProcess:
    "The same in this process, for what starts no Redis of lados' own: that would live as long as this process."
    return run_here(home, environment(home, **more), *arguments)


def submit(home, run=here, **more) -> subprocess.CompletedProcess:
    return run(home, "job", "submit", "train", "--preset", "demo", **more)


def rows(home) -> int:
    path = home / "h" / "jobs" / "jobs.db"
    return len(job_store.list_jobs(Store(f"sqlite:///{path}"))) if path.exists() else 0


# --- brokers


def test_a_broker_with_another_password(tmp_path):
    with redis_server(tmp_path / "redis", "--requirepass", "right") as port:
        for address in (f"redis://:wrong@127.0.0.1:{port}/0", f"redis://127.0.0.1:{port}/0"):
            done = submit(tmp_path, CELERY_BROKER_URL=address)
            assert done.returncode == 2 and "does not take the password" in done.stderr and "wrong" not in done.stderr, done.stderr
        assert rows(tmp_path) == 0
        done = submit(tmp_path, CELERY_BROKER_URL=f"redis://:right@127.0.0.1:{port}/0")
        assert done.returncode == 0 and "no worker answers" in done.stderr and rows(tmp_path) == 1, done.stderr


def test_a_broker_that_is_full(tmp_path):
    with redis_server(tmp_path / "redis", "--maxmemory-policy", "noeviction") as port:
        with redis.Redis(port=port) as c:
            c.config_set("maxmemory", "100kb") # less than it holds already
        done = submit(tmp_path, CELERY_BROKER_URL=f"redis://127.0.0.1:{port}/0")
        assert done.returncode == 2 and "the broker is full" in done.stderr and rows(tmp_path) == 0, done.stderr
        with service(tmp_path, CELERY_BROKER_URL=f"redis://127.0.0.1:{port}/0") as server:
            answer = server.post("/train", json={"preset": "demo"}, headers=KEYED)
            assert answer.status_code == 503 and "full" in answer.json()["detail"] and rows(tmp_path) == 0


@pytest.mark.parametrize(("address", "says"), [
    ("redis://127.0.0.1:{port}/0", "cannot be reached"), ("amqp://127.0.0.1/", "not the address of a Redis"),
    ("nonsense", "not the address of a Redis")])
def test_brokers_that_are_none(tmp_path, address, says):
    done = submit(tmp_path, CELERY_BROKER_URL=address.format(port=Server.free_port()))
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr and rows(tmp_path) == 0, done.stderr


# --- the embedded Redis and its folder


def test_two_services_share_one_embedded_redis_and_the_last_one_ends_it(tmp_path):
    first = "from lados.jobs.broker import ensure_broker; ensure_broker(); print('there', flush=True); input()"
    both = [subprocess.Popen([sys.executable, "-c", first], env=environment(tmp_path), cwd=tmp_path, stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [p.stdout.readline() for p in both] == ["there\n"] * 2
    with redis.Redis(unix_socket_path=str(tmp_path / "h" / "redis" / "redis.sock")) as c:
        server = psutil.Process(c.info("server")["process_id"])
    both[0].kill()
    both[0].wait(10)
    assert hold_lock(tmp_path / "h" / "redis" / "users.lock") is None and server.is_running(), "the second one uses it still"
    both[1].kill() # nobody says good-bye
    wait_for(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE, 15)
    for p in both:
        p.communicate()


def test_two_machines_on_one_embedded_folder(tmp_path):
    "Another machine's keeper holds the folder's lock, as it does over a network drive."
    folder = tmp_path / "h" / "redis"
    folder.mkdir(parents=True)
    (folder / "keeper.json").write_text('{"host": "the-other-machine"}')
    hold = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", hold, str(folder / "keeper.lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    done = submit(tmp_path, lados)
    other.communicate("\n")
    assert done.returncode == 2 and "the-other-machine" in done.stderr and "CELERY_BROKER_URL" in done.stderr, done.stderr


def test_up_runs_once_in_a_folder(tmp_path):
    ports = [Server.free_port() for _ in range(2)]
    lock = tmp_path / "h" / "up.lock"
    lock.parent.mkdir()
    hold = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); f.write('4711'); f.flush(); print('held', flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", hold, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    done = lados(tmp_path, "up", "--port", str(ports[0]), "--page", str(ports[1]))
    other.communicate("\n")
    assert done.returncode == 2 and "runs here already (process 4711)" in done.stderr, done.stderr
    with socket.create_server(("127.0.0.1", ports[0])):
        taken = lados(tmp_path, "up", "--port", str(ports[0]), "--page", str(ports[1]))
    assert taken.returncode == 2 and f"{ports[0]}" in taken.stderr and "another program" in taken.stderr, taken.stderr


# --- the command line


@pytest.mark.long
def test_jobs_from_the_command_line(tmp_path):
    toy_manifest(tmp_path / "data" / "toy", train=24, held=9)
    settings = [f"--set={k}={'null' if v is None else v}" for k, v in TRAINING.items() if k != "preset"]
    with working(tmp_path):
        done = lados(tmp_path, "train", "--queue", "--preset", "demo", "--data", "data/toy", "--epochs", "2", *settings)
        assert done.returncode == 0, done.stderr
        job = done.stdout.split()[1]
        waited = here(tmp_path, "job", "wait", job[:8])
        assert waited.returncode == 0 and "report.html" in waited.stdout, waited.stderr
        assert "succeeded" in here(tmp_path, "job", "show", job[:8]).stdout
        assert re.search(r"^\d\d:\d\d:\d\d epoch +epoch=1 ", here(tmp_path, "job", "logs", job[:8]).stdout, re.MULTILINE)
        assert '"event": "epoch"' in here(tmp_path, "job", "logs", job[:8], "--json").stdout
        folder = tmp_path / "flight"
        folder.mkdir()
        for i, p in enumerate(colours(20)):
            (folder / f"{i:02d}.png").write_bytes(p)
        (folder / "bad.png").write_bytes(b"no image")
        done = lados(tmp_path, "job", "submit", "predict", "flight", "--run", str(runs() / "first" / "bundle"), "--out", "t.csv")
        assert done.returncode == 0 and (tmp_path / "t.csv").read_text().count("\n") == 22, done.stderr
        late = here(tmp_path, "job", "cancel", job[:8])
        assert late.returncode == 2 and "has ended already" in late.stderr
        assert "no such job" in here(tmp_path, "job", "show", "ffffffff").stderr
    queued = lados(tmp_path, "job", "submit", "train", "--preset", "demo")
    cancelled = lados(tmp_path, "job", "cancel", queued.stdout.split()[1])
    assert "cancelled" in cancelled.stdout, cancelled.stderr


# --- PostgreSQL


def test_a_database_that_keeps_bytes_is_refused_with_the_remedy(postgres):
    import psycopg

    with psycopg.connect(postgres, autocommit=True) as c:
        c.execute("CREATE DATABASE bytes ENCODING 'SQL_ASCII' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    with refused("invalid-value", "createdb --encoding UTF8"):
        Store(postgres.rpartition("/")[0] + "/bytes")


def test_a_job_lives_in_postgresql_as_in_sqlite(postgres):
    store = Store(postgres)
    with ThreadPoolExecutor(20) as pool: # fifty submits at once are one job
        found = list(pool.map(lambda _: add_job(store, "train", {}, "same", [("train", 1)]), range(50)))
    assert len({job.id for job, _ in found}) == 1 and sum(not attached for _, attached in found) == 1
    job = found[0][0]
    with ThreadPoolExecutor(20) as pool:
        claims = [c for c in pool.map(lambda n: leases.claim(store, job.id, 0, f"w{n}"), range(50)) if c]
    assert len(claims) == 1 and leases.renew(store, claims[0], progress={"epoch": 1}) == "on"
    leases.give_back(store, claims[0], died=True)
    second = leases.claim(store, job.id, 0, "again")
    assert second.attempt == 2 and leases.renew(store, claims[0]) == "lost" and leases.finish(store, claims[0]) == []
    leases.cancel_job(store, job.id)
    assert leases.renew(store, second) == "cancel"
    leases.fail(store, second)
    assert get_job(store, job.id).state == "cancelled"
    assert leases.cancel_job(store, job.id).state == "cancelled"
    other, _ = add_job(store, "train", {}, "other", [("train", 1)])
    leases.finish(store, leases.claim(store, other.id, 0, "w"))
    with pytest.raises(JobError, match="has ended already"):
        leases.cancel_job(store, other.id)


def test_workers_that_miss_the_object_store_at_once_begin_one_pause(postgres):
    store = Store(postgres)
    job, _ = add_job(store, "predict", {}, "away", [("predict", 1)] * 20)
    held = [leases.claim(store, job.id, n, f"w{n}") for n in range(19)]
    with ThreadPoolExecutor(19) as pool:
        pauses = list(pool.map(lambda lease: leases.postpone(store, lease, "away"), held))
    assert all(0 < p <= leases.PAUSES_S[0] for p in pauses) and get_job(store, job.id).state == "queued"
    assert leases.claim(store, job.id, 0, "early") is None and job.id not in {t.job for t in leases.list_tasks(store, "queued")}
    counted = {(queue, state): n for queue, state, n, _ in job_store.count_tasks(store)}
    assert counted[("predict", "paused")] == 19, "they are not what waits for a worker"
    leases.cancel_job(store, job.id)
    assert get_job(store, job.id).state == "cancelled"


def test_a_task_that_gets_done_ends_no_pause_that_is_not_over(postgres):
    "It needed nothing of the object store that the others of its job wait for."
    store = Store(postgres)
    job, _ = add_job(store, "predict", {}, "partly away", [("predict", 1)] * 4)
    first, second = (leases.claim(store, job.id, n, f"w{n}") for n in (0, 1))
    begun = leases.postpone(store, first, "away")
    leases.finish(store, second)
    assert leases.claim(store, job.id, 0, "early") is None and leases.claim(store, job.id, 2, "early") is None
    end_pauses(store)
    again = leases.claim(store, job.id, 0, "w0")
    assert leases.postpone(store, again, "away") == begun, "as long as all before"
    end_pauses(store)
    leases.finish(store, leases.claim(store, job.id, 0, "w0"))
    assert leases.postpone(store, leases.claim(store, job.id, 2, "w2"), "away again") == leases.PAUSES_S[0], "it was there in between"
    with store.reading() as c:
        assert c.execute(sqlalchemy.select(job_store.PAUSES.c.waited).where(job_store.PAUSES.c.job == job.id)).scalar() == leases.PAUSES_S[0]
    leases.cancel_job(store, job.id)


def test_many_workers_finish_a_batch_in_postgresql(postgres):
    "All parts end at nearly the same time, with cancellations of others between: no deadlock, and the last part begins once."
    store = Store(postgres)
    job, _ = add_job(store, "predict", {}, "batch", [("predict", 1)] * 40 + [("predict", 0)])

    def one(n):
        mine = leases.claim(store, job.id, n, f"w{n}")
        leases.renew(store, mine, did=1, progress={"at": n})
        return leases.finish(store, mine)

    with ThreadPoolExecutor(20) as pool:
        begun = [p for found in pool.map(one, range(40)) for p in found]
    assert [p.number for p in begun] == [40]
    leases.finish(store, leases.claim(store, job.id, 40, "last"))
    assert get_job(store, job.id).state == "succeeded" and get_job(store, job.id).done == 40


def test_counters_never_fall_and_old_jobs_are_forgotten(postgres):
    "Twenty jobs end at once; one is taken up again; then all are old, and two reapers delete them at the same time."
    store = Store(postgres)
    before = job_store.count_jobs(store)[1].get(("count", "failed"), {}).get("jobs", 0)
    made = [add_job(store, "count", {}, f"count-{n}", [("train", 1)])[0] for n in range(20)]
    claims = [leases.claim(store, job.id, 0, "w") for job in made]
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(lambda mine: leases.fail(store, mine, "a defect with \0 in it"), claims))
    assert get_job(store, made[0].id).error == "a defect with \ufffd in it"
    leases.retry_job(store, made[0].id)
    active, counted = job_store.count_jobs(store)
    assert counted["count", "failed"]["jobs"] - before == counted["count", "failed"]["timed"] == 20 and active["count", "queued"] == 1
    with ThreadPoolExecutor(2) as pool:
        gone = [job_id for found in pool.map(lambda _: job_store.delete_old_jobs(store, time.time() + 1, most=50), range(2)) for job_id in found]
    assert len(gone) == len(set(gone)) and {job.id for job in made[1:]} <= set(gone) and get_job(store, made[0].id).state == "queued"
    assert job_store.count_jobs(store)[1]["count", "failed"]["jobs"] - before == 20


def test_what_no_database_takes_is_no_outage(postgres):
    with pytest.raises(ConfigError, match="no job store takes"):
        job_store.list_jobs(Store(postgres), kind="a\0b")


@pytest.fixture
def short_lease(monkeypatch):
    monkeypatch.setenv("JOB_LEASE_S", "3")
    settings.cache_clear()
    yield
    monkeypatch.undo()
    settings.cache_clear()


def each(processes, action):
    "Do something with each process that is still there: those of a server's own upkeep come and go."
    for p in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            getattr(p, action)()


def test_a_postgresql_that_hangs_stops_the_work(postgres, short_lease):
    "Neither an answer nor a refusal: after the lease, another may have the part, and the work must not go on."
    store, url = Store(postgres), sqlalchemy.make_url(postgres)
    server = next(p for p in psutil.process_iter(["cmdline"]) if str(url.port) in (p.info["cmdline"] or []) and "-p" in p.info["cmdline"])
    job, _ = add_job(store, "train", {}, "hangs", [("train", 1)])
    with Heartbeat(store, leases.claim(store, job.id, 0, "w")) as heart:
        wait_for(lambda: leases.list_tasks(store, "running")[-1].beat > 1, 10)
        frozen = [server, *server.children(recursive=True)]
        each(frozen, "suspend")
        try:
            assert heart.stop.wait(8) and heart.word == "lost"
        finally:
            each(frozen, "resume")
    assert get_job(store, job.id).state == "running" # for a reaper to see that nobody counts any more
    leases.cancel_job(store, job.id)


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl to make a certificate")
def test_workers_and_service_over_tls_a_password_and_postgresql(tmp_path, postgres):
    "Nothing embedded: as on several machines."
    toy_manifest(tmp_path / "data" / "toy", train=24, held=9)
    with redis_server(tmp_path / "redis", "--requirepass", "p@ss/word") as plain, tls_before(tmp_path, plain) as (port, certificate):
        url = f"rediss://:p%40ss%2Fword@127.0.0.1:{port}/0"
        unknown = submit(tmp_path, CELERY_BROKER_URL=url, LADOS_JOBS_URL=postgres)
        assert unknown.returncode == 2 and "certificate is not good (self-signed" in unknown.stderr and "ssl_ca_certs" in unknown.stderr, unknown.stderr
        own = {"CELERY_BROKER_URL": f"{url}?ssl_ca_certs={certificate}", "LADOS_JOBS_URL": postgres}
        with working(tmp_path, **own), service(tmp_path, runs() / "first", **own) as server:
            server.ready()
            asked = {**TRAINING, "epochs": 2, "data": str(tmp_path / "data" / "toy")}
            job = server.post("/train", json=asked, headers=KEYED).json()
            many = server.post("/predict_batch", files=[("files", (f"{i}.png", p)) for i, p in enumerate(colours(40))]).json()
            assert [ended(server, j["id"])["state"] for j in (job, many)] == ["succeeded"] * 2
    assert not (tmp_path / "h" / "jobs").exists() and not (tmp_path / "h" / "redis").exists()


@pytest.mark.parametrize(("url", "says"), [
    ("postgresql://lados:secret@127.0.0.1:{port}/x", "does not answer"), ("mysql://u:secret@h/x", "neither sqlite nor postgresql"),
    ("nonsense", "not the address of a job store")])
def test_stores_that_are_none(tmp_path, url, says):
    done = submit(tmp_path, LADOS_JOBS_URL=url.format(port=Server.free_port()))
    assert done.returncode == 2 and says in done.stderr and "secret" not in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_store_that_is_damaged(tmp_path):
    (tmp_path / "h" / "jobs").mkdir(parents=True)
    (tmp_path / "h" / "jobs" / "jobs.db").write_bytes(b"this is no database" * 100)
    done = here(tmp_path, "job", "list")
    assert done.returncode == 2 and "job store" in done.stderr and "Traceback" not in done.stderr, done.stderr
