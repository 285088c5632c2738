"""The surroundings of all tests: one thread per process, a Prefect home and server of their own."""

import atexit
import gc
import os
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import botocore.session
import ceph_server
import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication
from moto.server import ThreadedMotoServer
from swift_server import S3Server, SwiftServer, unavailable

# Before prefect and torch are imported anywhere, and inherited by every process a test starts.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="sjc-tests-prefect-")
os.environ.pop("PREFECT_API_URL", None)
os.environ.pop("SJC_STORE", None)

from flows.prefect_server import environment
from flows.prefect_server.database import create_database

atexit.register(shutil.rmtree, os.environ["PREFECT_HOME"], ignore_errors=True)
environment.apply(console_level="CRITICAL")
gc.set_threshold(50_000)  # at 700 a fifth of the time to import what all stays: the tests first

# Each store on S3 has a session of its own, whose first client reads S3's model: 60 ms of a core.
botocore.session.create_loader = cache(botocore.session.create_loader)
# moto finds out which of its 190 services a host is at each request: a third of its time.
DomainDispatcherApplication.get_backend_for_host = cache(  # type: ignore[method-assign]
    DomainDispatcherApplication.get_backend_for_host
)

# A shell's background job starts with Ctrl-C ignored, and so would every process a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, those with slow tests and then those with many: short ones end together."""
    slow = {i.path for i in items if i.get_closest_marker("slow") or i.get_closest_marker("system")}
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path not in slow, -tests[item.path]))


@pytest.fixture(autouse=True)
def no_server_of_another_test() -> Iterator[None]:
    """What a command in this process sets for the server that it starts ends with the test."""
    yield
    for name in ("API_URL", "API_AUTH_STRING", "SERVER_API_AUTH_STRING"):
        os.environ.pop(f"PREFECT_{name}", None)


@pytest.fixture
def prefect_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of this test alone, where no server is up."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    monkeypatch.setenv("PREFECT_HOME", str(home))
    return home


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prefect server for this session; processes find it through PREFECT_API_URL = this."""
    from prefect.settings import PREFECT_API_URL
    from prefect.testing import utilities

    folder = tmp_path_factory.mktemp("harness")
    create_database(f"sqlite:///{folder}/prefect-test.db")
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(utilities, "mkdtemp", lambda: str(folder))
            patch.setenv("PREFECT_API_BLOCKS_REGISTER_ON_START", "false")  # nobody looks at them
            patch.setenv("PREFECT_MEMOIZE_BLOCK_AUTO_REGISTRATION", "false")
            stack.enter_context(utilities.prefect_test_harness(server_startup_timeout=120))
        yield str(PREFECT_API_URL.value())


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A live S3 server in this process; it forgets nothing between tests."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_environment(s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The environment of a user with credentials for the server; returns its address."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tester")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    return s3_endpoint


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server, with one bucket of this name; with S3_SERVER=ceph it is Ceph."""
    ceph = os.environ.get("S3_SERVER") == "ceph"
    folder = tmp_path_factory.mktemp("s3")
    if reason := ceph_server.unavailable() if ceph else unavailable(folder):
        pytest.skip(reason)
    with ceph_server.CephServer(folder / "ceph") if ceph else SwiftServer(folder) as server:
        server.make_bucket("bucket")
        yield server


@pytest.fixture(scope="session")
def judge(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A judge that knows nothing, and loads in no time."""
    from tiny_clip import save_tiny_clip

    folder = tmp_path_factory.mktemp("judge")
    save_tiny_clip(folder)
    return str(folder)
