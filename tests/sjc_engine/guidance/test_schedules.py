"""Noise levels and guidance, step by step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sjc_engine.guidance.schedules import guidance_at, sigma_at
from sjc_engine.recipes import OptimizeRecipe, Recipe

TICKS = torch.arange(1000.0)  # whose value says which one it is


def recipe(**changes: Any) -> OptimizeRecipe:
    return Recipe().override({"steps": 11, "tick_min": 100, "tick_max": 900, **changes}).optimize


def drawn(step: int, sigmas: torch.Tensor = TICKS, **changes: Any) -> list[float]:
    """Noise levels of a step; enough of them for every tick of a narrow range to be among them."""
    generator = torch.Generator().manual_seed(0)
    return sigma_at(step, recipe(**changes), sigmas, 400, generator).tolist()


@pytest.mark.parametrize(
    ("changes", "scales"),
    [
        ({"guidance_scale": 8.0}, [8, 8, 8]),
        ({"guidance_scale": 8.0, "guidance_end": 0.0}, [8, 4, 0]),
        ({"guidance_scale": 8.0, "guidance_end": 18.0}, [8, 13, 18]),
        ({"guidance_scale": 8.0, "guidance_end": 8.0}, [8, 8, 8]),
    ],
)
def test_guidance_goes_in_a_line_from_its_start_to_its_end(
    changes: dict[str, float], scales: list[float]
) -> None:
    assert [guidance_at(step, recipe(**changes)) for step in (0, 5, 10)] == scales


def test_of_a_single_step_the_start_counts() -> None:
    single = recipe(steps=1, guidance_scale=8.0, guidance_end=2.0, sigma_schedule="annealed")
    assert guidance_at(0, single) == 8
    assert sigma_at(0, single, TICKS, 1, torch.Generator()).tolist() == [900]


def test_a_fixed_level_is_that_of_every_view() -> None:
    assert drawn(7, sigma_schedule="fixed", sigma_fixed=0.5) == [0.5] * 400


@pytest.mark.parametrize(
    ("changes", "ticks"),
    [
        ({}, [900, 500, 100]),
        ({"tick_share": 0.5}, [900, 100, 100]),  # over after half of the steps
        ({"tick_share": 0.8}, [900, 400, 100]),
        ({"tick_end": 500}, [900, 400, 100]),  # its top falls as well
        ({"tick_start": 500}, [900, 600, 100]),  # its bottom
        ({"tick_end": 300, "tick_start": 300}, [900, 400, 100]),
    ],
)
def test_annealed_levels_go_from_the_top_of_the_range_to_its_bottom(
    changes: dict[str, float], ticks: list[int]
) -> None:
    for step, tick in zip((0, 5, 10), ticks, strict=True):
        assert drawn(step, sigma_schedule="annealed", **changes) == [tick] * 400, step


@pytest.mark.parametrize(
    ("changes", "ranges"),
    [
        ({"tick_min": 100, "tick_max": 103}, [(100, 103)] * 3),
        ({"tick_min": 100, "tick_max": 110, "tick_end": 100}, [(100, 110), (100, 105), (100, 100)]),
        ({"tick_min": 90, "tick_max": 100, "tick_start": 100}, [(100, 100), (95, 100), (90, 100)]),
        (
            {"tick_min": 90, "tick_max": 100, "tick_start": 100, "tick_share": 0.5},
            [(100, 100), (90, 100), (90, 100)],
        ),
        ({"tick_min": 5, "tick_max": 900}, [(5, 7)] * 3),  # of the eight that there are
    ],
)
def test_random_levels_are_drawn_from_the_whole_range(
    changes: dict[str, float], ranges: list[tuple[int, int]]
) -> None:
    sigmas = TICKS[:8] if changes["tick_max"] == 900 else TICKS
    for step, (low, high) in zip((0, 5, 10), ranges, strict=True):
        assert set(drawn(step, sigmas, **changes)) == set(range(low, high + 1)), step
