"""The tensors of a field and its optimiser: as they are kept, and gone back to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sjc_engine.fields import Field

SNAPSHOT_STEPS = 100  # between two snapshots: what a roll-back can cost
LR_FACTOR = 0.5  # of the learning rates after it


def state_tensors(field: Field, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All that the next step depends on, by name; not copied."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in field.named_parameters():
        tensors[f"field.{name}"] = parameter
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{key}"] = value
    return tensors


@torch.no_grad()
def put_state(
    field: Field, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """The inverse of `state_tensors`, for a field of the same resolution. Values are copied."""
    for name, parameter in field.named_parameters():
        parameter.copy_(tensors[f"field.{name}"])
        prefix = f"optimizer.{name}."
        state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        optimizer.state.pop(parameter, None)  # before the first step there is none
        if state:
            # In the parameter's memory layout; the step counter, a scalar, stays on the CPU
            optimizer.state[parameter] = {
                k: v.clone() if k == "step" else torch.empty_like(parameter).copy_(v)
                for k, v in state.items()
            }


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A copy in the device's memory. The grid's resolution must not change in between."""

    step: int
    tensors: dict[str, Tensor]

    @classmethod
    def take(cls, step: int, field: Field, optimizer: torch.optim.Optimizer) -> Snapshot:
        state = state_tensors(field, optimizer)
        return cls(step, {name: value.detach().clone() for name, value in state.items()})
