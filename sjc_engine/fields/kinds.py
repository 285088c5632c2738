"""Radiance fields: one small base class (`Field`), four ways to keep one, and their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open

from sjc_engine.fields.field import Field, Space
from sjc_engine.fields.mlp import MLPField
from sjc_engine.fields.plenoxels import PlenoxelField
from sjc_engine.fields.tensorf import TensorField
from sjc_engine.fields.voxel import VoxelField
from sjc_engine.recipes import OptimizeRecipe

KINDS: dict[str, type[Any]] = {
    field.kind: field for field in (VoxelField, TensorField, PlenoxelField, MLPField)
}


def make_field(
    recipe: OptimizeRecipe, channels: int, space: Space, generator: torch.Generator
) -> Field:
    """The field that a recipe begins with."""
    sizes: dict[str, int] = {}
    if recipe.field == "tensorf":
        sizes = {"density_rank": recipe.density_rank, "color_rank": recipe.color_rank}
    elif recipe.field == "mlp":
        sizes = {"width": recipe.mlp_width, "frequencies": recipe.mlp_frequencies}
    return KINDS[recipe.field](
        recipe.grid_start or recipe.grid_size,
        channels,
        recipe.half_length,
        space=space,
        color_init=recipe.color_init,
        generator=generator,
        **sizes,
    )


def load_field(path: str | Path) -> Field:
    """Read a field written by `Field.save`; ValueError when the file is not one."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["field"])
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        if header["space"] not in get_args(Space):
            raise KeyError(header["space"])

        def build() -> Field:
            made: Field = KINDS[header["kind"]](
                header["resolution"],
                header["channels"],
                float(header["half_length"]),
                space=header["space"],
                **header["config"],
            )
            return made

        with torch.device("meta"):  # a header may ask for any amount of memory
            shapes = {name: tensor.shape for name, tensor in build().state_dict().items()}
        if shapes != {name: tensor.shape for name, tensor in tensors.items()}:
            raise RuntimeError("its tensors are not those of its header")
        field = build()
        field.load_state_dict(tensors)
    except (SafetensorError, KeyError, TypeError, RuntimeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a field: {error}") from error
    return field
