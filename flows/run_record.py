"""What a run leaves in the store beside its assets: its document, its rows, its report.

Knows nothing of Prefect, so that a run with nothing to make needs no server.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from flows.plan import RunPlan, asset_states
from flows.progress.terminal import Watcher
from flows.scratch import scratch_id
from flows.settings import recorded_command
from tasks.pages.report.contents import write_report
from tasks.pages.run_sheet import write_sheet
from tasks.records.attempts import close_interrupted, settled_attempts
from tasks.records.documents import Document
from tasks.records.runs import finish_run, new_run_id, start_run
from tasks.store.interface import StoreError
from tasks.store.leases import leases
from tasks.tables.write import record_attempts, record_run, record_unended_runs, row_finder

if TYPE_CHECKING:
    Log = logging.Logger | logging.LoggerAdapter[logging.Logger]

Outcomes = dict[str, str]  # asset id -> ok, reused, pruned, interrupted or one of FAILURES


def record_reuse(plan: RunPlan, watch: Watcher) -> None:
    """The whole of a run that makes nothing, since its assets have ended before."""
    log = logging.getLogger(__name__)
    with recorded(plan, watch, log) as (_, run, outcomes):
        pass
    write_pages(plan, run["run_id"], outcomes, watch, log)


@contextmanager
def recorded(
    plan: RunPlan, watch: Watcher, log: Log, flow_run_id: str | None = None
) -> Iterator[tuple[RunPlan, Document, Outcomes]]:
    """The plan, with what has been settled by now, the run's document, and the known outcomes.

    Those of the assets that are made within are to be added. However it ends, the store then has
    the run's end and its rows; if it does not come to its end, the report too.
    """
    settled, left = close_attempts(plan, plan.states, watch, log)
    plan = replace(plan, settled=settled)
    record_unended_runs(plan.store)
    run = start_run(
        plan.store,
        new_run_id(),
        plan.manifest.name,
        plan.manifest.sha256,
        plan.entries,
        plan.settings.to_json(),
        flow_run_id,
    )
    record_run(plan.store, run)
    log.info("run %s: %s", run["run_id"], ", ".join(f"{n} {s}" for s, n in plan.counts().items()))
    work = {entry.row_id: entry.spec.recipe.optimize.steps for entry in plan.todo.values()}
    watch.begun(run["run_id"], len(plan.assets), work)
    outcomes: Outcomes = {
        k: {"finished": "reused"}.get(state, state)
        for k, state in plan.states.items()
        if k not in plan.todo
    }
    for asset_id, outcome in outcomes.items():
        watch.finished(plan.assets[asset_id].row_id, outcome, 0.0)
    complete = False
    try:
        yield plan, run, outcomes
        complete = True
    finally:
        # A run that is ended from outside has finished some assets all the same.
        unknown = asset_states(plan.store, [k for k in plan.todo if k not in outcomes])
        ended = {"finished": "ok", "failed": "failed"}
        outcomes |= {k: ended[state] for k, state in unknown.items() if state in ended}
        record_run(plan.store, finish_run(plan.store, run, entry_outcomes(plan, outcomes)))
        if not complete:  # `write_pages` is not reached
            with suppress(StoreError):  # the error that ended the run comes first
                write_report(plan.store, run["run_id"], recorded_command)
    if left:  # by now the lease of a run that was killed may have ended
        close_attempts(plan, left, watch, log)


def close_attempts(
    plan: RunPlan, asset_ids: Collection[str], watch: Watcher, log: Log
) -> tuple[dict[str, int], list[str]]:
    """Ends these assets' attempts whose process died, and writes the rows that it could not write.

    Returns the last attempt of each unfinished asset that has ended by now, and the assets with an
    open attempt that another run seems to work on.
    """
    left: list[str] = []

    def warn(line: str) -> None:  # from any thread
        watch.note(line)
        log.warning(line)

    def take(asset_id: str) -> bool:
        ours = held.take(asset_id)
        if not ours:
            left.append(asset_id)
        return ours

    unfinished = [k for k in asset_ids if plan.states[k] != "finished"]
    with leases(plan.store, scratch_id(Path(plan.settings.scratch))) as held:
        has_rows = row_finder(plan.store)
        closed = close_interrupted(plan.store, asset_ids, take, warn, has_rows)
        record_attempts(plan.store, closed)
        return settled_attempts(plan.store, unfinished), left


def entry_outcomes(plan: RunPlan, outcomes: Mapping[str, str]) -> dict[str, str]:
    """The outcome of each row in table `entries`; rows of interrupted assets have none."""
    names = {"ok": "computed", "reused": "reused", "pruned": "pruned"}
    first = {entry.row_id for entry in plan.assets.values()}
    recorded = {}
    for entry in plan.entries:
        outcome = outcomes.get(entry.spec.asset_id, "interrupted")
        if outcome != "interrupted":
            own = names.get(outcome, "failed")
            recorded[entry.row_id] = own if entry.row_id in first else "duplicate"
    return recorded


def write_pages(
    plan: RunPlan, run_id: str, outcomes: Mapping[str, str], watch: Watcher, log: Log
) -> None:
    """The picture of all previews, and the report."""
    good = [k for k in plan.assets if outcomes.get(k) in ("ok", "reused")]
    try:
        write_sheet(plan.store, run_id, good)
        write_report(plan.store, run_id, recorded_command)
    except StoreError as error:  # all assets are made; `sjc report` can be run again
        watch.problem(f"no report: {error}")
        log.error("no report: %s", error)
