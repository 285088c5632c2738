"""What a step renders and asks for, on its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_priors import SMALL, build_pixel_prior

from sjc_engine.optimization import step
from sjc_engine.optimization.scene import Scene
from sjc_engine.optimization.step import draw
from sjc_engine.priors.denoiser import Prior, load_prior
from sjc_engine.recipes import Recipe

PIXEL = Recipe.for_prior("toybox").override(SMALL)


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Prior:
    return load_prior(str(build_pixel_prior(tmp_path_factory.mktemp("pixel"))))


def test_every_pixel_counts_in_a_view_that_is_larger_than_the_prior_knows(prior: Prior) -> None:
    """Thin lines are blurred and not skipped."""
    recipe = PIXEL.override({"render_size": 4 * prior.resolution, "views_per_step": 1})
    scene = Scene("a duck", "", 0, recipe, prior)
    views = draw(scene).rendering
    nothing = torch.zeros_like(views.rgb)
    views = replace(views, rgb=nothing, opacity=torch.zeros_like(views.opacity))
    for line in range(8, 12):
        backdrop = nothing.clone()
        backdrop[..., line] = 1.0
        image = step._image(scene, views, backdrop)
        assert image.shape[-1] == prior.resolution
        assert image.mean().item() == pytest.approx(backdrop.mean().item(), rel=0.05)


def test_a_prior_of_single_views_is_told_no_cameras(prior: Prior) -> None:
    inputs = draw(Scene("a duck", "", 0, PIXEL.override({"perp_neg_weight": 1.0}), prior))
    assert [c.camera for c in (inputs.cond, inputs.uncond, *inputs.negatives)] == [None] * 3


def test_a_view_and_the_one_beside_it_share_a_random_background(prior: Prior) -> None:
    """Or its colour alone would make them differ. A learned one has its own look from each side."""
    for background, alike in (("random", True), ("learned", False)):
        recipe = PIXEL.override({"near_view_weight": 1.0, "background": background})
        scene = Scene("a duck", "", 0, recipe, prior)
        with torch.no_grad():
            scene.field.density.fill_(-50.0)  # type: ignore[operator]
        inputs = draw(scene)
        assert inputs.near is not None
        assert torch.equal(inputs.images, inputs.near.images) == alike
