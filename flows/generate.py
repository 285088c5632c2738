"""The main flow: every asset of a manifest through optimize, extract, evaluate and publish."""

import os
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, runtime
from prefect.states import Cancelled, State

from flows.context import RunContext, run_context, surroundings
from flows.pipeline import Outcomes, RunCancelled, run_pipeline
from flows.plan import RunPlan, asset_states, find_related_assets, make_plan
from flows.prefect_server.shutdown import brief_shutdown
from flows.progress.results import final_state, results
from flows.progress.summary_artifact import PrefectSummary, manifest_name
from flows.progress.terminal import Watcher
from flows.scratch import scratch_id, sole_user
from flows.settings import Settings, recorded_command
from tasks.pages.report.contents import write_report
from tasks.pages.run_sheet import write_sheet
from tasks.prefect_ui.artifacts import Board
from tasks.records.attempts import close_interrupted, settled_attempts
from tasks.records.runs import finish_run, new_run_id, start_run
from tasks.store.interface import StoreError
from tasks.store.leases import leases
from tasks.tables.write import (
    record_attempts,
    record_run,
    record_unended_runs,
    unrecorded_attempts,
)

PART = 300  # assets of one flow run: Prefect's database is comfortable below 2,000 task runs


def _run_name() -> str:
    """Until the plan is there, and `run_name` can say more."""
    return manifest_name(runtime.flow_run.parameters["manifest"])


@flow(name="generate", flow_run_name=_run_name)
def generate(
    manifest: str,
    store: str = "./store",
    prior: str | None = None,
    recipe: str | None = None,
    overrides: dict[str, Any] | None = None,
    limit: int | None = None,
    where: str | None = None,
    devices: list[str] | None = None,
    scenes_per_device: int | None = None,
    scratch: str = ".sjc",
    retry_failed: bool = False,
    timeout: float | None = None,
    price_per_hour: float | None = None,
    gallery: str | None = None,
    checkpoint_to_store: bool = False,
    compiled: bool = False,
    allow_pickle: bool = False,
) -> State[Any]:
    """Turns the prompts of a manifest into assets in a store.

    Finished assets are reused, interrupted ones resume from their checkpoints, and failed ones
    are tried again with `retry_failed`. The parameters are those of `flows.settings.Settings`:
    devices: such as ["cpu"] or ["cuda:0", "cuda:1"], by default every GPU. scenes_per_device:
    stepped together; by default as many as memory allows. scratch: may name environment variables
    of the worker, as in .sjc/gpu$CUDA_VISIBLE_DEVICES. timeout: seconds of optimisation per asset.
    price_per_hour: of one device. gallery: folder or address of the store's gallery, to link to.
    checkpoint_to_store: so that another machine can resume. compiled: by torch.compile.
    allow_pickle: reads .bin weights, by torch's restricted unpickler.
    """
    # Every parameter is the setting of its name.
    settings = Settings(
        **locals() | {"overrides": overrides or {}, "scratch": os.path.expandvars(scratch)}
    )
    plan, around, log = make_plan(settings), surroundings(), get_run_logger()
    for warning in plan.warnings:
        log.warning(warning)

    def wait() -> None:
        text = (
            f"another run uses {settings.scratch}; waiting for it"
            " (--scratch FOLDER would work beside it)"
        )
        around.watcher.note(text)
        log.info(text)

    with brief_shutdown(around.shutdown), sole_user(Path(settings.scratch), wait) as waited:
        if waited:  # the other run has made assets meanwhile
            plan = make_plan(settings)
        return run_on_devices(plan)


def run_on_devices(plan: RunPlan) -> State[Any]:
    """Runs a plan on this machine's devices, and shows it on Prefect's pages."""
    with Board() as board, run_context(plan, board) as context:
        return run_plan(context, plan)


