"""The fault proxy against a server of the standard library: what passes, and what goes wrong."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from fault_proxy import KINDS, Fault, FaultProxy, Kind

CONTENT = bytes(range(256)) * 1000


class Handler(BaseHTTPRequestHandler):
    """Keeps what is PUT under a path, and returns it."""

    protocol_version = "HTTP/1.1"
    kept: dict[str, bytes] = {}  # noqa: RUF012  # emptied by the fixture

    def do_PUT(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Length") in (None, str(len(body))):
            self.kept[self.path] = body
        self._answer(b"")

    def do_GET(self) -> None:
        self._answer(self.kept.get(self.path, b""))

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("ETag", "abc")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:  # broken connections are what this is about
        pass


@pytest.fixture
def proxy() -> Iterator[FaultProxy]:
    Handler.kept = {}
    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        with FaultProxy(("127.0.0.1", server.server_port)) as proxy:
            yield proxy
        server.shutdown()
        thread.join()


def request(proxy: FaultProxy, method: str, body: object = None) -> tuple[int, bytes]:
    address = proxy.url.removeprefix("http://")
    connection = http.client.HTTPConnection(address, timeout=5)
    try:
        connection.request(method, "/x", body=body)  # type: ignore[arg-type]
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def test_everything_passes_as_it_is(proxy: FaultProxy) -> None:
    connection = http.client.HTTPConnection(proxy.url.removeprefix("http://"), timeout=5)
    for body in (CONTENT, iter([CONTENT[:7], CONTENT[7:]])):  # with a length, and chunked
        connection.request("PUT", "/x", body=body)
        assert connection.getresponse().read() == b""
        assert Handler.kept.pop("/x") == CONTENT
    Handler.kept["/x"] = CONTENT
    connection.request("GET", "/x")
    assert connection.getresponse().read() == CONTENT
    connection.close()
    assert proxy.requests == ["PUT /x HTTP/1.1"] * 2 + ["GET /x HTTP/1.1"]
    assert proxy.happened == []


def test_a_fault_takes_the_requests_that_it_names(proxy: FaultProxy) -> None:
    fault = proxy.add(Fault("status", "^PUT /x", skip=1, times=2, status=500, code="Oops"))
    statuses = [request(proxy, "PUT", CONTENT)[0] for _ in range(4)]
    assert statuses == [200, 500, 500, 200]
    assert request(proxy, "GET") == (200, CONTENT)
    assert fault.hits == 2
    assert proxy.happened == [("status", "PUT /x HTTP/1.1")] * 2
    proxy.add(Fault("status", "^host: 127", times=None))
    status, body = request(proxy, "GET")
    assert (status, b"<Code>SlowDown</Code>" in body) == (503, True)
    proxy.clear()
    assert request(proxy, "GET") == (200, CONTENT)


@pytest.mark.parametrize("kind", ["reset-request", "lose-reply", "hang"])
def test_the_connection_breaks(proxy: FaultProxy, kind: Kind) -> None:
    assert kind in KINDS
    proxy.add(Fault(kind, after=1000, seconds=0.1))
    with pytest.raises((ConnectionResetError, BrokenPipeError, http.client.RemoteDisconnected)):
        request(proxy, "PUT", CONTENT)
    handled = kind == "lose-reply"
    assert Handler.kept == ({"/x": CONTENT} if handled else {})


@pytest.mark.parametrize("kind", ["reset-reply", "truncate-reply", "shorten-reply"])
def test_the_reply_is_cut(proxy: FaultProxy, kind: Kind) -> None:
    Handler.kept["/x"] = CONTENT
    proxy.add(Fault(kind, after=1000))
    if kind == "shorten-reply":
        assert request(proxy, "GET") == (200, CONTENT[:1000])
    elif kind == "truncate-reply":
        with pytest.raises(http.client.IncompleteRead):
            request(proxy, "GET")
    else:
        with pytest.raises((ConnectionResetError, http.client.IncompleteRead)):
            request(proxy, "GET")


@pytest.mark.parametrize("chunked", [False, True])
def test_one_byte_is_another(proxy: FaultProxy, chunked: bool) -> None:
    wrong = CONTENT[:1000] + bytes([CONTENT[1000] ^ 0x5A]) + CONTENT[1001:]
    proxy.add(Fault("corrupt-request", "^PUT", after=1000))
    request(proxy, "PUT", iter([CONTENT[:7], CONTENT[7:]]) if chunked else CONTENT)
    assert Handler.kept["/x"] == wrong
    Handler.kept["/x"] = CONTENT
    proxy.add(Fault("corrupt-reply", "^GET", after=1000))
    assert request(proxy, "GET") == (200, wrong)


def test_slow_and_late(proxy: FaultProxy) -> None:
    Handler.kept["/x"] = CONTENT
    for fault in (Fault("throttle", rate=len(CONTENT) / 0.3), Fault("delay", seconds=0.3)):
        proxy.add(fault)
        started = time.monotonic()
        assert request(proxy, "GET") == (200, CONTENT)
        assert time.monotonic() - started > 0.25


def test_a_reply_lags(proxy: FaultProxy) -> None:
    proxy.add(Fault("lag", "^GET", times=None, seconds=0.5))
    assert request(proxy, "GET") == (200, b"")
    request(proxy, "PUT", CONTENT)
    assert request(proxy, "GET") == (200, b"")
    deadline = time.monotonic() + 30
    while request(proxy, "GET") == (200, b"") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert request(proxy, "GET") == (200, CONTENT), "by then it has caught up"
