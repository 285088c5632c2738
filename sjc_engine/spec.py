"""What an asset is made from, and the ids that follow from it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from sjc_engine.priors.loading.lora import NONE
from sjc_engine.priors.sources import BUILTINS, licence_of
from sjc_engine.recipes import RECIPE_VERSION, Recipe, canonical_json

SHA256_DIGITS = 64  # in hex; a hub's commit has 40


def prior_key(spec: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """The weights that the scene of an `AssetSpec.to_json()` wants.

    Prior, revision, precision and LoRA.
    """
    recipe = spec["recipe"].get("optimize", {})
    precision, loras = recipe.get("dtype", "auto"), recipe.get("loras", NONE)
    return spec["prior"], spec["prior_revision"], precision, loras


@dataclass(frozen=True)
class AssetSpec:
    """Everything that an asset depends on. The same spec is the same asset everywhere."""

    prompt: str
    negative_prompt: str  # "" for none
    image: str | None  # sha256 (hex) of the image's bytes
    seed: int
    prior: str  # "toybox", a folder, or a hub id
    prior_revision: str  # a hub commit; for a folder the digest of what is read of it
    recipe: Recipe

    @cached_property
    def asset_id(self) -> str:
        """16 hex digits: SHA-256 of the canonical JSON and RECIPE_VERSION.

        The recipe's name stays out of it, since presets of equal values make equal assets; so does
        a folder's, since its digest says all of it, wherever it lies.
        """
        return self._digest(self.recipe.canonical)

    @cached_property
    def field_id(self) -> str:
        """Like `asset_id`, from what the optimisation depends on: no mesh or judge settings."""
        return self._digest(self.recipe.canonical_optimize)

    def extras(self) -> dict[str, str]:
        """What a mesh file says of itself, wherever it goes."""
        return {
            "asset_id": self.asset_id,
            "prompt": self.prompt,
            "prior": f"{self.prior}@{self.prior_revision[:12]}",
            "licence": f"made with weights under: {licence_of(self.prior, self.prior_revision)}",
        }

    def to_json(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, "recipe": self.recipe.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> AssetSpec:
        """The inverse of `to_json`; ValueError when a recipe key is missing or unknown."""
        return cls(**{**data, "recipe": Recipe.from_json(data["recipe"])})

    @property
    def _is_folder(self) -> bool:
        return self.prior not in BUILTINS and len(self.prior_revision) == SHA256_DIGITS

    def _digest(self, recipe: str) -> str:
        """Of the canonical JSON of all this, with `recipe` as JSON: keys are in order."""
        about = {
            "image": self.image,
            "negative_prompt": self.negative_prompt,
            "prior": None if self._is_folder else self.prior,
            "prior_revision": self.prior_revision,
            "prompt": self.prompt,
        }
        rest = f',"recipe":{recipe},"recipe_version":{RECIPE_VERSION},"seed":{self.seed}}}'
        text = canonical_json(about).removesuffix("}") + rest
        return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]
