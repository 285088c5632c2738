"""Values of a recipe that are right, each alone, and wrong together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sjc_engine.errors import SettingError
from sjc_engine.priors.loading import lora

# Sizes at the start, and what they grow to
STARTS = {"grid_start": "grid_size", "render_start": "render_size"}


def optimize_conflicts(r: Any) -> Iterator[SettingError]:
    yield from lora.problems(r.loras)
    for low, high in (
        ("tick_min", "tick_max"), ("tick_min", "tick_end"), ("tick_start", "tick_max"),
        ("fov_min", "fov_max"), ("elevation_min", "elevation_max"),
    ):  # fmt: skip
        first, last = getattr(r, low), getattr(r, high)
        if first > last and not (high == "tick_end" and last == 0):  # 0: as tick_max
            yield SettingError(low, f"{first} exceeds {high} = {last}", "swap them", (high,))
    if r.radius_spread >= r.radius:
        problem = f"{r.radius_spread} is not below radius = {r.radius}"
        yield SettingError("radius_spread", problem, "use less", ("radius",))
    for key in ("tv_weight", "grid_start"):
        if r.field == "mlp" and getattr(r, key):
            yield SettingError(key, "the field 'mlp' has no grid", "use 0", ("field",))
    if r.perp_neg_weight and r.view_style == "none":
        problem = "view_style = 'none' names no front to keep away from"
        yield SettingError("perp_neg_weight", problem, "use 0", ("view_style",))
    for (start, end), least in zip(STARTS.items(), (4, 8), strict=True):
        first, last = getattr(r, start), getattr(r, end)
        if first and not least <= first <= last:
            fix = f"use 0, or {least} to {end} = {last}"
            yield SettingError(start, f"{first} is out of range", fix, (end,))


def evaluate_conflicts(r: Any) -> Iterator[SettingError]:
    if r.lpips != "none" and r.evaluation_size < 32:
        problem = f"{r.evaluation_size} is too small for lpips"
        yield SettingError("evaluation_size", problem, "use 32 or more", ("lpips",))
    if r.turntable_size % 2:
        yield SettingError("turntable_size", f"{r.turntable_size} is odd", "use an even number")
