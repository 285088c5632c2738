from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from torch import Tensor

from sjc_engine.mesh.gltf import Mesh, Texture
from sjc_engine.mesh.iso_level import iou
from sjc_engine.rendering.camera import Camera, evaluation_cameras, orbit, rays
from sjc_engine.rendering.rasterize import coverage, rasterize, rasterize_views
from sjc_engine.rendering.volume import intersect_box

RADIUS = 0.45


def as_mesh(solid: trimesh.Trimesh, colors: np.ndarray | None = None) -> Mesh:
    vertices = np.asarray(solid.vertices, np.float32)
    if colors is None:
        colors = np.full(vertices.shape, 0.5, np.float32)
    normals = np.asarray(solid.vertex_normals, np.float32)
    return Mesh(vertices, np.asarray(solid.faces, np.int64), normals, colors)


def ball(center: tuple[float, float, float] = (0, 0, 0), radius: float = RADIUS) -> Mesh:
    solid = trimesh.creation.icosphere(subdivisions=6, radius=radius)
    solid.apply_translation(center)
    return as_mesh(solid)


def ray_sphere(camera: Camera, size: int, radius: float) -> tuple[Tensor, Tensor]:
    """Whether each pixel's ray hits the sphere at the origin, and where (size^2, 3)."""
    origins, directions = rays(camera, size, size, dtype=torch.float64)
    along = (origins * directions).sum(1)
    root = along**2 - (origins.square().sum(1) - radius**2)
    distance = -along - root.clamp(min=0).sqrt()
    return (root > 0).view(size, size), origins + distance[:, None] * directions


def silhouette(mesh: Mesh, camera: Camera, size: int) -> Tensor:
    return coverage(torch.tensor(mesh.vertices), torch.tensor(mesh.faces), camera, size, size)


@pytest.mark.parametrize("camera", evaluation_cameras()[::4], ids=lambda c: f"{c.azimuth_deg:.0f}")
def test_a_spheres_silhouette_depth_and_normals_are_the_analytic_ones(camera: Camera) -> None:
    size = 128
    hit, points = ray_sphere(camera, size, RADIUS)
    mesh = ball()
    assert iou(silhouette(mesh, camera, size), hit) >= 0.996

    picture = rasterize(mesh, camera, size, size, supersample=1)
    inside = hit & (picture.opacity == 1)
    inner = inside.view(-1) & ((points - camera.camera_to_world[:3, 3]).norm(dim=1) < 1.2)
    forward = -camera.camera_to_world[:3, 2]
    depth = (points - camera.camera_to_world[:3, 3]) @ forward
    assert (picture.depth.view(-1) - depth)[inner].abs().max() < 1e-3
    normals = picture.normals.view(3, -1).T
    assert (normals - points / RADIUS)[inner].abs().max() < 0.02


def test_embree_sees_the_same_pixels() -> None:
    """A ray tracer of another kind, over a shape with holes and thin parts: 0.1% at most differ."""
    solid = trimesh.util.concatenate(
        [trimesh.creation.torus(0.4, 0.12), trimesh.creation.capsule(0.9, 0.03)]
    )
    mesh, size = as_mesh(solid), 128
    scene = EmbreeScene()
    TriangleMesh(scene, mesh.vertices, mesh.faces.astype(np.int32))
    different = covered = 0
    for camera in evaluation_cameras():
        origins, directions = (part.numpy() for part in rays(camera, size, size))
        origins = np.ascontiguousarray(np.broadcast_to(origins, directions.shape))
        hit = torch.from_numpy(scene.run(origins, directions) >= 0).view(size, size)
        mask = silhouette(mesh, camera, size)
        different += int((mask != hit).sum())
        covered += int(mask.sum())
    assert covered > 0.05 * 9 * size**2
    assert different <= 0.001 * 9 * size**2


@pytest.mark.parametrize("azimuth", [20.0, 200.0])
def test_a_boxs_silhouette_is_the_analytic_one(azimuth: float) -> None:
    camera, size, extents = orbit(azimuth, 25.0), 192, np.array([0.5, 0.9, 0.3])
    mesh = as_mesh(trimesh.creation.box(extents=extents))
    origins, directions = rays(camera, size, size, dtype=torch.float64)
    aabb = torch.from_numpy(np.stack([-extents / 2, extents / 2]))
    _, length = intersect_box(origins, directions, aabb)
    assert iou(silhouette(mesh, camera, size), (length > 0).view(size, size)) >= 0.996


def test_pictures_that_are_not_square_share_the_rays_geometry() -> None:
    camera, height, width = orbit(30.0, 10.0), 96, 160
    origins, directions = rays(camera, height, width, dtype=torch.float64)
    closest = torch.linalg.cross(origins, directions).norm(dim=1)
    mesh = ball()
    mask = coverage(torch.tensor(mesh.vertices), torch.tensor(mesh.faces), camera, height, width)
    assert iou(mask, (closest < RADIUS).view(height, width)) >= 0.996


