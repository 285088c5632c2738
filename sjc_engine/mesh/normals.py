"""Normals at the vertices of a surface."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sjc_engine.mesh.isosurface import Faces, Vertices


def vertex_normals(vertices: Vertices, faces: Faces) -> NDArray[np.float32]:
    """Unit normals (V, 3), outward: the mean of the faces around a vertex, weighted by area."""
    a, b, c = vertices.astype(np.float64)[faces.T]
    doubled_area = np.cross(b - a, c - a)
    corners, areas = faces.ravel(), np.repeat(doubled_area, 3, axis=0)
    normals = np.stack([np.bincount(corners, axis, len(vertices)) for axis in areas.T], axis=1)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    # A needle's faces can cancel; any unit vector is better than none.
    normals = np.where(length > 0, normals / np.where(length > 0, length, 1), [0.0, 1.0, 0.0])
    return normals.astype(np.float32)
