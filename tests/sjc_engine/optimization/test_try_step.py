"""Scenes side by side: what a bad one may do, and what memory may."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_priors import SMALL, build_pixel_prior
from torch import Tensor

from sjc_engine.optimization import loop
from sjc_engine.optimization.loop import step_scenes, try_step
from sjc_engine.optimization.scene import Diverged, Scene, StepStats
from sjc_engine.optimization.step import StepInputs, draw
from sjc_engine.priors.denoiser import Cond, Prior, load_prior
from sjc_engine.recipes import Recipe

PIXEL = Recipe.for_prior("toybox").override(SMALL)
# Scenes that share nothing but the prior: seeds, words, guidance, views, questions, fields.
NEIGHBOURS: list[dict[str, Any]] = [
    {},
    {"guidance_scale": 3.0, "noise_samples": 2},
    {"views_per_step": 1, "background": "white"},
    {"perp_neg_weight": 1.0},
    {"field": "tensorf"},
    {"score": "sds", "sigma_schedule": "annealed"},
    {"grid_size": 12, "optimizer": "adam"},
    {"field": "mlp", "near_view_weight": 1.0},
]


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Prior:
    return load_prior(str(build_pixel_prior(tmp_path_factory.mktemp("pixel"))))


def crowd(prior: Prior, count: int) -> list[Scene]:
    return [
        Scene(f"thing {k}", "dark" if k % 2 else "", k, PIXEL.override(changes), prior)
        for k, changes in enumerate(NEIGHBOURS[:count])
    ]


def gradients(scene: Scene) -> list[Tensor]:
    return [p.grad.clone() for p in scene.field.parameters() if p.grad is not None]


@pytest.mark.parametrize("count", [2, 4, 8])
def test_a_scenes_gradients_are_those_of_the_scene_alone_bit_for_bit(
    prior: Prior, count: int
) -> None:
    together = crowd(prior, count)
    step_scenes(together, prior)
    for scene, twin in zip(together, crowd(prior, count), strict=True):
        step_scenes([twin], prior)
        pairs = list(zip(gradients(scene), gradients(twin), strict=True))
        assert pairs
        assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("count", [2, 4, 8])
def test_in_one_call_they_are_the_same_to_rounding(prior: Prior, count: int) -> None:
    together = crowd(prior, count)
    step_scenes(together, prior, one_call=True)
    for scene, twin in zip(together, crowd(prior, count), strict=True):
        step_scenes([twin], prior)
        for one, other in zip(gradients(scene), gradients(twin), strict=True):
            assert (one - other).abs().max() <= 1e-5 * other.abs().max()


class Watched:
    """The prior, with its questions counted, and a mood."""

    def __init__(self, prior: Prior, mood: Any = None) -> None:
        self._prior, self._mood, self.batches = prior, mood, [0][:0]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._prior, name)

    def denoise(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        self.batches.append(len(x))
        if self._mood:
            self._mood(x)
        return self._prior.denoise(x, sigma, cond)


def test_one_call_asks_once_for_scenes_that_ask_alike(prior: Prior) -> None:
    watched = Watched(prior)
    try_step(crowd(prior, 4), watched, one_call=True)  # type: ignore[arg-type]
    # Views, noises, with and without words; the one with Perp-Neg asks three times.
    assert watched.batches == [2 * (2 + 2 * 2 + 1), 3 * 2]


def replace_for(
    patch: pytest.MonkeyPatch, sick: Scene, name: str, action: Callable[..., Any]
) -> None:
    """Puts `action` in the place of a part of the step, for one scene alone."""
    whole = getattr(loop, name)
    patch.setattr(loop, name, lambda s, *rest: (action if s is sick else whole)(s, *rest))


@pytest.mark.parametrize("one_call", [True, False])
@pytest.mark.parametrize("bad", ["poisoned", "draw", "update", "question"])
def test_a_bad_scene_leaves_the_others_as_if_it_was_not_there(
    prior: Prior, monkeypatch: pytest.MonkeyPatch, one_call: bool, bad: str
) -> None:
    """NaN for good, an error while rendering, while learning, or in the network alone."""
    scenes, twins = crowd(prior, 3), crowd(prior, 3)
    sick = scenes[1]
    mood = None

    def fail(*_: object) -> None:
        raise ValueError("this scene's own")

    if bad == "poisoned":
        sick.recovery.rolled_back = True  # it has had its second chance
        with torch.no_grad():
            next(iter(sick.field.parameters())).fill_(math.nan)
    elif bad == "question":

        def mood(x: Tensor) -> None:
            if (x > 1e6).any():
                fail()

        def huge(scene: Scene) -> StepInputs:
            inputs = draw(scene)
            inputs.z.fill_(1e9)
            return inputs

        replace_for(monkeypatch, sick, "draw", huge)
    else:
        replace_for(monkeypatch, sick, bad, fail)
    outcomes = try_step(scenes, Watched(prior, mood), one_call=one_call)  # type: ignore[arg-type]
    kind = Diverged if bad == "poisoned" else ValueError
    assert [type(outcome) for outcome in outcomes] == [StepStats, kind, StepStats]
    for k in (0, 2):
        try_step([twins[k]], prior)
        for one, other in zip(gradients(scenes[k]), gradients(twins[k]), strict=True):
            assert (one - other).abs().max() <= (1e-5 if one_call else 0) * other.abs().max()


@pytest.mark.parametrize("where", ["question", "draw", "update"])
def test_out_of_memory_is_nobodys_error_and_the_step_can_be_done_again(
    prior: Prior, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """The scenes that had not done their step do it later as if for the first time."""
    scenes, twins = crowd(prior, 3), crowd(prior, 3)

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    watched = Watched(prior, fail if where == "question" else None)
    with monkeypatch.context() as patch:
        if where != "question":
            replace_for(patch, scenes[1], where, fail)
        with pytest.raises(torch.OutOfMemoryError):
            try_step(scenes, watched, one_call=True)  # type: ignore[arg-type]
    assert all(scene.intact for scene in scenes)
    for scene, twin in zip(scenes, twins, strict=True):
        while scene.step < 2:
            step_scenes([scene], prior)
        while twin.step < 2:
            step_scenes([twin], prior)
        for one, other in zip(scene.field.parameters(), twin.field.parameters(), strict=True):
            # The first has learnt in one call with the others where only the second could not.
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
            assert where == "update" or torch.equal(one, other)
        assert torch.equal(scene.generator.get_state(), twin.generator.get_state())


def test_a_half_done_optimizer_is_known(prior: Prior, monkeypatch: pytest.MonkeyPatch) -> None:
    [scene] = crowd(prior, 1)

    def fail() -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    monkeypatch.setattr(scene.optimizer, "step", fail)
    with pytest.raises(RuntimeError, match="can't allocate"):
        try_step([scene], prior)
    assert not scene.intact
