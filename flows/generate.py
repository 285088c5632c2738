"""The main flow: every asset of a manifest through optimize, extract, evaluate and publish."""

from collections import Counter, deque
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from prefect import flow, get_run_logger, runtime
from prefect.futures import PrefectFuture
from prefect.states import Completed, Failed, State
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows.errors import UsageError
from flows.listing import RESULT_COLUMNS, results
from flows.plan import Plan, Settings, asset_states, make_plan
from flows.terminal import Watcher, watcher
from tasks.artifacts import show_table, show_text
from tasks.asset import Asset
from tasks.commit import close_interrupted, finish_run, new_run_id, start_run
from tasks.devices import DevicePool
from tasks.evaluate import Judges, evaluate_asset
from tasks.extract import extract_asset
from tasks.manifest import Entry
from tasks.optimize import optimize
from tasks.publish import publish_asset, record_failure
from tasks.sheet import write_sheet
from tasks.tables import record_attempt, record_run, seal_run

PART = 300  # assets of one flow run: Prefect's database is comfortable below 2,000 task runs
AHEAD = 2  # assets that wait for a device, so that none is ever idle
BEHIND = 4  # assets past their optimisation that may be on their way at the same time
# A task that waits for a device holds a thread. Threads are made when they are needed.
THREADS: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=1024)

Outcomes = dict[str, str]  # asset id -> ok, reused, failed, diverged, timeout, interrupted


def _run_name() -> str:
    return f"generate {Path(runtime.flow_run.parameters['manifest']).name}"


@flow(name="generate", flow_run_name=_run_name, task_runner=THREADS)
def generate(
    manifest: str,
    store: str = "./store",
    prior: str | None = None,
    recipe: str | None = None,
    overrides: dict[str, Any] | None = None,
    limit: int | None = None,
    where: str | None = None,
    devices: list[str] | None = None,
    scenes_per_device: int | None = 1,
    scratch: str = ".sjc",
    retry_failed: bool = False,
    timeout: float | None = None,
) -> State[Any]:
    """Turns the prompts of a manifest into assets in a store.

    Finished assets are reused and interrupted ones go on from their checkpoints; assets that
    failed are tried again with `retry_failed`. devices: such as ["cpu"] or ["cuda:0", "cuda:1"],
    by default every GPU. scenes_per_device: None chooses. timeout: seconds of optimisation.
    """
    settings = Settings(
        manifest, store, prior, recipe, overrides or {}, limit, where, devices,
        scenes_per_device, scratch, retry_failed, timeout,
    )  # fmt: skip
    plan = make_plan(settings)
    log, watch = get_run_logger(), watcher()
    for warning in plan.warnings:
        log.warning(warning)
    judges = load_judges(plan)
    close_attempts(plan)
    run = start_run(
        plan.store,
        new_run_id(),
        plan.manifest.path.as_posix(),
        plan.manifest.sha256,
        plan.entries,
        settings.to_json(),
        str(runtime.flow_run.id),
    )
    record_run(plan.store, run)
    log.info("run %s: %s", run["run_id"], ", ".join(f"{n} {s}" for s, n in plan.counts().items()))
    watch.begun(run["run_id"], len(plan.assets))
    todo = list(plan.todo)
    outcomes: Outcomes = {
        k: "reused" if state == "finished" else "failed"
        for k, state in plan.states.items()
        if k not in plan.todo
    }
    for asset_id, outcome in outcomes.items():
        watch.finished(plan.assets[asset_id].row_id, outcome, 0.0)
    try:
        if len(todo) <= PART:
            outcomes |= produce(plan, todo, run["run_id"], judges)
        else:
            for start in range(0, len(todo), PART):
                part = todo[start : start + PART]
                outcomes |= generate_part(settings.to_json(), part, run["run_id"])
    finally:
        # A run that is ended from outside has finished some assets all the same.
        unknown = asset_states(plan.store, [k for k in todo if k not in outcomes])
        words = {"finished": "ok", "failed": "failed"}
        outcomes |= {k: words[state] for k, state in unknown.items() if state in words}
        run = finish_run(plan.store, run, entry_outcomes(plan, outcomes))
        record_run(plan.store, run)
    seal_run(plan.store, run["run_id"])
    return conclude(plan, run, outcomes)


@flow(name="generate-part", task_runner=THREADS)
def generate_part(settings: dict[str, Any], asset_ids: list[str], run_id: str) -> Outcomes:
    """A slice of a large manifest, as a flow run of its own."""
    plan = make_plan(Settings(**settings))
    open_ids = [k for k in asset_ids if plan.states[k] != "finished"]
    outcomes = dict.fromkeys(asset_ids, "reused")  # what another run has finished meanwhile
    return outcomes | produce(plan, open_ids, run_id, load_judges(plan))


