"""What a step asks of a GPU and of the CPU in front of it, measured without a GPU.

    python benchmarks/gpu_step.py [--scenes 1,8] [--json FILE]

Launches, copies and waits of a step at the paper's setting (a latent prior, 100^3 voxels, 64 x 64
rays), counted on torch's device "meta": of rendering, losses and optimiser, without the network's.
The renderer's own kernels are launched on a mocked driver, where `make ptx` has installed the
compiler: the CPU's milliseconds for those of a step and scene, by Numba and flat.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from report import Report

from sjc_engine.acceptance.random_prior import SMALL, RandomPrior
from sjc_engine.optimization.loop import step_scenes
from sjc_engine.optimization.scene import Scene
from sjc_engine.recipes import Recipe

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from counting_device import META, counting_device  # noqa: E402

PYTHON = ROOT / ".venv" / "ptx" / "bin" / "python"
FUSED_LAUNCHES = 7  # of the renderer, forward and backward


def counted(scenes: int) -> dict[str, Any]:
    """The second step of so many scenes."""
    with counting_device() as counts:
        prior = RandomPrior(SMALL, META, torch.float16)
        recipe = Recipe.for_prior("owner/name")
        running = [Scene("a thing", "", seed, recipe, prior) for seed in range(scenes)]
        prior._unet = lambda scaled, *rest, **named: argparse.Namespace(sample=scaled)
        step_scenes(running, prior)
        counts.clear()
        step_scenes(running, prior)
        return {
            "scenes": scenes,
            "torch's launches": counts.launches.total() / scenes,
            "renderer's launches": FUSED_LAUNCHES,
            "uploads": counts.uploads.total() / scenes,
            "downloads": counts.downloads.total() / scenes,
            "waits": counts.waits.total(),
        }


def launch_path() -> list[dict[str, Any]]:
    """Milliseconds of the CPU, by number of channels and kind of launch."""
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            [PYTHON, ROOT / "tests" / "support" / "compiled_kernels.py", "--launches"],
            env=os.environ | {"PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": cache},
            capture_output=True,
            text=True,
            check=True,
        )
    found = json.loads(done.stdout)["milliseconds"]
    return [{"channels": int(channels), **spent} for channels, spent in found.items()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", default="1,8")
    parser.add_argument("--json", type=Path, metavar="FILE")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    report = Report("gpu_step", {"scenes": settings.scenes})
    rows = [counted(int(number)) for number in settings.scenes.split(",")]
    report.table("a step, for each scene", rows)
    report.figure("waits of a step", max(row["waits"] for row in rows), "", "<= 0")
    if PYTHON.exists():
        paths = launch_path()
        report.table("launches of the renderer: CPU ms for a step and scene", paths)
        report.figure("flat launches", max(path["flat"] for path in paths), "ms", "<= 0.4")
    else:
        print("no compiler for the CUDA kernels; `make ptx` installs it")
    report.write_json(settings.json)


if __name__ == "__main__":
    main()
