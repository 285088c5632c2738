from __future__ import annotations

import json
import struct
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from sjc_engine.mesh.gltf import TO_GLTF, Mesh, Texture, glb_bytes, srgb_to_linear
from sjc_engine.mesh.normals import vertex_normals

ROOT = Path(__file__).parents[3]
VALIDATE = """
const fs = require("fs");
const validator = require("gltf-validator");
validator.validateBytes(new Uint8Array(fs.readFileSync(process.argv[1])))
  .then((report) => console.log(JSON.stringify(report)));
"""


def colored_ball(subdivisions: int) -> Mesh:
    solid = trimesh.creation.icosphere(subdivisions=subdivisions, radius=0.5)
    vertices = (np.asarray(solid.vertices) * [1, 0.5, 0.25]).astype(np.float32)
    faces = np.asarray(solid.faces, np.int64)
    return Mesh(vertices, faces, vertex_normals(vertices, faces), np.abs(vertices) * 2)


def triangle() -> Mesh:
    corners = np.eye(3, dtype=np.float32)
    return Mesh(corners, np.array([[0, 1, 2]]), corners, np.full((3, 3), 0.5, np.float32))


def document(data: bytes) -> dict[str, Any]:
    magic, version, total, length, kind = struct.unpack("<4sIII4s", data[:20])
    assert (magic, version, total, kind) == (b"glTF", 2, len(data), b"JSON")
    assert length % 4 == 0
    parsed: dict[str, Any] = json.loads(data[20 : 20 + length])
    return parsed


def values(data: bytes, accessor: int, dtype: str, columns: int) -> np.ndarray:
    """An accessor's values, read from the binary chunk as the document describes it."""
    gltf = document(data)
    view = gltf["bufferViews"][gltf["accessors"][accessor]["bufferView"]]
    start = 28 + struct.unpack("<I", data[12:16])[0] + view["byteOffset"]
    return np.frombuffer(data[start : start + view["byteLength"]], dtype).reshape(-1, columns)


def test_a_file_reads_back_as_it_was(tmp_path: Path) -> None:
    mesh = colored_ball(4)
    mesh.export(tmp_path / "ball.glb")
    loaded = trimesh.load(tmp_path / "ball.glb", force="mesh", process=False)
    assert np.array_equal(loaded.vertices, mesh.vertices @ TO_GLTF.T)
    assert np.array_equal(loaded.faces, mesh.faces)
    assert loaded.volume > 0  # still outward

    data = (tmp_path / "ball.glb").read_bytes()
    attributes = document(data)["meshes"][0]["primitives"][0]["attributes"]
    normals = values(data, attributes["NORMAL"], "<f4", 3)
    assert np.array_equal(normals, mesh.normals @ TO_GLTF.T)
    colors = values(data, attributes["COLOR_0"], "<f4", 3)
    assert colors == pytest.approx(srgb_to_linear(mesh.colors), abs=1e-6)


def test_front_becomes_plus_z_by_a_rotation() -> None:
    assert np.linalg.det(TO_GLTF) == 1
    assert np.array_equal(TO_GLTF @ TO_GLTF.T, np.eye(3))
    front, up, left = [-1, 0, 0], [0, 1, 0], [0, 0, 1]
    assert (TO_GLTF @ front).tolist() == [0, 0, 1]
    assert (TO_GLTF @ up).tolist() == [0, 1, 0]
    assert (TO_GLTF @ left).tolist() == [1, 0, 0]  # glTF: a model's left is +X


def test_colours_are_stored_linear() -> None:
    srgb = np.array([0.0, 0.04, 0.5, 1.0])
    # Reference values of IEC 61966-2-1.
    assert srgb_to_linear(srgb) == pytest.approx([0.0, 0.0030960, 0.2140411, 1.0], abs=1e-6)
    data = glb_bytes(triangle(), "gray")
    assert struct.pack("<f", 0.21404114) * 9 in data
    assert len(data) % 4 == 0  # three 16-bit indices need padding


def test_the_document_says_what_the_mesh_is(tmp_path: Path) -> None:
    mesh = colored_ball(2)
    extras = {"asset_id": "0123456789abcdef", "prompt": 'a "ball" 🎾', "licence": "CC0-1.0"}
    mesh.export(tmp_path / "ball.glb", extras=extras)
    gltf = document((tmp_path / "ball.glb").read_bytes())
    assert gltf["asset"]["extras"] == extras
    assert gltf["asset"]["generator"] == "SJC Foundry"
    assert gltf["nodes"][0]["name"] == gltf["meshes"][0]["name"] == "0123456789abcdef"
    material = gltf["materials"][0]
    assert material["extensions"] == {"KHR_materials_unlit": {}}
    assert gltf["extensionsUsed"] == ["KHR_materials_unlit"]
    assert "extensionsRequired" not in gltf
    assert material["pbrMetallicRoughness"]["metallicFactor"] == 0  # the fallback is no mirror
    primitive = gltf["meshes"][0]["primitives"][0]
    position = gltf["accessors"][primitive["attributes"]["POSITION"]]
    placed = mesh.vertices @ TO_GLTF.T
    assert position["min"] == placed.min(0).tolist()
    assert position["max"] == placed.max(0).tolist()
    assert gltf["accessors"][primitive["indices"]]["componentType"] == 5123


def test_many_vertices_get_wide_indices() -> None:
    solid = trimesh.creation.icosphere(subdivisions=7)  # 163,842 vertices
    vertices = np.asarray(solid.vertices, np.float32)
    mesh = Mesh(vertices, np.asarray(solid.faces), vertices, np.abs(vertices))
    gltf = document(glb_bytes(mesh, "ball"))
    indices = gltf["accessors"][gltf["meshes"][0]["primitives"][0]["indices"]]
    assert indices == {"bufferView": 3, "componentType": 5125, "count": solid.faces.size,
                       "type": "SCALAR"}  # fmt: skip


@pytest.mark.system
@pytest.mark.parametrize("subdivisions", [0, 4, 7])
@pytest.mark.parametrize("textured", [False, True])
def test_the_khronos_validator_has_nothing_to_say(
    subdivisions: int, textured: bool, tmp_path: Path
) -> None:
    path = tmp_path / "ball.glb"
    mesh = colored_ball(subdivisions)
    odd = Mesh(mesh.vertices, mesh.faces[:-1], mesh.normals, mesh.colors)
    if textured:
        uv = mesh.vertices[:, :2] + 0.5
        image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        odd = replace(odd, texture=Texture(np.arange(len(uv)), odd.faces, uv, image))
    odd.export(path, extras={"prompt": "a ball", "licence": "CC0-1.0"})
    run = subprocess.run(
        ["node", "-e", VALIDATE, str(path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    issues = json.loads(run.stdout)["issues"]
    counts = [issues[key] for key in ("numErrors", "numWarnings", "numInfos", "numHints")]
    assert counts == [0, 0, 0, 0], issues["messages"]
