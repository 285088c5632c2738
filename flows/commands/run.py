"""`sjc run`: the plan first, the server, the live lines, the end; of a manifest, or of a shard."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands import options
from flows.commands.app import command
from flows.commands.output import print_places, print_table, print_warnings
from flows.errors import FAILED, STORE, UsageError, raise_error
from flows.progress.results import RESULT_COLUMNS, results
from flows.settings import SHARD_OPTIONS, Settings

if TYPE_CHECKING:
    from flows.plan import RunPlan
    from tasks.manifest.resolve import Entry
    from tasks.manifest.shard_plan import ShardPlan

PREVIEWS = 24  # paths that are printed; the picture holds as many
# What clusters call the place of a task among those that differ in nothing else
TASK_NUMBERS = ["SLURM_ARRAY_TASK_ID", "AWS_BATCH_JOB_ARRAY_INDEX", "JOB_COMPLETION_INDEX"]
FIXED = {"manifest": "the manifest", "set_": "--set"}  # by a plan, and how users write it
FIXED |= {name: f"--{name}" for name in ("prior", "recipe", "dtype", "limit", "where")}


@command(
    "sjc run manifests/paper.csv",
    "sjc run manifests/toybox.csv --recipe draft --limit 2      a quick look",
    "sjc run prompts.csv --dry-run                              what it would do",
    "sjc run prompts.csv --devices cuda:0,cuda:1 --store s3://bucket/first",
    "sjc run prompts.csv --retry-failed --set steps=2000",
    "sjc run --plan plan.parquet --shard 3 --store s3://bucket/first",
    interrupted="run the same command again to continue",
)
def run(
    context: typer.Context,
    manifest: options.ManifestOrPlan = None,
    plan: Annotated[
        Path | None, typer.Option("--plan", help="A plan of `sjc plan`, of which to run one shard.")
    ] = None,
    shard: Annotated[
        int | None, typer.Option(min=0, envvar=TASK_NUMBERS, help="Which one, from 0.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and end.")] = False,
    quiet: options.Quiet = False,
    json_: options.Json = False,
    store: options.Store = "./store",
    prior: options.Prior = None,
    recipe: options.Recipe = None,
    set_: options.Set = None,
    dtype: options.Dtype = None,
    limit: options.Limit = None,
    where: options.Where = None,
    scenes_per_device: options.Scenes = None,
    devices: options.Devices = None,
    scratch: options.Scratch = ".sjc",
    timeout: options.Timeout = None,
    retry_failed: options.Retry = False,
    price_per_hour: options.Price = None,
    gallery: options.Gallery = None,
    checkpoint_to_store: options.Checkpoint = False,
    compiled: options.Compiled = False,
    allow_pickle: options.AllowPickle = False,
    fast_launch: options.FastLaunch = False,
) -> None:
    """Make the assets of a manifest: reuse the finished ones, go on with the interrupted ones.

    With --plan, those of one shard, without a work pool: what a task of a SLURM array runs.
    """
    made = None
    if plan is None:
        settings = manifest_settings(context.params)
    else:
        settings, made = shard_settings(context.params)
    if dry_run:
        print_plan(settings, as_json=json_)
        return
    if made is not None:
        keep_plan(made, settings)
    raise typer.Exit(make_assets(settings, quiet=quiet, as_json=json_))


def manifest_settings(given: Mapping[str, Any]) -> Settings:
    """The options of a run of a manifest; a cluster's number of the task means nothing to it."""
    if given["manifest"] is None:
        raise UsageError("name a manifest, or a plan and its shard: --plan FILE --shard K")
    return options.run_settings({**given, "plan": None, "shard": None})


def shard_settings(given: Mapping[str, Any]) -> tuple[Settings, ShardPlan]:
    """The options of a shard, and its plan; its scratch folder lies in that of the run."""
    from flows.scratch import shard_scratch

    for name, written in FIXED.items():
        if given[name]:
            raise UsageError(f"--plan: has fixed {written}; leave that out")
    if given["shard"] is None:
        raise UsageError(f"--plan: name its shard, by --shard or {TASK_NUMBERS[0]}")
    made = read_shard_plan(given["plan"])
    made.entries(given["shard"], Path())  # PlanError if there is no such shard
    scratch = shard_scratch(given["scratch"], made.id, given["shard"])
    chosen = {"manifest": made.id, "plan": made.id, "scratch": str(scratch)}
    return options.run_settings({**given, **chosen}), made


def read_shard_plan(path: Path) -> ShardPlan:
    """The plan in a file. Raises UsageError."""
    from tasks.manifest.shard_plan import read_plan

    try:
        return read_plan(path.read_bytes(), str(path))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; make a plan with `sjc plan`") from error


def keep_plan(plan: ShardPlan, settings: Settings) -> None:
    """Puts a plan into the store, which is made if it is missing: once all else is found right."""
    from flows.plan import check_devices
    from tasks.manifest import shard_plan
    from tasks.records.documents import check_usable
    from tasks.store import open_store

    settings.check()
    if settings.devices is not None:
        check_devices(settings.devices)
    check_usable(opened := open_store(settings.store))
    shard_plan.keep_plan(opened, plan)


