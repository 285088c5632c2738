"""The S3 store: a bucket and a prefix, through boto3.

`tasks.store.s3_client` makes the client. botocore repeats failed requests; this module adds what it
leaves out: an upload that arrives damaged is sent again, an upload whose reply is lost is looked up
before it counts as failed, and a download counts only when its SHA-256 is right.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from tasks.store.disk import temporary_beside
from tasks.store.interface import (
    AlreadyCommitted,
    Listed,
    StoredFile,
    StoreError,
    WrongBytes,
    bytes_digest,
    check_endpoint,
    check_key,
    damaged,
    stream_digest,
)
from tasks.store.s3_client import MISSING, connect, error_code, explained

if TYPE_CHECKING:
    from types_boto3_s3.type_defs import CopySourceTypeDef, ObjectTypeDef

MULTIPART_BYTES = 32 << 20
PAUSES = (0.0, 0.5, 2.0)  # seconds before each transfer: listings lag, and networks recover

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
_MD5 = re.compile(r"[0-9a-f]{32}")  # an ETag is one unless the upload had several parts


class S3Store:
    """A store under ``s3://{bucket}/{prefix}``. Threads may share it.

    foreign: others chose the names, so all that S3 knows are right.
    """

    def __init__(
        self, bucket: str, prefix: str = "", *, writable: bool = True, foreign: bool = False
    ) -> None:
        self.bucket = bucket
        self._checked: Callable[[str], str] = str if foreign else check_key
        prefix = prefix if foreign else prefix.strip("/")
        self.prefix = self._checked(prefix) + "/" if prefix else ""
        check_endpoint()
        with explained("use", self.url):
            self._client = connect(boto3.Session(), bucket, self.prefix, writable=writable)

    @property
    def url(self) -> str:
        return "s3://" + f"{self.bucket}/{self.prefix}".rstrip("/")

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
        with temporary_beside(path) as temporary:
            with explained("read", self.uri(key)), temporary.open("x+b") as target:
                stored = self._fetch(key, target, sha256)
            os.replace(temporary, path)
        return stored

    def exists(self, key: str) -> bool:
        with explained("read", self.uri(key)):
            for pause in PAUSES:
                time.sleep(pause)
                if self._head(key) is not None:
                    return True
                if self._entry(key) is None:
                    return False
        raise self._hidden(key)

    def listed(self, key: str) -> Listed | None:
        entry = self._entry(key)
        if entry is None:
            return None
        etag = entry.get("ETag", "").strip('"')
        with explained("read", self.uri(key)):
            md5 = etag if _MD5.fullmatch(etag) and self._has_md5(key) else None
        return Listed(entry["Size"], md5)

    def list(self, prefix: str = "") -> Iterator[str]:
        with explained("list", self.url):
            for entry in self._listing(prefix):
                key = entry["Key"].removeprefix(self.prefix)
                if not any(part.startswith(".") for part in key.split("/")):
                    yield key

    def names(self, folder: str) -> Sequence[str]:
        prefix = f"{self._full(folder)}/"
        with explained("list", self.uri(folder)):
            found = []
            for page in self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=prefix, Delimiter="/"
            ):
                found += [entry["Key"] for entry in page.get("Contents", [])]
                found += [entry["Prefix"] for entry in page.get("CommonPrefixes", [])]
        names = (key.removeprefix(prefix) for key in found)
        return sorted(name for name in names if name and not name.startswith("."))

    def move(self, key: str, to: str) -> None:
        with explained("move", self.uri(key)):
            source: CopySourceTypeDef = {"Bucket": self.bucket, "Key": self._full(key)}
            self._client.copy_object(Bucket=self.bucket, Key=self._full(to), CopySource=source)
            sizes = [entry and entry["Size"] for entry in (self._entry(key), self._entry(to))]
            if sizes[0] is None or sizes[0] != sizes[1]:
                raise StoreError(
                    f"Cannot move {self.uri(key)} to {self.uri(to)}: the copy is not like it, and"
                    " nothing was deleted",
                    "move it by hand",
                )
            self._client.delete_object(Bucket=self.bucket, Key=self._full(key))

    def delete(self, key: str) -> None:
        with explained("delete", self.uri(key)):
            self._client.delete_object(Bucket=self.bucket, Key=self._full(key))

    def leftovers(self, older: timedelta, *, remove: bool) -> Sequence[str]:
        before = datetime.now(UTC) - older
        found = []
        with explained("list", self.url):
            for entry in self._listing(".probe-"):
                if entry["LastModified"] < before:
                    found.append(entry["Key"])
                    if remove:
                        self._client.delete_object(Bucket=self.bucket, Key=entry["Key"])
            uploads = self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self.bucket, Prefix=self.prefix
            )
            for upload in (upload for page in uploads for upload in page.get("Uploads", [])):
                if upload["Initiated"] < before:
                    found.append(f"{upload['Key']} (multipart upload)")
                    if remove:
                        self._client.abort_multipart_upload(
                            Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                        )
        return [name.removeprefix(self.prefix) for name in found]

    def _listing(self, prefix: str) -> Iterator[ObjectTypeDef]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=self.prefix + prefix
        )
        return (entry for page in pages for entry in page.get("Contents", []))

    def _full(self, key: str) -> str:
        return self.prefix + self._checked(key)

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
            for remaining in reversed(range(len(PAUSES))):
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
                    if remaining and error_code(error) in _DAMAGED | _TAKEN:
                        continue
                    if error_code(error) in _DAMAGED:
                        raise WrongBytes(
                            f"Cannot write {self.uri(key)}: it arrives damaged, again and again",
                            "check the network and try again",
                        ) from error
                    refused = error_code(error) == "PreconditionFailed"
                    if refused and not self._is_stored(key, stored):
                        raise self._hidden(key, "write") from error
                    raise
        raise AssertionError("unreachable: the last round returns or raises")

    def _is_stored(self, key: str, stored: StoredFile) -> bool:
        """Whether `key` already holds exactly this; raises `AlreadyCommitted` if it holds other."""
        found = self._head(key)
        if found not in (None, stored):
            raise AlreadyCommitted(
                f"{self.uri(key)} is already committed with other content",
                "nothing was changed, use a new attempt",
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
                unless_there: dict[str, Any] = {} if replace else {"IfNoneMatch": "*"}
                self._client.put_object(
                    Bucket=self.bucket,
                    Key=self._full(key),
                    Body=body,
                    Metadata=metadata,
                    ContentType=kind,
                    **unless_there,
                )

    def _fetch(
        self, key: str, target: io.BytesIO | io.BufferedRandom, sha256: str | None
    ) -> StoredFile:
        """Copy `key` into `target`, again while what arrives is not what the store lists."""
        error: StoreError | None = None
        for pause in PAUSES:
            time.sleep(pause if error else 0)
            target.seek(0)
            target.truncate()
            try:
                reply = self._client.get_object(Bucket=self.bucket, Key=self._full(key))
            except ClientError as refused:
                if error_code(refused) not in MISSING or self._entry(key) is None:
                    raise
                error = self._hidden(key)
                continue
            expected = sha256 or reply["Metadata"].get("sha256")
            try:
                stored = stream_digest(reply["Body"], copy_to=target)
            except (BotoCoreError, HTTPError) as broken:
                error = self._cut_short(key, str(broken))
                continue
            if expected in (None, stored.sha256):
                return stored
            problem = f"its SHA-256 is {stored.sha256} and should be {expected}"
            error = self._cut_short(key, problem)
            listed = self.listed(key)
            if listed is not None and listed.agrees(stored.bytes, partial(_file_md5, target)):
                error = damaged(self, key, problem)
        assert error is not None
        raise error

    def _entry(self, key: str) -> ObjectTypeDef | None:
        """What a listing says of `key`; raises `StoreError`."""
        full = self._full(key)
        with explained("list", self.uri(key)):
            page = self._client.list_objects_v2(Bucket=self.bucket, Prefix=full, MaxKeys=1)
        return next((entry for entry in page.get("Contents", []) if entry["Key"] == full), None)

    def _has_md5(self, key: str) -> bool:
        """Whether the ETag is an MD5 of the content: not of what a key of the user's encrypts."""
        head = self._client.head_object(Bucket=self.bucket, Key=self._full(key))
        plain = head.get("ServerSideEncryption", "AES256") == "AES256"
        return plain and "SSECustomerAlgorithm" not in head

    def _hidden(self, key: str, verb: str = "read") -> StoreError:
        return StoreError(
            f"Cannot {verb} {self.uri(key)}: the server answers 404 and has it all the same",
            "check AWS_ENDPOINT_URL_S3 and any proxy, and try again later",
        )

    def _cut_short(self, key: str, problem: str) -> WrongBytes:
        return WrongBytes(
            f"Cannot read {self.uri(key)}: it arrives cut short or altered ({problem})",
            "check the network and try again",
        )


def _file_md5(file: io.BytesIO | io.BufferedRandom) -> str:
    file.seek(0)
    return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()
