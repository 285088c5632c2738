"""Which Prefect server a run talks to: the given one, that of `sjc ui`, or a new one.

`python -m flows.prefect_server.server` is the server process; it serves the API, and the UI if
asked to.
"""

import argparse
import atexit
import contextlib
import fcntl
import gc
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flows.errors import RunError, UsageError
from flows.prefect_server.database import create_database
from flows.prefect_server.environment import prefect_home, settings_files
from flows.scratch import make_private
from sjc_engine.errors import SettingError
from sjc_engine.worker.parent_death import die_with_parent
from tasks.store.disk import disk_advice

if TYPE_CHECKING:
    import httpx
    from starlette.types import ASGIApp, Receive, Scope, Send

HOST = "127.0.0.1"
START_SECONDS = 120.0  # for our own; 5 to 15 s measured on a quiet machine of two cores
ANSWER_SECONDS = 10.0  # for one that should be up
SLOW_SECONDS = 60.0  # for its answer, once it is connected: it may have many requests before ours
_OTHER_VERSION = "Can't locate revision"  # Alembic's, of a database that it does not know
_ERROR_LINE = re.compile(r"^[\w.]+(?:Error|Exception): .+", re.MULTILINE)  # ends a traceback


def healthy(api_url: str, timeout: "float | httpx.Timeout" = 2.0) -> bool:
    """Whether a server of this program answers there: asked at once, without Prefect's client."""
    import httpx

    try:
        url = httpx.URL(f"{api_url.rstrip('/')}/health")
        # No proxy comes between, and certificates, 45 ms at each call, are of no use
        remote = url.host not in (HOST, "localhost")
        response = httpx.get(url, timeout=timeout, trust_env=remote, verify=remote)
        return response.status_code == httpx.codes.OK
    except (httpx.HTTPError, httpx.InvalidURL):
        return False


def answers(api_url: str, timeout: "float | httpx.Timeout" = 2.0) -> bool:
    """Whether any Prefect server answers, asked as Prefect asks: its TLS, headers, key, proxies.

    SettingError where one refuses our credentials.
    """
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    settings = {PREFECT_API_URL: api_url.rstrip("/"), PREFECT_CLIENT_MAX_RETRIES: 0}
    try:
        with (
            temporary_settings(settings),
            get_client({"timeout": timeout}, sync_client=True) as client,
        ):
            if failure := client.api_healthcheck():
                raise failure
            client.read_flows(limit=1)  # health is for everybody
    except httpx.HTTPStatusError as error:
        if error.response.status_code not in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            return False
        raise SettingError(
            "PREFECT_API_URL",
            f"the server at {api_url} refuses us ({error.response.status_code})",
            "set PREFECT_API_AUTH_STRING, PREFECT_API_KEY or PREFECT_CLIENT_CUSTOM_HEADERS",
        ) from error
    except (OSError, ValueError, httpx.HTTPError, httpx.InvalidURL):  # such as a missing ca.pem
        return False
    return True


def given_server() -> str | None:
    """The address that the user has set: a variable, or else in a file that Prefect reads."""
    if (given := os.environ.get("PREFECT_API_URL")) or not settings_files():
        return given
    from prefect.settings import PREFECT_API_URL

    return PREFECT_API_URL.value()


def _note() -> Path:
    """Where `sjc ui` leaves the address of its API."""
    return prefect_home() / "sjc-ui.json"


def ui_server() -> str | None:
    """The API address of the running `sjc ui` of this PREFECT_HOME."""
    try:
        url = json.loads(_note().read_text("utf-8"))["api_url"]
    except (OSError, ValueError, KeyError):
        return None
    return url if healthy(url) else None


