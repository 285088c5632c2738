"""The S3 store against a live server whose requests and replies are tampered with on the way."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from tasks import s3_client, store_s3
from tasks.store import AlreadyCommitted, StoreError, open_store

Application = Callable[[dict[str, Any], Any], Iterable[bytes]]
Fault = Callable[[Application, dict[str, Any], Any], Iterable[bytes] | None]


class FaultyServer:
    """A moto server; `fault` may answer, change or drop what passes."""

    def __init__(self) -> None:
        self.fault: Fault | None = None
        self.requests: list[str] = []
        moto = DomainDispatcherApplication(create_backend_app)

        def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            self.requests.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
            if self.fault is not None:
                reply = self.fault(moto, environ, start_response)
                if reply is not None:
                    return reply
            return moto(environ, start_response)

        self.server = make_server("127.0.0.1", 0, application, threaded=True)
        self.thread = threading.Thread(target=self.server.serve_forever)

    def __enter__(self) -> FaultyServer:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def faulty(s3_environment: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    with FaultyServer() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.server.port}")
        boto3.client("s3").create_bucket(Bucket="faulty")
        yield server
        boto3.client("s3").delete_object(Bucket="faulty", Key="x/mesh.glb")
        boto3.client("s3").delete_bucket(Bucket="faulty")


def error_reply(status: str, code: str) -> Callable[[Any], Iterable[bytes]]:
    def reply(start_response: Any) -> Iterable[bytes]:
        body = f"<Error><Code>{code}</Code><Message>m</Message></Error>".encode()
        start_response(status, [("Content-Length", str(len(body)))])
        return [body]

    return reply


def once(method: str, query: str, answer: Callable[[Any], Iterable[bytes]], after: bool) -> Fault:
    """Answer the first matching request with `answer`, `after` the server has handled it or not."""
    seen: list[bool] = []

    def fault(app: Application, environ: dict[str, Any], start: Any) -> Iterable[bytes] | None:
        mesh = environ["PATH_INFO"].endswith("mesh.glb")
        if seen or not mesh or environ["REQUEST_METHOD"] != method:
            return None
        if query not in environ["QUERY_STRING"]:
            return None
        seen.append(True)
        if after:
            list(app(environ, lambda *_: None))
        return answer(start)

    return fault


def test_a_damaged_upload_is_sent_again(faulty: FaultyServer) -> None:
    store = open_store("s3://faulty/x")
    faulty.fault = once("PUT", "", error_reply("400 Bad Request", "BadDigest"), after=False)
    store.put_bytes("mesh.glb", b"content")
    assert store.get_bytes("mesh.glb") == b"content"
    assert faulty.requests.count("PUT /faulty/x/mesh.glb") == 2


def test_an_upload_that_always_arrives_damaged_fails(faulty: FaultyServer) -> None:
    store = open_store("s3://faulty/x")
    bad = error_reply("400 Bad Request", "BadDigest")

    def fault(_: Application, environ: dict[str, Any], start: Any) -> Iterable[bytes] | None:
        return bad(start) if environ["REQUEST_METHOD"] == "PUT" else None

    faulty.fault = fault
    with pytest.raises(StoreError, match="BadDigest"):
        store.put_bytes("mesh.glb", b"content")
    assert faulty.requests.count("PUT /faulty/x/mesh.glb") == store_s3.TRANSFERS


def test_a_put_whose_reply_is_lost_counts(faulty: FaultyServer) -> None:
    """botocore repeats the PUT and meets its own first one (412)."""
    store = open_store("s3://faulty/x")
    lost = error_reply("500 Internal Server Error", "InternalError")
    faulty.fault = once("PUT", "", lost, after=True)
    store.put_bytes("mesh.glb", b"content")
    assert store.get_bytes("mesh.glb") == b"content"


def test_a_multipart_whose_last_reply_is_lost_counts(
    faulty: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_s3, "MULTIPART_BYTES", 5 << 20)
    source = tmp_path / "mesh.glb"
    source.write_bytes(b"0123456789abcdef" * (11 << 16))
    store = open_store("s3://faulty/x")
    lost = error_reply("500 Internal Server Error", "InternalError")
    forgotten = error_reply("404 Not Found", "NoSuchUpload")
    completed: list[bool] = []

    def fault(app: Application, environ: dict[str, Any], start: Any) -> Iterable[bytes] | None:
        if environ["REQUEST_METHOD"] != "POST" or "uploadId" not in environ["QUERY_STRING"]:
            return None
        if completed:  # botocore asks again, and the server has closed the upload
            return forgotten(start)
        completed.append(True)
        list(app(environ, lambda *_: None))
        return lost(start)

    faulty.fault = fault
    stored = store.put_file("mesh.glb", source)
    assert stored.bytes == 11 << 20
    assert store.download("mesh.glb", tmp_path / "copy", stored.sha256) == stored
    assert "POST /faulty/x/mesh.glb" in faulty.requests, "it went as a multipart upload"


def test_a_reply_lost_over_other_content_is_no_success(faulty: FaultyServer) -> None:
    """Between our look and our write another run commits, and our reply is lost."""
    store, other = open_store("s3://faulty/x"), open_store("s3://faulty/x")

    def fault(_: Application, environ: dict[str, Any], start: Any) -> Iterable[bytes] | None:
        if environ["REQUEST_METHOD"] != "PUT":
            return None
        faulty.fault = None
        other.put_bytes("mesh.glb", b"theirs")
        return None

    faulty.fault = fault
    with pytest.raises(AlreadyCommitted):
        store.put_bytes("mesh.glb", b"ours")
    assert store.get_bytes("mesh.glb") == b"theirs"


def tampered(change: Callable[[bytes], bytes], times: int) -> Fault:
    """The first `times` replies to GET have another body under the original length.

    Without checksum headers, as multipart objects and many servers send them, botocore has
    nothing to compare.
    """
    left = [times]

    def fault(app: Application, environ: dict[str, Any], start: Any) -> Iterable[bytes] | None:
        if environ["REQUEST_METHOD"] != "GET" or not left[0]:
            return None
        left[0] -= 1

        def start_without_checksums(status: str, headers: list[tuple[str, str]]) -> Any:
            return start(status, [h for h in headers if "checksum" not in h[0].lower()])

        return [change(b"".join(app(environ, start_without_checksums)))]

    return fault


@pytest.mark.parametrize(
    "change",
    [lambda body: b"X" + body[1:], lambda body: body[: len(body) // 2]],
    ids=["byte flipped", "cut short"],
)
def test_a_damaged_download_is_fetched_again(
    faulty: FaultyServer, tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    store = open_store("s3://faulty/x")
    content = bytes(range(256)) * 1000
    store.put_bytes("mesh.glb", content)
    faulty.fault = tampered(change, times=2)
    store.download("mesh.glb", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content
    faulty.fault = tampered(change, times=99)
    with pytest.raises(StoreError, match="damaged or cut short"):
        store.download("mesh.glb", tmp_path / "again")
    assert sorted(p.name for p in tmp_path.glob("*again*")) == []
    faulty.fault = None


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        ("ExpiredToken", "expired; renew them and run the same command again"),
        ("RequestTimeTooSkewed", "clock is wrong"),
        ("AccessDenied", "allow them to read, write and delete there"),
        ("SignatureDoesNotMatch", "secret key is wrong"),
    ],
)
def test_refusals_say_what_to_do(faulty: FaultyServer, code: str, advice: str) -> None:
    store = open_store("s3://faulty/x")
    faulty.fault = once("PUT", "", error_reply("403 Forbidden", code), after=False)
    with pytest.raises(StoreError, match=rf"Cannot write s3://faulty/x/mesh\.glb: .*{advice}"):
        store.put_bytes("mesh.glb", b"content")


def test_an_unwritable_bucket_is_found_at_once(faulty: FaultyServer) -> None:
    denied = error_reply("403 Forbidden", "AccessDenied")
    faulty.fault = lambda app, environ, start: (
        denied(start) if environ["REQUEST_METHOD"] == "PUT" else None
    )
    with pytest.raises(StoreError, match=r"Cannot use s3://faulty/x: .*allow them"):
        open_store("s3://faulty/x")
    assert open_store("s3://faulty/x", writable=False).exists("mesh.glb") is False
    faulty.fault = None


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
    with whole.filesystem().open_input_file("a/b/x") as file:
        assert file.read() == b"x"


def test_a_probe_left_behind_is_invisible(s3_url: str) -> None:
    bucket, _, prefix = s3_url.removeprefix("s3://").partition("/")
    boto3.client("s3").put_object(Bucket=bucket, Key=f"{prefix}/.probe-1234", Body=b"sjc")
    assert list(open_store(s3_url).list()) == []


def test_objects_carry_their_hash_and_type(s3_url: str) -> None:
    store = open_store(s3_url)
    stored = store.put_bytes("a/mesh.glb", b"glTF")
    bucket, _, prefix = s3_url.removeprefix("s3://").partition("/")
    head = boto3.client("s3").head_object(Bucket=bucket, Key=f"{prefix}/a/mesh.glb")
    assert head["Metadata"] == {"sha256": stored.sha256}
    assert head["ContentType"] == "model/gltf-binary"
