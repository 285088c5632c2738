"""The command line in other processes, with settings that make an asset in seconds."""

import sys
from dataclasses import dataclass
from typing import Any

SJC = [sys.executable, "-c", "from flows.commands.main import sjc; sjc()"]
# Opaque after 20 steps, and a small mesh.
TINY: dict[str, Any] = {
    "steps": 20,
    "lr": 0.3,
    "grid_size": 16,
    "ray_step": 0.08,
    "views_per_step": 1,
    "emptiness_weight": 0,
    "mesh_resolution": 32,
    "max_faces": 2000,
    "texture_size": 128,
    "evaluation_size": 32,
    "turntable_frames": 4,
    "turntable_size": 32,
}
# Without what starts processes of its own: unwrapping, and the video.
BARE = {**TINY, "texture_size": 0, "turntable_frames": 0}


def tiny(judge: str, **changes: Any) -> list[str]:
    """These settings as options."""
    settings = {**TINY, "judge": judge, **changes}
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


@dataclass(frozen=True)
class Said:
    """How a command ended."""

    code: int
    out: str
    err: str
