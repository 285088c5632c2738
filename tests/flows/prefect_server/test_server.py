"""The Prefect server that runs start: that it serves, schedules, and never outlives its run."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from command_line import SJC
from prefect.exceptions import ObjectNotFound
from task_samples import make, spec
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from flows.errors import RunError
from flows.prefect_server import server
from flows.prefect_server.server import Server, healthy, ui_server
from tasks.store import open_store

pytestmark = pytest.mark.slow

# What a run does: start a server, wait for it. Then this process deploys a flow with a cron
# schedule and waits for the scheduler. Releases of FastAPI and SQLAlchemy that Prefect did not know
# have broken one or the other without a word: constraints.txt has those that this test passes with.
SCHEDULE = """
import os, sys, time
from pathlib import Path
from flows.prefect_server import environment, server
environment.apply("CRITICAL")
connection = server.connect(Path("server.log"))
connection.wait()
print(connection.api_url, os.environ["PREFECT_API_AUTH_STRING"], flush=True)
from prefect import flow
from prefect.client.orchestration import get_client
@flow
def nightly() -> None: ...
nightly.to_deployment("guard", cron="0 2 * * *").apply()
with get_client(sync_client=True) as client:
    while True:
        runs = [run for run in client.read_flow_runs() if run.state_type.value == "SCHEDULED"]
        if runs: break
        time.sleep(0.2)
print(len(runs), flush=True)
time.sleep(600)
"""


def block_types(api_url: str, password: str = "") -> int:
    """How many types of blocks a server knows."""
    user, _, secret = password.partition(":")
    reply = httpx.post(f"{api_url}/block_types/filter", json={}, timeout=60, auth=(user, secret))
    return len(reply.raise_for_status().json())


def test_a_cron_deployment_is_scheduled_and_the_server_ends_with_its_run(tmp_path: Path) -> None:
    database = tmp_path / "other.db"
    environment = os.environ | {
        "PREFECT_HOME": str(tmp_path / "home"),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{database}",
    }
    environment.pop("PREFECT_API_URL", None)
    (tmp_path / "schedule.py").write_text(SCHEDULE)  # Prefect deploys flows of files only
    environment["PYTHONPATH"] = str(Path(__file__).parents[3])
    run = subprocess.Popen(
        [sys.executable, "schedule.py"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None
    try:
        api_url, password = run.stdout.readline().split()
        assert healthy(api_url)
        with pytest.raises(httpx.HTTPStatusError, match="401"):  # for other users of the machine
            block_types(api_url)
        assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700
        assert int(run.stdout.readline()) >= 1
        assert block_types(api_url, password) == 0
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
        run.stdout.close()
    deadline = time.monotonic() + 10
    while healthy(api_url):
        assert time.monotonic() < deadline, "the server has outlived its run"
        time.sleep(0.1)


def test_a_run_finds_the_server_of_sjc_ui(prefect_home: Path) -> None:
    assert ui_server() is None
    ui = subprocess.Popen(
        [*SJC, "ui", "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not (found := ui_server()):
            assert ui.poll() is None, ui.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert found == json.loads((prefect_home / "sjc-ui.json").read_text())["api_url"]
        assert found.startswith("http://127.0.0.1:")
        page = found.removesuffix("/api")
        with urllib.request.urlopen(page) as reply:
            assert b"<html" in reply.read()
        assert block_types(found) > 0, "the pages offer none"
        check_who_is_let_in(page)
    finally:
        ui.send_signal(signal.SIGINT)
        ui.communicate(timeout=30)
    assert ui.returncode == 0
    assert ui_server() is None
    assert not (prefect_home / "sjc-ui.json").exists()


def check_who_is_let_in(page: str) -> None:
    """Programs and the server's own pages; no page of elsewhere, whatever name it has."""
    port = page.rpartition(":")[2]
    strangers = ("http://example.com", f"http://example.com:{port}", "http://127.0.0.1:1", "null")
    events = f"{page.replace('http', 'ws')}/api/events/in"
    for own in (page, f"http://localhost:{port}"):
        assert httpx.get(f"{page}/api/health", headers={"Origin": own}).status_code == 200
        with connect(events, origin=Origin(own), proxy=None):
            pass
    for stranger in strangers:
        reply = httpx.post(f"{page}/api/flows/filter", headers={"Origin": stranger}, json={})
        assert reply.status_code == 403
        with pytest.raises(InvalidStatus), connect(events, origin=Origin(stranger), proxy=None):
            pass
    # A name of the stranger's own that leads to this machine
    reply = httpx.get(f"{page}/api/health", headers={"Host": f"example.com:{port}"})
    assert reply.status_code == 400


