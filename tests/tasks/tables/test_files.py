"""The tables' files: no row lost or seen twice, whoever writes at once and wherever one dies."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from task_samples import all_tables, fill, make, make_run, rating, record_attempt, report, spec

from tasks.records.annotations import save_annotations
from tasks.records.attempts import (
    asset_attempts,
    close_interrupted,
    finish_attempt,
    start_attempt,
)
from tasks.records.documents import asset_manifest, read_document
from tasks.records.runs import finish_run, start_run
from tasks.records.verify import verify_store
from tasks.store import open_store
from tasks.store.interface import Damaged, NewerStore, Store, StoreError, bytes_digest
from tasks.tables import read as table_reader
from tasks.tables import write as tables
from tasks.tables.columns import RowError
from tasks.tables.projection import attempt_row, view_rows
from tasks.tables.read import query, read_table
from tasks.tables.schemas import COMPACTED_SCHEMAS, FILE_SCHEMAS, SCHEMAS
from tasks.tables.write import (
    TableWriter,
    compact_store,
    projection,
    rebuild_tables,
    record_run,
    row_finder,
)

ROOT = Path(__file__).parents[3]
ONE_EACH = dict.fromkeys(SCHEMAS, 1)
UNRATED = {**ONE_EACH, "annotations": 0}


def without_rows(store: Store, asset_ids: list[str]) -> list[Any]:
    """The ended attempts that the next run records."""
    return close_interrupted(store, asset_ids, has_rows=row_finder(store))


def files(store: Store, folder: str = "") -> list[str]:
    return [key for key in store.list(f"tables/{folder}") if key.endswith(".parquet")]


def ended(store: Store, run_id: str, prompt: str, status: str = "failed") -> dict[str, Any]:
    """An attempt that has ended, without rows."""
    attempt = start_attempt(store, spec(prompt), run_id)["attempt"]
    error = ValueError("no luck")
    return finish_attempt(store, spec(prompt).asset_id, attempt, status, error=error)


def wanted(store: Store) -> dict[str, list[dict[str, Any]]]:
    """What the tables must hold."""
    return {name: sorted(rows.to_pylist(), key=repr) for name, rows in projection(store).items()}


class Died(BaseException):
    """The process ends here."""


@contextlib.contextmanager
def dying(
    store: Store, at: int, names: tuple[str, ...] = ("put_bytes", "delete")
) -> Iterator[None]:
    """The process dies before its n-th write or deletion."""
    count = 0
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            method = getattr(type(store), name)

            def mortal(self: Store, *args: Any, method: Any = method, **options: Any) -> Any:
                nonlocal count
                count += 1
                if count >= at:
                    raise Died
                return method(self, *args, **options)

            patch.setattr(type(store), name, mortal)
        yield


def dies(store: Store, action: Callable[[], object], at: int) -> bool:
    """Whether `action` dies at its n-th step, and does not come through before."""
    try:
        with dying(store, at):
            action()
    except Died:
        return True
    return False


def test_a_projection_packs_each_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "PACKED", 2)
    packed: list[int] = []

    def pack(table: str, run_id: str | None, rows: Sequence[Any]) -> pa.Table:
        packed.append(len(rows))
        return to_arrow(table, run_id, rows)

    to_arrow = tables.to_arrow
    monkeypatch.setattr(tables, "to_arrow", pack)
    made, store = tables.Projection(), open_store(tmp_path / "store")
    for number in range(5):
        made.add({"attempts": [attempt_row(ended(store, "run1", f"thing {number}"))]})
    assert packed == [2, 2]
    assert made.tables()["attempts"].num_rows == 5
    assert sum(packed) == 5


# --- a writer ----------------------------------------------------------------------------------


def test_rows_are_there_within_seconds_and_in_few_files(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tables.WRITE_SECONDS <= 5
    monkeypatch.setattr(tables, "WRITE_SECONDS", 0.3)
    with TableWriter(store) as rows:
        for number in range(5):
            rows.record(ended(store, "run1", f"thing {number}"), {})
            deadline = time.monotonic() + 10
            while read_table(store, "assets").shape[0] <= number:
                assert time.monotonic() < deadline, "the block must not end before a row is there"
                time.sleep(0.05)
        assert len(files(store, "assets/")) == 1
    assert len(files(store, "assets/")) == len(files(store, "attempts/")) == 1
    assert all_tables(store) == wanted(store)


def test_a_writers_thread_ends_with_its_block_and_keeps_no_process_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "WRITE_SECONDS", 0.001)
    store = open_store(tmp_path / "store")
    with TableWriter(store) as rows:
        assert rows._thread.daemon
        rows.record(ended(store, "run1", "a duck"), {})
        while not files(store, "assets/"):
            time.sleep(0.01)
        time.sleep(0.1)  # until it waits for more
    rows._thread.join(1)
    assert not rows._thread.is_alive()


def test_a_file_that_grows_is_replaced_only_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "WRITE_SECONDS", 600.0)
    store = open_store(tmp_path / "store")
    with TableWriter(store) as rows:
        rows.record(ended(store, "run1", "thing 0"), {})
        while not files(store, "assets/"):
            time.sleep(0.01)
        for number in range(1, 5):
            rows.record(ended(store, "run1", f"thing {number}"), {})
            time.sleep(0.05)
        assert len(read_table(store, "assets")) == 1, "the next write comes later"
    assert len(read_table(store, "assets")) == 5


def test_the_rows_of_assets_are_written_last(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    pig = spec("a pig").asset_id
    make(store, tmp_path, spec("a pig"), "run1")
    writer = TableWriter(store)
    writer.record(ended(store, "run1", "a duck"), {})  # no views
    attempt = read_document(store, f"assets/{pig}/a01/attempt.json")
    writer.record(attempt, asset_manifest(store, pig) or {})
    written: list[str] = []

    def put(self: Store, key: str, data: bytes, **options: Any) -> Any:
        written.append(key)
        return put_bytes(self, key, data, **options)

    with pytest.MonkeyPatch.context() as patch:
        put_bytes = type(store).put_bytes
        patch.setattr(type(store), "put_bytes", put)
        writer.write()
    assert [key.split("/")[1] for key in written] == ["attempts", "views", "history", "assets"]


def test_a_part_that_is_full_is_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tables.PART == 300
    monkeypatch.setattr(tables, "PART", 3)
    store = open_store(tmp_path / "store")
    rows = TableWriter(store)
    for number in range(4):
        rows.record(ended(store, "run1", f"thing {number}"), {})
    rows.write()
    first, second = files(store, "assets/")
    stamp = os.stat(store.uri(first)).st_mtime_ns
    for number in range(4, 8):
        rows.record(ended(store, "run1", f"thing {number}"), {})
        rows.write()
    assert os.stat(store.uri(first)).st_mtime_ns == stamp
    counts = [pq.read_metadata(store.uri(key)).num_rows for key in files(store, "assets/")]
    assert counts == [3, 3, 2]
    assert second not in files(store), "the one that grew was replaced"
    assert all_tables(store) == wanted(store)


def test_a_writer_that_dies_anywhere_leaves_whole_rows_and_the_next_run_the_rest(
    tmp_path: Path,
) -> None:
    for at in itertools.count(1):
        fresh = open_store(tmp_path / str(at))
        attempts = [ended(fresh, f"run{number % 2}", f"thing {number}") for number in range(4)]

        def work(store: Store = fresh, attempts: list[dict[str, Any]] = attempts) -> None:
            rows = TableWriter(store)
            for number, attempt in enumerate(attempts):
                rows.record(attempt, {})
                if number % 2:
                    rows.write()

        died = dies(fresh, work, at)
        found = {name: query(fresh, f"SELECT * FROM {name}") for name in ("assets", "attempts")}
        ids = {name: rows["asset_id"].to_pylist() for name, rows in found.items()}
        assert len(set(ids["assets"])) == len(ids["assets"]), at
        assert set(ids["assets"]) <= set(ids["attempts"]), at
        # What the next run does.
        for attempt in without_rows(fresh, [a["asset_id"] for a in attempts]):
            record_attempt(fresh, *attempt)
        rows = query(fresh, "SELECT DISTINCT asset_id FROM assets JOIN attempts USING (asset_id)")
        assert len(rows) == len(attempts), at
        if not died:
            break
    assert at == 13, "four files, four that replace them, and these are deleted"
    assert all_tables(fresh) == wanted(fresh)


def test_the_rows_of_a_killed_process_are_written_by_the_next_run(tmp_path: Path) -> None:
    """SIGKILL between the commit of an asset and its rows."""
    store = open_store(tmp_path / "store")
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "sys.path.insert(0, 'tests/support'); from task_samples import *\n"
        "from tasks.tables import write as tables\n"
        "from tasks.store import open_store\n"
        "store, folder = open_store(sys.argv[1]), Path(sys.argv[2])\n"
        "rows = tables.TableWriter(store).__enter__()\n"
        "make(store, folder, spec(), 'run1')\n"
        "rows.write = lambda: os.kill(os.getpid(), signal.SIGKILL)\n"
        "import task_samples; task_samples.record_attempt = lambda s, *a: rows.record(*a)\n"
        "make(store, folder, spec('a pig'), 'run1'); rows._thread.join()\n"
    )
    command = [sys.executable, "-c", code, store.url, str(tmp_path)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -9
    assert list(read_table(store, "assets")["prompt"]) == ["a duck"]
    finished = [spec().asset_id, spec("a pig").asset_id]
    [(attempt, manifest)] = without_rows(store, finished)
    record_attempt(store, attempt, manifest)
    assert all_tables(store) == wanted(store)
    assert len(read_table(store, "views")) == 8
    assert without_rows(store, finished) == []


def test_every_ended_attempt_gets_its_rows_whatever_has_become_of_its_asset(tmp_path: Path) -> None:
    """Their processes died between the word in `attempt.json` and the rows."""
    store = open_store(tmp_path / "store")
    first = ended(store, "run1", "a duck", "interrupted")
    make(store, tmp_path, spec(), "run2")
    late = ended(store, "run3", "a duck", "cancelled")
    again = ended(store, "run2", "a duck", "interrupted")  # a second claim: a reply was lost
    asset_id = spec().asset_id
    assert [a for a, _ in without_rows(store, [asset_id])] == [first, late, again]
    for pair in without_rows(store, [asset_id]):
        record_attempt(store, *pair)
    assert without_rows(store, [asset_id]) == []
    assert all_tables(store) == wanted(store)
    # One that was closed too early, and has come to its true end since.
    finish_attempt(store, asset_id, first["attempt"], "failed")
    [(attempt, _)] = without_rows(store, [asset_id])
    assert (attempt["attempt"], attempt["status"]) == ("a01", "failed")


def test_a_store_that_fails_for_a_while_costs_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "WRITE_SECONDS", 0.02)
    store = open_store(tmp_path / "store")
    put, failed = type(store).put_bytes, list[str]()

    def failing(self: Store, key: str, *rest: Any, **options: Any) -> Any:
        if key.startswith("tables/assets") and len(failed) < 3:
            failed.append(key)
            raise StoreError("no way there")
        return put(self, key, *rest, **options)

    monkeypatch.setattr(type(store), "put_bytes", failing)
    with TableWriter(store) as rows:
        for number in range(3):
            rows.record(ended(store, "run1", f"thing {number}"), {})
            time.sleep(0.05)
    assert len(failed) == 3
    assert all_tables(store) == wanted(store)


def test_the_error_of_a_last_write_is_raised_unless_there_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path / "store")
    attempt = ended(store, "run1", "a duck")

    def fail(*_: object, **__: object) -> None:
        raise StoreError("no way there")

    def work(error: BaseException | None) -> None:
        with TableWriter(store) as rows:
            rows.record(attempt, {})
            if error:
                raise error

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "put_bytes", fail)
        with pytest.raises(StoreError, match="no way there"):
            work(None)
        with pytest.raises(ValueError, match="the first error"):
            work(ValueError("the first error"))
    with TableWriter(store) as rows:
        pass
    rows.record(attempt, {})  # of a task that ends after its run
    assert all_tables(store) == wanted(store)


def test_the_true_end_of_an_attempt_counts(store: Store, tmp_path: Path) -> None:
    """Another run took this one for dead and closed its attempt; the table is compacted since."""
    make(store, tmp_path, spec("a pig"), "run1", "failed")
    start_attempt(store, spec(), "run1")
    closed = close_interrupted(store, [spec().asset_id])
    true_end = finish_attempt(store, spec().asset_id, "a01", "diverged")
    true_end["ended_at"] = "2020-01-01T00:00:00+00:00"  # its machine's clock is late
    for attempt, manifest in closed:
        record_attempt(store, attempt, manifest)
    compact_store(store)
    ends: list[Sequence[Any]] = [[(true_end, {})], closed]
    for writes in ends:
        for attempt, manifest in writes:
            record_attempt(store, attempt, manifest)
        for _ in range(2):
            frame = read_table(store, "assets").set_index("prompt")
            assert dict(frame["status"]) == {"a duck": "diverged", "a pig": "failed"}
            assert sorted(read_table(store, "attempts")["status"]) == ["diverged", "failed"]
            compact_store(store)


def test_of_an_assets_attempts_in_a_run_the_last_one_counts(store: Store, tmp_path: Path) -> None:
    attempts = [ended(store, "run1", "a mug"), ended(store, "run1", "a mug", "timeout")]
    attempts[1]["ended_at"] = "2020-01-01T00:00:00+00:00"  # clocks differ
    for order in (attempts, attempts[::-1]):
        for attempt in order:
            record_attempt(store, attempt, {})
        assert list(read_table(store, "assets")["attempt"]) == ["a02"]
        assert list(read_table(store, "attempts")["attempt"]) == ["a01", "a02"]
        compact_store(store)
    with TableWriter(store) as rows:
        for attempt in attempts:
            rows.record({**attempt, "run_id": "run2"}, {})
    assert sorted(r["run_id"] for r in all_tables(store)["assets"]) == ["run1", "run2"]
    assert len(read_table(store, "attempts")) == 4


def test_a_run_counts_with_its_end(store: Store, tmp_path: Path) -> None:
    make_run(store, tmp_path, "run1", "duck,a duck,t,v\n")
    entries = read_document(store, "runs/run1.json")["entries"]
    run = start_run(store, "run2", "m.csv", "0" * 64, [], {})
    run["entries"] = [{**entry, "outcome": None} for entry in entries]
    record_run(store, run)
    assert compact_store(store) == UNRATED
    end = finish_run(store, run, {"duck": "reused"})
    for document in (end, run, end):  # a compaction may bring the beginning back
        record_run(store, document)
        for _ in range(2):
            rows = query(store, "SELECT ended_at IS NULL AS open FROM runs WHERE run_id = 'run2'")
            assert rows.to_pylist() == [{"open": False}]
            outcomes = query(store, "SELECT outcome FROM entries WHERE run_id = 'run2'")
            assert outcomes.to_pylist() == [{"outcome": "reused"}]
            compact_store(store)


def test_rows_of_a_run_that_another_version_has_written_are_written_again(
    store: Store, tmp_path: Path
) -> None:
    """By programs whose files of the same rows have other bytes."""
    run = start_run(store, "run1", "m.csv", "0" * 64, [], {})
    for name, document in (("begun", run), ("ended", finish_run(store, run, {}))):
        record_run(store, document)
        file = f"tables/runs/run_id=run1/{name}.parquet"
        rows = pq.read_table(pa.BufferReader(store.get_bytes(file)))
        other = write_file(store, file, rows.slice(0, 0))
        record_run(store, document)
        assert bytes_digest(store.get_bytes(file)).sha256 != other
    assert files(store, "runs/") == [file], "the end takes the place of the beginning"
    assert all_tables(store) == wanted(store)


def test_the_rows_of_runs_that_were_killed_are_written(tmp_path: Path) -> None:
    """Killed between its JSON and its rows, at its start and at its end."""
    store = open_store(tmp_path / "store")
    make_run(store, tmp_path, "run1", "duck,a duck,t,v\n")
    run = start_run(store, "run2", "m.csv", "0" * 64, [], {})
    record_run(store, run)
    finish_run(store, run, {})
    start_run(store, "run3", "m.csv", "0" * 64, [], {})
    compact_store(store)
    rows = query(store, "SELECT run_id, ended_at IS NULL AS open FROM runs ORDER BY 1").to_pylist()
    assert [(row["run_id"], row["open"]) for row in rows] == [
        ("run1", False),
        ("run2", False),
        ("run3", True),
    ]


def test_a_wrong_row_writes_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    attempt = ended(store, "run1", "a duck")
    with pytest.raises(RowError), TableWriter(store) as rows:
        rows.record({**attempt, "first_step": -1}, {})
    assert files(store) == []


def test_a_file_is_complete_or_absent(tmp_path: Path) -> None:
    """SIGKILL in the middle of a write."""
    store = open_store(tmp_path / "store")
    make(store, tmp_path, spec(), "run1", "failed")
    before = all_tables(store)
    code = (
        "import os, signal, sys; from tasks.store import *\n"
        "from tasks.store import local as store_local\n"
        "from tasks.tables.write import record_attempts\n"
        "from tasks.records.attempts import asset_attempts\n"
        "store = open_store(sys.argv[1])\n"
        "[attempt] = asset_attempts(store, sys.argv[2])\n"
        "store_local.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "record_attempts(store, [({**attempt, 'attempt': 'a02'}, {})])"
    )
    command = [sys.executable, "-c", code, store.url, spec().asset_id]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -9
    assert len(os.listdir(tmp_path / "store/tables/attempts/run_id=run1")) == 2
    assert all_tables(store) == before


# --- compaction and repair ---------------------------------------------------------------------


def test_compaction_leaves_one_file_of_each_table_with_every_row(
    whole: Store, tmp_path: Path
) -> None:
    store = whole
    before = all_tables(store)
    assert before == wanted(store)
    for _ in range(2):
        assert compact_store(store) == ONE_EACH
        assert all_tables(store) == before
    assert all("/compacted/" in key for key in files(store))
    kept = files(store)
    compact_store(store)
    assert files(store) == kept, "there was nothing to do"

    # Rows of runs that it covers come later all the same.
    make_run(store, tmp_path, "run3", "duck,a duck,t,v\nbus,a bus,,\n")
    make(store, tmp_path, spec("a pen"), "run1", "failed")
    record_attempt(store, *unrecorded(store, spec().asset_id))
    grown = all_tables(store)
    assert grown == wanted(store)
    assert len(grown["attempts"]) == len(before["attempts"]) + 2
    assert compact_store(store) == ONE_EACH
    assert all_tables(store) == grown


def test_a_compaction_tells_of_each_table_that_it_has_changed(store: Store, tmp_path: Path) -> None:
    for prompt in ("a duck", "a pig"):
        record_attempt(store, ended(store, "run1", prompt), {})
    said: list[str] = []
    for _ in range(2):
        compact_store(store, said.append)
    assert said == ["table assets: compacted", "table attempts: compacted"]


def test_a_compaction_marks_a_store_and_leaves_a_newer_one_alone(store: Store) -> None:
    for prompt in ("a duck", "a pig"):
        record_attempt(store, ended(store, "run1", prompt), {})
    compact_store(store)
    ours = read_document(store, "store.json")
    record_attempt(store, ended(store, "run1", "a tank"), {})
    before = files(store)
    newer = json.dumps({**ours, "tables": ours["tables"] + 1}).encode()
    store.put_bytes("store.json", newer, replace=True)
    with pytest.raises(NewerStore):
        compact_store(store)
    assert files(store) == before


def unrecorded(store: Store, asset_id: str) -> tuple[Any, Any]:
    """An attempt that has its rows, as a run that does not know it would record it."""
    return asset_attempts(store, asset_id)[0], asset_manifest(store, asset_id) or {}


def test_a_compaction_or_repair_that_dies_anywhere_leaves_the_tables_right(
    tmp_path: Path,
) -> None:
    store = open_store(tmp_path / "store")
    make_run(store, tmp_path, "run1", "duck,a duck,t,v\n")
    for action in (compact_store, rebuild_tables):
        make(store, tmp_path, spec(f"a late one of {action.__name__}"), "run1")
        save_annotations(store, [rating(spec(), "3", action.__name__)])
        before = all_tables(store)
        at = 1
        while dies(store, partial(action, store), at):
            assert all_tables(store) == before
            at += 1
        assert all_tables(store) == before
        assert at > 3
        assert len(files(store)) == len(SCHEMAS)


@pytest.mark.parametrize("table", ["assets", "attempts", "runs"])
def test_a_file_that_is_replaced_while_it_is_compacted_loses_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    """A run writes, or ends, after the compaction or the repair has read and before it deletes."""
    runs = [start_run(store, f"run{number}", "m.csv", "0" * 64, [], {}) for number in (1, 2)]
    for run in runs:
        record_run(store, run)
    rows, replace, count = TableWriter(store), tables._replace, 0
    rows.record(ended(store, "run1", "the first"), {})
    rows.write()

    def overtaken(store: Store, name: str, *rest: Any) -> None:
        nonlocal count
        if name == table:
            rows.record(ended(store, "run1", f"number {count}"), {})
            rows.write()
            record_run(store, finish_run(store, runs[count], {}))
            count += 1
        replace(store, name, *rest)

    monkeypatch.setattr(tables, "_replace", overtaken)
    for action in (compact_store, rebuild_tables):
        record_attempt(store, ended(store, "run2", f"before {action.__name__}"), {})
        action(store)
        assert all_tables(store) == wanted(store), action
    assert count == 2


def test_two_compactions_at_once_lose_nothing(
    whole: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sleeps after it has read, for two others with new rows between them."""
    store = whole
    write, seen = tables._replace, list[str]()

    def overtaken(store: Store, table: str, *rest: Any) -> None:
        seen.append(table)
        if len(seen) == 1:
            for prompt in ("a pen", "a cup"):
                compact_store(store)
                make(store, tmp_path, spec(prompt), "run1", "failed")
            compact_store(store)
        write(store, table, *rest)

    monkeypatch.setattr(tables, "_replace", overtaken)
    compact_store(store)
    assert all_tables(store) == wanted(store)
    assert compact_store(store) == ONE_EACH
    assert all_tables(store) == wanted(store)


