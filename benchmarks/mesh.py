"""From field to textured GLB: time, memory, size, and how well each part agrees with the truth.

    python benchmarks/mesh.py [--resolution 128] [--rounds 3]

Fields are made here: a torus, a ball, a stalk and a bar with stripes, whose colours are noise
outside the shell that a camera could have seen, as SJC leaves them. Times are CPU seconds of this
process and its children with one thread, medians over the rounds.

field -> GLB    level search, surface, decimation to 20,000 faces, charts, 1024^2 texture, file
turntable       60 frames of 256^2, MP4 and WebP
field/mesh IoU  silhouettes in eight views that the level search did not see, by density
colour          PSNR of the mesh's pictures against the field's, on the pixels that both cover:
                texture, and colours sampled at the surface itself
rasteriser      silhouette IoU with analytic balls; pixels that embreex sees differently
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from sjc_engine.camera import orbit, rays
from sjc_engine.fields import VoxelField
from sjc_engine.level import iou
from sjc_engine.mesh import Mesh, extract_mesh
from sjc_engine.raster import coverage, rasterize
from sjc_engine.render import composite, render
from sjc_engine.turntable import turntable_frames, write_thumbnail, write_video

HALF = 0.7
UNSEEN = [(25 + 45 * k, (-10, 5, 25, 50)[k % 4]) for k in range(8)]  # azimuth, elevation


def totem(resolution: int, scale: float = 1.0) -> VoxelField:
    """The test object at this density."""
    ticks = ((np.arange(resolution) + 0.5) / resolution * 2 - 1) * HALF
    z, y, x = np.meshgrid(ticks, ticks, ticks, indexing="ij")
    ring = np.hypot(np.hypot(x, z) - 0.32, y + 0.25) - 0.13
    ball = np.sqrt(x**2 + (y - 0.22) ** 2 + z**2) - 0.22
    stalk = np.sqrt(x**2 + (y - y.clip(-0.3, 0.1)) ** 2 + z**2) - 0.05
    bar = np.maximum.reduce([np.abs(x) - 0.32, np.abs(y + 0.25) - 0.05, np.abs(z) - 0.05])
    distance = np.minimum.reduce([ring, ball, stalk, bar])
    voxel = 2 * HALF / resolution
    density = scale * 100 / (1 + np.exp((distance / (0.5 * voxel)).clip(-40, 40)))
    stripes = 0.8 * np.sin(np.stack([11 * x, 13 * y, 9 * z], -1))
    noise = np.random.default_rng(0).uniform(-0.99, 0.99, stripes.shape)
    seen = np.abs(distance)[..., None] < 3 * voxel
    colors = np.where(seen, stripes, noise)
    field = VoxelField(resolution, 3, HALF, color_init=0.0).requires_grad_(False)
    sigma = torch.from_numpy(np.maximum(density, 1e-9))
    raw = torch.where(sigma > 20, sigma, torch.log(torch.expm1(sigma.clamp(max=20))))
    field.density[0, 0] = (raw + 1).float()
    field.color[0] = torch.from_numpy(np.arctanh(colors) * 2).permute(3, 0, 1, 2).float()
    return field


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def resident() -> float:
    """MB of this process and its children right now."""
    pages = 0
    children = Path("/proc/self/task")
    pids = [os.getpid()]
    for task in children.iterdir():
        pids += [int(p) for p in (task / "children").read_text().split()]
    for pid in pids:
        try:
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return pages * resource.getpagesize() / 2**20


class Peak:
    """The most memory above the start's while the block runs, sampled every 10 ms."""

    def __enter__(self) -> Peak:
        self.start, self.added, self._on = resident(), 0.0, True
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while self._on:
            self.added = max(self.added, resident() - self.start)
            time.sleep(0.01)

    def __exit__(self, *_: object) -> None:
        self._on = False
        self._thread.join()


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """In dB, for colours in [-1, 1]."""
    return float(10 * torch.log10(4 / (a - b).square().mean()))


def agreement(field: VoxelField, mesh: Mesh) -> tuple[list[float], float]:
    """IoU by unseen view, and PSNR over the pixels that both cover wholly."""
    overlaps, ours, theirs = [], [], []
    white = torch.ones(3, 1, 1)
    for azimuth, elevation in UNSEEN:
        camera = orbit(azimuth, elevation)
        with torch.no_grad():
            seen = render(field, camera, 256, 256, step=field.voxel_length / 2)
        drawn = rasterize(mesh, camera, 256, 256)
        overlaps.append(iou(seen.opacity > 0.5, drawn.opacity > 0.5))
        inside = (seen.opacity > 0.99) & (drawn.opacity == 1)
        ours.append(drawn.rgb[:, inside])
        theirs.append(composite(seen, white)[:, inside])
    return overlaps, psnr(torch.cat(ours, 1), torch.cat(theirs, 1))


