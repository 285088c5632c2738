"""A field and its optimiser as they were some steps ago, to go back to when a loss explodes."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sjc_engine.fields import Field

SNAPSHOT_STEPS = 100  # between two snapshots: what a roll-back can cost
LR_FACTOR = 0.5  # of the learning rates after it


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A copy in the device's memory. The grid's resolution must not change in between."""

    step: int
    parameters: dict[str, Tensor]
    optimizer: dict[str, Any]

    @classmethod
    def take(cls, step: int, field: Field, optimizer: torch.optim.Optimizer) -> Snapshot:
        parameters = {name: value.detach().clone() for name, value in field.named_parameters()}
        return cls(step, parameters, copy.deepcopy(optimizer.state_dict()))

    def restore(self, field: Field, optimizer: torch.optim.Optimizer) -> None:
        with torch.no_grad():
            for name, parameter in field.named_parameters():
                parameter.copy_(self.parameters[name])
        optimizer.load_state_dict(copy.deepcopy(self.optimizer))
        for group in optimizer.param_groups:
            group["lr"] *= LR_FACTOR
