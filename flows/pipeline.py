"""An asset's way through the four stages, and the window of assets that are under way."""

import os
import time
from asyncio import CancelledError
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import copy_context
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Semaphore
from typing import Any, Generic, TypeVar

from prefect import get_run_logger
from prefect.states import Cancelled, State
from prefect.task_engine import run_task_sync
from prefect.utilities.callables import get_call_parameters

from flows.context import RunContext
from flows.plan import RunPlan
from flows.progress.terminal import Watcher
from flows.run_record import Outcomes
from flows.scratch import scratch_id
from sjc_engine.files import is_refusal
from tasks.devices.job import SceneError, interrupted
from tasks.manifest.resolve import Entry
from tasks.prefect_ui.cancel import watch_cancels
from tasks.records.attempts import FAILURES, asset_attempts, close_interrupted
from tasks.records.documents import asset_manifest
from tasks.stages.asset import Asset
from tasks.stages.evaluate import evaluate
from tasks.stages.extract import extract
from tasks.stages.optimize import optimize
from tasks.stages.publish import publish, record_failure
from tasks.store.disk import is_full
from tasks.store.interface import StoreError, TakesNoMore, WrongBytes
from tasks.store.layout import attempt_number
from tasks.store.leases import Leases, leases
from tasks.tables.write import TableWriter, record_attempts

