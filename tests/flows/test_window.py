"""The window of assets under way, the queue before it, and the order of the stages: no server."""

from __future__ import annotations

import logging
import os
import shutil
from asyncio import CancelledError
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from runpy import run_path
from threading import Event, Thread, current_thread
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.states import Cancelled, Completed, Failed, State
from task_samples import report, spec

from flows import pipeline
from flows.pipeline import (
    ASK_SECONDS,
    BEHIND,
    SLOW_ASK_SECONDS,
    Queue,
    RunCancelled,
    Window,
    end_asset,
    make_asset,
    report_progress,
    run_pipeline,
)
from flows.plan import make_plan
from flows.progress.terminal import Watcher
from flows.settings import Settings
from tasks.records.attempts import finish_attempt, start_attempt
from tasks.records.commit import commit_asset
from tasks.stages.asset import Asset
from tasks.store import open_store
from tasks.store.interface import Store, StoreError, TakesNoMore, WrongBytes
from tasks.tables.read import query
from tasks.tables.write import TableWriter


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store")


@pytest.fixture
def asset(store: Store, tmp_path: Path) -> Asset:
    return some_asset(store, tmp_path, "duck")


def some_asset(store: Store, folder: Path, name: str, prompt: str = "", **changes: Any) -> Asset:
    made = spec(prompt or name)
    return Asset(name, made, store, folder / "scratch", TableWriter(store), **changes)


class Assets:
    """Numbers, as the assets of a window; each waits at its device and behind to be moved on."""

    def __init__(self, count: int) -> None:
        self.waiting, self.ended = deque(range(count)), dict[int, str]()
        self.ended_before = dict[int, int]()  # how many had, by the asset that began
        self.at_device, self.behind, self.most_at_device = set[int](), set[int](), 0
        self.left_device, self.left = ([Event() for _ in range(count)] for _ in range(2))
        self.changed = Event()

    def take(self) -> int | None:
        if not self.waiting:
            return None
        self.ended_before[self.waiting[0]] = len(self.ended)
        return self.waiting.popleft()

    def make(self, window: Window[int], number: int) -> str:
        with window.at_device(number):
            self.stay(self.at_device, number, self.left_device[number])
        with window.behind(number):
            self.stay(self.behind, number, self.left[number])
        return f"ok {number}"

    def stay(self, place: set[int], number: int, left: Event) -> None:
        place.add(number)
        self.most_at_device = max(self.most_at_device, len(self.at_device))
        self.changed.set()
        assert left.wait(30)
        place.remove(number)

    def until_at_device(self, numbers: set[int]) -> None:
        self.until(lambda: self.at_device == numbers)

    def until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            assert self.changed.wait(30)
            self.changed.clear()


def test_no_more_assets_begin_than_devices_and_the_stages_behind_can_take() -> None:
    room, assets = 2, Assets(BEHIND + 6)
    window = Window[int](lambda: room, lambda: None)
    make, end = partial(assets.make, window), assets.ended.__setitem__
    run = Thread(target=window.run, args=(assets.waiting, assets.take, make, end))
    run.start()
    for number in range(BEHIND + room):  # each leaves its device to the next, until fields wait
        assets.until_at_device({number, number + 1})
        assets.left_device[number].set()
    assets.until(lambda: len(assets.behind) == BEHIND and BEHIND + 2 in assets.at_device)
    begun = [*assets.ended_before]  # now: a place is free before the end of its asset is heard
    for left in (*assets.left, *assets.left_device):
        left.set()
    run.join(30)
    assert assets.ended == {n: f"ok {n}" for n in range(BEHIND + 6)}
    assert assets.most_at_device == room
    assert begun == [*range(BEHIND + 3)]


