"""Sealing, repair and damage: no row lost or seen twice, whatever is killed when."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from task_samples import all_tables, fill, make, report, spec

from tasks import table_reader
from tasks.attempts import (
    asset_attempts,
    close_interrupted,
    finish_attempt,
    start_attempt,
)
from tasks.columns import RowError
from tasks.compaction import compact_store
from tasks.documents import asset_manifest
from tasks.rows import attempt_row, view_rows
from tasks.schemas import SCHEMAS
from tasks.store import Damaged, NewerStore, Store, StoreError, open_store
from tasks.tables import (
    query,
    read_table,
    rebuild_tables,
    record_attempt,
    seal_run,
    write_part,
)

ROOT = Path(__file__).parents[2]


def damage(store: Store, key: str, content: bytes) -> None:
    store.put_bytes(key, content, replace=True)


def test_sealing_keeps_every_row_in_one_file(store: Store, tmp_path: Path) -> None:
    fill(store, tmp_path)
    before = all_tables(store)
    seal_run(store, "run1")
    after = all_tables(store)
    for name in SCHEMAS:
        assert len(list(store.list(f"tables/{name}/run_id=run1/"))) == 1
        if name != "assets":
            assert after[name] == before[name]
    # The retried asset's outcome in this run is that of its last attempt.
    kept = [row for row in before["assets"] if (row["prompt"], row["attempt"]) != ("a mug", "a01")]
    assert after["assets"] == kept
    seal_run(store, "run1")
    assert all_tables(store) == after
    seal_run(store, "no-such-run")
    make(store, tmp_path, spec("a boat"), "run1")
    assert len(all_tables(store)["assets"]) == len(kept) + 1, "later parts count too"
    seal_run(store, "run1")
    assert len(all_tables(store)["assets"]) == len(kept) + 1


@pytest.mark.parametrize("deletes", [0, 1, 2, 5])
def test_a_crash_while_sealing_shows_no_row_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deletes: int
) -> None:
    store = open_store(tmp_path / "store")
    fill(store, tmp_path)
    before = all_tables(store)
    left = [deletes]

    def crash(self: Any, key: str) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        (tmp_path / "store" / key).unlink()

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "delete", crash)
        with pytest.raises(KeyboardInterrupt):
            seal_run(store, "run1")
    between = all_tables(store)
    assert {name: len(rows) for name, rows in between.items()} == {
        name: len(rows) - (name == "assets") for name, rows in before.items()
    }
    seal_run(store, "run1")
    assert all_tables(store) == between


def test_a_crash_while_sealing_again_shows_no_row_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path / "store")
    make(store, tmp_path, spec(), "run1")
    make(store, tmp_path, spec("a pig"), "run1")
    seal_run(store, "run1")
    make(store, tmp_path, spec("a mug"), "run1")
    before = all_tables(store)
    with monkeypatch.context() as patch:
        patch.setattr(type(store), "delete", lambda self, key: None)
        seal_run(store, "run1")
    assert len(list(store.list("tables/attempts/"))) == 3
    assert all_tables(store) == before
    seal_run(store, "run1")
    assert all_tables(store) == before
    assert list(store.list("tables/attempts/")) == [
        "tables/attempts/run_id=run1/sealed-0002.parquet"
    ]


def test_the_true_end_of_an_attempt_counts_even_after_a_seal(tmp_path: Path) -> None:
    """Another run took this one for dead, closed its attempt and sealed its tables."""
    store = open_store(tmp_path / "store")
    make(store, tmp_path, spec("a pig"), "run1", "failed")
    start_attempt(store, spec(), "run1")
    for attempt, manifest in close_interrupted(store, [spec().asset_id]):
        record_attempt(store, attempt, manifest)
    seal_run(store, "run1")
    ended = finish_attempt(store, spec().asset_id, "a01", "diverged")
    for _ in range(2):
        record_attempt(store, ended, {})
        frame = read_table(store, "assets").set_index("prompt")
        assert dict(frame["status"]) == {"a duck": "diverged", "a pig": "failed"}
        seal_run(store, "run1")
        assert sorted(read_table(store, "attempts")["status"]) == ["diverged", "failed"]
    before = all_tables(store)
    record_attempt(store, ended, {})
    assert all_tables(store) == before, "the same once more is seen once"


def test_two_processes_seal_one_run(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    fill(store, tmp_path)
    rows = len(all_tables(store)["attempts"])
    barrier, errors = threading.Barrier(4), []

    def seal() -> None:
        barrier.wait()
        try:
            seal_run(store, "run1")
        except StoreError as error:
            errors.append(error)

    threads = [threading.Thread(target=seal) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(all_tables(store)["attempts"]) == rows
    seal_run(store, "run1")
    assert len(all_tables(store)["attempts"]) == rows


def test_a_part_is_complete_or_absent(tmp_path: Path) -> None:
    """SIGKILL in the middle of a write."""
    store = open_store(tmp_path / "store")
    make(store, tmp_path, spec(), "run1", "failed")
    before = all_tables(store)
    code = (
        "import os, signal, sys; from tasks import store_local; from tasks.store import *\n"
        "from tasks.tables import *\n"
        "store = open_store(sys.argv[1])\n"
        "store_local.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "seal = store.put_bytes('tables/attempts/run_id=run1/x.parquet', b'PAR1' * 9999)"
    )
    result = subprocess.run([sys.executable, "-c", code, store.url], cwd=ROOT, check=False)
    assert result.returncode == -9
    assert len(os.listdir(tmp_path / "store/tables/attempts/run_id=run1")) == 2
    assert all_tables(store) == before


def test_readers_survive_a_seal_under_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path / "store")
    fill(store, tmp_path)
    count = len(all_tables(store)["attempts"])
    part_keys, sealed = table_reader.part_keys, []

    def seal_after_listing(store: Store, table: str) -> dict[str, list[str]]:
        keys = part_keys(store, table)
        if not sealed:
            sealed.append(seal_run(store, "run1"))
        return keys

    monkeypatch.setattr(table_reader, "part_keys", seal_after_listing)
    assert len(read_table(store, "attempts")) == count
    run_sql, swapped = table_reader._run_sql, []

    def seal_before_scanning(*arguments: Any) -> pa.Table:
        if not swapped:
            make(store, tmp_path, spec("a late one"), "run1")
            swapped.append(seal_run(store, "run1"))
        return run_sql(*arguments)

    monkeypatch.setattr(table_reader, "_run_sql", seal_before_scanning)
    assert len(read_table(store, "attempts")) == count, "what it read is whole"
    assert len(read_table(store, "attempts")) == count + 1


def test_a_listing_that_misses_a_moved_part_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing may overlap the seal: one part gone already, the sealed file not seen yet."""
    store = open_store(tmp_path / "store")
    fill(store, tmp_path)
    count = len(all_tables(store)["attempts"])
    part_keys, listings = table_reader.part_keys, []

    def overlapping(store: Store, table: str) -> dict[str, list[str]]:
        keys = part_keys(store, table)
        listings.append(keys)
        if len(listings) == 1:
            with monkeypatch.context() as patch:
                patch.setattr(type(store), "delete", lambda self, key: None)
                seal_run(store, "run1")
            store.delete(keys["run1"].pop())
        return keys

    monkeypatch.setattr(table_reader, "part_keys", overlapping)
    assert len(read_table(store, "attempts")) == count


