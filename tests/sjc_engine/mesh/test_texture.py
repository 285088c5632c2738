"""Unwrapping and baking, on shapes whose colours are known everywhere."""

from __future__ import annotations

import io
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from numpy.typing import NDArray
from PIL import Image
from synthetic_fields import (
    TOTEM,
    centers,
    colored_by_points,
    interior_psnr,
    make_field,
    noise,
    shell_colors,
    soft_density,
    sphere,
)

from sjc_engine.mesh import unwrap as unwrapping
from sjc_engine.mesh.extract import extract_mesh
from sjc_engine.mesh.gltf import TO_GLTF, Mesh, jpeg_bytes
from sjc_engine.mesh.texture import dilate, surface_colors, texel_surface
from sjc_engine.mesh.unwrap import UnwrapTimeout, unwrap
from sjc_engine.recipes import MeshRecipe
from sjc_engine.rendering.camera import evaluation_cameras
from sjc_engine.rendering.rasterize import rasterize

N, RADIUS = 48, 0.35
RECIPE = MeshRecipe(mesh_resolution=64, texture_size=256, max_faces=3000, iso_level=5.0)


def stripes(points: NDArray[np.floating]) -> NDArray[np.floating]:
    """Colours in (-1, 1) that change along every axis."""
    return 0.9 * np.sin(9 * points)


@pytest.fixture(scope="module")
def totem() -> Mesh:
    points = centers(N)
    return extract_mesh(make_field(soft_density(TOTEM(points)), stripes(points)), RECIPE)


def test_the_atlas_has_the_meshs_faces_and_no_two_at_one_place(totem: Mesh) -> None:
    texture = totem.texture
    assert texture is not None
    assert np.array_equal(texture.corners[texture.faces], totem.faces)
    assert texture.uv.min() >= 0
    assert texture.uv.max() <= 1
    # If the sum of the faces' areas is the area that they cover, then none lies on another.
    size = 1024
    a, b, c = (texture.uv[texture.faces[:, k]] * size for k in range(3))
    (ux, uy), (vx, vy) = (b - a).T, (c - a).T
    total = np.abs(ux * vy - uy * vx).sum() / 2
    flat = unwrapping.Unwrapped(texture.corners, texture.faces, texture.uv)
    covered = len(texel_surface(flat, totem.vertices, totem.normals, size)[0])
    assert covered == pytest.approx(total, rel=0.02)
    assert covered > 0.4 * size**2


def test_texels_lie_on_the_surface() -> None:
    solid = trimesh.creation.icosphere(subdivisions=4, radius=RADIUS)
    vertices = np.asarray(solid.vertices, np.float32)
    faces = np.asarray(solid.faces, np.int64)
    flat = unwrap(vertices, faces, 256)
    texel, points, normals = texel_surface(flat, vertices, vertices / RADIUS, 256)
    assert len(np.unique(texel)) == len(texel) > 0.4 * 256**2
    assert np.linalg.norm(points, axis=1) == pytest.approx(RADIUS, abs=0.002)
    assert np.linalg.norm(normals, axis=1) == pytest.approx(1, abs=1e-5)
    assert (normals * points).sum(1) == pytest.approx(RADIUS, abs=0.002)


def test_the_texture_shows_the_fields_colours_better_than_vertices_can() -> None:
    """Both against what the field shows at the points that are seen, on few and large faces."""
    points = centers(N)
    field = make_field(soft_density(sphere(RADIUS)(points), density=200.0), stripes(points))
    few = extract_mesh(field, replace(RECIPE, max_faces=300))

    def error(mesh: Mesh) -> float:
        squares = []
        for camera in evaluation_cameras()[:8:2]:
            seen = rasterize(mesh, camera, 128, 128, supersample=1)
            hit = seen.opacity == 1
            directions = camera.camera_to_world[:3, :3]
            focal = 64 / np.tan(camera.fov / 2)
            y, x = torch.meshgrid(torch.arange(128) + 0.5, torch.arange(128) + 0.5, indexing="ij")
            local = torch.stack([(x - 64) / focal, (64 - y) / focal, 0 * x - 1], -1).double()
            points = camera.camera_to_world[:3, 3] + seen.depth[..., None] * (local @ directions.T)
            normals = seen.normals.permute(1, 2, 0)[hit]
            shown = surface_colors(field, points[hit].float().numpy(), normals.numpy())
            expected = 2 * torch.from_numpy(shown) - 1
            squares.append((seen.rgb.permute(1, 2, 0)[hit] - expected).square().mean())
        return float(torch.stack(squares).mean().sqrt())

    textured, bare = error(few), error(replace(few, texture=None))
    assert textured < 0.01
    assert textured < 0.2 * bare


