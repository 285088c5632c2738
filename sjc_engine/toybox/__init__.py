"""The embedded prior and its judge: procedural toys, their renderer, training and weights."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

_WEIGHTS = Path(__file__).with_name("weights")


def weights_path(model: Literal["prior", "judge"]) -> Path:
    """The shipped model's folder, in diffusers (prior) or transformers (judge) layout."""
    return _WEIGHTS / model
