"""Where a dataset goes: a folder, or an S3 prefix; that needs room for a file on this disk."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import BinaryIO

from tasks.store import open_store
from tasks.store.disk import disk_advice
from tasks.store.interface import StoredFile, StoreError, stream_digest
from tasks.store.local import LocalStore


class Digesting:
    """A binary file that is written once, from front to back, and hashed on the way."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest, self._size = file, hashlib.sha256(), 0
        self.closed = False  # pyarrow asks

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        self._size += len(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        self._file.flush()

    def stored(self) -> StoredFile:
        return StoredFile(self._size, self._digest.hexdigest())


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

    @contextlib.contextmanager
    def new_file(self, key: str) -> Iterator[Digesting]:
        """A file that appears under `key` when the block ends well."""
        with contextlib.ExitStack() as cleanup:
            if self._root is None:
                folder = Path(cleanup.enter_context(TemporaryDirectory(prefix="sjc-curate-")))
                option = "TMPDIR"
            else:
                folder, option = (self._root / key).parent, "-o"
            path = folder / f".{PurePosixPath(key).name}.{secrets.token_hex(4)}"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                cleanup.callback(path.unlink, missing_ok=True)
                with path.open("xb") as file:
                    yield Digesting(file)
                    file.flush()
                    os.fsync(file.fileno())
                if self._root is not None:
                    os.replace(path, self._root / key)
            except OSError as error:
                raise StoreError(f"Cannot write {path}: {disk_advice(error, option)}.") from error
            if self._root is None:
                self.store.put_file(key, path, replace=True)

    def sweep(self) -> None:
        """Remove what a process that was killed left half-written on this disk."""
        for path in self._root.rglob(".*") if self._root else ():
            if path.is_file():
                path.unlink(missing_ok=True)
