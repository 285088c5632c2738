"""The toys' ray-caster against shapes whose images are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sjc_engine.rendering.camera import orbit, rays
from sjc_engine.toybox.training.objects.catalogue import CATEGORIES, PAPER_CATEGORIES, make_toy
from sjc_engine.toybox.training.raycast import Light, raycast
from sjc_engine.toybox.training.shapes import BANDS, RIBS, Builder, Pattern, Toy, rotation

OVERHEAD_LIGHT = Light((0.0, 1.0, 0.0), 0.5, 0.5)


def view(toy: Toy, azimuth: float, elevation: float = 0.0, size: int = 65, light=OVERHEAD_LIGHT):
    """(size, size, 4) image of one toy, fov 50 degrees at distance 1.5."""
    origins, directions = rays(orbit(azimuth, elevation), size, size)
    return raycast([toy], origins[:1], directions[None], [light])[0].view(size, size, 4)


def test_sphere_covers_its_analytic_disc():
    toy = Builder()
    toy.ellipsoid((3, 4, 5), 2.0, (1, 0, 0))
    image = view(toy.build(0.5), azimuth=30, elevation=20, size=201)
    # A sphere of radius r at distance d hides directions within asin(r / d) of the axis.
    origins, directions = rays(orbit(30, 20), 201, 201)
    towards = -origins[0] / origins[0].norm()
    inside = (directions @ towards) > math.cos(math.asin(0.5 / 1.5))
    assert (image[..., 3].reshape(-1).bool() ^ inside).float().mean() < 5e-4


@pytest.mark.parametrize("kind", ["box", "cone"])
def test_solid_agrees_with_points_sampled_inside_it(kind):
    """Brute force: a ray hits a solid exactly if one of many points along it lies inside."""
    turn = rotation("x", 0.4) @ rotation("z", 0.7)
    builder = Builder()
    if kind == "box":
        builder.box((0, 0, 0), (0.5, 0.3, 0.2), (0, 1, 0), turn)
    else:
        builder.cone((0, 0, 0), 0.5, 0.4, 0.15, (0, 1, 0), turn)
    toy = builder.build(0.55)
    image = view(toy, azimuth=70, elevation=25, size=48)
    origins, directions = rays(orbit(70, 25), 48, 48)
    t = torch.linspace(0.8, 2.2, 3000)
    hit = []
    for start, direction in zip(origins, directions, strict=True):
        points = start + t[:, None] * direction
        local = points.double().numpy() @ toy.to_local[0, :, :3].T + toy.to_local[0, :, 3]
        if kind == "box":
            inside = (np.abs(local) <= 1).all(1)
        else:
            bottom, top = toy.radii[0]
            radius = (bottom + top) / 2 + (top - bottom) / 2 * local[:, 1]
            inside = (np.abs(local[:, 1]) <= 1) & (np.hypot(local[:, 0], local[:, 2]) <= radius)
        hit.append(inside.any())
    differ = image[..., 3].reshape(-1).bool() ^ torch.tensor(hit)
    assert differ.sum() <= 3  # rays that graze an edge between two samples


def test_nearer_primitive_wins_and_light_comes_from_above():
    toy = Builder()
    toy.ellipsoid((-0.5, 0, 0), 0.3, (1, 0, 0))  # at the front
    toy.ellipsoid((0.5, 0, 0), 0.3, (0, 0, 1))
    built = toy.build(0.5)
    front, back = view(built, 0)[32, 32], view(built, 180)[32, 32]
    assert front[0] > 0.4
    assert front[2] == 0
    assert back[2] > 0.4
    assert back[0] == 0
    column = view(built, 0)[:, 32, 0]
    lit = column[column > 0]
    assert lit[0] > lit[-1]


def test_a_ball_shades_the_plate_below_it_and_not_itself():
    toy = Builder()
    toy.box((0, -0.5, 0), (1, 0.05, 1), (0, 1, 0))
    toy.ellipsoid((0, 0.3, 0), 0.3, (1, 0, 0))
    red, green, _, _ = view(toy.build(0.55), 0, elevation=40, size=129).unbind(-1)
    dimmed = 0.5 + 0.5 * (0.35 + 0.65 * (1 - OVERHEAD_LIGHT.shadow))
    lit = torch.isclose(green, torch.tensor(1.0)).sum()
    shaded = torch.isclose(green, torch.tensor(dimmed), atol=1e-4).sum()
    # A disc of the ball's radius on a plate of 2 x 2; the ball hides little of either.
    assert shaded / (lit + shaded) == pytest.approx(math.pi * 0.3**2 / 4, rel=0.2)
    assert red.max() > 0.99  # the ball's top


def test_patterns_repeat_as_often_as_they_say():
    def runs(line: torch.Tensor) -> int:
        """How often the second colour, blue, begins along a closed line."""
        second = line[:, 2] > line[:, 0]
        return int((second & ~second.roll(1)).sum())

    turn = torch.arange(720) * math.tau / 720
    circle = (32 + 12 * turn.cos()).round().long(), (32 + 12 * turn.sin()).round().long()
    for kind, line in ((BANDS, (slice(None), 32)), (RIBS, circle)):
        toy = Builder()
        toy.cone((0, 0, 0), 0.5, 0.5, 0.5, (1, 0, 0), None, Pattern(kind, (0, 0, 1), 6))
        image = view(toy.build(0.55), 0, elevation=0 if kind == BANDS else 89.9)
        assert runs(image[line]) == 6


def test_a_cone_of_three_half_axes_is_flat():
    toy = Builder()
    toy.cone((0, 0, 0), (0.4, 0.5, 0.02), 1, 0.01, (1, 0, 0))
    flat, wide = (view(toy.build(0.55), turn)[..., 3].sum() for turn in (0, 90))
    assert flat < 0.1 * wide


def test_images_of_a_batch_do_not_mix():
    rng = np.random.default_rng(0)
    toys = [make_toy(name, rng)[0] for name in ("duck", "house", "ficus")]
    cameras = [orbit(40 * k, 10) for k in range(3)]
    bundles = [rays(camera, 24, 24) for camera in cameras]
    origins = torch.stack([o[0] for o, _ in bundles])
    directions = torch.stack([d for _, d in bundles])
    together = raycast(toys, origins, directions, [OVERHEAD_LIGHT] * 3)
    for k, toy in enumerate(toys):
        alone = raycast([toy], origins[k : k + 1], directions[k : k + 1], [OVERHEAD_LIGHT])
        torch.testing.assert_close(together[k], alone[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("category", CATEGORIES)
def test_toys_are_reproducible_and_stay_inside_their_sphere(category):
    first, name = make_toy(category, np.random.default_rng(3))
    again, _ = make_toy(category, np.random.default_rng(3))
    np.testing.assert_array_equal(first.to_local, again.to_local)
    assert name is None or name.isalpha()
    # Seen from far away, the outline must lie within the disc of radius 0.62.
    origins, directions = rays(orbit(50, 30, radius=50.0, fov_deg=2.0), 64, 64)
    image = raycast([first], origins[:1], directions[None], [OVERHEAD_LIGHT])[0]
    seen = image[:, 3] > 0
    towards = -origins[0] / origins[0].norm()
    angle = torch.acos((directions[seen] @ towards).clamp(max=1))
    assert seen.any()
    assert 50 * angle.max() < 0.64


def test_front_is_minus_x_and_left_is_plus_z():
    """The duck's orange beak is in front, and to the left when seen from its left side (+Z)."""
    toy, _ = make_toy("duck", np.random.default_rng(1))

    def beak(azimuth: float) -> torch.Tensor:
        """Columns in which the beak shows, 0 to 64: little blue, and green well below red."""
        red, green, _, alpha = view(toy, azimuth, light=Light((0, 1, 0), 1.0, 0.0)).unbind(-1)
        return ((alpha > 0) & (green < 0.6 * red) & (red > 0.5)).any(0).nonzero()[:, 0]

    assert 25 < beak(0).float().mean() < 39
    assert len(beak(180)) == 0
    assert beak(90).float().mean() < 16
    assert beak(270).float().mean() > 48


def test_the_papers_six_categories_come_first():
    assert PAPER_CATEGORIES == ("burger", "duck", "ficus", "tank", "icecream", "giraffe")
    assert len(CATEGORIES) == 24