def test_what_was_seen_is_baked_and_not_the_noise_around_it() -> None:
    """A field whose colours are random outside the thin shell that its viewers saw."""
    n, density = 64, 40.0
    points = centers(n)
    distance = TOTEM(points)
    colors = shell_colors(0.8 * np.sin(points * [11, 13, 9]), distance, density)
    field = make_field(soft_density(distance, density), colors)
    mesh = extract_mesh(field, replace(RECIPE, iso_level=0.0, max_faces=10_000))
    sampled = interior_psnr(field, colored_by_points(field, mesh), 96, views=3)
    assert interior_psnr(field, mesh, 96, views=3) >= sampled + 5
    assert sampled < 20  # the noise is where the surface is


def test_gaps_between_charts_take_the_nearest_colour() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    covered = np.zeros((8, 8), bool)
    covered[2, 2] = covered[5, 7] = True
    image[2, 2], image[5, 7] = 10, 200
    filled = dilate(image, covered)
    assert (filled[0, 0] == 10).all()
    assert (filled[7, 7] == 200).all()
    assert set(np.unique(filled)) == {10, 200}


def test_an_unwrap_that_takes_too_long_is_ended() -> None:
    """A rough surface, not decimated, would keep xatlas busy for half a minute."""
    rough = soft_density(sphere(0.3)(centers(N))) * np.exp(0.8 * noise(N))
    recipe = replace(RECIPE, mesh_resolution=128, mesh_smoothing=0.0, max_faces=0)
    began = time.monotonic()
    with pytest.raises(UnwrapTimeout, match="within 1 s: lower max_faces"):
        extract_mesh(make_field(rough), replace(recipe, unwrap_seconds=1.0))
    assert time.monotonic() - began < 20


def test_without_xatlas_there_are_vertex_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    points = centers(16)
    field = make_field(soft_density(sphere(RADIUS)(points)), stripes(points))
    recipe = replace(RECIPE, mesh_resolution=16, texture_size=64)
    assert extract_mesh(field, recipe).texture is not None
    monkeypatch.setattr(unwrapping, "find_spec", lambda name: None)
    mesh = extract_mesh(field, recipe)
    assert (mesh.texture, len(mesh.colors)) == (None, len(mesh.vertices))


def test_a_crash_of_the_unwrapper_is_told(monkeypatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("raise SystemExit('no charts today')\n")
    monkeypatch.setattr(unwrapping, "_PROCESS", broken)
    with pytest.raises(unwrapping.MeshError, match="no charts today"):
        unwrap(np.eye(3, dtype=np.float32), np.array([[0, 1, 2]]), 64)


def test_a_killed_unwrapper_is_told_apart(monkeypatch, tmp_path: Path) -> None:
    killed = tmp_path / "killed.py"
    killed.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    monkeypatch.setattr(unwrapping, "_PROCESS", killed)
    with pytest.raises(unwrapping.UnwrapKilled, match="memory is short"):
        unwrap(np.eye(3, dtype=np.float32), np.array([[0, 1, 2]]), 64)


def test_a_glb_carries_the_texture(totem: Mesh, tmp_path: Path) -> None:
    totem.export(tmp_path / "totem.glb")
    loaded = trimesh.load(tmp_path / "totem.glb", force="mesh", process=False)
    assert totem.texture is not None
    assert len(loaded.vertices) == len(totem.texture.corners)
    assert np.array_equal(loaded.faces, totem.texture.faces)
    # trimesh turns v upside down as it reads
    assert loaded.visual.uv == pytest.approx(
        np.stack([totem.texture.uv[:, 0], 1 - totem.texture.uv[:, 1]], 1), abs=1e-6
    )
    picture = np.asarray(loaded.visual.material.baseColorTexture.convert("RGB"))
    stored = np.asarray(Image.open(io.BytesIO(jpeg_bytes(totem.texture.image))))
    assert np.array_equal(picture, stored)
    assert np.abs(stored.astype(int) - totem.texture.image).mean() < 3


def test_an_obj_comes_with_its_material_and_picture(totem: Mesh, tmp_path: Path) -> None:
    totem.export(tmp_path / "totem.obj")
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".mtl", ".obj", ".png"]
    loaded = trimesh.load(tmp_path / "totem.obj", force="mesh", process=False)
    picture = np.asarray(loaded.visual.material.image.convert("RGB"))
    assert totem.texture is not None
    assert np.array_equal(picture, totem.texture.image)
    # The colour at a face's first corner is the same as in memory.
    size = len(picture)
    for face in range(0, len(loaded.faces), 500):
        corner = loaded.faces[face, 0]
        u, v = loaded.visual.uv[corner]
        row, column = int((1 - v) * (size - 1e-3)), int(u * (size - 1e-3))
        vertex = np.asarray(loaded.vertices[corner]) @ TO_GLTF
        expected = (stripes(vertex) + 1) / 2
        assert picture[row, column] / 255 == pytest.approx(expected, abs=0.35)
