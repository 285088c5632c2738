import math
from dataclasses import replace

import pytest
import torch

from sjc_engine.fields.kinds import KINDS
from sjc_engine.fields.voxel import VoxelField
from sjc_engine.optimization.losses import (
    DEPTH_KNEE,
    center_depth,
    depth_smoothness,
    distortion,
    emptiness,
    near_view,
    opacity_entropy,
    total_variation,
)
from sjc_engine.rendering.camera import orbit
from sjc_engine.rendering.volume import render, render_views


def test_emptiness_is_the_mean_over_all_samples():
    field = VoxelField(6, 3, generator=torch.Generator().manual_seed(0)).double()
    cameras = [orbit(10, 20), orbit(200, 40)]
    for beta in (10.0, 3.0, 1e5):
        view = render_views(field, cameras, 5, 5, emptiness_scale=beta)
        assert len(set((view.weights > 0).sum(-1).flatten().tolist())) > 2, "some lie outside"
        expected = torch.log(1 + beta * view.weights).mean()
        assert emptiness(view).item() == pytest.approx(expected.item(), rel=1e-12)
    assert emptiness(render_views(field, cameras, 5, 5)).item() == 0


def depth_map(center, border, size=64):
    depth = torch.full((size, size), float(border), dtype=torch.float64)
    depth[7:-7, 7:-7] = center
    return depth


def test_center_depth_is_minus_the_log_of_the_difference():
    assert center_depth(depth_map(1.0, 4.0)).item() == pytest.approx(-math.log(3.0), rel=1e-12)
    stack = torch.stack([depth_map(1.0, 4.0), depth_map(1.0, 2.0)])
    assert center_depth(stack).item() == pytest.approx(-math.log(3.0) / 2, rel=1e-12)
    small = torch.full((32, 32), 4.0)
    small[4:-4, 4:-4] = 1.0  # round(32 * 7 / 64) = 4 (banker's rounding of 3.5)
    assert center_depth(small).item() == pytest.approx(-math.log(3.0), rel=1e-6)
    wide = torch.full((3, 32, 64), 4.0)
    wide[:, 4:-4, 7:-7] = 1.0
    assert center_depth(wide).item() == pytest.approx(-math.log(3.0), rel=1e-6)


@pytest.mark.parametrize(("height", "width"), [(4, 64), (64, 4), (8, 13)])
def test_the_border_of_a_small_map_is_a_pixel_wide(height, width):
    dy, dx = (7 if side == 64 else 1 for side in (height, width))
    depth = torch.full((height, width), 4.0)
    depth[dy:-dy, dx:-dx] = 1.0
    assert center_depth(depth).item() == pytest.approx(-math.log(3.0), rel=1e-6)


def center_slope(center, form):
    depth = depth_map(center, 2.0).requires_grad_()
    center_depth(depth, form).backward()
    return depth.grad[7:-7, 7:-7].sum().item()


@pytest.mark.parametrize("center", [1.0, 1.95, 2.0, 3.0])
def test_fixed_center_depth_always_draws_the_center_forwards(center):
    assert center_slope(center, "fixed") > 0  # descending makes the center's depth smaller
    assert math.isfinite(center_depth(depth_map(center, 2.0)).item())


def test_official_center_depth_has_the_published_gradient():
    """-log(center - border + 1e-12) as in the code: NaN in value, 1/difference in gradient."""
    for center in (1.0, 3.0):
        depth = depth_map(center, 2.0).requires_grad_()
        inner = depth[7:-7, 7:-7]
        border = (depth.sum() - inner.sum()) / (64 * 64 - 50 * 50)
        (-torch.log(inner.mean() - border + 1e-12)).backward()
        assert center_slope(center, "official") == pytest.approx(
            depth.grad[7:-7, 7:-7].sum().item(), rel=1e-6
        )
    assert center_slope(1.0, "official") > 0
    assert center_slope(3.0, "official") < 0  # the bug: behind the border it is pushed away


def test_fixed_center_depth_is_smooth_at_its_knee():
    below, above = (
        center_depth(depth_map(2.0 - DEPTH_KNEE + side * 1e-7, 2.0)).item() for side in (1, -1)
    )
    assert below == pytest.approx(above, abs=1e-5)
    slopes = [center_slope(2.0 - DEPTH_KNEE + side * 1e-7, "fixed") for side in (1, -1)]
    assert slopes[0] == pytest.approx(slopes[1], rel=1e-4)


