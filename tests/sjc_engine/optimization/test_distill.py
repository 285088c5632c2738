"""Latents to RGB, with a VAE whose colours are known."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from known_priors import KnownPrior
from tiny_priors import build_color_prior, build_zero123_prior, colors_of

from sjc_engine.fields.kinds import KINDS
from sjc_engine.fields.voxel import VoxelField, grid_centers
from sjc_engine.guidance.view_prompts import view_prompt
from sjc_engine.image_file import InputImage
from sjc_engine.mesh.extract import extract_mesh
from sjc_engine.optimization.distill import decode_views, distill_rgb
from sjc_engine.optimization.loop import optimize
from sjc_engine.optimization.scene import Scene
from sjc_engine.priors.denoiser import load_prior
from sjc_engine.recipes import MeshRecipe, OptimizeRecipe, Recipe
from sjc_engine.rendering.background import learned_background
from sjc_engine.rendering.camera import orbit, sample_camera
from sjc_engine.rendering.volume import composite, render

HALF = 0.7
SMALL = {"grid_size": 16, "render_size": 16, "ray_step": 0.08, "half_length": HALF}
RECIPE = OptimizeRecipe(**SMALL)
FOV, ELEVATION = 50.0, (-5.0, 58.0)
HELD_OUT = [orbit(*angles, fov_deg=55) for angles in ((13, 5), (100, 30), (205, 12), (310, 50))]


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    return load_prior(str(build_color_prior(tmp_path_factory.mktemp("vae"))))


def latents_at(points):
    """Latents (..., 4) that make all colours around the object, alike at all depths."""
    x, y, z = (0.4 * F.normalize(points, dim=-1)).unbind(-1)
    return torch.stack([4 * x, 3 * y, -3 * z, torch.sin(4 * x * y)], dim=-1)


def fill(field):
    """Make it an opaque ball of radius 0.4 whose latents vary over its surface."""
    centers = grid_centers(16, HALF, field.background)
    with torch.no_grad():
        field.density[0, 0] = 200 * (0.4 - centers.norm(dim=-1))
        field.color[0] = latents_at(centers).movedim(-1, 0)
        field.background.mul_(0.3)
    return field


def latent_ball():
    generator = torch.Generator().manual_seed(0)
    return fill(VoxelField(16, 4, HALF, space="latent", generator=generator))


def psnr(a, b):
    return 10 * math.log10(4 / F.mse_loss(a, b).item())  # the range [-1, 1] spans 2


@pytest.mark.parametrize(("blocks", "factor"), [(2, 2), (4, 8)])
def test_the_vae_made_for_these_tests_decodes_to_its_colours(tmp_path, blocks, factor):
    prior = load_prior(str(build_color_prior(tmp_path, blocks)))
    latents = torch.randn(2, 4, 5, 7, generator=torch.Generator().manual_seed(0))
    expected = colors_of(latents.movedim(1, -1)).movedim(-1, 1)
    expected = F.interpolate(expected, scale_factor=factor, mode="nearest")
    torch.testing.assert_close(prior.decode(latents), expected, atol=2e-3, rtol=0)
    assert expected.std() > 0.4


def test_the_distilled_field_looks_like_the_decoded_one_from_unseen_views(prior):
    field = latent_ball()
    result = distill_rgb(field, prior, replace(RECIPE, distill_steps=100), seed=0)
    assert (result.space, result.channels) == ("rgb", 3)
    assert torch.equal(result.density_grid(), field.density_grid())
    decoded = decode_views(field, prior, HELD_OUT, 48)
    for camera, target in zip(HELD_OUT, decoded, strict=True):
        with torch.no_grad():
            view = render(result, camera, 96, 96)
            picture = composite(view, learned_background(result, view))
        assert psnr(picture, target) >= 25


def test_decoded_views_are_the_decoders_pictures_of_rendered_latents(prior):
    field = latent_ball()
    pictures = list(decode_views(field, prior, HELD_OUT, 12))
    assert [picture.shape for picture in pictures] == [(3, 24, 24)] * 4
    with torch.no_grad():
        view = render(field, HELD_OUT[2], 12, 12)
        latents = composite(view, learned_background(field, view))
    expected = colors_of(latents.movedim(0, -1)).movedim(-1, 0)
    expected = expected.repeat_interleave(2, 1).repeat_interleave(2, 2)
    torch.testing.assert_close(pictures[2], expected, atol=2e-3, rtol=0)


def test_a_gpu_without_memory_for_all_views_decodes_half_of_them(prior, monkeypatch):
    field, sizes = latent_ball(), []
    one_by_one = list(decode_views(field, prior, HELD_OUT, 12))
    decode = prior.decode

    def scarce(latents, on_work):
        sizes.append(len(latents))
        if len(latents) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return decode(latents, on_work)

    monkeypatch.setattr(prior, "device", torch.device("cuda"))
    together = list(decode_views(field, prior, HELD_OUT, 12))
    monkeypatch.setattr(prior, "decode", scarce)
    halved = list(decode_views(field, prior, HELD_OUT, 12))
    assert sizes == [4, 2, 1, 1, 2, 1, 1]
    for pictures in (together, halved):
        torch.testing.assert_close(torch.stack(pictures), torch.stack(one_by_one))
    monkeypatch.setattr(prior, "decode", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(decode_views(field, prior, HELD_OUT, 12))


def test_every_block_of_every_view_and_every_step_is_heard_of(prior):
    """A view takes half a minute with Stable Diffusion on a CPU, and silence looks like a hang."""
    heard = []
    recipe = replace(RECIPE, distill_views=3, distill_steps=2)
    distill_rgb(latent_ball(), prior, recipe, seed=0, on_work=lambda *what: heard.append(what))
    assert heard == [
        ("decoding views", 0, 3),
        *(
            line
            for k in range(3)
            for line in (
                *((f"decoding views {k}/3, block", block, 2) for block in (1, 2)),
                ("decoding views", k + 1, 3),
            )
        ),
        *(("fitting colours", k, 2) for k in range(2)),
    ]


def test_views_are_decoded_from_where_the_scene_was_trained(prior, monkeypatch):
    seen = []

    def listening(field, prior, cameras, size, **options):
        seen.extend(cameras)
        return decode_views(field, prior, cameras, size, **options)

    monkeypatch.setattr("sjc_engine.optimization.distill.decode_views", listening)
    recipe = OptimizeRecipe(
        **SMALL, elevation_min=-20, elevation_max=15, fov_min=44, fov_max=46, radius=1.8,
        distill_steps=1, distill_views=48,
    )  # fmt: skip
    distill_rgb(latent_ball(), prior, recipe, seed=0)
    assert len(seen) == 48
    elevations = [camera.elevation_deg for camera in seen]
    assert -20 <= min(elevations) < -15
    assert 10 < max(elevations) <= 15
    assert all(44 <= math.degrees(camera.fov) <= 46 for camera in seen)
    for camera in seen:
        assert camera.camera_to_world[:3, 3].norm().item() == pytest.approx(1.8)


@pytest.mark.parametrize("background", ["white", "learned"])
def test_views_of_a_scene_from_a_picture_are_decoded_over_what_it_was_trained_over(
    tmp_path, monkeypatch, background
):
    behind = []

    def listening(*arguments, **options):
        behind.append(options["behind"])
        return decode_views(*arguments, **options)

    monkeypatch.setattr("sjc_engine.optimization.distill.decode_views", listening)
    prior = load_prior(str(build_zero123_prior(tmp_path)))
    changes = {"distill_views": 1, "distill_steps": 1, "background": background}
    recipe = Recipe.for_prior(prior).override(SMALL | changes)
    picture = InputImage(torch.zeros(3, 16, 16), torch.ones(16, 16), "ab" * 32)
    scene = Scene("a ball", "", 0, recipe, prior, picture)
    scene.finish()
    white = scene.reference.white
    assert [b is None or torch.equal(b, white) for b in behind] == [True]
    assert (behind[0] is None) == (background == "learned")


def test_a_mesh_from_latents_has_their_colours(prior):
    """The whole way of a latent scene: finish, extract, look at every vertex."""
    recipe = Recipe.for_prior(prior.id, "paper").override({**SMALL, "distill_steps": 100})
    scene = Scene("a ball", "", 0, recipe, prior)
    fill(scene.field)
    mesh = extract_mesh(scene.finish(), MeshRecipe(mesh_resolution=48))
    vertices = torch.from_numpy(mesh.vertices)
    expected = (colors_of(latents_at(vertices)) + 1) / 2
    error = (torch.from_numpy(mesh.colors) - expected).abs()
    below = vertices[:, 1] < -0.25  # the paper's cameras hardly see it
    assert error[~below].mean() < 0.04
    assert error[~below].quantile(0.99) < 0.16
    as_if_rgb = (latents_at(vertices)[:, :3].clamp(-1, 1) + 1) / 2  # what other exporters write
    assert (as_if_rgb - expected).abs().mean() > 0.12


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_latent_field_is_distilled(kind, prior):
    generator = torch.Generator().manual_seed(0)
    field = KINDS[kind](8, 4, HALF, space="latent", generator=generator)
    result = distill_rgb(field, prior, replace(RECIPE, distill_steps=2), seed=0)
    assert (result.kind, result.space, result.resolution) == ("voxel", "rgb", 8)


def test_distilling_is_repeatable(prior):
    recipe = replace(RECIPE, distill_steps=3)
    one, same, other = (distill_rgb(latent_ball(), prior, recipe, s).color for s in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.abs().max().item() == pytest.approx(0.15, abs=0.05)  # three steps of Adam


class KnownLatents(KnownPrior):
    """Knows how the latent ball looks from each side, and decodes as the VAE does."""

    latent = True

    def __init__(self, decoder, count=500):
        self._decoder = decoder
        ball, generator = latent_ball(), torch.Generator().manual_seed(1)
        pictures, groups = [], {}
        for k in range(count):
            camera = sample_camera(generator, fov_deg=(FOV, FOV), elevation_deg=ELEVATION)
            view = view_prompt(camera.azimuth_deg, camera.elevation_deg, "detailed")
            groups.setdefault(f"{view} x", []).append(k)
            with torch.no_grad():
                view = render(ball, camera, 16, 16, step=0.08)
                pictures.append(composite(view, torch.zeros(4, 1, 1)))
        levels = (0.05, 6.0)
        super().__init__(torch.stack(pictures), groups=groups, levels=levels, guided=False)

    def decode(self, latents, on_work):
        return self._decoder.decode(latents, on_work)


def test_a_run_in_latents_ends_as_a_mesh_with_their_colours(prior):
    """Optimised from nothing by scores of latent pictures, decoded, distilled and cut out."""
    changes = {
        "distill_steps": 100,
        "steps": 250,
        "guidance_scale": 1.0,
        "sigma_schedule": "annealed",
        "tick_min": 0,
        "tick_max": 999,
        "views_per_step": 2,
        "view_style": "detailed",
        "elevation_min": ELEVATION[0],
        "elevation_max": ELEVATION[1],
        "fov_min": FOV,
        "fov_max": FOV,
        "emptiness_weight": 1.0,
        "background_lr": 0.05,
        "color_init": 0.1,
    }
    recipe = Recipe.for_prior("owner/name", "paper").override(SMALL | changes)
    [field] = optimize(["x"], KnownLatents(prior), recipe)
    assert (field.space, field.channels) == ("rgb", 3)
    mesh = extract_mesh(field, MeshRecipe(mesh_resolution=48, texture_size=0))
    above = mesh.vertices[:, 1] > -0.2  # no camera saw the ball from below
    vertices = torch.from_numpy(mesh.vertices[above])
    assert vertices.norm(dim=1).mean().item() == pytest.approx(0.4, abs=0.05)
    expected = (colors_of(latents_at(vertices)) + 1) / 2
    error = (torch.from_numpy(mesh.colors[above]) - expected).abs()
    assert error.mean() < 0.1
    shuffled = expected[torch.randperm(len(expected), generator=torch.Generator().manual_seed(0))]
    assert (shuffled - expected).abs().mean() > 0.25  # colours differ from place to place
