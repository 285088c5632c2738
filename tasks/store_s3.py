"""The S3 store: a bucket and a prefix, through boto3.

`tasks.s3_client` makes the client. botocore repeats failed requests; this module adds what it
leaves out: an upload that arrives damaged is sent again, an upload whose reply is lost is looked up
before it counts as failed, and a download counts only when its SHA-256 is right.
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import urlsplit

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
from pyarrow import fs

from tasks.s3_client import (
    ATTEMPTS,
    CONNECT_SECONDS,
    MISSING,
    READ_SECONDS,
    connect,
    error_code,
    explained,
)
from tasks.store import (
    AlreadyCommitted,
    StoredFile,
    WrongBytes,
    bytes_digest,
    check_endpoint,
    check_key,
    stream_digest,
)

if TYPE_CHECKING:
    from types_boto3_s3.type_defs import PutObjectRequestTypeDef

MULTIPART_BYTES = 32 << 20
TRANSFERS = 3  # of one file, when its bytes arrive damaged

CONTENT_TYPES = {
    ".glb": "model/gltf-binary",
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".mp4": "video/mp4",
    ".png": "image/png",
    ".webp": "image/webp",
}

_DAMAGED = {"BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "IncompleteBody"}
_TAKEN = {"PreconditionFailed", "ConditionalRequestConflict"}


class S3Store:
    """A store under ``s3://{bucket}/{prefix}``. Threads may share it."""

    def __init__(self, bucket: str, prefix: str = "", *, writable: bool = True) -> None:
        prefix = prefix.strip("/")
        self.bucket = bucket
        self.prefix = check_key(prefix) + "/" if prefix else ""
        check_endpoint()
        with explained("use", self.url):
            self._session = boto3.Session()
            self._client, self._region = connect(
                self._session, bucket, self.prefix, writable=writable
            )

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def uri(self, key: str) -> str:
        return f"s3://{self.bucket}/{self._full(key)}"

    def put_file(self, key: str, path: Path, *, replace: bool = False) -> StoredFile:
        with path.open("rb") as source:
            stored = stream_digest(source)
        return self._put(key, stored, lambda: path.open("rb"), replace)

    def put_bytes(self, key: str, data: bytes, *, replace: bool = False) -> StoredFile:
        return self._put(key, bytes_digest(data), lambda: io.BytesIO(data), replace)

    def get_bytes(self, key: str) -> bytes:
        target = io.BytesIO()
        with explained("read", self.uri(key)):
            self._fetch(key, target, None)
        return target.getvalue()

    def download(self, key: str, path: Path, sha256: str | None = None) -> StoredFile:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            with explained("read", self.uri(key)), temporary.open("xb") as target:
                stored = self._fetch(key, target, sha256)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return stored

    def exists(self, key: str) -> bool:
        with explained("read", self.uri(key)):
            return self._head(key) is not None

    def list(self, prefix: str = "") -> Iterator[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=self.prefix + prefix
        )
        with explained("list", self.url):
            for page in pages:
                for entry in page.get("Contents", []):
                    key = entry["Key"].removeprefix(self.prefix)
                    if not any(part.startswith(".") for part in key.split("/")):
                        yield key

    def delete(self, key: str) -> None:
        with explained("delete", self.uri(key)):
            self._client.delete_object(Bucket=self.bucket, Key=self._full(key))

    def leftovers(self, older: timedelta, *, remove: bool) -> Sequence[str]:
        before = datetime.now(UTC) - older
        found = []
        with explained("list", self.url):
            probes = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=f"{self.prefix}.probe-"
            )
            for page in probes:
                for entry in page.get("Contents", []):
                    if entry["LastModified"] < before:
                        found.append(entry["Key"])
                        if remove:
                            self._client.delete_object(Bucket=self.bucket, Key=entry["Key"])
            uploads = self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self.bucket, Prefix=self.prefix
            )
            for uploaded in uploads:
                for upload in uploaded.get("Uploads", []):
                    if upload["Initiated"] < before:
                        found.append(f"{upload['Key']} (multipart upload)")
                        if remove:
                            self._client.abort_multipart_upload(
                                Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                            )
        return [name.removeprefix(self.prefix) for name in found]

    def filesystem(self) -> fs.FileSystem:
        with explained("read", self.url):
            # boto3's chain decides, so that tables need no second set of settings.
            credentials = self._session.get_credentials()
            if credentials is None:
                raise NoCredentialsError
            frozen = credentials.get_frozen_credentials()
        endpoint = urlsplit(self._client.meta.endpoint_url)
        certificates = os.environ.get("AWS_CA_BUNDLE")
        s3 = fs.S3FileSystem(
            access_key=frozen.access_key,
            secret_key=frozen.secret_key,
            session_token=frozen.token,
            region=self._region,
            scheme=endpoint.scheme,
            endpoint_override=None if ".amazonaws.com" in endpoint.netloc else endpoint.netloc,
            connect_timeout=CONNECT_SECONDS,
            request_timeout=READ_SECONDS,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
            **({"tls_ca_file_path": certificates} if certificates else {}),
        )
        return fs.SubTreeFileSystem(f"{self.bucket}/{self.prefix}".rstrip("/"), s3)

    def _full(self, key: str) -> str:
        return self.prefix + check_key(key)

    def _head(self, key: str) -> StoredFile | None:
        """What the server knows about `key`; no SHA-256 when others wrote it."""
        try:
            reply = self._client.head_object(Bucket=self.bucket, Key=self._full(key))
        except ClientError as error:
            if error_code(error) in MISSING:
                return None
            raise
        return StoredFile(reply["ContentLength"], reply["Metadata"].get("sha256", ""))

    def _put(
        self, key: str, stored: StoredFile, source: Callable[[], BinaryIO], replace: bool
    ) -> StoredFile:
        with explained("write", self.uri(key)):
            for remaining in reversed(range(TRANSFERS)):
                # Some servers ignore If-None-Match, so look before writing as well.
                if not replace and self._is_stored(key, stored):
                    return stored
                try:
                    self._send(key, stored, source, replace)
                    return stored
                except (ClientError, BotoCoreError) as error:
                    # The reply may be lost although the server took the file.
                    with contextlib.suppress(ClientError, BotoCoreError):
                        if self._head(key) == stored:
                            return stored
                    if not remaining or error_code(error) not in _DAMAGED | _TAKEN:
                        raise
        raise AssertionError("unreachable: the last round returns or raises")

    def _is_stored(self, key: str, stored: StoredFile) -> bool:
        """Whether `key` already holds exactly this; raises `AlreadyCommitted` if it holds other."""
        found = self._head(key)
        if found not in (None, stored):
            raise AlreadyCommitted(
                f"{self.uri(key)} is already committed with other content; nothing was changed, "
                "use a new attempt."
            )
        return found is not None

    def _send(
        self, key: str, stored: StoredFile, source: Callable[[], BinaryIO], replace: bool
    ) -> None:
        metadata = {"sha256": stored.sha256}
        kind = CONTENT_TYPES.get(PurePosixPath(key).suffix, "application/octet-stream")
        with source() as body:
            if stored.bytes >= MULTIPART_BYTES:
                self._client.upload_fileobj(
                    body,
                    self.bucket,
                    self._full(key),
                    ExtraArgs={"Metadata": metadata, "ContentType": kind},
                    Config=TransferConfig(
                        multipart_threshold=MULTIPART_BYTES,
                        multipart_chunksize=MULTIPART_BYTES,
                        use_threads=False,
                    ),
                )
            else:
                request: PutObjectRequestTypeDef = {
                    "Bucket": self.bucket,
                    "Key": self._full(key),
                    "Body": body,
                    "Metadata": metadata,
                    "ContentType": kind,
                }
                if not replace:
                    request["IfNoneMatch"] = "*"
                self._client.put_object(**request)

    def _fetch(self, key: str, target: BinaryIO, sha256: str | None) -> StoredFile:
        """Copy `key` into `target`, again while the bytes that arrive are not the right ones."""
        problem = ""
        for _ in range(TRANSFERS):
            target.seek(0)
            target.truncate()
            reply = self._client.get_object(Bucket=self.bucket, Key=self._full(key))
            expected = sha256 or reply["Metadata"].get("sha256")
            try:
                stored = stream_digest(reply["Body"], copy_to=target)
            except BotoCoreError as error:
                problem = str(error)
                continue
            if expected in (None, stored.sha256):
                return stored
            problem = f"its SHA-256 is {stored.sha256} and should be {expected}"
        raise WrongBytes(
            f"{self.uri(key)} is damaged or cut short ({problem}); try again, and if it stays so "
            "mend the store with `sjc verify --repair` and run its manifest again."
        )
