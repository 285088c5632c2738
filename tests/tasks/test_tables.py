"""The five tables: what may be written, what is read back, and what no crash can lose."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sjc_engine.recipes import Recipe
from sjc_engine.spec import AssetSpec
from tasks import pages, table_reader, tables
from tasks.columns import RowError
from tasks.commit import (
    asset_attempts,
    asset_manifest,
    close_interrupted,
    commit_asset,
    finish_attempt,
    finish_run,
    start_attempt,
    start_run,
)
from tasks.manifest import read_manifest, resolve
from tasks.rows import REPORT_KEYS, asset_row, attempt_row, view_rows
from tasks.schemas import COLUMNS, FILE_SCHEMAS, SCHEMAS, TABLES, check_row, to_arrow
from tasks.store import Store, StoreError, open_store
from tasks.table_reader import QueryError, TableError
from tasks.tables import (
    query,
    read_table,
    rebuild_tables,
    record_attempt,
    record_run,
    seal_run,
    write_part,
)

ROOT = Path(__file__).parents[2]
# The page that fixes the names of columns, word for word, with its groups written out.
DESIGN = {
    "assets": """asset_id field_id run_id attempt status error_type error prompt negative_prompt
    image seed prior prior_revision prior_coverage recipe recipe_hash spec_json steps device
    seconds_queue seconds_optimize seconds_extract seconds_evaluate seconds_publish
    peak_memory_bytes loss_first loss_last loss_min vertices faces components watertight genus
    area volume bbox_min_x bbox_min_y bbox_min_z bbox_max_x bbox_max_y bbox_max_z degenerate_faces
    single_color evaluator evaluator_revision distractors_sha256 clip_score clip_r_precision
    geometry_r_precision janus_score field_mesh_iou field_mesh_psnr opacity_mean
    foreground_fraction uri_mesh uri_preview uri_turntable uri_field bytes_total sha256_mesh
    code_version engine_version started_at ended_at""",
    "entries": "run_id manifest manifest_sha256 line row_id asset_id tags meta outcome",
    "views": """asset_id run_id view azimuth_deg elevation_deg source clip_score top_caption
    field_mesh_iou field_mesh_psnr uri""",
    "attempts": """asset_id attempt run_id status error device first_step last_step started_at
    ended_at""",
    "runs": """run_id manifest count_entries count_assets count_computed count_reused
    count_duplicate count_failed started_at ended_at seconds_total flow_run_id settings""",
}


def spec(prompt: str = "a duck", seed: int = 0) -> AssetSpec:
    return AssetSpec(prompt, "", None, seed, "toybox", "r", Recipe.for_prior("toybox", "draft"))


def report(**changes: Any) -> dict[str, Any]:
    """A whole report, as the engine makes it."""
    numbers = dict.fromkeys(REPORT_KEYS, 0.5)
    whole = dict.fromkeys(("steps", "peak_memory_bytes", "vertices", "faces", "components"), 3)
    whole |= {"genus": 0, "degenerate_faces": 0}
    texts = dict.fromkeys(("device", "evaluator", "evaluator_revision", "distractors_sha256"), "x")
    views = [
        {"view": view, "azimuth_deg": 45.0 * view, "elevation_deg": 12.8, "source": source,
         "clip_score": 30.0, "top_caption": "a duck", "field_mesh_iou": 0.9,
         "field_mesh_psnr": 20.0}
        for source in ("field", "mesh") for view in range(2)
    ]  # fmt: skip
    flags = {"watertight": True, "single_color": False}
    return {**numbers, **whole, **texts, **flags, "views": views, **changes}


def make(
    store: Store, folder: Path, spec: AssetSpec, run_id: str, status: str = "ok", **changes: Any
) -> None:
    """One asset's attempt, with its rows."""
    attempt = start_attempt(store, spec, run_id, prior_coverage=1.0)["attempt"]
    manifest: Mapping[str, Any] = {}
    if status == "ok":
        files = {}
        for name in ("mesh.glb", "preview.png", "field.safetensors", "views/mesh_1.png"):
            files[name] = folder / name.replace("/", "-")
            files[name].write_text(f"{name} of {spec.prompt}")
        timings = {"queue": 0.0, "optimize": 40.0, "extract": 2.0, "evaluate": 1.0}
        versions = {"code": "1.0", "engine": "1.0/1"}
        manifest = commit_asset(
            store, spec.asset_id, attempt, files, spec, report(**changes), timings, versions
        )
    error = None if status == "ok" else ValueError("loss is NaN")
    document = finish_attempt(
        store, spec.asset_id, attempt, status, error=error, device="cpu", first_step=0, last_step=3
    )
    record_attempt(store, document, manifest)


