"""Reading back the mesh.glb that `Mesh.export` wrote, to judge the file itself.

Other readers turn its colours into bytes or its corners into vertices of their own; here the mesh
comes back with the arrays that it was written from, but for the JPEG of its texture.
"""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sjc_engine.glb import GENERATOR
from sjc_engine.mesh import TO_GLTF, Mesh
from sjc_engine.texture import Texture

_TYPES = {5126: "<f4", 5123: "<u2", 5125: "<u4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3}


def read_mesh(path: str | Path) -> Mesh:
    """The mesh of a .glb file that this package wrote; ValueError for any other file.

    Corners of a texture at one place become one vertex again. The colours of a textured mesh's
    vertices are its texture's.
    """
    path = Path(path)
    try:
        gltf, binary = _chunks(path.read_bytes())
        if gltf["asset"]["generator"] != GENERATOR:
            raise ValueError("another program wrote it")
        primitive = gltf["meshes"][0]["primitives"][0]
        arrays = {k: _accessor(gltf, binary, n) for k, n in primitive["attributes"].items()}
        faces = _accessor(gltf, binary, primitive["indices"]).astype(np.int64).reshape(-1, 3)
        image = _picture(gltf, binary)
        positions, normals = (arrays[key] @ TO_GLTF for key in ("POSITION", "NORMAL"))
        if image is None:
            colors = linear_to_srgb(arrays["COLOR_0"]).astype(np.float32)
            return Mesh(positions, faces, normals, colors)
        uv = arrays["TEXCOORD_0"]
    except (KeyError, IndexError, TypeError, struct.error, ValueError, OSError) as error:
        raise ValueError(f"{path} is no mesh file of ours: {error}") from error
    _, first, corners = np.unique(positions, axis=0, return_index=True, return_inverse=True)
    corners = corners.reshape(-1)
    size = len(image)
    column, row = (uv[first] * size).astype(np.int64).clip(0, size - 1).T
    return Mesh(
        positions[first],
        corners[faces],
        normals[first],
        (image[row, column] / 255).astype(np.float32),
        Texture(corners, faces, uv, image),
    )


def linear_to_srgb(linear: NDArray[np.floating]) -> NDArray[np.floating]:
    """The inverse of `glb.srgb_to_linear`."""
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


def _chunks(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The JSON and the binary part of a glTF 2.0 container."""
    magic, version, _ = struct.unpack_from("<4sII", data)
    if (magic, version) != (b"glTF", 2):
        raise ValueError("not a glTF 2.0 binary")
    (length,) = struct.unpack_from("<I", data, 12)
    return json.loads(data[20 : 20 + length]), data[28 + length :]


def _view(gltf: dict[str, Any], binary: bytes, index: int) -> bytes:
    view = gltf["bufferViews"][index]
    return binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]


def _accessor(gltf: dict[str, Any], binary: bytes, index: int) -> NDArray[Any]:
    accessor = gltf["accessors"][index]
    data = _view(gltf, binary, accessor["bufferView"])
    array = np.frombuffer(data, _TYPES[accessor["componentType"]])
    return array.reshape(accessor["count"], _WIDTHS[accessor["type"]])


def _picture(gltf: dict[str, Any], binary: bytes) -> NDArray[np.uint8] | None:
    if "images" not in gltf:
        return None
    data = _view(gltf, binary, gltf["images"][0]["bufferView"])
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))  # a copy: PIL's is read-only