@pytest.mark.parametrize("how", ["cancelled", "failed"])
def test_a_window_that_ends_early_stops_its_threads(how: str) -> None:
    closed = Event()
    window = Window[int](lambda: 2, closed.set)
    waiting, ended, threads = deque(range(2)), list[int](), list[Thread]()

    def make(number: int) -> str:
        threads.append(current_thread())
        with window.at_device(number):
            if number == 0 and how == "failed":
                raise StoreError("it is gone", "mount it")
            if number == 0:
                window.cancel_run()
            assert closed.wait(30), "what it waits for"
            assert window.stopped.is_set()
            ended.append(number)
        return "interrupted"

    error = StoreError if how == "failed" else RunCancelled
    with pytest.raises(error) as caught:
        window.run(waiting, lambda: waiting.popleft() if waiting else None, make, lambda *_: None)
    assert sorted(ended) == ([1] if how == "failed" else [0, 1]), "the run waits for them"
    for thread in threads:
        thread.join(1)
        assert not thread.is_alive(), f"{caught.value} keeps it"


def test_a_stage_that_never_ends_does_not_keep_a_run_that_stops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipeline, "STOP_SECONDS", 0.1)
    window, over, ended = Window[int](lambda: 1, lambda: None), Event(), list[int]()
    waiting = deque([0])

    def make(number: int) -> str:
        over.wait(30)
        ended.append(number)
        return "ok"

    window.cancel_run()
    with pytest.raises(RunCancelled):
        window.run(waiting, waiting.popleft, make, lambda *_: None)
    assert not ended, "the run has waited for it"
    over.set()


@pytest.mark.parametrize(("cores", "places"), [(None, 4), (1, 4), (19, 4), (20, 5), (64, 16)])
def test_a_quarter_of_the_cores_work_behind_the_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int | None, places: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    # A copy: to scripts/mutants.py this test would be the only one of the module's constants
    copy = shutil.copy(pipeline.__file__, tmp_path)
    assert run_path(str(copy))["BEHIND"] == places


def test_assets_of_other_runs_are_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "ASK_SECONDS", 0.01)
    window, waiting, ended = Window[int](lambda: 1, lambda: None), deque([0]), list[str]()
    answers = iter([None, None, 0, None])

    def take() -> int | None:
        found = next(answers)
        return found if found is None else waiting.popleft()

    window.run(
        waiting, take, lambda number: f"ok {number}", lambda _, outcome: ended.append(outcome)
    )
    assert ended == ["ok 0"]


class Others:
    """Leases of which another run has some."""

    def __init__(self, *theirs: str) -> None:
        self.theirs, self.mine, self.asked = set(theirs), set[str](), 0

    def take(self, asset_id: str) -> bool:
        self.asked += 1
        if asset_id not in self.theirs:
            self.mine.add(asset_id)
        return asset_id in self.mine

    def free(self, asset_id: str) -> None:
        self.mine.discard(asset_id)


class Notes(Watcher):
    def __init__(self) -> None:
        self.notes = list[str]()

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    moment = [1000.0]
    monkeypatch.setattr(pipeline, "get_run_logger", lambda: logging.getLogger("queue"))
    monkeypatch.setattr(pipeline.time, "monotonic", lambda: moment[0])
    return moment


def queue(assets: list[Asset], *theirs: str) -> tuple[Queue, Others, Notes]:
    held, notes = Others(*theirs), Notes()
    return Queue(assets, {}, held, notes), held, notes  # type: ignore[arg-type]


def test_what_another_run_works_on_comes_last_and_is_asked_for_less_and_less(
    store: Store, tmp_path: Path, clock: list[float]
) -> None:
    duck, pig = (some_asset(store, tmp_path, name) for name in ("duck", "pig"))
    line, held, watch = queue([duck, pig], duck.id)
    assert line.take() is pig
    assert held.mine == {pig.id}
    asked, moments = held.asked, []
    while clock[0] < 1400:
        assert line.take() is None
        if held.asked > asked:
            asked = held.asked
            moments.append(clock[0])
        clock[0] += 0.5
    pauses = [after - before for before, after in pairwise([1000.0, *moments])]
    assert pauses[:2] == [ASK_SECONDS, ASK_SECONDS]
    assert pauses == sorted(pauses)
    assert pauses[-1] == SLOW_ASK_SECONDS
    assert watch.notes == ["duck: another run works on it"]


