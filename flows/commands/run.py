"""`sjc run` around the flow: the plan first, the server, the live lines, the end."""

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from flows.commands.output import print_table
from flows.context import starting
from flows.errors import FAILED, STORE
from flows.plan import Plan, make_plan, seconds_expected
from flows.prefect_server import environment, server
from flows.prefect_server.shutdown import own_process
from flows.progress.results import RESULT_COLUMNS, results
from flows.progress.terminal import terminal_watcher, watched_by
from flows.scratch import can_hold_files, in_use
from flows.settings import Settings
from tasks.report import report_key
from tasks.store import StoreError

PREVIEWS = 24  # paths that are printed; the picture holds as many


def dry_run(settings: Settings, *, as_json: bool) -> None:
    """Prints what a run would do; nothing is made, not even the store."""
    with tempfile.TemporaryDirectory() as empty:
        fresh = "://" not in settings.store and not Path(settings.store).exists()
        if fresh and not can_hold_files(Path(settings.store)):
            raise StoreError(
                f"Cannot use {settings.store}: it cannot be made; choose another --store"
            )
        plan = make_plan(replace(settings, store=empty) if fresh else settings, writable=False)
        seconds = seconds_expected(plan)
    if as_json:
        states = {entry.row_id: plan.states[entry.spec.asset_id] for entry in plan.entries}
        facts = {"counts": plan.counts(), "entries": states, "seconds_expected": seconds}
        print(json.dumps({**facts, "warnings": plan.warnings, "devices": plan.devices}, indent=1))
        return
    for warning in plan.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    rows = [
        {
            "id": entry.row_id,
            "plan": "duplicate" if entry.duplicate_of is not None else _intent(plan, asset_id),
            "asset": asset_id,
            "prompt": entry.spec.prompt,
        }
        for entry in plan.entries
        for asset_id in (entry.spec.asset_id,)
    ]
    print_table({name: name for name in rows[0]}, rows)
    counts = ", ".join(f"{number} {state}" for state, number in plan.counts().items() if number)
    print(f"{counts}; devices: {', '.join(plan.devices)}; time: {_duration(seconds)}")


def _intent(plan: Plan, asset_id: str) -> str:
    state = plan.states[asset_id]
    if state == "failed":
        return "try again" if plan.settings.retry_failed else "failed (needs --retry-failed)"
    return {"new": "make", "interrupted": "go on", "finished": "reuse"}[state]


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown, the store has nothing like it yet"
    return f"about {seconds:.0f} s" if seconds < 120 else f"about {seconds / 60:.0f} min"


def run(settings: Settings, *, quiet: bool, as_json: bool) -> int:
    """Runs the flow and prints what came of it; returns the exit code."""
    plan = make_plan(settings)
    if not quiet:
        for warning in plan.warnings:
            print(f"warning: {warning}", file=sys.stderr)
    environment.apply(console_level="CRITICAL")
    connection = server.connect(Path(settings.scratch, "logs", "prefect-server.log"))
    with starting(plan, warm=not in_use(Path(settings.scratch))):
        # Seconds of imports, while the server starts and the engines load their prior
        from flows.commands.flow_result import check_end
        from flows.generate import generate

        with (
            connection.at_hand(),
            own_process(),
            terminal_watcher(quiet=quiet) as watch,
            watched_by(watch),
        ):
            state = generate(**settings.to_json(), return_state=True)
    check_end(state)
    return report(plan, watch.run_id, as_json=as_json)


def report(plan: Plan, run_id: str, *, as_json: bool) -> int:
    """Prints a run's table, where its files are, and the picture to open; the exit code."""
    rows = results(plan.store, run_id)
    failed = [row for row in rows if row["status"] != "ok"]
    keys = {"report": report_key(run_id), "picture": f"runs/{run_id}.png"}
    there = {name: plan.store.exists(key) for name, key in keys.items()}
    places = {
        "store": plan.store.url,
        "tables": plan.store.uri("tables"),
        **{name: plan.store.uri(key) if there[name] else None for name, key in keys.items()},
    }
    if as_json:
        print(json.dumps({"run_id": run_id, **places, "assets": rows}, indent=1))
    else:
        print_table({k: v for k, v in RESULT_COLUMNS.items() if k != "preview"}, rows)
        for row in failed:
            print(f"{row['asset']}: {row['error']}")
        for row in rows[:PREVIEWS]:
            if row["preview"]:
                print(f"{row['asset']}: {row['preview']}")
        for name, place in places.items():
            if place is not None:
                print(f"{name + ':':9}{place}")
    if not there["report"]:
        print(f"no report was written; `sjc report {run_id}` makes one", file=sys.stderr)
    if not there["report"] or any(row["error_type"] == "StoreError" for row in failed):
        return STORE
    return FAILED if failed else 0
