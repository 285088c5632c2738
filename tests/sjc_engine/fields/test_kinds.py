"""What every kind of field keeps of the protocol, and what is particular to each."""

import math

import numpy as np
import pytest
import torch
from tiny_priors import build_pixel_prior

from sjc_engine.fields.field import ConeSamples
from sjc_engine.fields.kinds import KINDS, load_field
from sjc_engine.fields.mlp import MLPField
from sjc_engine.fields.plenoxels import PlenoxelField, harmonics
from sjc_engine.fields.tensorf import TensorField
from sjc_engine.fields.voxel import VoxelField, grid_centers, voxelize
from sjc_engine.mesh.extract import extract_mesh
from sjc_engine.mesh.iso_level import iou
from sjc_engine.optimization.loop import step_scenes
from sjc_engine.optimization.scene import Scene
from sjc_engine.priors.denoiser import load_prior
from sjc_engine.recipes import MeshRecipe, Recipe
from sjc_engine.rendering.camera import orbit
from sjc_engine.rendering.rasterize import rasterize
from sjc_engine.rendering.volume import render, render_views

HALF = 0.7
RATES = {"mlp": 0.02, "tensorf": 0.02}
# Numbers for gradcheck, which evaluates a field twice for each of them
FEW = {"mlp": {"width": 8, "frequencies": 3}, "tensorf": {"density_rank": 2, "color_rank": 3}}


def make(kind, resolution=6, channels=3, space="rgb", seed=0, **extra):
    generator = torch.Generator().manual_seed(seed)
    return KINDS[kind](resolution, channels, HALF, space=space, generator=generator, **extra)


def inside(count, seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(count, 3, generator=generator, dtype=dtype) - 0.5) * 2 * HALF * 0.95


