from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from numpy.typing import NDArray
from scipy import ndimage
from synthetic_fields import (
    FICUS,
    HALF,
    POT,
    TOTEM,
    Distance,
    box,
    centers,
    floaters,
    make_field,
    noise,
    silhouette_ious,
    soft_density,
    sphere,
    torus,
)

from sjc_engine.fields.voxel import VoxelField
from sjc_engine.mesh import iso_level
from sjc_engine.mesh.extract import _occupancy, extract_mesh, mesh_statistics
from sjc_engine.mesh.gltf import Mesh
from sjc_engine.mesh.iso_level import calibrate_level
from sjc_engine.mesh.isosurface import (
    EmptyField,
    MeshError,
    NonFinite,
    OpaqueField,
    isosurface,
    simplify,
)
from sjc_engine.mesh.texture import surface_colors
from sjc_engine.recipes import MeshRecipe

N = 48


def solid_field(shape: Distance, scale: float = 1.0, haze: float = 0.0) -> NDArray[np.float64]:
    return scale * soft_density(shape(centers(N))) + haze


def extract(field: VoxelField, **settings: float) -> Mesh:
    """At half the usual resolution and without a texture, to save the tests' time."""
    recipe = MeshRecipe(mesh_resolution=64, texture_size=0, max_faces=50_000)
    return extract_mesh(field, replace(recipe, **settings))  # type: ignore[arg-type]


def distance_to(shape: Distance, mesh: Mesh) -> NDArray[np.float64]:
    return np.abs(shape(mesh.vertices.astype(np.float64)))