def test_colours_are_interpolated_in_perspective() -> None:
    """A plane that runs away from the camera, coloured by its position."""
    corners = np.array(
        [[-1.0, -0.3, -0.6], [1.0, 0.2, -0.6], [1.0, 0.2, 0.6], [-1.0, -0.3, 0.6]], np.float32
    )
    colors = (corners + 1) / 2
    up = np.tile(np.array([[0, 1, 0]], np.float32), (4, 1))
    mesh = Mesh(corners, np.array([[0, 1, 2], [0, 2, 3]]), up, colors.astype(np.float32))
    camera, size = orbit(0.0, 20.0), 64
    picture = rasterize(mesh, camera, size, size, supersample=1)

    origins, directions = rays(camera, size, size, dtype=torch.float64)
    normal = torch.tensor([-0.5, 2.0, 0.0], dtype=torch.float64)
    offset = normal @ torch.tensor([-1.0, -0.3, 0.0], dtype=torch.float64)
    distance = (offset - origins @ normal) / (directions @ normal)
    points = (origins + distance[:, None] * directions).T.view(3, size, size)
    covered = picture.opacity == 1
    assert covered.sum() > 200
    assert (picture.rgb - points)[:, covered].abs().max() < 2e-3


def test_the_nearer_surface_hides_the_farther_one() -> None:
    near, far = ball((-0.4, 0, 0), 0.2), ball((0.4, 0, 0), 0.2)
    red = np.tile(np.array([[1, 0, 0]], np.float32), (len(near.vertices), 1))
    both = Mesh(
        np.concatenate([far.vertices, near.vertices]),
        np.concatenate([far.faces, near.faces + len(far.vertices)]),
        np.concatenate([far.normals, near.normals]),
        np.concatenate([1 - red, red]),
    )
    for azimuth, expected in [(0.0, [1, -1, -1]), (180.0, [-1, 1, 1])]:
        picture = rasterize(both, orbit(azimuth, 0.0), 33, 33)
        assert picture.rgb[:, 16, 16].tolist() == pytest.approx(expected, abs=1e-5)


def test_the_objects_left_is_on_the_right_of_its_front_view() -> None:
    mask = silhouette(ball((0, 0.2, 0.3), 0.1), orbit(0.0, 0.0), 64)
    rows, columns = mask.nonzero().double().mean(0).tolist()
    assert columns > 40
    assert rows < 28


def test_supersampling_measures_the_covered_part_of_a_pixel() -> None:
    """One huge half-plane whose edge runs through the middle of the picture's pixels."""
    corners = np.array([[0, -9, 0], [0, 9, 0], [0, 0, 9]], np.float32)
    mesh = Mesh(
        corners,
        np.array([[0, 1, 2]]),
        np.tile(-np.eye(3, dtype=np.float32)[0], (3, 1)),
        np.ones((3, 3), np.float32),
    )
    picture = rasterize(mesh, orbit(0.0, 0.0), 9, 9, supersample=8)
    assert picture.opacity[4].tolist() == pytest.approx([0, 0, 0, 0, 0.5, 1, 1, 1, 1], abs=0.07)
    assert torch.allclose(picture.rgb, picture.opacity.expand(3, -1, -1))  # premultiplied white
    assert picture.depth[4, 4] == pytest.approx(1.5, abs=1e-5)  # of the covered part alone


def test_faces_at_or_behind_the_camera_and_edge_on_are_not_drawn() -> None:
    camera = orbit(0.0, 0.0)
    behind = ball((-2.2, 0, 0), 0.2)
    assert not silhouette(behind, camera, 32).any()
    edge_on = torch.tensor([[0.0, 0, 0], [0.3, 0, 0], [-0.3, 0, 0]])
    assert not coverage(edge_on, torch.tensor([[0, 1, 2]]), camera, 33, 33).any()
    nothing = rasterize(behind, camera, 16, 16)
    assert not nothing.opacity.any()
    assert torch.isfinite(nothing.depth).all()


def test_views_of_one_texture_are_what_each_alone_is() -> None:
    """They share the texture's halvings, of which a near view wants fewer than a far one."""
    solid = ball(radius=0.3)
    uv = (solid.vertices[:, 1:] / 0.6 + 0.5).astype(np.float32)
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    corners = np.arange(len(uv))
    mesh = replace(solid, texture=Texture(corners, solid.faces, uv, noise))
    cameras = [orbit(0.0, 0.0, distance) for distance in (2.0, 0.7, 4.0, 0.7)]
    views = list(rasterize_views(mesh, cameras, 32, 32))
    alone = [rasterize(mesh, camera, 32, 32) for camera in cameras]
    assert all(map(torch.equal, (a.rgb for a in views), (b.rgb for b in alone)))
    near, far = (view.rgb[:, view.opacity == 1].std() for view in (views[1], views[2]))
    assert near > 2 * far  # noise, averaged


def test_a_closed_mesh_has_no_pinholes() -> None:
    mask = silhouette(ball(), orbit(0.0, 0.0), 256)
    rows = mask.any(1).nonzero()[:, 0]
    for row in rows.tolist():
        columns = mask[row].nonzero()[:, 0]
        assert len(columns) == int(columns[-1] - columns[0]) + 1
    pixels = math.pi * (128 / math.tan(math.radians(25)) * RADIUS) ** 2 / (1.5**2 - RADIUS**2)
    assert int(mask.sum()) == pytest.approx(pixels, rel=0.003)