def load_judges(plan: Plan) -> Judges:
    """The judges of all assets to make; UsageError for one that cannot be loaded."""
    judges = Judges()
    for name in {entry.spec.recipe.evaluate.judge for entry in plan.todo.values()}:
        try:
            judges.get(name)
        except ValueError as error:
            raise UsageError(str(error)) from error
    return judges


def close_attempts(plan: Plan) -> None:
    """Ends attempts whose process died, and writes the rows that it could not write."""
    runs = set()
    for attempt, manifest in close_interrupted(plan.store, plan.assets):
        record_attempt(plan.store, attempt, manifest)
        runs.add(attempt["run_id"])
    for run_id in runs:
        seal_run(plan.store, run_id)


def produce(plan: Plan, asset_ids: list[str], run_id: str, judges: Judges) -> Outcomes:
    """Moves assets through the stages, a window of them at a time, until all are through.

    An asset's next stage is submitted when the one before has ended, so that a thread waits for
    a device but never for another task. An asset that fails becomes a row; the others go on.
    """
    if not asset_ids:
        return {}
    watch, log, outcomes = watcher(), get_run_logger(), Outcomes()
    scratch = Path(plan.settings.scratch).resolve()
    waiting = deque(_asset(plan, plan.assets[k], scratch) for k in asset_ids)
    fields = Counter(asset.spec.field_id for asset in waiting)  # unfinished assets of each field
    ended: SimpleQueue[tuple[Asset, str, PrefectFuture[Any]]] = SimpleQueue()
    optimizing: set[str] = set()  # field ids: two assets of one field take turns
    flying = 0

    with DevicePool(plan.devices, scratch, scenes_per_device=plan.scenes_per_device) as pool:

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

        while waiting or flying:
            while (
                len(optimizing) < pool.slots + AHEAD
                and flying < pool.slots + AHEAD + BEHIND
                and (asset := _next(waiting, optimizing))
            ):
                optimizing.add(asset.spec.field_id)
                flying += 1
                submit(asset, "optimize")
            asset, stage, future = ended.get()
            future.wait()  # it has ended: this only makes its state the final one
            if stage == "optimize":
                optimizing.remove(asset.spec.field_id)
            following = {"optimize": "extract", "extract": "evaluate", "evaluate": "publish"}
            if future.state.is_completed() and stage in following:
                submit(asset, following[stage])
                continue
            flying -= 1
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
    return str(getattr(result, "status", "failed"))


def entry_outcomes(plan: Plan, outcomes: Outcomes) -> dict[str, str]:
    """What table `entries` says of each row; a row of an interrupted asset says nothing."""
    words = {"ok": "computed", "reused": "reused"}
    first = {entry.row_id for entry in plan.assets.values()}
    told = {}
    for entry in plan.entries:
        outcome = outcomes.get(entry.spec.asset_id, "interrupted")
        if outcome != "interrupted":
            own = words.get(outcome, "failed")
            told[entry.row_id] = own if entry.row_id in first else "duplicate"
    return told


def conclude(plan: Plan, run: dict[str, Any], outcomes: Outcomes) -> State[Any]:
    """The picture of all previews, the artifacts, and the flow's final state."""
    store, run_id = plan.store, run["run_id"]
    counts = Counter(outcomes.values())
    good = [k for k, outcome in outcomes.items() if outcome in ("ok", "reused")]
    sheet = write_sheet(store, run_id, good)
    rows = results(store, run_id)
    table = [{title: row[key] for key, title in RESULT_COLUMNS.items()} for row in rows]
    show_table("summary", table, f"Run {run_id}")
    where = f"- store: `{store.url}`\n- tables: `{store.uri('tables')}`\n"
    picture = f"- picture: `{sheet}`\n" if sheet else ""
    show_text("run", f"# Run {run_id}\n\n{where}{picture}", f"Where run {run_id} put its results")
    order = [word for word in ("ok", "reused") if counts[word]]
    order += sorted(counts.keys() - set(order))
    message = ", ".join(f"{counts[outcome]} {outcome}" for outcome in order)
    if not good:
        return Failed(message=message)
    name = "Completed" if len(good) == len(outcomes) else "CompletedWithErrors"
    return Completed(name=name, message=message, data={"run_id": run_id, "counts": dict(counts)})
