"""What goes together: a prior, an input image, and the settings for both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sjc_engine.errors import SettingError
from sjc_engine.priors.sources import family_of

if TYPE_CHECKING:
    from sjc_engine.recipes import OptimizeRecipe


def group_of(prior: str) -> int:
    """How many views a prior's network sees together (`Prior.group`), from its name alone."""
    return 4 if family_of(prior)[0] == "mvdream" else 1


def mismatches(
    prior: str,
    takes_image: bool,
    group: int,
    has_image: bool,
    negative_prompt: str,
    recipe: OptimizeRecipe,
) -> Iterator[SettingError]:
    """What does not go together with a prior of this name."""
    if recipe.views_per_step % group:
        whole = f"prior {prior!r} sees groups of {group} views"
        problem = f"{recipe.views_per_step} does not make whole groups, and {whole}"
        yield SettingError("views_per_step", problem, f"use a multiple of {group}")
    if takes_image and not has_image:
        yield SettingError("image", f"prior {prior!r} needs an image", "name one")
    if not takes_image:
        text_only = f"prior {prior!r} takes text only, not images"
        for key in ("input_view_weight", "silhouette_weight"):
            if getattr(recipe, key):
                yield SettingError(key, text_only, "use 0")
        if has_image:
            fix = "leave the image out, or use a prior such as kxic/zero123-xl@refs/pr/1"
            yield SettingError("image", text_only, fix)
    if takes_image or family_of(prior)[0] == "unconditional":
        yield from _worded(prior, negative_prompt, recipe)
    if takes_image and recipe.background == "random":
        problem = "'random' contradicts an image on white"
        yield SettingError("background", problem, "use white or learned")


def _worded(prior: str, negative_prompt: str, recipe: OptimizeRecipe) -> Iterator[SettingError]:
    """What only a prior that takes words can do."""
    no_words = f"prior {prior!r} takes no words"
    if negative_prompt:
        yield SettingError("negative_prompt", no_words, "leave it out")
    if recipe.perp_neg_weight:
        yield SettingError("perp_neg_weight", no_words, "use 0")


def no_silhouette(recipe: OptimizeRecipe) -> Iterator[SettingError]:
    """The errors for what is asked of an image that does not show where its object is."""
    problem = "the image has neither transparency nor a white border, so it has no silhouette"
    for key, off in (("silhouette_weight", "0"), ("image_recenter", "false")):
        if getattr(recipe, key):
            yield SettingError(key, problem, f"cut the object out, or use {off}")
