"""The S3 store and a real server, Swift, with a network between them that is out to spoil it."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import botocore.auth
import pytest
from certificates import write_certificates
from fault_proxy import Fault, FaultProxy
from swift_server import S3Server
from task_samples import fill

from tasks.store import open_store, s3_client
from tasks.store import s3 as store_s3
from tasks.store.interface import StoredFile, StoreError, WrongBytes
from tasks.store.s3 import S3Store
from tasks.tables.read import query

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
BUCKET = "bucket"
PART = 5 << 20
CONTENT = os.urandom(300_000)
LARGE = os.urandom(6 << 20)  # two parts
ANY_AGE = timedelta(seconds=-5)  # servers round the time of an upload up to a second
MESH = r"/mesh\.glb\b"


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate authority of our own, ca.pem, and the server's certificate."""
    return write_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(params=["https"])
def network(
    request: pytest.FixtureRequest,
    swift: S3Server,
    certificates: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[FaultProxy]:
    """The way to the server, as a user's environment names it, HTTPS; botocore does not wait."""
    tls = (certificates / "server.pem", certificates / "server.key")
    with FaultProxy(swift.address, tls if request.param == "https" else None) as proxy:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name, value in swift.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificates / "ca.pem"))
        backoff = "botocore.retries.standard.ExponentialBackoff.delay_amount"
        monkeypatch.setattr(backoff, lambda *_: 0.0)
        monkeypatch.setattr(store_s3, "MULTIPART_BYTES", PART)
        monkeypatch.setattr(s3_client, "CONNECT_SECONDS", 1)  # it bounds a write that stalls too
        yield proxy


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"s3://{BUCKET}/{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]}"


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large.glb"
    path.write_bytes(LARGE)
    return path


def digest(data: bytes) -> StoredFile:
    return StoredFile(len(data), hashlib.sha256(data).hexdigest())


UPLOAD_FAULTS = {
    "500": Fault("status", rf"^PUT .*{MESH}", times=2, status=500, code="InternalError"),
    "503": Fault("status", rf"^PUT .*{MESH}", times=2, status=503, code="SlowDown"),
    "hang": Fault("hang", rf"^PUT .*{MESH}"),
    "slow": Fault("throttle", rf"^PUT .*{MESH}", rate=1_000_000),
    "reset": Fault("reset-request", rf"^PUT .*{MESH}", after=100_000),
    "reset before a byte": Fault("reset-request", rf"^PUT .*{MESH}"),
    "reply lost": Fault("lose-reply", rf"^PUT .*{MESH}"),
    "corrupt": Fault("corrupt-request", rf"^PUT .*{MESH}", after=100_000),
    "BadDigest": Fault("status", rf"^PUT .*{MESH}", times=2, status=400, code="BadDigest"),
}


@pytest.mark.parametrize("network", ["http", "https"], indirect=True)
@pytest.mark.parametrize("fault", UPLOAD_FAULTS.values(), ids=UPLOAD_FAULTS)
def test_an_upload_survives(
    network: FaultProxy, url: str, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_client, "READ_SECONDS", 1)
    fault = network.add(renewed(fault))
    store = open_store(url)
    assert store.put_bytes("a/mesh.glb", CONTENT) == digest(CONTENT)
    assert fault.hits >= 1
    network.clear()
    assert store.get_bytes("a/mesh.glb") == CONTENT
    assert list(store.list()) == ["a/mesh.glb"]


def test_a_listing_of_many_pages_has_all_names(network: FaultProxy, url: str) -> None:
    store = open_store(url)
    assert isinstance(store, S3Store)
    keys = [f"many/{n:02}{rest}" for n in range(11) for rest in ("", "-x", "/x", "/y/z")]
    for key in keys:
        store.put_bytes(key, b"x")
    names = sorted({re.sub("/.+", "/", key.removeprefix("many/")) for key in keys})
    for most in (1, 2, 7, 1000):

        def with_pages(params: dict[str, Any], most: int = most, **_: Any) -> None:
            params["MaxKeys"] = most

        store._client.meta.events.register("provide-client-params.s3.ListObjectsV2", with_pages)
        assert list(store.names("many")) == names, most
        assert list(store.list("many/")) == sorted(keys), most


