"""What each part of the method does, on the toybox: one setting changed at a time, three seeds.

    python benchmarks/ablation.py [--seeds 0,1,2] [--only duck,tank] [--steps 500] [--processes 2]
                                  [--out DIR] [--docs DIR] [--show] [--json FILE]

Starts from the preset `toybox` with `--steps` steps, all noise to the end (`tick_end=0`), and
changes what a row says. Every asset is
made and judged as in `benchmarks/demo.py`, in a process of its own with one thread; its result is
kept in DIR/results.jsonl, so that an interrupted run goes on. With `--docs docs` the table and the
pictures go to docs/ablation.md and docs/images/ablation.png, below the text that is there.

silhouette IoU  best mean over the eight views against 64 random procedural instances of the
                prompt's category and 8 azimuth offsets; of the field (opacity > 0.5)
turn            1 - mean IoU of views a quarter turn apart, as a share of the instances' own: near 0
                for an object that looks alike from all sides, near 1 for one with the right sides;
                of assets that show anything
R-Precision     share of the mesh views whose caption the judge finds among its distractors
seconds         CPU time of the optimisation
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from demo import MANIFEST, Result, instance_masks, make
from report import Report, in_words

Changes = dict[str, str]
# The recipe's own row first; the others say what differs from it.
SETTINGS: dict[str, dict[str, Changes]] = {
    "Score": {
        "SJC, eq. 16 (the recipe)": {},
        "SJC, eq. 15": {"variance_reduction": "false"},
        "SDS (DreamFusion)": {"score": "sds"},
        "naive, no noise added": {"score": "naive"},
    },
    "Noise levels": {
        "annealed, eq. 16": {"sigma_schedule": "annealed"},
        "annealed, eq. 15": {"sigma_schedule": "annealed", "variance_reduction": "false"},
        "annealed, SDS": {"sigma_schedule": "annealed", "score": "sds"},
    },
    "Guidance (recipe: 15)": {
        "1, eq. 16": {"guidance_scale": "1"},
        "1, SDS": {"guidance_scale": "1", "score": "sds"},
        "5, eq. 16": {"guidance_scale": "5"},
        "40, eq. 16": {"guidance_scale": "40"},
        "100, eq. 16": {"guidance_scale": "100"},
        "100, SDS": {"guidance_scale": "100", "score": "sds"},
    },
    "Regularisers": {
        "no emptiness": {"emptiness_weight": "0"},
        "center depth, weight 10": {"depth_weight": "10"},
    },
    "View prompts": {
        "the paper's four": {"view_style": "paper"},
        "none": {"view_style": "none"},
    },
    "Field": {
        "TensoRF": {"field": "tensorf"},
        "Plenoxels, TV 1e-4": {"field": "plenoxels", "tv_weight": "1e-4"},
        "mip-NeRF MLP": {"field": "mlp"},
    },
}
ROWS: list[tuple[str, str, Changes]] = [
    (group, name, changes)
    for group, settings in SETTINGS.items()
    for name, changes in settings.items()
]
MARK = "<!-- From here on: `python benchmarks/ablation.py --docs docs`. -->"
TILE, LABELS, GAP = 96, 210, 3  # pixels


def folder_of(out: Path, changes: Changes) -> Path:
    """Named after the settings, so that another row or another --steps is another folder."""
    return out / ",".join(f"{key}={value}" for key, value in sorted(changes.items()))


def job(work: tuple[int, str, str, int, Changes, Path]) -> tuple[int, Result]:
    row, category, prompt, seed, changes, out = work
    folder = folder_of(out, changes)
    folder.mkdir(exist_ok=True)
    with contextlib.suppress(FileExistsError):  # the row's other assets are at work beside us
        (folder / "instances.npz").symlink_to(Path("..", "instances.npz"))
    return row, make((category, prompt, seed, "toybox", "toybox", changes, folder))


def spread(values: list[float]) -> str:
    """Mean and, over seeds, the standard deviation."""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def table(results: dict[tuple[int, str, int], Result], prompts: list[str]) -> str:
    """Markdown: a row per setting, IoU for each prompt, the rest over all of its assets."""
    head = ["", *(f"{p}: IoU" for p in prompts), "turn", "R-Precision", "seconds"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for number, (group, name, _) in enumerate(ROWS):
        if name == next(iter(SETTINGS[group])):
            lines.append(f"| **{group}** " + "| " * (len(head) - 1) + "|")
        own = {key: r for key, r in results.items() if key[0] == number}
        if not own:
            continue
        by_prompt = [
            spread([r.field_iou for (_, category, _), r in sorted(own.items()) if category == p])
            for p in prompts
        ]
        turns = [r.turn / r.instance_turn for r in own.values() if r.field_iou > 0]
        turn = mean(turns) if turns else math.nan
        precision = mean(r.r_precision for r in own.values())
        seconds = mean(r.cpu_optimize for r in own.values())
        cells = [name, *by_prompt, f"{turn:.2f}", f"{precision:.2f}", f"{seconds:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture(out: Path, base: Changes, prompts: list[str], seeds: list[int], path: Path) -> None:
    """A row per setting: each prompt's fields by seed, two views of each, front and side."""
    import torch
    from demo import ring
    from PIL import Image, ImageDraw, ImageFont

    from sjc_engine import load_field
    from sjc_engine.evaluation.pictures import to_image
    from sjc_engine.rendering.volume import composite, render_views

    columns = [(p, seed, view) for p in prompts for seed in seeds for view in (1, 3)]
    width, height = LABELS + len(columns) * (TILE + GAP), 20 + len(ROWS) * (TILE + GAP)
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    for column, (prompt, seed, view) in enumerate(columns):
        if view == 1:
            x = LABELS + column * (TILE + GAP)
            pen.text((x + TILE, 3), f"{prompt}, seed {seed}", (32, 32, 36), font, anchor="ma")
    for number, (group, name, changes) in enumerate(ROWS):
        y = 20 + number * (TILE + GAP)
        pen.text((6, y + TILE / 2 - 9), group, (120, 120, 128), font, anchor="lm")
        pen.text((6, y + TILE / 2 + 9), name, (32, 32, 36), font, anchor="lm")
        for column, (prompt, seed, view) in enumerate(columns):
            kept = folder_of(out, base | changes) / f"{prompt}-{seed}.safetensors"
            if not kept.exists():
                continue
            with torch.no_grad():
                seen = render_views(load_field(kept), [ring()[view]], TILE, TILE)
                image = composite(seen, torch.ones_like(seen.rgb))[0]
            sheet.paste(to_image(image), (LABELS + column * (TILE + GAP), y))
    sheet.convert("P", palette=Image.Palette.ADAPTIVE, colors=255).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", default="duck,tank")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(".runs/ablation"))
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--docs", type=Path, help="folder of ablation.md")
    parser.add_argument("--show", action="store_true", help="what is kept; make nothing")
    settings = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from tasks.manifest.resolve import read_manifest

    prompts = {row.row_id: row.prompt for row in read_manifest(MANIFEST).rows}
    chosen, seeds = settings.only.split(","), [int(seed) for seed in settings.seeds.split(",")]
    settings.out.mkdir(parents=True, exist_ok=True)
    names = ("seeds", "only", "steps", "processes")
    report = Report("ablation", {name: getattr(settings, name) for name in names})
    # What a result was made with is part of its key: another --steps is another experiment.
    kept = settings.out / "results.jsonl"
    base = {"steps": str(settings.steps), "tick_end": "0"}  # all noise to the end
    results: dict[tuple[int, str, int], Result] = {}
    rows_of = {
        json.dumps(base | changes, sort_keys=True): k for k, (_, _, changes) in enumerate(ROWS)
    }
    for line in kept.read_text().splitlines() if kept.exists() else []:
        entry = json.loads(line)
        if (row := rows_of.get(entry["changes"])) is not None:
            result = Result(**entry["result"])
            results[row, result.category, result.seed] = result
    jobs = [
        (row, category, prompts[category], seed, base | changes, settings.out)
        for seed in seeds
        for row, (_, _, changes) in enumerate(ROWS)
        for category in chosen
        if (row, category, seed) not in results and not settings.show
    ]
    print(f"{len(results)} kept, {len(jobs)} to make", flush=True)
    context = multiprocessing.get_context("spawn")
    with context.Pool(settings.processes, maxtasksperchild=1) as pool:
        masks = pool.map(instance_masks, chosen)
        np.savez_compressed(settings.out / "instances.npz", **dict(zip(chosen, masks, strict=True)))
        started = time.monotonic()
        for done, (row, result) in enumerate(pool.imap_unordered(job, jobs), 1):
            results[row, result.category, result.seed] = result
            changes = json.dumps(base | ROWS[row][2], sort_keys=True)
            with kept.open("a") as file:
                file.write(json.dumps({"changes": changes, "result": asdict(result)}) + "\n")
            left = (time.monotonic() - started) / done * (len(jobs) - done) / 60
            print(
                f"{done}/{len(jobs)}  {ROWS[row][1]:26} {result.category:8} seed {result.seed}"
                f"  IoU {result.field_iou:.3f}  R {result.r_precision:.2f}  {left:.0f} min left",
                flush=True,
            )
    wanted = {key: r for key, r in sorted(results.items()) if key[1] in chosen and key[2] in seeds}
    text = table(wanted, chosen)
    print("\n" + text)
    report.tables["assets"] = [
        {"group": ROWS[row][0], "setting": ROWS[row][1], **asdict(result)}
        for (row, _, _), result in wanted.items()
    ]
    report.write_json(settings.json)
    if settings.docs:
        picture(settings.out, base, chosen, seeds, settings.docs / "images" / "ablation.png")
        page = settings.docs / "ablation.md"
        before = page.read_text().partition(MARK)[0] if page.exists() else "# Ablation\n\n"
        about = (
            f"{settings.steps} steps, seeds {', '.join(map(str, seeds))};"
            f" {in_words(report.machine)}.\n\n"
            "![Fields of every setting, two views each](images/ablation.png)"
        )
        page.write_text(f"{before}{MARK}\n\n{text}\n\n{about}\n")
        print(f"{page} and {settings.docs}/images/ablation.png", file=sys.stderr)


if __name__ == "__main__":
    main()
