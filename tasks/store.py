"""The store: a local directory or an S3 prefix, seen through ten methods.

Keys are relative POSIX paths such as ``assets/0123456789abcdef/a01/mesh.glb``. A committed file is
never overwritten: putting the same content again succeeds and changes nothing, putting other
content under the same key raises `AlreadyCommitted`. Every file carries its SHA-256, and every
download is checked against one.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO, Protocol

from pyarrow import fs

CHUNK = 1 << 20

# No shell, URL or glob metacharacter, and no leading dot: those names are our temporary files.
_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=+@-]{0,199}")


class StoreError(Exception):
    """The store cannot be used; the message is one sentence that ends with what to do."""


class NotInStore(StoreError):
    """The key does not exist."""


class AlreadyCommitted(StoreError):
    """The key exists with other content, and committed files are never overwritten."""


class WrongBytes(StoreError):
    """Other bytes have arrived than were stored, again and again: on the way, or they are lost."""


class TakesNoMore(StoreError):
    """The disk of the store is full, or may not be written: whatever comes next fails as well."""


@dataclass(frozen=True)
class StoredFile:
    """Size in bytes and SHA-256 (64 hex digits) of a stored file."""

    bytes: int
    sha256: str


class Readable(Protocol):
    """An open binary file, or the body of a reply."""

    def read(self, size: int, /) -> bytes: ...


class Store(Protocol):
    """What the pipeline needs from a place that keeps files. All methods raise `StoreError`."""

    @property
    def url(self) -> str:
        """The address that `open_store` takes to reach this store again."""

    def uri(self, key: str) -> str:
        """Where users find `key`: an absolute path, or ``s3://bucket/prefix/key``."""

    def put_file(self, key: str, path: Path, *, replace: bool = False) -> StoredFile:
        """Store the file at `path`; raises `AlreadyCommitted` if `key` has other content."""

    def put_bytes(self, key: str, data: bytes, *, replace: bool = False) -> StoredFile:
        """Store `data`; raises `AlreadyCommitted` if `key` has other content."""

    def get_bytes(self, key: str) -> bytes:
        """The content of `key`; raises `NotInStore`."""

    def download(self, key: str, path: Path, sha256: str | None = None) -> StoredFile:
        """Copy `key` to `path`, complete and verified or not at all; raises `NotInStore`."""

    def exists(self, key: str) -> bool:
        """Whether `key` is stored."""

    def list(self, prefix: str = "") -> Iterator[str]:
        """Keys that start with `prefix`, in UTF-8 order, temporary files left out."""

    def delete(self, key: str) -> None:
        """Remove `key`; a key that does not exist is fine."""

    def leftovers(self, older: timedelta, *, remove: bool) -> Sequence[str]:
        """What writers that died left unfinished that long ago: temporary files, half uploads."""

    def filesystem(self) -> fs.FileSystem:
        """The store as a pyarrow file system whose paths are keys, for lazy table reads."""


def open_store(url: str | Path, *, writable: bool = True) -> Store:
    """Open the store at `url`: a directory, or ``s3://bucket/prefix``.

    With `writable` a local directory is made when it is missing, and one small write proves that
    results can be kept: an unusable store is found here, before any work.
    """
    text = str(url)
    check_address(text, "a store's address", "--store s3://bucket/prefix")
    scheme, separator, rest = text.partition("://")
    if not separator:
        from tasks.store_local import LocalStore

        return LocalStore(Path(text), writable=writable)
    if scheme == "s3":
        # boto3 takes half a second to import; a local store does not pay for it.
        from tasks.store_s3 import S3Store

        bucket, _, prefix = rest.partition("/")
        return S3Store(bucket, prefix, writable=writable)
    raise StoreError(f"{text} is not a store; use a directory or s3://bucket/prefix.")


def check_address(url: str, what: str, instead: str) -> None:
    """Raises `StoreError`, which keeps the secret, for an address with credentials in it.

    Addresses go into settings, tables, logs and Prefect's database.
    """
    scheme, separator, rest = url.partition("://")
    bucket = rest.partition("/")[0]
    secret = {"@", ":"} & set(bucket) if scheme == "s3" else "@" in rest  # keys may have an @
    if separator and (secret or "?" in rest):
        raise StoreError(
            f"There are credentials, or a query, in {what}; use {instead}, and the variables "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE."
        )


def check_endpoint() -> None:
    """The same of the address of an S3 server, which errors repeat."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        check_address(os.environ.get(name, ""), name, "https://host:port")


def check_key(key: str) -> str:
    """`key` itself if it is a clean relative path; raises `StoreError` for anything else."""
    if len(key) > 900 or not all(_SEGMENT.fullmatch(segment) for segment in key.split("/")):
        raise StoreError(
            f"{key!r} is not a valid key; use letters, digits and ._=+@- between single slashes."
        )
    return key


def stream_digest(source: Readable, copy_to: BinaryIO | None = None) -> StoredFile:
    """Size and SHA-256 of the rest of `source`, which is copied to `copy_to` on the way."""
    digest, size = hashlib.sha256(), 0
    while chunk := source.read(CHUNK):
        digest.update(chunk)
        size += len(chunk)
        if copy_to is not None:
            copy_to.write(chunk)
    return StoredFile(size, digest.hexdigest())


def bytes_digest(data: bytes) -> StoredFile:
    """Size and SHA-256 of `data`."""
    return StoredFile(len(data), hashlib.sha256(data).hexdigest())
