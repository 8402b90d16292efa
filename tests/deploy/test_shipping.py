"Lines on their way: Debian's rsyslog between the files of lados and a server that speaks `_bulk`, and misbehaves."

import contextlib
import json
import logging
import random
import re
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from serving import ROOT, Server, wait_for

from lados.core import settings
from lados.logs import log_fields, start_logs, stop_logs

if not shutil.which("rsyslogd") or not list(Path("/usr/lib").glob("*/rsyslog/omelasticsearch.so")):
    pytest.skip("rsyslog with rsyslog-elasticsearch is not installed", allow_module_level=True)


class Bulk:
    "What Elasticsearch's `_bulk` does with `create`, and some of what it does on a bad day."

    def __init__(self, port):
        self.port, self.documents, self.refused = port, {}, set()
        self.again = self.turned_away = 0 # documents that were there already; requests that got nothing
        self.mood, self.lock, self.chance = "well", threading.Lock(), random.Random(0)
        self.start()

    def start(self):
        bulk = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                if bulk.mood == "away":
                    self.hang_up()
                else:
                    self.answer(200, {"version": {"number": "9.1.0"}})

            do_HEAD = do_GET

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"])).split(b"\n")
                status, answer = bulk.take([(json.loads(a), d) for a, d in zip(body[::2], body[1::2], strict=False)])
                if status is None:
                    self.hang_up()
                else:
                    self.answer(status, answer)

            def hang_up(self):
                self.close_connection = True
                bulk.turned_away += 1

            def answer(self, status, document):
                data = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    def take(self, asked):
        with self.lock:
            if self.mood == "away":
                return None, None
            if self.mood == "too much":
                self.turned_away += 1
                return 429, {"error": {"type": "es_rejected_execution_exception", "reason": "queue full"}, "status": 429}
            items = [{"create": self.one(action["create"], data)} for action, data in asked]
            if self.mood == "cut": # it is stored, and nobody hears of it
                return None, None
            return 200, {"took": 1, "errors": any(i["create"]["status"] >= 300 for i in items), "items": items}

    def one(self, meta, data):
        name, document = meta["_id"], json.loads(data)
        about = {"_index": meta["_index"], "_id": name}
        if document["message"].startswith("never"):
            self.refused.add(name)
            return {**about, "status": 400, "error": {"type": "document_parsing_exception", "reason": "strict"}}
        if self.mood == "some" and self.chance.random() < 0.3:
            return {**about, "status": 429, "error": {"type": "es_rejected_execution_exception", "reason": "rejected"}}
        if name in self.documents:
            self.again += 1
            return {**about, "status": 409, "error": {"type": "version_conflict_engine_exception", "reason": "exists"}}
        self.documents[name] = document
        return {**about, "status": 201}


@contextlib.contextmanager
def rsyslog(folder, home, port):
    "The configuration that is shipped, with the places of a test."
    text = (ROOT / "docker" / "monitoring" / "elastic" / "rsyslog.conf").read_text()
    for word, here in (("/var/lib/lados/home", home), ("/var/lib/lados/", f"{folder}/"), ("9200", port),
                       ("/usr/local/lib/lados/resend.py", ROOT / "docker" / "monitoring" / "elastic" / "resend.py"),
                       ('resumeInterval="5"', 'resumeInterval="1"')):
        assert word in text
        text = text.replace(word, str(here))
    (folder / "work").mkdir(parents=True, exist_ok=True)
    (folder / "rsyslog.conf").write_text(f'global(workDirectory="{folder}/work")\n{text}')
    with (folder / "rsyslog.log").open("ab") as out:
        process = subprocess.Popen(["rsyslogd", "-n", "-f", folder / "rsyslog.conf", "-i", folder / "pid"], stdout=out, stderr=out)
    try:
        yield process
    finally:
        process.kill() if process.poll() is None else None
        process.wait()


def write(home, monkeypatch, words, count):
    monkeypatch.setenv("LADOS_HOME", str(home))
    monkeypatch.setenv("LADOS_LOG_MB", "0.1")
    monkeypatch.setenv("LADOS_LOG_FILES", "99")
    settings.cache_clear()
    start_logs("worker")
    with log_fields({"lados.job.id": "3f2a"}):
        for i in range(count):
            logging.getLogger("lados.jobs").info("%s %s \u2028 \"ünusual\"", words, i)
    stop_logs()
    settings.cache_clear()


def kept(home) -> dict[str, dict]:
    lines = [json.loads(x) for f in (home / "logs").glob("*.jsonl*") for x in f.read_text().splitlines()]
    return {x["event"]["id"]: x for x in lines}


def test_no_line_is_lost_or_doubled(tmp_path, monkeypatch):
    home, bulk = tmp_path / "home", Bulk(Server.free_port())

    def arrived():
        return len(bulk.documents) + len(bulk.refused) == len(kept(home))

    def shipped(words, mood, count=200):
        bulk.mood = mood
        write(home, monkeypatch, words, count)

    with rsyslog(tmp_path, home, bulk.port) as process:
        shipped("all is well", "well")
        wait_for(arrived, 60)
        shipped("some are refused for now", "some")
        shipped("never", "some", 20)
        wait_for(arrived, 60)
        shipped("the answer is lost", "cut")
        wait_for(lambda: bulk.again, 60)
        bulk.mood = "well"
        wait_for(arrived, 60)
        assert bulk.again, "what was stored unheard was sent again, and was there already"
        for words, mood in (("too many requests", "too much"), ("nobody answers", "away")):
            bulk.turned_away = 0
            shipped(words, mood)
            wait_for(lambda: bulk.turned_away >= 2, 60)
            bulk.mood = "well"
            wait_for(arrived, 60)
        bulk.stop()
        shipped("the server is gone", "well")
        bulk.start()
        wait_for(arrived, 60)
    for mood in ("well", "some"):
        with rsyslog(tmp_path, home, bulk.port) as process:
            shipped(f"it is ended in the middle, {mood}", mood)
            process.terminate()
            process.wait(30)
        write(home, monkeypatch, "nobody reads", 50)
        bulk.mood = "well"
        with rsyslog(tmp_path, home, bulk.port):
            wait_for(arrived, 60)
    bulk.stop()
    lines = kept(home)
    assert {i: d for i, d in lines.items() if i not in bulk.refused} == bulk.documents, "word for word, each once"
    assert {d["message"].split()[0] for i, d in lines.items() if i in bulk.refused} == {"never"}
    assert set(re.findall(r'"_id": ?"([^"]+)"', (tmp_path / "rejected.log").read_text())) == bulk.refused and len(bulk.refused) == 20