def run_plan(context: RunContext, plan: RunPlan) -> State[Any]:
    """Everything that a run writes, from its first row to its final state."""
    watch, log = context.watcher, get_run_logger()
    plan = replace(plan, settled=close_attempts(plan, watch))
    record_unended_runs(plan.store)
    run = start_run(
        plan.store,
        new_run_id(),
        plan.manifest.name,
        plan.manifest.sha256,
        plan.entries,
        plan.settings.to_json(),
        str(runtime.flow_run.id),
    )
    record_run(plan.store, run)
    log.info("run %s: %s", run["run_id"], ", ".join(f"{n} {s}" for s, n in plan.counts().items()))
    todo = list(plan.todo)
    work = {entry.row_id: entry.spec.recipe.optimize.steps for entry in plan.todo.values()}
    watch.begun(run["run_id"], len(plan.assets), work)
    summary = PrefectSummary(plan, context.board, watch)
    outcomes: Outcomes = {
        k: "reused" if state == "finished" else "failed"
        for k, state in plan.states.items()
        if k not in plan.todo
    }
    for asset_id, outcome in outcomes.items():
        watch.finished(plan.assets[asset_id].row_id, outcome, 0.0)
    complete = False
    try:
        if len(todo) <= PART:
            outcomes |= run_pipeline(context, plan, todo, run["run_id"])
        else:
            generate_part = _part_flow(context, plan)
            for start in range(0, len(todo), PART):
                part = todo[start : start + PART]
                outcomes |= generate_part(plan.manifest.name, part, run["run_id"])
        complete = True
    except RunCancelled as error:
        return Cancelled(message=str(error))
    finally:
        # A run that is ended from outside has finished some assets all the same.
        unknown = asset_states(plan.store, [k for k in todo if k not in outcomes])
        ended = {"finished": "ok", "failed": "failed"}
        outcomes |= {k: ended[state] for k, state in unknown.items() if state in ended}
        run = finish_run(plan.store, run, entry_outcomes(plan, outcomes))
        record_run(plan.store, run)
        if not complete:  # `conclude` is not reached
            with suppress(StoreError):  # the error that ended the run comes first
                write_report(plan.store, run["run_id"], recorded_command)
    state = conclude(plan, run, outcomes, watch)
    summary.ended(results(plan.store, run["run_id"]))
    return state


def _part_flow(context: RunContext, plan: RunPlan) -> Callable[[str, list[str], str], Outcomes]:
    """The flow of a slice of a large manifest, whose parameters are there to be seen."""
    shutdown = surroundings().shutdown

    def name() -> str:
        parameters = runtime.flow_run.parameters
        manifest, assets = manifest_name(parameters["manifest"]), len(parameters["asset_ids"])
        return f"{manifest}: {assets} assets of run {parameters['run_id']}"

    @flow(name="generate-part", flow_run_name=name)
    def generate_part(manifest: str, asset_ids: list[str], run_id: str) -> Outcomes:
        # What the parts before this one have made, too.
        fields, _ = find_related_assets(plan.store, [plan.assets[k].spec for k in asset_ids])
        with brief_shutdown(shutdown, part=True):
            part = replace(plan, reusable_fields=fields)
            return run_pipeline(context, part, asset_ids, run_id)

    return generate_part


def close_attempts(plan: RunPlan, watch: Watcher) -> dict[str, int]:
    """Ends attempts whose process died, and writes the rows that it could not write.

    Returns the last attempt of each unfinished asset that has ended by now, and has its rows.
    """
    log = get_run_logger()

    def warn(line: str) -> None:  # from any thread
        watch.note(line)
        log.warning(line)

    finished = [k for k, state in plan.states.items() if state == "finished"]
    unfinished = plan.states.keys() - finished
    with leases(plan.store, scratch_id(Path(plan.settings.scratch))) as held:
        closed = close_interrupted(plan.store, plan.states, held.take, warn)
        settled = settled_attempts(plan.store, unfinished)  # before the look for their rows
        unrecorded = unrecorded_attempts(plan.store, finished, unfinished)
        record_attempts(plan.store, [*unrecorded, *closed])
    return settled


def entry_outcomes(plan: RunPlan, outcomes: Outcomes) -> dict[str, str]:
    """The outcome of each row in table `entries`; rows of interrupted assets have none."""
    names = {"ok": "computed", "reused": "reused"}
    first = {entry.row_id for entry in plan.assets.values()}
    recorded = {}
    for entry in plan.entries:
        outcome = outcomes.get(entry.spec.asset_id, "interrupted")
        if outcome != "interrupted":
            own = names.get(outcome, "failed")
            recorded[entry.row_id] = own if entry.row_id in first else "duplicate"
    return recorded


def conclude(plan: RunPlan, run: dict[str, Any], outcomes: Outcomes, watch: Watcher) -> State[Any]:
    """The picture of all previews, the report, and the flow's final state."""
    store, run_id = plan.store, run["run_id"]
    counts = Counter(outcomes.values())
    good = [k for k in plan.assets if outcomes.get(k) in ("ok", "reused")]
    try:
        write_sheet(store, run_id, good)
        write_report(store, run_id, recorded_command)
    except StoreError as error:  # all assets are made; `sjc report` can be run again
        watch.problem(f"no report: {error}")
        get_run_logger().error("no report: %s", error)
    ordered = {outcome: counts[outcome] for outcome in ("ok", "reused", *sorted(counts))}
    return final_state(ordered, len(good), {"run_id": run_id, "counts": dict(counts)})
