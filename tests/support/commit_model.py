"""Runs that share a store, as programs of the model checker, and what they promise.

A run is the product's own code from its plan to the rows of its end; only the engine, whose files
are made up, the pages and Prefect are left out. Leases are too: safety must not depend on them, so
here every run may have every asset.
"""

from __future__ import annotations

import functools
import json
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from store_model import (
    Content,
    ModelStore,
    Violation,
    digest,
    execution,
    substitute,
    summarise,
    summarised,
)

import flows.pipeline
import flows.plan
import flows.run_record
import tasks.records.commit
import tasks.tables.read
from flows.pipeline import OUTCOMES, Queue, _asset, end_asset
from flows.plan import RunPlan, asset_states
from flows.progress.terminal import Watcher
from flows.run_record import recorded
from flows.scratch import scratch_id
from flows.settings import Settings
from sjc_engine.recipes import Recipe
from sjc_engine.spec import AssetSpec
from tasks.manifest.reading import Manifest
from tasks.manifest.resolve import Entry
from tasks.pages.report.contents import write_report
from tasks.records import attempts, documents, runs
from tasks.records.commit import asset_state, commit_asset
from tasks.stages.asset import Asset
from tasks.stages.publish import publish
from tasks.store.interface import StoreError
from tasks.store.layout import asset_folder
from tasks.store.leases import leases
from tasks.tables import write
from tasks.tables.read import query

RECIPE = Recipe.for_prior("toybox", "draft")
SPECS = [AssetSpec(f"a {toy}", "", None, 0, "toybox", "r", RECIPE) for toy in ("duck", "pig")]
ASSETS = [spec.asset_id for spec in SPECS]
PROGRAMS = ("run1", "run2", "next")
REPORT = {"steps": 3, "views": [
    {"view": 0, "azimuth_deg": 0.0, "elevation_deg": 12.8, "source": "mesh"}
]}  # fmt: skip
NOW = "2026-01-01T00:00:00.000000+00:00"


T = TypeVar("T")


class _Inline:
    """A pool of threads without threads: the order of calls within one program is fixed."""

    def __init__(self, *_: object) -> None: ...

    def __enter__(self) -> _Inline:
        return self

    def __exit__(self, *_: object) -> None: ...

    map = map

    def submit(self, work: Callable[..., T], *given: object) -> Future[T]:
        done = Future[T]()
        done.set_result(work(*given))
        return done


class _Queue(Queue):
    def end(self, asset: Asset, outcome: str) -> None:
        super().end(asset, outcome)
        execution().passes(asset_folder(asset.id))


class _NoLeases:
    def __enter__(self) -> _NoLeases:
        return self

    def __exit__(self, *_: object) -> None: ...

    def take(self, asset_id: str) -> bool:
        return True

    def free(self, asset_id: str) -> None: ...


