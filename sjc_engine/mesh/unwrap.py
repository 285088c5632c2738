"""UV coordinates for a closed surface: charts, cut and packed by xatlas in a killable process."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sjc_engine.mesh.isosurface import Faces, MeshError, Vertices

SECONDS = 60.0
PADDING = 3  # texels between charts: bilinear filtering and two halvings of the texture stay inside
_PROCESS = Path(__file__).with_name("xatlas_process.py")


class UnwrapTimeout(MeshError):
    """The surface has no UV coordinates within the time allowed."""


class UnwrapKilled(MeshError):
    """Somebody, mostly the kernel for want of memory, has killed xatlas; it did nothing wrong."""


@dataclass(frozen=True, eq=False)
class Unwrapped:
    """A surface cut open along its charts' borders, the same faces in the same order."""

    corners: NDArray[np.int64]  # (W,) the surface's vertex that each of the cut one's copies
    faces: Faces  # (F, 3) indices into `corners`
    uv: NDArray[np.float32]  # (W, 2) in [0, 1]; v runs down, as the rows of a picture do


def can_unwrap() -> bool:
    """Whether xatlas is installed, which has no wheels for Python 3.14 or for Linux on ARM."""
    return find_spec("xatlas") is not None


def unwrap(vertices: Vertices, faces: Faces, size: int, seconds: float = SECONDS) -> Unwrapped:
    """Charts for vertices (V, 3) and faces (F, 3), packed for a texture of size x size texels.

    Raises UnwrapTimeout after `seconds`, UnwrapKilled, and MeshError where there is no atlas.
    """
    data = io.BytesIO()
    places, corners = np.float32(vertices), np.uint32(faces)
    np.savez(data, vertices=places, faces=corners, size=size, padding=PADDING)
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(_PROCESS)],
            input=data.getvalue(),
            capture_output=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UnwrapTimeout(
            f"no UV coordinates for {len(faces)} faces within {seconds:g} s: lower max_faces, or"
            " use texture_size = 0 for vertex colours"
        ) from error
    if done.returncode in (-signal.SIGKILL, -signal.SIGTERM):  # the latter to all of a service
        raise UnwrapKilled(
            f"xatlas was killed while it unwrapped {len(faces)} faces, as the kernel does when"
            " memory is short: free some, use fewer devices, or lower max_faces"
        )
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise MeshError(f"xatlas failed (exit {done.returncode}): {' '.join(last)}")
    result = np.load(io.BytesIO(done.stdout))
    if result["atlases"] != 1 or len(result["faces"]) != len(faces):
        raise MeshError(f"xatlas made {result['atlases']} atlases of {len(result['faces'])} faces")
    copies, cut = (result[name].astype(np.int64) for name in ("corners", "faces"))
    return Unwrapped(copies, cut, result["uv"].astype(np.float32).clip(0, 1))