def rasteriser() -> dict[str, float]:
    import embreex.rtcore_scene as rtcore
    import trimesh
    from embreex.mesh_construction import TriangleMesh

    solid = trimesh.creation.icosphere(subdivisions=6, radius=0.45)  # 81,920 faces
    vertices = torch.tensor(np.asarray(solid.vertices), dtype=torch.float32)
    faces = torch.tensor(np.asarray(solid.faces))
    overlaps, different, total = [], 0, 0
    scene = rtcore.EmbreeScene()
    TriangleMesh(scene, vertices.numpy(), faces.numpy().astype(np.int32))
    for azimuth, elevation in UNSEEN:
        camera = orbit(azimuth, elevation)
        mask = coverage(vertices, faces, camera, 256, 256)
        origins, directions = rays(camera, 256, 256, dtype=torch.float64)
        along = (origins * directions).sum(1)
        hit = (along**2 - origins.square().sum(1) + 0.45**2 > 0).view(256, 256)
        overlaps.append(iou(mask, hit))
        shot = scene.run(
            np.ascontiguousarray(origins.expand_as(directions).float().numpy()),
            np.ascontiguousarray(directions.float().numpy()),
        )
        different += int((torch.from_numpy(shot >= 0).view(256, 256) != mask).sum())
        total += mask.numel()
    return {"IoU": min(overlaps), "differ": different / total}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a .json file for the figures")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs,"
          f" Python {platform.python_version()}, torch {torch.__version__}")  # fmt: skip
    field = totem(settings.resolution)
    extract_mesh(totem(16))  # what is loaded once is not an asset's
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "mesh.glb")
        times, added = [], []
        for _ in range(settings.rounds):
            began = cpu_seconds()
            with Peak() as peak:
                mesh = extract_mesh(field)
                mesh.export(path)
            times.append(cpu_seconds() - began)
            added.append(peak.added)
        figures["field -> GLB, CPU s"] = median(times)
        figures["field -> GLB, added MB"] = max(added)
        figures["GLB, KB"] = path.stat().st_size / 1000
        figures["faces"] = len(mesh.faces)
        times = []
        for _ in range(settings.rounds):
            began = cpu_seconds()
            frames = turntable_frames(mesh)
            write_video(frames, Path(folder, "turntable.mp4"))
            write_thumbnail(frames, Path(folder, "thumbnail.webp"))
            times.append(cpu_seconds() - began)
        figures["turntable, CPU s"] = median(times)
        figures["turntable, KB"] = Path(folder, "turntable.mp4").stat().st_size / 1000
        figures["thumbnail, KB"] = Path(folder, "thumbnail.webp").stat().st_size / 1000
    for scale in (1.0, 0.1, 5.0):
        dense = field if scale == 1 else totem(settings.resolution, scale)
        overlaps, colors = agreement(dense, mesh if scale == 1 else extract_mesh(dense))
        figures[f"field/mesh IoU, density x {scale:g}, mean"] = float(np.mean(overlaps))
        figures[f"field/mesh IoU, density x {scale:g}, least"] = min(overlaps)
        if scale == 1:
            figures["colour, texture, dB"] = colors
    points = torch.from_numpy(mesh.vertices)
    sampled = (field.rgb(points).numpy() + 1) / 2
    figures["colour, sampled at the surface, dB"] = agreement(
        field, replace(mesh, colors=sampled.astype(np.float32), texture=None)
    )[1]
    fine = extract_mesh(field, replace(_fine(), texture_size=0))
    times = []
    for azimuth, elevation in UNSEEN * settings.rounds:
        began = time.process_time()
        rasterize(fine, orbit(azimuth, elevation), 256, 256, supersample=1)
        times.append(time.process_time() - began)
    figures[f"rasteriser, {len(fine.faces)} faces at 256^2, CPU ms"] = 1000 * median(times)
    for name, value in rasteriser().items():
        figures[f"rasteriser, {name}"] = value
    for name, value in figures.items():
        print(f"{name:48} {value:.4g}")
    if settings.out:
        settings.out.write_text(json.dumps(figures, indent=2) + "\n")


def _fine():  # type: ignore[no-untyped-def]
    from sjc_engine.recipes import MeshRecipe

    return MeshRecipe(max_faces=50_000)


if __name__ == "__main__":
    main()
