"""What the evaluation pictures show, on a ball."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic_fields import centers, make_field, soft_density, sphere

from sjc_engine.evaluation.pictures import take_pictures
from sjc_engine.mesh.extract import extract_mesh
from sjc_engine.recipes import MeshRecipe


def test_normals_and_depth_are_as_the_camera_sees_them() -> None:
    field = make_field(soft_density(sphere(0.4)(centers(24)), density=60.0))
    recipe = MeshRecipe(mesh_resolution=32, texture_size=0, iso_level=20.0)
    pictures = take_pictures(field, extract_mesh(field, recipe), 128)
    for view in (0, 3, 8):
        covered = pictures.mesh_opacity[view].numpy() == 1
        rows, columns = np.nonzero(covered)
        normals = pictures.normals[view].permute(1, 2, 0).numpy()
        assert np.linalg.norm(normals[covered], axis=1) == pytest.approx(1, abs=0.02)
        assert normals[64, 64] == pytest.approx([0, 0, 1], abs=0.1)  # towards the camera
        assert normals[64, columns.max()][0] > 0.8  # to the right
        assert normals[rows.min(), 64][1] > 0.8  # up
        depth = pictures.depth[view].numpy()
        assert (depth[0] == depth[1]).all()
        assert depth[0, 64, 64] > depth[0, 64, columns.max()] + 0.15  # its middle is nearer
        assert (depth[:, ~(pictures.mesh_opacity[view].numpy() > 0)] == 1).all()  # white
