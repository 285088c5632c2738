"""Where a dataset goes: a folder, or an S3 prefix; that needs room for a file on this disk."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

from tasks.store import open_store
from tasks.store.disk import temporary_beside
from tasks.store.interface import StoredFile, stream_digest
from tasks.store.local import LocalStore, explained


class Destination:
    """Files appear here whole or not at all. Raises `StoreError` as a store does."""

    def __init__(self, url: str) -> None:
        self.store = open_store(url, option="-o")
        self._root = self.store.root if isinstance(self.store, LocalStore) else None

    def put(self, key: str, data: bytes) -> StoredFile:
        """Write a small file, in place of what is there."""
        return self.store.put_bytes(key, data, replace=True)

    def holds(self, key: str, stored: StoredFile) -> bool:
        """Whether `key` is there; on this disk, with this content."""
        if self._root is None:
            return self.store.exists(key)
        try:
            with (self._root / key).open("rb") as file:
                return stream_digest(file) == stored
        except FileNotFoundError:
            return False

    def put_new(self, key: str, write: Callable[[BinaryIO], None]) -> StoredFile:
        """A file of any size that appears under `key` once it is written, in place of another."""
        if self._root is None:
            with TemporaryDirectory(prefix="sjc-curate-") as folder:
                path = Path(folder, PurePosixPath(key).name)
                with explained("write", path, "TMPDIR"):
                    _write(path, write)
                return self.store.put_file(key, path, replace=True)
        target = self._root / key
        with explained("write", target, "-o"), temporary_beside(target) as path:
            target.parent.mkdir(parents=True, exist_ok=True)
            stored = _write(path, write)
            os.replace(path, target)
        return stored

    def sweep(self) -> None:
        """Remove what a process that was killed left half-written on this disk."""
        for path in self._root.rglob(".*") if self._root else ():
            if path.is_file():
                path.unlink(missing_ok=True)


def _write(path: Path, write: Callable[[BinaryIO], None]) -> StoredFile:
    """A new file, flushed to the disk."""
    with _Digesting(path, "x") as file, io.BufferedWriter(file) as buffered:
        write(buffered)
        buffered.flush()
        os.fsync(file.fileno())
        return StoredFile(file.tell(), file.digest.hexdigest())


class _Digesting(io.FileIO):
    """Knows the digest of what was written, which gigabytes need not be read again for."""

    def __init__(self, path: Path, mode: str) -> None:
        super().__init__(path, mode)
        self.digest = hashlib.sha256()

    def write(self, data: Any, /) -> int:
        taken = super().write(data)
        self.digest.update(memoryview(data)[:taken])
        return taken

    def seek(self, *_: int) -> int:
        raise io.UnsupportedOperation("what is written stays")
