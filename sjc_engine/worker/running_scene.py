"""A scene on board of an engine process: its checkpoint, its result and its clock."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sjc_engine.fields.field import Field
from sjc_engine.files import write_atomically
from sjc_engine.image_file import ImageError, InputImage, read_image
from sjc_engine.optimization.checkpoint import CheckpointError
from sjc_engine.optimization.scene import Scene, StepStats
from sjc_engine.priors.denoiser import Prior
from sjc_engine.spec import AssetSpec
from sjc_engine.worker.checkpoint_timing import first_save, next_save

Message = dict[str, Any]


@dataclass
class SceneTotals:
    """What a scene's steps have cost so far; kept beside its checkpoint."""

    seconds: float = 0.0
    loss_first: float | None = None
    loss_last: float | None = None
    loss_min: float | None = None

    def count(self, stats: StepStats, seconds: float) -> None:
        self.seconds += seconds
        self.loss_last = stats.loss
        self.loss_first = stats.loss if self.loss_first is None else self.loss_first
        self.loss_min = stats.loss if self.loss_min is None else min(self.loss_min, stats.loss)


class RunningScene:
    """A scene on board, with its paths and its clock."""

    def __init__(self, message: Message, prior: Prior) -> None:
        spec = AssetSpec.from_json(message["spec"])
        self.key: str = message["scene"]
        self.field = Path(message["field"])
        self.checkpoint = Path(message["checkpoint"])
        self._totals_file = self.checkpoint.with_name(f"{self.checkpoint.name}.json")
        self._step_file = self.checkpoint.with_name(f"{self.checkpoint.name}.step")
        for path in (self.field, self.checkpoint):
            path.parent.mkdir(parents=True, exist_ok=True)
        image = _image(message.get("image"), spec)
        self.scene, self.totals = self._resumed(prior, image) or (
            Scene(spec.prompt, spec.negative_prompt, spec.seed, spec.recipe, prior, image),
            SceneTotals(),
        )
        self.first_step = self.scene.step
        again = self._reached() - self.first_step
        if self.first_step or again:
            place = f"from step {self.first_step}, {again} steps again"
            log(f"{self.key} resumes {place}")
        self.next_save = first_save()
        self.last_report = 0.0
        self.unsaved: str | None = None

    def _resumed(self, prior: Prior, image: InputImage | None) -> tuple[Scene, SceneTotals] | None:
        if not self.checkpoint.exists():
            return None
        try:
            scene = Scene.load(self.checkpoint, prior, image)
            return scene, SceneTotals(**json.loads(self._totals_file.read_text("utf-8")))
        except (CheckpointError, FileNotFoundError, ValueError) as error:
            log(f"{self.key} starts again: {error}")
            return None

    def _reached(self) -> int:
        """The last step that an earlier process told of; at least the checkpoint's."""
        try:
            return max(self.scene.step, int(self._step_file.read_text("ascii")))
        except (OSError, ValueError):
            return self.scene.step

    def record_step(self) -> None:
        """Leaves word of the step, so that whoever goes on can tell what a crash has cost."""
        with contextlib.suppress(OSError):  # only a word
            # Over the last one, of the same length: a kill must not find the file cut to nothing
            word = os.open(self._step_file, os.O_WRONLY | os.O_CREAT, 0o666)
            try:
                os.write(word, b"%-12d" % self.scene.step)
            finally:
                os.close(word)

    def save(self) -> None:
        """Raises Diverged, and leaves the last checkpoint, when the field is not finite.

        A disk that takes no more leaves the last checkpoint as well, and `unsaved` tells of it.
        """
        started = time.monotonic()
        try:
            # Notes first: a checkpoint without them would be worth nothing, and notes that are
            # ahead of it count the time that was really spent.
            write_atomically(self._totals_file, json.dumps(asdict(self.totals)).encode())
            self.scene.save(self.checkpoint)
            self.unsaved = None
        except OSError as error:
            self.unsaved = f"{self.checkpoint.parent}: {error.strerror or error}"
            log(f"{self.key} has no checkpoint of step {self.scene.step}: {error}")
        self.next_save = next_save(time.monotonic() - started)

    def write(self, field: Field) -> None:
        """The result. On a disk that is full it takes the checkpoint's place, which is larger."""
        try:
            field.save(self.field)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            self.checkpoint.unlink(missing_ok=True)
            field.save(self.field)

    def place(self) -> Message:
        place = {"scene": self.key, "first_step": self.first_step, "step": self.scene.step}
        return place | {"history": self.scene.history}

    def progress(self) -> Message:
        steps = self.scene.recipe.optimize.steps
        numbers = {"steps": steps, "loss": self.totals.loss_last, "seconds": self.totals.seconds}
        return {"type": "progress", **self.place(), **numbers, "unsaved": self.unsaved}


def log(text: str) -> None:
    """A line for the log, if that takes one: it may lie on a disk that is full."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def _image(path: str | None, spec: AssetSpec) -> InputImage | None:
    """The picture that the spec means. Raises ImageError."""
    image = None if path is None else read_image(path)
    if (image and image.sha256) != spec.image:
        raise ImageError("image", f"{path} has changed since this run was planned", "run it again")
    return image
