"""What an asset takes after its optimisation, part by part, and beside another state of the code.

    python benchmarks/after_optimization.py [--before CHECKOUT] [--rounds 5] [--json FILE]

CPU seconds of a process and its children, with one thread: medians over the rounds, in which the
states of the code take turns, each in a process of its own that has done everything once before.
The field is that of a finished asset (`fields/tank.safetensors`); CHECKOUT is another folder with
this repository, as `git worktree add` makes it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from report import Report

HERE = Path(__file__).parents[1]
FIELD = Path(__file__).parent / "fields" / "tank.safetensors"
TARGETS = {"turntable": "<= 0.35"}  # of what it took before


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def parts() -> dict[str, float]:
    """CPU seconds of each part, of the `sjc_engine` that is imported."""
    import torch

    from sjc_engine.evaluation.pictures import contact_sheet, take_pictures, to_image
    from sjc_engine.evaluation.turntable import turntable_frames, write_thumbnail
    from sjc_engine.fields.kinds import load_field
    from sjc_engine.mesh.extract import extract_mesh, write_mesh
    from sjc_engine.recipes import MeshRecipe

    torch.set_num_threads(1)
    taken: dict[str, float] = {}
    began = cpu_seconds()

    def done(part: str) -> None:
        nonlocal began
        now = cpu_seconds()
        taken[part], began = now - began, now

    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):  # what is loaded or compiled once is not an asset's
            began = cpu_seconds()
            field, recipe = load_field(FIELD), MeshRecipe()
            mesh = extract_mesh(field, recipe)
            done("mesh and texture")
            write_mesh(mesh, Path(folder), recipe, {})
            done("mesh.glb")
            pictures = take_pictures(field, mesh, 256)
            done("pictures")
            contact_sheet(pictures, "a tank").save(Path(folder, "preview.png"))
            for number, view in enumerate([*pictures.field, *pictures.mesh]):
                to_image(view).save(Path(folder, f"{number}.png"))
            done("PNGs")
            write_thumbnail(turntable_frames(mesh), Path(folder, "thumbnail.webp"))
            done("turntable")
    return taken | {"together": sum(taken.values())}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, metavar="CHECKOUT")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, metavar="FILE")
    settings = parser.parse_args()
    if settings.parts:
        print(json.dumps(parts()))
        return
    report = Report("after_optimization", {"field": FIELD.name, "rounds": settings.rounds})
    states = {"now": HERE} | ({"before": settings.before} if settings.before else {})
    found: dict[str, list[dict[str, float]]] = {state: [] for state in states}
    for number in range(settings.rounds):
        for state in list(states)[:: -1 if number % 2 else 1]:
            done = subprocess.run(
                [sys.executable, __file__, "--parts"],
                env=os.environ | {"PYTHONPATH": str(states[state]), "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                check=True,
            )
            found[state].append(json.loads(done.stdout))
    for part in found["now"][0]:
        seconds = {state: [taken[part] for taken in rounds] for state, rounds in found.items()}
        for state, values in seconds.items():
            report.figure(f"{part}, {state}", median(values), "CPU s")
        if settings.before:
            pairs = zip(seconds["now"], seconds["before"], strict=True)
            share = median(now / before for now, before in pairs)
            report.figure(f"{part}, now / before", share, target=TARGETS.get(part, ""))
    report.write_json(settings.json)


if __name__ == "__main__":
    main()