# What a first run does until its server answers.
CONNECT = """
import sys
from pathlib import Path
from flows.prefect_server import environment, server
environment.apply("CRITICAL")
server.connect(Path(sys.argv[1])).wait()
"""
# What a server does that hangs while it starts.
HOLD = """
import fcntl, sys, time
lock = open(sys.argv[1], "a")
fcntl.flock(lock, fcntl.LOCK_EX)
print(flush=True)
time.sleep(600)
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PREFECT_HOME without a database."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PREFECT_API_URL", "")  # so that what `connect` sets is undone
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def test_a_server_that_cannot_start_is_reported_with_its_reason(home: Path, tmp_path: Path) -> None:
    (home / "prefect.db").write_bytes(b"no database" * 1000)
    log = tmp_path / "logs" / "server.log"
    log.parent.mkdir()
    log.write_text("ValueError: of an earlier run\n")
    started = time.monotonic()
    with pytest.raises(RunError, match="file is not a database") as caught:
        server.connect(log).wait()
    assert time.monotonic() - started < server.START_SECONDS / 2
    assert str(caught.value).startswith(f"the Prefect server on PREFECT_HOME {home} has ended: ")
    assert str(caught.value).endswith(f"; see {log}")


def test_a_database_of_another_version_gets_a_way_out(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it is moved away, servers make a new one."""
    with contextlib.closing(sqlite3.connect(home / "prefect.db")) as database, database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        database.execute("INSERT INTO alembic_version VALUES ('feedfacecafe')")
    log = tmp_path / "logs" / "server.log"
    with pytest.raises(RunError) as caught:
        server.connect(log).wait()
    assert str(caught.value) == (
        f"another version of Prefect has written {home}/prefect.db; move it away (nothing of the"
        f" store is lost), or set PREFECT_HOME to another folder; see {log}"
    )
    (home / "prefect.db").rename(home / "aside")
    monkeypatch.setenv("PREFECT_API_URL", "")
    start_two(home, tmp_path)


def start_two(home: Path, folder: Path) -> None:
    """Servers of one home start one after another: both of these do, and one makes a database."""
    lock = home / "start.lock"

    def waiting() -> int:
        """How many processes wait for the lock."""
        lines = Path("/proc/locks").read_text().splitlines()
        return sum("-> FLOCK" in line and f":{lock.stat().st_ino} " in line for line in lines)

    with contextlib.ExitStack() as ends:

        def start(script: str, argument: Path) -> "subprocess.Popen[bytes]":
            command = [sys.executable, "-c", script, str(argument)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE)
            ends.enter_context(process)
            ends.callback(process.kill)
            return process

        holder = start(HOLD, lock)
        assert holder.stdout is not None
        holder.stdout.readline()
        runs = [start(CONNECT, folder / name / "logs" / "server.log") for name in ("one", "two")]
        deadline = time.monotonic() + server.START_SECONDS
        while waiting() < len(runs):
            assert time.monotonic() < deadline, "a server starts while another one does"
            time.sleep(0.1)
        assert not (home / "prefect.db").exists()
        holder.kill()
        assert [run.wait(timeout=120) for run in runs] == [0, 0]
    assert (home / "prefect.db").stat().st_mode & 0o077 == 0


