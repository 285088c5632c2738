"""Assets on their way through the stages, a window of them at a time."""

import os
from collections import Counter, deque
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from prefect import get_run_logger
from prefect.futures import PrefectFuture

from flows.engines import engines
from flows.plan import Plan
from flows.terminal import Watcher, watcher
from tasks.asset import Asset
from tasks.evaluate import evaluate_asset
from tasks.extract import extract_asset
from tasks.manifest import Entry
from tasks.optimize import optimize
from tasks.publish import publish_asset, record_failure

CORES = os.cpu_count() or 1
AHEAD = 2  # assets that wait for a device, so that none is ever idle
BEHIND = max(4, CORES // 4)  # assets past their optimisation that are worked at at the same time
NEXT = {"extract": "evaluate", "evaluate": "publish"}

Outcomes = dict[str, str]  # asset id -> ok, reused, failed, diverged, timeout, interrupted


def produce(plan: Plan, asset_ids: list[str], run_id: str) -> Outcomes:
    """Moves assets through the stages, a window of them at a time, until all are through.

    An asset's next stage is submitted when the one before has ended, so that a thread waits for
    a device but never for another task. Fields wait in the scratch folder for the stages after:
    scenes that end together, as those of one device do, leave their places to the next at once. An
    asset that fails becomes a row; the others go on.
    """
    if not asset_ids:
        return {}
    watch, log, outcomes = watcher(), get_run_logger(), Outcomes()
    scratch = Path(plan.settings.scratch).resolve()
    waiting = deque(_asset(plan, plan.assets[k], scratch) for k in asset_ids)
    fields = Counter(asset.spec.field_id for asset in waiting)  # unfinished assets of each field
    ended: SimpleQueue[tuple[Asset, str, PrefectFuture[Any]]] = SimpleQueue()
    optimizing: set[str] = set()  # field ids: two assets of one field take turns
    made: deque[Asset] = deque()  # their fields are there, and nobody works at them
    behind = 0  # those past their optimisation that somebody works at

    with engines(plan) as shared:
        pool, judges = shared.pool, shared.judges

        def submit(asset: Asset, stage: str) -> None:
            watch.stage(asset.name, "queue" if stage == "optimize" else stage)
            future: PrefectFuture[Any]
            match stage:
                case "optimize":
                    progress = _teller(watch, asset.name)
                    future = optimize.submit(asset, run_id, pool, plan.settings.timeout, progress)
                case "extract":
                    future = extract_asset.submit(asset)
                case "evaluate":
                    future = evaluate_asset.submit(asset, judges)
                case _:
                    future = publish_asset.submit(asset)
            future.add_done_callback(lambda done: ended.put((asset, stage, done)))

        while waiting or optimizing or made or behind:
            while made and behind < BEHIND:
                behind += 1
                submit(made.popleft(), "extract")
            while (
                len(optimizing) < pool.slots + AHEAD
                and len(made) < pool.slots + AHEAD
                and (asset := _next(waiting, optimizing))
            ):
                optimizing.add(asset.spec.field_id)
                submit(asset, "optimize")
            asset, stage, future = ended.get()
            future.wait()  # it has ended: this only makes its state the final one
            if stage == "optimize":
                optimizing.remove(asset.spec.field_id)
                if future.state.is_completed():
                    made.append(asset)
                    continue
            elif future.state.is_completed() and stage in NEXT:
                submit(asset, NEXT[stage])
                continue
            else:
                behind -= 1
            fields[asset.spec.field_id] -= 1
            outcomes[asset.id] = _land(asset, future, last=not fields[asset.spec.field_id])
            watch.finished(asset.name, outcomes[asset.id], asset.seconds)
            log.info("%s: %s after %.0f s", asset.name, outcomes[asset.id], asset.seconds)
    return outcomes


def _asset(plan: Plan, entry: Entry, scratch: Path) -> Asset:
    return Asset(
        entry.row_id,
        entry.spec,
        plan.store,
        scratch,
        coverage=entry.prior_coverage,
        donor=plan.donors.get(entry.spec.field_id),
        image=entry.image_path.resolve() if entry.image_path else None,
        checkpoint_to_store=plan.settings.checkpoint_to_store,
    )


def _teller(watch: Watcher, name: str) -> Any:
    def tell(event: dict[str, Any]) -> None:
        watch.progress(name, event["step"], event["steps"], event["loss"])

    return tell


def _next(waiting: deque[Asset], optimizing: set[str]) -> Asset | None:
    """Takes the first asset whose field nobody is making right now."""
    for asset in waiting:
        if asset.spec.field_id not in optimizing:
            waiting.remove(asset)
            return asset
    return None


def _land(asset: Asset, future: PrefectFuture[Any], *, last: bool) -> str:
    """The outcome of an asset whose last task has ended; a failure becomes its row here."""
    result = future.result(raise_on_failure=False)
    if future.state.is_completed():
        asset.clear(field=last)
        return "ok" if result["outcome"] == "computed" else "reused"
    if future.state.is_cancelled():
        return "interrupted"  # a later run closes the attempt
    if not asset.attempt:
        raise result  # not even an attempt could be written: the store is gone
    record_failure(asset, result)
    asset.clear(field=False)  # a retry begins with the field, or its checkpoint
    return str(getattr(result, "status", "failed"))