def make_assets(settings: Settings, *, quiet: bool, as_json: bool) -> int:
    """Runs the flow, shows how far it is, and prints the results; the exit code."""
    from flows.context import start_devices, surrounded_by, watching
    from flows.plan import make_plan
    from flows.prefect_server import environment, server
    from flows.prefect_server.shutdown import exit_when_interrupted
    from flows.scratch import in_use

    plan, scratch = make_plan(settings), Path(settings.scratch)
    if not quiet:
        print_warnings(plan.warnings)
    environment.apply(console_level="CRITICAL")
    if not plan.todo and server.find() is None:
        return print_results(plan, record_reuse(plan, quiet=quiet), as_json=as_json)
    if settings.plan is not None:
        environment.use_local_home()
    connection = server.connect(scratch / "logs" / "prefect-server.log")
    with start_devices(plan, warm=not in_use(scratch), quiet=quiet):
        # Seconds of imports, while the server starts and the engines load their prior
        flow = flow_of(settings)
        with (
            watching(connection, quiet=quiet) as watch,
            exit_when_interrupted() as shutdown,
            surrounded_by(shutdown=shutdown, store=plan.store),
        ):
            state = flow(return_state=True)
    raise_error(state)
    return print_results(plan, watch.run_id, as_json=as_json)


def flow_of(settings: Settings) -> Callable[..., Any]:
    """The flow of these settings."""
    if settings.plan is None:
        from flows.generate import generate

        return partial(generate, **settings.to_json())
    from flows.shard import generate_shard

    names = ("plan", "shard", "store", "devices", "scenes_per_device", *SHARD_OPTIONS)
    given = {name: getattr(settings, name) for name in names}
    # It goes down again to the folder of the shard.
    return partial(generate_shard, **given, scratch=str(Path(settings.scratch).parents[1]))


def record_reuse(plan: RunPlan, *, quiet: bool) -> str:
    """A run that has nothing to make: in the store it is like any other. Returns its id."""
    from flows import run_record
    from flows.progress.terminal import terminal_watcher

    with terminal_watcher(quiet=quiet) as watch:
        watch.note("nothing to make: no Prefect server is started, and its pages miss this run")
        run_record.record_reuse(plan, watch)
    return watch.run_id


def print_plan(settings: Settings, *, as_json: bool) -> None:
    """Prints what a run would do; nothing is made, not even the store."""
    import tempfile

    from flows.plan import make_plan
    from flows.progress.estimate import seconds_expected
    from flows.scratch import can_hold_files
    from tasks.pages.html import duration
    from tasks.store.interface import StoreError

    with tempfile.TemporaryDirectory() as empty:
        fresh = "://" not in settings.store and not Path(settings.store).exists()
        if fresh and not can_hold_files(Path(settings.store)):
            problem = f"Cannot use {settings.store}: it cannot be made"
            raise StoreError(problem, "choose another --store")
        plan = make_plan(replace(settings, store=empty) if fresh else settings, writable=False)
        seconds = seconds_expected(plan)
    if as_json:
        states = {entry.row_id: plan.states[entry.spec.asset_id] for entry in plan.entries}
        facts = {"counts": plan.counts(), "entries": states, "seconds_expected": seconds}
        print(json.dumps({**facts, "warnings": plan.warnings, "devices": plan.devices}, indent=1))
        return
    print_warnings(plan.warnings)
    print_table(
        [
            {
                "id": entry.row_id,
                "plan": _intent(plan, entry),
                "asset": entry.spec.asset_id,
                "prompt": entry.spec.prompt,
            }
            for entry in plan.entries
        ]
    )
    counts = ", ".join(f"{number} {state}" for state, number in plan.counts().items() if number)
    unknown = "unknown, the store has nothing like it yet"
    time = unknown if seconds is None else f"about {duration(seconds)}"
    print(f"{counts}; devices: {', '.join(plan.devices)}; time: {time}")


def _intent(plan: RunPlan, entry: Entry) -> str:
    """What the run will do with an entry, in the words of the plan's table."""
    from tasks.store.layout import tombstone_key

    state = "duplicate" if entry.duplicate_of is not None else plan.states[entry.spec.asset_id]
    if state == "failed":
        return "try again" if plan.settings.retry_failed else "failed (needs --retry-failed)"
    if state == "pruned":
        return f"skip, pruned ({tombstone_key(entry.spec.asset_id)})"
    return {"new": "make", "interrupted": "resume", "finished": "reuse"}.get(state, state)


def print_results(plan: RunPlan, run_id: str, *, as_json: bool) -> int:
    """Prints a run's table, where its files are, and the picture to open; the exit code."""
    from tasks.store.layout import report_key

    rows = results(plan.store, run_id)
    failed = [row for row in rows if row["status"] not in ("ok", "pruned")]
    places: dict[str, str | None] = {"store": plan.store.url, "tables": plan.store.uri("tables")}
    for name, key in (("report", report_key(run_id)), ("picture", f"runs/{run_id}.png")):
        places[name] = plan.store.uri(key) if plan.store.exists(key) else None
    if as_json:
        print(json.dumps({"run_id": run_id, **places, "assets": rows}, indent=1))
    else:
        print_table(rows, {k: v for k, v in RESULT_COLUMNS.items() if k != "preview"})
        for row in failed:
            print(f"{row['asset']}: {row['error']}")
        for row in rows[:PREVIEWS]:
            if row["preview"]:
                print(f"{row['asset']}: {row['preview']}")
        print_places(places)
    if places["report"] is None:
        print(f"no report was written; `sjc report {run_id}` makes one", file=sys.stderr)
    if places["report"] is None or any(row["error_type"] == "StoreError" for row in failed):
        return STORE
    return FAILED if failed else 0
