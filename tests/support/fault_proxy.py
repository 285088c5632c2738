"""A TCP proxy between an HTTP client and a server, which does what networks and servers do wrong.

    with FaultProxy(("127.0.0.1", 8080)) as proxy:
        proxy.add(Fault("status", r"^PUT .*mesh\\.glb", status=503, code="SlowDown", times=2))
        ...  # talk to proxy.url

Everything else passes as it is, signatures and checksums included. With a certificate the client's
side is HTTPS. Stands alone: standard library only.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, get_args

Kind = Literal[
    "status",  # an error reply; the server hears nothing of the request
    "hang",  # no reply for `seconds`, then the connection ends; the server hears nothing
    "delay",  # the request is passed on `seconds` late
    "throttle",  # `rate` bytes a second, in both directions
    "reset-request",  # the connection breaks after `after` bytes of the request's body
    "reset-reply",  # ... of the reply's body
    "lose-reply",  # the server handles the request; the connection breaks before its reply
    "truncate-reply",  # the connection ends in peace after `after` bytes of the reply's body
    "shorten-reply",  # so many bytes under a Content-Length that fits them
    "corrupt-request",  # the byte at `after` of the request's body is another one
    "corrupt-reply",  # ... of the reply's body; checksums of its headers are gone
    "lag",  # a request that was made in the last `seconds` gets the same reply again
]
KINDS: tuple[Kind, ...] = get_args(Kind)

_PIECE = 1 << 16
_CHECKSUMS = re.compile(rb"^(x-amz-checksum-[a-z0-9-]+|etag):.*\r\n", re.I | re.M)
_EXPECT = re.compile(rb"^expect: *100-continue\r\n", re.I | re.M)
_LENGTH = re.compile(rb"^content-length: *(\d+)\r\n", re.I | re.M)
_CHUNKED = re.compile(rb"^transfer-encoding: *chunked\r\n", re.I | re.M)


@dataclass
class Fault:
    """What goes wrong with the matching requests, after `skip` of them, `times` times.

    match: a regular expression, searched in the request line and headers, any case. times: None
    for always. after: an offset into the body, without the framing of chunks. hits: how often it
    has happened.
    """

    kind: Kind
    match: str = ""
    skip: int = 0
    times: int | None = 1
    after: int = 0
    status: int = 503
    code: str = "SlowDown"
    seconds: float = 3600.0
    rate: float = 100_000.0
    hits: int = field(default=0, init=False)

    def takes(self, head: bytes) -> bool:
        """Whether this request is one to spoil; counts it."""
        if not re.search(self.match, head.decode("latin-1"), re.I | re.M):
            return False
        if self.skip:
            self.skip -= 1
            return False
        if self.times is not None and self.hits >= self.times:
            return False
        self.hits += 1
        return True


_NOTHING = Fault("delay", seconds=0)  # what happens to all other requests


class FaultProxy:
    """Listens on a free port of the loopback address and passes on to `server`."""

    def __init__(
        self, server: tuple[str, int], certificate: tuple[Path, Path] | None = None
    ) -> None:
        self.server = server
        self.requests: list[str] = []  # request lines, such as "PUT /bucket/key HTTP/1.1"
        self.happened: list[tuple[Kind, str]] = []  # with the request line
        self._replies: dict[str, tuple[float, bytes]] = {}  # to request lines, when; see "lag"
        self._faults: list[Fault] = []
        self._tls: ssl.SSLContext | None = None
        if certificate:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(*certificate)
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        port = self._listener.getsockname()[1]
        self.url = f"{'https' if certificate else 'http'}://127.0.0.1:{port}"

    def __enter__(self) -> FaultProxy:
        threading.Thread(target=self._accept, name="fault-proxy", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def add(self, fault: Fault) -> Fault:
        """From now on `fault` happens; of several that match, the first added."""
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        """No fault happens any more; the records of those that did are emptied too."""
        with self._lock:
            self._faults.clear()
            self.requests.clear()
            self.happened.clear()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        """One client: its requests in turn, each on a new connection to the server."""
        with contextlib.suppress(OSError, ValueError):
            if self._tls:
                connection = self._tls.wrap_socket(connection, server_side=True)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open.add(connection)
            with connection, connection.makefile("rb") as reader:
                while (head := _read_head(reader)) and self._pass(head, reader, connection):
                    pass
        with self._lock:
            self._open.discard(connection)

    def _pass(self, head: bytes, reader: BinaryIO, client: socket.socket) -> bool:
        """One request and its reply; whether the client's connection can take another."""
        line = head.split(b"\r\n", 1)[0].decode("latin-1")
        with self._lock:
            self.requests.append(line)
            fault = next((fault for fault in self._faults if fault.takes(head)), None)
            if fault:
                self.happened.append((fault.kind, line))
        fault = fault or _NOTHING
        kind = fault.kind
        if kind == "hang":
            self._closing.wait(fault.seconds)
            return False
        when, kept = self._replies.get(line, (0.0, b""))
        if kind == "lag" and kept and time.monotonic() - when < fault.seconds:
            client.sendall(kept)
            return True
        if kind == "delay" and fault.seconds:
            self._closing.wait(fault.seconds)
        if _EXPECT.search(head):  # the proxy is as willing as the server
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            head = _EXPECT.sub(b"", head)
        body = _body(reader, head, until_close=False)
        if kind == "status":
            for _ in body:
                pass
            client.sendall(_error_reply(fault, head))
            return True
        with (
            socket.create_connection(self.server) as upstream,
            upstream.makefile("rb") as replies,
        ):
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                upstream.sendall(head)  # a server may answer before it has read everything
                if not self._send(body, upstream, fault, "request"):
                    _reset(upstream)
                    _reset(client)
                    return False
            while (reply := _read_head(replies)).startswith(b"HTTP/1.1 100"):
                pass
            bodiless = head.startswith(b"HEAD ") or re.match(rb"HTTP/1.1 (204|304)", reply)
            content = iter(()) if bodiless else _body(replies, reply, until_close=True)
            if kind == "lose-reply":
                for _ in content:
                    pass
                _reset(client)
                return False
            if kind == "lag":
                pieces = list(content)
                whole = reply + b"".join(piece for piece, _ in pieces)
                self._replies[line] = time.monotonic(), whole
                content = iter(pieces)
            if kind in ("corrupt-reply", "shorten-reply"):
                reply = _CHECKSUMS.sub(b"", reply)
            if kind == "shorten-reply":
                reply = _LENGTH.sub(b"Content-Length: %d\r\n" % fault.after, reply)
            client.sendall(reply)
            if not self._send(content, client, fault, "reply"):
                if kind == "reset-reply":
                    _reset(client)
                return False
            framed = bodiless or _LENGTH.search(reply) or _CHUNKED.search(reply)
            return bool(framed) and not re.search(rb"^connection: *close", reply, re.I | re.M)

    def _send(
        self,
        body: Iterator[tuple[bytes, bool]],
        to: socket.socket,
        fault: Fault,
        side: Literal["request", "reply"],
    ) -> bool:
        """Copies a body; False when the fault cuts it off. Reads no further than it must."""
        kind = fault.kind
        cuts = kind in (f"reset-{side}", f"truncate-{side}", f"shorten-{side}")
        if cuts and fault.after == 0:
            return False
        passed = 0
        for piece, framing in body:
            start, end = passed, passed if framing else passed + len(piece)
            passed = end
            if cuts and end >= fault.after:
                to.sendall(piece if framing else piece[: fault.after - start])
                return False
            if kind == f"corrupt-{side}" and start <= fault.after < end:
                spoiled = bytearray(piece)
                spoiled[fault.after - start] ^= 0x5A
                piece = bytes(spoiled)
            if kind == "throttle":
                self._trickle(piece, to, fault.rate)
            else:
                to.sendall(piece)
        return True

    def _trickle(self, piece: bytes, to: socket.socket, rate: float) -> None:
        step = max(1, int(rate / 20))
        for start in range(0, len(piece), step):
            to.sendall(piece[start : start + step])
            time.sleep(min(step, len(piece) - start) / rate)


