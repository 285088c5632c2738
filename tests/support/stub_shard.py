"""A shard flow whose assets take no engine: made-up files and numbers, real documents and rows."""

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

if "pytest" not in sys.modules:  # whose other tests need the engine
    import no_engine  # noqa: F401

from prefect import flow
from prefect.states import State

import flows.generate
import flows.shard
from flows.context import surroundings
from flows.plan import RunPlan
from flows.run_record import Outcomes
from sjc_engine.spec import AssetSpec
from tasks.prefect_ui.artifacts import Board
from tasks.records.attempts import finish_attempt, start_attempt
from tasks.records.commit import commit_asset
from tasks.records.documents import asset_manifest
from tasks.store.interface import Store
from tasks.tables.write import TableWriter

VERSIONS = {"code": "stub", "engine": "stub"}


@flow(name="generate-shard")
def generate_shard(
    plan: str,
    shard: int,
    store: str,
    retry_failed: bool = False,
    timeout: float | None = None,
    checkpoint_to_store: bool = False,
    compiled: bool = False,
    allow_pickle: bool = False,
    fast_launch: bool = False,
    scratch: str | None = None,
) -> State[Any]:
    stubs: dict[str, Any] = {
        "run_context": no_devices,
        "run_pipeline": stub_pipeline,
    }
    with patch.multiple(flows.generate, **stubs):
        state: State[Any] = flows.shard.generate_shard.fn(
            plan, shard, store, devices=["cpu"], scratch=scratch, retry_failed=retry_failed
        )
        return state


@contextmanager
def no_devices(plan: RunPlan, board: Board) -> Iterator[Any]:
    pool = SimpleNamespace(retired=[])
    yield SimpleNamespace(watcher=surroundings().watcher, board=board, pool=pool)


def stub_pipeline(context: Any, plan: RunPlan, asset_ids: list[str], run_id: str) -> Outcomes:
    outcomes = make_stubs(plan, asset_ids, run_id)
    for asset_id, outcome in outcomes.items():
        context.watcher.finished(plan.assets[asset_id].row_id, outcome, 0.0)
    return outcomes


def make_stubs(plan: RunPlan, asset_ids: list[str], run_id: str) -> Outcomes:
    """Records assets one after the other, each after SJC_STUB_SECONDS seconds."""
    seconds = float(os.environ.get("SJC_STUB_SECONDS", "0"))
    with tempfile.TemporaryDirectory() as folder, TableWriter(plan.store) as rows:
        for asset_id in asset_ids:
            time.sleep(seconds)
            spec = plan.assets[asset_id].spec
            record_stub(plan.store, spec, run_id, Path(folder), seconds, rows)
    return dict.fromkeys(asset_ids, "ok")


def record_stub(
    store: Store, spec: AssetSpec, run_id: str, folder: Path, seconds: float, rows: TableWriter
) -> None:
    """What the stages of one asset leave in the store; nothing if it is there already."""
    attempt = start_attempt(store, spec, run_id)["attempt"]
    mesh = folder / "mesh.glb"
    mesh.write_bytes(spec.prompt.encode())
    report = {"steps": spec.recipe.optimize.steps, "device": "cpu", "faces": 12}
    timings = {"optimize": seconds, "extract": 0.0, "evaluate": 0.0, "publish": 0.0}
    commit_asset(store, spec.asset_id, attempt, {"mesh.glb": mesh}, spec, report, timings, VERSIONS)
    steps = spec.recipe.optimize.steps
    ended = finish_attempt(
        store, spec.asset_id, attempt, "ok", device="cpu", first_step=0, last_step=steps
    )
    rows.record(ended, asset_manifest(store, spec.asset_id) or {})
