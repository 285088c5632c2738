"""From a spec back to what a user writes to get it: a preset and the keys that differ from it."""

from __future__ import annotations

from typing import Any

from sjc_engine.recipes import Recipe


def preset_and_changes(prior: str, recipe: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The preset's name, and what differs from it as it is today.

    A preset that is gone, of an older version, is replaced by the prior's default.
    """
    try:
        preset = Recipe.for_prior(prior, recipe["name"])
    except ValueError:
        preset = Recipe.for_prior(prior)
    values = preset.to_json()
    return preset.name, {
        key: value
        for part in ("optimize", "mesh", "evaluate")
        for key, value in recipe[part].items()
        if key not in values[part] or value != values[part][key]
    }
