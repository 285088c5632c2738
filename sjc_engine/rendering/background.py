"""What is behind the object: the field's own texture on a sphere, or a random picture."""

from __future__ import annotations

import torch
from torch import Tensor

from sjc_engine.fields.field import Field
from sjc_engine.memory import upload
from sjc_engine.rendering.volume import Rendering


def learned_background(field: Field, rendering: Rendering) -> Tensor:
    """The field's own background behind this rendering, (..., C, H, W)."""
    colors = field.background_rgb(rendering.directions.reshape(-1, 3))
    *views, _, height, width = rendering.rgb.shape
    return colors.view(*views, height, width, -1).movedim(-1, -3)


def random_background(images: Tensor, generator: torch.Generator) -> Tensor:
    """A background in [-1, 1] for each picture (V, C, H, W): plain, or a vertical gradient.

    Half of them are plain. The gradient's other end is a nearby colour.
    """
    count, channels, height, _ = images.shape
    top, other = 2 * torch.rand(2, count, channels, 1, 1, generator=generator) - 1
    plain = torch.rand(count, 1, 1, 1, generator=generator) < 0.5
    bottom = torch.where(plain, top, torch.lerp(top, other, 0.6))
    ramp = torch.linspace(0, 1, height).view(1, 1, height, 1)
    return upload(torch.lerp(top, bottom, ramp), images.device).expand_as(images)