def _read_head(reader: BinaryIO) -> bytes:
    """A request line or status line and the headers; empty when the connection has ended."""
    lines = list(itertools.takewhile(lambda line: line not in (b"\r\n", b""), reader))
    return b"".join([*lines, b"\r\n"]) if lines else b""


def _body(reader: BinaryIO, head: bytes, *, until_close: bool) -> Iterator[tuple[bytes, bool]]:
    """The pieces of a body as they arrive, each with whether it is the framing of chunks."""
    if _CHUNKED.search(head):
        while line := reader.readline():
            yield line, True
            size = int(line.split(b";")[0], 16)
            if not size:
                while line not in (b"\r\n", b""):  # trailers and the blank line at their end
                    line = reader.readline()
                    yield line, True
                return
            for piece in _pieces(reader, size):
                yield piece, False
            yield reader.readline(), True
    elif length := _LENGTH.search(head):
        for piece in _pieces(reader, int(length[1])):
            yield piece, False
    elif until_close:
        for piece in _pieces(reader, None):
            yield piece, False


def _pieces(reader: BinaryIO, size: int | None) -> Iterator[bytes]:
    left = _PIECE if size is None else size
    while left and (piece := reader.read1(min(left, _PIECE))):  # type: ignore[attr-defined]
        yield piece
        left -= 0 if size is None else len(piece)


def _error_reply(fault: Fault, head: bytes) -> bytes:
    body = f"<Error><Code>{fault.code}</Code><Message>a fault</Message></Error>".encode()
    start = f"HTTP/1.1 {fault.status} {fault.code}\r\nContent-Type: application/xml\r\n"
    start += f"Content-Length: {len(body)}\r\n\r\n"
    return start.encode() + (b"" if head.startswith(b"HEAD ") else body)


def _reset(connection: socket.socket) -> None:
    """Its end will be a reset (RST) and not a farewell (FIN)."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
