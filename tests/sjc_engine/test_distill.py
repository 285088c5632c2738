"""Latents to RGB, with a decoder that is known: a linear map, then twice the resolution."""

import math

import pytest
import torch
import torch.nn.functional as F

from sjc_engine.camera import orbit
from sjc_engine.distill import distill_rgb
from sjc_engine.fields import VoxelField
from sjc_engine.recipes import OptimizeRecipe
from sjc_engine.render import composite, learned_background, render

RECIPE = OptimizeRecipe(grid_size=16, render_size=16, ray_step=0.08, half_length=0.7)


class LinearDecoder:
    def decode(self, latents):
        mix = torch.tensor([[0.5, 0.2, 0.0, 0.1], [0.0, 0.4, -0.3, 0.2], [-0.2, 0.0, 0.5, 0.3]])
        rgb = torch.einsum("rc,bchw->brhw", mix, latents)
        return F.interpolate(rgb, scale_factor=2, mode="nearest").clamp(-1, 1)


def latent_ball():
    """An opaque ball whose latents vary over its surface."""
    field = VoxelField(16, 4, 0.7, space="latent", generator=torch.Generator().manual_seed(0))
    line = (torch.arange(16) + 0.5) / 16 * 1.4 - 0.7
    z, y, x = torch.meshgrid(line, line, line, indexing="ij")
    with torch.no_grad():
        field.density[0, 0] = 200 * (0.4 - (x**2 + y**2 + z**2).sqrt())
        field.color[0] = torch.stack([3 * x, 2 * y, -2 * z, x * y])
        field.background.mul_(0.3)
    return field


def test_the_distilled_field_looks_like_the_decoded_one_from_unseen_views(monkeypatch):
    monkeypatch.setattr("sjc_engine.distill.STEPS", 100)
    field, prior = latent_ball(), LinearDecoder()
    result = distill_rgb(field, prior, RECIPE, seed=0)
    assert (result.space, result.channels) == ("rgb", 3)
    assert torch.equal(result.density_grid(), field.density_grid())
    for azimuth, elevation in ((13, 5), (100, 30), (205, 12), (310, 50)):
        camera = orbit(azimuth, elevation, fov_deg=55)
        with torch.no_grad():
            seen = render(field, camera, 48, 48)
            latents = composite(seen, learned_background(field, seen))
            target = F.avg_pool2d(prior.decode(latents[None]), 2)[0]
            view = render(result, camera, 48, 48)
            picture = composite(view, learned_background(result, view))
        error = F.mse_loss(picture, target).item()
        assert 10 * math.log10(4 / error) >= 30  # the range [-1, 1] spans 2


def test_distilling_is_repeatable(monkeypatch):
    monkeypatch.setattr("sjc_engine.distill.STEPS", 3)
    one, same, other = (
        distill_rgb(latent_ball(), LinearDecoder(), RECIPE, seed).color for seed in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.abs().max().item() == pytest.approx(0.15, abs=0.05)  # three steps of Adam
