import math

import pytest
import torch

from sjc_engine.fields.voxel import VoxelField
from sjc_engine.rendering import volume as render_module
from sjc_engine.rendering.background import learned_background, random_background
from sjc_engine.rendering.camera import orbit, rays, sample_camera
from sjc_engine.rendering.volume import (
    BACKGROUND_DEPTH,
    composite,
    intersect_box,
    render,
    render_views,
)


def constant_field(density, half=0.7, color=0.5):
    """Density `density` per unit length and colour `color` everywhere in the box."""
    field = VoxelField(4, 3, half, space="latent").double()
    with torch.no_grad():
        field.density.fill_(math.log(math.expm1(density)) + 1)
        field.color.fill_(color)
    return field


def chord_lengths(camera, size, half):
    """Length of each ray inside the cube, from the six faces, one ray at a time."""
    lengths = []
    origins, directions = rays(camera, size, size, dtype=torch.float64)
    for o, d in zip(origins.tolist(), directions.tolist(), strict=True):
        low, high = 0.0, math.inf
        for axis in range(3):
            a, b = sorted(((-half - o[axis]) / d[axis], (half - o[axis]) / d[axis]))
            low, high = max(low, a), min(high, b)
        lengths.append(max(0.0, high - low))
    return torch.tensor(lengths, dtype=torch.float64).view(size, size)