def check_sound(mesh: Mesh) -> dict[str, int | float | bool]:
    """Closed, outward, without needless vertices; every edge has exactly two faces."""
    statistics = mesh_statistics(mesh)
    assert statistics["watertight"]
    assert statistics["volume"] > 0
    edges = np.sort(mesh.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    assert (np.unique(edges, axis=0, return_counts=True)[1] == 2).all()
    assert len(np.unique(mesh.faces)) == len(mesh.vertices)
    assert np.linalg.norm(mesh.normals, axis=1) == pytest.approx(1, abs=1e-5)
    assert mesh.colors.min() >= 0
    assert mesh.colors.max() <= 1
    return statistics


def test_a_sphere_is_where_it_should_be_and_as_large() -> None:
    center = (0.1, -0.2, 0.25)
    ball = sphere(0.3, center)
    # The density at the surface itself; what is calibrated is what a viewer sees, slightly larger.
    mesh = extract(
        make_field(solid_field(ball)), iso_level=10.0, mesh_smoothing=0, mesh_resolution=128
    )
    statistics = check_sound(mesh)
    assert (mesh.vertices.min(0) + mesh.vertices.max(0)) / 2 == pytest.approx(center, abs=0.005)
    assert statistics["volume"] == pytest.approx(4 / 3 * math.pi * 0.3**3, rel=0.01)
    assert statistics["area"] == pytest.approx(4 * math.pi * 0.3**2, rel=0.02)
    assert (statistics["components"], statistics["genus"]) == (1, 0)
    outward = (mesh.vertices - center) / np.linalg.norm(mesh.vertices - center, axis=1)[:, None]
    assert (mesh.normals * outward).sum(1).min() > 0.95


def hollow_ficus(points: NDArray[np.float64], softness: float) -> NDArray[np.float64]:
    """Walls that are four voxels thick, around cavities in the crown and in the pot."""
    distance = FICUS(points)
    outer, inner = (soft_density(d, 100.0, softness) for d in (distance, distance + 0.09))
    return outer - 0.98 * inner


def rough_ring(points: NDArray[np.float64], softness: float) -> NDArray[np.float64]:
    ring = soft_density(torus(0.4, 0.15)(points), 100.0, softness)
    return ring * np.exp(0.5 * noise(len(points)))


def totem(points: NDArray[np.float64], softness: float) -> NDArray[np.float64]:
    return soft_density(TOTEM(points), 100.0, softness)


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
@pytest.mark.parametrize(
    ("density", "parts", "genus"), [(totem, 1, 2), (rough_ring, 1, 1), (hollow_ficus, 2, 0)]
)
def test_the_calibrated_surface_has_the_fields_outlines(
    density: Callable[..., NDArray[np.float64]], parts: int, genus: int, scale: float
) -> None:
    """However dense the field is, and in views that the level search did not see."""
    field = make_field(scale * density(centers(64), 0.008))
    mesh = extract(field)
    statistics = check_sound(mesh)
    ious = silhouette_ious(field, mesh, 96)
    assert np.mean(ious) >= (0.98 if scale == 1 else 0.95)
    if scale >= 1:  # else thin parts are so transparent that no surface can stand for them
        assert min(ious) >= 0.975
        assert (statistics["components"], statistics["genus"]) == (parts, genus)


def test_a_surface_is_where_light_ends_not_where_density_is_highest() -> None:
    """A ball whose one half is a hundred times as dense, from where next to no light arrives."""
    points = centers(N)
    distance = sphere(0.35)(points)
    denser = (points[..., 0] > 0) & (distance < -0.035)
    field = make_field(np.where(denser, 100, 1) * soft_density(distance, 100.0))
    mesh = extract(field, mesh_smoothing=1.0)
    radius, x = np.linalg.norm(mesh.vertices, axis=1), mesh.vertices[:, 0]
    bulge = radius[x > 0.1].mean() - radius[x < -0.1].mean()
    assert abs(bulge) < 0.1 * 2 * HALF / N  # a tenth of a voxel


def test_floaters_go_and_holes_stay() -> None:
    shape = TOTEM(centers(N))
    density = solid_field(TOTEM) * np.exp(0.5 * noise(N)) + 0.3 * np.abs(noise(N, 1))
    dirty = make_field(density + floaters(N, 25, shape))
    mesh = extract(dirty)
    statistics = check_sound(mesh)
    assert statistics["components"] == 1
    assert statistics["genus"] == 2  # the ring, halved by the bar
    assert distance_to(TOTEM, mesh).max() < 0.06
    bare = mesh_statistics(extract(dirty, iso_level=5.0, min_component=0.0))
    assert bare["components"] > 5  # they were there


def test_a_hollow_field_gives_a_solid_object() -> None:
    ball = sphere(0.35)(centers(N))
    hollow = soft_density(ball) - 0.98 * soft_density(ball + 0.15)
    statistics = check_sound(extract(make_field(hollow)))
    assert statistics["components"] == 1
    assert statistics["volume"] == pytest.approx(4 / 3 * math.pi * 0.35**3, rel=0.25)


def test_the_ficus_keeps_its_pot() -> None:
    field = make_field(solid_field(FICUS) + floaters(N, 15, FICUS(centers(N))))
    mesh = extract(field)
    assert check_sound(mesh)["components"] == 2
    pot = mesh.vertices[mesh.vertices[:, 1] < -0.3]
    assert len(pot) > 100
    assert np.abs(POT(pot.astype(np.float64))).mean() < 0.02


def test_an_object_that_touches_the_wall_is_closed_there() -> None:
    slab = box((0.4, 0.3, 0.3), (0.4, -0.5, 0.0))  # through two walls and an edge of the box
    mesh = extract(make_field(solid_field(slab)))
    assert check_sound(mesh)["components"] == 1
    assert mesh.vertices.max() == pytest.approx(HALF, abs=0.01)
    assert mesh.vertices.min() == pytest.approx(-HALF, abs=0.01)


def test_values_equal_to_the_level_do_no_harm() -> None:
    levels = np.round(2 * noise(24) + 1).astype(np.float32)  # a fifth of them are exactly 1
    vertices, faces = isosurface(levels, 1.0, HALF, 0.0)
    for closed in (faces, simplify(vertices, faces, len(faces))[1]):
        edges = np.sort(closed[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
        assert (np.unique(edges, axis=0, return_counts=True)[1] == 2).all()


def test_axes_are_x_y_z_and_voxels_have_centres() -> None:
    density = np.zeros((10, 10, 10), np.float32)
    density[2, 5, 8] = 2.0  # z, y, x
    vertices, _ = isosurface(density, 1.0, 1.0, 0.02)
    assert vertices.mean(0) == pytest.approx([0.7, 0.1, -0.5], abs=1e-6)
    assert vertices[:, 0].max() - vertices[:, 0].min() == pytest.approx(0.2)  # half way, twice


def test_the_level_is_the_recipes_when_it_names_one() -> None:
    ball = sphere(0.0)(centers(N))
    field = make_field((10 * (0.6 - ball)).clip(0))  # density 10 (0.6 - r)
    radius = np.linalg.norm(extract(field, iso_level=3.0, mesh_smoothing=0.0).vertices, axis=1)
    assert radius == pytest.approx(0.3, abs=0.01)


def test_smoothing_is_in_voxels_of_the_field() -> None:
    field = make_field(solid_field(sphere(0.35)))
    fine = MeshRecipe(mesh_resolution=2 * N, mesh_smoothing=0.0)
    plain = _occupancy(field, fine)
    smooth = _occupancy(field, replace(fine, mesh_smoothing=0.7))
    assert smooth == pytest.approx(ndimage.gaussian_filter(plain, 2 * 0.7))


def test_of_equal_levels_the_highest_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A surface further out would only be made of what is hardly there."""
    monkeypatch.setattr(iso_level, "iou", lambda a, b: 0.5)
    density = solid_field(sphere(0.35))
    occupancy = (density / (density + 5)).astype(np.float32)
    level = calibrate_level(make_field(density), occupancy, 0.02)
    found = density.max() / 5
    assert 0.9 * found < level / (1 - level) <= max(found, max(iso_level.COARSE))


def test_a_smooth_surface_from_rough_density() -> None:
    rough = np.random.default_rng(0).normal(0, 0.7, (N, N, N))  # from voxel to voxel
    field = make_field(solid_field(sphere(0.35)) * np.exp(rough))

    def bumps(smoothing: float) -> float:
        mesh = extract(field, iso_level=5.0, mesh_smoothing=smoothing)
        outward = mesh.vertices / np.linalg.norm(mesh.vertices, axis=1)[:, None]
        return float(np.degrees(np.arccos((mesh.normals * outward).sum(1).clip(-1, 1))).mean())

    assert bumps(0.5) < 0.75 * bumps(0.0)


@pytest.mark.parametrize("budget", [500, 2000, 20_000])
def test_the_face_budget_is_kept_on_a_rough_surface(budget: int) -> None:
    rough = make_field(solid_field(TOTEM) * np.exp(0.6 * noise(N)))
    mesh = extract(rough, iso_level=5.0, max_faces=budget, mesh_smoothing=0.0, mesh_resolution=128)
    check_sound(mesh)
    assert 0.8 * budget < len(mesh.faces) <= budget


def test_surfaces_that_are_not_closed_are_an_error() -> None:
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    with pytest.raises(MeshError, match="not manifold"):
        simplify(corners, np.array([[0, 2, 1], [0, 1, 3]]), 100)


def test_colours_are_those_seen_from_outside_not_the_noise_around_them() -> None:
    points = centers(N)
    ball = sphere(0.35)(points)
    true = 0.9 * np.sin(5 * points)
    garbage = np.random.default_rng(0).uniform(-0.99, 0.99, points.shape)
    shell = ((ball < 0.06) & (ball > -0.09))[..., None]
    field = make_field(soft_density(ball, density=80.0), np.where(shell, true, garbage))
    mesh = extract(field, iso_level=0.5)  # a low level: well outside the shell

    def error(colors: NDArray[np.floating]) -> float:
        on_surface = mesh.vertices / np.linalg.norm(mesh.vertices, axis=1)[:, None] * 0.35
        expected = (0.9 * np.sin(5 * on_surface) + 1) / 2
        return float(np.sqrt(((colors - expected) ** 2).mean()))

    sampled = (field.rgb(torch.tensor(mesh.vertices)).numpy() + 1) / 2
    assert error(mesh.colors) < 0.04
    assert error(mesh.colors) < 0.6 * error(sampled)


def test_the_outer_layer_hides_the_inner_one_as_far_as_it_is_opaque() -> None:
    """A ball of radius 0.35 whose skin is two voxels thick and has another colour."""
    points = centers(N)
    ball = sphere(0.35)(points)
    skin, core = [0.6, -0.6, 0.2], [-0.6, 0.6, 0.2]
    colors = np.where((ball > -2 * 2 * HALF / N)[..., None], skin, core)

    def shown(density: float) -> float:
        """The share of the skin's colour in what the surface shows."""
        field = make_field(soft_density(ball, density, softness=0.003), colors)
        normals = np.asarray(trimesh.creation.icosphere(subdivisions=3).vertices, np.float32)
        seen = surface_colors(field, 0.35 * normals, normals)
        assert seen[:, 2] == pytest.approx(0.6, abs=1e-3)  # no colour is lost where little is
        return float((seen[:, 0].mean() - 0.2) / 0.6)

    assert shown(200.0) > 0.97
    assert 0.25 < shown(1.0) < 0.5


def test_nothing_to_see_is_an_empty_field() -> None:
    with pytest.raises(EmptyField, match="nowhere half opaque"):
        extract(make_field(np.full((16, 16, 16), 0.05)))
    with pytest.raises(EmptyField, match="no density exceeds iso_level = 1000"):
        extract(make_field(solid_field(sphere(0.3))), iso_level=1000.0)


@pytest.mark.parametrize("haze", [6.0, 200.0])
def test_a_full_box_is_an_opaque_field(haze: float) -> None:
    with pytest.raises(OpaqueField, match="walls"):
        extract(make_field(solid_field(sphere(0.3), haze=haze)))


def test_an_object_is_found_in_thin_haze() -> None:
    ball = sphere(0.3)
    mesh = extract(make_field(solid_field(ball, haze=1.5)))
    assert check_sound(mesh)["components"] == 1
    assert distance_to(ball, mesh).max() < 0.05


def test_values_that_are_not_finite_are_refused() -> None:
    field = make_field(solid_field(sphere(0.3)))
    field.color[0, 0, 3, 3, 3] = math.nan
    with pytest.raises(NonFinite):
        extract(field)


def test_a_latent_field_is_refused() -> None:
    field = make_field(solid_field(sphere(0.3)))
    field.space = "latent"
    with pytest.raises(ValueError, match="decode"):
        extract(field)


def test_a_floater_does_not_move_the_level() -> None:
    clean = solid_field(TOTEM)
    dusty = clean + floaters(N, 25, TOTEM(centers(N)), seed=3)
    levels = [
        calibrate_level(make_field(density), (density / (density + 5)).astype(np.float32), 0.02)
        for density in (clean, dusty)
    ]
    assert levels[0] == levels[1]


def test_statistics_of_known_solids() -> None:
    ring = trimesh.creation.torus(0.4, 0.1)
    cube = trimesh.creation.box(extents=[0.2, 0.4, 0.6])
    cube.apply_translation([2.0, 0.0, 0.0])
    both = trimesh.util.concatenate([ring, cube])
    mesh = Mesh(
        np.asarray(both.vertices, np.float32),
        np.concatenate([both.faces, [[0, 0, 1]]]),
        np.zeros(both.vertices.shape, np.float32),
        np.zeros(both.vertices.shape, np.float32),
    )
    assert mesh_statistics(mesh)["degenerate_faces"] == 1
    assert not mesh_statistics(mesh)["watertight"]
    mesh = Mesh(mesh.vertices, mesh.faces[:-1], mesh.normals, mesh.colors)
    statistics = mesh_statistics(mesh)
    assert statistics["vertices"] == len(both.vertices)
    assert statistics["faces"] == len(both.faces)
    assert (statistics["components"], statistics["genus"]) == (2, 1)
    assert statistics["watertight"]
    assert statistics["degenerate_faces"] == 0
    assert statistics["volume"] == pytest.approx(ring.volume + 0.048)
    assert statistics["area"] == pytest.approx(ring.area + 2 * (0.08 + 0.12 + 0.24))
    # As exported: the front (-x) becomes +z, and z becomes x.
    assert statistics["bbox_min_z"] == pytest.approx(-2.1)
    assert statistics["bbox_max_z"] == pytest.approx(0.5)
    assert statistics["bbox_max_x"] == pytest.approx(0.3)
    assert statistics["bbox_max_y"] == pytest.approx(0.5)


@pytest.fixture(scope="module")
def arrow() -> Mesh:
    """A ring with a knob in front (-X) that is redder than the rest."""
    shape = torus(0.3, 0.12)
    points = centers(N)
    knob = sphere(0.15, (-0.45, 0, 0))
    colors = np.where((knob(points) < 0.05)[..., None], [0.8, -0.8, -0.8], [-0.8, -0.8, 0.8])
    density = soft_density(np.minimum(shape(points), knob(points)))
    return extract(make_field(density, colors), iso_level=5.0, max_faces=4000)


@pytest.mark.parametrize("suffix", [".ply", ".obj", ".stl"])
def test_files_show_the_front_at_plus_z(arrow: Mesh, tmp_path: Path, suffix: str) -> None:
    arrow.export(tmp_path / f"arrow{suffix}")
    loaded = trimesh.load(tmp_path / f"arrow{suffix}", force="mesh", process=False)
    assert len(loaded.faces) == len(arrow.faces)
    assert loaded.vertices[:, 2].max() == pytest.approx(0.6, abs=0.02)
    assert loaded.vertices[:, 2].min() == pytest.approx(-0.42, abs=0.02)
    assert loaded.volume == pytest.approx(mesh_statistics(arrow)["volume"], rel=1e-3)
    if suffix != ".stl":
        tip = loaded.visual.vertex_colors[loaded.vertices[:, 2].argmax(), :3]
        assert tip[0] > 2 * tip[2]


def test_unknown_suffixes_are_refused(arrow: Mesh, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"use .glb, .ply, .obj or .stl"):
        arrow.export(tmp_path / "arrow.fbx")
    assert not list(tmp_path.iterdir())
