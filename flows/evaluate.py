"""The flow that measures finished assets again."""

import json
import time
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, runtime
from prefect.states import Cancelled, State

from flows.context import surroundings
from flows.errors import RunError, UsageError
from flows.generate import PART
from flows.pipeline import RunCancelled, Window, run_stage
from flows.plan import check_devices
from flows.progress.results import final_state, selected_assets
from flows.progress.terminal import Watcher
from flows.scratch import make_private
from sjc_engine.recipe_presets import Value
from sjc_engine.recipes import Recipe
from tasks.prefect_ui.cancel import watch_cancels
from tasks.records.attempts import close_interrupted
from tasks.records.documents import check_usable, mark_format
from tasks.records.runs import finish_run, new_run_id, start_run
from tasks.stages.judges import Judges
from tasks.stages.reevaluate import SETTINGS, evaluation_recipe, reevaluate
from tasks.store import open_store
from tasks.store.interface import Damaged, NotInStore, Store, StoreError
from tasks.store.leases import leases
from tasks.tables.write import TableWriter, record_attempts, record_run

AT_ONCE = 2  # while one is downloaded, another is measured


def _run_name() -> str:
    """What Prefect's pages call the flow run."""
    return f"evaluate {runtime.flow_run.parameters.get('where') or 'all assets'}"


@dataclass(frozen=True)
class EvaluationPlan:
    """What to measure and how; everything in it is known to be right."""

    store: Store
    assets: dict[str, str]  # readable names by asset id
    changes: dict[str, Value]
    judges: Judges


@flow(name="evaluate", flow_run_name=_run_name)
def evaluate(
    store: str = "./store",
    where: str | None = None,
    manifest: str | None = None,
    overrides: dict[str, Any] | None = None,
    device: str | None = None,
    scratch: str = ".sjc",
    allow_pickle: bool = False,
) -> State[Any]:
    """Measures finished assets again and writes new rows; meshes and fields stay as they are.

    where: SQL over best_assets. manifest: only what it asks for. overrides: judge, lpips,
    evaluation_size instead of what each asset's recipe says. allow_pickle: as of `generate`.
    """
    chosen = prepare(store, where, manifest, overrides or {}, device, allow_pickle)
    watch, folder = surroundings().watcher, Path(scratch).resolve()
    make_private(folder)
    with leases(chosen.store, new_run_id()) as held:
        warn = get_run_logger().warning
        closed = close_interrupted(chosen.store, chosen.assets, held.take, warn)
        record_attempts(chosen.store, closed)
    title = f"evaluate {where or ''}".strip()
    settings = {"where": where, "manifest": manifest, "overrides": chosen.changes}
    flow_run = str(runtime.flow_run.id)
    run = start_run(chosen.store, new_run_id(), title, "", [], settings, flow_run)
    record_run(chosen.store, run)
    watch.begun(run["run_id"], len(chosen.assets), {})
    ids, outcomes, problems = list(chosen.assets), Counter[str](), list[StoreError]()

    @flow(name="evaluate-part")
    def evaluate_part(asset_ids: list[str], run_id: str) -> dict[str, int]:
        return measure(chosen, asset_ids, run_id, folder, watch, problems)

    try:
        for start in range(0, len(ids), PART):
            outcomes.update(evaluate_part(ids[start : start + PART], run["run_id"]))
    except RunCancelled as error:
        return Cancelled(message=str(error))
    finally:
        record_run(chosen.store, finish_run(chosen.store, run, {}))
    if problems:
        damage = all(isinstance(problem, Damaged | NotInStore) for problem in problems)
        kind = RunError if damage else StoreError
        words = "have damaged files" if damage else "could not be read"
        raise kind(f"{len(problems)} assets {words}; the first: {problems[0]}")
    data = {"run_id": run["run_id"], **outcomes}
    return final_state(dict(sorted(outcomes.items())), outcomes["ok"], data)


def measure(
    chosen: EvaluationPlan,
    asset_ids: list[str],
    run_id: str,
    scratch: Path,
    watch: Watcher,
    problems: list[StoreError],
) -> Counter[str]:
    """Measures some of the assets; returns how many ended in which way. Raises RunCancelled.

    problems: gets the errors of those whose files are damaged or could not be read: they have no
    row.
    """
    waiting, outcomes = deque(asset_ids), Counter[str]()
    window = Window[str](lambda: AT_ONCE, lambda: None)
    with leases(chosen.store, run_id) as held, TableWriter(chosen.store) as rows:

        def make(asset_id: str) -> str:
            name, began = chosen.assets[asset_id], time.perf_counter()
            held.take(asset_id)  # a run must not take this attempt for an abandoned one
            watch.stage(name, "evaluate")
            state = run_stage(
                reevaluate, window.stopped, name, chosen.store, asset_id, run_id, chosen.changes,
                chosen.judges, scratch, rows,
            )  # fmt: skip
            held.free(asset_id)
            outcome = "ok" if state.is_completed() else "failed"
            if isinstance(result := state.result(raise_on_failure=False), StoreError):
                problems.append(result)
                outcome = "not read"
            watch.finished(name, outcome, time.perf_counter() - began)
            return outcome

        with watch_cancels(lambda task: None, window.cancel_run):
            window.run(
                waiting,
                take=lambda: waiting.popleft() if waiting else None,
                make=make,
                end=lambda asset_id, outcome: outcomes.update([outcome]),
            )
    return outcomes


def prepare(
    store: str,
    where: str | None,
    manifest: str | None,
    overrides: dict[str, Any],
    device: str | None,
    allow_pickle: bool = False,
) -> EvaluationPlan:
    """Checks everything before anything is written. Raises UsageError and StoreError."""
    changes = check_changes(overrides)
    [device] = check_devices([device] if device else ["cpu"], "--device")
    opened = open_store(store, writable=False)  # one that is not there must not be made
    check_usable(opened)
    names = "(SELECT min(row_id) FROM entries e WHERE e.asset_id = best_assets.asset_id)"
    columns = f"asset_id, {names} AS name, spec_json"
    rows = selected_assets(opened, columns, manifest, where, "status = 'ok'").to_pylist()
    if not rows:
        raise UsageError(f"no finished asset of {opened.url} matches; see `sjc assets`")
    judges = Judges(device, allow_pickle=allow_pickle)
    for recipe in {evaluation_recipe(json.loads(row["spec_json"]), changes) for row in rows}:
        judges.get(recipe)
    assets = {row["asset_id"]: row["name"] or row["asset_id"] for row in rows}
    writable = open_store(store)
    mark_format(writable)
    return EvaluationPlan(writable, assets, changes, judges)


def check_changes(overrides: dict[str, Any]) -> dict[str, Value]:
    """The settings of an evaluation; UsageError for other keys, SettingError for wrong values."""
    for key in overrides:
        if key not in SETTINGS:
            raise UsageError(f"--set {key}: an evaluation has {', '.join(SETTINGS)} only")
    recipe = Recipe().override(overrides).evaluate
    return {key: getattr(recipe, key) for key in overrides}
