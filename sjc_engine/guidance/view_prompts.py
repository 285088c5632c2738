"""View-dependent prompts: which side of the object a camera sees, in words."""

from __future__ import annotations

import math
from typing import Literal

# Elevations that SJC trains from. It draws a number up to 100 degrees and bends it to be
# area-uniform, which ends at a polar angle of 96.4 degrees.
LOWEST_DEG = -math.degrees(math.asin(1 / 9))
HIGHEST_DEG = 90.0

ViewStyle = Literal["none", "paper", "sided", "detailed"]
OverheadRule = Literal["elevation", "official"]

# Names of equal arcs of azimuth, the first centred on the object's front.
SIDES: dict[str, tuple[str, ...]] = {
    "paper": ("front view of", "side view of", "backside view of", "side view of"),
    # One name for both sides makes opposite views average to mirror images; two names do not.
    "sided": ("front view of", "left side view of", "backside view of", "right side view of"),
    "detailed": (
        "front view of",
        "front left view of",
        "left side view of",
        "back left view of",
        "backside view of",
        "back right view of",
        "right side view of",
        "front right view of",
    ),
}
# Said before the side in style "detailed", each up to an elevation in degrees: a score follows
# the mean look of all the views that share its prompt, and low and high views differ most.
HEIGHTS = (("low angle", 15.0), ("mid angle", 35.0), ("high angle", 90.0))
OVERHEAD = "overhead view of"
# The paper calls a polar angle below 30 degrees "overhead". The official code tests the angle
# before it is warped to be area-uniform, so that its rule fires above acos(2/3) of polar angle.
OVERHEAD_ABOVE_DEG: dict[str, float] = {"elevation": 60.0, "official": 41.810314895778596}


def view_prompt(
    azimuth_deg: float,
    elevation_deg: float,
    style: ViewStyle = "paper",
    overhead: OverheadRule = "elevation",
) -> str:
    """The prefix for a camera at these angles in degrees, for example "front view of".

    It is empty for style "none".
    """
    if style == "none":
        return ""
    if elevation_deg > OVERHEAD_ABOVE_DEG[overhead]:
        return OVERHEAD
    names = SIDES[style]
    arc = 360.0 / len(names)
    side = names[int(((azimuth_deg + arc / 2) % 360.0) // arc)]
    if style != "detailed":
        return side
    height = next(name for name, top in HEIGHTS if elevation_deg <= top)
    return f"{height} {side}"


def view_prompts(style: ViewStyle) -> list[str]:
    """Every prefix that `view_prompt` can return for this style, each once."""
    if style == "none":
        return [""]
    sides = list(dict.fromkeys(SIDES[style]))
    if style == "detailed":
        sides = [f"{height} {side}" for height, _ in HEIGHTS for side in sides]
    return [*sides, OVERHEAD]


def away_from_front(azimuth_deg: float) -> float:
    """Perp-Neg's weight of "not the front" for a camera here: 0 at the front, 1 at the back."""
    return (1 - math.cos(math.radians(azimuth_deg))) / 2