def test_runs_readers_compactions_and_repairs_at_once(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "WRITE_SECONDS", 0.02)
    monkeypatch.setattr(tables, "PART", 4)
    make(store, tmp_path, spec(), "run0")
    seen: list[int] = []
    errors: list[BaseException] = []
    done = threading.Event()

    def forever(action: Callable[[], object]) -> threading.Thread:
        def loop() -> None:
            while not done.is_set():
                try:
                    action()
                except BaseException as error:
                    errors.append(error)
                    raise

        thread = threading.Thread(target=loop)
        thread.start()
        return thread

    def read() -> None:
        rows = query(store, "SELECT count(*) AS n, count(DISTINCT asset_id) AS d FROM attempts")
        [row] = rows.to_pylist()
        assert row["n"] == row["d"], "a row is there twice"
        seen.append(row["n"])

    actions = (read, partial(compact_store, store), partial(compact_store, store),
               partial(rebuild_tables, store))  # fmt: skip
    threads = [forever(action) for action in actions]

    def run(name: str) -> None:
        with TableWriter(store) as rows:
            for number in range(5):
                rows.record(ended(store, name, f"thing {number} of {name}"), {})
                rows.record(ended(store, "dead", f"thing {number} of {name} for the dead"), {})
                time.sleep(0.02)

    runs = [threading.Thread(target=run, args=(f"run{number}",)) for number in (1, 2)]
    for thread in runs:
        thread.start()
    for thread in runs:
        thread.join()
    done.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert seen == sorted(seen), "a row was missing"
    assert all_tables(store) == wanted(store)
    assert len(read_table(store, "attempts")) == 21
    assert compact_store(store) == {**UNRATED, "entries": 0, "runs": 0}
    assert all_tables(store) == wanted(store)