def test_readers_and_a_writer_at_once(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    make(store, tmp_path, spec(), "run0")
    seen: list[int] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.append(query(store, "SELECT count(*) AS n FROM attempts")["n"][0].as_py())

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(1, 9):
        make(store, tmp_path, spec(seed=number), f"run{number % 2}", "failed")
        seal_run(store, f"run{number % 2}")
    done.set()
    reader.join()
    assert seen == sorted(seen), "no row is ever missing or seen twice"
    assert len(read_table(store, "attempts")) == 9


def test_every_table_can_be_made_again_from_the_json(store: Store, tmp_path: Path) -> None:
    fill(store, tmp_path)
    seal_run(store, "run1")
    seal_run(store, "run2")
    before = all_tables(store)
    rebuild_tables(store)
    assert all_tables(store) == before
    for key in list(store.list("tables/")):
        store.delete(key)
    store.put_bytes("tables/assets/run_id=run1/torn.parquet", b"PAR1")
    rebuild_tables(store)
    assert all_tables(store) == before
    start_attempt(store, spec("a running one"), "run9")
    rebuild_tables(store)
    assert all_tables(store) == before, "what is not over has no row"


def test_the_remedy_that_errors_name_works(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    make(store, tmp_path, spec(), "run1")
    before = all_tables(store)
    damage(store, f"tables/assets/run_id=run1/{spec().asset_id}-a01.parquet", b"PAR1")
    with pytest.raises(Damaged) as caught:
        read_table(store, "assets")
    command = str(caught.value).partition("`")[2].partition("`")[0].split()
    assert command[:2] == ["sjc", "verify"]
    code = "from flows.commands.main import main; main()"
    subprocess.run([sys.executable, "-c", code, *command[1:]], cwd=ROOT, check=True)
    assert all_tables(store) == before


def test_a_crash_while_rebuilding_shows_no_row_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path / "store")
    make(store, tmp_path, spec(), "run1")
    before = all_tables(store)
    with monkeypatch.context() as patch:
        patch.setattr(type(store), "delete", lambda self, key: None)
        rebuild_tables(store)
    assert len(list(store.list("tables/assets/"))) == 2
    assert all_tables(store) == before


def test_rows_are_written_again_after_a_crash_before_them(store: Store, tmp_path: Path) -> None:
    """Killed between the end of an attempt and its rows: recording it is harmless and enough."""
    make(store, tmp_path, spec(), "run1")
    before = all_tables(store)
    for key in list(store.list("tables/")):
        store.delete(key)
    [attempt] = asset_attempts(store, spec().asset_id)
    manifest = asset_manifest(store, spec().asset_id)
    assert manifest is not None
    for _ in range(2):
        record_attempt(store, attempt, manifest)
    assert all_tables(store) == before


def test_a_later_evaluation_shares_the_files(store: Store, tmp_path: Path) -> None:
    """An attempt with a report of its own, and the files of the one that was committed."""
    make(store, tmp_path, spec(), "run1", clip_score=20.0)
    manifest = asset_manifest(store, spec().asset_id)
    assert manifest is not None
    start_attempt(store, spec(), "run2")
    ended = finish_attempt(store, spec().asset_id, "a02", "ok", report=report(clip_score=25.0))
    record_attempt(store, ended, manifest)
    [row] = read_table(store, "assets").to_dict("records")
    assert (row["clip_score"], row["run_id"]) == (25.0, "run2")
    assert row["uri_mesh"].endswith("/a01/mesh.glb")
    assert len(view_rows(store, ended, manifest)) == 4
    assert attempt_row(ended)["status"] == "ok"


NEW_SINCE_1 = ("field_mesh_lpips", "lpips_weights", "coverage", "rolled_back")


@pytest.mark.parametrize("sealed", [False, True])
def test_files_of_an_earlier_version_are_read_and_sealed(
    store: Store, tmp_path: Path, sealed: bool
) -> None:
    """The first version had three columns less; what is written today stands beside it."""
    make(store, tmp_path, spec(), "run1")
    make(store, tmp_path, spec("a pig"), "run1")
    if sealed:
        seal_run(store, "run1")
    for key in [*store.list("tables/assets/"), *store.list("tables/views/")]:
        file = pq.ParquetFile(pa.BufferReader(store.get_bytes(key)))
        table = file.read()
        old = table.drop_columns([name for name in NEW_SINCE_1 if name in table.column_names])
        assert old.num_columns < table.num_columns
        old = old.replace_schema_metadata({**file.schema_arrow.metadata, b"sjc.version": b"1"})
        sink = pa.BufferOutputStream()
        pq.write_table(old, sink)
        damage(store, key, sink.getvalue().to_pybytes())
    make(store, tmp_path, spec("a mug"), "run2")
    for _ in range(2):
        rows = read_table(store, "assets").set_index("prompt")
        assert rows.loc["a duck", list(NEW_SINCE_1)].isna().all()
        assert rows.loc["a mug", "coverage"] == "good"
        assert (rows.clip_score == 0.5).all()
        views = query(store, "SELECT count(*) n, count(field_mesh_lpips) m FROM views").to_pylist()
        assert views == [{"n": 12, "m": 4}]
        seal_run(store, "run1")


def test_columns_that_no_version_left_out_must_be_there(store: Store, tmp_path: Path) -> None:
    make(store, tmp_path, spec(), "run1")
    key = f"tables/assets/run_id=run1/{spec().asset_id}-a01.parquet"
    table = pq.ParquetFile(pa.BufferReader(store.get_bytes(key))).read()
    old = table.drop_columns(["prompt"]).replace_schema_metadata({"sjc.version": "1"})
    sink = pa.BufferOutputStream()
    pq.write_table(old, sink)
    damage(store, key, sink.getvalue().to_pybytes())
    with pytest.raises(Damaged, match="its columns are others"):
        read_table(store, "assets")


# --- damage ------------------------------------------------------------------------------------


def test_a_torn_or_foreign_file_names_itself(store: Store, tmp_path: Path) -> None:
    make(store, tmp_path, spec(), "run1")
    key = f"tables/assets/run_id=run1/{spec().asset_id}-a01.parquet"
    good = store.get_bytes(key)
    for content in (good[:-10], good[: len(good) // 2], b"", b"PAR1"):
        damage(store, key, content)
        with pytest.raises(Damaged, match=rf"{key} is damaged .*sjc verify --repair"):
            read_table(store, "assets")
    damage(
        store, key, store.get_bytes(f"tables/attempts/run_id=run1/{spec().asset_id}-a01.parquet")
    )
    with pytest.raises(Damaged, match=rf"{key} is not a file of table assets"):
        read_table(store, "assets")
    table = pq.read_table(pa.BufferReader(good))
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({"sjc.version": "99"}), sink)
    damage(store, key, sink.getvalue().to_pybytes())
    with pytest.raises(NewerStore, match=rf"{key} has schema version 99 and this program reads up"):
        query(store, "SELECT * FROM assets")
    damage(store, key, good)
    damage(store, "tables/assets/loose.parquet", good)
    with pytest.raises(Damaged, match=r"loose\.parquet is not in a run's folder"):
        read_table(store, "assets")
    store.delete("tables/assets/loose.parquet")
    damage(store, "tables/assets/run_id=run1/_SUCCESS", b"")
    seal_run(store, "run1")
    rebuild_tables(store)
    assert len(read_table(store, "assets")) == 1
    assert store.exists("tables/assets/run_id=run1/_SUCCESS"), "not ours to judge"


@pytest.mark.parametrize("state", ["part", "sealed", "compacted"])
def test_no_flipped_byte_becomes_a_value(tmp_path: Path, state: str) -> None:
    """The pages' checksums: zstd alone lets some through."""
    store = open_store(tmp_path / "store")
    make(store, tmp_path, spec(), "run1")
    make(store, tmp_path, spec("a pig"), "run1")
    key = f"tables/assets/run_id=run1/{spec().asset_id}-a01.parquet"
    if state == "sealed":
        seal_run(store, "run1")
        key = "tables/assets/run_id=run1/sealed-0001.parquet"
    elif state == "compacted":
        make(store, tmp_path, spec("a mug"), "run2")
        compact_store(store)
        key = "tables/assets/compacted/0001.parquet"
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


def test_sealing_refuses_a_torn_part_and_loses_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    make(store, tmp_path, spec(), "run1")
    make(store, tmp_path, spec("a pig"), "run1")
    key = f"tables/attempts/run_id=run1/{spec().asset_id}-a01.parquet"
    damage(store, key, store.get_bytes(key)[:-1])
    before = list(store.list("tables/attempts/"))
    with pytest.raises(Damaged, match=key):
        seal_run(store, "run1")
    assert list(store.list("tables/attempts/")) == before


def test_a_wrong_row_writes_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    with pytest.raises(RowError):
        write_part(store, "runs", "run1", "run", [{"run_id": "run1"}])
    assert list(store.list()) == []


def test_no_memory_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path / "store")
    make(store, tmp_path, spec(), "run1")

    def greedy(*_: object, **__: object) -> None:
        raise pa.ArrowMemoryError("malloc of size 128000000 failed")

    monkeypatch.setattr(table_reader.pq, "ParquetFile", greedy)
    with pytest.raises(MemoryError):
        read_table(store, "assets")


def test_any_flipped_byte_of_a_footer_is_damage_or_harmless(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    for prompt in ("a duck", "a pig"):
        make(store, tmp_path, spec(prompt), "run1")
    seal_run(store, "run1")
    key = "tables/views/run_id=run1/sealed-0001.parquet"
    good = store.get_bytes(key)
    start = len(good) - 8 - int.from_bytes(good[-8:-4], "little")
    held = good.index(b"sjc.parts", start)
    spots = [*range(start, len(good), 97), *range(held, held + 60, 3)]
    for spot in spots:
        data = bytearray(good)
        data[spot] ^= 0x41
        damage(store, key, bytes(data))
        with contextlib.suppress(Damaged, NewerStore):
            query(store, "SELECT * FROM views")
