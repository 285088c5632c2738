"""A mesh, its files, and reading back its mesh.glb, to judge the file itself.

In memory a mesh keeps the field's axes (+Y up, front -X). Files have glTF's (+Y up, front +Z).

The glTF 2.0 writer is written out because the usual exporters put sRGB bytes into COLOR_0, which
glTF defines as linear (viewers then show washed-out colours), compress textures hard, and because
the colours of a field already contain their lighting: KHR_materials_unlit shows them as they are. A
viewer without it falls back to the same colours on a rough dielectric.
"""

from __future__ import annotations

import io
import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from numpy.typing import NDArray
from PIL import Image

from sjc_engine.files import write_atomically
from sjc_engine.mesh.isosurface import Faces, Vertices

# x' = z, y' = y, z' = -x: a quarter turn about +Y that takes the front from -X to +Z.
TO_GLTF = np.array([[0, 0, 1], [0, 1, 0], [-1, 0, 0]], dtype=np.float32)

# What KHR_materials_unlit is in an .mtl: the picture as it is (illum 0), times one, no sheen.
# Programs that light it all the same multiply by Ka and Kd; trimesh's own would be 0.4.
_MTL = """newmtl {0}
Ka 1 1 1
Kd 1 1 1
Ks 0 0 0
Ns 0
d 1
illum 0
map_Kd {0}.png
"""
_ARRAY_BUFFER, _ELEMENT_ARRAY_BUFFER = 34962, 34963
GENERATOR = "SJC Foundry"
_COMPONENTS = {"<f4": 5126, "<u2": 5123, "<u4": 5125}  # numpy's names -> glTF's numbers
_TYPES = {number: name for name, number in _COMPONENTS.items()}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3}


@dataclass(frozen=True, eq=False)
class Texture:
    """How a mesh wears a picture."""

    corners: NDArray[np.int64]  # (W,) the mesh's vertex that each textured one copies
    faces: Faces  # (F, 3) indices into `corners`: the mesh's faces, in their order
    uv: NDArray[np.float32]  # (W, 2) in [0, 1] from the picture's upper left corner
    image: NDArray[np.uint8]  # (T, T, 3) sRGB


@dataclass(frozen=True, eq=False)
class Mesh:
    """A closed triangle mesh with vertex colours and, over the same faces, a texture."""

    vertices: Vertices  # (V, 3) float32, world units
    faces: Faces  # (F, 3) int64, counter-clockwise from outside
    normals: NDArray[np.float32]  # (V, 3) unit, outward
    colors: NDArray[np.float32]  # (V, 3) sRGB in [0, 1]
    texture: Texture | None = None

    def export(self, path: str | Path, *, extras: dict[str, str] | None = None) -> None:
        """Write .glb, .ply, .obj or .stl by the path's suffix, +Y up and the front at +Z.

        A .ply has vertex colours, and so has an .obj without a texture; with one its .mtl and .png
        are written beside it. An .stl has no colours. `extras` (asset_id, prompt, licence, ...)
        goes into a .glb only. Raises ValueError for another suffix, no faces, or values that are
        not finite.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix not in (".glb", ".ply", ".obj", ".stl"):
            raise ValueError(f"cannot write {path.name}: use .glb, .ply, .obj or .stl")
        uv = self.texture.uv if self.texture else np.zeros(0)
        arrays = (self.vertices, self.normals, self.colors, uv)
        if not len(self.faces) or not all(np.isfinite(values).all() for values in arrays):
            raise ValueError("a mesh file needs at least one face, and finite values")
        if suffix == ".glb":
            name = (extras or {}).get("asset_id", path.stem)
            files = {path.name: glb_bytes(self, name, extras)}
        elif suffix == ".obj" and self.texture:
            files = self._textured_obj(path.stem)
        else:
            data: Any = self._solid().export(file_type=suffix[1:])
            files = {path.name: data.encode() if isinstance(data, str) else data}
        # The file that names the others comes last, so that it never names what is not there.
        for name in sorted(files, key=lambda name: name == path.name):
            write_atomically(path.with_name(name), files[name])

    def _solid(self) -> trimesh.Trimesh:
        return trimesh.Trimesh(
            self.vertices @ TO_GLTF.T,
            self.faces,
            vertex_normals=self.normals @ TO_GLTF.T,
            vertex_colors=(self.colors.clip(0, 1) * 255).round().astype(np.uint8),
            process=False,
        )

    def _textured_obj(self, stem: str) -> dict[str, bytes]:
        """The .obj, .mtl and .png by name."""
        assert self.texture is not None
        corners, uv = self.texture.corners, self.texture.uv
        # OBJ counts v from the bottom.
        flipped = np.stack([uv[:, 0], 1 - uv[:, 1]], axis=1)
        material = trimesh.visual.material.SimpleMaterial(
            image=Image.fromarray(self.texture.image), name=stem
        )
        solid = trimesh.Trimesh(
            (self.vertices @ TO_GLTF.T)[corners],
            self.texture.faces,
            vertex_normals=(self.normals @ TO_GLTF.T)[corners],
            visual=trimesh.visual.TextureVisuals(uv=flipped, material=material),
            process=False,
        )
        text, others = trimesh.exchange.obj.export_obj(
            solid, include_normals=True, return_texture=True, mtl_name=f"{stem}.mtl"
        )
        others[f"{stem}.mtl"] = _MTL.format(stem).encode()
        return {f"{stem}.obj": text.encode(), **others}


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

    def add_array(self, array: NDArray[Any], target: int) -> int:
        """Appends numbers or vectors of a type in `_COMPONENTS`; returns their accessor's index."""
        view = self.add(np.ascontiguousarray(array).tobytes(), target=target)
        kind = "SCALAR" if array.ndim == 1 else f"VEC{array.shape[1]}"
        what = {"componentType": _COMPONENTS[array.dtype.str], "count": len(array), "type": kind}
        self.accessors.append({"bufferView": view, **what})
        return len(self.accessors) - 1


