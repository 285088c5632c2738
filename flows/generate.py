"""The main flow: every asset of a manifest through optimize, extract, evaluate and publish."""

import contextlib
import fcntl
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, runtime
from prefect.states import Completed, Failed, State
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows.errors import UsageError
from flows.listing import RESULT_COLUMNS, results
from flows.plan import Plan, Settings, asset_states, make_plan
from flows.produce import Outcomes, produce
from flows.tabulate import cell
from flows.terminal import watcher
from tasks.artifacts import show_table, show_text
from tasks.commit import close_interrupted, finish_run, new_run_id, start_run
from tasks.judges import Judges
from tasks.sheet import write_sheet
from tasks.tables import record_attempt, record_run, seal_run, unrecorded_attempts

PART = 300  # assets of one flow run: Prefect's database is comfortable below 2,000 task runs
# A task that waits for a device holds a thread. Threads are made when they are needed.
THREADS: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=1024)

Maker = Callable[[Plan, list[str], str], Outcomes]


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
    for warning in plan.warnings:
        get_run_logger().warning(warning)
    make = partial(produce, judges=load_judges(plan))
    with sole_user(Path(scratch)):
        return run_plan(plan, make)


def run_plan(plan: Plan, make: Maker) -> State[Any]:
    """Everything that a run writes, from its first row to its final state.

    make: what turns the assets of these ids into outcomes, for a run.
    """
    log, watch = get_run_logger(), watcher()
    close_attempts(plan)
    run = start_run(
        plan.store,
        new_run_id(),
        plan.manifest.path.as_posix(),
        plan.manifest.sha256,
        plan.entries,
        plan.settings.to_json(),
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
            outcomes |= make(plan, todo, run["run_id"])
        else:
            for start in range(0, len(todo), PART):
                part = todo[start : start + PART]
                outcomes |= generate_part(plan.settings.to_json(), part, run["run_id"])
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


@contextlib.contextmanager
def sole_user(scratch: Path) -> Iterator[None]:
    """Holds the scratch folder; UsageError when another run does. The lock ends with the process.

    Two runs would go on from one checkpoint and tidy away each other's files.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    with (scratch / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"another run uses {scratch}; wait for it, or name another folder with --scratch"
            ) from error
        yield


def load_judges(plan: Plan) -> Judges:
    """The judges of all assets to make; UsageError for one that cannot be loaded."""
    judges = Judges()
    for recipe in {entry.spec.recipe.evaluate for entry in plan.todo.values()}:
        try:
            judges.get(recipe)
        except ValueError as error:
            raise UsageError(str(error)) from error
    return judges


def close_attempts(plan: Plan) -> None:
    """Ends attempts whose process died, and writes the rows that it could not write."""
    runs = set()
    ended = [k for k, state in plan.states.items() if state in ("finished", "failed")]
    closed = close_interrupted(plan.store, plan.assets)
    for attempt, manifest in closed + unrecorded_attempts(plan.store, ended):
        record_attempt(plan.store, attempt, manifest)
        runs.add(attempt["run_id"])
    for run_id in runs:
        seal_run(plan.store, run_id)


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
    good = [k for k in plan.assets if outcomes.get(k) in ("ok", "reused")]
    sheet = write_sheet(store, run_id, good)
    rows = results(store, run_id)
    table = [{title: cell(row[key]) for key, title in RESULT_COLUMNS.items()} for row in rows]
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
