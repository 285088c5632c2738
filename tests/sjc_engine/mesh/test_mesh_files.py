"""A mesh file, read back here or by other programs, is the mesh that was written."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from synthetic_fields import TOTEM, centers, make_field, soft_density

from sjc_engine.mesh.extract import extract_mesh, write_mesh
from sjc_engine.mesh.gltf import TO_GLTF, Mesh, read_mesh, srgb_to_linear
from sjc_engine.recipes import MeshRecipe
from sjc_engine.rendering.camera import orbit
from sjc_engine.rendering.rasterize import rasterize

ROOT = Path(__file__).parents[3]
SUFFIXES = ("glb", "ply", "obj", "stl")
THREE = ROOT / "tests/support/three_meshes.mjs"


def in_three(*paths: Path) -> list[dict[str, Any]]:
    """What three.js makes of the files."""
    command = ["node", str(THREE), *map(str, paths)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


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


def test_all_formats_have_one_shape_and_one_side_up(mesh: Mesh, tmp_path: Path) -> None:
    recipe = MeshRecipe(also_write="ply+obj+stl")
    write_mesh(mesh, tmp_path, recipe, {})
    assert {path.name for path in tmp_path.iterdir()} == {
        *(f"mesh.{suffix}" for suffix in SUFFIXES), "mesh.mtl", "mesh.png",
    }  # fmt: skip
    exported = mesh.vertices @ TO_GLTF.T
    for suffix in SUFFIXES:
        loaded = trimesh.load(tmp_path / f"mesh.{suffix}", force="mesh")
        assert len(loaded.faces) == len(mesh.faces)
        assert loaded.bounds == pytest.approx(
            np.array([exported.min(0), exported.max(0)]), abs=1e-6
        )
        assert loaded.center_mass == pytest.approx(center_of(exported, mesh.faces), abs=1e-4)
        loaded.merge_vertices(merge_tex=True, merge_norm=True)
        assert loaded.is_watertight
        assert loaded.volume > 0


def center_of(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    center: np.ndarray = trimesh.Trimesh(vertices, faces, process=False).center_mass
    return center


def test_an_obj_shows_its_picture_as_it_is(mesh: Mesh, tmp_path: Path) -> None:
    """Its colours contain their light: times one, and without a sheen."""
    mesh.export(tmp_path / "a.obj")
    lines = [line.split() for line in (tmp_path / "a.mtl").read_text().splitlines()]
    values = {key: rest for key, *rest in lines}
    assert [values[key] for key in ("Ka", "Kd", "Ks")] == [["1"] * 3, ["1"] * 3, ["0"] * 3]
    assert values["illum"] == ["0"]
    assert values["newmtl"] == ["a"]
    assert "usemtl a\n" in (tmp_path / "a.obj").read_text()
    material = trimesh.load(tmp_path / "a.obj", force="mesh").visual.material
    assert material.diffuse.tolist() == [255] * 4
    assert material.specular.tolist() == [0, 0, 0, 255]


@pytest.mark.parametrize("suffix", ["ply", "obj"])
def test_colours_beyond_the_range_end_at_it(mesh: Mesh, tmp_path: Path, suffix: str) -> None:
    plain = replace(mesh, texture=None, colors=mesh.colors * 2 - 0.5)
    plain.export(tmp_path / f"a.{suffix}")
    loaded = trimesh.load(tmp_path / f"a.{suffix}", force="mesh", process=False)
    found = loaded.visual.vertex_colors[:, :3] / 255
    assert found == pytest.approx(plain.colors.clip(0, 1), abs=0.51 / 255)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", ["vertices", "normals", "colors"])
def test_no_file_is_written_of_bad_arrays(
    mesh: Mesh, tmp_path: Path, name: str, suffix: str
) -> None:
    broken = getattr(mesh, name).copy()
    broken[1, 2] = np.nan
    empty = replace(mesh, texture=None, faces=mesh.faces[:0])
    for bad in (empty, replace(mesh, **{name: broken})):
        with pytest.raises(ValueError, match="at least one face, and finite values"):
            bad.export(tmp_path / f"a.{suffix}")
    assert not list(tmp_path.iterdir())


@pytest.mark.system
@pytest.mark.parametrize("textured", [True, False])
def test_three_js_shows_all_formats_alike(mesh: Mesh, tmp_path: Path, textured: bool) -> None:
    shown = mesh if textured else replace(mesh, texture=None)
    paths = [tmp_path / f"a.{suffix}" for suffix in SUFFIXES]
    if textured:
        paths = paths[1:]  # three.js needs a browser for a picture in a .glb
    for path in paths:
        shown.export(path)
    exported = mesh.vertices @ TO_GLTF.T
    found = dict(zip((path.suffix for path in paths), in_three(*paths), strict=True))
    for loaded in found.values():
        assert loaded["low"] == pytest.approx(exported.min(0), abs=1e-6)
        assert loaded["high"] == pytest.approx(exported.max(0), abs=1e-6)
    linear = srgb_to_linear(mesh.colors)
    expected = {".glb": linear, ".ply": linear, ".obj": linear[mesh.faces].reshape(-1, 3)}
    colored = {suffix for suffix, loaded in found.items() if loaded["colors"]}
    for suffix in colored:
        assert np.array(found[suffix]["colors"]) == pytest.approx(expected[suffix], abs=0.01)
    material = found[".obj"]["material"]
    assert material["color"] == [1, 1, 1]
    if textured:
        assert colored == {".ply"}
        assert material["specular"] == [0, 0, 0]
        assert material["map"] == "srgb"
    else:
        assert colored == {".glb", ".ply", ".obj"}
        assert found[".glb"]["material"]["type"] == "MeshBasicMaterial"
        assert material["vertexColors"]
