"""A proxy before an S3 server, with one manner of servers and networks that people really have.

    with manners(address, "path", "/storage/v1/s3") as url: ...

All of it is in the requests and replies: signatures reach the server behind it as they were made.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Manner = Literal[
    "path",  # the server is below the path `detail`, and anything else is a 404
    "region",  # signatures must be for the region `detail`, which no reply names
    "named region",  # the same; replies name it, and a HEAD of the bucket is refused
    "refuses checksums",  # with the status and code `detail`, such as "403 SignatureDoesNotMatch"
    "read-only",  # a PUT is a 403 with the code `detail`
    "forward",  # a proxy: requests name the whole address, whatever host that is
]
_HOP_BY_HOP = {"connection", "proxy-connection", "transfer-encoding", "expect", "content-length"}


@contextlib.contextmanager
def manners(server: tuple[str, int], manner: Manner, detail: str = "") -> Iterator[str]:
    """The proxy's own address, without the path."""
    handler = type("Handler", (_Handler,), {"upstream": server, "manner": manner, "detail": detail})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as proxy:
        threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{proxy.server_port}"
        finally:
            proxy.shutdown()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    upstream: tuple[str, int]
    manner: Manner
    detail: str

    def handle_any(self) -> None:
        body = self._body()
        refusal = self._refusal()
        if refusal:
            status, code = refusal
            text = f"<Error><Code>{code}</Code><Message>refused</Message></Error>".encode()
            headers = [("Content-Type", "application/xml")]
            if self.manner == "named region":
                headers.append(("x-amz-bucket-region", self.detail))
            self._reply(status, headers, text, len(text))
            return
        host, port = self.upstream
        headers_in = {k: v for k, v in self.headers.items() if k.lower() not in _HOP_BY_HOP}
        path = self.path
        if self.manner == "path":
            path = path.removeprefix(self.detail) or "/"
        if self.manner == "forward":
            path = "/" + path.split("/", 3)[3]
            headers_in["Host"] = f"{host}:{port}"
        if body or self.command in ("PUT", "POST"):
            headers_in["Content-Length"] = str(len(body))
        connection = http.client.HTTPConnection(host, port, timeout=60)
        with contextlib.closing(connection):
            connection.request(self.command, path, body=body or None, headers=headers_in)
            answer = connection.getresponse()
            content = answer.read()
        kept = [
            (k, v)
            for k, v in answer.getheaders()
            if k.lower() not in _HOP_BY_HOP
            and not (self.manner == "region" and k.lower() == "x-amz-bucket-region")
        ]
        length = int(answer.getheader("Content-Length") or len(content))
        self._reply(
            answer.status, kept, content, length if self.command == "HEAD" else len(content)
        )

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

    def _refusal(self) -> tuple[int, str] | None:
        """Status and code, unless the request may pass."""
        put = self.command == "PUT"
        if self.manner == "path" and not self.path.startswith(f"{self.detail}/"):
            return 404, "NoSuchBucket"
        if self.manner == "forward" and not self.path.startswith("http://"):
            return 400, "BadRequest"
        if self.manner in ("region", "named region"):
            scope = re.search(r"Credential=[^/]+/\d+/([^/]+)/", self.headers["Authorization"] or "")
            if scope is None or scope[1] != self.detail:
                return 400, "AuthorizationHeaderMalformed"
            bucket = "/" not in self.path.strip("/").partition("?")[0]
            if self.manner == "named region" and self.command == "HEAD" and bucket:
                return 403, "AccessDenied"
        if self.manner == "refuses checksums" and put:
            names = " ".join(self.headers.keys()).lower()
            chunked = "aws-chunked" in (self.headers["Content-Encoding"] or "")
            if chunked or "x-amz-trailer" in names or "x-amz-checksum" in names:
                status, code = self.detail.split()
                return int(status), code
        if self.manner == "read-only" and put:
            return 403, self.detail
        return None

    def _body(self) -> bytes:
        if "chunked" not in (self.headers["Transfer-Encoding"] or ""):
            return self.rfile.read(int(self.headers["Content-Length"] or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _reply(self, status: int, headers: list[tuple[str, str]], body: bytes, length: int) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...
