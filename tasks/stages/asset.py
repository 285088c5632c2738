"""One asset on its way through the stages."""

import contextlib
import dataclasses
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sjc_engine.fields.field import Field
from sjc_engine.files import write_atomically
from sjc_engine.mesh.gltf import Mesh
from sjc_engine.spec import AssetSpec
from tasks.store.checkpoints import CheckpointCopy
from tasks.store.interface import Store
from tasks.tables.write import TableWriter

Document = dict[str, Any]


@dataclasses.dataclass(eq=False)
class Asset:
    """What the stages of one asset hand on: each adds what it made.

    name: readable, unique within a run. scratch: where checkpoints and unfinished files are, the
    same folder for every run, so that an interrupted asset resumes there. rows: what writes its
    rows. donor: a finished asset with the same field, if there is one. image: the file of the
    spec's picture. checkpoint_to_store: whether checkpoints are copied to the store.
    """

    name: str
    spec: AssetSpec
    store: Store
    scratch: Path
    rows: TableWriter
    coverage: float | None = None
    donor: str | None = None
    image: Path | None = None
    checkpoint_to_store: bool = False
    attempt: str = ""  # "a01", once it has begun
    # By a person, this asset alone.
    cancelled: threading.Event = dataclasses.field(default_factory=threading.Event)
    device: str | None = None
    first_step: int | None = None
    last_step: int | None = None
    report: Document = dataclasses.field(default_factory=dict)
    timings: dict[str, float] = dataclasses.field(default_factory=dict)
    field: Field | None = None
    mesh: Mesh | None = None
    # To publish, by name within the attempt.
    files: dict[str, Path] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.id = self.spec.asset_id
        self.folder = self.scratch / "assets" / self.id
        stem = self.scratch / "fields" / self.spec.field_id
        self.field_path = stem.with_suffix(".safetensors")
        self.checkpoint = stem.with_suffix(".checkpoint")
        copied = self.checkpoint_to_store
        self.copy = CheckpointCopy(self.store, stem.name, self.checkpoint) if copied else None

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Counts the seconds of a stage, also of one that fails."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.timings[stage] = self.timings.get(stage, 0.0) + time.perf_counter() - started

    @property
    def seconds(self) -> float:
        """Of work, so far; the wait for a device is none."""
        return sum(seconds for stage, seconds in self.timings.items() if stage != "queue")

    @property
    def _field_notes(self) -> Path:
        return self.field_path.with_suffix(".json")

    def keep_field(self, notes: Document) -> None:
        """Marks the field as finished, with what is known of its optimisation."""
        write_atomically(self._field_notes, json.dumps(notes).encode())
        self._drop_checkpoint()

    def kept_field(self) -> Document | None:
        """The notes of a field that an earlier run, or another asset, left finished."""
        if not (self.field_path.exists() and self._field_notes.exists()):
            return None
        try:
            notes: Document = json.loads(self._field_notes.read_text("utf-8"))
        except ValueError:  # torn
            return None
        return notes

    def drop_field(self) -> None:
        """Removes a field that is torn, so that the next run optimises it again."""
        self._field_notes.unlink(missing_ok=True)
        self.field_path.unlink(missing_ok=True)

    def lost(self, error: BaseException) -> str:
        """Why `error` is the scratch folder's and not the asset's own; empty if it is its own."""
        if isinstance(error, OSError):
            name = error.filename  # none of an error at an open file
            if name is None or Path(os.fsdecode(name)).is_relative_to(self.scratch):
                return str(error)
        needed = [self.field_path] if "optimize" in self.timings else []
        needed += [self.folder] if self.mesh is not None else []
        needed += [self.image] if self.image and self.image.is_relative_to(self.scratch) else []
        return next((f"{path} is gone" for path in needed if not path.exists()), "")

    def clear(self, *, field: bool) -> None:
        """Removes what the store has by now; `field` unless another asset waits for it."""
        self.field = self.mesh = None
        shutil.rmtree(self.folder, ignore_errors=True)
        if field:
            self._drop_checkpoint()
            self.drop_field()

    def drop_copy(self) -> None:
        """Removes the checkpoint from the store, which has the field by now."""
        if self.copy is not None:
            self.copy.remove()

    def _drop_checkpoint(self) -> None:
        for path in self.checkpoint.parent.glob(f"{self.checkpoint.name}*"):
            path.unlink(missing_ok=True)
