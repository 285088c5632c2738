"""The mesh of a field: extraction, statistics, and files.

In memory a mesh keeps the field's axes (+Y up, front -X). Files have glTF's (+Y up, front +Z), and
so do the bounds of `mesh_statistics`: a table's row describes the file beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from sjc_engine.checkpoint import write_atomically
from sjc_engine.fields import Field, VoxelField, voxelize
from sjc_engine.fields.voxel import grid_centers
from sjc_engine.glb import glb_bytes
from sjc_engine.isosurface import (
    EmptyField,
    Faces,
    MeshError,
    NonFinite,
    OpaqueField,
    Vertices,
    face_components,
    isosurface,
    simplify,
    vertex_normals,
)
from sjc_engine.level import calibrate_level, half_density
from sjc_engine.recipes import MeshRecipe
from sjc_engine.surface_color import surface_colors
from sjc_engine.texture import Texture, bake
from sjc_engine.unwrap import UnwrapTimeout

__all__ = [
    "EmptyField",
    "Mesh",
    "MeshError",
    "NonFinite",
    "OpaqueField",
    "UnwrapTimeout",
    "extract_mesh",
    "mesh_statistics",
    "write_mesh",
]

# x' = z, y' = y, z' = -x: a quarter turn about +Y that takes the front from -X to +Z.
TO_GLTF = np.array([[0, 0, 1], [0, 1, 0], [-1, 0, 0]], dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Mesh:
    """A closed triangle mesh with vertex colours and, over the same faces, a texture."""

    vertices: Vertices  # (V, 3) float32, world units
    faces: Faces  # (F, 3) int64, counter-clockwise from outside
    normals: NDArray[np.float32]  # (V, 3) unit, outward
    colors: NDArray[np.float32]  # (V, 3) sRGB in [0, 1]
    texture: Texture | None = None

    def export(self, path: str | Path, *, extras: dict[str, str] | None = None) -> None:
        """Write .glb, .ply or .obj by the path's suffix, with +Z as the front.

        A .ply has vertex colours; an .obj has its .mtl and .png written beside it. `extras`
        (asset_id, prompt, licence, ...) goes into a .glb only. Raises ValueError for another
        suffix.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix not in (".glb", ".ply", ".obj"):
            raise ValueError(f"cannot write {path.name}: use .glb, .ply or .obj")
        if suffix == ".glb":
            files = {path.name: self._glb(path.stem, extras)}
        elif suffix == ".ply" or self.texture is None:
            files = {path.name: _bytes(self._solid().export(file_type=suffix[1:]))}
        else:
            files = self._textured_obj(path.stem)
        # The file that names the others comes last, so that it never names what is not there.
        for name in sorted(files, key=lambda name: name == path.name):
            write_atomically(path.with_name(name), files[name])

    def _glb(self, stem: str, extras: dict[str, str] | None) -> bytes:
        vertices, normals = self.vertices @ TO_GLTF.T, self.normals @ TO_GLTF.T
        name = (extras or {}).get("asset_id", stem)
        if self.texture is None:
            return glb_bytes(
                vertices, self.faces, normals, colors=self.colors, name=name, extras=extras
            )
        corners = self.texture.corners
        return glb_bytes(
            vertices[corners],
            self.texture.faces,
            normals[corners],
            uv=self.texture.uv,
            image=self.texture.image,
            name=name,
            extras=extras,
        )

    def _solid(self) -> trimesh.Trimesh:
        return trimesh.Trimesh(
            self.vertices @ TO_GLTF.T,
            self.faces,
            vertex_normals=self.normals @ TO_GLTF.T,
            vertex_colors=(self.colors * 255).round().astype(np.uint8),
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
        return {f"{stem}.obj": text.encode(), **{k: _bytes(v) for k, v in others.items()}}


def _bytes(data: Any) -> bytes:
    return data.encode() if isinstance(data, str) else bytes(data)


def write_mesh(mesh: Mesh, folder: Path, recipe: MeshRecipe, extras: dict[str, str]) -> None:
    """mesh.glb with its `extras`, and what else the recipe wants, into the folder."""
    mesh.export(folder / "mesh.glb", extras=extras)
    for suffix in recipe.also_write.split("+"):
        if suffix != "none":
            mesh.export(folder / f"mesh.{suffix}")


@torch.no_grad()
def extract_mesh(field: Field, recipe: MeshRecipe | None = None) -> Mesh:
    """The field's coloured surface: closed, manifold, outward, at most `recipe.max_faces` faces.

    Raises NonFinite, EmptyField or OpaqueField where there is none, UnwrapTimeout where it gets no
    texture in time, and ValueError for a field that is not RGB.
    """
    recipe = recipe or MeshRecipe()
    if field.space != "rgb":
        raise ValueError("only an RGB field has a mesh: decode the latent field first")
    if not all(bool(torch.isfinite(parameter).all()) for parameter in field.parameters()):
        raise NonFinite("the field holds values that are not finite: the optimisation diverged")
    field = voxelize(field)
    occupancy = _occupancy(field, recipe)
    level = _level(field, occupancy, recipe)
    surface = isosurface(occupancy, level, field.half_length, recipe.min_component)
    vertices, faces = simplify(*surface, recipe.max_faces or len(surface[1]))
    normals = vertex_normals(vertices, faces)
    texture = None
    if recipe.texture_size:
        texture = bake(field, vertices, faces, normals, recipe.texture_size, recipe.unwrap_seconds)
    return Mesh(vertices, faces, normals, surface_colors(field, vertices, normals), texture)


def mesh_statistics(mesh: Mesh) -> dict[str, int | float | bool]:
    """What the tables say of a mesh: counts, topology, and sizes in world units.

    genus is the sum over all parts; volume is signed (positive: outward); a degenerate face has
    (almost) no area; the bounding box is that of the exported file (front +Z).
    """
    solid = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    part = face_components(len(mesh.vertices), mesh.faces)
    components = int(part.max(initial=-1)) + 1
    low, high = (mesh.vertices @ TO_GLTF.T).min(axis=0), (mesh.vertices @ TO_GLTF.T).max(axis=0)
    tiny = 1e-12 * float(((high - low) ** 2).sum())
    box = {f"bbox_min_{axis}": float(value) for axis, value in zip("xyz", low, strict=True)}
    box |= {f"bbox_max_{axis}": float(value) for axis, value in zip("xyz", high, strict=True)}
    return {
        "vertices": len(mesh.vertices),
        "faces": len(mesh.faces),
        "components": components,
        "watertight": bool(solid.is_watertight and solid.is_winding_consistent),
        "genus": components - int(solid.euler_number) // 2,
        "area": float(solid.area),
        "volume": float(solid.volume),
        "degenerate_faces": int((solid.area_faces <= tiny).sum()),
        **box,
    }


def _occupancy(field: VoxelField, recipe: MeshRecipe) -> NDArray[np.float32]:
    """sigma / (sigma + sigma0) at the centres of a grid as fine as the recipe wants, [z, y, x].

    Smoothed by a Gaussian of `mesh_smoothing` voxels of the field's own grid: the surface of a
    field that was seen in small pictures is rough at the scale of one voxel.
    """
    resolution = max(recipe.mesh_resolution, field.resolution)
    points = grid_centers(resolution, field.half_length, field.background)
    slabs = [field.sigma(slab.reshape(-1, 3)) for slab in points.split(16)]
    density = torch.cat(slabs).view((resolution,) * 3)
    occupancy: NDArray[np.float32] = (density / (density + half_density(field))).cpu().numpy()
    if recipe.mesh_smoothing == 0:
        return occupancy
    return ndimage.gaussian_filter(occupancy, recipe.mesh_smoothing * resolution / field.resolution)


def _level(field: VoxelField, occupancy: NDArray[np.float32], recipe: MeshRecipe) -> float:
    """The occupancy at which to cut: at the recipe's density, else where the outlines agree."""
    if recipe.iso_level == 0:
        return calibrate_level(field, occupancy, recipe.min_component)
    level = recipe.iso_level / (recipe.iso_level + half_density(field))
    if occupancy.max() <= level:
        raise EmptyField(f"no density exceeds iso_level = {recipe.iso_level:g}")
    return level
