"""The way back from a step that is not finite: snapshots of a scene, and its measurements."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sjc_engine.fields.field import Field
from sjc_engine.optimization.resume import put_state, state_tensors, tensors_below

SNAPSHOT_STEPS = 100  # between two snapshots: what a roll-back can cost
LR_FACTOR = 0.5  # of the learning rates after it
HISTORY_POINTS = 100  # of a scene's history, beside its first step and its last

# What was the first in a step not to be finite; "loss" stands for its gradient too
Culprit = Literal["field", "prior", "loss"]

# A step and a copy of its state in the device's memory. The grid's resolution must not change in
# between.
Snapshot = tuple[int, dict[str, Tensor]]


class DeferredScalars:
    """A step's numbers on their way from the device; nobody waits before they are asked for."""

    def __init__(self, step: int, values: Tensor) -> None:
        self.step = step  # that measured them, counted from 1
        self._there = values  # (n,)
        self._here = values.to("cpu", non_blocking=True)
        self._arrival = torch.cuda.Event() if values.is_cuda else None
        if self._arrival:
            # Its own device's: the current one may be another
            self._arrival.record(torch.cuda.current_stream(values.device))

    def clear_gradients_unless_finite(self, field: nn.Module) -> None:
        """Takes a field's gradients away, on the device, unless all numbers are finite."""
        sound = torch.isfinite(self._there).all()
        for parameter in field.parameters():
            if parameter.grad is not None:
                parameter.grad = torch.where(sound, parameter.grad, 0.0)

    def numbers(self) -> list[float]:
        if self._arrival:
            self._arrival.synchronize()
        return self._here.tolist()


@dataclass
class Recovery:
    """What a scene's steps measured, and the way back from one that was not finite."""

    plateau_steps: int  # the spans that a plateau is judged by; 0: never
    stride: int  # the steps between two points of the history
    rolled_back: bool = False
    measured: list[float] | None = None  # what the last good step did
    scores: list[float] = field(default_factory=list)  # of the last two spans
    # Steps with what they measured: the first, each multiple of the stride, and the last so far
    history: list[list[float]] = field(default_factory=list)
    snapshot: Snapshot | None = None
    culprit: Culprit | None = None  # of the last step that was not finite
    unread: DeferredScalars | None = None  # of the last step, where the device is not waited for

    @property
    def lr_factor(self) -> float:
        return LR_FACTOR if self.rolled_back else 1.0

    def keep(self, step: int, field: Field, optimizer: torch.optim.Optimizer) -> None:
        """Takes a snapshot when one is due."""
        due = step % SNAPSHOT_STEPS == 0 or self.snapshot is None
        if due and not self.rolled_back:
            state = state_tensors(field, optimizer)
            self.snapshot = step, {k: v.detach().clone() for k, v in state.items()}

    def accept(self, scalars: DeferredScalars) -> bool:
        """Notes what a step measured, if all of it is finite."""
        *values, steepest, images_finite, answer_finite = scalars.numbers()
        if not all(map(math.isfinite, [*values, steepest])):
            self.culprit = "loss" if answer_finite else "prior"
            if not images_finite:  # what the prior was asked with
                self.culprit = "field"
            self.unread = None
            return False
        self.measured = values
        if self.history and self.history[-1][0] > 1 and self.history[-1][0] % self.stride:
            self.history.pop()  # it was there as the last
        self.history.append([scalars.step, *(float(f"{value:.6g}") for value in values)])
        if self.plateau_steps:
            self.scores = [*self.scores, values[1]][-2 * self.plateau_steps :]
        return True

    def go_back(self, field: Field, optimizer: torch.optim.Optimizer) -> int | None:
        """To the last snapshot, at half the learning rate, once: its step. None: no way back."""
        if self.rolled_back or self.snapshot is None:
            return None
        self.rolled_back = True
        (step, tensors), self.snapshot = self.snapshot, None
        self.history = [point for point in self.history if point[0] <= step]
        put_state(field, optimizer, tensors)
        for group in optimizer.param_groups:
            group["lr"] *= LR_FACTOR
        return step

    def on_plateau(self, tolerance: float) -> bool:
        """Whether the score's mean over the last span is hardly below that of the one before."""
        span = self.plateau_steps
        if not span or len(self.scores) < 2 * span:
            return False
        before, after = sum(self.scores[:span]), sum(self.scores[span:])
        return after > (1 - tolerance) * before

    def header(self) -> dict[str, Any]:
        """For the checkpoint, beside `tensors`."""
        return {
            "rolled_back": self.rolled_back,
            "snapshot_step": self.snapshot[0] if self.snapshot else None,
            "measured": self.measured,
            "scores": self.scores,
            "history": self.history,
        }

    def tensors(self, field: Field, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """The state of a scene, and of the snapshot that it can go back to."""
        tensors = state_tensors(field, optimizer)
        if self.snapshot and not self.rolled_back:
            tensors |= {f"snapshot.{name}": value for name, value in self.snapshot[1].items()}
        return tensors

    def restore(self, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `header` and `tensors`."""
        self.rolled_back, self.scores = header["rolled_back"], header["scores"]
        self.measured = header["measured"]
        self.history = header.get("history", [])  # older checkpoints have none
        if earlier := tensors_below("snapshot.", tensors):
            self.snapshot = header["snapshot_step"], earlier
