"""`sjc plan`: a manifest's assets cut into shards, by the time that they should take."""

import json
import os
import sys
from collections import Counter
from pathlib import Path

from flows.commands.output import print_table
from flows.errors import UsageError
from flows.plan import Cost, known_costs, read_entries, revision, select
from flows.settings import Settings
from sjc_engine.checkpoint import write_atomically
from tasks.disk import disk_advice
from tasks.manifest import Entry
from tasks.shard_plan import PlanError, ShardPlan, make_plan_file, read_plan
from tasks.store import open_store

SHARD_SECONDS = 5400.0  # 1.5 hours: little is lost with a machine, and little waits for it
# Until the store knows better: a step of SJC's size on one large GPU, and all that follows it.
DEFAULT_COST = Cost(step=0.2, rest=15.0)
SHOWN = 20  # shards that are printed
PARTS = ("prior", "recipe", "overrides", "limit", "where")  # settings that a plan follows from


def make_plan_of(settings: Settings, shard_seconds: float) -> tuple[ShardPlan, list[str]]:
    """The plan of a manifest, and warnings. Raises ManifestError, UsageError, StoreError."""
    if not shard_seconds > 0:
        raise UsageError("--shard-seconds: use a number of seconds above 0")
    settings.check()
    manifest, resolved = read_entries(settings, revision)
    entries = select(resolved.entries, settings.where, settings.limit)
    seconds, guessed = expected_seconds(entries, settings.store)
    warnings = list(resolved.warnings)
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
        settings={key: getattr(settings, key) for key in PARTS} | {"shard_seconds": shard_seconds},
    )
    return plan, warnings


def expected_seconds(
    entries: list[Entry], store: str
) -> tuple[dict[str, float], list[tuple[str, str]]]:
    """The seconds that each asset should take, and the priors and recipes where that is a guess.

    A field is optimised once: the later assets that share it cost what comes after.
    """
    known = {}
    if "://" in store or Path(store).exists():
        known = known_costs(open_store(store, writable=False))
    fields: set[str] = set()
    seconds: dict[str, float] = {}
    guessed: dict[tuple[str, str], None] = {}
    for entry in entries:
        asset_id, kind = entry.spec.asset_id, (entry.spec.prior, entry.spec.recipe.name)
        if asset_id in seconds:
            continue
        if kind not in known:
            guessed[kind] = None
        cost = known.get(kind, DEFAULT_COST)
        field_id = entry.spec.field_id
        seconds[asset_id] = round(cost.rest if field_id in fields else cost.seconds(entry), 3)
        fields.add(field_id)
    return seconds, list(guessed)


def plan(
    settings: Settings, out: Path, shard_seconds: float, *, quiet: bool, as_json: bool
) -> None:
    """Writes the plan and prints what is in it; an equal one that is there stays."""
    if not out.parent.is_dir() or out.is_dir():
        raise UsageError(f"-o {out}: name a file in a folder that exists")
    made, warnings = make_plan_of(settings, shard_seconds)
    if not quiet:
        for warning in warnings:
            print(f"warning: {warning}", file=sys.stderr)
    try:
        if not out.exists():
            write_atomically(out, made.data)
        elif out.read_bytes() != made.data:
            raise UsageError(
                f"-o {out}: is another plan, or no plan; plans are never changed, so name another "
                "file (the manifest, an option, or the times that the store knows differ)"
            )
    except OSError as error:
        raise UsageError(f"-o {out}: {disk_advice(error, '-o')}") from error
    show_plan(made, out, as_json=as_json)


def show_plan(plan: ShardPlan, path: Path, *, as_json: bool) -> None:
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
        {"shard": n, "assets": len(shards[n]), "entries": entries[n], "hours": hours[n]}
        for n in list(shards)[:SHOWN]
    ]
    print_table({name: name for name in rows[0]}, rows)
    if len(shards) > SHOWN:
        print(f"... and {len(shards) - SHOWN} more")
    print(
        f"plan {plan.id}: {facts['shards']} shards, {facts['assets']} assets, "
        f"{facts['hours']:.2f} hours of devices: {path}"
    )


def read_plan_file(path: Path) -> ShardPlan:
    """The plan of a file; UsageError when there is none."""
    try:
        return read_plan(path.read_bytes(), os.fspath(path))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; make a plan with `sjc plan`") from error
    except PlanError as error:
        raise UsageError(str(error)) from error
