"""Assets on their way through the stages, a window of them at a time."""

import os
import time
from collections import Counter, deque
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from prefect import Task, get_run_logger
from prefect.futures import PrefectFuture

from flows.context import RunContext, shared_context
from flows.plan import RunPlan
from flows.progress.terminal import Watcher, watcher
from flows.scratch import scratch_id
from sjc_engine.files import is_refusal
from tasks.devices.job import SceneError, scratch_full, scratch_lost, store_failed
from tasks.manifest.resolve import Entry
from tasks.prefect_ui.cancel import watch_cancels
from tasks.records.attempts import FAILURES, asset_attempts, close_interrupted
from tasks.records.documents import asset_manifest
from tasks.stages.asset import Asset
from tasks.stages.evaluate import evaluate_asset
from tasks.stages.extract import extract_asset
from tasks.stages.optimize import optimize
from tasks.stages.publish import publish_asset, record_failure
from tasks.store.disk import is_full
from tasks.store.interface import StoreError, TakesNoMore
from tasks.store.layout import attempt_number
from tasks.store.leases import Leases, leases
from tasks.tables.write import TableWriter, record_attempt

AHEAD = 2  # assets that wait for a device, so that none is ever idle
BEHIND = max(4, (os.cpu_count() or 1) // 4)  # past their optimisation, worked at together
# Between two looks at an asset that another run works on: at first, and after minutes, since many
# runs would ask for many assets.
ASK_SECONDS, SLOW_ASK_SECONDS = 2.0, 30.0
# An asset's way: the task of each stage, and the stage after it.
STAGES: dict[str, Task[..., Any]] = {
    "optimize": optimize,
    "extract": extract_asset,
    "evaluate": evaluate_asset,
    "publish": publish_asset,
}
NEXT = dict(pairwise(STAGES))

Outcomes = dict[str, str]  # asset id -> ok, reused, interrupted or one of FAILURES


class RunCancelled(Exception):
    """Someone has cancelled the flow run; its unfinished assets are left as they are."""


def run_pipeline(plan: RunPlan, asset_ids: list[str], run_id: str) -> Outcomes:
    """Moves assets through the stages, a window of them at a time, until all are through.

    An asset's next stage is submitted when the one before has ended, so that a thread waits for
    a device but never for another task. Fields wait in the scratch folder for the stages after:
    scenes that end together, as those of one device do, leave their places to the next at once. An
    asset that fails becomes a row; the others continue. Assets that other runs work on come last:
    they are reused once those have made them. Raises RunCancelled.
    """
    if not asset_ids:
        return {}
    scratch = Path(plan.settings.scratch).resolve()
    with (
        leases(plan.store, scratch_id(scratch)) as held,
        shared_context() as shared,
        TableWriter(plan.store) as rows,
    ):
        assets = [_asset(plan, plan.assets[k], scratch, rows) for k in asset_ids]
        pipeline = _Pipeline(plan, assets, run_id, held, shared)
        with watch_cancels(pipeline.cancel, pipeline.stop):
            return pipeline.run()


class _Pipeline:
    """The assets of one call of `run_pipeline`. All but `cancel` and `stop` run in one thread."""

    def __init__(
        self, plan: RunPlan, assets: list[Asset], run_id: str, held: Leases, shared: RunContext
    ) -> None:
        self._plan, self._run_id, self._held = plan, run_id, held
        self._pool, self._judges = shared.pool, shared.judges
        self._watch, self._log = watcher(), get_run_logger()
        self._assets = {asset.name: asset for asset in assets}
        self._waiting = deque(assets)
        # By the names of assets of other runs: since when, and when to ask again
        self._later: dict[str, tuple[float, float]] = {}
        self._fields = Counter(asset.spec.field_id for asset in assets)  # unfinished assets of each
        self._optimizing: set[str] = set()  # field ids: two assets of one field take turns
        self._made: deque[Asset] = deque()  # their fields are there, and no task has them
        self._behind = 0  # those past their optimisation that a task has
        self._ended: SimpleQueue[tuple[Asset, str, PrefectFuture[Any]] | None] = SimpleQueue()
        self._outcomes = Outcomes()

    def cancel(self, task: str) -> None:
        """Ends one asset, by the name of one of its tasks, such as `optimize-duck`."""
        asset = self._assets.get(task.partition("-")[2])
        if asset is not None:
            asset.cancelled.set()

    def stop(self) -> None:
        """Makes `run` raise RunCancelled."""
        self._ended.put(None)

    def run(self) -> Outcomes:
        """Until every asset is through; returns their outcomes. Raises RunCancelled."""
        self._fill()
        while self._waiting or self._optimizing or self._made or self._behind:
            with suppress(Empty):  # then it is time to ask for assets of other runs again
                ended = self._ended.get(timeout=ASK_SECONDS if self._waiting else None)
                if ended is None:
                    raise RunCancelled("cancelled; the next run goes on")
                self._after(*ended)
            self._fill()
        return self._outcomes

    def _fill(self) -> None:
        """Begins with as many assets, and ends as many, as there is room for."""
        while self._made and self._behind < BEHIND:
            self._behind += 1
            self._submit(self._made.popleft(), "extract")
        while self._has_room() and (asset := self._take()):
            if outcome := self._outcome_elsewhere(asset):
                self._land(asset, outcome)
            else:
                self._optimizing.add(asset.spec.field_id)
                self._submit(asset, "optimize")

    def _has_room(self) -> bool:
        """Whether another asset may begin: not when devices or the stages after have a queue."""
        slots = self._pool.slots + AHEAD
        return len(self._optimizing) < slots and len(self._made) < slots

    def _take(self) -> Asset | None:
        """The first asset that no other run works on, and whose field is not being made here."""
        for asset in self._waiting:
            moment = time.monotonic()
            if asset.spec.field_id in self._optimizing:
                continue
            since, again = self._later.get(asset.name, (moment, moment))
            if again > moment:
                continue
            if self._held.take(asset.id):
                self._waiting.remove(asset)
                if asset.name in self._later:  # of a run that has ended, or died: close for it
                    for attempt, manifest in close_interrupted(asset.store, [asset.id]):
                        record_attempt(asset.store, attempt, manifest)
                return asset
            if asset.name not in self._later:
                self._watch.note(f"{asset.name}: another run works on it")
            pause = min(max((moment - since) / 3, ASK_SECONDS), SLOW_ASK_SECONDS)
            self._later[asset.name] = since, moment + pause
        return None

    def _outcome_elsewhere(self, asset: Asset) -> str | None:
        """How another run has ended the asset since this one began; None if there is work to do."""
        if asset_manifest(asset.store, asset.id) is not None:
            return "reused"
        settled = self._plan.settled.get(asset.id, 0)
        later = [
            attempt
            for attempt in asset_attempts(asset.store, asset.id)
            if attempt_number(attempt["attempt"]) > settled and attempt["ended_at"]
        ]
        for attempt in later:
            # Once the asset is made no run looks for rows that a dying run could not write.
            record_attempt(asset.store, attempt, {})
        if not later or later[-1]["status"] not in FAILURES:
            return None
        name, status = later[-1]["attempt"], str(later[-1]["status"])
        self._watch.note(f"{asset.name}: another run ended attempt {name} meanwhile as {status}")
        return status

    def _submit(self, asset: Asset, stage: str) -> None:
        """Begins a stage of an asset; `run` hears of its end."""
        self._watch.stage(asset.name, "queue" if stage == "optimize" else stage)
        arguments: dict[str, tuple[Any, ...]] = {
            "optimize": (
                self._run_id,
                self._pool,
                self._plan.settings.timeout,
                _progress_reporter(self._watch, asset.name),
            ),
            "evaluate": (self._judges,),
        }
        future = STAGES[stage].submit(asset, *arguments.get(stage, ()))
        future.add_done_callback(lambda done: self._ended.put((asset, stage, done)))

    def _after(self, asset: Asset, stage: str, future: PrefectFuture[Any]) -> None:
        """What follows the end of a task."""
        future.wait()  # it has ended: this only makes its state the final one
        if stage == "optimize":
            self._optimizing.remove(asset.spec.field_id)
        if not future.state.is_completed() or stage not in NEXT or asset.cancelled.is_set():
            self._behind -= stage != "optimize"
            self._land(asset, _outcome(asset, stage, future))
        elif stage == "optimize":
            self._made.append(asset)
        else:
            self._submit(asset, NEXT[stage])

    def _land(self, asset: Asset, outcome: str) -> None:
        """An asset is through."""
        field = asset.spec.field_id
        self._fields[field] -= 1
        if outcome != "interrupted":  # a retry begins with the field, or its checkpoint
            asset.clear(field=outcome in ("ok", "reused") and not self._fields[field])
        self._held.free(asset.id)
        self._outcomes[asset.id] = outcome
        self._watch.finished(asset.name, outcome, asset.seconds)
        self._log.info("%s: %s after %.0f s", asset.name, outcome, asset.seconds)


def _outcome(asset: Asset, stage: str, future: PrefectFuture[Any]) -> str:
    """The outcome of an asset whose last task has ended; a failure becomes its row here."""
    result = future.result(raise_on_failure=False)
    if future.state.is_completed() and stage not in NEXT:
        return "ok" if result["outcome"] == "computed" else "reused"
    if asset.cancelled.is_set():
        result = SceneError("cancelled", "Cancelled", "cancelled on Prefect's pages")
    elif future.state.is_cancelled():
        return "interrupted"  # a later run closes the attempt
    if not asset.attempt or isinstance(result, TakesNoMore):
        raise result  # the store is gone, or full: nothing that follows could be kept
    if is_refusal(result) or is_full(asset.folder.parents[1]):  # the scratch folder's disk
        result = scratch_full(result)
    elif isinstance(result, StoreError):
        result = store_failed(result)
    elif problem := asset.lost(result):
        result = scratch_lost(problem)
    return record_failure(asset, result)


def _asset(plan: RunPlan, entry: Entry, scratch: Path, rows: TableWriter) -> Asset:
    """A manifest's entry as the stages know it: where its files are and what it may reuse."""
    return Asset(
        entry.row_id,
        entry.spec,
        plan.store,
        scratch,
        rows,
        coverage=entry.prior_coverage,
        donor=plan.reusable_fields.get(entry.spec.field_id),
        image=entry.image_path.resolve() if entry.image_path else None,
        checkpoint_to_store=plan.settings.checkpoint_to_store,
    )


def _progress_reporter(watch: Watcher, name: str) -> Any:
    """What an engine calls after a step: passes the progress of an asset on to the watcher."""

    def report(event: dict[str, Any]) -> None:
        watch.progress(name, event["step"], event["steps"], event["loss"])
        if event.get("unsaved"):
            watch.once(f"warning: no checkpoints, assets go on without: {event['unsaved']}")

    return report