def glb_bytes(mesh: Mesh, name: str, extras: dict[str, str] | None = None) -> bytes:
    """A .glb file of a mesh with its texture, or else with its colours.

    `extras` lands in asset.extras.
    """
    vertices, faces, normals = mesh.vertices @ TO_GLTF.T, mesh.faces, mesh.normals @ TO_GLTF.T
    if mesh.texture:
        corners, faces = mesh.texture.corners, mesh.texture.faces
        vertices, normals = vertices[corners], normals[corners]
        surface = {"TEXCOORD_0": mesh.texture.uv}
    else:
        surface = {"COLOR_0": srgb_to_linear(mesh.colors.clip(0, 1))}
    vectors = {"POSITION": vertices, "NORMAL": normals, **surface}
    buffer = _Buffer()
    attributes = {
        key: buffer.add_array(values.astype("<f4"), _ARRAY_BUFFER)
        for key, values in vectors.items()
    }
    low, high = vertices.min(axis=0).tolist(), vertices.max(axis=0).tolist()
    buffer.accessors[attributes["POSITION"]] |= {"min": low, "max": high}
    # The largest 16-bit index is reserved (primitive restart).
    index = "<u2" if len(vertices) <= 0xFFFF else "<u4"
    indices = buffer.add_array(faces.ravel().astype(index), _ELEMENT_ARRAY_BUFFER)
    shading: dict[str, Any] = {"metallicFactor": 0.0, "roughnessFactor": 0.9}
    pictures: dict[str, Any] = {}
    if mesh.texture:
        shading["baseColorTexture"] = {"index": 0}
        view = buffer.add(jpeg_bytes(mesh.texture.image))
        pictures = {
            "images": [{"bufferView": view, "mimeType": "image/jpeg"}],
            # Linear, and between halvings of the picture linear too; charts end at its border.
            "samplers": [{"magFilter": 9729, "minFilter": 9987, "wrapS": 33071, "wrapT": 33071}],
            "textures": [{"source": 0, "sampler": 0}],
        }
    primitive = {"attributes": attributes, "indices": indices, "material": 0}
    document = _document(name, extras, primitive, shading) | pictures
    return _container(document, buffer)


def _document(
    name: str, extras: dict[str, str] | None, primitive: dict[str, Any], shading: dict[str, Any]
) -> dict[str, Any]:
    """The JSON of a scene with one mesh of one unlit material."""
    asset = {"version": "2.0", "generator": GENERATOR} | ({"extras": extras} if extras else {})
    unlit: dict[str, Any] = {"extensions": {"KHR_materials_unlit": {}}}
    material = {"name": "field colours", "pbrMetallicRoughness": shading, **unlit}
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
    chunks = struct.pack("<I4s", len(text), b"JSON") + text
    chunks += struct.pack("<I4s", len(buffer.data), b"BIN\0") + buffer.data
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def read_mesh(path: str | Path) -> Mesh:
    """The mesh of a .glb file that this package wrote; ValueError for any other file.

    Other readers turn its colours into bytes or its corners into separate vertices; here the mesh
    comes back with the arrays that it was written from, but for the JPEG of its texture.
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
        finite = all(np.isfinite(array).all() for array in arrays.values())
        if not finite or faces.max() >= len(arrays["POSITION"]):
            raise ValueError("its numbers are none of a mesh")
        positions, normals = (arrays[key] @ TO_GLTF for key in ("POSITION", "NORMAL"))
        if image is None:
            colors = linear_to_srgb(arrays["COLOR_0"].clip(0, 1)).astype(np.float32)
            return Mesh(positions, faces, normals, colors)
        uv = arrays["TEXCOORD_0"]
    except (KeyError, IndexError, TypeError, struct.error, ValueError, OSError) as error:
        raise ValueError(f"{path} is not a mesh file of this program: {error}") from error
    _, first, corners = np.unique(positions, axis=0, return_index=True, return_inverse=True)
    corners = corners.reshape(-1)
    size = len(image)
    column, row = (uv[first] * size).astype(np.int64).clip(0, size - 1).T
    colors = (image[row, column] / 255).astype(np.float32)
    texture = Texture(corners, faces, uv, image)
    return Mesh(positions[first], corners[faces], normals[first], colors, texture)


def srgb_to_linear(srgb: NDArray[np.floating]) -> NDArray[np.floating]:
    """The sRGB transfer function (IEC 61966-2-1), [0, 1] to [0, 1]."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(linear: NDArray[np.floating]) -> NDArray[np.floating]:
    """The inverse of `srgb_to_linear`."""
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
