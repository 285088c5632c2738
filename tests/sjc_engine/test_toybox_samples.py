"""The sampler against a denoiser whose samples are known."""

from __future__ import annotations

import torch

from sjc_engine.prior import Cond
from sjc_engine.toybox.samples import sample


class OnePoint:
    """The exact denoiser of data that is a single image: D(x) is that image, whatever x."""

    channels, resolution = 3, 4
    sigmas = torch.logspace(-1.6, 1.15, 1000, dtype=torch.float64)
    image = torch.linspace(-0.9, 0.9, 48).view(3, 4, 4)

    def condition(self, prompts):
        return Cond(torch.zeros(len(prompts), 1, 1))

    def denoise(self, x, sigma, cond):
        return self.image.expand_as(x)


def test_ddim_ends_on_the_data():
    images = sample(OnePoint(), ["a", "b"], torch.Generator().manual_seed(0))
    torch.testing.assert_close(images, OnePoint.image.expand(2, 3, 4, 4))


class Gaussian(OnePoint):
    """Data N(0, s^2) has D(x) = x s^2 / (s^2 + sigma^2)."""

    spread, resolution = 0.25, 32

    def denoise(self, x, sigma, cond):
        s = sigma.view(-1, 1, 1, 1)
        return x * self.spread**2 / (self.spread**2 + s**2)


def test_ddim_reproduces_a_gaussians_spread():
    images = sample(Gaussian(), ["a"] * 8, torch.Generator().manual_seed(0), steps=200)
    assert abs(float(images.std()) - Gaussian.spread) < 0.02