ENDS = {
    "print('ValueError: no room\\n(more)\\nERROR: failed'); exit(3)": "ValueError: no room",
    "print('ERROR: port in use\\n'); exit(1)": "ERROR: port in use",
    "exit(4)": "exit code 4",
    "import os; print('ValueError: harmless', flush=True); os.kill(os.getpid(), 9)":
        "killed by SIGKILL",
}  # fmt: skip


@pytest.mark.parametrize("script", ENDS)
def test_a_server_that_ends_later_is_reported_with_its_reason(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    log.write_text("OSError: of an earlier run\n")
    with log.open("a") as output:
        command = [sys.executable, "-c", f"input(); {script}"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output)
    monkeypatch.setattr(server, "healthy", lambda *_: process.poll() is None)
    own = Server("http://127.0.0.1:9/api", log, process, log.stat().st_size)

    def use() -> None:
        with own.available():
            process.communicate(b"\n")
            raise ConnectionError

    with pytest.raises(RunError, match=f" has ended: {ENDS[script]}; see {log}$"):
        use()
    log.unlink()  # together with the scratch folder
    with pytest.raises(RunError, match=f"; see {log}$"):
        own.wait()


ASKED = httpx.Request("POST", "http://127.0.0.1:9/api/flow_runs/")


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (ObjectNotFound(ValueError()), "does not know this run any more, since its database is"),
        (
            httpx.HTTPStatusError("", request=ASKED, response=httpx.Response(500)),
            "answers 500; see",
        ),
        (httpx.ConnectError("refused"), "did not answer for a moment; run the same command"),
    ],
)
def test_a_server_that_has_come_back_is_named(
    error: Exception, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was killed between two requests, perhaps with its database, or cannot write that."""
    monkeypatch.setattr(server, "answers", lambda *_: True)
    given = Server("http://127.0.0.1:9/api", None)
    with pytest.raises(RunError, match=problem), given.available():
        raise error
    with pytest.raises(ValueError, match="ours"), given.available():
        raise ValueError("ours")


def test_a_slow_server_gets_time_and_is_not_called_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[httpx.Timeout] = []

    def only_at_first(url: str, timeout: httpx.Timeout) -> bool:
        asked.append(timeout)
        return len(asked) == 1

    monkeypatch.setattr(server, "answers", only_at_first)
    given = Server("http://127.0.0.1:9/api", None)
    with pytest.raises(RunError, match="in time; see its load, then run the"), given.available():
        raise httpx.ReadTimeout("")
    assert {(t.connect, t.read) for t in asked} == {(server.ANSWER_SECONDS, server.SLOW_SECONDS)}


class Dying(BaseHTTPRequestHandler):
    """A server that is healthy until the first request that is more than a look at it."""

    def do_GET(self) -> None:
        looks = {"/api/health": (200, b"true"), "/api/flows/filter": (200, b"[]"),
                 "/api/csrf-token": (404, b"{}")}  # fmt: skip
        path = self.path.partition("?")[0]
        if path not in looks:
            self.server.shutdown()
            self.server.server_close()
            self.close_connection = True
            return
        self.rfile.read(int(self.headers["Content-Length"] or 0))
        status, body = looks[path]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_: object) -> None: ...


@pytest.mark.parametrize("command", ["run m.csv", "evaluate"])
def test_a_server_that_goes_away_is_told_in_one_line(command: str, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("id,prompt\nduck,a duck\n")
    if command == "evaluate":
        make(open_store(tmp_path / "store"), tmp_path, spec(), "first")
    with ThreadingHTTPServer(("127.0.0.1", 0), Dying) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/api"
        said = subprocess.run(
            [*SJC, *command.split()],
            cwd=tmp_path,
            env=os.environ | {"PREFECT_API_URL": url},
            capture_output=True,
            text=True,
            timeout=180,
        )
        server.shutdown()
        thread.join()
    assert said.returncode == 1, said.stderr
    assert "Traceback" not in said.stderr
    assert said.stderr.splitlines()[-1].startswith(f"sjc: the Prefect server at {url} does not")
