"Sources over HTTP: what may be read is read, and no redirect, list of links or chain of protocols leads anywhere else."

import http.server
import threading
from contextlib import suppress
from types import SimpleNamespace

import pytest
from serving import colours

from lados.core import ConfigError, DataError, ImageError, settings
from lados.jobs.batches import check_allowed, read_remote, references

PNG = colours(1)[0]


@pytest.fixture
def sites(home, monkeypatch):
    """A site that may be read below /open, and one that may not: what was asked of each, and the addresses. Pages say what
    `pages` has, and redirect as `moved` has it."""
    pytest.importorskip("aiohttp", reason="aiohttp is not installed: `make setup` installs it")
    asked, pages, moved = {"here": [], "there": []}, {}, {}

    def site(name):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                asked[name].append(self.path)
                away = moved.get(self.path)
                content = pages.get(self.path, PNG if self.path.endswith(".png") else None)
                self.send_response(302 if away else 200 if content else 404)
                if away:
                    self.send_header("URI" if away.startswith("URI ") else "Location", away.removeprefix("URI "))
                self.send_header("Content-Type", "text/html" if self.path in pages else "image/png")
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                self.wfile.write(b"" if self.command == "HEAD" else content or b"")

            do_HEAD = do_GET

            def log_message(self, *args):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    servers = [site("here"), site("there")]
    here, there = (f"http://127.0.0.1:{s.server_port}" for s in servers)
    monkeypatch.setenv("LADOS_SOURCES", f"{here}/open")
    settings.cache_clear()
    yield SimpleNamespace(here=here, there=there, asked=asked, pages=pages, moved=moved)
    for server in servers:
        server.shutdown()
        server.server_close()


def test_images_behind_http(sites):
    sites.pages["/open/"] = b'<a href="1.png">1</a> <a href="/open/2.png">2</a> <a href="deep/">deep</a> <a href="notes.txt">-</a>'
    sites.pages["/open/deep/"] = b'<a href="3.png">3</a>'
    sites.moved["/open/deep"] = "/open/deep/" # as servers do with folders
    found = {r.name: r for r in references(check_allowed(f"{sites.here}/open/"))}
    assert sorted(found) == ["1.png", "2.png", "deep/3.png"]
    assert read_remote(found["deep/3.png"].path, "3.png", 10_000) == PNG


@pytest.mark.parametrize("target", ["{there}/secret.png", "{here}/private/secret.png", "{here}/open/../private/secret.png", "{here}/open/%2e%2e/private/secret.png",
                                    "URI {there}/secret.png", "URI /private/secret.png", "//127.0.0.1:{port}/secret.png", "file:///etc/hostname", "http://169.254.169.254/latest/secret.png", "/private/secret.png"])
def test_a_redirect_leads_nowhere_else(sites, target):
    target = target.format(here=sites.here, there=sites.there, port=sites.there.rpartition(":")[2])
    sites.moved["/open/1.png"] = target
    with pytest.raises(ImageError, match="redirects to"):
        read_remote(check_allowed(f"{sites.here}/open/1.png"), "1.png", 10_000)
    assert sites.asked["there"] == [] and set(sites.asked["here"]) == {"/open/1.png"}


def test_a_redirect_within_what_may_be_read_is_followed(sites):
    sites.moved |= {"/open/1.png": f"{sites.here}/open/good.png", "/open/2.png": "3.png", "/open/3.png": f"{sites.there}/secret.png"}
    assert read_remote(check_allowed(f"{sites.here}/open/1.png"), "1.png", 10_000) == PNG
    with pytest.raises(ImageError, match="redirects to"): # at the second hop
        read_remote(f"{sites.here}/open/2.png", "2.png", 10_000)
    assert sites.asked["there"] == []


def test_a_list_of_links_leads_nowhere_else(sites):
    sites.pages["/open/"] = (f'<a href="{sites.there}/a.png">1</a> <a href="../private/b.png">2</a> <a href="/private/c.png">3</a> <a href="good.png">4</a>'
                             f' <a href="%2e%2e/private/d.png">5</a> <a href="//127.0.0.1/e.png">6</a> <a href="file:///etc/f.png">7</a>').encode()
    found = references(check_allowed(f"{sites.here}/open/"))
    for r in found:
        with suppress(ImageError):
            read_remote(r.path, r.name, 10_000)
    assert "good.png" in [r.name for r in found] and not any("private" in r.path for r in found)
    assert sites.asked["there"] == [] and not any("private" in path for path in sites.asked["here"])


def test_pages_of_links_are_asked_below_the_url_only_and_once(sites):
    page = b'<a href="../private/">1</a> <a href="../../">2</a> <a href="./">3</a> <a href="deep/../../private/">4</a> <a href="?C=N/">5</a>'
    sites.pages |= {path: page + b'<a href="%s">6</a> <a href="./1.png">7</a>' % deeper for path, deeper in (("/open/", b"deep/"), ("/open/deep/", b"/open/"))}
    sites.pages["/private/"] = sites.pages["/"] = b'<a href="secret.png">1</a>'
    assert [r.name for r in references(check_allowed(f"{sites.here}/open/"))] == ["1.png", "deep/1.png"]
    assert sites.asked["here"] == ["/open/", "/open/deep/"]


def test_links_without_an_end_are_refused(sites, monkeypatch):
    monkeypatch.setattr("lados.jobs.batches.MAX_DEPTH", 4)
    sites.pages |= {f"/open/{'a/' * n}": b'<a href="a/">1</a>' for n in range(20)}
    with pytest.raises(DataError, match="on and on"):
        references(check_allowed(f"{sites.here}/open/"))
    assert len(sites.asked["here"]) == 4


def test_a_listing_that_redirects_is_refused(sites):
    sites.pages["/secret/"] = b'<a href="s.png">s</a>'
    sites.moved |= {"/open/": f"{sites.there}/secret/", "/open": f"{sites.there}/secret/"}
    with pytest.raises(DataError, match="redirects to"):
        references(check_allowed(f"{sites.here}/open/"))
    assert sites.asked["there"] == []


def test_addresses_that_nobody_named_are_not_asked(sites):
    for url in (f"{sites.there}/a.png", f"{sites.here}/private/a.png", f"{sites.here}/open@{sites.there[7:]}/a.png", f"{sites.here}/openly/a.png",
                f"{sites.here.replace('127.0.0.1', 'localhost')}/open/a.png", f"{sites.here.replace('127.0.0.1', '[::1]')}/open/a.png",
                "http://10.0.0.1/a.png", "http://[::ffff:127.0.0.1]/open/a.png", f"https{sites.here[4:]}/open/a.png", f"zip://a.png::{sites.here}/open/a.zip",
                f"simplecache::{sites.here}/open/a.png", f"filecache::{sites.here}/open/a.png", f"{sites.here}/open/a.zip::file:///etc", f"reference::{sites.here}/open/r.json",
                "data:image/png;base64,AAAA", "github://lados:lados@main/a.png", f"blockcache::{sites.here}/open/a.png", f"dir::{sites.here}/open"):
        with pytest.raises(ConfigError):
            check_allowed(url)
    assert sites.asked == {"here": [], "there": []}
