"""A stand-in for the Hugging Face hub on loopback: repositories of files, with large ones apart."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_right"
LARGE = (".glb", ".parquet", ".png", ".tar")  # files that are sent apart from their commit


@dataclass
class Hub:
    """What clients have sent. `refused_commits`: numbers of commits, from 1, that get HTTP 503."""

    url: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)  # by SHA-256
    uploads: int = 0
    commits: int = 0
    refused_commits: frozenset[int] = frozenset()
    cards: list[str] = field(default_factory=list)  # whose YAML was to be checked

    def commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        files = self.repositories[name]
        for line in lines:
            about = line["value"]
            if line["key"] == "file":
                files[about["path"]] = base64.b64decode(about["content"])
            elif line["key"] == "lfsFile":
                files[about["path"]] = self.large[about["oid"]]
            elif line["key"] == "deletedFile":
                del files[about["path"]]


@contextmanager
def hub_server() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, content: Any, status: int = 200) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def received(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        @property
        def repository(self) -> str:
            words = self.path.partition("/datasets/")[2].split("/")
            return "/".join(words[:2]).removesuffix(".git")

        def refused(self) -> bool:
            if self.headers["Authorization"] == f"Bearer {TOKEN}":
                return False
            self.answer({"error": "Invalid username or password."}, 401)
            return True

        def do_GET(self) -> None:
            if self.refused():
                return
            files = hub.repositories[self.repository]
            self.answer(
                [
                    {
                        "type": "file", "path": path, "size": len(data),
                        "oid": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(),
                    }
                    for path, data in files.items()
                ]
            )  # fmt: skip

        def do_PUT(self) -> None:
            data = self.received()
            hub.large[hashlib.sha256(data).hexdigest()] = data
            hub.uploads += 1
            self.answer({})

        def do_POST(self) -> None:
            body = self.received()
            if self.refused():
                return
            if self.path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}"
                there = name in hub.repositories
                hub.repositories.setdefault(name, {".gitattributes": b"* text"})
                hub.private.setdefault(name, asked.get("visibility") == "private")
                about = {"url": f"{hub.url}/datasets/{name}", "error": "You already have it"}
                self.answer(about, 409 if there else 200)
            elif self.path == "/api/validate-yaml":
                hub.cards.append(json.loads(body)["content"])
                self.answer({"errors": [], "warnings": []})
            elif "/preupload/" in self.path:
                found = [
                    {
                        "path": file["path"], "shouldIgnore": False,
                        "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                    }
                    for file in json.loads(body)["files"]
                ]  # fmt: skip
                self.answer({"files": found})
            elif self.path.endswith(".git/info/lfs/objects/batch"):
                objects = [
                    {
                        **asked,
                        **({} if asked["oid"] in hub.large else
                           {"actions": {"upload": {"href": f"{hub.url}/large/{asked['oid']}"}}}),
                    }
                    for asked in json.loads(body)["objects"]
                ]  # fmt: skip
                self.answer({"transfer": "basic", "objects": objects})
            elif "/commit/" in self.path:
                hub.commits += 1
                if hub.commits in hub.refused_commits:
                    self.answer({"error": "Busy."}, 503)
                    return
                hub.commit(self.repository, [json.loads(line) for line in body.splitlines()])
                self.answer(
                    {
                        "commitUrl": f"{hub.url}/datasets/{self.repository}/commit/{'1' * 40}",
                        "commitOid": "1" * 40,
                    }
                )
            else:
                self.answer({"error": self.path}, 404)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
