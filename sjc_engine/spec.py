"""What an asset is made from, and the ids that follow from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sjc_engine.recipes import RECIPE_VERSION, Recipe
from sjc_engine.sources import licence_of


@dataclass(frozen=True)
class AssetSpec:
    """Everything that an asset depends on. The same spec is the same asset everywhere."""

    prompt: str
    negative_prompt: str  # "" for none
    image: str | None  # sha256 (hex) of the image's bytes
    seed: int
    prior: str  # "toybox", a folder, or a hub id
    prior_revision: str  # a hub commit; for a folder the digest of its weights
    recipe: Recipe

    @property
    def asset_id(self) -> str:
        """16 hex digits: SHA-256 of the canonical JSON and RECIPE_VERSION.

        The recipe's name stays out of it, since presets of equal values make equal assets.
        """
        return _digest({**self._sources(), "recipe": _unnamed(self.recipe)})

    @property
    def field_id(self) -> str:
        """Like `asset_id`, from what the optimisation depends on: no mesh or judge settings."""
        return _digest({**self._sources(), "recipe": asdict(self.recipe.optimize)})

    def extras(self) -> dict[str, str]:
        """What a mesh file says of itself, wherever it goes."""
        return {
            "asset_id": self.asset_id,
            "prompt": self.prompt,
            "prior": f"{self.prior}@{self.prior_revision[:12]}",
            "licence": f"made with weights under: {licence_of(self.prior)}",
        }

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> AssetSpec:
        """The inverse of `to_json`; ValueError when a recipe key is missing or unknown."""
        return cls(**{**data, "recipe": Recipe.from_json(data["recipe"])})

    def _sources(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if k != "recipe"}


def canonical_json(data: Any) -> str:
    """JSON with sorted keys and no spaces: equal data, equal text. Rejects NaN and infinity."""
    return json.dumps(
        data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def _unnamed(recipe: Recipe) -> dict[str, Any]:
    return {k: v for k, v in recipe.to_json().items() if k != "name"}


def _digest(data: dict[str, Any]) -> str:
    text = canonical_json({**data, "recipe_version": RECIPE_VERSION})
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]
