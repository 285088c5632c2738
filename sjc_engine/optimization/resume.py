"""How a scene goes on after an interruption: its state as tensors, and the checkpoint's file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sjc_engine.fields.field import Field
from sjc_engine.optimization.checkpoint import CheckpointError, read_checkpoint
from sjc_engine.recipes import RECIPE_VERSION


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
        state = tensors_below(f"optimizer.{name}.", tensors)
        optimizer.state.pop(parameter, None)  # before the first step there is none
        if state:
            # In the parameter's memory layout; the step counter, a scalar, stays on the CPU
            optimizer.state[parameter] = {
                k: v.clone() if k == "step" else torch.empty_like(parameter).copy_(v)
                for k, v in state.items()
            }


def tensors_below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names begin so, under the rest of their names."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def read_scene(
    path: Path, prior_revision: str, image_sha256: str | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A scene's tensors and header. Raises CheckpointError, also for another prior or image."""
    tensors, header = read_checkpoint(path)
    wanted = (RECIPE_VERSION, header["prior_revision"])
    if (header["recipe_version"], prior_revision) != wanted:
        raise CheckpointError(f"checkpoint {path} is of another engine version or prior")
    if header["image"] != image_sha256:
        has = "none" if header["image"] is None else f"that of SHA-256 {header['image']}"
        given = "none" if image_sha256 is None else f"one of SHA-256 {image_sha256}"
        raise CheckpointError(f"checkpoint {path} is of another image: {has}, not {given}")
    return tensors, header