def make_run(store: Store, folder: Path, run_id: str, rows: str) -> None:
    """A run of a manifest with its assets, all ok."""
    path = folder / "m.csv"
    path.write_text(f"id,prompt,tags,meta.k\n{rows}")
    manifest = read_manifest(path)
    plan = resolve(manifest, prior_revision=lambda _: "r", recipe="draft")
    run = start_run(store, run_id, str(path), manifest.sha256, plan.entries, {"limit": None})
    record_run(store, run)
    outcomes = {}
    for entry in plan.entries:
        known = asset_manifest(store, entry.spec.asset_id) is not None
        outcomes[entry.row_id] = "reused" if known else "computed"
        if not known:
            make(store, folder, entry.spec, run_id)
    record_run(store, finish_run(store, run, outcomes))


def all_tables(store: Store) -> dict[str, list[dict[str, Any]]]:
    """Every row of every table, in an order of its own."""
    return {
        name: sorted(query(store, f"SELECT * FROM {name}").to_pylist(), key=repr)
        for name in SCHEMAS
    }


# --- schemas -----------------------------------------------------------------------------------


def test_the_columns_are_those_of_the_contract() -> None:
    assert {name: schema.names for name, schema in SCHEMAS.items()} == {
        name: DESIGN[name].split() for name in SCHEMAS
    }
    assert set(SCHEMAS) == set(DESIGN)


@pytest.mark.parametrize("name", list(pages.PAGES))
def test_the_pages_are_up_to_date(name: str) -> None:
    page = (ROOT / "docs" / name).read_text("utf-8")
    generated = page.partition(pages.MARK)[2].strip()
    assert generated == pages.PAGES[name]().strip(), "run: python -m tasks.pages docs"


def test_every_column_is_explained() -> None:
    for _, columns in TABLES.values():
        for column in columns:
            assert column.meaning.endswith("."), column.name
            assert column.better in ("", "higher", "lower")


def test_a_row_has_exactly_the_columns() -> None:
    row = dict.fromkeys(SCHEMAS["attempts"].names)
    row |= {"asset_id": "a", "attempt": "a01", "run_id": "r", "status": "ok"}
    row |= {"started_at": pd.Timestamp(0, tz="UTC"), "ended_at": pd.Timestamp(1, tz="UTC")}
    check_row("attempts", row)
    with pytest.raises(RowError, match="table attempts: unknown column extra"):
        check_row("attempts", {**row, "extra": 1})
    with pytest.raises(RowError, match="table attempts: missing column error, device"):
        check_row("attempts", {k: v for k, v in row.items() if k not in ("error", "device")})
    for change, message in [
        ({"asset_id": None}, "asset_id: null is not allowed"),
        ({"status": "fine"}, "status: 'fine' is not one of ok, failed"),
        ({"first_step": 1.5}, r"first_step: 1\.5 is not int64"),
        ({"first_step": True}, "first_step: True is not int64"),
        ({"first_step": 2**63}, "first_step: .* is not int64"),
        ({"first_step": -1}, "first_step: -1 is outside"),
        ({"error": 5}, "error: 5 is not string"),
        ({"error": "\ud83e"}, "error: .* is not string"),
        ({"started_at": "now"}, "started_at: 'now' is not timestamp"),
    ]:
        with pytest.raises(RowError, match=f"table attempts: {message}"):
            check_row("attempts", {**row, **change})
    with pytest.raises(RowError, match="run_id: 'r' in the part of 'other'"):
        to_arrow("attempts", "other", [row])


