"""From field to textured GLB: time, memory, size, and how well each part agrees with the truth.

    python benchmarks/mesh.py [--resolution 128] [--rounds 3] [--json FILE]

The field is the tests' own totem: a ring, a ball, a stalk and a bar with stripes, whose colours are
noise wherever a viewer of the field sees less than 30% of what it sees best, as SJC leaves them.
Times are CPU seconds of this process and its children with one thread, medians over the rounds.
Beside each figure stands its target.

field -> GLB    level search, surface, decimation to 20,000 faces, charts, 1024^2 texture, file
turntable       60 frames of 256^2, MP4 and WebP
field/mesh IoU  silhouettes in eight views that the level search did not see, by density
colour          PSNR of the mesh's pictures against the field's, on the pixels that both cover:
                texture, and colours that the field holds at the vertices
rasteriser      silhouette IoU with an analytic ball; pixels that embree sees differently
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import numpy as np
import torch
import trimesh
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from peak import Peak
from report import Report
from synthetic_fields import (
    HALF,
    TOTEM,
    UNSEEN,
    centers,
    colored_by_points,
    interior_psnr,
    make_field,
    shell_colors,
    silhouette_ious,
    soft_density,
)

from sjc_engine.evaluation.turntable import turntable_frames, write_thumbnail, write_video
from sjc_engine.fields.voxel import VoxelField
from sjc_engine.mesh.extract import extract_mesh
from sjc_engine.mesh.gltf import Mesh
from sjc_engine.mesh.iso_level import iou
from sjc_engine.recipes import MeshRecipe
from sjc_engine.rendering.camera import rays
from sjc_engine.rendering.rasterize import coverage, rasterize

SIZE, RADIUS = 256, 0.45
PACKAGES = ("torch", "scikit-image", "xatlas", "manifold3d", "fast-simplification", "embreex")


def totem(resolution: int, scale: float = 1.0) -> VoxelField:
    """The test object at this density; its surface is as soft as half a voxel."""
    points, softness = centers(resolution), HALF / resolution
    distance = TOTEM(points)
    stripes = 0.8 * np.sin(points * [11, 13, 9])
    colors = shell_colors(stripes, distance, scale * 100, softness)
    return make_field(soft_density(distance, scale * 100, softness), colors)


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def timed(rounds: int, work: Callable[[], None]) -> float:
    """The median CPU time of some rounds."""
    times = []
    for _ in range(rounds):
        began = cpu_seconds()
        work()
        times.append(cpu_seconds() - began)
    return median(times)


def making(field: VoxelField, rounds: int, report: Report) -> Mesh:
    meshes: list[Mesh] = []
    added: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "mesh.glb")

        def export() -> None:
            with Peak() as peak:
                meshes.append(extract_mesh(field))
                meshes[-1].export(path)
            added.append(peak.added)

        def turn() -> None:
            frames = turntable_frames(meshes[-1], 60, SIZE)
            write_video(frames, Path(folder, "turntable.mp4"))
            write_thumbnail(frames, Path(folder, "thumbnail.webp"))

        report.figure("field -> GLB, CPU s", timed(rounds, export), target="< 6")
        report.figure("field -> GLB, added MB", max(added), target="< 300")
        report.figure("GLB, KB", path.stat().st_size / 1000, target="< 1200")
        report.figure("faces", len(meshes[-1].faces), target="<= 20000")
        report.figure("turntable, CPU s", timed(rounds, turn), target="< 6")
        report.figure("turntable, KB", Path(folder, "turntable.mp4").stat().st_size / 1000)
        report.figure("thumbnail, KB", Path(folder, "thumbnail.webp").stat().st_size / 1000)
    return meshes[-1]


def agreement(field: VoxelField, mesh: Mesh, report: Report) -> None:
    for scale in (1.0, 0.1, 5.0):
        denser = field if scale == 1 else totem(field.resolution, scale)
        ious = silhouette_ious(denser, mesh if scale == 1 else extract_mesh(denser), SIZE)
        name = f"field/mesh IoU, density x {scale:g}"
        report.figure(f"{name}, mean", mean(ious), target=">= 0.98" if scale == 1 else ">= 0.95")
        report.figure(f"{name}, least", min(ious), target=">= 0.975" if scale == 1 else ">= 0.95")
    baked = interior_psnr(field, mesh, SIZE)
    sampled = interior_psnr(field, colored_by_points(field, mesh), SIZE)
    report.figure("colour, texture, dB", baked)
    report.figure("colour, sampled at the surface, dB", sampled)
    report.figure("colour, gain, dB", baked - sampled, target=">= 5")


def rasteriser(field: VoxelField, rounds: int, report: Report) -> None:
    fine = extract_mesh(field, MeshRecipe(max_faces=50_000, texture_size=0))
    times = []
    for camera in UNSEEN * rounds:
        began = cpu_seconds()
        rasterize(fine, camera, SIZE, SIZE, supersample=1)
        times.append(cpu_seconds() - began)
    name = f"rasteriser, {len(fine.faces)} faces at 256^2, CPU ms"
    report.figure(name, 1000 * median(times), target="< 40")

    solid = trimesh.creation.icosphere(subdivisions=6, radius=RADIUS)
    ball = torch.tensor(solid.vertices, dtype=torch.float32), torch.tensor(solid.faces)
    overlaps, different = [], 0
    scene = EmbreeScene()
    TriangleMesh(scene, fine.vertices, fine.faces.astype(np.int32))
    triangles = torch.tensor(fine.vertices), torch.tensor(fine.faces)
    for camera in UNSEEN:
        origins, directions = rays(camera, SIZE, SIZE, dtype=torch.float64)
        along = (origins * directions).sum(1)
        hit = (along**2 - origins.square().sum(1) + RADIUS**2 > 0).view(SIZE, SIZE)
        overlaps.append(iou(coverage(*ball, camera, SIZE, SIZE), hit))
        starts = np.ascontiguousarray(origins.expand_as(directions).float().numpy())
        shot = torch.from_numpy(scene.run(starts, directions.float().numpy()) >= 0)
        mask = coverage(*triangles, camera, SIZE, SIZE)
        different += int((shot.view(SIZE, SIZE) != mask).sum())
    report.figure("rasteriser, IoU with an analytic ball, least", min(overlaps), target=">= 0.996")
    share = 100 * different / (len(UNSEEN) * SIZE**2)
    report.figure("rasteriser, % of pixels unlike embree's", share, target="<= 0.1")


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    report = Report("mesh", {"voxels": settings.resolution, "rounds": settings.rounds}, PACKAGES)
    field = totem(settings.resolution)
    extract_mesh(totem(16))  # what is loaded once is not an asset's
    mesh = making(field, settings.rounds, report)
    agreement(field, mesh, report)
    rasteriser(field, settings.rounds, report)
    report.write_json(settings.json)


if __name__ == "__main__":
    main()
