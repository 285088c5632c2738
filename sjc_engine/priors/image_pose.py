"""Which Zero-1-to-3 a name means: the first, or Stable Zero123, whose poses end otherwise.

Presets ask this, so it imports neither torch nor recipes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from sjc_engine.priors.sources import family_of

# How the pose that a Zero-1-to-3 is given ends: the difference of the cameras' distances or, for
# Stable Zero123, the picture's own elevation.
ImagePose = Literal["distance", "elevation"]
_STABLE = re.compile("stable[-_. ]?zero", re.IGNORECASE)


def image_pose(prior: str, revision: str | None = None) -> tuple[ImagePose, bool]:
    """What a Zero-1-to-3 of this name wants, and whether that is a guess.

    Nothing but the weights tells the two models apart: on the hub, kxic/zero123-165000 and
    kxic/stable-zero123 have the same class and the same 571 bytes of model_index.json, and so have
    ashawkey/zero123-xl-diffusers and ashawkey/stable-zero123-diffusers with 562. The code that uses
    them (zero123-hf, DreamGaussian) looks for "stable" in the name, which is the hub id here or, of
    a folder, the one that diffusers noted as it saved the model. Without either, it is a guess.
    """
    saved_from = str(family_of(prior, revision)[1].get("_name_or_path") or "")
    known = "zero123" in prior.lower() and not Path(prior).is_dir()
    if "zero123" in saved_from.lower():
        prior, known = saved_from, True
    return "elevation" if _STABLE.search(prior) else "distance", not known


def pose_guess(prior: str) -> Iterator[str]:
    """What a plan takes for granted of a Zero-1-to-3 of this name, if it is a guess."""
    pose, guessed = image_pose(prior)
    if guessed:
        presets = {"Zero-1-to-3": "zero123", "Stable Zero123": "stable-zero123"}
        taken, other = presets if pose == "distance" else reversed(presets)
        yield (
            f"prior {prior!r} is taken for a {taken}, which its files do not say; write --recipe"
            f" {presets[taken]} to confirm, or {presets[other]} for a {other}"
        )
