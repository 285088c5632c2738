"""The tables: what may be written, what is read back, and what no crash can lose."""

from __future__ import annotations

import json
import os
import re
import runpy
import signal
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow.parquet as pq
import pytest
from task_samples import make, make_run, record_attempt, report, spec

from sjc_engine.spec import AssetSpec
from tasks.records.attempts import finish_attempt, start_attempt
from tasks.records.documents import asset_manifest, read_document
from tasks.store import open_store
from tasks.store.interface import Store, StoreError
from tasks.tables import read as table_reader
from tasks.tables.columns import RowError
from tasks.tables.projection import asset_row, check_report, rows_of_run
from tasks.tables.read import QueryError, query, read_table
from tasks.tables.schemas import FILE_SCHEMAS, RATINGS, SCHEMAS, TABLES, check_row, to_arrow

ROOT = Path(__file__).parents[3]
# The page that fixes the names of columns, word for word, with its groups written out; and what
# later versions added.
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
    "history": "asset_id attempt run_id steps loss score_norm emptiness opacity sigma",
    "runs": """run_id manifest count_entries count_assets count_computed count_reused
    count_duplicate count_failed started_at ended_at seconds_total flow_run_id settings""",
    "annotations": "asset_id key value who made_at document",
}


ADDED = {
    "assets": "field_mesh_lpips lpips_weights coverage rolled_back words_cut dtype"
    " words_cut_by_judge",
    "views": "field_mesh_lpips",
    "runs": "count_pruned",
}


# --- schemas -----------------------------------------------------------------------------------


def test_the_columns_are_those_of_the_contract() -> None:
    """In its order, what was added left out."""
    added = {name: ADDED.get(name, "").split() for name in SCHEMAS}
    assert {name: DESIGN[name].split() for name in SCHEMAS} == {
        name: [c for c in schema.names if c not in added[name]] for name, schema in SCHEMAS.items()
    }
    assert all(set(added[name]) <= set(schema.names) for name, schema in SCHEMAS.items())
    assert set(SCHEMAS) == set(DESIGN)


def test_the_docs_tables_are_up_to_date() -> None:
    script = runpy.run_path(str(ROOT / "scripts/docs_tables.py"))
    for name, generate in script["PAGES"].items():
        page = (ROOT / "docs" / name).read_text("utf-8")
        generated = page.partition(script["MARK"])[2].strip()
        assert generated == generate().strip(), "run: python scripts/docs_tables.py"


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
    with pytest.raises(RowError, match="table attempts: missing column device, error"):
        check_row("attempts", {k: v for k, v in row.items() if k not in ("error", "device")})
    changes: list[tuple[dict[str, object], str]] = [
        ({"asset_id": None}, "asset_id: null is not allowed"),
        ({"status": "fine"}, "status: 'fine' is not one of ok, failed"),
        ({"first_step": 1.5}, r"first_step: 1\.5 is not int64"),
        ({"first_step": True}, "first_step: True is not int64"),
        ({"first_step": 2**63}, "first_step: .* is not int64"),
        ({"first_step": -1}, "first_step: -1 is outside"),
        ({"error": 5}, "error: 5 is not string"),
        ({"error": "\ud83e"}, "error: .* is not string"),
        ({"started_at": "now"}, "started_at: 'now' is not timestamp"),
    ]
    for change, message in changes:
        with pytest.raises(RowError, match=f"table attempts: {message}"):
            check_row("attempts", row | change)
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


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": [1, 2.5]},
        {"steps": [1, "2"]},
        {"loss": None},
        {"loss": 0.5},
        {"loss": [0.5]},
        {"loss": [0.5, float("nan")]},
    ],
)
def test_a_history_is_lists_of_finite_numbers_of_one_length(changes: dict[str, object]) -> None:
    check_report(report(), {}, {})
    check_report(report(history=None), {}, {})  # of a field that an older version made
    check_report(report(history={}), {}, {})  # before the first step
    with pytest.raises(RowError, match=r"history|steps|loss"):
        check_report(report(history=report()["history"] | changes), {}, {})


# --- writing and reading -----------------------------------------------------------------------


def test_an_empty_store_has_empty_typed_tables(store: Store) -> None:
    for name, schema in SCHEMAS.items():
        frame = read_table(store, name)
        assert frame.empty
        ratings = [column.name for column in RATINGS if name == "assets"]
        assert list(frame.columns) == schema.names + ratings
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
    assert AssetSpec.from_json(json.loads(str(duck["spec_json"]))) == spec()
    recipe = spec().recipe
    assert (duck["recipe"], duck["recipe_hash"]) == (recipe.name, recipe.hash)
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


