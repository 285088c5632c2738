"""From a grid of values to a closed triangle surface: plain functions over numpy arrays.

Grids are (n, n, n) in [z, y, x] order with values at voxel centres; vertices are (V, 3) in world
units and x, y, z order; faces are (F, 3), counter-clockwise seen from outside.
"""

from __future__ import annotations

import fast_simplification
import manifold3d
import numpy as np
from numpy.typing import NDArray
from skimage import measure
from trimesh.graph import connected_component_labels

Vertices = NDArray[np.float32]
Faces = NDArray[np.int64]


class MeshError(ValueError):
    """The field has no usable surface."""


class EmptyField(MeshError):
    """Nothing is dense enough to be seen, or to enclose a volume."""


class OpaqueField(MeshError):
    """The box is full up to its walls: no level separates an object from its surroundings."""


class NonFinite(MeshError):
    """The field holds NaN or infinity."""


def isosurface(
    values: NDArray[np.float32], level: float, half_length: float, component_fraction: float
) -> tuple[Vertices, Faces]:
    """The closed surface values = level, without the parts that enclose little (`keep_large`).

    What touches the box's wall is closed there. Raises EmptyField.
    """
    threshold = np.float32(level)
    padded = np.pad(values.astype(np.float32), 1)  # the field is zero outside its box
    # A corner exactly on the level makes edges with four faces.
    padded[padded == threshold] = np.nextafter(threshold, np.float32(np.inf))
    if not padded.min() < threshold < padded.max():
        raise EmptyField(f"nothing exceeds the level {level:.4g} (maximum {values.max():.4g})")
    corners, faces, _, _ = measure.marching_cubes(padded, threshold, gradient_direction="ascent")
    # Index space, padding removed, voxel centres at (i + 0.5) / n; [z, y, x] -> x, y, z. The swap
    # mirrors, and so does "ascent" in skimage's own axes: reverse the winding to point outward.
    vertices = ((corners[:, ::-1] - 0.5) * (2 / len(values)) - 1) * half_length
    outward = faces[:, ::-1].astype(np.int64)
    return keep_large(np.ascontiguousarray(vertices, np.float32), outward, component_fraction)


def keep_large(vertices: Vertices, faces: Faces, fraction: float) -> tuple[Vertices, Faces]:
    """Keep the connected parts whose signed volume is at least `fraction` of the largest's.

    Floaters go, an object's separate parts stay, and inner cavities go too: seen from outside
    they do not exist, and their volume is negative. Raises EmptyField when no part has volume.
    """
    part = face_components(len(vertices), faces)
    a, b, c = vertices.astype(np.float64)[faces.T]
    volumes = np.bincount(part, np.einsum("ij,ij->i", a, np.cross(b, c)) / 6)
    if volumes.max(initial=0.0) <= 0:
        raise EmptyField("no part of the surface encloses a volume")
    kept = faces[(volumes >= fraction * volumes.max())[part]]
    used, indices = np.unique(kept, return_inverse=True)
    return vertices[used], indices.reshape(-1, 3).astype(np.int64)


def face_components(vertex_count: int, faces: Faces) -> NDArray[np.int64]:
    """The connected component (F,) of each face; faces that share a vertex are connected."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]])
    label = connected_component_labels(edges, vertex_count)
    _, dense = np.unique(label[faces[:, 0]], return_inverse=True)  # unused vertices count as parts
    return dense.astype(np.int64)


def simplify(vertices: Vertices, faces: Faces, max_faces: int) -> tuple[Vertices, Faces]:
    """At most `max_faces` faces (quadric edge collapse), and two faces at every edge.

    Where the collapse breaks the surface beyond repair it stays as fine as it was.

    Raises MeshError when the surface cannot be made manifold.
    """
    if len(faces) > max_faces:
        fewer = fast_simplification.simplify(
            vertices, faces.astype(np.int32), target_count=max_faces
        )
        repaired = _manifold(*fewer)
        if repaired is not None:
            return repaired
    repaired = _manifold(vertices, faces)  # rarely, a collapse breaks what was whole
    if repaired is None:
        raise MeshError("the surface is not manifold")
    return repaired


def _manifold(vertices: Vertices, faces: Faces) -> tuple[Vertices, Faces] | None:
    """A round trip through manifold3d, or None where it finds no solid."""
    mesh = manifold3d.Mesh(
        np.ascontiguousarray(vertices, np.float32), np.ascontiguousarray(faces, np.uint32)
    )
    solid = manifold3d.Manifold(mesh)
    if solid.status() != manifold3d.Error.NoError or solid.is_empty():
        return None
    result = solid.to_mesh()
    corners = np.array(result.vert_properties[:, :3], np.float32)
    return corners, np.array(result.tri_verts, np.int64)