@pytest.mark.parametrize("moment", ["before the listing", "within the listing", "after it"])
def test_readers_see_every_row_while_files_move(
    whole: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """A listing may pass the compacted files before there is one, and then find nothing else."""
    store = whole
    before, table_keys, listed = all_tables(store), table_reader.table_keys, list[str]()

    def moving(store: Store, folder: str) -> list[str]:
        if folder != "attempts" or listed:
            return table_keys(store, folder)
        listed.append(folder)
        if moment == "after it":
            keys = table_keys(store, folder)
        compact_store(store)
        if moment == "before the listing":
            keys = table_keys(store, folder)
        return [] if moment == "within the listing" else keys

    monkeypatch.setattr(table_reader, "table_keys", moving)
    assert (
        sorted(query(store, "SELECT * FROM attempts").to_pylist(), key=repr) == before["attempts"]
    )
    assert listed


def test_tables_that_never_stand_still_are_an_error(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(store, tmp_path, spec(), "run1")
    gone = ["tables/attempts/run_id=run1/gone.parquet"]
    monkeypatch.setattr(table_reader, "table_keys", lambda *_: gone)
    with pytest.raises(StoreError, match="change all the time"):
        query(store, "SELECT * FROM attempts")


def test_every_table_can_be_made_again_from_the_json(whole: Store, tmp_path: Path) -> None:
    store = whole
    before = all_tables(store)
    rebuild_tables(store)
    assert all_tables(store) == before
    for key in list(store.list("tables/")):
        store.delete(key)
    store.put_bytes("tables/assets/run_id=run1/torn.parquet", b"PAR1")
    store.put_bytes("runs/run1.png", b"a picture beside the JSON")
    rebuild_tables(store)
    assert all_tables(store) == before
    start_attempt(store, spec("a running one"), "run9")
    rebuild_tables(store)
    assert all_tables(store) == before, "what is not over has no row"
    assert len(files(store)) == len(SCHEMAS)


def test_rows_without_json_are_set_aside(store: Store, tmp_path: Path) -> None:
    make(store, tmp_path, spec(), "run1")
    make(store, tmp_path, spec("a pig"), "run1")
    for key in list(store.list(f"assets/{spec().asset_id}/")):
        store.delete(key)
    rebuild_tables(store)
    assert list(read_table(store, "assets")["prompt"]) == ["a pig"]
    aside = [key for key in store.list("tables/assets/") if key.endswith(".damaged")]
    assert len(aside) == 1
    assert all_tables(store) == wanted(store)


def test_other_readers_of_the_folders(tmp_path: Path) -> None:
    """As docs/tables.md says: pandas at any time, DuckDB once all is compacted."""
    store = open_store(tmp_path / "store")
    fill(store, tmp_path)
    before = all_tables(store)["attempts"]
    compact_store(store)
    folder = tmp_path / "store/tables/attempts"
    expected = sorted((row["run_id"], row["asset_id"], row["attempt"]) for row in before)
    rows = duckdb.sql(f"SELECT run_id, asset_id, attempt FROM '{folder}/*/*.parquet'")
    assert rows is not None
    assert sorted(rows.fetchall()) == expected
    make(store, tmp_path, spec("a pen"), "run9", "failed")
    frame = pd.read_parquet(folder)
    assert set(frame["run_id"]) == {"run1", "run2", "run9"}
    assert len(frame) == len(expected) + 1


def test_a_later_evaluation_shares_the_files(store: Store, tmp_path: Path) -> None:
    """An attempt with a report of its own, and the files of the one that was committed."""
    make(store, tmp_path, spec(), "run1", clip_score=20.0)
    manifest = asset_manifest(store, spec().asset_id)
    assert manifest is not None
    start_attempt(store, spec(), "run2")
    end = finish_attempt(store, spec().asset_id, "a02", "ok", report=report(clip_score=25.0))
    record_attempt(store, end, manifest)
    [row] = read_table(store, "assets").to_dict("records")
    assert (row["clip_score"], row["run_id"]) == (25.0, "run2")
    assert row["uri_mesh"].endswith("/a01/mesh.glb")
    assert len(view_rows(store, end, manifest)) == 4
    assert attempt_row(end)["status"] == "ok"


# --- stores of earlier versions ----------------------------------------------------------------

NEW_SINCE_1 = ("field_mesh_lpips", "lpips_weights", "coverage", "rolled_back", "words_cut",
               "dtype", "words_cut_by_judge")  # fmt: skip


def write_file(store: Store, key: str, rows: pa.Table, **metadata: str) -> str:
    """As any version writes one; its SHA-256."""
    about = {
        **(rows.schema.metadata or {}),
        **{f"sjc.{k}".encode(): v for k, v in metadata.items()},
    }
    sink = pa.BufferOutputStream()
    pq.write_table(rows.replace_schema_metadata(about), sink, compression="zstd")
    return store.put_bytes(key, sink.getvalue().to_pybytes(), replace=True).sha256


def make_old(store: Store) -> None:
    """Puts the tables' rows into the files that version 0.1 made of them.

    Those are a part for each asset and attempt while a run goes on, `sealed-N` when it has ended,
    and `compacted/N` of all runs, where the highest N has everything. A merged file names those
    that it replaced, with their SHA-256, and some of them are still there after a crash.
    """
    tables = [name for name in SCHEMAS if name != "annotations"]
    whole = {name: query(store, f"SELECT * FROM {name}") for name in tables}
    for name in tables:
        for key in files(store, f"{name}/"):
            store.delete(key)
    for table, rows in whole.items():
        rows = rows.cast(SCHEMAS[table])
        runs = {run: rows.filter(pc.equal(rows["run_id"], run)) for run in ("run1", "run2")}
        first, second = (
            part.drop_columns("run_id").cast(FILE_SCHEMAS[table]) for part in runs.values()
        )
        held = {}
        for number in range(first.num_rows):  # all of them were left by a crash
            name = f"run_id=run1/{number:016x}-a01.parquet"
            row = first.slice(number, 1)
            if table == "assets":  # sealed with its retry, which counts
                row = row.set_column(3, row.schema.field(3), pa.array(["failed"]))
                row = row.set_column(2, row.schema.field(2), pa.array(["a00"]))
            if table == "runs":  # what was written at its start
                place = row.schema.get_field_index("ended_at")
                row = row.set_column(
                    place, row.schema.field(place), pa.nulls(1, row.schema.types[place])
                )
            held[name] = write_file(store, f"tables/{table}/{name}", row)
        parts = ", ".join(f'"{k.partition("/")[2]}": "{v}"' for k, v in held.items())
        sealed = f"tables/{table}/run_id=run1/sealed-0001.parquet"
        write_file(store, sealed, first, parts=f"{{{parts}}}")
        compacted = runs["run1"].cast(COMPACTED_SCHEMAS[table])
        some = '{"run_id=run1/sealed-0001.parquet": "of another file, which came later"}'
        write_file(
            store, f"tables/{table}/compacted/0001.parquet", compacted.slice(0, 1), parts="{}"
        )
        write_file(store, f"tables/{table}/compacted/0002.parquet", compacted, parts=some)
        for number in range(second.num_rows):  # of a run that goes on
            row = second.slice(number, 1)
            write_file(store, f"tables/{table}/run_id=run2/{number:016x}-a02.parquet", row)


def test_stores_of_earlier_versions_stay_readable_and_compactable(
    whole: Store, tmp_path: Path
) -> None:
    store = whole
    before = all_tables(store)
    make_old(store)
    assert len(files(store)) > 25
    assert all_tables(store) == before
    make(store, tmp_path, spec("a new one"), "run1", "failed")
    grown = all_tables(store)
    assert grown == wanted(store)
    assert verify_store(store) == []
    assert compact_store(store) == ONE_EACH
    assert all_tables(store) == grown
    make_old_again = partial(make_old, store)
    make_old_again()
    rebuild_tables(store)
    assert all_tables(store) == grown
    assert len(files(store)) == len(SCHEMAS)


@pytest.mark.parametrize("compacted", [False, True])
def test_columns_that_an_earlier_version_had_not_are_null(
    store: Store, tmp_path: Path, compacted: bool
) -> None:
    make(store, tmp_path, spec(), "run1")
    make(store, tmp_path, spec("a pig"), "run1")
    if compacted:
        compact_store(store)
    for key in [*files(store, "assets/"), *files(store, "views/")]:
        table = pq.ParquetFile(pa.BufferReader(store.get_bytes(key))).read()
        old = table.drop_columns([name for name in NEW_SINCE_1 if name in table.column_names])
        assert old.num_columns < table.num_columns
        write_file(store, key, old, version="1")
    make(store, tmp_path, spec("a mug"), "run2")
    for _ in range(2):
        rows = read_table(store, "assets").set_index("prompt")
        assert rows.loc["a duck", list(NEW_SINCE_1)].isna().all()
        assert rows.loc["a mug", "coverage"] == "good"
        assert (rows.clip_score == 0.5).all()
        views = query(store, "SELECT count(*) n, count(field_mesh_lpips) m FROM views").to_pylist()
        assert views == [{"n": 12, "m": 4}]
        compact_store(store)


def test_columns_that_no_version_left_out_must_be_there(store: Store, tmp_path: Path) -> None:
    make(store, tmp_path, spec(), "run1")
    [key] = files(store, "assets/")
    table = pq.ParquetFile(pa.BufferReader(store.get_bytes(key))).read()
    write_file(store, key, table.drop_columns(["prompt"]), version="1")
    with pytest.raises(Damaged, match="its columns are not those of table assets"):
        read_table(store, "assets")


# --- damage ------------------------------------------------------------------------------------


def damage(store: Store, key: str, content: bytes) -> None:
    store.put_bytes(key, content, replace=True)


def test_a_torn_or_foreign_file_names_itself(store: Store, tmp_path: Path) -> None:
    make(store, tmp_path, spec(), "run1")
    [key] = files(store, "assets/")
    good = store.get_bytes(key)
    for content in (good[:-10], good[: len(good) // 2], b"", b"PAR1"):
        damage(store, key, content)
        for read in (partial(read_table, store, "assets"), partial(compact_store, store)):
            with pytest.raises(Damaged, match=rf"{key} is damaged \(\w.*sjc verify --repair"):
                read()
    [other] = files(store, "attempts/")
    damage(store, key, store.get_bytes(other))
    with pytest.raises(Damaged, match=rf"{key} is damaged \(its columns are not those of"):
        read_table(store, "assets")
    write_file(store, key, pq.read_table(pa.BufferReader(good)), version="99")
    readers: list[Callable[[], object]] = [
        partial(read_table, store, "assets"), partial(compact_store, store),
        partial(rebuild_tables, store),
    ]  # fmt: skip
    for reader in readers:
        with pytest.raises(NewerStore, match=rf"{key} has schema version 99 and this program"):
            reader()
    damage(store, key, good)
    damage(store, "tables/assets/loose.parquet", good)
    with pytest.raises(Damaged, match=r"loose\.parquet is damaged \(it is not in a run's folder"):
        read_table(store, "assets")
    store.delete("tables/assets/loose.parquet")
    damage(store, "tables/assets/run_id=run1/_SUCCESS", b"")
    compact_store(store)
    rebuild_tables(store)
    assert len(read_table(store, "assets")) == 1
    assert store.exists("tables/assets/run_id=run1/_SUCCESS"), "not ours to judge"


def test_a_damaged_file_is_neither_compacted_nor_deleted(store: Store, tmp_path: Path) -> None:
    make(store, tmp_path, spec(), "run1")
    make(store, tmp_path, spec("a pig"), "run1")
    key = files(store, "attempts/")[0]
    damage(store, key, store.get_bytes(key)[:-1])
    before = files(store, "attempts/")
    with pytest.raises(Damaged, match=key):
        compact_store(store)
    assert files(store, "attempts/") == before


def test_damage_within_a_page_is_found_by_who_replaces_the_file(
    store: Store, tmp_path: Path
) -> None:
    for prompt in ("a duck", "a pig"):
        make(store, tmp_path, spec(prompt), "run1")
    key = files(store, "attempts/")[0]
    data = bytearray(store.get_bytes(key))
    chunk = pq.read_metadata(pa.BufferReader(data)).row_group(0).column(0)
    data[(chunk.dictionary_page_offset or chunk.data_page_offset) + 30] ^= 0x10
    damage(store, key, bytes(data))
    with pytest.raises(Damaged, match=key):
        compact_store(store)
    assert key in files(store)
    rebuild_tables(store)
    assert all_tables(store) == wanted(store)
    assert [name for name in store.list("tables/") if name.endswith(".damaged")]


def test_the_remedy_that_errors_name_works(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    make(store, tmp_path, spec(), "run1")
    before = all_tables(store)
    damage(store, files(store, "assets/")[0], b"PAR1")
    with pytest.raises(Damaged) as caught:
        read_table(store, "assets")
    command = str(caught.value).partition("`")[2].partition("`")[0].split()
    assert command[:2] == ["sjc", "verify"]
    code = "from flows.commands.main import main; main()"
    subprocess.run([sys.executable, "-c", code, *command[1:]], cwd=ROOT, check=True)
    assert all_tables(store) == before


@pytest.mark.parametrize("state", ["alone", "mixed", "compacted"])
def test_no_flipped_byte_becomes_a_value(tmp_path: Path, state: str) -> None:
    """The pages' checksums: zstd alone lets some through."""
    store = open_store(tmp_path / "store")
    make(store, tmp_path, spec(), "run1")
    if state != "alone":
        make(store, tmp_path, spec("a pig"), "run1")
    if state == "compacted":
        compact_store(store)
    key = files(store, "assets/")[0]
    good = store.get_bytes(key)
    metadata = pq.read_metadata(pa.BufferReader(good))
    for column in range(0, metadata.num_columns, 2):
        chunk = metadata.row_group(0).column(column)
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        damaged = bytearray(good)
        damaged[start + chunk.total_compressed_size - 2] ^= 0x10
        damage(store, key, bytes(damaged))
        with pytest.raises(Damaged, match=key):
            query(store, "SELECT * FROM assets")


def test_any_flipped_byte_of_a_footer_is_damage_or_harmless(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    for prompt in ("a duck", "a pig"):
        make(store, tmp_path, spec(prompt), "run1")
    compact_store(store)
    [key] = files(store, "views/")
    good = store.get_bytes(key)
    start = len(good) - 8 - int.from_bytes(good[-8:-4], "little")
    for spot in range(start, len(good), 89):
        data = bytearray(good)
        data[spot] ^= 0x41
        damage(store, key, bytes(data))
        with contextlib.suppress(Damaged, NewerStore):
            query(store, "SELECT * FROM views")


def test_no_memory_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path / "store")
    make(store, tmp_path, spec(), "run1")

    def greedy(*_: object, **__: object) -> None:
        raise pa.ArrowMemoryError("malloc of size 128000000 failed")

    monkeypatch.setattr(table_reader, "is_file_schema", greedy)
    with pytest.raises(MemoryError):
        read_table(store, "assets")