def test_entries_of_pruned_assets_are_counted_and_none_is_null(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    make_run(store, tmp_path, "run1", "duck,a duck,,\npig,a pig,,\n")
    run = read_document(store, "runs/run1.json")
    for outcome, counted in (("computed", (2, None)), ("pruned", (1, 1))):
        run["entries"][0]["outcome"] = outcome
        [row] = rows_of_run(run)["runs"]
        assert (row["count_computed"], row["count_pruned"]) == counted


def test_sql_sees_all_tables(store: Store, tmp_path: Path) -> None:
    make_run(store, tmp_path, "run1", "duck,a duck,t;u,v\npig,a pig,,\n")
    rows = query(
        store,
        """SELECT e.row_id, meta['k'] AS k, count(*) AS views, max(v.field_mesh_iou) AS iou,
               any_value(r.run_id) AS run, any_value(t.status) AS status, any_value(h.loss) AS loss
           FROM entries e JOIN assets a USING (asset_id) JOIN views v USING (asset_id)
           JOIN attempts t ON t.asset_id = a.asset_id JOIN runs r ON r.run_id = a.run_id
           JOIN history h ON h.asset_id = a.asset_id
           WHERE list_contains(tags, 't') AND a.started_at > TIMESTAMPTZ '2020-01-01 00:00:00+00'
           GROUP BY ALL""",
    ).to_pylist()
    expected = {"row_id": "duck", "k": "v", "views": 4, "iou": 0.9, "run": "run1", "status": "ok"}
    assert rows == [expected | {"loss": [0.5, -0.25]}]


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


def test_attempts_count_by_their_number_and_not_as_text(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    start_attempt(store, spec(), "run1")
    ended = finish_attempt(store, spec().asset_id, "a01", "failed", error="x")
    for name in ("a100", "a99"):
        record_attempt(store, ended | {"attempt": name}, {})
    [row] = query(store, "SELECT attempt FROM assets").to_pylist()
    assert row["attempt"] == "a100"
    [best] = query(store, "SELECT attempt FROM best_assets").to_pylist()
    assert best["attempt"] == "a100"


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
    with pytest.raises(QueryError, match=message) as caught:
        query(store, sql)
    assert str(caught.value).startswith(caught.value.problem)
    assert caught.value.problem
    assert "LINE" not in caught.value.problem


def test_a_query_leaves_nothing_to_the_next_one(tmp_path: Path) -> None:
    """All queries of a process share a database."""
    store = open_store(tmp_path / "store")
    for _ in range(2):
        query(store, "CREATE TABLE mine AS SELECT 1")
        with pytest.raises(QueryError, match="mine"):
            query(store, "SELECT * FROM mine")


def test_a_fork_opens_a_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has none of the threads of its parent's, and locks of it may be held for ever."""
    store = open_store(tmp_path / "store")
    make_run(store, tmp_path, "run-1", "duck,a duck,t,v\n")
    sql = "SELECT prompt, count(*) AS n FROM assets GROUP BY ALL"
    expected = query(store, sql)
    connect, opened = duckdb.connect, list[int]()

    def counted() -> table_reader.Connection:
        opened.append(os.getpid())
        return connect()

    monkeypatch.setattr(duckdb, "connect", counted)
    assert query(store, sql) == expected
    assert not opened
    if not (child := os.fork()):
        signal.alarm(30)
        os._exit(0 if query(store, sql) == expected and opened == [os.getpid()] else 1)
    assert os.waitpid(child, 0)[1] == 0


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
    sql = f"SELECT run_id FROM '{folder}/*/*.parquet' ORDER BY 1"
    found = duckdb.connect().execute(sql).fetchall()
    assert found == [("run-1",), ("run-2",)]
    [part] = (folder / "run_id=run-2").iterdir()
    assert re.fullmatch(r"\d{6}-[\w-]+\.parquet", part.name)
    file = pq.ParquetFile(part)
    assert file.schema_arrow.equals(FILE_SCHEMAS["assets"], check_metadata=False)
    assert file.schema_arrow.metadata[b"sjc.version"] == b"5"
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"


def test_read_table_chooses_rows_and_columns(store: Store, tmp_path: Path) -> None:
    make_run(store, tmp_path, "run1", "duck,a duck,t,v\npig,a pig,,\n")
    make(store, tmp_path, spec("a mug"), "run1", "failed")
    found = read_table(store.url, "assets", where="status = 'ok'", columns=["prompt", "faces"])
    assert list(found.columns) == ["prompt", "faces"]
    assert sorted(found["prompt"]) == ["a duck", "a pig"]
    assert found["faces"].dtype == "Int64"
    mine = read_table(
        store, "assets", tmp_path / "m.csv", where="true OR false -- whatever", columns=["status"]
    )
    assert list(mine["status"]) == ["ok", "ok"]  # the mug is not in the manifest
    everything = read_table(store, "assets")
    assert isinstance(everything["started_at"].dtype, pd.DatetimeTZDtype)
    assert everything["watertight"].dtype == "boolean"
    with pytest.raises(QueryError, match="no column colour"):
        read_table(store, "assets", columns=["prompt", "colour"])
    with pytest.raises(QueryError, match="colour"):
        read_table(store, "assets", where="colour = 3")


def test_ctrl_c_within_a_query_is_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DuckDB 2.0 may catch the signal, and then has this error for it (seen in the soak test)."""

    def interrupted(*_: object) -> None:
        raise RuntimeError("Query interrupted")

    monkeypatch.setattr(table_reader, "_run_sql", interrupted)
    with pytest.raises(KeyboardInterrupt):
        query(open_store(tmp_path / "store"), "SELECT 1")
