"""How the stages of an asset end when the run around them does."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from prefect import flow, runtime, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from task_samples import spec

from flows import pipeline
from flows.pipeline import end_asset, make_asset, run_stage
from flows.progress.terminal import Watcher
from sjc_engine.mesh.isosurface import MeshError
from tasks.devices.job import SceneError
from tasks.prefect_ui.artifacts import Board
from tasks.records.attempts import close_interrupted, start_attempt
from tasks.stages.asset import Asset
from tasks.stages.optimize import optimize
from tasks.store import open_store
from tasks.store.interface import StoreError, WrongBytes
from tasks.tables.write import TableWriter

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_api")]


def test_a_stage_is_not_tried_again_when_the_run_stops_meanwhile() -> None:
    stopped, calls = Event(), list[float]()

    @task(retries=3, retry_delay_seconds=2)
    def fails() -> None:
        calls.append(time.monotonic())
        stopped.set()
        raise ConnectionError("no way there")

    @flow
    def run() -> Any:
        return run_stage(fails, stopped).is_cancelled()

    assert run()
    assert len(calls) == 1


@pytest.mark.parametrize("stopped", [True, False])
def test_what_a_stop_breaks_is_interrupted_and_not_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    """Ctrl-C reaches the helper processes of a stage as well."""
    store = open_store(tmp_path / "store")
    asset = Asset("duck", spec(), store, tmp_path / "scratch", TableWriter(store))

    @task
    def optimize(asset: Asset, *_: object) -> None:
        asset.attempt = "a01"

    @task
    def extract(asset: Asset, on_progress: Any) -> None:
        window.stopped.set() if stopped else None
        raise MeshError("xatlas failed (exit -2)")

    monkeypatch.setattr(pipeline, "optimize", optimize)
    monkeypatch.setattr(pipeline, "extract", extract)
    monkeypatch.setattr(pipeline, "record_failure", lambda asset, error: f"failed: {error}")
    window = pipeline.Window[Asset](lambda: 1, lambda: None)
    context: Any = SimpleNamespace(watcher=Watcher(), pool=None, judges=None, board=None)

    @flow
    def run() -> str:
        return make_asset(window, context, "run1", None, asset)

    wanted = "interrupted" if stopped else "failed: xatlas failed (exit -2)"
    assert run() == wanted


def test_a_failed_engines_last_lines_are_in_the_log_of_its_task(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    asset = Asset("duck", spec(), store, tmp_path / "scratch", TableWriter(store))

    def die(*_: object, **__: object) -> None:
        error = SceneError("failed", "EngineDied", "cpu: exit code 1")
        error.log_tail = "Traceback\nRuntimeError: of the engine"
        raise error

    @flow
    def run() -> str:
        pool = SimpleNamespace(run=die)
        stage = (optimize, Event(), asset, "run1", pool, None, lambda _: None, Board())
        assert run_stage(*stage).is_failed()
        return str(runtime.flow_run.id)

    wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[UUID(run())]))
    deadline = time.monotonic() + 60
    with get_client(sync_client=True) as client:
        while not (
            found := [
                log for log in client.read_logs(wanted)
                if "RuntimeError: of the engine" in log.message
            ]
        ):  # fmt: skip
            assert time.monotonic() < deadline
            time.sleep(0.2)
    assert all(log.task_run_id for log in found)


def test_an_asset_that_is_cancelled_before_its_attempt_is_a_row_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path / "store")
    asset = Asset("duck", spec(), store, tmp_path / "scratch", TableWriter(store))
    asset.cancelled.set()
    asset.attempt = "a01"
    monkeypatch.setattr(pipeline, "record_failure", lambda asset, error: error.status)
    assert end_asset(asset, None) == "cancelled"


def test_an_attempt_that_arrives_damaged_is_its_assets_trouble_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path / "store")
    asset = Asset("duck", spec(), store, tmp_path / "scratch", TableWriter(store))
    damaged = WrongBytes("Cannot write attempt.json: it arrives damaged", "try again")
    with pytest.raises(StoreError, match="gone"):
        end_asset(asset, StoreError("gone"))
    assert end_asset(asset, damaged) == "interrupted", "no attempt could begin"

    def fails(*_: object, **__: object) -> None:
        raise damaged

    asset.attempt = start_attempt(store, asset.spec, "run1")["attempt"]
    monkeypatch.setattr("tasks.stages.publish.finish_attempt", fails)
    assert end_asset(asset, ValueError("no mesh")) == "failed"
    [(closed, _)] = close_interrupted(store, [asset.id])
    assert closed["status"] == "interrupted", "the next run tries it again"
