"""The turning mesh, read back from its files."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import trimesh
from PIL import Image

from sjc_engine.evaluation.pictures import to_image
from sjc_engine.evaluation.turntable import (
    FRAMES_PER_SECOND,
    THUMBNAIL_FRAMES,
    THUMBNAIL_SIZE,
    turntable_frames,
    write_thumbnail,
    write_turntable,
    write_video,
)
from sjc_engine.mesh.gltf import Mesh
from sjc_engine.recipes import EvaluateRecipe
from sjc_engine.rendering.camera import orbit
from sjc_engine.rendering.rasterize import rasterize


@pytest.fixture(scope="module")
def bar() -> Mesh:
    """A bar whose front half (-X) is red and whose back is blue."""
    solid = trimesh.creation.box(extents=[0.8, 0.2, 0.2]).subdivide().subdivide()
    vertices = np.asarray(solid.vertices, np.float32)
    colors = np.where(vertices[:, :1] < 0, [[1.0, 0, 0]], [[0, 0, 1.0]]).astype(np.float32)
    normals = np.asarray(solid.vertex_normals, np.float32)
    return Mesh(vertices, np.asarray(solid.faces, np.int64), normals, colors)


@pytest.fixture(scope="module")
def frames(bar: Mesh) -> np.ndarray:
    return turntable_frames(bar, frames=24, size=64)


def test_the_turn_begins_at_three_quarters_and_goes_once_around(
    bar: Mesh, frames: np.ndarray
) -> None:
    """The thumbnail's first frame, and a still picture of it, is the object's left front."""
    seen = rasterize(bar, orbit(40, 20, fov_deg=60), 64, 64)
    np.testing.assert_array_equal(frames[0], to_image(seen.rgb + 1 - seen.opacity))
    assert frames.shape == (24, 64, 64, 3)
    assert (frames[:, 0, 0] == 255).all()  # white
    red = (frames[..., 0] > 150) & (frames[..., 2] < 100)
    blue = (frames[..., 2] > 150) & (frames[..., 0] < 100)
    share = red.sum((1, 2)) / (red | blue).sum((1, 2))
    assert share.argmax() in (20, 21, 22)  # the front, 320 degrees on
    assert share.argmin() in (8, 9, 10)
    steps = np.abs(np.diff(frames.astype(int), axis=0, append=frames[:1])).mean((1, 2, 3))
    assert steps.max() < 3 * steps.mean()  # the last frame leads to the first


def test_the_video_plays_what_was_drawn(frames: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "turntable.mp4"
    write_video(frames, path)
    read = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(read, capture_output=True, check=True)
    about = re.search(r"Video: (\w+).*?(yuv\w+).*?, (\d+x\d+).*?, (\d+) fps", done.stderr.decode())
    assert about
    # Other layouts of colour than yuv420p do not play in every browser.
    assert about.groups() == ("h264", "yuv420p", "64x64", str(FRAMES_PER_SECOND))
    played = np.frombuffer(done.stdout, np.uint8).reshape(-1, 64, 64, 3)
    assert len(played) == 24
    error = np.abs(played.astype(int) - frames).mean()
    assert error < 6
    again = tmp_path / "again.mp4"
    write_video(frames, again)
    assert again.read_bytes() == path.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.mp4", "turntable.mp4"]


def test_odd_sides_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="even sides"):
        write_video(np.zeros((2, 33, 32, 3), np.uint8), tmp_path / "odd.mp4")
    assert not list(tmp_path.iterdir())


def test_the_thumbnail_is_small_and_loops(frames: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "thumbnail.webp"
    write_thumbnail(frames, path)
    with Image.open(path) as picture:
        assert picture.size == (THUMBNAIL_SIZE, THUMBNAIL_SIZE)
        assert picture.n_frames == THUMBNAIL_FRAMES
        assert picture.info["loop"] == 0
        first = np.asarray(picture.convert("RGB").resize((64, 64)), int)
    assert np.abs(first - frames[0]).mean() < 8
    assert path.stat().st_size < 40_000


def test_without_the_extra_there_is_the_thumbnail_alone(
    bar: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = EvaluateRecipe(turntable_frames=2, turntable_size=16)
    write_turntable(bar, tmp_path, recipe)
    assert {p.name for p in tmp_path.iterdir()} == {"thumbnail.webp", "turntable.mp4"}
    (tmp_path / "turntable.mp4").unlink()
    monkeypatch.setattr("sys.path", [])  # nor can it be imported
    monkeypatch.delitem(sys.modules, "imageio_ffmpeg")
    write_turntable(bar, tmp_path, recipe)
    assert [p.name for p in tmp_path.iterdir()] == ["thumbnail.webp"]