@pytest.mark.parametrize("step", [0.01, 0.037, 0.5, 5.0])
@pytest.mark.parametrize("density", [0.3, 10.0])
@pytest.mark.parametrize("jittered", [False, True])
def test_constant_density_has_the_exact_transmittance(step, density, jittered):
    field, camera = constant_field(density), orbit(25, 17, fov_deg=60)
    generator = torch.Generator().manual_seed(0) if jittered else None
    rendering = render_views(field, [camera], 8, 8, step=step, generator=generator)
    if jittered:
        jitter = torch.Generator().manual_seed(0)
        torch.rand((), generator=jitter, dtype=torch.float64)
        _, moved = rays(camera, 8, 8, torch.rand(8, 8, 2, generator=jitter) - 0.5, torch.float64)
        origin = camera.camera_to_world[:3, 3].expand_as(moved)
        length = intersect_box(origin, moved, field.aabb)[1].view(8, 8)
    else:
        length = chord_lengths(camera, 8, 0.7)
    expected = 1 - torch.exp(-density * length)
    torch.testing.assert_close(rendering.opacity[0], expected, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(rendering.weights.sum(-1).view(8, 8), expected)
    torch.testing.assert_close(rendering.rgb[0], (0.5 * expected).expand(3, 8, 8))


class Analytic(VoxelField):
    """A field whose density at points (n, 3) is a given function, in a box of given corners."""

    def __init__(self, density, corner=(0.7, 0.7, 0.7)):
        super().__init__(4, 3, 0.7, space="latent")
        self.double()
        self.density_at, self.corner = density, corner

    @property
    def aabb(self):
        corner = torch.tensor(self.corner, dtype=torch.float64)
        return torch.stack([-corner, corner])

    def sample(self, points, cones=None):
        return self.density_at(points), super().sample(points)[1]


def test_a_slab_has_the_exact_transmittance():
    """exp(-sigma t / |d_x|) through a wall of thickness t, seen from the front."""
    camera = orbit(20, 10, fov_deg=20)
    slab = Analytic(lambda p: torch.full_like(p[:, 0], 7.0), corner=(0.05, 0.7, 0.7))
    rendering = render(slab, camera, 8, 8, step=0.013)
    _, directions = rays(camera, 8, 8, dtype=torch.float64)
    expected = torch.exp(-7.0 * 0.1 / directions[:, 0].abs()).view(8, 8)
    torch.testing.assert_close(1 - rendering.opacity, expected, atol=1e-14, rtol=1e-13)


def from_the_center(camera, size):
    """How far each ray passes from the origin."""
    origins, directions = rays(camera, size, size, dtype=torch.float64)
    return torch.linalg.cross(origins, directions).norm(dim=-1).view(size, size)


def test_a_soft_sphere_has_the_exact_transmittance():
    """Density A exp(-r^2 / 2 w^2) has the optical depth A w sqrt(2 pi) exp(-b^2 / 2 w^2).

    The midpoint rule's error is exp(-2 pi^2 w^2 / step^2) of it: none, for a step of w / 2.
    """
    camera, a, w = orbit(40, 25, fov_deg=40), 30.0, 0.08
    sphere = Analytic(lambda p: a * torch.exp(-p.square().sum(1) / (2 * w**2)))
    rendering = render(sphere, camera, 9, 9, step=w / 2)
    b = from_the_center(camera, 9)
    optical = a * w * math.sqrt(2 * math.pi) * torch.exp(-(b**2) / (2 * w**2))
    assert optical.min() < 1e-3 < 5 < optical.max()
    torch.testing.assert_close(1 - rendering.opacity, torch.exp(-optical), atol=1e-12, rtol=1e-11)


@pytest.mark.parametrize("step", [0.05, 0.01, 0.002])
def test_a_hard_sphere_is_off_by_less_than_one_interval(step):
    """Optical depth sigma times the chord, whose two ends fall into intervals."""
    camera, density, radius = orbit(40, 25, fov_deg=40), 9.0, 0.4
    sphere = Analytic(lambda p: density * (p.norm(dim=1) < radius).double())
    rendering = render(sphere, camera, 9, 9, step=step)
    chord = 2 * (radius**2 - from_the_center(camera, 9) ** 2).clamp(min=0).sqrt()
    error = -torch.log1p(-rendering.opacity) - density * chord
    assert error.abs().max() <= density * step
    assert (chord > 0).sum() > 20


def test_float32_keeps_the_slab_to_1e_6():
    camera = orbit(25, 17, fov_deg=60)
    opacity = render(constant_field(10.0).float(), camera, 8, 8, step=0.01).opacity
    expected = 1 - torch.exp(-10.0 * chord_lengths(camera, 8, 0.7))
    assert (opacity - expected).abs().max() < 1e-6


def test_a_camera_inside_the_box_sees_only_what_is_before_it():
    field, camera = constant_field(2.0, half=1.0), orbit(0, 0, radius=0.5)
    rendering = render(field, camera, 3, 3, step=0.01)
    assert rendering.opacity[1, 1].item() == pytest.approx(1 - math.exp(-2.0 * 1.5), abs=1e-9)


def test_rays_that_miss_see_the_background():
    field = constant_field(5.0, half=0.2)
    rendering = render(field, orbit(45, 0, fov_deg=100), 9, 9)
    assert rendering.opacity[0, 0] == 0
    assert rendering.depth[0, 0] == BACKGROUND_DEPTH
    assert rendering.opacity[4, 4] > 0.5
    picture = composite(rendering, torch.full((3, 1, 1), -1.0, dtype=torch.float64))
    assert (picture[:, 0, 0] == -1).all()


def test_opaque_depth_is_the_distance_to_the_box():
    field = constant_field(500.0)
    rendering = render(field, orbit(0, 0), 3, 3, step=0.001)
    assert rendering.depth[1, 1].item() == pytest.approx(1.5 - 0.7 + 1 / 500, abs=1e-3)


def straight_line_render(field, camera, size, step):
    """The quadrature of the module's docstring, one ray and one sample at a time."""
    origins, directions = rays(camera, size, size, dtype=torch.float64)
    pictures, depths = [], []
    for origin, direction in zip(origins, directions, strict=True):
        near, length = intersect_box(origin[None], direction[None], field.aabb)
        transmittance, color, depth, start = 1.0, torch.zeros(3, dtype=torch.float64), 0.0, 0.0
        while start < length.item():
            end = min(start + step, length.item())
            distance = near.item() + (start + end) / 2
            point = (origin + distance * direction)[None]
            alpha = 1 - math.exp(-field.sigma(point).item() * (end - start))
            color = color + transmittance * alpha * field.rgb(point)[0].detach()
            depth += transmittance * alpha * distance
            transmittance *= 1 - alpha
            start = end
        pictures.append(color)
        depths.append(depth + transmittance * BACKGROUND_DEPTH)
    picture = torch.stack(pictures).T.view(3, size, size)
    return picture, torch.tensor(depths, dtype=torch.float64).view(size, size)


def random_field(n=5, half=0.7):
    generator = torch.Generator().manual_seed(0)
    field = VoxelField(n, 3, half, generator=generator).double()
    with torch.no_grad():
        field.density.normal_(generator=generator).mul_(4)
    return field


def test_rendering_equals_a_straight_line_transcription():
    field, camera = random_field(), orbit(70, 33, fov_deg=50)
    rendering = render(field, camera, 5, 5, step=0.05)
    picture, depth = straight_line_render(field, camera, 5, 0.05)
    torch.testing.assert_close(rendering.rgb, picture, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(rendering.depth, depth, atol=1e-10, rtol=1e-10)


def test_gradients_are_right():
    """With respect to density, colour and d_scale, through every output."""
    field, camera = random_field(3), orbit(70, 33, fov_deg=50)
    names = ["density", "color", "d_scale"]

    def outputs(*values):
        for name, value in zip(names, values, strict=True):
            field._parameters.pop(name, None)
            setattr(field, name, value)  # a plain attribute, so that the graph reaches the input
        views = render_views(field, [camera], 3, 3, step=0.3)
        return views.rgb, views.opacity, views.depth, views.weights

    inputs = [getattr(field, name).detach().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(outputs, inputs, atol=1e-6)


def test_background_gradients_are_right():
    field, camera = random_field(3), orbit(10, 20)
    rendering = render(field, camera, 3, 3)
    picture = composite(rendering, learned_background(field, rendering))
    picture.sum().backward()
    step = 1e-6
    with torch.no_grad():
        field.background[0, 1, 2, 1] += step
        moved = composite(rendering, learned_background(field, rendering))
    slope = (moved - picture.detach()).sum() / step
    assert field.background.grad[0, 1, 2, 1].item() == pytest.approx(slope.item(), rel=1e-4)


@pytest.mark.parametrize(
    ("azimuth", "elevation", "row", "column"),
    [
        # A blob at -X and a little at +Z (the object's left) and +Y
        (0, 0, "upper", "right"),
        (90, 0, "upper", "left"),
        (180, 0, "upper", "left"),
        (270, 0, "upper", "right"),
        (0, 89.9, "lower", "right"),
        (0, -89.9, "upper", "right"),
    ],
)
def test_a_blob_is_seen_where_the_camera_convention_puts_it(azimuth, elevation, row, column):
    field = VoxelField(16, 3, 0.7)
    with torch.no_grad():
        field.density.fill_(-9.0)
        field.density[0, 0, 9:11, 9:11, 2:4] = 300.0  # [z, y, x]
    seen = render(field, orbit(azimuth, elevation), 33, 33).opacity
    rows, columns = (seen > 0.5).nonzero().double().mean(dim=0).tolist()
    assert (rows < 16) == (row == "upper")
    assert (columns > 16) == (column == "right")
    if azimuth in (0, 180) and elevation == 0:
        assert abs(rows - 16) < 8
        assert abs(columns - 16) < 8  # in front and behind it is near the centre
    elif elevation == 0:
        assert abs(columns - 16) > 9  # from the sides it is far out


def test_a_stack_of_views_is_the_views():
    field = random_field()
    cameras = [orbit(0, 10), orbit(120, -5, fov_deg=40)]
    stack = render_views(field, cameras, 6, 6, step=0.05)
    for k, camera in enumerate(cameras):
        one = render(field, camera, 6, 6, step=0.05)
        torch.testing.assert_close(stack.rgb[k], one.rgb)
        torch.testing.assert_close(stack.depth[k], one.depth)
        torch.testing.assert_close(
            learned_background(field, stack)[k], learned_background(field, one)
        )


def test_large_pictures_are_rendered_in_parts_with_the_same_result(monkeypatch):
    field, camera = random_field(), orbit(33, 20)
    whole = render(field, camera, 9, 9)
    monkeypatch.setattr(render_module, "RAYS_PER_CHUNK", 7)
    parts = render(field, camera, 9, 9)
    torch.testing.assert_close(whole.rgb, parts.rgb, atol=1e-13, rtol=1e-13)
    torch.testing.assert_close(whole.weights, parts.weights, atol=1e-13, rtol=1e-13)


def test_random_backgrounds_are_plain_or_gradients_in_range():
    images = torch.zeros(400, 3, 8, 8)
    backgrounds = random_background(images, torch.Generator().manual_seed(0))
    assert backgrounds.shape == images.shape
    assert backgrounds.abs().max() <= 1
    plain = (backgrounds == backgrounds[..., :1, :1]).flatten(1).all(dim=1).float().mean()
    assert 0.4 < plain < 0.6
    assert (backgrounds == backgrounds[..., :1]).all()  # gradients run from top to bottom


def test_training_cameras_render_finite_pictures_from_inside_the_papers_box():
    """The paper's box reaches beyond its cameras: half-length 1, cameras at 1.5."""
    field = VoxelField(8, 4, 1.0, space="latent")
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        camera = sample_camera(generator)
        rendering = render_views(field, [camera], 8, 8, step=0.02, generator=generator)
        assert torch.isfinite(rendering.rgb).all()
        assert (rendering.opacity >= 0).all()
        assert (rendering.opacity <= 1).all()


def test_step_must_be_positive():
    with pytest.raises(ValueError, match="step must be positive"):
        render(random_field(), orbit(0, 0), 4, 4, step=0.0)
