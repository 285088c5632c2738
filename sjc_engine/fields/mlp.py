"""A mip-NeRF field (Barron et al. 2021) as DreamFusion has it: a network over encoded Gaussians.

Every sample is a Gaussian as large as its piece of the pixel's cone. Its integrated positional
encoding (mip-NeRF, eq. 14) damps the frequencies that the piece would blur, so that far and
coarse renderings do not alias.
"""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sjc_engine.fields.field import ConeSamples, Field

# DreamFusion (appendix A.2) adds a density of lambda (1 - |x| / c): an object in the middle.
BLOB_DENSITY, BLOB_RADIUS = 5.0, 0.5


class MLPField(Field):
    """Density and colour of a point from two hidden layers over its encoding.

    `frequencies` L: sines and cosines of 2^0 ... 2^(L - 1) times the position in half lengths.
    `resolution` is what a mesh of it is sampled at. The colour does not depend on the direction.
    """

    kind = "mlp"
    needs_cones = True
    default_sizes: ClassVar = {"width": 64, "frequencies": 6}

    def create(self, color_init: float, generator: torch.Generator | None) -> None:
        """He initialisation; the last layer's colours start with a deviation of `color_init`."""
        width = self.sizes["width"]
        layers = [6 * self.sizes["frequencies"], width, width, 1 + self.channels]
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for fan_in, fan_out in pairwise(layers):
            weight = (2 / fan_in) ** 0.5 * torch.randn(fan_out, fan_in, generator=generator)
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(torch.zeros(fan_out)))
        with torch.no_grad():
            self.weights[-1][0] *= 0.1  # the blob, not chance, is where density starts
            self.weights[-1][1:] *= color_init * 0.5**0.5

    def sample(self, points: Tensor, cones: ConeSamples | None = None) -> tuple[Tensor, Tensor]:
        hidden = self.encode(points, cones)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            hidden = F.relu(F.linear(hidden, weight, bias))
        output = F.linear(hidden, self.weights[-1], self.biases[-1])
        radius = (points / self.half_length).norm(dim=-1)
        blob = BLOB_DENSITY * (1 - radius / BLOB_RADIUS)
        return F.softplus(output[:, 0] + blob), self._activate_color(output[:, 1:])

    def encode(self, points: Tensor, cones: ConeSamples | None = None) -> Tensor:
        """The integrated positional encoding (n, 6 L): sin and cos damped by exp(-4^l var / 2).

        The variance along each axis of a Gaussian around a ray: along^2 d^2 + across^2 (1 - d^2).
        """
        unit = (points / self.half_length).to(self.dtype)
        octaves = torch.arange(self.sizes["frequencies"], device=unit.device, dtype=unit.dtype)
        scale = 2.0**octaves
        angle = (unit[:, None] * scale[:, None]).flatten(1)  # (n, 3 L)
        if cones is None:
            return torch.cat([angle.sin(), angle.cos()], dim=1)
        square = cones.directions.square()
        spread = cones.along.square()[:, None] * square
        spread = spread + cones.across.square()[:, None] * (1 - square)
        spread = (spread / self.half_length**2).to(unit.dtype)
        damping = torch.exp(-0.5 * (spread[:, None] * scale.square()[:, None]).flatten(1))
        return torch.cat([damping * angle.sin(), damping * angle.cos()], dim=1)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        return {"network": [*self.weights, *self.biases], "background": [self.background]}