def cone_samples(count, seed=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(count, 3, generator=generator, dtype=dtype)
    size = torch.rand(2, count, generator=generator, dtype=dtype) * 0.05
    return ConeSamples(directions / directions.norm(dim=-1, keepdim=True), size[0], size[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("space", ["rgb", "latent"])
def test_density_and_colour_are_in_range(kind, space):
    field = make(kind, channels=4, space=space)
    points = inside(50)
    for density, color in (field.sample(points), field.sample(points, cone_samples(50))):
        assert density.shape == (50,)
        assert color.shape == (50, 4)
        assert (density >= 0).all()
        assert space == "latent" or color.abs().max() <= 1
    torch.testing.assert_close(field.sigma(points), field.sample(points)[0])
    torch.testing.assert_close(field.rgb(points), field.sample(points)[1])
    assert (field.sigma(points + 2 * HALF) == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences(kind):
    field = make(kind, resolution=3, **FEW.get(kind, {})).double()
    points, seen = inside(5, dtype=torch.float64), cone_samples(5, dtype=torch.float64)
    names, values = zip(*field.named_parameters(), strict=True)

    def outputs(*parameters):
        both = torch.func.functional_call(
            field, dict(zip(names, parameters, strict=True)), (points, seen)
        )
        return both

    field.forward = field.sample
    assert torch.autograd.gradcheck(outputs, values)


@pytest.mark.parametrize("kind", KINDS)
def test_the_renderers_gradients_are_those_of_finite_differences(kind):
    field = make(kind, resolution=3).double()
    names, values = zip(*field.named_parameters(), strict=True)

    class Shot(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.field = field

        def forward(self):
            view = render_views(self.field, [orbit(30, 20)], 3, 3, step=0.2, emptiness_scale=10.0)
            return view.rgb, view.opacity, view.depth, view.emptiness

    shot = Shot()

    def outputs(*parameters):
        named = {f"field.{name}": value for name, value in zip(names, parameters, strict=True)}
        return torch.func.functional_call(shot, named)

    # Along random directions: a field's own derivatives are checked one by one above.
    assert torch.autograd.gradcheck(outputs, values, fast_mode=True)


@pytest.mark.parametrize("kind", KINDS)
def test_saving_is_bit_stable(kind, tmp_path):
    field = make(kind, channels=4, space="latent", **FEW.get(kind, {}))
    field.save(tmp_path / "a")
    loaded = load_field(tmp_path / "a")
    loaded.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert type(loaded) is type(field)
    assert (loaded.space, loaded.half_length, loaded.resolution) == ("latent", HALF, 6)
    points = inside(20)
    for mine, other in zip(field.sample(points), loaded.sample(points), strict=True):
        torch.testing.assert_close(mine, other, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("kind", ["voxel", "tensorf", "plenoxels"])
def test_resampling_keeps_the_scene_in_place(kind):
    """Smooth content: what a coarse grid can hold, a finer one shows at the same places."""
    field = make(kind, resolution=16, space="latent")
    with torch.no_grad():
        for grid in field.grids():
            axes = [n for n in grid.shape[2:] if n > 1]
            waves = [torch.linspace(0, math.pi, n).sin() for n in axes]
            pattern = waves[0]
            for wave in waves[1:]:
                pattern = pattern[..., None] * wave
            grid.copy_(pattern.view(1, 1, *grid.shape[2:]).expand_as(grid))
    points = inside(200) * 0.8
    before = [value.detach() for value in field.sample(points)]
    field.resample(32)
    assert field.resolution == 32
    assert all(max(grid.shape[2:]) == 32 for grid in field.grids())
    for old, new in zip(before, field.sample(points), strict=True):
        assert (old - new).abs().max() < 0.02 * old.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_voxels_show_what_the_field_shows(kind):
    field = make(kind, resolution=12)
    voxels = voxelize(field)
    assert isinstance(voxels, VoxelField)
    centers = grid_centers(12, HALF, field.background).view(-1, 3)
    for mine, other in zip(field.sample(centers), voxels.sample(centers), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-3, rtol=1e-3)
    assert voxelize(voxels) is voxels


def test_a_tensor_field_is_the_grid_that_its_factors_span():
    """Eq. 3 of TensoRF written out: sum over planes and ranks of plane times line."""
    field = make("tensorf", resolution=5, space="latent", density_rank=2, color_rank=3)

    def dense(plane, line):  # -> (products, z, y, x)
        p, q = plane.detach(), line.detach()[..., 0]
        xy_z = torch.einsum("ryx,rz->rzyx", p[0], q[0])
        xz_y = torch.einsum("rzx,ry->rzyx", p[1], q[1])
        yz_x = torch.einsum("rzy,rx->rzyx", p[2], q[2])
        return torch.cat([xy_z, xz_y, yz_x])

    centers = grid_centers(5, HALF, field.background).view(-1, 3)
    density, color = field.sample(centers)
    expected = dense(field.density_plane, field.density_line).sum(0).flatten()
    torch.testing.assert_close(density, torch.nn.functional.softplus(expected - 1))
    products = dense(field.color_plane, field.color_line).flatten(1)
    torch.testing.assert_close(color, (field.basis @ products).T, atol=1e-5, rtol=1e-4)


def test_a_tensor_field_is_small():
    count = sum(p.numel() for p in make("tensorf", resolution=64).parameters())
    assert count < 0.35 * sum(p.numel() for p in make("voxel", resolution=64).parameters())


def test_harmonics_are_orthonormal_on_the_sphere():
    rng = np.random.default_rng(0)
    nodes, weights = np.polynomial.legendre.leggauss(8)
    angles = 2 * np.pi * (np.arange(16) + rng.random()) / 16
    z, phi = (part.ravel() for part in np.meshgrid(nodes, angles, indexing="ij"))
    radius = np.sqrt(1 - z**2)
    directions = np.stack([radius * np.cos(phi), radius * np.sin(phi), z], axis=1)
    area = np.repeat(weights, 16) * 2 * np.pi / 16
    basis = harmonics(torch.from_numpy(directions)).numpy()
    np.testing.assert_allclose(basis.T @ (area[:, None] * basis), np.eye(9), atol=1e-12)


def test_plenoxels_look_different_from_different_sides():
    field = make("plenoxels", space="latent")
    points = inside(1).expand(2, 3)
    opposite = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    seen = ConeSamples(opposite, torch.zeros(2), torch.zeros(2))
    with torch.no_grad():
        same = field.sample(points, seen)[1]
        torch.testing.assert_close(same[0], same[1])
        torch.testing.assert_close(same, field.rgb(points))  # at first alike on all sides
        field.color.view(1, 3, 9, 6, 6, 6)[:, :, 3] = 1.0  # the harmonic of x
        front, back = field.sample(points, seen)[1]
    torch.testing.assert_close(front - back, torch.full((3,), 2 * 0.4886025), atol=1e-5, rtol=1e-5)


def test_the_integrated_encoding_is_the_mean_over_the_cones_gaussian():
    """mip-NeRF, eq. 14, against 200,000 points of that Gaussian."""
    field: MLPField = make("mlp", frequencies=4)
    direction = torch.tensor([[0.6, 0.0, 0.8]])
    point, along, across = torch.tensor([[0.1, -0.2, 0.3]]), 0.09, 0.04
    seen = ConeSamples(direction, torch.tensor([along]), torch.tensor([across]))
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(200_000, 3, generator=generator)
    forwards = (normal @ direction.T) * direction
    cloud = point + along * forwards + across * (normal - forwards)
    torch.testing.assert_close(
        field.encode(point, seen), field.encode(cloud).mean(0, keepdim=True), atol=0.01, rtol=0
    )
    assert field.encode(point, seen).abs().sum() < field.encode(point).abs().sum()


def test_an_mlp_starts_as_a_blob_in_the_middle():
    field = make("mlp")
    middle, corner = torch.zeros(1, 3), torch.full((1, 3), 0.95 * HALF)
    assert field.sigma(middle) > 3
    assert field.sigma(corner) < 0.05


def test_pixels_that_look_farther_see_larger_cones():
    """The renderer's own account of each sample: along from the step, across from the distance."""
    heard = []

    class Listening(MLPField):
        def sample(self, points, cones=None):
            heard.append((points, cones))
            return super().sample(points, cones)

    camera = orbit(0, 0, fov_deg=60)
    render_views(Listening(4, 3, HALF), [camera], 4, 4, step=0.1)
    [(points, seen)] = heard
    distance = (points.double() - camera.camera_to_world[:3, 3]).norm(dim=-1)
    width = 2 * math.tan(math.radians(30)) / 4  # of a pixel, at distance 1
    torch.testing.assert_close(seen.across.double(), distance * width / 12**0.5)
    assert seen.along.max() == pytest.approx(0.1 / 12**0.5, rel=1e-6)
    torch.testing.assert_close(seen.directions.norm(dim=-1), torch.ones(len(points)))


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    return load_prior(str(build_pixel_prior(tmp_path_factory.mktemp("pixel"))))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("growing", [False, True])
def test_every_field_is_optimised_and_resumes_bit_for_bit(kind, growing, prior, tmp_path):
    changes = {"field": kind, "steps": 4, "grid_size": 8, "render_size": 8, "ray_step": 0.1}
    changes |= {"mlp_width": 8, "background": "learned"}
    if growing:
        changes |= {"grid_start": 4, "grid_grow_at": 0.25}
    if growing and kind == "mlp":
        with pytest.raises(ValueError, match="grid_start: the field 'mlp' has no grid; use 0"):
            Recipe.for_prior("toybox").override(changes)
        return
    recipe = Recipe.for_prior("toybox").override(changes)

    def run(scene, steps):
        for _ in range(steps):
            step_scenes([scene], prior)
        return scene

    first = Scene("a duck", "", 3, recipe, prior)
    start = [p.detach().clone() for p in first.field.parameters()]
    whole = run(first, 4)
    run(Scene("a duck", "", 3, recipe, prior), 2).save(tmp_path / "scene")
    resumed = run(Scene.load(tmp_path / "scene", prior), 2)
    mine, other = list(whole.field.parameters()), list(resumed.field.parameters())
    assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True))
    moved = [a.shape != b.shape or not torch.equal(a, b) for a, b in zip(start, mine, strict=True)]
    assert all(moved), "some parameters do not learn"


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_is_meshed(kind):
    """Density 40 in a ball of radius 0.4, nothing outside, as far as the field can hold it."""
    field = make(kind, resolution=24)
    optimizer = torch.optim.Adam(field.parameters(), lr=RATES.get(kind, 0.2))
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        points = (torch.rand(2000, 3, generator=generator) - 0.5) * 2 * HALF
        wanted = 40 * torch.sigmoid((0.4 - points.norm(dim=-1)) / 0.02)
        density, color = field.sample(points, cone_samples(2000))
        loss = (torch.log1p(density) - torch.log1p(wanted)).square().mean()
        loss = loss + (color - 0.5).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    mesh = extract_mesh(field, MeshRecipe(mesh_resolution=32, max_faces=4000, texture_size=128))
    for camera in (orbit(20, 5), orbit(130, 35)):
        with torch.no_grad():
            seen = render(field, camera, 64, 64).opacity > 0.5
        assert iou(rasterize(mesh, camera, 64, 64).opacity > 0.5, seen) > 0.93
    assert np.abs(mesh.colors - 0.75).mean() < 0.1


def test_impossible_fields_are_refused():
    with pytest.raises(ValueError, match=r"sizes must be at least 1.*density_rank"):
        TensorField(8, density_rank=0)
    with pytest.raises(ValueError, match=r"sizes must be at least 1.*width"):
        MLPField(8, width=0)
    with pytest.raises(TypeError, match="kind 'mlp' has no density_rank"):
        MLPField(8, density_rank=2)
    with pytest.raises(ValueError, match="a field needs"):
        PlenoxelField(1)
