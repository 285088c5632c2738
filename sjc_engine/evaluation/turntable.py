"""A mesh that turns before the eye: an MP4, and a small animated WebP for pages of many assets."""

from __future__ import annotations

import io
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sjc_engine.asset_files import THUMBNAIL, TURNTABLE
from sjc_engine.evaluation.pictures import to_image
from sjc_engine.files import write_atomically
from sjc_engine.mesh.gltf import Mesh
from sjc_engine.progress import OnWork, unheard
from sjc_engine.recipes import EvaluateRecipe
from sjc_engine.rendering.camera import orbit
from sjc_engine.rendering.rasterize import rasterize_views

# It starts at the left front, from slightly above: from the front a fish or a boat is a line.
AZIMUTH_DEG, ELEVATION_DEG, FOV_DEG = 40.0, 20.0, 60.0
FRAMES_PER_SECOND = 20
THUMBNAIL_FRAMES, THUMBNAIL_SIZE = 20, 128


def write_turntable(
    mesh: Mesh, folder: Path, recipe: EvaluateRecipe, on_work: OnWork = unheard
) -> None:
    """thumbnail.webp into the folder, and turntable.mp4 if the extra `video` is installed.

    `on_work` hears of every frame.
    """
    frames = turntable_frames(mesh, recipe.turntable_frames, recipe.turntable_size, on_work)
    write_thumbnail(frames, folder / THUMBNAIL)
    if find_spec("imageio_ffmpeg") is not None:
        write_video(frames, folder / TURNTABLE)


def turntable_frames(
    mesh: Mesh, frames: int = 60, size: int = 256, on_work: OnWork = unheard
) -> NDArray[np.uint8]:
    """One turn of the mesh over white, (frames, size, size, 3), its left front first."""
    views = np.empty((frames, size, size, 3), np.uint8)
    angles = (AZIMUTH_DEG + 360.0 * k / frames for k in range(frames))
    cameras = (orbit(angle, ELEVATION_DEG, fov_deg=FOV_DEG) for angle in angles)
    for k, seen in enumerate(rasterize_views(mesh, cameras, size, size)):
        on_work("filming", k, frames)
        views[k] = np.asarray(to_image(seen.rgb + (1 - seen.opacity)))  # premultiplied
    return views


def write_video(frames: NDArray[np.uint8], path: Path) -> None:
    """An H.264 .mp4 that every browser plays, of frames (n, H, W, 3) with even H and W."""
    import imageio_ffmpeg  # of the extra `video`

    _, height, width, _ = frames.shape
    if height % 2 or width % 2:
        raise ValueError(f"H.264 wants even sides, not {width} x {height}")
    partial = path.with_name(f".{path.stem}.partial.mp4")
    writer = imageio_ffmpeg.write_frames(
        str(partial),
        (width, height),
        fps=FRAMES_PER_SECOND,
        codec="libx264",
        macro_block_size=2,
        ffmpeg_log_level="error",
        # The index first, so that a page plays it before it has all; no bits that differ by run.
        output_params=["-crf", "20", "-movflags", "+faststart", "-threads", "1", "-bitexact"],
    )
    try:
        writer.send(None)
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
        writer.close()
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_thumbnail(frames: NDArray[np.uint8], path: Path) -> None:
    """A looping .webp of every third frame or so, THUMBNAIL_SIZE pixels a side."""
    chosen = np.linspace(0, len(frames), min(THUMBNAIL_FRAMES, len(frames)), endpoint=False)
    size, filter = (THUMBNAIL_SIZE, THUMBNAIL_SIZE), Image.Resampling.LANCZOS
    small = [Image.fromarray(frames[int(k)]).resize(size, filter) for k in chosen]
    seconds = len(frames) / FRAMES_PER_SECOND
    data = io.BytesIO()
    small[0].save(
        data,
        "WEBP",
        save_all=True,
        append_images=small[1:],
        duration=round(1000 * seconds / len(small)),
        loop=0,
        quality=70,
        method=4,
    )
    write_atomically(path, data.getvalue())
