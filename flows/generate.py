"""The main flow: every asset of a manifest through optimize, extract, evaluate and publish."""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, runtime
from prefect.states import Cancelled, State

from flows.context import RunContext, run_context, surroundings
from flows.pipeline import RunCancelled, run_pipeline
from flows.plan import RunPlan, find_related_assets, make_plan
from flows.prefect_server.schedule import manifest_name
from flows.prefect_server.shutdown import brief_shutdown
from flows.progress.results import final_state, results
from flows.progress.summary_artifact import PrefectSummary, announced
from flows.progress.time_left import GOOD
from flows.run_record import Outcomes, recorded, write_pages
from flows.scratch import sole_user
from flows.settings import Settings
from tasks.prefect_ui.artifacts import Board

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
    fast_launch: bool = False,
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
    fast_launch: less work for the CPU in each step on a GPU.
    """
    # Every parameter is the setting of its name.
    settings = Settings(
        **locals() | {"overrides": overrides or {}, "scratch": os.path.expandvars(scratch)}
    )
    around, log = surroundings(), get_run_logger()
    plan = make_plan(settings, store=around.store)
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
            plan = make_plan(settings, store=plan.store)
        return run_on_devices(plan)


def run_on_devices(plan: RunPlan) -> State[Any]:
    """Runs a plan on this machine's devices, and shows it on Prefect's pages."""
    with Board() as board, run_context(plan, board) as context, announced(plan, context.watcher):
        return run_plan(context, plan)


def run_plan(context: RunContext, plan: RunPlan) -> State[Any]:
    """Everything that a run writes, from its first row to its final state."""
    watch, log = context.watcher, get_run_logger()
    try:
        with recorded(plan, watch, log, str(runtime.flow_run.id)) as (settled, run, outcomes):
            summary = PrefectSummary(plan, context.board, watch)
            todo = list(plan.todo)
            if len(todo) <= PART:
                outcomes |= run_pipeline(context, settled, todo, run["run_id"])
            else:
                generate_part = _part_flow(context, settled)
                for start in range(0, len(todo), PART):
                    part = todo[start : start + PART]
                    outcomes |= generate_part(plan.manifest.name, part, run["run_id"])
            if retired := context.pool.retired:
                run["retired_devices"] = retired
    except RunCancelled as error:
        return Cancelled(message=str(error))
    run_id, counts = run["run_id"], Counter(outcomes.values())
    write_pages(plan, run_id, outcomes, watch, log)
    ordered = {outcome: counts[outcome] for outcome in (*GOOD, *sorted(counts))}
    good = sum(counts[outcome] for outcome in GOOD)
    state = final_state(ordered, good, {"run_id": run_id, "counts": dict(counts)})
    summary.ended(results(plan.store, run_id))
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