def test_metrics_must_be_finite_and_in_range(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    attempt = start_attempt(store, spec(), "run1")
    ended = finish_attempt(store, spec().asset_id, attempt["attempt"], "failed")
    row = asset_row(store, ended, {})
    check_row("assets", row)
    check_row("assets", {**row, "clip_r_precision": 1.0000001})
    for value in (float("nan"), float("inf"), 1.1, -0.1):
        with pytest.raises(RowError, match="table assets: clip_r_precision"):
            check_row("assets", {**row, "clip_r_precision": value})


# --- writing and reading -----------------------------------------------------------------------


def test_an_empty_store_has_empty_typed_tables(store: Store) -> None:
    for name, schema in SCHEMAS.items():
        frame = read_table(store, name)
        assert frame.empty
        assert list(frame.columns) == schema.names
        assert query(store, f"SELECT * FROM {name}").schema.types == schema.types
    frame = read_table(store, "assets")
    assert frame["faces"].dtype == pd.Int64Dtype()
    assert str(frame["ended_at"].dtype) == "datetime64[us, UTC]"
    assert query(store, "SELECT count(*) AS n FROM best_assets").to_pylist() == [{"n": 0}]


def test_a_whole_asset_comes_back(store: Store, tmp_path: Path) -> None:
    make_run(store, tmp_path, "run1", "duck,a duck,t;u,v\npig,a pig,,\n")
    frame = read_table(store, "assets").set_index("prompt")
    duck = frame.loc["a duck"]
    assert list(frame.index) == ["a duck", "a pig"]
    assert duck["asset_id"] == spec().asset_id
    assert duck["field_id"] == spec().field_id
    assert (duck["run_id"], duck["attempt"], duck["status"]) == ("run1", "a01", "ok")
    assert AssetSpec.from_json(json.loads(duck["spec_json"])) == spec()
    assert (duck["steps"], duck["device"], duck["watertight"]) == (3, "x", True)
    assert duck["seconds_optimize"] == 40.0
    assert pd.isna(duck["seconds_publish"])
    assert duck["uri_mesh"] == store.uri(f"assets/{spec().asset_id}/a01/mesh.glb")
    assert pd.isna(duck["uri_turntable"])
    sizes = sum(
        len(f"{name} of a duck")
        for name in ("mesh.glb", "preview.png", "field.safetensors", "views/mesh_1.png")
    )
    assert duck["bytes_total"] == sizes
    stored = asset_manifest(store, spec().asset_id)
    assert stored is not None
    assert duck["sha256_mesh"] == stored["files"]["a01/mesh.glb"]["sha256"]
    assert (duck["code_version"], duck["engine_version"]) == ("1.0", "1.0/1")
    assert duck["started_at"] < duck["ended_at"]

    views = read_table(store, "views")
    assert len(views) == 8
    seen = views[(views["asset_id"] == spec().asset_id) & (views["source"] == "mesh")]
    assert list(seen["view"]) == [0, 1]
    assert pd.isna(seen["uri"].iloc[0])
    assert seen["uri"].iloc[1] == store.uri(f"assets/{spec().asset_id}/a01/views/mesh_1.png")

    entries = read_table(store, "entries")
    assert list(entries["row_id"]) == ["duck", "pig"]
    assert list(entries["tags"].iloc[0]) == ["t", "u"]
    assert entries["meta"].iloc[0] == {"k": "v"}
    assert list(entries["outcome"]) == ["computed", "computed"]
    [run] = read_table(store, "runs").to_dict("records")
    assert (run["count_entries"], run["count_assets"], run["count_computed"]) == (2, 2, 2)
    assert run["seconds_total"] > 0
    assert run["settings"] == '{"limit":null}'
    assert len(read_table(store, "attempts")) == 2
    assert read_table(store.url, "runs")["run_id"].tolist() == ["run1"], "by address too"


def test_sql_sees_all_five_tables(store: Store, tmp_path: Path) -> None:
    make_run(store, tmp_path, "run1", "duck,a duck,t;u,v\npig,a pig,,\n")
    rows = query(
        store,
        """SELECT e.row_id, meta['k'] AS k, count(*) AS views, max(v.field_mesh_iou) AS iou,
               any_value(r.run_id) AS run, any_value(t.status) AS status
           FROM entries e JOIN assets a USING (asset_id) JOIN views v USING (asset_id)
           JOIN attempts t ON t.asset_id = a.asset_id JOIN runs r ON r.run_id = a.run_id
           WHERE list_contains(tags, 't') AND a.started_at > TIMESTAMPTZ '2020-01-01 00:00:00+00'
           GROUP BY ALL""",
    ).to_pylist()
    assert rows == [
        {"row_id": "duck", "k": "v", "views": 4, "iou": 0.9, "run": "run1", "status": "ok"}
    ]


def test_the_best_outcome_counts_and_assets_are_raw_in_sql(store: Store, tmp_path: Path) -> None:
    make(store, tmp_path, spec(), "run1", "failed")
    make(store, tmp_path, spec(), "run2", "ok")
    make(store, tmp_path, spec(), "run3", "failed")
    make(store, tmp_path, spec("a pig"), "run1", "failed")
    make(store, tmp_path, spec("a pig"), "run2", "diverged")
    frame = read_table(store, "assets").set_index("prompt")
    assert dict(frame["status"]) == {"a duck": "ok", "a pig": "diverged"}
    assert dict(frame["run_id"]) == {"a duck": "run2", "a pig": "run2"}
    raw = "SELECT run_id, status FROM assets WHERE prompt = 'a duck' ORDER BY run_id"
    assert [tuple(row.values()) for row in query(store, raw).to_pylist()] == [
        ("run1", "failed"), ("run2", "ok"), ("run3", "failed"),
    ]  # fmt: skip
    best = query(store, "SELECT prompt, error FROM best_assets ORDER BY prompt").to_pylist()
    assert best == [
        {"prompt": "a duck", "error": None},
        {"prompt": "a pig", "error": "loss is NaN"},
    ]


def test_a_table_of_one_manifest(store: Store, tmp_path: Path) -> None:
    make_run(store, tmp_path, "run1", "pig,a pig,,\n")
    make_run(store, tmp_path, "run2", "duck,a duck,,\nmug,a mug,,\npig2,a pig,,\n")
    make_run(store, tmp_path, "run3", "mug,a mug,,\npig,a pig,,\n")
    manifest = tmp_path / "m.csv"
    assert set(read_table(store, "assets", manifest)["prompt"]) == {"a mug", "a pig"}
    assert set(read_table(store, "runs", manifest)["run_id"]) == {"run3"}
    assert list(read_table(store, "entries", manifest)["outcome"]) == ["reused", "reused"]
    assert set(read_table(store, "attempts", manifest)["run_id"]) == {"run1", "run2"}
    assert len(read_table(store, "views", manifest)) == 8
    manifest.write_text("prompt\nan unknown manifest\n")
    assert read_table(store, "assets", manifest).empty


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELEC 1", "syntax error"),
        ("SELECT nothing FROM assets", "nothing"),
        ("SELECT * FROM elsewhere", "elsewhere"),
        ("SELECT count(*) FROM dataset, assets", "dataset"),  # a Python variable there
        ("SELECT CAST(status AS INT) FROM assets", "Could not convert"),
        ("", "no rows"),
    ],
)
def test_wrong_sql_is_the_users_mistake(tmp_path: Path, sql: str, message: str) -> None:
    store = open_store(tmp_path / "store")
    make(store, tmp_path, spec(), "run1", "failed")
    with pytest.raises(QueryError, match=message):
        query(store, sql)


