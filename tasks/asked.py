"""From a spec back to what a user writes to get it: a preset and the keys that differ from it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sjc_engine.recipes import Recipe


def preset_and_changes(prior: str, recipe: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The preset's name, and what differs from it as it is today.

    A preset that is gone, of an older version, is replaced by the prior's default.
    """
    name, values = _preset(prior, recipe["name"])
    return name, {
        key: value
        for part in ("optimize", "mesh", "evaluate")
        for key, value in recipe[part].items()
        if key not in values[part] or value != values[part][key]
    }


@lru_cache
def _preset(prior: str, name: str) -> tuple[str, dict[str, Any]]:
    try:
        preset = Recipe.for_prior(prior, name)
    except ValueError:
        preset = Recipe.for_prior(prior)
    return preset.name, preset.to_json()
