"""The environment of Prefect's processes, whatever a user's own says about homes and proxies."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.errors import UsageError
from flows.prefect_server import environment
from flows.prefect_server.server import healthy

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/api/health" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def api() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/api"
        server.shutdown()


@pytest.fixture
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
        for spelled in (name, name.upper()):
            monkeypatch.setenv(spelled, "")  # so that what is set below is undone
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    return monkeypatch


@pytest.mark.parametrize("kept", ["", "example.org,localhost", "*"])
@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9"])
def test_servers_on_loopback_are_reached_past_any_proxy(
    surroundings: pytest.MonkeyPatch, api: str, proxy: str, kept: str
) -> None:
    scheme = "ALL_PROXY" if proxy.startswith("socks") else "HTTP_PROXY"
    surroundings.setenv(scheme, proxy)
    surroundings.setenv("NO_PROXY", kept)
    assert healthy(api)
    assert healthy(f"{api}/")
    for _ in range(2):
        environment.apply()
        assert httpx.get(f"{api}/health").status_code == 200
        wanted = kept if kept == "*" else {"", "127.0.0.1", "localhost"} | set(kept.split(","))
        found = os.environ["NO_PROXY"]
        assert found == wanted if kept == "*" else {"", *found.split(",")} == wanted


def test_without_a_home_folder_the_message_names_what_to_set(
    surroundings: pytest.MonkeyPatch,
) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    surroundings.delenv("PREFECT_HOME")
    surroundings.setattr(Path, "home", nowhere)
    with pytest.raises(UsageError, match="no home folder; set HOME or PREFECT_HOME"):
        environment.apply()


def test_a_shard_keeps_its_database_on_its_machine(
    surroundings: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Unless the user says where: cluster homes are shared, and SQLite's locks are not."""
    environment.use_local_home()
    assert os.environ["PREFECT_HOME"] == str(tmp_path / "home")
    surroundings.setattr("tempfile.tempdir", str(tmp_path))
    surroundings.setenv("HOME", str(tmp_path))
    surroundings.setenv("PREFECT_HOME", str(tmp_path / ".prefect" / "sjc"))  # as `apply` sets it
    environment.use_local_home()
    local = Path(os.environ["PREFECT_HOME"])
    assert (local.parent, local.stat().st_mode & 0o777) == (tmp_path, 0o700)


class Busy(BaseHTTPRequestHandler):
    """A server all of whose database connections are taken, until it has been asked twice."""

    left: ClassVar = [500, 504, 200]

    def do_GET(self) -> None:
        self.send_response(self.left.pop(0))
        self.send_header("Retry-After", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


def test_a_server_with_too_many_requests_is_asked_again() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
        with (
            temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{server.server_port}/api"}),
            get_client(sync_client=True) as client,
        ):
            assert client.api_healthcheck() is None
        server.shutdown()
    assert not Busy.left