@dataclass(frozen=True)
class Server:
    """A Prefect server that is up or starting.

    log: what ours prints; None for another's. process: ours, when this process has started it.
    log_start: where its output begins in the log, to which every run appends.
    """

    api_url: str
    log: Path | None
    process: "subprocess.Popen[bytes] | None" = None
    log_start: int = 0

    def wait(self) -> None:
        """Blocks until the API answers; RunError, with what to do, when it never will."""
        deadline = time.monotonic() + (START_SECONDS if self.log else ANSWER_SECONDS)
        while not self._answers():
            self._check_process()
            if time.monotonic() > deadline:
                hint = f"see {self.log}" if self.log else "start it, or unset PREFECT_API_URL"
                raise RunError(f"no Prefect server answers at {self.api_url}; {hint}")
            time.sleep(0.1)

    @contextlib.contextmanager
    def available(self) -> Iterator[None]:
        """Waits for the API; what fails in here because of the server is a RunError as well.

        It may have gone again, for a moment too, or be one that does not know our runs.
        """
        self.wait()
        try:
            yield
        except Exception as error:
            import httpx
            from prefect.exceptions import ObjectNotFound

            problem = "does not answer any more; start it, then"
            if not self._answers():
                self._check_process()
                if isinstance(error, httpx.TimeoutException):
                    problem = "does not answer in time; see its load, then"
            elif isinstance(error, ObjectNotFound):
                problem = "does not know this run any more, since its database is another one;"
            elif isinstance(error, httpx.HTTPStatusError) and error.response.is_server_error:
                problem = f"answers {error.response.status_code}; see its log and its disk, then"
            elif isinstance(error, httpx.TransportError):
                problem = "did not answer for a moment;"
            else:
                raise
            raise RunError(
                f"the Prefect server at {self.api_url} {problem} run the same command again to"
                " continue"
            ) from error

    def _answers(self) -> bool:
        import httpx

        ask = healthy if self.log else answers
        try:
            return ask(self.api_url, httpx.Timeout(SLOW_SECONDS, connect=ANSWER_SECONDS))
        except SettingError as error:
            raise RunError(str(error)) from error

    def _check_process(self) -> None:
        """RunError, with the reason, when our own server process has ended."""
        if self.process is None or (code := self.process.poll()) is None:
            return
        reason = f"killed by {signal.Signals(-code).name}" if code < 0 else self._last_error()
        if _OTHER_VERSION in reason:
            database = prefect_home() / "prefect.db"
            raise RunError(
                f"another version of Prefect has written {database}; move it away (nothing of the"
                f" store is lost), or set PREFECT_HOME to another folder; see {self.log}"
            )
        raise RunError(
            f"the Prefect server on PREFECT_HOME {prefect_home()} has ended:"
            f" {reason or f'exit code {code}'}; see {self.log}"
        )

    def _last_error(self) -> str:
        """The last error in what our server has printed, else its last line."""
        assert self.log is not None
        try:
            printed = self.log.read_bytes()[self.log_start :].decode(errors="replace").rstrip()
        except OSError:  # deleted together with the scratch folder
            return ""
        errors = _ERROR_LINE.findall(printed)
        return errors[-1] if errors else printed.rpartition("\n")[2]


def find() -> Server | None:
    """The server that is there for runs, to which PREFECT_API_URL is set: the given one first."""
    if (found := given_server() or ui_server()) is None:
        return None
    os.environ["PREFECT_API_URL"] = found
    return Server(found, None)