AHEAD = 2  # assets that wait for a device, so that none is ever idle
BEHIND = max(4, (os.cpu_count() or 1) // 4)  # past their optimisation, worked at together
# Between two looks at an asset that another run works on: at first, and after minutes, since many
# runs would ask for many assets.
ASK_SECONDS, SLOW_ASK_SECONDS = 2.0, 30.0
STOP_SECONDS = 5.0  # for stages behind the devices, when the run is stopped

OUTCOMES = {"computed": "ok", "reused": "reused"}  # by what `publish` says


class RunCancelled(Exception):
    """Someone has cancelled the flow run; its unfinished assets are left as they are."""


class _Ended(Exception):
    """An asset will not pass its next stage; the cause is the error of the last one, if any."""


def make_asset(
    window: "Window[Asset]", context: RunContext, run_id: str, timeout: float | None, asset: Asset
) -> str:
    """Takes an asset through the stages, each a Prefect task; returns its outcome.

    In a thread of its own, which waits for a device and then for a place behind them. An asset that
    fails becomes a row. Raises the error of a store that takes nothing more: the run ends.
    """
    report = partial(report_progress, context.watcher, asset.name)
    working = partial(context.watcher.working, asset.name)

    def run(stage: Any, *arguments: Any) -> Any:
        # An attempt has to begin before it can be cancelled.
        if window.stopped.is_set() or (asset.cancelled.is_set() and stage is not optimize):
            raise _Ended
        context.watcher.stage(asset.name, "queue" if stage is optimize else stage.name)
        state = run_stage(stage, window.stopped, asset, *arguments)
        result = state.result(raise_on_failure=False)
        if not state.is_completed():
            raise _Ended from None if state.is_cancelled() else result
        return result

    try:
        with window.at_device(asset):
            run(optimize, run_id, context.pool, timeout, report, context.board)
        with window.behind(asset):
            run(extract, working)
            run(evaluate, context.judges, context.board, working)
            return OUTCOMES[run(publish)["outcome"]]
    except _Ended as ended:  # what a stop causes is not the asset's own failure
        error = None if window.stopped.is_set() else ended.__cause__
        if isinstance(error, WrongBytes):
            context.watcher.note(f"{asset.name}: {error}")
        return end_asset(asset, error)


def run_stage(stage: Any, stopped: Event, *arguments: Any) -> State[Any]:
    """The state that a stage's task ends in: cancelled if the run stops before a retry."""
    parameters = get_call_parameters(stage.fn, arguments, {})
    try:  # as a task runner does: `stage(...)` itself would sleep on
        state = run_task_sync(
            stage, parameters=parameters, return_type="state", context={"cancel_event": stopped}
        )
    except CancelledError:
        state = None
    return state or Cancelled()


def end_asset(asset: Asset, error: BaseException | None) -> str:
    """The outcome of an asset that is not made; it becomes its row, unless a later run resumes it.

    error: of its last stage, None when that was interrupted.
    """
    if asset.cancelled.is_set():
        error = SceneError("cancelled", "Cancelled", "cancelled on Prefect's pages")
    if error is None or (isinstance(error, WrongBytes) and not asset.attempt):
        return "interrupted"  # a later run closes the attempt, if there is one
    if not asset.attempt or isinstance(error, TakesNoMore):
        raise error  # the store is gone, or full: nothing that follows could be kept
    if is_refusal(error) or is_full(asset.scratch):  # the scratch folder's disk
        error = interrupted("ScratchFull", error)
    elif isinstance(error, StoreError):
        error = interrupted("StoreError", error)
    elif problem := asset.lost(error):
        error = interrupted("ScratchLost", problem)
    return record_failure(asset, error)


def run_pipeline(context: RunContext, plan: RunPlan, asset_ids: list[str], run_id: str) -> Outcomes:
    """Makes assets, a window of them at a time, until all have an outcome. Raises RunCancelled.

    Assets that other runs work on come last: they are reused once those have made them.
    """
    if not asset_ids:
        return {}
    scratch, timeout = Path(plan.settings.scratch).resolve(), plan.settings.timeout
    window = Window[Asset](lambda: context.pool.slots + AHEAD, context.pool.close)
    with leases(plan.store, scratch_id(scratch)) as held, TableWriter(plan.store) as rows:
        assets = [_asset(plan, plan.assets[k], scratch, rows) for k in asset_ids]
        queue = Queue(assets, plan.settled, held, context.watcher)
        with watch_cancels(queue.cancel, window.cancel_run):
            make = partial(make_asset, window, context, run_id, timeout)
            window.run(queue.waiting, queue.take, make, queue.end)
    return queue.outcomes


A = TypeVar("A")


class Window(Generic[A]):
    """The assets that are under way.

    Each has a thread, which moves it on; everything else happens in the flow's thread. Fields wait
    in the scratch folder for the stages behind the devices: scenes that end together, as those of
    one device do, leave their places to the next at once.

    room: how many may be at the devices or wait for one. close: ends what threads wait for.
    """

    def __init__(self, room: Callable[[], int], close: Callable[[], object]) -> None:
        self.stopped = Event()  # no asset begins another stage
        self._room, self._close = room, close
        self._under_way: dict[A, str] = {}  # device, made (waits for a place behind), behind
        self._places = Semaphore(BEHIND)
        # An asset whose thread has ended; None: one has moved, or the run was cancelled.
        self._news: SimpleQueue[tuple[A, Future[str]] | None] = SimpleQueue()
        self._cancelled = False

    def cancel_run(self) -> None:
        """Makes `run` raise RunCancelled."""
        self._cancelled = True
        self._news.put(None)

    @contextmanager
    def at_device(self, asset: A) -> Iterator[None]:
        """Around an asset's optimisation; whatever ends it, another asset may begin."""
        try:
            yield
        finally:
            self._under_way[asset] = "made"
            self._news.put(None)

    @contextmanager
    def behind(self, asset: A) -> Iterator[None]:
        """Around the stages behind the devices, once there is a place."""
        with self._places:
            self._under_way[asset] = "behind"
            self._news.put(None)
            yield

    def run(
        self,
        waiting: Sized,
        take: Callable[[], A | None],
        make: Callable[[A], str],
        end: Callable[[A, str], None],
    ) -> None:
        """Until every asset is through. Raises RunCancelled.

        waiting: the assets that have not begun. take: takes one of them, None if all have to wait.
        make: in the asset's thread; returns its outcome, which `end` gets.
        """
        threads = ThreadPoolExecutor(len(waiting), "asset")
        try:
            self._fill(threads, take, make)
            while waiting or self._under_way:
                with suppress(Empty):  # then it is time to ask for assets of other runs again
                    news = self._news.get(timeout=ASK_SECONDS if waiting else None)
                    if self._cancelled:
                        raise RunCancelled("cancelled; the next run resumes")
                    if news is not None:
                        asset, made = news
                        del self._under_way[asset]
                        end(asset, made.result())
                self._fill(threads, take, make)
        except BaseException:
            self._stop()
            raise
        finally:
            threads.shutdown(wait=False)

    def _fill(
        self, threads: ThreadPoolExecutor, take: Callable[[], A | None], make: Callable[[A], str]
    ) -> None:
        """Begins with as many assets as there is room for."""
        while self._has_room() and (asset := take()) is not None:
            self._under_way[asset] = "device"
            made = threads.submit(copy_context().run, make, asset)
            made.add_done_callback(partial(self._hear, asset))

    def _hear(self, asset: A, made: Future[str]) -> None:
        self._news.put((asset, made))

    def _has_room(self) -> bool:
        """Whether another asset may begin: not when devices or the stages behind have a queue."""
        room, places = self._room(), Counter(self._under_way.values())
        return places["device"] < room and places["made"] < room

    def _stop(self) -> None:
        """Ends what is under way, but waits for no stage for ever: the run's own end comes next."""
        self.stopped.set()
        self._close()
        deadline = time.monotonic() + STOP_SECONDS
        while self._under_way and (left := deadline - time.monotonic()) > 0:
            with suppress(Empty):
                if news := self._news.get(timeout=left):
                    del self._under_way[news[0]]


class Queue:
    """The assets of a call of `run_pipeline`: which one is next, and how each has ended."""

    def __init__(
        self, assets: list[Asset], settled: Mapping[str, int], held: Leases, watcher: Watcher
    ) -> None:
        self.waiting, self.outcomes = deque(assets), Outcomes()
        self._assets = {asset.name: asset for asset in assets}
        self._begun: set[Asset] = set()  # and not ended
        # By the names of assets of other runs: since when, and when to ask again
        self._later: dict[str, tuple[float, float]] = {}
        self._settled, self._held, self._watch = settled, held, watcher
        self._log = get_run_logger()

    def cancel(self, task: str) -> None:
        """Ends one asset, by the name of one of its tasks, such as `optimize-duck`."""
        asset = self._assets.get(task.partition("-")[2])
        if asset is not None:
            asset.cancelled.set()

    def take(self) -> Asset | None:
        """The next asset with work to do here; None while there is none."""
        while asset := self._next():
            self._begun.add(asset)
            outcome = self._outcome_elsewhere(asset)
            if outcome is None:
                return asset
            self.end(asset, outcome)
        return None

    def _next(self) -> Asset | None:
        """The first asset that no other run works on, and whose field is not being made here."""
        optimizing = {a.spec.field_id for a in self._begun if "optimize" not in a.timings}
        for asset in self.waiting:
            moment = time.monotonic()
            if asset.spec.field_id in optimizing:
                continue
            since, again = self._later.get(asset.name, (moment, moment))
            if again > moment:
                continue
            if self._held.take(asset.id):
                self.waiting.remove(asset)
                if asset.name in self._later:  # of a run that has ended, or died: close for it
                    record_attempts(asset.store, close_interrupted(asset.store, [asset.id]))
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
        settled = self._settled.get(asset.id, 0)
        later = [
            attempt
            for attempt in asset_attempts(asset.store, asset.id)
            if attempt_number(attempt["attempt"]) > settled and attempt["ended_at"]
        ]
        # It may have died before it wrote their rows.
        record_attempts(asset.store, ((attempt, {}) for attempt in later))
        if not later or later[-1]["status"] not in FAILURES:
            return None
        name, status = later[-1]["attempt"], str(later[-1]["status"])
        self._watch.note(f"{asset.name}: another run ended attempt {name} meanwhile as {status}")
        return status

    def end(self, asset: Asset, outcome: str) -> None:
        """An asset is through."""
        self._begun.remove(asset)
        if outcome != "interrupted":  # a retry begins with the field, or its checkpoint
            others = {other.spec.field_id for other in (*self._begun, *self.waiting)}
            wanted = asset.spec.field_id in others
            asset.clear(field=outcome in ("ok", "reused") and not wanted)
        self._held.free(asset.id)
        self.outcomes[asset.id] = outcome
        self._watch.finished(asset.name, outcome, asset.seconds)
        self._log.info("%s: %s after %.0f s", asset.name, outcome, asset.seconds)


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


def report_progress(watch: Watcher, name: str, event: dict[str, Any]) -> None:
    """What an engine reports of an asset, to the watcher."""
    if event["type"] == "working":
        watch.working(name, event["what"], event["done"], event["total"])
        return
    watch.progress(name, event["step"], event["steps"], event["loss"])
    if event.get("unsaved"):
        watch.once(f"warning: no checkpoints, assets continue without them: {event['unsaved']}")
