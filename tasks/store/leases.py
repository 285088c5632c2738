"""Leases: which assets a run works on, so that another run of the same store takes others.

They only save work, and nothing is safe because of them: two runs that both believe to hold an
asset make two attempts at it, in separate folders, and the first to commit counts.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import time
from pathlib import Path
from typing import IO, Self

from tasks.records.documents import read_document
from tasks.store.disk import disk_problem
from tasks.store.interface import AlreadyCommitted, Damaged, NotInStore, Store, StoreError
from tasks.store.layout import lease_key
from tasks.store.local import LocalStore
from tasks.store.locks import lock_flaw

EXPIRE_SECONDS = 90.0  # after its holder's last heartbeat an object counts for nothing
BEAT_SECONDS = 20.0

CHOICE = "SJC_LEASES"  # which leases a folder has: locks or files; unset, what its mount allows


def leases(store: Store, owner: str) -> Leases:
    """Leases on a store's assets.

    owner: of leases that expire; a run with the same owner takes them over without waiting for
    their end, so it must be one that no two living runs have.
    """
    if isinstance(store, LocalStore) and not why_expiring(store.root):
        return FileLeases(store.root / ".leases")
    return ExpiringLeases(store, owner)


def why_expiring(folder: Path) -> str:
    """Why the leases of a store in a folder are files that expire; empty if they are locks.

    Raises `StoreError`.
    """
    choice = os.environ.get(CHOICE, "")
    if choice not in ("", "locks", "files"):
        raise StoreError(f"{CHOICE} is {choice!r}", "set it to locks or to files, or unset it")
    return lock_flaw(folder) if not choice else f"{CHOICE}={choice}" * (choice == "files")


class FileLeases:
    """Locked files: the kernel frees them when their process ends, however it ends.

    The leases of one run, which end with the block. Threads may share them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[str, IO[str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for asset_id in list(self._held):
            self.free(asset_id)

    def take(self, asset_id: str) -> bool:
        """Whether the asset is ours now, and was nobody else's before.

        Raises `StoreError` if that cannot be found out.
        """
        if asset_id in self._held:
            return True
        path = self._folder / asset_id
        try:
            self._folder.mkdir(exist_ok=True)
            while (file := _lock(path)) is None:
                pass  # its holder has just removed it: another may be there by now
        except BlockingIOError:
            return False
        except OSError as error:
            problem, fix = disk_problem(error, "--store")
            raise StoreError(f"Cannot lock {path}: {problem}", fix) from error
        self._held[asset_id] = file
        return True

    def free(self, asset_id: str) -> None:
        """Lets others have it; one that is not ours is fine."""
        file = self._held.pop(asset_id, None)
        if file is not None:
            with contextlib.suppress(OSError):
                (self._folder / asset_id).unlink()
            file.close()


def _lock(path: Path) -> IO[str] | None:
    """The file there, locked; None when it is not there any more by then. Raises OSError."""
    with contextlib.ExitStack() as opened:
        try:
            file = opened.enter_context(path.open("a"))
        except PermissionError:  # another user's, which can be locked all the same
            if not path.exists():
                raise
            file = opened.enter_context(path.open("r"))
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                opened.pop_all()
                return file
    return None


class ExpiringLeases:
    """The same without locks: documents with an owner and an end, which a thread puts off.

    A store lets one writer make a key, object or file. The clocks of machines may differ by less
    than `EXPIRE_SECONDS - BEAT_SECONDS`.
    """

    def __init__(self, store: Store, owner: str) -> None:
        self._store = store
        self._owner = owner
        self._held: set[str] = set()
        self._lock = threading.Lock()  # around requests too: a late heartbeat must not undo `free`
        self._ending = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="leases", daemon=True)

    def __enter__(self) -> Self:
        self._heart.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for asset_id in list(self._held):
            self.free(asset_id)
        self._heart.join()

    def take(self, asset_id: str) -> bool:
        with self._lock:
            if not (asset_id in self._held or self._put(asset_id)):
                return False
            self._held.add(asset_id)
            return True

    def free(self, asset_id: str) -> None:
        with self._lock:
            if asset_id in self._held:
                self._held.remove(asset_id)
                with contextlib.suppress(StoreError):  # it expires
                    self._store.delete(lease_key(asset_id))

    def _put(self, asset_id: str) -> bool:
        """Makes the lease ours; False when it is another's."""
        try:
            self._store.put_bytes(lease_key(asset_id), self._document())
        except AlreadyCommitted:
            if self._held_elsewhere(asset_id):
                return False
            self._store.put_bytes(lease_key(asset_id), self._document(), replace=True)
        # Of several writers whom a careless server let succeed, the last one has it.
        return not self._held_elsewhere(asset_id)

    def _held_elsewhere(self, asset_id: str) -> bool:
        try:
            lease = read_document(self._store, lease_key(asset_id))
            return bool(lease["owner"] != self._owner and lease["expires_at"] > time.time())
        except (Damaged, NotInStore, KeyError, TypeError):
            return False

    def _document(self) -> bytes:
        return json.dumps(
            {"owner": self._owner, "expires_at": time.time() + EXPIRE_SECONDS}
        ).encode()

    def _beat(self) -> None:
        while not self._ending.wait(BEAT_SECONDS):
            for asset_id in list(self._held):
                with self._lock, contextlib.suppress(StoreError):
                    if asset_id not in self._held:
                        continue
                    if self._held_elsewhere(asset_id):  # this process slept for too long
                        self._held.remove(asset_id)
                    else:
                        self._store.put_bytes(lease_key(asset_id), self._document(), replace=True)


Leases = FileLeases | ExpiringLeases