def test_unknown_tables_are_named(tmp_path: Path) -> None:
    with pytest.raises(QueryError, match="there is no table 'asset'; use one of assets, views"):
        read_table(open_store(tmp_path), "asset")
    with pytest.raises(StoreError, match="no store at"):
        read_table(tmp_path / "typo", "assets")


def test_other_tools_read_the_folders(tmp_path: Path) -> None:
    """Plain hive-partitioned Parquet: pandas, pyarrow and DuckDB by themselves."""
    store = open_store(tmp_path / "store")
    make_run(store, tmp_path, "run-1", "duck,a duck,t,v\n")
    make(store, tmp_path, spec("a pig"), "run-2", "failed")
    folder = tmp_path / "store" / "tables" / "assets"
    assert sorted(pd.read_parquet(folder)["run_id"]) == ["run-1", "run-2"]
    assert pq.read_table(folder).num_rows == 2
    found = duckdb.sql(f"SELECT run_id FROM '{folder}/*/*.parquet' ORDER BY 1").fetchall()
    assert found == [("run-1",), ("run-2",)]
    [part] = (folder / "run_id=run-2").iterdir()
    assert part.name == f"{spec('a pig').asset_id}-a01.parquet"
    file = pq.ParquetFile(part)
    assert file.schema_arrow.equals(FILE_SCHEMAS["assets"], check_metadata=False)
    assert file.schema_arrow.metadata[b"sjc.version"] == b"1"
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"


