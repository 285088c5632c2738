"""Compaction: one file of each table, no row lost or seen twice, whatever dies meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pytest
from task_samples import all_tables, fill, make, make_run, spec

from tasks import sealing, table_reader
from tasks.compaction import compact_store
from tasks.documents import read_document
from tasks.runs import finish_run, start_run
from tasks.schemas import SCHEMAS
from tasks.sealing import compact_table, seal_run
from tasks.store import AlreadyCommitted, Store, open_store
from tasks.tables import query, read_table, rebuild_tables, record_run

ONE_EACH = dict.fromkeys(SCHEMAS, 1)


def files(store: Store) -> list[str]:
    return [key for key in store.list("tables/") if key.endswith(".parquet")]


def sealed(store: Store, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Two runs with a retry in them, sealed; their rows."""
    fill(store, folder)
    for run_id in ("run1", "run2"):
        seal_run(store, run_id)
    return all_tables(store)


def test_one_file_of_each_table_with_every_row(store: Store, tmp_path: Path) -> None:
    before = sealed(store, tmp_path)
    assert compact_store(store) == ONE_EACH
    assert files(store) == [f"tables/{table}/compacted/0001.parquet" for table in sorted(SCHEMAS)]
    assert all_tables(store) == before
    assert compact_store(store) == ONE_EACH
    assert files(store) == [f"tables/{table}/compacted/0001.parquet" for table in sorted(SCHEMAS)]

    make_run(store, tmp_path, "run3", "duck,a duck,t,v\nbus,a bus,,\n")
    make(store, tmp_path, spec("a pen"), "run1", "failed")  # one more of a compacted run
    grown = all_tables(store)
    assert len(grown["attempts"]) == len(before["attempts"]) + 2
    assert compact_store(store) == ONE_EACH
    assert all_tables(store) == grown
    assert {key.rpartition("/")[2] for key in files(store)} == {"0002.parquet"}