def test_an_attempt_whose_run_has_died_is_closed_when_its_asset_is_taken(
    store: Store, tmp_path: Path, clock: list[float]
) -> None:
    duck = some_asset(store, tmp_path, "duck")
    line, held, _ = queue([duck], duck.id)
    start_attempt(store, duck.spec, "other")
    assert line.take() is None
    held.theirs.clear()
    clock[0] += ASK_SECONDS
    assert line.take() is duck
    for table in ("assets", "attempts"):
        rows = query(store, f"SELECT run_id, status FROM {table}").to_pylist()
        assert rows == [{"run_id": "other", "status": "interrupted"}]


def test_a_field_is_made_once_and_kept_while_another_asset_waits_for_it(
    store: Store, tmp_path: Path, clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    duck = some_asset(store, tmp_path, "duck")
    mesh = replace(duck.spec.recipe.mesh, texture_size=8)
    other = replace(duck.spec, recipe=replace(duck.spec.recipe, mesh=mesh))
    twin = Asset("twin", other, store, duck.scratch, duck.rows)
    line, held, watch = queue([duck, twin])
    assert line.take() is duck
    assert line.take() is None, "its field is being made"
    duck.timings["optimize"] = 1.0
    assert line.take() is twin
    for name in ("made", "checkpoint"):
        path = duck.field_path if name == "made" else duck.checkpoint
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    duck.folder.mkdir(parents=True)
    line.end(duck, "ok")
    assert duck.field_path.exists()
    assert not duck.folder.exists()
    line.end(twin, "interrupted")
    assert twin.checkpoint.exists(), "the next run resumes from it"
    line._begun.add(twin)
    line.end(twin, "failed")
    assert twin.field_path.exists(), "a retry begins with it"
    line._begun.add(twin)
    line.end(twin, "reused")
    assert not twin.field_path.exists()
    assert not twin.checkpoint.exists()
    assert line.outcomes == {duck.id: "ok", twin.id: "reused"}
    assert held.mine == set()
    assert watch.tally.outcomes == {"ok": 1, "interrupted": 1, "failed": 1, "reused": 1}
    said = [record.message for record in caplog.records]
    assert (len(said), said[0]) == (4, "duck: ok after 1 s")


@pytest.mark.parametrize(
    ("status", "settled", "outcome"),
    [("ok", 0, "reused"), ("failed", 0, "failed"), ("interrupted", 0, None), ("failed", 1, None)],
)
def test_what_another_run_has_ended_meanwhile_is_not_made_again(
    store: Store, tmp_path: Path, clock: list[float], status: str, settled: int, outcome: str | None
) -> None:
    duck = some_asset(store, tmp_path, "duck")
    line, _, watch = queue([duck])
    line._settled = {duck.id: settled} if settled else {}
    attempt = start_attempt(store, duck.spec, "other")["attempt"]
    if status == "ok":
        commit(store, duck, attempt)
    else:
        finish_attempt(store, duck.id, attempt, status)
    assert line.take() is (None if outcome else duck)
    assert line.outcomes == ({duck.id: outcome} if outcome else {})
    ended = ["duck: another run ended attempt a01 meanwhile as failed"]
    assert watch.notes == (ended if outcome == "failed" else [])
    rows = query(store, "SELECT status FROM assets")["status"].to_pylist()
    assert rows == ([status] if status != "ok" and not settled else [])


def commit(store: Store, asset: Asset, attempt: str) -> None:
    mesh = asset.scratch / "mesh.glb"
    mesh.parent.mkdir(parents=True)
    mesh.write_bytes(b"glTF")
    versions = {"code": "1", "engine": "1"}
    commit_asset(store, asset.id, attempt, {mesh.name: mesh}, asset.spec, report(), {}, versions)


def test_the_name_of_a_task_says_which_asset_is_cancelled(
    store: Store, tmp_path: Path, clock: list[float]
) -> None:
    duck, pig = (some_asset(store, tmp_path, name) for name in ("rubber-duck", "pig"))
    line, *_ = queue([duck, pig])
    for name in ("optimize-rubber-duck", "optimize-nobody"):
        line.cancel(name)
    assert (duck.cancelled.is_set(), pig.cancelled.is_set()) == (True, False)


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """By name, what stages were given that ran; before, the states that they are to end in."""
    ran: dict[str, Any] = {}

    def run_stage(stage: Any, stopped: Event, *arguments: Any) -> State[Any]:
        given = ran.get(stage.name)
        ran[stage.name] = arguments
        return given or Completed(data={"outcome": "computed"})

    monkeypatch.setattr(pipeline, "run_stage", run_stage)
    monkeypatch.setattr(pipeline, "record_failure", lambda asset, error: f"row: {error}")
    return ran


CONTEXT: Any = SimpleNamespace(watcher=Watcher(), pool="pool", judges="judges", board="board")


def test_an_asset_passes_its_four_stages_in_order(
    asset: Asset, stages: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = list[str]()
    monkeypatch.setattr(CONTEXT.watcher, "stage", lambda _, stage: shown.append(stage))
    window = Window[Asset](lambda: 1, lambda: None)
    assert make_asset(window, CONTEXT, "run1", 7.0, asset) == "ok"
    assert shown == ["queue", "extract", "evaluate", "publish"]
    assert list(stages) == ["optimize", "extract", "evaluate", "publish"]
    first, run_id, pool, timeout, _, board = stages["optimize"]
    assert (first, run_id, pool, timeout, board) == (asset, "run1", "pool", 7.0, "board")
    assert stages["evaluate"][:3] == (asset, "judges", "board")
    assert stages["publish"] == (asset,)


@pytest.mark.parametrize("stage", ["optimize", "extract", "evaluate"])
@pytest.mark.parametrize("how", ["fails", "cancelled", "stopped"])
def test_a_stage_that_does_not_complete_is_the_last(
    asset: Asset, stages: dict[str, Any], stage: str, how: str
) -> None:
    asset.attempt = "a01"
    window = Window[Asset](lambda: 1, lambda: None)
    error = ValueError("no mesh")
    stages[stage] = Failed(data=error) if how == "fails" else Cancelled()
    if how == "stopped":
        stages[stage] = Failed(data=error)
        window.stopped.set()
    outcome = make_asset(window, CONTEXT, "run1", None, asset)
    assert outcome == ("row: no mesh" if how == "fails" else "interrupted")
    names = ["optimize", "extract", "evaluate", "publish"]
    after = names[names.index(stage) + 1 :]
    assert not stages.keys() & set(after)


def test_an_asset_is_cancelled_once_its_attempt_has_begun(
    asset: Asset, stages: dict[str, Any]
) -> None:
    asset.cancelled.set()
    asset.attempt = "a01"
    window = Window[Asset](lambda: 1, lambda: None)
    assert "cancelled on Prefect's pages" in make_asset(window, CONTEXT, "run1", None, asset)
    assert list(stages) == ["optimize"]


def test_a_pipeline_makes_each_of_its_assets_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.csv").write_text("id,prompt\nduck,a duck\npig,a pig\nagain,a duck\n")
    paths = str(tmp_path / "m.csv"), str(tmp_path / "store")
    plan = make_plan(Settings(*paths, devices=["cpu"], scratch=str(tmp_path / "scratch")))
    made: list[str] = []

    def make(window: Any, context: Any, run_id: str, timeout: float | None, asset: Asset) -> str:
        with window.at_device(asset):
            made.append(f"{run_id} {asset.name}")
        return "computed"

    monkeypatch.setattr(pipeline, "make_asset", make)
    monkeypatch.setattr(pipeline, "watch_cancels", lambda *_: nullcontext())
    monkeypatch.setattr(pipeline, "get_run_logger", logging.getLogger)
    pool = SimpleNamespace(slots=1, close=lambda: None)
    context: Any = SimpleNamespace(**{**vars(CONTEXT), "pool": pool})
    assert run_pipeline(context, plan, list(plan.todo), "run1") == dict.fromkeys(
        plan.todo, "computed"
    )
    assert sorted(made) == ["run1 duck", "run1 pig"]
    assert run_pipeline(context, plan, [], "run1") == {}


def test_a_stage_that_the_run_has_cancelled_has_no_other_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[Any] = []

    def run(stage: Any, **options: Any) -> State[Any]:
        calls.append(options)
        if len(calls) > 1:
            raise CancelledError
        return Completed()

    monkeypatch.setattr(pipeline, "run_task_sync", run)
    stopped, stage = Event(), SimpleNamespace(fn=lambda asset, run_id: None)
    assert pipeline.run_stage(stage, stopped, "duck", "run1").is_completed()
    assert calls[0]["parameters"] == {"asset": "duck", "run_id": "run1"}
    assert calls[0]["context"] == {"cancel_event": stopped}
    assert pipeline.run_stage(stage, stopped, "duck", "run1").is_cancelled()


@pytest.mark.parametrize("attempt", ["", "a01"])
def test_an_error_that_ends_the_run_is_raised(asset: Asset, attempt: str) -> None:
    asset.attempt = attempt
    error = TakesNoMore("full", "make room") if attempt else StoreError("gone", "mount it")
    with pytest.raises(type(error)):
        end_asset(asset, error)


def test_whoever_watches_is_told_of_files_that_arrive_damaged(
    asset: Asset, stages: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = Notes()
    monkeypatch.setattr(CONTEXT, "watcher", notes)
    for error in (WrongBytes("it arrives damaged", "try again"), ValueError("no mesh")):
        stages.clear()
        stages["extract"] = Failed(data=error)
        asset.attempt = "a01"
        make_asset(Window[Asset](lambda: 1, lambda: None), CONTEXT, "run1", None, asset)
    assert notes.notes == ["duck: it arrives damaged; try again."]


def test_files_that_arrive_damaged_interrupt_the_asset_alone(
    asset: Asset, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = list[str]()
    monkeypatch.setattr(pipeline, "record_failure", lambda _, error: rows.append(error.status))
    damaged = WrongBytes("it arrives damaged", "try again")
    assert end_asset(asset, damaged) == "interrupted"
    assert rows == [], "no attempt has begun"
    asset.attempt = "a01"
    end_asset(asset, damaged)
    assert rows == ["interrupted"]


def test_the_scratch_folders_and_the_stores_errors_are_no_failures(
    asset: Asset, stages: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asset.attempt = "a01"
    found = list[Any]()

    def record(_: Asset, error: BaseException) -> str:
        found.append(error)
        return "row"

    monkeypatch.setattr(pipeline, "record_failure", record)
    asset.scratch.mkdir()
    lost = FileNotFoundError(2, "not there", str(asset.scratch / "x"))
    full = OSError(28, "no space")
    for error in (StoreError("gone", "mount it"), lost, full, ValueError("its own")):
        assert end_asset(asset, error) == "row"
    *interrupted, own = found
    assert {error.status for error in interrupted} == {"interrupted"}
    types = [error.error_type for error in interrupted]
    assert types == ["StoreError", "ScratchLost", "ScratchFull"]
    assert isinstance(own, ValueError)


def test_what_an_engine_reports_reaches_the_watcher() -> None:
    seen: list[Any] = []

    class Seen(Notes):
        def working(self, *what: Any) -> None:
            seen.append(what)

        def progress(self, *what: Any) -> None:
            seen.append(what)

    watch = Seen()
    report_progress(watch, "duck", {"type": "working", "what": "loading", "done": 1, "total": 2})
    step = {"type": "progress", "step": 3, "steps": 4, "loss": 0.5}
    for unsaved in ({}, {"unsaved": "disk full"}, {"unsaved": "disk full"}):
        report_progress(watch, "duck", step | unsaved)
    assert seen == [("duck", "loading", 1, 2), *[("duck", 3, 4, 0.5)] * 3]
    assert watch.notes == ["warning: no checkpoints, assets continue without them: disk full"]