def connect(log: Path, *, ui: bool = False) -> Server:
    """Finds a server, or starts one, and sets PREFECT_API_URL to it.

    It returns at once, so that imports happen while the server starts: requests belong inside
    `available`. log: for the output of an own server; ui: whether that one has pages. One without
    answers this process and its children alone, since other users of the machine reach it too. It
    ends with the interpreter, after Prefect's own exit hooks have sent their last records.
    """
    if found := find():
        return found
    if not ui:  # people would have to type it
        password = f"run:{secrets.token_urlsafe()}"
        os.environ["PREFECT_SERVER_API_AUTH_STRING"] = password
        os.environ["PREFECT_API_AUTH_STRING"] = password
    port = free_port()
    command = [sys.executable, "-P", "-m", "flows.prefect_server.server"]
    command += ["--port", str(port), "--parent", str(os.getpid()), *(["--ui"] if ui else [])]
    try:
        make_private(log.parent.parent)  # the scratch folder
        log.parent.mkdir(exist_ok=True)
        opened = log.open("a")
    except OSError as error:
        raise UsageError(f"{log}: {disk_advice(error, '--scratch')}") from error
    with opened as output:
        log_start = output.tell()
        # A separate process group: Ctrl-C must not end it before the run has reported its end.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, process_group=0
        )
    atexit.register(_end, process)
    os.environ["PREFECT_API_URL"] = f"http://{HOST}:{port}/api"
    return Server(os.environ["PREFECT_API_URL"], log, process, log_start)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Stops our server process; one that does not stop is killed."""
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.create_server((HOST, 0)) as probe:
        return int(probe.getsockname()[1])


def only_own_pages(app: "ASGIApp", port: int) -> "ASGIApp":
    """The app for programs and its own pages, not for pages from elsewhere.

    Whoever reaches the API can run code, a browser on this machine reaches it, and Prefect answers
    pages of any origin. Host names are checked as well: one may be made to lead to this machine.
    """
    own = {f"http://{host}:{port}".encode() for host in (HOST, "localhost")}

    async def guarded(scope: "Scope", receive: "Receive", send: "Send") -> None:
        origins = {value for name, value in scope.get("headers", ()) if name == b"origin"}
        if origins <= own:
            await app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            from starlette.responses import PlainTextResponse

            refusal = PlainTextResponse("not for pages of another origin", 403)
            await refusal(scope, receive, send)

    return guarded


def serve(port: int, ui: bool) -> None:
    """Runs a Prefect server in this process until it is stopped.

    Servers of one PREFECT_HOME start one after another: starting migrates the database, and of two
    that migrate one SQLite file at the same time one fails. The lock ends with its process.
    """
    api_url = f"http://{HOST}:{port}/api"
    os.environ["PREFECT_SERVER_API_HOST"] = HOST
    os.environ["PREFECT_SERVER_API_PORT"] = str(port)
    os.environ["PREFECT_API_URL"] = api_url
    os.environ["PREFECT_SERVER_UI_ENABLED"] = str(ui).lower()
    # The types of blocks are for the pages: without them, a second at each start for nothing.
    os.environ.setdefault("PREFECT_API_BLOCKS_REGISTER_ON_START", str(ui).lower())
    os.environ.setdefault("PREFECT_MEMOIZE_BLOCK_AUTO_REGISTRATION", str(ui).lower())
    os.umask(0o077)  # the database holds logs and parameters
    gc.set_threshold(50_000)  # at 700 a quarter of the time to import what all stays
    import uvicorn
    from prefect.server.api.server import create_app
    from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    class LockedStart(uvicorn.Server):
        """Gives the lock free once the database is migrated."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            gc.freeze()  # what is there by now
            lock.close()

    local = TrustedHostMiddleware(create_app(final=True), [HOST, "localhost"])
    app = only_own_pages(local, port)
    config = uvicorn.Config(app, host=HOST, port=port, log_level="error", lifespan="on")
    make_private(prefect_home())
    with (prefect_home() / "start.lock").open("a") as lock, contextlib.suppress(KeyboardInterrupt):
        with contextlib.suppress(OSError):  # on a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        create_database(PREFECT_API_DATABASE_CONNECTION_URL.value())
        LockedStart(config).run()


def serve_ui(port: int) -> None:
    """The server of `sjc ui`, which leaves its address for the runs of this PREFECT_HOME."""
    _note().write_text(json.dumps({"api_url": f"http://{HOST}:{port}/api"}), "utf-8")
    try:
        serve(port, ui=True)
    finally:
        _note().unlink(missing_ok=True)


def main() -> None:
    """The server process of a run, which ends with its parent."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True, help="process id of the parent")
    parser.add_argument("--ui", action="store_true", help="serve the pages too")
    arguments = parser.parse_args()
    die_with_parent(arguments.parent)
    serve(arguments.port, ui=arguments.ui)


if __name__ == "__main__":
    main()