def renewed(fault: Fault) -> Fault:
    """The same once more: a fault counts."""
    names = ("kind", "match", "skip", "times", "after", "status", "code", "seconds", "rate")
    return Fault(**{name: getattr(fault, name) for name in names})


PART_TWO = rf"^PUT .*{MESH}.*partNumber=2"
COMPLETE = rf"^POST .*{MESH}.*uploadId"
PART_FAULTS = {
    "500": Fault("status", PART_TWO, status=500, code="InternalError"),
    "hang": Fault("hang", PART_TWO),
    "reset mid-part": Fault("reset-request", PART_TWO, after=500_000),
    "corrupt": Fault("corrupt-request", PART_TWO, after=500_000),
    "reply to the part lost": Fault("lose-reply", PART_TWO),
    "reply to the beginning lost": Fault("lose-reply", rf"^POST .*{MESH}.*\?uploads"),
    "503 to the end": Fault("status", COMPLETE, times=2, status=503),
    "reply to the end lost": Fault("lose-reply", COMPLETE),
}


@pytest.mark.parametrize("fault", PART_FAULTS.values(), ids=PART_FAULTS)
def test_a_large_upload_survives(
    network: FaultProxy,
    url: str,
    large: Path,
    tmp_path: Path,
    fault: Fault,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(s3_client, "READ_SECONDS", 2)
    fault = network.add(renewed(fault))
    store = open_store(url)
    assert store.put_file("a/mesh.glb", large) == digest(LARGE)
    assert fault.hits >= 1
    network.clear()
    store.download("a/mesh.glb", tmp_path / "copy", digest(LARGE).sha256)
    assert (tmp_path / "copy").read_bytes() == LARGE
    store.leftovers(ANY_AGE, remove=True)  # the upload whose first reply was lost
    assert store.leftovers(ANY_AGE, remove=False) == []
    assert store.get_bytes("a/mesh.glb") == LARGE, "sweeping takes nothing that was committed"


def test_an_end_whose_reply_is_lost_counts_where_servers_forget(
    network: FaultProxy, url: str, large: Path, tmp_path: Path
) -> None:
    """Swift answers a second CompleteMultipartUpload like the first; others know it no more."""
    store = open_store(url)
    network.add(Fault("lose-reply", COMPLETE))
    forgotten = network.add(Fault("status", COMPLETE, times=None, status=404, code="NoSuchUpload"))
    assert store.put_file("a/mesh.glb", large) == digest(LARGE)
    assert forgotten.hits == 1
    assert store.download("a/mesh.glb", tmp_path / "copy") == digest(LARGE)


DOWNLOAD_FAULTS = {
    "500": Fault("status", rf"^GET .*{MESH}", times=2, status=500, code="InternalError"),
    "hang": Fault("hang", rf"^GET .*{MESH}"),
    "slow": Fault("throttle", rf"^GET .*{MESH}", rate=1_000_000),
    "reset": Fault("reset-reply", rf"^GET .*{MESH}", after=100_000),
    "truncated": Fault("truncate-reply", rf"^GET .*{MESH}", after=100_000),
    "shortened": Fault("shorten-reply", rf"^GET .*{MESH}", after=100_000),
    "corrupt": Fault("corrupt-reply", rf"^GET .*{MESH}", times=2, after=100_000),
}


@pytest.mark.parametrize("fault", DOWNLOAD_FAULTS.values(), ids=DOWNLOAD_FAULTS)
def test_a_download_survives(
    network: FaultProxy, url: str, tmp_path: Path, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_client, "READ_SECONDS", 1)
    store = open_store(url)
    store.put_bytes("a/mesh.glb", CONTENT)
    fault = network.add(renewed(fault))
    assert store.download("a/mesh.glb", tmp_path / "copy") == digest(CONTENT)
    assert fault.hits >= 1
    assert (tmp_path / "copy").read_bytes() == CONTENT


def test_a_download_that_is_always_wrong_is_refused(
    network: FaultProxy, url: str, tmp_path: Path
) -> None:
    store = open_store(url)
    store.put_bytes("a/mesh.glb", CONTENT)
    network.add(Fault("corrupt-reply", rf"^GET .*{MESH}", times=None))
    with pytest.raises(StoreError, match=r"cut short or altered \(its SHA-256 is .*try again"):
        store.download("a/mesh.glb", tmp_path / "copy")
    assert [path.name for path in tmp_path.iterdir()] == []


def test_an_upload_that_always_arrives_damaged_is_worth_another_try(
    network: FaultProxy, url: str
) -> None:
    store = open_store(url)
    network.add(Fault("status", rf"^PUT .*{MESH}", times=None, status=400, code="BadDigest"))
    with pytest.raises(WrongBytes, match="arrives damaged, again and again; check the network"):
        store.put_bytes("a/mesh.glb", CONTENT)


def test_an_upload_that_finds_no_server_fails_in_bounded_time(
    network: FaultProxy, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_client, "READ_SECONDS", 0.2)
    store = open_store(url)
    network.add(Fault("hang", MESH, times=None))
    started = time.monotonic()
    with pytest.raises(StoreError, match=r"Cannot write .*mesh\.glb: Read timeout .*the network"):
        store.put_bytes("a/mesh.glb", CONTENT)
    assert time.monotonic() - started < 10
    assert len(network.happened) <= 3 * s3_client.ATTEMPTS


CODES = {
    "ExpiredToken": "expired; renew them and run the same command again",
    "InvalidToken": "the session token is wrong; renew the credentials",
    "AccessDenied": "allow them to read, write and delete there",
    "SlowDown": "the server answers SlowDown; try again later",
}


@pytest.mark.parametrize("code", CODES)
def test_a_refusal_is_found_at_once_and_explained(network: FaultProxy, url: str, code: str) -> None:
    network.add(Fault("status", times=None, status=503 if code == "SlowDown" else 403, code=code))
    with pytest.raises(StoreError, match=rf"Cannot use {url}: .*{CODES[code]}"):
        open_store(url)


def test_a_server_that_says_nothing_is_found_at_once(
    network: FaultProxy, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_client, "FIRST_READ_SECONDS", 0.2)
    network.add(Fault("hang", times=None))
    started = time.monotonic()
    with pytest.raises(StoreError, match=r"Read timeout .*check AWS_ENDPOINT_URL_S3"):
        open_store(url)
    assert time.monotonic() - started < 5


WRONG = {
    "AWS_SECRET_ACCESS_KEY": ("wrong", "the secret key is wrong"),
    "AWS_ACCESS_KEY_ID": ("nobody:nobody", "AWS_ACCESS_KEY_ID|secret key is wrong"),
    "AWS_CA_BUNDLE": ("{folder}/server.pem", "name the file of the server's .*AWS_CA_BUNDLE"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_setting_is_found_at_once(
    network: FaultProxy, url: str, certificates: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    value, advice = WRONG[name]
    monkeypatch.setenv(name, value.format(folder=certificates))
    with pytest.raises(StoreError, match=f"Cannot use {url}: .*({advice})"):
        open_store(url)


def test_a_missing_bucket_is_found_at_once(network: FaultProxy) -> None:
    with pytest.raises(StoreError, match="no-such-bucket/x: the bucket does not exist; create it"):
        open_store("s3://no-such-bucket/x")


def test_a_wrong_clock_is_found_at_once(
    network: FaultProxy, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind = datetime.now(UTC) - timedelta(hours=2)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda **_: behind)
    with pytest.raises(StoreError, match="this machine's clock is wrong; set it"):
        open_store(url)


TRAILER = "^x-amz-trailer:"


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", TRAILER, times=None, status=411, code="MissingContentLength"),
        Fault("status", TRAILER, times=None, status=501, code="NotImplemented"),
        Fault("corrupt-request", TRAILER, times=None, after=40),
    ],
    ids=["411", "501", "garbled"],
)
def test_a_server_without_trailing_checksums_is_sent_none(
    network: FaultProxy, url: str, large: Path, tmp_path: Path, fault: Fault
) -> None:
    fault = network.add(renewed(fault))
    store = open_store(url)
    assert fault.hits == 1, "the probe found it"
    store.put_bytes("a/mesh.glb", CONTENT)
    store.put_file("a/large.glb", large)
    assert fault.hits == 1
    assert store.get_bytes("a/mesh.glb") == CONTENT
    assert store.download("a/large.glb", tmp_path / "copy") == digest(LARGE)
    assert store.leftovers(ANY_AGE, remove=False) == [], "no probe stays behind"


def test_a_server_that_garbles_everything_is_refused(network: FaultProxy, url: str) -> None:
    network.add(Fault("corrupt-reply", r"^GET .*\.probe-", times=None, after=3))
    with pytest.raises(StoreError, match="is read back as something else; use another server"):
        open_store(url)
    network.clear()
    assert open_store(url).leftovers(ANY_AGE, remove=False) == []


def test_a_killed_upload_is_invisible_and_swept(network: FaultProxy, url: str, large: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tasks.store import s3 as store_s3\n"
        f"store_s3.MULTIPART_BYTES = {PART}\n"
        "store_s3.S3Store(*sys.argv[1].split('/')[2:]).put_file('a/mesh.glb', Path(sys.argv[2]))"
    )
    network.add(Fault("hang", PART_TWO))
    process = subprocess.Popen([sys.executable, "-c", code, url, str(large)], cwd=ROOT)
    while not any(kind == "hang" for kind, _ in network.happened):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    store = open_store(url)
    assert not store.exists("a/mesh.glb")
    assert list(store.list()) == []
    assert store.leftovers(timedelta(hours=1), remove=True) == [], "an upload that may still go on"
    assert store.leftovers(ANY_AGE, remove=True) == ["a/mesh.glb (multipart upload)"]
    assert store.leftovers(ANY_AGE, remove=True) == []
    assert store.put_file("a/mesh.glb", large) == digest(LARGE)


def test_tables_are_read_over_tls(network: FaultProxy, url: str) -> None:
    store = open_store(url)
    store.put_bytes("tables/x.parquet", CONTENT)
    assert store.get_bytes("tables/x.parquet") == CONTENT


def test_tables_survive(network: FaultProxy, url: str, tmp_path: Path) -> None:
    store = open_store(url)
    fill(store, tmp_path)
    sql = "SELECT count(*) AS n, min(length(spec_json)) AS shortest FROM assets"
    whole = query(store, sql).to_pylist()
    assert whole[0]["n"] == 5  # an asset was tried twice in one run
    part = r"^GET .*\.parquet"
    for fault in (
        Fault("status", part, times=2),
        Fault("status", "list-type=2", times=2, status=500, code="InternalError"),
        Fault("reset-reply", part, after=300),
        Fault("truncate-reply", part, after=300),
        Fault("shorten-reply", part, after=300),
        Fault("corrupt-reply", part, after=300, times=2),
    ):
        network.add(fault)
        assert query(store, sql).to_pylist() == whole
        assert fault.hits == (fault.times or 0)


def test_what_was_acknowledged_survives_the_server(
    network: FaultProxy, swift: S3Server, url: str
) -> None:
    store = open_store(url)
    store.put_bytes("a/mesh.glb", CONTENT)
    swift.kill()
    with pytest.raises(StoreError, match="check AWS_ENDPOINT_URL_S3 and the network"):
        store.get_bytes("a/mesh.glb")
    swift.start()
    assert store.get_bytes("a/mesh.glb") == CONTENT
