"""A binary glTF 2.0 writer for one mesh with a texture, or with vertex colours.

Written out because the usual exporters put sRGB bytes into COLOR_0, which glTF defines as linear
(viewers then show washed-out colours), compress textures hard, and because the colours of a field
already contain their lighting: KHR_materials_unlit shows them as they are. A viewer without it
falls back to the same colours on a rough dielectric.
"""

from __future__ import annotations

import io
import json
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_FLOAT, _UINT16, _UINT32 = 5126, 5123, 5125
_ARRAY_BUFFER, _ELEMENT_ARRAY_BUFFER = 34962, 34963
GENERATOR = "SJC Foundry"


def srgb_to_linear(srgb: NDArray[np.floating]) -> NDArray[np.floating]:
    """The sRGB transfer function (IEC 61966-2-1), [0, 1] to [0, 1]."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def jpeg_bytes(image: NDArray[np.uint8]) -> bytes:
    """Quality 92 without chroma subsampling, which would bleed over the charts' borders."""
    data = io.BytesIO()
    Image.fromarray(image).save(data, "JPEG", quality=92, subsampling=0)
    return data.getvalue()


@dataclass
class _Buffer:
    """The binary part of a file, with the views and accessors that describe it."""

    data: bytes = b""
    views: list[dict[str, int]] = field(default_factory=list)
    accessors: list[dict[str, Any]] = field(default_factory=list)

    def add(self, data: bytes, **more: int) -> int:
        """Appends bytes; returns their view's index."""
        offset = len(self.data)
        self.views.append({"buffer": 0, "byteOffset": offset, "byteLength": len(data), **more})
        self.data += data + b"\0" * (-len(data) % 4)
        return len(self.views) - 1

    def add_array(self, array: NDArray[Any], component: int, kind: str, target: int) -> int:
        """Appends an array; returns its accessor's index."""
        view = self.add(np.ascontiguousarray(array).tobytes(), target=target)
        count = len(array)
        self.accessors.append(
            {"bufferView": view, "componentType": component, "count": count, "type": kind}
        )
        return len(self.accessors) - 1

    def add_vectors(self, array: NDArray[np.floating]) -> int:
        return self.add_array(array.astype("<f4"), _FLOAT, f"VEC{array.shape[1]}", _ARRAY_BUFFER)


def glb_bytes(
    vertices: NDArray[np.floating],
    faces: NDArray[np.integer],
    normals: NDArray[np.floating],
    *,
    colors: NDArray[np.floating] | None = None,
    uv: NDArray[np.floating] | None = None,
    image: NDArray[np.uint8] | None = None,
    name: str = "asset",
    extras: dict[str, str] | None = None,
) -> bytes:
    """A .glb file of vertices (V, 3), faces (F, 3), unit normals (V, 3), and their colours.

    Either sRGB `colors` (V, 3) in [0, 1], or `uv` (V, 2) from the upper left corner of an sRGB
    `image` (T, T, 3). Axes are taken as they come (glTF: +Y up, +Z front, counter-clockwise faces).
    `extras` lands in asset.extras. Raises ValueError for no faces, wrong shapes, or values that are
    not finite.
    """
    _check(len(faces), vertices, normals, colors, uv, image)
    buffer = _Buffer()
    attributes = {"POSITION": buffer.add_vectors(vertices), "NORMAL": buffer.add_vectors(normals)}
    if colors is not None:
        attributes["COLOR_0"] = buffer.add_vectors(srgb_to_linear(colors.clip(0, 1)))
    if uv is not None:
        attributes["TEXCOORD_0"] = buffer.add_vectors(uv)
    positions = vertices.astype("<f4")  # the bounds must be those of the stored values
    buffer.accessors[attributes["POSITION"]] |= {
        "min": positions.min(axis=0).tolist(),
        "max": positions.max(axis=0).tolist(),
    }
    # The largest 16-bit index is reserved (primitive restart).
    type_, component = ("<u2", _UINT16) if len(vertices) <= 0xFFFF else ("<u4", _UINT32)
    indices = buffer.add_array(
        faces.ravel().astype(type_), component, "SCALAR", _ELEMENT_ARRAY_BUFFER
    )
    surface: dict[str, Any] = {"metallicFactor": 0.0, "roughnessFactor": 0.9}
    pictures: dict[str, Any] = {}
    if image is not None:
        surface["baseColorTexture"] = {"index": 0}
        view = buffer.add(jpeg_bytes(image))
        pictures = {
            "images": [{"bufferView": view, "mimeType": "image/jpeg"}],
            # Linear, and between halvings of the picture linear too; charts end at its border.
            "samplers": [{"magFilter": 9729, "minFilter": 9987, "wrapS": 33071, "wrapT": 33071}],
            "textures": [{"source": 0, "sampler": 0}],
        }
    primitive = {"attributes": attributes, "indices": indices, "material": 0}
    document = _document(name, extras, primitive, surface) | pictures
    return _container(document, buffer)


def _check(faces: int, vertices: NDArray[Any], *others: NDArray[Any] | None) -> None:
    """Raises ValueError for what `glb_bytes` does not take."""
    normals, colors, uv, image = others
    if faces == 0:
        raise ValueError("a glTF mesh needs at least one face")
    if (colors is None) == (uv is None) or (uv is None) != (image is None):
        raise ValueError("a mesh has either colors, or uv and image")
    for values, width in ((vertices, 3), (normals, 3), (colors, 3), (uv, 2)):
        if values is None:
            continue
        if values.shape != (len(vertices), width) or not np.isfinite(values).all():
            raise ValueError("vertices, normals, colors and uv must be finite, (V, 3) or (V, 2)")


def _document(
    name: str, extras: dict[str, str] | None, primitive: dict[str, Any], surface: dict[str, Any]
) -> dict[str, Any]:
    """The JSON of a scene with one mesh of one unlit material."""
    asset = {"version": "2.0", "generator": GENERATOR} | ({"extras": extras} if extras else {})
    material = {
        "name": "field colours",
        "pbrMetallicRoughness": surface,
        "extensions": {"KHR_materials_unlit": {}},
    }
    return {
        "asset": asset,
        "extensionsUsed": ["KHR_materials_unlit"],
        "scene": 0,
        "scenes": [{"name": name, "nodes": [0]}],
        "nodes": [{"name": name, "mesh": 0}],
        "meshes": [{"name": name, "primitives": [primitive]}],
        "materials": [material],
    }


def _container(document: dict[str, Any], buffer: _Buffer) -> bytes:
    """The file: a header, the JSON and the binary part."""
    document |= {
        "accessors": buffer.accessors,
        "bufferViews": buffer.views,
        "buffers": [{"byteLength": len(buffer.data)}],
    }
    text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    total = 12 + 8 + len(text) + 8 + len(buffer.data)
    return b"".join(
        [
            struct.pack("<4sII", b"glTF", 2, total),
            struct.pack("<I4s", len(text), b"JSON"),
            text,
            struct.pack("<I4s", len(buffer.data), b"BIN\0"),
            buffer.data,
        ]
    )
