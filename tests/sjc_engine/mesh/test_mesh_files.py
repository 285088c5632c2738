"""A mesh file, read back, is the mesh that was written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from synthetic_fields import TOTEM, centers, make_field, soft_density

from sjc_engine.mesh.extract import extract_mesh
from sjc_engine.mesh.gltf import Mesh, read_mesh
from sjc_engine.recipes import MeshRecipe
from sjc_engine.rendering.camera import orbit
from sjc_engine.rendering.rasterize import rasterize


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    points = centers(32)
    field = make_field(soft_density(TOTEM(points), 60.0), np.sin(9 * points))
    recipe = MeshRecipe(iso_level=5.0, mesh_resolution=48, max_faces=1500, texture_size=256)
    return extract_mesh(field, recipe)


def test_vertex_colours_come_back_as_they_were(mesh: Mesh, tmp_path: Path) -> None:
    plain = replace(mesh, texture=None)
    plain.export(tmp_path / "a.glb")
    back = read_mesh(tmp_path / "a.glb")
    assert np.array_equal(back.vertices, plain.vertices)
    assert np.array_equal(back.faces, plain.faces)
    assert np.array_equal(back.normals, plain.normals)
    assert np.abs(back.colors - plain.colors).max() < 1e-6
    assert back.texture is None


def test_a_texture_comes_back_on_the_same_surface(mesh: Mesh, tmp_path: Path) -> None:
    assert mesh.texture is not None
    mesh.export(tmp_path / "a.glb")
    back = read_mesh(tmp_path / "a.glb")
    assert back.texture is not None
    assert len(back.vertices) == len(mesh.vertices)  # seams are closed again
    assert np.array_equal(back.vertices[back.faces], mesh.vertices[mesh.faces])
    assert np.array_equal(back.texture.uv, mesh.texture.uv)
    assert np.array_equal(back.texture.faces, mesh.texture.faces)
    solid = trimesh.Trimesh(back.vertices, back.faces, process=False)
    assert solid.is_watertight
    for azimuth in (20.0, 200.0):
        one, other = (
            rasterize(m, orbit(azimuth, 20.0, fov_deg=50.0), 96, 96) for m in (mesh, back)
        )
        assert (one.opacity == other.opacity).all()
        assert (one.rgb - other.rgb).abs().mean() < 0.02  # the JPEG's loss


def test_other_files_are_refused(mesh: Mesh, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.glb is not a mesh file of this program"):
        read_mesh(tmp_path / "a.glb")
    trimesh.creation.icosphere().export(tmp_path / "b.glb")
    with pytest.raises(ValueError, match="another program wrote it"):
        read_mesh(tmp_path / "b.glb")
    mesh.export(tmp_path / "a.glb")
    whole = (tmp_path / "a.glb").read_bytes()
    for size in (0, 10, 200, len(whole) // 2):
        (tmp_path / "c.glb").write_bytes(whole[:size])
        with pytest.raises(ValueError, match="not a mesh file of this program"):
            read_mesh(tmp_path / "c.glb")
    (tmp_path / "c.glb").write_bytes(b"solid" + whole[5:])
    with pytest.raises(ValueError, match=r"not a glTF 2\.0 binary"):
        read_mesh(tmp_path / "c.glb")