def test_unsealed_runs_are_sealed_on_the_way(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    fill(store, tmp_path)
    expected = len(all_tables(store)["attempts"])
    assert compact_store(store) == ONE_EACH
    assert len(all_tables(store)["attempts"]) == expected


class Died(BaseException):
    """The process ends here."""


def dying(store: Store, monkeypatch: pytest.MonkeyPatch, at: int) -> Callable[[], None]:
    """Lets the store die at its n-th write or deletion from now; returns what revives it."""
    count = 0
    patch = pytest.MonkeyPatch()
    for name in ("put_bytes", "delete"):
        method = getattr(type(store), name)

        def mortal(self: Store, *args: Any, method: Any = method, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count >= at:
                raise Died
            return method(self, *args, **options)

        patch.setattr(type(store), name, mortal)
    return patch.undo


def test_a_death_at_any_point_leaves_the_tables_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path / "store")
    before = sealed(store, tmp_path)
    for at in range(1, 100):
        revive = dying(store, monkeypatch, at)
        try:
            compact_store(store)
        except Died:
            continue
        else:
            break
        finally:
            revive()
            assert all_tables(store) == before
        # Each round goes on from where the last one died, one step further in.
    else:
        raise AssertionError("it never came through")
    assert at > 2
    assert len(files(store)) == len(SCHEMAS)


def test_readers_and_runs_go_on_meanwhile(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    make(store, tmp_path, spec(), "run0", "failed")
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
        seen.append(query(store, "SELECT count(*) AS n FROM attempts")["n"][0].as_py())

    threads = [forever(read), *(forever(lambda: compact_store(store)) for _ in range(2))]
    for number in range(1, 13):
        make(store, tmp_path, spec(seed=number), f"run{number % 3}", "failed")
        if number % 2:
            seal_run(store, f"run{number % 3}")
    done.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert seen == sorted(seen), "no row is ever missing or seen twice"
    assert len(read_table(store, "attempts")) == 13
    assert compact_store(store) == {**ONE_EACH, "entries": 0, "runs": 0, "views": 0}


def test_a_listing_that_misses_a_moved_file_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compacted file comes first in a listing, and what it holds later."""
    store = open_store(tmp_path / "store")
    before = sealed(store, tmp_path)["attempts"]
    part_keys, listings = table_reader.part_keys, []

    def overlapping(store: Store, table: str) -> dict[str | None, list[str]]:
        listings.append(table)
        if len(listings) == 1:
            compact_store(store)
            return {}
        return part_keys(store, table)

    monkeypatch.setattr(table_reader, "part_keys", overlapping)
    assert len(query(store, "SELECT * FROM attempts")) == len(before)
    assert listings.count("attempts") == 2


def test_a_run_that_goes_on_counts_with_its_end(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    make_run(store, tmp_path, "run1", "duck,a duck,t,v\n")
    entries = read_document(store, "runs/run1.json")["entries"]
    run = start_run(store, "run2", "m.csv", "0" * 64, [], {})
    run["entries"] = [{**entry, "outcome": None} for entry in entries]
    record_run(store, run)
    for _ in range(2):
        assert compact_store(store) == ONE_EACH
    assert query(store, "SELECT run_id FROM runs WHERE ended_at IS NULL").num_rows == 1

    record_run(store, finish_run(store, run, {"duck": "reused"}))
    for _ in range(2):
        assert query(store, "SELECT run_id FROM runs").num_rows == 2
        assert query(store, "SELECT run_id FROM runs WHERE ended_at IS NULL").num_rows == 0
        outcomes = query(store, "SELECT outcome FROM entries WHERE run_id = 'run2'")["outcome"]
        assert outcomes.to_pylist() == ["reused"]
        assert compact_store(store) == ONE_EACH


def test_rows_that_a_killed_run_did_not_write_are_written(tmp_path: Path) -> None:
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


def test_a_part_that_is_replaced_under_a_compaction_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path / "store")
    make_run(store, tmp_path, "run1", "duck,a duck,t,v\n")
    run = start_run(store, "run2", "m.csv", "0" * 64, [], {})
    record_run(store, run)
    write = sealing._write_merged

    def end_meanwhile(*arguments: Any) -> None:
        write(*arguments)
        record_run(store, {**run, "ended_at": run["started_at"]})

    monkeypatch.setattr(sealing, "_write_merged", end_meanwhile)
    compact_table(store, "runs")
    assert query(store, "SELECT run_id FROM runs WHERE ended_at IS NULL").num_rows == 0
    assert query(store, "SELECT run_id FROM runs").num_rows == 2


def test_a_sealed_name_that_comes_again_counts(tmp_path: Path) -> None:
    """The run's first sealed file is compacted; its next one has that name and other rows."""
    store = open_store(tmp_path / "store")
    sealed(store, tmp_path)
    compact_store(store)
    for prompt in ("a pen", "a cup"):
        make(store, tmp_path, spec(prompt), "run1", "failed")
    before = all_tables(store)
    seal_run(store, "run1")
    assert store.exists("tables/attempts/run_id=run1/sealed-0001.parquet")
    assert all_tables(store) == before


def test_other_readers_of_the_folders(tmp_path: Path) -> None:
    """As docs/tables.md says: pandas at any time, DuckDB once all is compacted."""
    store = open_store(tmp_path / "store")
    before = sealed(store, tmp_path)["attempts"]
    compact_store(store)
    folder = tmp_path / "store/tables/attempts"
    expected = sorted((row["run_id"], row["asset_id"], row["attempt"]) for row in before)
    rows = duckdb.sql(f"SELECT run_id, asset_id, attempt FROM '{folder}/*/*.parquet'").fetchall()
    assert sorted(rows) == expected
    make(store, tmp_path, spec("a pen"), "run9", "failed")
    frame = pd.read_parquet(folder)
    assert set(frame["run_id"]) == {"run1", "run2", "run9"}
    assert len(frame) == len(expected) + 1


def test_tables_are_made_again_as_one_file(store: Store, tmp_path: Path) -> None:
    before = sealed(store, tmp_path)
    compact_store(store)
    store.put_bytes("runs/run1.png", b"a picture beside the JSON")
    rebuild_tables(store)
    assert all_tables(store) == before
    assert {key.rpartition("/")[2] for key in files(store)} == {"0002.parquet"}


def test_a_run_that_is_sealed_while_it_is_compacted_is_seen_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have read the run's first sealed file, and both put its rows into a new one."""
    store = open_store(tmp_path / "store")
    sealed(store, tmp_path)
    make(store, tmp_path, spec("a pen"), "run1", "failed")
    before = all_tables(store)
    write = sealing._write_merged

    def seal_meanwhile(store: Store, key: str, *rest: Any) -> None:
        if "compacted" in key:
            with monkeypatch.context() as patch:
                patch.setattr(sealing, "_write_merged", write)
                seal_run(store, "run1")
        write(store, key, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(sealing, "_write_merged", seal_meanwhile)
        compact_table(store, "attempts")
    assert store.exists("tables/attempts/run_id=run1/sealed-0002.parquet")
    assert all_tables(store) == before
    assert compact_store(store) == ONE_EACH
    assert all_tables(store) == before


def test_a_compaction_that_slept_for_two_others_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file's name was taken by the first and given free by the second."""
    store = open_store(tmp_path / "store")
    sealed(store, tmp_path)
    write, seen = sealing._write_merged, list[Any]()

    def overtaken(store: Store, key: str, *rest: Any) -> None:
        if not seen:
            seen.append(key)
            for prompt in ("a pen", "a cup"):
                compact_store(store)
                make(store, tmp_path, spec(prompt), "run1", "failed")
            compact_store(store)
            seen.append(all_tables(store))
            write(store, key, *rest)
            assert all_tables(store) == seen[1], "an older file counts for nothing"
        else:
            write(store, key, *rest)

    monkeypatch.setattr(sealing, "_write_merged", overtaken)
    with pytest.raises(AlreadyCommitted):
        compact_table(store, "attempts")
    assert all_tables(store) == seen[1]
    assert [key for key in files(store) if "/attempts/" in key] == [
        "tables/attempts/compacted/0003.parquet"
    ]
