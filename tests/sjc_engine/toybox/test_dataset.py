"""Training data: reproducible, captioned by what is seen, composited right."""

from __future__ import annotations

import numpy as np
import torch

from sjc_engine.guidance.view_prompts import view_prompt
from sjc_engine.recipes import Recipe
from sjc_engine.rendering.camera import orbit
from sjc_engine.toybox.training.dataset import (
    FOV_DEG,
    OUTDOORS,
    STUDIO,
    STYLES,
    cached_toys,
    on_backgrounds,
    render_toys,
)


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