def install(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Makes the product's code a function of what the store returns."""
    for module in (attempts, documents, flows.plan, tasks.records.commit, write, tasks.tables.read):
        if hasattr(module, "ThreadPoolExecutor"):
            patch.setattr(module, "ThreadPoolExecutor", _Inline)
    substitute(patch, documents.now, lambda: NOW)
    substitute(patch, runs.new_run_id, lambda: execution().new_name())
    patch.setattr(attempts, "secrets", SimpleNamespace(token_hex=lambda n: execution().new_name()))
    substitute(patch, leases, lambda store, owner: _NoLeases())
    substitute(patch, write_report, lambda *_: None)
    substitute(patch, scratch_id, lambda folder: "scratch")  # which reads all mounts: slow
    patch.setattr(flows.pipeline, "get_run_logger", lambda: logging.getLogger("model"))
    patch.setattr(threading, "Thread", lambda **_: SimpleNamespace(start=bool, join=bool))
    patch.setattr(Asset, "clear", lambda self, *, field: None)
    _cache_slow_parts(patch)
    summarise(
        patch, asset_state, documents.asset_manifest, attempts.read_attempts, attempts._close,
        attempts.settled_attempts, write.record_attempts,
        write.record_unended_runs, write.record_run, attempts.start_attempt, commit_asset,
        attempts.finish_attempt, query, write.compact_store, flows.run_record.close_attempts,
        _states,
    )  # fmt: skip
    patch.setattr(Queue, "_outcome_elsewhere", summarised(Queue._outcome_elsewhere))


def _cache_slow_parts(patch: pytest.MonkeyPatch) -> None:
    """Parquet is written once for the same rows."""
    to_arrow, parquet_bytes = write.to_arrow, write.parquet_bytes
    tables, files = dict[str, pa.Table](), dict[str, bytes]()

    def table(name: str, run_id: str | None, rows: list[Any]) -> pa.Table:
        key = repr((name, run_id, rows))
        if key not in tables:
            tables[key] = to_arrow(name, run_id, rows)
        return tables[key]

    def file(content: pa.Table) -> bytes:
        key = repr((content.column_names, content.to_pylist()))
        if key not in files:
            files[key] = parquet_bytes(content)
        return files[key]

    patch.setattr(write, "to_arrow", table)
    patch.setattr(write, "parquet_bytes", file)


def _states(store: ModelStore, ids: list[str]) -> dict[str, str]:
    """What a plan knows; whether an asset was begun matters to nothing that follows."""
    states = asset_states(store, ids)
    return {k: "new" if state == "interrupted" else state for k, state in states.items()}


def run_of(specs: Iterable[AssetSpec], folder: Path) -> Callable[[ModelStore], object]:
    entries = [
        Entry("m.csv", "0" * 64, line, spec.prompt[2:], spec, [], {}, None, 1.0, None)
        for line, spec in enumerate(specs, 2)
    ]
    for name in PROGRAMS:
        (folder / f"{name}.glb").write_text(name)
    settings = Settings("m.csv", scratch=str(folder / "scratch"))

    def run(store: ModelStore) -> None:
        ids = [entry.spec.asset_id for entry in entries]
        states = _states(store, ids)
        plan = RunPlan(
            settings, Manifest("m.csv", "0" * 64, [], []), entries, [], store, states, {}
        )
        with recorded(plan, Watcher(), logging.getLogger("model")) as (plan, document, outcomes):
            execution().passes("shared")
            with write.TableWriter(store) as rows:
                waiting = [_asset(plan, entry, folder, rows) for entry in plan.todo.values()]
                queue = _Queue(waiting, plan.settled, _NoLeases(), Watcher())  # type: ignore[arg-type]
                while (asset := queue.take()) is not None:
                    queue.end(asset, _make(asset, document["run_id"]))
                    rows.write()  # as its thread does
            outcomes |= queue.outcomes

    return run


def _make(asset: Asset, run_id: str) -> str:
    """The stages of an asset, as far as the store sees them."""
    try:
        asset.attempt = attempts.start_attempt(asset.store, asset.spec, run_id, 1.0)["attempt"]
        asset.report, asset.timings = dict(REPORT), {}
        asset.files = {"mesh.glb": asset.scratch / f"{run_id.partition('-')[0]}.glb"}
        return OUTCOMES[publish.fn(asset)["outcome"]]
    except StoreError as error:
        return end_asset(asset, error)


def read(store: ModelStore) -> list[dict[str, Any]]:
    """A reader: what the tables call finished, and all of its files."""
    found = query(store, "SELECT asset_id, run_id, attempt, status FROM best_assets").to_pylist()
    for row in found:
        if row["status"] == "ok":
            manifest = documents.finished_manifest(store, row["asset_id"])
            for file in documents.committed_files(row["asset_id"], manifest).values():
                documents.read_file(store, file)
    return found


def repair(store: ModelStore) -> None:
    write.rebuild_tables(store)


@functools.cache
def rows_of(key: str, data: bytes) -> frozenset[tuple[str, ...]]:
    """The rows of a table's file, as far as promises are about them: table, keys, status."""
    table, folder = key.split("/")[1:3]
    ends = ("asset_id", "attempt", "status")
    others = {"views": ("asset_id",), "entries": ("row_id",), "runs": ("manifest",)}
    names = others.get(table, ends)
    content = pq.read_table(pa.BufferReader(data)).to_pylist()
    run = folder.removeprefix("run_id=")
    return frozenset((table, row.get("run_id", run), *(row[n] for n in names)) for row in content)


def visible(content: Content) -> set[tuple[str, ...]]:
    """The rows of all tables."""
    tables = (rows_of(key, data) for key, data in content.items() if key.startswith("tables/"))
    return set().union(*tables)


def finished(content: Content) -> str:
    """The assets that a reader who begins now must see, as the reader's name."""
    good = {row[2] for row in visible(content) if row[0] == "assets" and row[-1] == "ok"}
    return " ".join(["reader", *sorted(good)])


def check_reader(name: str, found: Any) -> None:
    """A reader sees whole assets and each once, and all that were there when it began."""
    if isinstance(found, Exception):
        raise Violation(f"a reader fails: {found}")
    counts = Counter(row["asset_id"] for row in found)
    good = {row["asset_id"] for row in found if row["status"] == "ok"}
    if max(counts.values(), default=0) > 1:
        raise Violation(f"a reader sees an asset twice: {found}")
    if missing := set(name.split()[1:]) - good:
        raise Violation(f"a reader no longer sees {missing}")


@functools.cache
def _json(data: bytes) -> Any:
    return json.loads(data)


def check_change(before: Content, after: Content, key: str) -> None:
    """What holds at every moment, after the one key that has changed."""
    old, new = before.get(key), after.get(key)
    if key.startswith("tables/"):
        _check_rows(after, rows_of(key, old) if old else frozenset(), key)
    elif key.endswith("/manifest.json"):
        if old is not None:
            raise Violation(f"a commit marker is overwritten or removed: {key}")
        _check_whole(after, key)
    elif key.endswith("/attempt.json"):
        _check_attempt(after, key, old, new)
    elif old is not None and key.startswith("assets/"):
        raise Violation(f"a file of an asset is overwritten or removed: {key}")


def _check_whole(content: Content, key: str) -> dict[str, Any]:
    manifest: dict[str, Any] = _json(content[key])
    for name, about in manifest["files"].items():
        data = content.get(f"{key.rpartition('/')[0]}/{name}")
        if data is None or digest(data).sha256 != about["sha256"]:
            raise Violation(f"{key} commits {name}, which is not there")
    return manifest


def _check_attempt(content: Content, key: str, old: bytes | None, new: bytes | None) -> None:
    if new is None or (old is not None and _json(old)["token"] != _json(new)["token"]):
        raise Violation(f"an attempt is taken from its run: {key}")
    if old is not None and _json(old)["ended_at"] and not _json(new)["ended_at"]:
        raise Violation(f"an attempt that has ended goes on: {key}")
    if _json(new)["status"] == "ok":
        _check_committed(content, _json(new)["asset_id"], _json(new)["attempt"])


def _check_committed(content: Content, asset_id: str, attempt: str) -> None:
    marker = content.get(f"assets/{asset_id}/manifest.json")
    if marker is None or documents.committed_attempt(_json(marker)) != attempt:
        raise Violation(f"{attempt} of {asset_id} is ok, and not what was committed")


def _check_rows(after: Content, gone: frozenset[tuple[str, ...]], key: str) -> None:
    now = visible(after)
    # Of a row with the same keys, a later end may take the place.
    lost = {row[:4] for row in gone} - {row[:4] for row in now}
    lost |= {row for row in gone if row[-1] == "ok"} - now
    if lost:
        raise Violation(f"{key} is gone, and no file has its rows {lost}")
    for row in now:
        if row[0] == "assets" and row[-1] == "ok":
            _check_committed(after, row[2], row[3])


def check_end(content: Content, asset_ids: Iterable[str]) -> None:
    """What holds once everyone has ended or died, and one more run has come to its end."""
    for asset_id in asset_ids:
        if f"assets/{asset_id}/manifest.json" not in content:
            raise Violation(f"{asset_id} is not finished")
        _check_whole(content, f"assets/{asset_id}/manifest.json")
    documents_ = {k: _json(v) for k, v in content.items() if k.endswith("/attempt.json")}
    wanted = set()
    for key, document in documents_.items():
        names = tuple(document[name] for name in ("run_id", "asset_id", "attempt", "status"))
        marker = _json(content[f"assets/{document['asset_id']}/manifest.json"])
        committed = documents.committed_attempt(marker) == document["attempt"]
        if document["status"] == "running":
            raise Violation(f"{key} never ended, and nobody has closed it")
        if committed != (document["status"] == "ok"):
            raise Violation(f"{key} is {document['status']}; is it what was committed? {committed}")
        if committed:
            wanted |= {("assets", *names), ("views", *names[:2])}
        wanted.add(("attempts", *names))
    runs_ = [_json(v)["run_id"] for k, v in content.items() if k.startswith("runs/")]
    wanted |= {("runs", run, "m.csv") for run in runs_}
    if missing := wanted - (rows := visible(content)):
        raise Violation(f"no table has the rows {missing}")
    known = {("attempts", d["run_id"], d["asset_id"], d["attempt"]) for d in documents_.values()}
    if extra := {row[:4] for row in rows if row[0] == "attempts"} - known:
        raise Violation(f"no document is behind the rows {extra}")
