"""The environment Prefect runs in. It has to stand before `prefect` is first imported."""

import atexit
import contextlib
import importlib.util
import os
import shutil
import tempfile
import tomllib
from pathlib import Path

from flows.errors import UsageError, disk_errors
from flows.scratch import make_private

ROOM = 8 << 20  # bytes: a new database takes 3 MB, and its journal as much again

# Measured on Prefect 3.8: without the recorder settings a server takes in 15 events a second
# instead of 430, and the first start of an embedded server needs more than the default 20 s.
_DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",  # nothing is ever unpickled
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
    "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    # A server with too many requests at once answers 500 or 503: all its database connections are
    # taken, or SQLite is locked. Seven further tries take four minutes, five took one.
    "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500,504",
    "PREFECT_CLIENT_MAX_RETRIES": "7",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PY_KEY_VALUE_DISABLE_BEARTYPE": "true",  # docket's checks of types, compiled at each start
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # transformers' bars too, which would cut our lines
}


def prefect_home() -> Path:
    """`PREFECT_HOME`, or our own folder so that a user's other Prefect work stays apart."""
    if given := os.environ.get("PREFECT_HOME"):
        return Path(given)
    return _own_home()


def _own_home() -> Path:
    try:
        return Path.home() / ".prefect" / "sjc"
    except RuntimeError as error:  # in a container: no HOME, and a user without an entry
        raise UsageError("there is no home folder; set HOME or PREFECT_HOME") from error


def _profiles() -> Path | None:
    """The file of the user's own Prefect, if its active profile says how to reach a server.

    Our home is another, so that Prefect would not find it. Other profiles stay apart.
    """
    if {"PREFECT_HOME", "PREFECT_PROFILES_PATH"} & os.environ.keys():
        return None
    path = Path.home() / ".prefect" / "profiles.toml"
    try:
        found = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError):  # none, or for Prefect itself to complain of
        return None
    name = os.environ.get("PREFECT_PROFILE") or found.get("active")
    profile = found.get("profiles", {}).get(name, {})
    # Without an address it may have Prefect's own database, which is not for our server.
    return path if "PREFECT_API_URL" in profile or "PREFECT_API_URL" in os.environ else None


def use_local_home() -> None:
    """Has a server of this run keep its database on this machine, unless PREFECT_HOME was given.

    Home folders of clusters are shared by their machines, and SQLite's locks do not reach so far.
    The database ends with this process: what a run has made is in its store.
    """
    if os.environ["PREFECT_HOME"] == str(_own_home()):
        with disk_errors("TMPDIR", Path(tempfile.gettempdir())):
            home = tempfile.mkdtemp(prefix="sjc-prefect-")
        atexit.register(shutil.rmtree, home, ignore_errors=True)
        os.environ["PREFECT_HOME"] = home


def settings_files() -> bool:
    """Whether a file may set Prefect's PREFECT_API_URL; only then is it worth asking Prefect."""
    named = os.environ.get("PREFECT_PROFILES_PATH") or _profiles()
    places = {
        named or prefect_home() / "profiles.toml": "PREFECT_API_URL",
        ".env": "PREFECT_API_URL",
    }
    places |= {"prefect.toml": "", "pyproject.toml": "tool.prefect"}
    for place, mark in places.items():
        with contextlib.suppress(OSError):
            if mark.encode() in Path(place).read_bytes():
                return True
    return False


def _bypass_proxies() -> None:
    """Lets no proxy come between this process, or its children, and servers on loopback."""
    hosts = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    missing = [host for host in ("127.0.0.1", "localhost") if host not in hosts.split(",")]
    if missing and hosts.strip() != "*":
        hosts = ",".join([*filter(None, [hosts]), *missing])
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = hosts
    if importlib.util.find_spec("socksio") is None:  # without it httpx makes no client at all
        for name in ("ALL_PROXY", "all_proxy"):
            if os.environ.get(name, "").startswith("socks"):
                del os.environ[name]


def apply(console_level: str = "WARNING") -> None:
    """Sets what the user has not set, and makes the home private: logs and parameters lie there.

    console_level: the lowest level of Prefect's log records on the terminal. All records go to
    the server in any case. Raises UsageError for a home that cannot be written, or has no room: a
    server on it would never answer.
    """
    _bypass_proxies()
    home = prefect_home()
    with disk_errors("PREFECT_HOME", home):
        make_private(home)
        if "PREFECT_HOME" not in os.environ:
            home.chmod(0o700)
        with tempfile.TemporaryFile(dir=home) as probe:
            probe.write(bytes(ROOM))
    defaults = _DEFAULTS | {
        "PREFECT_HOME": str(home),
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": console_level,
    }
    if profiles := _profiles():
        defaults["PREFECT_PROFILES_PATH"] = str(profiles)
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
