"""View-dependent prompts: which side of the object a camera sees, in words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from sjc_engine.camera import Camera

# Elevations that SJC trains from. It draws a number up to 100 degrees and bends it to be
# area-uniform, which ends at a polar angle of 96.4 degrees.
LOWEST_DEG = -math.degrees(math.asin(1 / 9))
HIGHEST_DEG = 90.0

ViewStyle = Literal["none", "paper", "sided"]
OverheadRule = Literal["elevation", "official"]

SIDES: dict[str, tuple[str, str, str, str]] = {
    "paper": ("front view of", "side view of", "backside view of", "side view of"),
    # One name for both sides makes opposite views average to mirror images; two names do not.
    "sided": ("front view of", "left side view of", "backside view of", "right side view of"),
}
OVERHEAD = "overhead view of"
# The paper calls a polar angle below 30 degrees "overhead". The official code tests the angle
# before it is warped to be area-uniform, so that its rule fires above acos(2/3) of polar angle.
OVERHEAD_ABOVE_DEG: dict[str, float] = {"elevation": 60.0, "official": 41.810314895778596}


def view_prompt(
    camera: Camera, style: ViewStyle = "paper", overhead: OverheadRule = "elevation"
) -> str:
    """The prefix for this camera, for example "front view of"; empty for style "none"."""
    if style not in get_args(ViewStyle):
        raise ValueError(f"view style {style!r}: use one of {', '.join(get_args(ViewStyle))}")
    if style == "none":
        return ""
    if camera.elevation_deg > OVERHEAD_ABOVE_DEG[overhead]:
        return OVERHEAD
    return SIDES[style][int(((camera.azimuth_deg + 45.0) % 360.0) // 90.0)]


def view_prompts(style: ViewStyle) -> list[str]:
    """Every prefix that `view_prompt` can return for this style, each once."""
    return [""] if style == "none" else list(dict.fromkeys([*SIDES[style], OVERHEAD]))
