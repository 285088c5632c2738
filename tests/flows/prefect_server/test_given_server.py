"""A server of the user's is asked as Prefect asks it, and found wherever Prefect finds it."""

from __future__ import annotations

import contextlib
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from certificates import write_certificates

from flows.prefect_server.server import answers, healthy

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
# Each in a process of its own: Prefect reads its settings when it is imported.
ASK = """
import os
from flows.prefect_server import environment
environment.apply("CRITICAL")
from flows.prefect_server.server import answers, given_server
from sjc_engine.errors import SettingError
found = given_server()
try:
    print(found, answers(found) if found else None)
except SettingError as error:
    print(found, error.key, "401" in error.problem, "PREFECT_API_AUTH_STRING" in error.fix)
"""


class Gate(BaseHTTPRequestHandler):
    """Healthy, as Prefect's is, for everybody, and without flows for those who send `wanted`."""

    wanted: tuple[str, str] | None = None

    def do_GET(self) -> None:
        self.answer(200 if self.path == "/api/health" else 404, b"true")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        allowed = self.wanted is None or self.headers[self.wanted[0]] == self.wanted[1]
        known = self.path == "/api/flows/filter"
        self.answer((200 if allowed else 401) if known else 404, b"[]")

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@contextlib.contextmanager
def gate(wanted: tuple[str, str] | None = None, certificates: Path | None = None) -> Iterator[str]:
    handler = type("Handler", (Gate,), {"wanted": wanted})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        if certificates:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        scheme = "https" if certificates else "http"
        yield f"{scheme}://127.0.0.1:{server.server_port}/api"
        server.shutdown()


def ask(folder: Path, **variables: str) -> list[str]:
    """What `given_server` and `answers` return to a user whose home and folder this is."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    environment = kept | {"HOME": str(folder), "PYTHONPATH": str(ROOT)} | variables
    command = [sys.executable, "-c", ASK]
    ran = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.split()


def test_its_certificate(tmp_path: Path) -> None:
    with gate(certificates=write_certificates(tmp_path)) as url:
        assert ask(tmp_path, PREFECT_API_URL=url) == [url, "False"]
        skip = {"PREFECT_API_TLS_INSECURE_SKIP_VERIFY": "true"}
        assert ask(tmp_path, PREFECT_API_URL=url, **skip) == [url, "True"]
        trusted = {"PREFECT_API_SSL_CERT_FILE": str(tmp_path / "ca.pem")}
        assert ask(tmp_path, PREFECT_API_URL=url, **trusted) == [url, "True"]


def test_its_gate(tmp_path: Path) -> None:
    with gate(("X-Gate", "open")) as url:
        assert ask(tmp_path, PREFECT_API_URL=url) == [url, "PREFECT_API_URL", "True", "True"]
        headers = '{"X-Gate": "open"}'
        found = ask(tmp_path, PREFECT_API_URL=f"{url}/", PREFECT_CLIENT_CUSTOM_HEADERS=headers)
        assert found == [f"{url}/", "True"]
    with gate(("Authorization", "Bearer key")) as url:
        assert ask(tmp_path, PREFECT_API_URL=url, PREFECT_API_KEY="key") == [url, "True"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (".env", "PREFECT_API_URL={}\n"),
        ("prefect.toml", '[api]\nurl = "{}"\n'),
        ("pyproject.toml", '[tool.prefect.api]\nurl = "{}"\n'),
        (".prefect/profiles.toml",
         'active = "lab"\n[profiles.lab]\nPREFECT_API_URL = "{}"\nPREFECT_API_KEY = "key"\n'),
        (".prefect/sjc/profiles.toml",
         'active = "lab"\n[profiles.lab]\nPREFECT_API_URL = "{}"\nPREFECT_API_KEY = "key"\n'),
    ],
)  # fmt: skip
def test_its_address(tmp_path: Path, name: str, content: str) -> None:
    wanted = ("Authorization", "Bearer key") if name.endswith("profiles.toml") else None
    with gate(wanted) as url:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content.format(url))
        assert ask(tmp_path) == [url, "True"]


def test_an_address_that_is_none() -> None:
    for address in ("http://host:abc/api", "nonsense", "http://"):
        assert not answers(address)
        assert not healthy(address)


def test_other_profiles_stay_apart(tmp_path: Path) -> None:
    (tmp_path / ".prefect").mkdir()
    (tmp_path / ".prefect" / "profiles.toml").write_text(
        'active = "own"\n[profiles.own]\nPREFECT_API_DATABASE_CONNECTION_URL = "sqlite://"\n'
        '[profiles.lab]\nPREFECT_API_URL = "http://127.0.0.1:9/api"\n'
    )
    assert ask(tmp_path) == ["None", "None"]
