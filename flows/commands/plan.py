"""`sjc plan`: a manifest's assets cut into shards, by the time that they should take."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands import options
from flows.commands.app import command
from flows.commands.output import print_table, print_warnings
from flows.errors import UsageError, disk_errors
from flows.settings import Settings
from sjc_engine.files import write_atomically

if TYPE_CHECKING:
    from tasks.manifest.shard_plan import ShardPlan

SHARD_SECONDS = 5400  # 1.5 hours: little is lost with a machine, and little waits for it
SHOWN = 20  # shards that are printed
PARTS = ("prior", "recipe", "overrides", "limit", "where")  # settings that a plan follows from


@command(
    "sjc plan prompts.csv -o plan.parquet",
    "sjc plan prompts.csv -o plan.parquet --shard-seconds 3600",
    "sjc plan prompts.csv -o plan.parquet --slurm job.sh --store /shared/store",
)
def plan(
    manifest: options.Manifest,
    out: Annotated[Path, typer.Option("-o", "--out", help="The plan to write, a Parquet file.")],
    store: Annotated[
        str,
        typer.Option(
            envvar="SJC_STORE", help="Finished assets of this store give the expected time."
        ),
    ] = "./store",
    prior: options.Prior = None,
    recipe: options.Recipe = None,
    set_: options.Set = None,
    dtype: options.Dtype = None,
    allow_pickle: options.AllowPickle = False,
    where: options.Where = None,
    limit: options.Limit = None,
    shard_seconds: Annotated[
        float, typer.Option(help="Seconds of one device that a shard should take.")
    ] = SHARD_SECONDS,
    slurm: Annotated[
        Path | None, typer.Option(help="A batch script for SLURM to write, an array of shards.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No warnings.")] = False,
    json_: options.Json = False,
) -> None:
    """Cut a manifest into shards for many machines; `dispatch` or `run --plan` makes them."""
    overrides = options.parse_overrides(set_, dtype)
    settings = Settings(
        manifest,
        store,
        prior,
        recipe,
        overrides,
        limit=limit,
        where=where,
        allow_pickle=allow_pickle,
    )
    for option, path in (("-o", out), ("--slurm", slurm)):
        if path and (not path.parent.is_dir() or path.is_dir()):
            raise UsageError(f"{option} {path}: name a file in a folder that exists")
    made, warnings = make_shard_plan(settings, shard_seconds)
    if not quiet:
        print_warnings(warnings)
    with disk_errors("-o", out):
        if not out.exists():
            write_atomically(out, made.data)
        elif out.read_bytes() != made.data:  # an equal one stays
            raise UsageError(
                f"-o {out}: is another plan, or no plan; plans are never changed, so name another "
                "file (the manifest, an option, or the times that the store knows differ)"
            )
    if slurm:
        from flows.commands.slurm import batch_script

        with disk_errors("--slurm", slurm):
            write_atomically(slurm, batch_script(made, out, slurm, store).encode())
    _show(made, out, as_json=json_)


def make_shard_plan(settings: Settings, shard_seconds: float) -> tuple[ShardPlan, list[str]]:
    """The plan of a manifest, and warnings. Raises ManifestError, UsageError, StoreError."""
    from functools import partial

    from flows.plan import find_related_assets, read_entries, revision
    from flows.progress.estimate import DEFAULT_COST, known_costs, seconds_of_assets
    from tasks.manifest.shard_plan import make_plan_file
    from tasks.manifest.where import select
    from tasks.store import open_store

    if not shard_seconds > 0:
        raise UsageError("--shard-seconds: use a number of seconds above 0")
    settings.check()
    manifest, resolved = read_entries(
        settings, partial(revision, allow_pickle=settings.allow_pickle)
    )
    entries = select(resolved.entries, settings.where, settings.limit)
    fresh = "://" not in settings.store and not Path(settings.store).exists()
    known, warnings = {}, list(resolved.warnings)
    if not fresh:
        opened = open_store(settings.store, writable=False)
        known = known_costs(opened)
        first = {entry.spec.asset_id: entry.spec for entry in entries}
        warnings += find_related_assets(opened, list(first.values()))[1]
    seconds, guessed = seconds_of_assets(entries, known)
    if guessed:
        named = ", ".join(f"{prior} with {recipe}" for prior, recipe in guessed)
        warnings.append(
            f"no finished assets of {named} in {settings.store}; its time is a guess of "
            f"{DEFAULT_COST.step:g} s a step"
        )
    plan = make_plan_file(
        entries,
        seconds,
        shard_seconds,
        manifest=manifest.name,
        manifest_sha256=manifest.sha256,
        settings={**{key: getattr(settings, key) for key in PARTS}, "shard_seconds": shard_seconds},
    )
    return plan, warnings


def _show(plan: ShardPlan, path: Path, *, as_json: bool) -> None:
    """Prints how many assets and hours each shard has, as a table or as JSON."""
    shards = plan.shards()
    hours = {number: sum(assets.values()) / 3600 for number, assets in shards.items()}
    facts = {
        "plan": plan.id,
        "file": os.fspath(path),
        "shards": len(shards),
        "assets": sum(map(len, shards.values())),
        "entries": plan.rows.num_rows,
        "hours": sum(hours.values()),
    }
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    entries = Counter(plan.rows["shard"].to_pylist())
    rows = [
        {"shard": n, "assets": len(assets), "entries": entries[n], "hours": hours[n]}
        for n, assets in shards.items()
    ]
    print_table(rows[:SHOWN])
    if len(shards) > SHOWN:
        print(f"... and {len(shards) - SHOWN} more")
    print(
        f"plan {plan.id}: {facts['shards']} shards, {facts['assets']} assets, "
        f"{facts['hours']:.2f} hours of devices: {path}"
    )
