"""The renderer forward and backward: fused kernels, plain torch, and the published algorithm.

    python benchmarks/renderer.py [--rounds 7] [--threads 1] [--device cpu] [--json FILE]
    python benchmarks/renderer.py --against MODULE

One step's share of the renderer at the paper's setting: 64 x 64 rays of a random training camera,
100^3 voxels of 4 channels, intervals of 0.01, a score for the picture and the emptiness loss, all
gradients. Three states of the field: `init`, a haze everywhere; `converged`, an opaque ball in
empty space; `tank`, the end of a run of the demo (benchmarks/fields), resampled to these voxels,
with its mean colour for a fourth channel. Every round has another camera and runs all renderers;
times are CPU time with one thread and wall-clock otherwise, ratios are medians over rounds of one
round's two times.

published   benchmarks/published_renderer.py, the baseline
torch       this engine's oracle
fused       this engine's kernels
kept        the same without rounding subnormal numbers to zero (CPU only)

Two threads against one, where there are two cores: blocks of steps in turn, as a run has them.

Gradients: the largest difference between fused and torch over the largest gradient, the worst of
all cameras. Memory: what the peak of the process's resident memory rises by over a step, in a
process of its own (CUDA: the allocator's peak); the field is there before, its gradients are not.

`--against` names a Python file with `make(density, color)`, which returns an object for grids
(1, 1, N, N, N) and (1, 4, N, N, N) on [-1, 1]^3, and `step_gradients(object, rays, step, score)`,
where rays are (origins, directions, near, chord), as in benchmarks/published_renderer.py. It runs
beside the others.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

import sjc_engine  # noqa: F401  # before torch, for whose threads it chooses

# isort: split
import published_renderer
import torch
import torch.nn.functional as F
from report import Report, interleaved, ratio
from torch import Tensor

from sjc_engine.acceptance.checks import put_ball
from sjc_engine.fields.kinds import load_field
from sjc_engine.fields.voxel import VoxelField
from sjc_engine.optimization.losses import emptiness
from sjc_engine.rendering import fused as kernels
from sjc_engine.rendering.camera import Camera, rays, sample_camera
from sjc_engine.rendering.volume import intersect_box, render_views

SIDE, CHANNELS, STEP = 100, 4, 0.01
STATES = ("init", "converged", "tank")
TANK = Path(__file__).parent / "fields" / "tank.safetensors"
BLOCK = 5  # steps


def make_field(state: str, device: str) -> VoxelField:
    """A field in one of the states, at the paper's setting."""
    generator = torch.Generator().manual_seed(0)
    field = VoxelField(SIDE, CHANNELS, space="latent", generator=generator)
    put_state(field, state)
    return field.to(device)


def put_state(field: VoxelField, state: str) -> None:
    """Leaves a field as it starts, or gives it a ball in 11% of the box, or what a run has left."""
    if state == "converged":
        put_ball(field)
    elif state == "tank":
        put_run(field, TANK)


@torch.no_grad()
def put_run(field: VoxelField, path: Path) -> None:
    """Gives a field the values of another, of three channels, at its own voxels."""
    run = load_field(path)
    assert isinstance(run, VoxelField)
    color = torch.cat([run.color, run.color.mean(1, keepdim=True)], 1)
    for mine, theirs in ((field.density, run.density), (field.color, color)):
        mine.copy_(F.interpolate(theirs, mine.shape[2:], mode="trilinear"))
    field.d_scale.copy_(run.d_scale)


def our_step(field: VoxelField, camera: Camera, size: int, score: Tensor, fused: bool) -> None:
    """The same work as `published_renderer.step_gradients`, in one backward pass."""
    field.zero_grad()
    view = render_views(field, [camera], size, size, step=STEP, emptiness_scale=10.0, fused=fused)
    (-(score * view.rgb[0]).sum() + 1e4 * emptiness(view)).backward()


def published_step(module: Any, grids: Any, camera: Camera, size: int, score: Tensor) -> None:
    for parameter in grids.parameters():
        parameter.grad = None
    origins, directions = rays(camera, size, size, dtype=torch.float64)
    box = torch.tensor([[-1.0] * 3, [1.0] * 3], dtype=torch.float64)
    near, chord = intersect_box(origins, directions, box)
    lines = tuple(t.float().to(score.device) for t in (origins, directions, near, chord))
    module.step_gradients(grids, lines, STEP, score.flatten(1).T)


def disagreement(field: VoxelField, camera: Camera, size: int, score: Tensor) -> float:
    """Max-norm difference of fused and torch gradients over that of torch, the worst grid's."""
    gradients = []
    for fused in (True, False):
        our_step(field, camera, size, score, fused)
        density, color = field.density.grad, field.color.grad
        assert density is not None
        assert color is not None
        gradients.append([density.clone(), color.clone()])
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*gradients, strict=True))


