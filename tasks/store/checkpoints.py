"""Checkpoints in the store too, so that another machine can resume.

The engine writes a scene's checkpoint, and notes beside it, to the scratch folder and knows of no
store. A thread copies both to ``checkpoints/{field_id}/`` now and then; the engine never waits for
it. The copy goes when an asset with this field is committed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from tasks.records.documents import asset_manifest, committed_attempt, read_ahead, read_attempt
from tasks.store.interface import Damaged, NotInStore, Store, StoreError
from tasks.store.layout import CHECKPOINTS, attempt_key, checkpoint_keys

LEAST_SECONDS = 5.0  # between two copies of one scene; its engine writes no more often
SHARE = 0.25  # at most, of the time: a slow store gets fewer copies

_log = logging.getLogger(__name__)


class CheckpointCopy:
    """The copy of one scene's checkpoint in the store. One that cannot be written costs nothing."""

    def __init__(self, store: Store, field_id: str, checkpoint: Path) -> None:
        self.store = store
        self.checkpoint = checkpoint
        self.keys = checkpoint_keys(field_id)
        self._copied: int | None = None  # st_mtime_ns of the checkpoint that the store has
        self._next = 0.0  # monotonic seconds
        self._thread: threading.Thread | None = None

    @property
    def _notes(self) -> Path:
        return self.checkpoint.with_name(f"{self.checkpoint.name}.json")

    def fetch(self) -> None:
        """Puts the copy in the checkpoint's place if it is whole and has come further.

        Raises `StoreError` if it cannot be read: the scene would begin anew, and its next copy
        would replace one that may have come further.
        """
        notes_key, key = self.keys
        fetched = self.checkpoint.with_name(f"{self.checkpoint.name}.fetched")
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        try:
            # The other way round than it was written: notes may be ahead, never behind.
            self.store.download(key, fetched)
            if _step(fetched) > _step(self.checkpoint):
                self.store.download(notes_key, self._notes)
                os.replace(fetched, self.checkpoint)
                self._copied = self._written()
        except NotInStore:
            pass
        except Damaged as error:
            _log.warning("the checkpoint in the store cannot be resumed from: %s", error)
        finally:
            fetched.unlink(missing_ok=True)

    def offer(self) -> None:
        """Has a new checkpoint copied, if it is time; returns at once."""
        busy = self._thread is not None and self._thread.is_alive()
        if not busy and time.monotonic() >= self._next and self._written() != self._copied:
            self._thread = threading.Thread(target=self._copy, name="checkpoint-copy")
            self._thread.start()

    def finish(self) -> None:
        """Copies the last checkpoint of a scene that was stopped; returns when it is there."""
        self.settle()
        if self._written() != self._copied:
            self._copy()

    def settle(self) -> None:
        """Returns when no copy is under way."""
        if self._thread is not None:
            self._thread.join()

    def remove(self) -> None:
        """Removes the copy; what cannot be removed is left to `sjc verify --repair`."""
        self.settle()
        with contextlib.suppress(StoreError):
            for key in reversed(self.keys):
                self.store.delete(key)

    def _written(self) -> int | None:
        try:
            return self.checkpoint.stat().st_mtime_ns
        except FileNotFoundError:
            return self._copied  # nothing new

    def _copy(self) -> None:
        started, written = time.monotonic(), self._written()
        # The engine replaces its files at any time: what is copied has to stand still.
        still = self.checkpoint.with_name(f"{self.checkpoint.name}.copied")
        try:
            still.unlink(missing_ok=True)
            _link(self.checkpoint, still)
            self.store.put_bytes(self.keys[0], self._notes.read_bytes(), replace=True)
            self.store.put_file(self.keys[1], still, replace=True)
            self._copied = written
        except (StoreError, OSError) as error:
            _log.warning("a checkpoint is not in the store: %s", error)
        finally:
            still.unlink(missing_ok=True)
        ended = time.monotonic()
        self._next = ended + max(LEAST_SECONDS, (ended - started) / SHARE)


def finished_copies(store: Store, asset_ids: Iterable[str]) -> list[str]:
    """Keys of copies that are no longer needed: one of these assets has the field and is committed.

    The run that committed it died before the removal, or made no copies.
    """
    keys = list(store.list(CHECKPOINTS))
    if not keys:
        return []
    finished = set(read_ahead(partial(_finished_field, store), asset_ids))
    return [key for key in keys if key.split("/")[1] in finished]


def _finished_field(store: Store, asset_id: str) -> str | None:
    try:
        manifest = asset_manifest(store, asset_id)
        if manifest is None:
            return None
        attempt = read_attempt(store, attempt_key(asset_id, committed_attempt(manifest)))
        return str(attempt["field_id"])
    except (Damaged, NotInStore):  # another finding
        return None


def _step(path: Path) -> int:
    """How far a checkpoint has come; -1 for one that is not there or not whole."""
    from sjc_engine.optimization.checkpoint import CheckpointError, read_checkpoint  # torch

    try:
        return int(read_checkpoint(path)[1]["step"])
    except (CheckpointError, FileNotFoundError):
        return -1


def _link(path: Path, to: Path) -> None:
    try:
        os.link(path, to)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, to)
