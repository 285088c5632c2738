"""The board: few requests, the newest last, and a server that is slow or broken harms nobody."""

from __future__ import annotations

import json
import logging
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from prefect.context import SyncClientContext
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED,
    temporary_settings,
)

from tasks.prefect_ui import artifacts
from tasks.prefect_ui.artifacts import (
    Board,
    artifact_key,
    show_preview,
    show_progress,
)


class Api(ThreadingHTTPServer):
    """As much of Prefect's API as artifacts need. status: its answers; go: when they come."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, Any]] = []
        self.status, self.go = 201, threading.Event()
        self.go.set()


class Handler(BaseHTTPRequestHandler):
    server: Api

    def _answer(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"] or 0)) or "null")
        self.server.asked.append((self.command, body))
        self.server.go.wait()
        reply = json.dumps({**(body or {}), "id": str(uuid.uuid4())}).encode()
        self.send_response(self.server.status)
        self.send_header("content-length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    do_POST = do_PATCH = _answer

    def do_GET(self) -> None:  # a token that not every server has
        self.send_error(404)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def api() -> Iterator[Api]:
    server = Api()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/api"
    with temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_MAX_RETRIES: 0}):
        yield server
    server.go.set()
    server.shutdown()
    server.server_close()


def told(api: Api) -> list[tuple[str, Any]]:
    return [(method, body["data"]) for method, body in api.asked]


def test_many_updates_are_few_requests_and_the_last_one_counts(api: Api) -> None:
    with Board() as board:
        artifact = board.create("progress", "a", 0.0, "")
        for share in range(1000):
            board.update(artifact, share / 10)
    assert told(api)[-1] == ("PATCH" if len(told(api)) > 1 else "POST", 99.9)
    assert len(told(api)) <= 2


def test_a_server_that_hangs_holds_up_nobody(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "CLOSE_SECONDS", 0.2)
    monkeypatch.setattr(artifacts, "MOST_WAITING", 10)
    api.go.clear()
    with Board() as board:
        for number in range(100):  # it would hang here
            board.create("progress", f"a-{number}", 0.0, "")
    assert len(api.asked) <= 1
    assert len(board._waiting) <= 10
    api.go.set()
    board._thread.join()


def test_what_is_sent_late_does_not_depend_on_the_client_of_the_flow(api: Api) -> None:
    unchecked = {PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED: False}
    with temporary_settings(unchecked), SyncClientContext():
        board = Board()
    with board:
        board.create("progress", "a", 0.0, "")
    assert told(api) == [("POST", 0.0)]


def test_failures_are_logged_once(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    api.status = 500
    with caplog.at_level(logging.WARNING, "tasks.prefect_ui.artifacts"), Board() as board:
        for number in range(5):
            board.create("progress", f"a-{number}", 0.0, "")
    assert len(told(api)) == 5
    assert len(caplog.records) == 1
    assert "500" in caplog.text


def test_a_server_that_is_not_there(caplog: pytest.LogCaptureFixture) -> None:
    unused = {PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 0}
    with temporary_settings(unused), Board() as board:
        board.create("progress", "a", 0.0, "")
    assert len(caplog.records) == 1


def test_progress_and_previews_go_to_the_board_of_the_run(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = tmp_path / "p.png"
    Image.new("RGB", (2000, 400), "red").save(picture)
    monkeypatch.setattr(artifacts, "PREVIEWS", 2)
    with Board() as board:
        show_progress(board, "A.b")(0.25)
        for name in "abc":
            show_preview(board, name, picture, name)
    told = [body for _, body in api.asked]
    assert {(b["type"], b["key"]) for b in told} == {
        ("progress", "progress-a-b"), ("image", "preview-a"), ("image", "preview-b"),
    }  # fmt: skip
    assert [b["data"] for b in told if b["type"] == "progress"][-1] == 25.0
    assert all(
        b["data"].startswith("data:image/webp;base64,") for b in told if b["type"] == "image"
    )


def test_keys_are_what_prefect_takes() -> None:
    assert artifact_key("preview", "A_b.C--d") == "preview-a-b-c-d"
