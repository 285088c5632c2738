"""The mesh of a field: its extraction, and its statistics for the tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import trimesh
from numpy.typing import NDArray
from scipy import ndimage

from sjc_engine.asset_files import MESH
from sjc_engine.fields.field import Field
from sjc_engine.fields.voxel import VoxelField, grid_centers, voxelize
from sjc_engine.mesh.gltf import TO_GLTF, Mesh
from sjc_engine.mesh.iso_level import calibrate_level, half_density
from sjc_engine.mesh.isosurface import (
    EmptyField,
    NonFinite,
    face_components,
    isosurface,
    simplify,
)
from sjc_engine.mesh.normals import vertex_normals
from sjc_engine.mesh.texture import bake, surface_colors
from sjc_engine.mesh.unwrap import can_unwrap
from sjc_engine.progress import OnWork, unheard
from sjc_engine.recipes import MeshRecipe


def write_mesh(mesh: Mesh, folder: Path, recipe: MeshRecipe, extras: dict[str, str]) -> None:
    """mesh.glb with its `extras`, and what else the recipe wants, into the folder."""
    mesh.export(folder / MESH, extras=extras)
    for suffix in recipe.also_write.split("+"):
        if suffix != "none":
            mesh.export(folder / f"mesh.{suffix}")


@torch.no_grad()
def extract_mesh(field: Field, recipe: MeshRecipe | None = None, on_work: OnWork = unheard) -> Mesh:
    """The field's coloured surface: closed, manifold, outward, at most `recipe.max_faces` faces.

    Without xatlas it has no texture. Raises NonFinite, EmptyField or OpaqueField where there is
    none, UnwrapTimeout where it gets no texture in time, and ValueError for a field that is not
    RGB. `on_work` hears what is next.
    """
    recipe = recipe or MeshRecipe()
    if field.space != "rgb":
        raise ValueError("only an RGB field has a mesh: decode the latent field first")
    if not all(bool(torch.isfinite(parameter).all()) for parameter in field.parameters()):
        raise NonFinite("the field holds values that are not finite: the optimisation diverged")
    on_work("cutting out the surface", 1, 3)
    field = voxelize(field)
    occupancy = _occupancy(field, recipe)
    level = _level(field, occupancy, recipe)
    surface = isosurface(occupancy, level, field.half_length, recipe.min_component)
    on_work("simplifying", 2, 3)
    vertices, faces = simplify(*surface, recipe.max_faces or len(surface[1]))
    normals = vertex_normals(vertices, faces)
    mesh = Mesh(vertices, faces, normals, surface_colors(field, vertices, normals))
    if recipe.texture_size and can_unwrap():
        on_work("unwrapping", 3, 3)
        texture = bake(field, mesh, recipe.texture_size, recipe.unwrap_seconds)
        mesh = replace(mesh, texture=texture)
    return mesh


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
