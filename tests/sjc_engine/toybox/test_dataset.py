"""Training data: reproducible, captioned by what is seen, composited right."""

from __future__ import annotations

import numpy as np
import torch
import trimesh

from sjc_engine.evaluation.pictures import take_pictures
from sjc_engine.fields.kinds import make_field
from sjc_engine.guidance.view_prompts import view_prompt
from sjc_engine.mesh.gltf import Mesh
from sjc_engine.recipes import Recipe
from sjc_engine.rendering.camera import evaluation_cameras, orbit, rays
from sjc_engine.toybox.training.dataset import (
    FOV_DEG,
    OUTDOORS,
    STUDIO,
    STYLES,
    cached_toys,
    clay_light,
    in_clay,
    on_backgrounds,
    render_toys,
)
from sjc_engine.toybox.training.raycast import raycast
from sjc_engine.toybox.training.shapes import BANDS, Builder, Pattern


def test_renders_repeat_with_their_seed_and_differ_without(tmp_path):
    first = cached_toys(tmp_path, 96, 16, 7, STUDIO)
    again = cached_toys(tmp_path, 96, 16, 7, STUDIO)  # from disk
    other = render_toys(96, 16, 8, OUTDOORS)
    np.testing.assert_array_equal(first.images, again.images)
    assert first.color == again.color
    assert (first.images != other.images).any()
    alpha = first.images[..., 3]
    assert (alpha.max((1, 2)) == 255).all()  # every image shows its toy
    assert (first.images[..., :3] <= alpha[..., None]).all()  # multiplied by alpha


def test_captions_name_the_view_and_the_color():
    toys = render_toys(192, 8, 1)
    rng = np.random.default_rng(0)
    detailed = 0
    for index in range(len(toys)):
        text = toys.caption(rng, index)
        assert text.startswith(tuple(f"{toys.view(index, style)} " for style in STYLES))
        assert toys.color[index] in text
        detailed += " angle " in text.partition(" view of ")[0]
    sides = (toys.elevation <= 60).sum()
    assert 0.5 * sides < detailed < 0.8 * sides


def test_the_view_is_the_cameras(tmp_path):
    toys = cached_toys(tmp_path, 64, 8, 3, STUDIO)
    again = cached_toys(tmp_path, 64, 8, 3, STUDIO)  # from disk
    for index in range(len(toys)):
        camera = orbit(toys.azimuth[index], toys.elevation[index])
        for style in STYLES:
            assert toys.view(index, style) == view_prompt(
                camera.azimuth_deg, camera.elevation_deg, style
            )
            assert again.view(index, style) == toys.view(index, style)


def test_clay_is_lit_as_the_picture_of_an_assets_shape():
    toy = Builder()
    toy.ellipsoid((0, 0, 0), 1.0, (1, 0, 0), pattern=Pattern(BANDS, (0, 0, 1), 6))
    ball = trimesh.creation.icosphere(subdivisions=4, radius=0.5)
    normals = np.array(ball.vertices / 0.5, np.float32)
    red = np.full((len(normals), 3), (1, 0, 0), np.float32)
    mesh = Mesh(np.array(ball.vertices, np.float32), np.array(ball.faces), normals, red)
    recipe = Recipe().override({"grid_size": 4}).optimize
    field = make_field(recipe, 3, "rgb", torch.Generator())
    pictures = take_pictures(field, mesh, 64)
    for camera, shape in zip(evaluation_cameras(), pictures.geometry, strict=True):
        origins, directions = rays(camera, 64, 64)
        clay, light = in_clay(toy.build(0.5)), clay_light(camera)
        seen = raycast([clay], origins[:1], directions[None], [light])[0].view(64, 64, 4)
        image = (seen[..., :3] + 1 - seen[..., 3:]).permute(2, 0, 1) * 2 - 1
        assert (image - shape).abs().mean() < 0.01


def test_a_share_of_the_toys_is_clay():
    images = render_toys(640, 8, 2, clay=0.5).images.astype(int)
    gray = (np.ptp(images[..., :3], axis=-1) <= 1).all((1, 2))
    assert 0.25 < gray.mean() < 0.75
    assert not (np.ptp(render_toys(64, 8, 2).images[..., :3].astype(int), axis=-1) <= 1).all()


def test_the_toybox_recipe_renders_as_the_prior_was_trained():
    recipe = Recipe.for_prior("toybox").optimize
    assert (recipe.fov_min, recipe.fov_max) == FOV_DEG
    assert recipe.view_style == max(STYLES, key=lambda style: STYLES[style])


def test_paper_categories_weigh_more():
    toys = render_toys(640, 8, 2)
    weight = toys.weights(4.0)
    paper = toys.category < 6
    np.testing.assert_allclose(weight.sum(), 1)
    np.testing.assert_allclose(weight[paper][0] / weight[~paper][0], 4)


def test_backgrounds_fill_what_is_transparent_only():
    generator = torch.Generator().manual_seed(0)
    rgba = torch.zeros(400, 8, 8, 4)
    rgba[:, :4] = 1.0  # the upper half is opaque white
    image = on_backgrounds(rgba, generator)
    assert image.shape == (400, 3, 8, 8)
    assert (image[:, :, :4] == 1).all()
    lower = image[:, :, 4:]
    white = (lower == 1).all(-1).all(-1).all(-1)
    assert 0.25 < white.float().mean() < 0.45
    assert lower.min() >= -1
    assert (lower[~white].std((1, 2, 3)) > 0).any()