def test_opacity_entropy_is_least_where_rays_are_decided():
    assert opacity_entropy(torch.tensor([0.5])).item() == pytest.approx(math.log(2), rel=1e-6)
    assert opacity_entropy(torch.tensor([0.0, 1.0])).item() < 2e-4
    expected = -(0.2 * math.log(0.2) + 0.8 * math.log(0.8))
    assert opacity_entropy(torch.tensor([0.2])).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("size", "neighbours"), [(3, 6), (2, 3)])
def test_total_variation_counts_every_pair_of_neighbours(size, neighbours):
    field = VoxelField(size, 1, color_init=0.0)
    with torch.no_grad():
        field.density[0, 0, 1, 1, 1] = 2.0
        field.color[0, 0, 0, 0, 0] = 3.0  # three neighbours
    assert total_variation(field).item() == pytest.approx(neighbours * 4.0 + 3 * 9.0)


def test_gradients_are_right():
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(9, 9, generator=generator, dtype=torch.float64) * 0.8 + 0.1
    values.requires_grad_()
    assert torch.autograd.gradcheck(opacity_entropy, values)


@pytest.mark.parametrize("form", ["fixed", "official"])
@pytest.mark.parametrize("center", [1.0, 1.95, 3.0])  # before the border, at the knee, behind it
def test_center_depths_gradients_are_right(center, form):
    depth = (depth_map(center, 2.0, size=16) + 0.01 * torch.arange(16)).requires_grad_()
    assert torch.autograd.gradcheck(lambda d: center_depth(d, form), depth)


def test_distortions_gradients_are_right():
    field = VoxelField(4, half_length=0.7).double()
    view = render(field, orbit(30, 20), 3, 3, step=0.2)
    weights = view.weights.detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda w: distortion(replace(view, weights=w)), weights)


@pytest.mark.parametrize("kind", ["voxel", "tensorf", "plenoxels"])
def test_total_variations_gradients_are_right(kind):
    field = KINDS[kind](3, 1, generator=torch.Generator().manual_seed(0)).double()

    class Variation(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.field = field

        def forward(self):
            return total_variation(self.field)

    names, values = zip(*field.named_parameters(), strict=True)

    def loss(*parameters):
        named = {f"field.{name}": value for name, value in zip(names, parameters, strict=True)}
        return torch.func.functional_call(Variation(), named)

    assert torch.autograd.gradcheck(loss, values)


def test_losses_of_other_views_are_what_they_say():
    depth = torch.tensor([[1.0, 2.0, 4.0], [1.0, 5.0, 4.0]], dtype=torch.float64)
    across, down = (1 + 2 + 4 + 1) / 4, (0 + 3 + 0) / 3
    assert depth_smoothness(depth).item() == pytest.approx((across + down) / 2, rel=1e-12)
    assert depth_smoothness(torch.stack([depth, depth])).item() == pytest.approx(
        depth_smoothness(depth).item(), rel=1e-12
    )
    one, other = torch.ones(1, 2, 2, 2), torch.full((1, 2, 2, 2), -3.0)
    assert near_view(one, other, depth, depth + 0.5).item() == pytest.approx(4.5)


def test_gradients_of_other_views_are_right():
    generator = torch.Generator().manual_seed(1)

    def values(*shape):
        drawn = torch.rand(*shape, generator=generator, dtype=torch.float64)
        return drawn.requires_grad_()

    pictures, maps = [values(2, 3, 4, 4) for _ in range(2)], [values(2, 4, 4) for _ in range(2)]
    assert torch.autograd.gradcheck(depth_smoothness, maps[0])
    assert torch.autograd.gradcheck(near_view, (*pictures, *maps))


def test_distortion_is_the_double_sum():
    field = VoxelField(6, half_length=0.7, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        field.density.normal_(generator=torch.Generator().manual_seed(1))
    view = render(field, orbit(30, 20), 4, 4, step=0.13)
    total = 0.0
    for weights, chord in zip(view.weights, view.chord, strict=True):
        edges = torch.minimum(view.t_edges, chord)
        middle, length = (edges[1:] + edges[:-1]) / 2, edges.diff()
        total += (weights[:, None] * weights * (middle[:, None] - middle).abs()).sum()
        total += (weights**2 * length).sum() / 3
    assert distortion(view).item() == pytest.approx(total.item() / 16, rel=1e-9)
    stack = render_views(field, [orbit(30, 20), orbit(70, 10)], 4, 4, step=0.13)
    other = render_views(field, [orbit(70, 10)], 4, 4, step=0.13)
    assert distortion(stack).item() == pytest.approx(
        (distortion(view).item() + distortion(other).item()) / 2, rel=1e-9
    )
