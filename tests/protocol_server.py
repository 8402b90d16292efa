"A local server that speaks what Roboflow and Zenodo speak to a downloader, and misbehaves on request."

import hashlib
import io
import json
import random
import threading
import time
import zipfile
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

CATEGORIES = {0: "oils-emulsions", 1: "emulsion", 2: "oil", 3: "oil-platform", 4: "sheen", 5: "ship"}
KEY = "rf-secret-key-0123456789"


def coco_split(count: int, rng: random.Random) -> dict:
    "Annotations of `count` images; the first two of a split show a platform, every tenth shows nothing."
    coco = {"info": {"year": "2025"}, "licenses": [{"id": 1, "name": "CC BY 4.0"}], "images": [], "annotations": [],
            "categories": [{"id": k, "name": v, "supercategory": "oils-emulsions"} for k, v in CATEGORIES.items()]}
    for i in range(count):
        name = f"{i}_jpg.rf.{rng.getrandbits(128):032x}.jpg"
        coco["images"].append({"id": i, "license": 1, "file_name": name, "width": 640, "height": 640})
        kinds = [3, 5] if i < 2 else [] if i % 10 == 9 else [rng.choice([1, 2, 2, 2, 4, 5]), rng.choice([2, 5])]
        for k, kind in enumerate(kinds):
            coco["annotations"].append({"id": len(coco["annotations"]), "image_id": i, "category_id": kind, "iscrowd": 0,
                                        "area": 9000.0 / (k + 1), "bbox": [0, 0, 100, 90], "segmentation": []})
    return coco


def export_zip(sizes=(("train", 280), ("valid", 80), ("test", 40)), top="", size=3000) -> bytes:
    "A COCO export as the services zip it; the images are noise, which nothing here decodes."
    rng, buffer = random.Random(1), io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as z:
        z.writestr(f"{top}README.dataset.txt", "LADOS\nLicense: CC BY 4.0\n")
        for split, count in sizes:
            coco = coco_split(count, rng)
            for image in coco["images"]:
                z.writestr(f"{top}{split}/{image['file_name']}", rng.randbytes(size))
            z.writestr(f"{top}{split}/_annotations.coco.json", json.dumps(coco))
    return buffer.getvalue()


@dataclass
class Seen:
    "One request, as the server saw it."

    route: str
    path: str
    range: str | None
    if_range: str | None
    bearer: str | None
    query: dict
    status: int = 0
    sent: int = 0 # bytes of the body

    @property
    def start(self) -> int:
        return int(self.range[6:-1]) if self.range else 0


class Service(ThreadingHTTPServer):
    "`faults[route]` is a list of dicts, one used up by each request of that route; routes are export, record, file."

    daemon_threads = True

    def __init__(self, archive: bytes):
        super().__init__(("127.0.0.1", 0), Handler)
        self.archive, self.etag, self.md5 = archive, '"etag-1"', hashlib.md5(archive).hexdigest()
        self.bearer_works, self.formats = True, ("coco-segmentation", "coco")
        self.faults: dict[str, list[dict]] = {"export": [], "record": [], "file": []}
        self.seen: list[Seen] = []
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def of(self, route: str) -> list[Seen]:
        return [s for s in self.seen if s.route == route]

    def handle_error(self, request, client_address):
        "A client that goes away in the middle is what half of the tests are about."

    def stop(self):
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: Service

    def log_message(self, *args):
        "Quiet: the tests read `seen`."

    def do_GET(self):
        url = urlsplit(self.path)
        route = "record" if url.path.startswith("/records/") else "file" if url.path == "/file" else "export"
        self.saw = Seen(route, url.path, self.headers["Range"], self.headers["If-Range"], self.headers["Authorization"],
                        parse_qs(url.query))
        self.server.seen.append(self.saw)
        faults = self.server.faults[route]
        self.fault = faults.pop(0) if faults else {}
        if "status" in self.fault:
            self.reply(self.fault["status"], self.fault.get("body", b"{}"), self.fault.get("headers", {}))
        elif "json" in self.fault:
            self.reply(self.fault.get("code", 200), json.dumps(self.fault["json"]).encode())
        else:
            getattr(self, route)(url.path)

    def reply(self, status: int, body: bytes, headers: dict | None = None, length: bool = True) -> None:
        self.saw.status = status
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if length:
            self.send_header("Content-Length", str(self.fault.get("length", len(body))))
        self.end_headers()
        body = body[: self.fault.get("cut", len(body))]
        step = self.fault.get("step", 1 << 16)
        for i in range(0, len(body), step):
            self.wfile.write(body[i : i + step])
            self.saw.sent += len(body[i : i + step])
            time.sleep(self.fault.get("pause", 0))

    def export(self, path: str) -> None:
        given = self.saw.query.get("api_key") or ([self.saw.bearer.split()[-1]] if self.saw.bearer and self.server.bearer_works else [])
        if given != [KEY]:
            body = {"error": {"message": f"This API key ({given}) does not exist.", "type": "OAuthException"}}
            return self.reply(401, json.dumps(body).encode())
        workspace, project, version, kind = path.strip("/").split("/")
        if (workspace, project, version) != ("konstantinos-gkountakos", "lados", "2") or kind not in self.server.formats:
            return self.reply(404, b'{"error": {"message": "not found"}}')
        self.reply(200, json.dumps({"export": {"format": kind, "link": f"{self.server.url}/file?key=link-secret"}}).encode())

    def record(self, path: str) -> None:
        if path != "/records/15888341":
            return self.reply(404, b"{}")
        file = {"id": "x", "key": "LADOS_coco.zip", "size": len(self.server.archive), "checksum": f"md5:{self.server.md5}",
                "links": {"self": f"{self.server.url}/file"}}
        masks = {"key": "masks.zip", "size": 10**12, "checksum": "md5:0", "links": {"self": "http://127.0.0.1:9/no"}}
        self.reply(200, json.dumps({"id": 15888341, "files": [masks, file, {"key": "readme.pdf"}]}).encode())

    def file(self, path: str) -> None:
        data, etag, saw = self.server.archive, self.server.etag, self.saw
        headers = {"ETag": etag, "Accept-Ranges": "bytes"}
        whole = saw.range is None or self.fault.get("ignore_range") or (saw.if_range not in (None, etag))
        if whole:
            return self.reply(200, data, headers, length=not self.fault.get("no_length"))
        if saw.start >= len(data) or self.fault.get("unsatisfiable"):
            return self.reply(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        self.reply(206, data[saw.start :], {**headers, "Content-Range": f"bytes {saw.start}-{len(data) - 1}/{len(data)}"})