# --- sealing and repair ------------------------------------------------------------------------


def fill(store: Store, folder: Path) -> None:
    """A run with a retry in it, an interrupted attempt, and another run after it."""
    make_run(store, folder, "run1", "duck,a duck,t,v\npig,a pig,,\n")
    make(store, folder, spec("a mug"), "run1", "failed")
    make(store, folder, spec("a mug"), "run1", "ok")
    start_attempt(store, spec("a tank"), "run1")
    for attempt, manifest in close_interrupted(store, [spec("a tank").asset_id]):
        record_attempt(store, attempt, manifest)
    make_run(store, folder, "run2", "duck,a duck,t,v\ncar,a car,,\n")


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


# --- damage ------------------------------------------------------------------------------------


def damage(store: Store, key: str, content: bytes) -> None:
    store.put_bytes(key, content, replace=True)


def test_a_torn_or_foreign_file_names_itself(store: Store, tmp_path: Path) -> None:
    make(store, tmp_path, spec(), "run1")
    key = f"tables/assets/run_id=run1/{spec().asset_id}-a01.parquet"
    good = store.get_bytes(key)
    for content in (good[:-10], good[: len(good) // 2], b"", b"PAR1"):
        damage(store, key, content)
        with pytest.raises(TableError, match=rf"{key} is damaged .*verify --repair"):
            read_table(store, "assets")
    damage(
        store, key, store.get_bytes(f"tables/attempts/run_id=run1/{spec().asset_id}-a01.parquet")
    )
    with pytest.raises(TableError, match=rf"{key} is not a file of table assets"):
        read_table(store, "assets")
    table = pq.read_table(pa.BufferReader(good))
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({"sjc.version": "99"}), sink)
    damage(store, key, sink.getvalue().to_pybytes())
    with pytest.raises(TableError, match=rf"{key} has schema version 99 and this program reads 1"):
        query(store, "SELECT * FROM assets")
    damage(store, key, good)
    damage(store, "tables/assets/loose.parquet", good)
    with pytest.raises(TableError, match=r"loose\.parquet is not in a run's folder"):
        read_table(store, "assets")
    store.delete("tables/assets/loose.parquet")
    damage(store, "tables/assets/run_id=run1/_SUCCESS", b"")
    seal_run(store, "run1")
    rebuild_tables(store)
    assert len(read_table(store, "assets")) == 1
    assert store.exists("tables/assets/run_id=run1/_SUCCESS"), "not ours to judge"


@pytest.mark.parametrize("sealed", [False, True])
def test_no_flipped_byte_becomes_a_value(tmp_path: Path, sealed: bool) -> None:
    """The pages' checksums: zstd alone lets some through."""
    store = open_store(tmp_path / "store")
    make(store, tmp_path, spec(), "run1")
    make(store, tmp_path, spec("a pig"), "run1")
    key = f"tables/assets/run_id=run1/{spec().asset_id}-a01.parquet"
    if sealed:
        seal_run(store, "run1")
        key = "tables/assets/run_id=run1/sealed-0001.parquet"
    good = store.get_bytes(key)
    metadata = pq.read_metadata(pa.BufferReader(good))
    for column in range(0, metadata.num_columns, 2):
        chunk = metadata.row_group(0).column(column)
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        damaged = bytearray(good)
        damaged[start + chunk.total_compressed_size - 2] ^= 0x10
        damage(store, key, bytes(damaged))
        with pytest.raises(TableError, match=key):
            query(store, "SELECT * FROM assets")


def test_sealing_refuses_a_torn_part_and_loses_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    make(store, tmp_path, spec(), "run1")
    make(store, tmp_path, spec("a pig"), "run1")
    key = f"tables/attempts/run_id=run1/{spec().asset_id}-a01.parquet"
    damage(store, key, store.get_bytes(key)[:-1])
    before = list(store.list("tables/attempts/"))
    with pytest.raises(TableError, match=key):
        seal_run(store, "run1")
    assert list(store.list("tables/attempts/")) == before


def test_a_wrong_row_writes_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    with pytest.raises(RowError):
        write_part(store, "runs", "run1", "run", [{"run_id": "run1"}])
    assert list(store.list()) == []
    assert tables.RUN_PART == "run"
    assert {column.name for column in COLUMNS["runs"]} == set(DESIGN["runs"].split())
