"""The S3 store and a live server in this process, some of whose replies a proxy makes up.

What networks and servers do wrong is in test_faults.py, with a real server.
"""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from fault_proxy import Fault, FaultProxy

from tasks.store import open_store, s3_client
from tasks.store import s3 as store_s3
from tasks.store.interface import (
    AlreadyCommitted,
    Damaged,
    Listed,
    NotInStore,
    Store,
    StoreError,
    WrongBytes,
    bytes_digest,
    md5_digest,
    read_checked,
)
from tasks.store.s3 import S3Store

PUT = r"^PUT .*/mesh\.glb"


@pytest.fixture
def faulty(
    s3_environment: str, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FaultProxy]:
    """The way to the server that has the bucket of `s3_url`."""
    server = urlsplit(s3_environment)
    with FaultProxy((str(server.hostname), server.port or 0)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        yield proxy


def test_an_upload_that_always_arrives_damaged_fails(faulty: FaultProxy, s3_url: str) -> None:
    store = open_store(s3_url)
    bad = faulty.add(Fault("status", PUT, times=None, status=400, code="BadDigest"))
    with pytest.raises(WrongBytes, match="arrives damaged, again and again"):
        store.put_bytes("mesh.glb", b"content")
    assert bad.hits == len(store_s3.PAUSES)


def test_a_file_that_another_run_was_faster_to_write_stays(
    faulty: FaultProxy, s3_url: str, s3_environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It commits between our look and our write."""
    store = open_store(s3_url)
    faulty.add(Fault("delay", PUT, seconds=5))
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_environment)
    other = open_store(s3_url)

    def commit() -> None:
        while not faulty.happened:
            time.sleep(0.01)
        other.put_bytes("mesh.glb", b"theirs")

    faster = threading.Thread(target=commit)
    faster.start()
    with pytest.raises(AlreadyCommitted):
        store.put_bytes("mesh.glb", b"ours")
    faster.join()
    assert store.get_bytes("mesh.glb") == b"theirs"


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        ("ExpiredToken", "expired; renew them and run the same command again"),
        ("RequestTimeTooSkewed", "clock is wrong"),
        ("AccessDenied", "allow them to read, write and delete there"),
        ("SignatureDoesNotMatch", "secret key is wrong"),
    ],
)
def test_refusals_say_what_to_do(faulty: FaultProxy, s3_url: str, code: str, advice: str) -> None:
    store = open_store(s3_url)
    faulty.add(Fault("status", PUT, status=403, code=code))
    with pytest.raises(StoreError, match=rf"Cannot write {s3_url}/mesh\.glb: .*{advice}"):
        store.put_bytes("mesh.glb", b"content")


def test_an_unwritable_bucket_is_found_at_once(faulty: FaultProxy, s3_url: str) -> None:
    faulty.add(Fault("status", "^PUT", times=None, status=403, code="AccessDenied"))
    with pytest.raises(StoreError, match=rf"Cannot use {s3_url}: .*allow them"):
        open_store(s3_url)
    assert open_store(s3_url, writable=False).exists("mesh.glb") is False


def test_a_missing_bucket_is_found_at_once(s3_environment: str) -> None:
    with pytest.raises(StoreError, match=r"s3://no-such-bucket/x: the bucket does not exist"):
        open_store("s3://no-such-bucket/x")


def test_missing_credentials_are_found_at_once(
    s3_environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreError, match="no complete AWS credentials; check AWS_ACCESS_KEY_ID"):
        open_store("s3://bucket/x")


def test_a_missing_profile_is_no_matter_of_the_network(
    s3_environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StoreError, match=r"profile \(nobody\) could not be found; correct AWS_PRO"):
        open_store("s3://bucket/x")


def test_an_unreachable_server_is_found_at_once(
    s3_environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_client, "FIRST_ATTEMPTS", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    with pytest.raises(StoreError, match="check AWS_ENDPOINT_URL_S3 and the network"):
        open_store("s3://bucket/x")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "not a url")
    with pytest.raises(StoreError, match="check AWS_ENDPOINT_URL_S3 and the network"):
        open_store("s3://bucket/x")


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"])
def test_an_endpoint_with_credentials_is_refused_and_not_repeated(
    s3_environment: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    monkeypatch.setenv(name, "http://key:secret@127.0.0.1:1")
    with pytest.raises(StoreError, match=f"There are credentials.* in {name}") as caught:
        open_store("s3://bucket/x")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["s3://", "s3:///x", "s3://UPPER_case!/x", "s3://bucket/../x"])
def test_bad_addresses_are_refused(s3_environment: str, url: str) -> None:
    with pytest.raises(StoreError):
        open_store(url)


def test_the_whole_bucket_can_be_a_store(s3_url: str) -> None:
    bucket = s3_url.split("/")[2]
    whole, part = open_store(f"s3://{bucket}"), open_store(f"s3://{bucket}/a/b/")
    part.put_bytes("x", b"x")
    assert list(whole.list()) == ["a/b/x"]
    assert list(part.list()) == ["x"]
    assert whole.get_bytes("a/b/x") == b"x"


def test_a_probe_left_behind_is_invisible(s3_url: str) -> None:
    bucket, _, prefix = s3_url.removeprefix("s3://").partition("/")
    boto3.client("s3").put_object(Bucket=bucket, Key=f"{prefix}/.probe-1234", Body=b"sjc")
    assert list(open_store(s3_url).list()) == []


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("mesh.glb", "model/gltf-binary"),
        ("report.html", "text/html; charset=utf-8"),
        ("attempt.json", "application/json"),
        ("turntable.mp4", "video/mp4"),
        ("preview.png", "image/png"),
        ("thumbnail.webp", "image/webp"),
        ("part.parquet", "application/octet-stream"),
    ],
)
def test_objects_carry_their_hash_and_type(s3_url: str, name: str, kind: str) -> None:
    store = open_store(s3_url)
    stored = store.put_bytes(f"a/{name}", b"glTF")
    bucket, _, prefix = s3_url.removeprefix("s3://").partition("/")
    head = boto3.client("s3").head_object(Bucket=bucket, Key=f"{prefix}/a/{name}")
    assert head["Metadata"] == {"sha256": stored.sha256}
    assert head["ContentType"] == kind


def test_parts_are_sent_one_after_the_other_since_all_of_them_are_in_memory(
    s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_s3, "MULTIPART_BYTES", 5 << 20)
    store, sent = open_store(s3_url), list[threading.Thread]()
    assert isinstance(store, S3Store)
    store._client.meta.events.register(
        "before-call.s3.UploadPart", lambda **_: sent.append(threading.current_thread())
    )
    store.put_bytes("mesh.glb", bytes(3 * (5 << 20)))
    assert sent == [threading.current_thread()] * 3


def test_a_large_file_goes_in_parts_with_its_hash_and_type(
    s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store_s3.MULTIPART_BYTES > 5 << 20, "the least that servers take"
    monkeypatch.setattr(store_s3, "MULTIPART_BYTES", 5 << 20)
    store, file = open_store(s3_url), tmp_path / "mesh.glb"
    bucket, _, prefix = s3_url.removeprefix("s3://").partition("/")
    for size, parts in (((5 << 20) - 1, 0), (5 << 20, 1), ((5 << 20) + 1, 2)):
        file.write_bytes(os.urandom(size))
        stored = store.put_file(f"{parts}/mesh.glb", file)
        head = boto3.client("s3").head_object(Bucket=bucket, Key=f"{prefix}/{parts}/mesh.glb")
        assert head["Metadata"] == {"sha256": stored.sha256}
        assert head["ContentType"] == "model/gltf-binary"
        assert head["ContentLength"] == stored.bytes == size
        assert head["ETag"].endswith(f'-{parts}"') == ("-" in head["ETag"]) == bool(parts)
        assert store.get_bytes(f"{parts}/mesh.glb") == file.read_bytes()
        md5 = None if parts else md5_digest(file.read_bytes())
        assert store.listed(f"{parts}/mesh.glb") == Listed(size, md5)


# --- what is damage, and what could not be read -----------------------------------------------


@pytest.fixture
def store(s3_url: str, faulty: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Behind the proxy; botocore does not wait."""
    backoff = "botocore.retries.standard.ExponentialBackoff.delay_amount"
    monkeypatch.setattr(backoff, lambda *_: 0.0)
    monkeypatch.setattr(store_s3, "PAUSES", (0.0, 0.0, 0.0))
    return open_store(s3_url)


def not_damage(error: pytest.ExceptionInfo[StoreError]) -> bool:
    return not isinstance(error.value, Damaged | NotInStore)


def test_a_404_for_what_is_listed_is_not_believed(
    store: Store, faulty: FaultProxy, tmp_path: Path
) -> None:
    store.put_bytes("a/x", b"content")
    missing: dict[str, Any] = {"times": None, "status": 404, "code": "NoSuchKey"}
    faulty.add(Fault("status", r"^(GET|HEAD) .*/a/x ", **missing))
    for read in (store.get_bytes, store.exists, lambda key: store.download(key, tmp_path / "x")):
        with pytest.raises(StoreError, match="answers 404 and has it all the same") as caught:
            read("a/x")
        assert not_damage(caught)
    faulty.clear()
    faulty.add(Fault("status", r"^(GET|HEAD) .*/a/x ", **missing | {"times": 2}))
    assert store.get_bytes("a/x") == b"content", "a moment later it is there"
    assert not store.exists("a/y")
    with pytest.raises(NotInStore):
        store.get_bytes("a/y")


def test_reads_are_repeated_after_pauses(
    store: Store, faulty: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put_bytes("a/x", b"content")
    faulty.add(Fault("status", r"^(GET|HEAD) .*/a/x ", times=None, status=404, code="NoSuchKey"))
    slept: list[float] = []
    monkeypatch.setattr(store_s3, "time", SimpleNamespace(sleep=slept.append))
    monkeypatch.setattr(store_s3, "PAUSES", (0.0, 1.0, 2.0))
    for read in (store.get_bytes, store.exists):
        with pytest.raises(StoreError, match="answers 404"):
            read("a/x")
    assert slept == [0, 1, 2, 0, 1, 2]


def test_what_is_there_is_found_without_a_pause(
    s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(s3_url)
    store.put_bytes("a/x", b"content")
    slept: list[float] = []
    monkeypatch.setattr(store_s3, "time", SimpleNamespace(sleep=slept.append))
    assert store.exists("a/x")
    assert not store.exists("a/y")
    assert store.get_bytes("a/x") == b"content"
    assert set(slept) == {0}


def test_what_writers_left_behind_is_found_once_it_is_old(s3_url: str) -> None:
    store, client = open_store(s3_url), boto3.client("s3")
    bucket, _, prefix = s3_url.removeprefix("s3://").partition("/")
    for name in (f"{prefix}/.probe-1234", f"{prefix}/a/.probe-1234", "other/.probe-1234"):
        client.put_object(Bucket=bucket, Key=name, Body=b"sjc")
    for name in (f"{prefix}/a/mesh.glb", "other/mesh.glb"):
        client.create_multipart_upload(Bucket=bucket, Key=name)
    any_age, left = timedelta(hours=-1), [".probe-1234", "a/mesh.glb (multipart upload)"]
    assert store.leftovers(timedelta(days=20_000), remove=True) == []
    assert store.leftovers(any_age, remove=False) == left
    assert store.leftovers(any_age, remove=True) == left
    assert store.leftovers(any_age, remove=True) == []
    assert len(list(store.list())) == 0
    assert len(client.list_multipart_uploads(Bucket=bucket)["Uploads"]) == 1


def test_a_folder_that_a_console_made_is_no_name_within_itself(s3_url: str) -> None:
    """Consoles make an object whose key ends in a slash."""
    store = open_store(s3_url)
    bucket, _, prefix = s3_url.removeprefix("s3://").partition("/")
    boto3.client("s3").put_object(Bucket=bucket, Key=f"{prefix}/a/", Body=b"")
    for key in ("a/y", "a/b/x", "a/z"):
        store.put_bytes(key, b"content")
    assert store.names("a") == ["b/", "y", "z"]


UPLOADS = [
    Fault("status", PUT, status=400, code="BadDigest"),
    Fault("status", PUT, status=400, code="XAmzContentSHA256Mismatch", times=2),
    Fault("status", PUT, status=409, code="ConditionalRequestConflict"),
    Fault("lose-reply", PUT, times=None),
    Fault("reset-request", PUT, after=3),
]


@pytest.mark.parametrize("fault", UPLOADS, ids=lambda fault: fault.code + fault.kind)
@pytest.mark.parametrize("replace", [False, True])
def test_an_upload_gets_there(
    store: Store, faulty: FaultProxy, fault: Fault, replace: bool
) -> None:
    fault = faulty.add(dataclasses.replace(fault))
    assert store.put_bytes("a/mesh.glb", b"content", replace=replace) == bytes_digest(b"content")
    assert fault.hits
    faulty.clear()
    assert store.get_bytes("a/mesh.glb") == b"content"


def test_a_write_that_is_refused_for_a_file_that_is_not_there_is_an_error(
    store: Store, faulty: FaultProxy
) -> None:
    """Such as one that a proxy's cache knows."""
    refusal = Fault("status", PUT, times=None, status=412, code="PreconditionFailed")
    refused = faulty.add(refusal)
    with pytest.raises(
        StoreError, match=r"Cannot write .*/a/mesh\.glb: the server answers 404 and"
    ):
        store.put_bytes("a/mesh.glb", b"content")
    assert refused.hits == len(store_s3.PAUSES)
    faulty.clear()
    assert list(store.list()) == []


def test_a_reply_that_is_cut_leaves_nothing_in_what_comes_after(
    store: Store, faulty: FaultProxy, tmp_path: Path
) -> None:
    stored = store.put_bytes("a/x", b"content")
    for kind in ("truncate-reply", "corrupt-reply", "shorten-reply"):
        for read in (store.get_bytes, lambda key: store.download(key, tmp_path / "x")):
            fault = faulty.add(Fault(kind, r"^GET .*/a/x ", times=2, after=3))
            assert read("a/x") in (b"content", stored)
            assert fault.hits == 2
    assert (tmp_path / "x").read_bytes() == b"content"


@pytest.mark.parametrize("kind", ["truncate-reply", "shorten-reply", "corrupt-reply"])
def test_what_is_spoiled_on_the_way_is_no_damage(
    store: Store, faulty: FaultProxy, kind: Any, tmp_path: Path
) -> None:
    stored = store.put_bytes("a/x", b"content")
    boto3.client("s3").put_object(
        Bucket=store.url.split("/")[2], Key="some/prefix/a/copied", Body=b"content"
    )  # without our SHA-256, as other programs copy it
    faulty.add(Fault(kind, r"^GET .*/a/", times=None, after=3))

    def check(data: bytes) -> None:
        if bytes_digest(data) != stored:
            raise ValueError("it is not the content")

    for key in ("a/x", "a/copied"):
        with pytest.raises(StoreError, match=r"cut short|not what the store lists") as caught:
            read_checked(store, key, check)
        assert not_damage(caught)
    with pytest.raises(StoreError, match="cut short or altered") as caught:
        store.download("a/x", tmp_path / "x", stored.sha256)
    assert not_damage(caught)
    assert list(tmp_path.glob("*x*")) == []


@pytest.mark.parametrize(
    ("head", "known"),
    [
        ({}, True),
        ({"ServerSideEncryption": "AES256"}, True),
        ({"ServerSideEncryption": "aws:kms"}, False),
        ({"SSECustomerAlgorithm": "AES256"}, False),
    ],
)
def test_what_a_users_key_encrypts_has_no_md5(
    store: Store, monkeypatch: pytest.MonkeyPatch, head: dict[str, str], known: bool
) -> None:
    assert isinstance(store, S3Store)
    store.put_bytes("a/x", b"content")
    monkeypatch.setattr(store._client, "head_object", lambda **_: head)
    assert store.listed("a/x") == Listed(7, md5_digest(b"content") if known else None)


@pytest.mark.parametrize("copied", [None, b"cont"])
def test_a_move_deletes_nothing_before_the_copy_is_whole(
    store: Store, monkeypatch: pytest.MonkeyPatch, copied: bytes | None
) -> None:
    assert isinstance(store, S3Store)
    store.put_bytes("a/x", b"content")

    def copy(**_: Any) -> None:
        if copied:
            store.put_bytes("a/aside", copied)

    monkeypatch.setattr(store._client, "copy_object", copy)
    with pytest.raises(StoreError, match="the copy is not like it, and nothing was deleted"):
        store.move("a/x", "a/aside")
    assert store.get_bytes("a/x") == b"content"


def test_wrong_bytes_in_the_bucket_are_damage(store: Store, tmp_path: Path) -> None:
    stored = store.put_bytes("a/x", b"content")
    for metadata in ({}, {"sha256": stored.sha256}):  # by another program; by a broken disk
        boto3.client("s3").put_object(
            Bucket=store.url.split("/")[2],
            Key="some/prefix/a/x",
            Body=b"CONTENT",
            Metadata=metadata,
        )
        with pytest.raises(Damaged, match=r"a/x is damaged \(its SHA-256 is .* and should be"):
            store.download("a/x", tmp_path / "x", stored.sha256)
    with pytest.raises(Damaged):
        store.get_bytes("a/x")
    store.move("a/x", "a/aside")
    assert list(store.list()) == ["a/aside"]


def test_a_file_that_is_replaced_while_it_is_read_is_read_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put_bytes("a/x", b"old and long")
    listed = type(store).listed

    def replaced(self: Store, key: str) -> Any:
        self.put_bytes(key, b"new", replace=True)
        return listed(self, key)

    def check(data: bytes) -> bytes:
        if data != b"new":
            raise ValueError("old")
        return data

    monkeypatch.setattr(type(store), "listed", replaced)
    assert read_checked(store, "a/x", check) == b"new"
