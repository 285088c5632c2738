"""What a store is: a local directory or an S3 prefix, seen through eleven methods.

Keys are relative POSIX paths such as ``assets/0123456789abcdef/a01/mesh.glb``. A committed file is
never overwritten: putting the same content again succeeds and changes nothing, putting other
content under the same key raises `AlreadyCommitted`. Every file carries its SHA-256, and every
download is checked against one.

One rule says what damage is, and every reader follows it: a file is `Damaged` when its bytes were
read in full and are wrong, and missing (`NotInStore`) when the store says so and its own listing
agrees. Any other failure, such as a refusal, a timeout or a reply that was cut short, is a plain
`StoreError`: the file could not be read, and nothing is known about it. Only damage may ever be
repaired; after any other error nothing is written.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

CHUNK = 1 << 20
TRANSFERS = 3  # of one file, when what arrives is not what the store lists

T = TypeVar("T")

# No shell, URL or glob metacharacter, and no leading dot: those names are our temporary files.
_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=+@-]{0,199}")


class StoreError(Exception):
    """The store, or a file of it, cannot be used: what is wrong, and what to do.

    Says nothing about the content of the store unless it is `Damaged` or `NotInStore`.
    """

    def __init__(self, problem: str, fix: str = "") -> None:
        super().__init__(problem, fix)
        self.problem, self.fix = problem, fix

    def __str__(self) -> str:
        return f"{self.problem}; {self.fix}." if self.fix else self.problem


class NotInStore(StoreError):
    """The key does not exist, and the listing of its folder or prefix agrees."""


class Damaged(StoreError):
    """A file was read in full, is what the store lists, and its content is wrong: `flaw`."""

    def __init__(self, problem: str, fix: str, flaw: str) -> None:
        super().__init__(problem, fix)
        self.args = problem, fix, flaw
        self.flaw = flaw


class NewerStore(StoreError):
    """A newer version of this program wrote the store: this one must not write to it."""


class AlreadyCommitted(StoreError):
    """The key exists with other content, and committed files are never overwritten."""


class WrongBytes(StoreError):
    """What arrives here or at the store is not what was sent, again and again: lost on the way."""


class TakesNoMore(StoreError):
    """The disk of the store is full, or may not be written: whatever comes next fails as well."""


@dataclass(frozen=True)
class StoredFile:
    """Size in bytes and SHA-256 (64 hex digits) of a stored file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Listed:
    """What a listing says of a file: its size in bytes, and its MD5 where the server has one."""

    bytes: int
    md5: str | None = None

    def agrees(self, size: int, md5: Callable[[], str]) -> bool:
        """Whether a file of this size and MD5 is what is listed."""
        return size == self.bytes and (self.md5 is None or self.md5 == md5())


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
        """The content of `key`; raises `NotInStore`, and `Damaged` if its own SHA-256 differs."""

    def download(self, key: str, path: Path, sha256: str | None = None) -> StoredFile:
        """Copy `key` to `path`, complete and verified or not at all.

        Raises `NotInStore`, and `Damaged` if the content is not that of `sha256`.
        """

    def exists(self, key: str) -> bool:
        """Whether `key` is stored."""

    def listed(self, key: str) -> Listed | None:
        """What the folder or prefix of `key` lists under this name, None if nothing.

        Asks the listing and never the file. Raises `StoreError` if the folder cannot be listed, or
        is not there itself.
        """

    def list(self, prefix: str = "") -> Iterator[str]:
        """Keys that start with `prefix`, in UTF-8 order, temporary files left out."""

    def names(self, folder: str) -> Sequence[str]:
        """What is directly in a folder, in order: files, and folders with a slash at the end."""

    def move(self, key: str, to: str) -> None:
        """Give a file another key, its bytes as they are; raises `NotInStore`."""

    def delete(self, key: str) -> None:
        """Remove `key`; a key that does not exist is fine."""

    def leftovers(self, older: timedelta, *, remove: bool) -> Sequence[str]:
        """What writers that died left unfinished that long ago: temporary files, half uploads."""


def read_checked(store: Store, key: str, check: Callable[[bytes], T]) -> T:
    """`check` of the content of `key`; the one place that calls a file's content wrong.

    check: raises `ValueError`, which says what is wrong. Raises `Damaged` if the store lists
    exactly the bytes that were read, `NotInStore`, and `StoreError` for anything else.
    """
    for _ in range(TRANSFERS):
        data = store.get_bytes(key)
        try:
            return check(data)
        except ValueError as error:
            problem = error
        listed = store.listed(key)
        # Replaced or removed in between, or cut short on the way: read it again.
        if listed is not None and listed.agrees(len(data), partial(md5_digest, data)):
            raise damaged(store, key, str(problem)) from problem
    raise WrongBytes(
        f"Cannot read {store.uri(key)}: what arrives is not what the store lists ({problem})",
        "check the network and try again",
    ) from problem


def read_committed(store: Store, key: str, check: Callable[[bytes], T]) -> T:
    """The same for a file that a commit marker names, so that it must be there.

    It is `NotInStore` only if its folder is there without it: a folder that is gone as a whole may
    be a disk that is not mounted.
    """
    try:
        return read_checked(store, key, check)
    except NotInStore:
        store.listed(key)
        raise


def damaged(store: Store, key: str, problem: str) -> Damaged:
    """The error for a file with wrong content."""
    fix = f"mend the store with `sjc verify --repair --store {store.url}`"
    return Damaged(f"{store.uri(key)} is damaged ({problem})", fix, problem)


def check_address(url: str, what: str, instead: str) -> None:
    """Raises `StoreError`, which keeps the secret, for an address with credentials in it.

    Addresses go into settings, tables, logs and Prefect's database.
    """
    scheme, separator, rest = url.partition("://")
    bucket = rest.partition("/")[0]
    if scheme == "s3":  # keys may have an @ and a ?, but not what a signed address ends in
        secret = bool({"@", ":"} & set(bucket)) or "=" in rest.partition("?")[2]
    else:
        secret = "@" in rest or "?" in rest
    if separator and secret:
        raise StoreError(
            f"There are credentials, or a query, in {what}",
            f"use {instead}, and the variables AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or"
            " AWS_PROFILE",
        )


def check_endpoint() -> None:
    """The same of the address of an S3 server, which errors repeat."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        check_address(os.environ.get(name, ""), name, "https://host:port")


def check_key(key: str) -> str:
    """`key` itself if it is a clean relative path; raises `StoreError` for anything else."""
    if len(key) > 900 or not all(_SEGMENT.fullmatch(segment) for segment in key.split("/")):
        raise StoreError(
            f"{key!r} is not a valid key", "use letters, digits and ._=+@- between single slashes"
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


def md5_digest(data: bytes) -> str:
    """The MD5 of `data` as S3's ETag has it; not for security."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def bytes_digest(data: bytes) -> StoredFile:
    """Size and SHA-256 of `data`."""
    return StoredFile(len(data), hashlib.sha256(data).hexdigest())