def memory_peak(device: str, *, forget: bool = False) -> int:
    """Bytes: the highest since the last call with `forget`."""
    if device == "cuda":
        highest = torch.cuda.max_memory_allocated()
        if forget:
            torch.cuda.reset_peak_memory_stats()
        return highest
    if forget:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def added_memory(name: str, state: str, size: int, device: str) -> float:
    """MB that one step of a renderer adds to the process's peak, in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", name, state]
    command += ["--size", str(size), "--device", device]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def print_added_memory(name: str, state: str, size: int, device: str) -> None:
    works, _ = renderers(state, size, device)
    works[name](0, 8)  # a small picture first, so that libraries have loaded what they need
    memory_peak(device, forget=True)
    before = memory_peak(device)
    works[name](0, size)
    print((memory_peak(device) - before) / 1e6)


def renderers(
    state: str, size: int, device: str, against: Path | None = None
) -> tuple[dict[str, Callable[[int, int], None]], Callable[[int], float]]:
    """Each renderer's step as a function of (round, size), and the disagreement in a round."""
    field = make_field(state, device)
    grids = published_renderer.Grids(field.density, field.color).to(device)

    def draw(number: int, size: int) -> tuple[Camera, Tensor]:
        generator = torch.Generator().manual_seed(number)
        camera = sample_camera(generator)
        return camera, torch.randn(CHANNELS, size, size, generator=generator).to(device)

    def ours(fused: bool, flush: bool = True) -> Callable[[int, int], None]:
        def set_flush() -> None:
            torch.set_flush_denormal(flush)

        def step(number: int, size: int) -> None:
            camera, score = draw(number, size)
            kernels.flush_subnormals = set_flush
            set_flush()
            our_step(field, camera, size, score, fused)

        return step

    def theirs(module: Any, grids: Any) -> Callable[[int, int], None]:
        def step(number: int, size: int) -> None:
            camera, score = draw(number, size)
            torch.set_flush_denormal(False)
            published_step(module, grids, camera, size, score)

        return step

    works = {
        "published": theirs(published_renderer, grids),
        "torch": ours(False),
        "fused": ours(True),
    }
    if device == "cpu":
        works["kept"] = ours(True, flush=False)
    if against:
        spec = importlib.util.spec_from_file_location("against", against)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        works[against.stem] = theirs(module, module.make(field.density, field.color))

    def differs(number: int) -> float:
        camera, score = draw(number, size)
        return disagreement(field, camera, size, score)

    return works, differs


class Turn:
    """The number of the round that runs: every renderer draws the same camera from it."""

    number = 0

    def of(self, work: Callable[[int, int], None], size: int) -> Callable[[], None]:
        return lambda: work(self.number, size)


def thread_times(work: Callable[[], None], rounds: int) -> dict[int, list[float]]:
    """Seconds of the work with one thread and with two, as in a run, step after step.

    Each round has a block of steps for either; the first of a block, for which threads and memory
    have to be had again, is not counted.
    """
    times: dict[int, list[float]] = {1: [], 2: []}
    before = torch.get_num_threads()
    for _ in range(rounds):
        for threads, found in times.items():
            torch.set_num_threads(threads)
            block = interleaved({"": work}, BLOCK)[""]
            found.append(median(block))
    torch.set_num_threads(before)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", type=int, default=64, help="rays per side")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--against", type=Path, help="a Python file with another renderer")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        name, state = args.memory_of
        print_added_memory(name, state, args.size, args.device)
        return
    settings = {"rays": args.size**2, "voxels": SIDE**3, "channels": CHANNELS, "step": STEP}
    report = Report("renderer", {**settings, "rounds": args.rounds, "device": args.device})
    cpu = args.device == "cpu"
    clock = time.process_time if cpu and args.threads == 1 else time.perf_counter
    rows = []
    for state in STATES:
        works, differs = renderers(state, args.size, args.device, args.against)
        turn = Turn()
        runs = {name: turn.of(work, args.size) for name, work in works.items()}
        times: dict[str, list[float]] = {name: [] for name in runs}
        for turn.number in range(args.rounds):
            warmup = int(turn.number == 0)
            for name, seconds in interleaved(runs, 1, warmup, clock).items():
                times[name] += seconds
        memory = {
            name: added_memory(name, state, args.size, args.device)
            for name in ("published", "torch", "fused")
        }
        rows += [
            {
                "state": state,
                "renderer": name,
                "ms": 1000 * median(times[name]),
                "published / it": ratio(times, "published", name),
                "torch / it": ratio(times, "torch", name),
                "added MB": memory.get(name),
            }
            for name in times
        ]
        wanted = (">= 9" if state == "init" else ">= 10") if cpu else ""
        report.figure(
            f"{state}: published / fused", ratio(times, "published", "fused"), "x", wanted
        )
        report.figure(
            f"{state}: torch / fused", ratio(times, "torch", "fused"), "x", "" if cpu else ">= 10"
        )
        if cpu and (os.cpu_count() or 1) > 1:
            blocks = thread_times(runs["fused"], args.rounds)
            speedup = median(one / two for one, two in zip(*blocks.values(), strict=True))
            report.figure(f"{state}: one thread / two", speedup, "x", ">= 1.6")
        worst = max(differs(number) for number in range(args.rounds))
        report.figure(f"{state}: gradients, fused against torch", worst, "", "<= 1e-4")
        share = memory["fused"] / memory["published"]
        report.figure(f"{state}: added memory, fused / published", share, "x", "<= 0.55")
    report.table("forward and backward", rows)
    report.write_json(args.json)


if __name__ == "__main__":
    main()
