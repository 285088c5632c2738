"""Queries over the tables of many assets, as `sjc query` runs them.

    python benchmarks/tables.py [--assets 100000] [--views 8] [--runs 10] [--rounds 5] [--json FILE]

Makes stores with only tables in them, of made-up rows in the real schemas: one compacted, and one
as runs leave it, in parts of 300 assets. Printed, medians over rounds: each query in a process that
is up, and the whole command with the interpreter's start.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from report import Report, interleaved

from tasks.store import open_store
from tasks.store.interface import Store
from tasks.tables.columns import FLAG, REAL, TEXT, TEXT_MAP, TEXTS, TIME, WHOLE
from tasks.tables.read import query
from tasks.tables.schemas import COLUMNS, COMPACTED_SCHEMAS, FILE_SCHEMAS, SCHEMAS
from tasks.tables.write import PART

QUERIES = {
    "count": "SELECT count(*) FROM assets",
    "best asset of each prompt": """
        SELECT prompt, arg_max(asset_id, clip_score) AS best FROM best_assets
        WHERE status = 'ok' GROUP BY prompt ORDER BY prompt LIMIT 10""",
    "assets joined with views": """
        SELECT a.prior, v.source, v.view, count(*) AS n, avg(v.clip_score) AS views,
               avg(a.clip_score) AS assets, min(v.field_mesh_iou) AS worst
        FROM best_assets a JOIN views v USING (asset_id, run_id)
        WHERE a.status = 'ok' AND a.watertight GROUP BY ALL ORDER BY ALL""",
    "worst view of each asset": """
        SELECT asset_id, min(v.clip_score) AS worst, max(v.clip_score) - min(v.clip_score) AS gap
        FROM best_assets JOIN views v USING (asset_id, run_id)
        WHERE status = 'ok' GROUP BY asset_id ORDER BY gap DESC LIMIT 10""",
    "by tag": """
        SELECT tag, count(*) AS assets, avg(clip_score) FROM
        (SELECT DISTINCT asset_id, unnest(tags) AS tag FROM entries) JOIN best_assets
        USING (asset_id) GROUP BY tag ORDER BY tag""",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--assets", type=int, default=100_000)
    parser.add_argument("--views", type=int, default=8, help="of an asset")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    settings = parser.parse_args()
    used = {k: v for k, v in vars(settings).items() if k != "json"}
    report = Report("tables", used, ("duckdb", "pyarrow"))
    with tempfile.TemporaryDirectory() as folder:
        for layout in ("compacted", "parts"):
            store = open_store(Path(folder, layout))
            fill(store, settings.assets, settings.views, settings.runs, layout)
            measure(store, layout, settings.rounds, report)
    report.write_json(settings.json)


def measure(store: Store, layout: str, rounds: int, report: Report) -> None:
    files = list(Path(store.url).rglob("*.parquet"))
    rows = query(store, "SELECT (SELECT count(*) FROM assets), (SELECT count(*) FROM views)")
    assets, views = (column[0].as_py() for column in rows.columns)
    figure = report.part(layout, f"{assets} assets, {views} views")
    figure("files", len(files))
    figure("size", sum(path.stat().st_size for path in files) / 1e6, "MB")
    sjc = str(Path(sys.executable).with_name("sjc"))
    for name, sql in QUERIES.items():
        command = [sjc, "query", sql, "--store", store.url]
        ways = {
            "in process": lambda sql=sql: query(store, sql),
            "sjc query": lambda command=command: run(command),
        }
        for way, times in interleaved(ways, rounds).items():
            figure(f"{name}, {way}", median(times), "s")


def run(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def fill(store: Store, assets: int, views: int, runs: int, layout: str) -> None:
    """Tables with every asset in one run."""
    chance = np.random.default_rng(0)
    each = assets // runs
    whole: dict[str, list[pa.Table]] = {"assets": [], "views": [], "entries": []}
    for number in range(runs):
        run_id = f"20260101T{number:06d}-000000"
        ids = [f"{number * each + k:016x}" for k in range(each)]
        seen = np.repeat(ids, views).tolist()
        made = {
            "assets": table("assets", each, chance, ids, number),
            "views": table("views", each * views, chance, seen, number, views),
            "entries": table("entries", each, chance, ids, number),
        }
        for name, rows in made.items():
            if layout == "compacted":
                column = pa.array([run_id] * rows.num_rows)
                place = SCHEMAS[name].get_field_index("run_id")
                rows = rows.add_column(
                    place, COMPACTED_SCHEMAS[name].field(place), [column.dictionary_encode()]
                )
                whole[name].append(rows)
                continue
            part = rows.num_rows if name == "entries" else PART * rows.num_rows // each
            for start in range(0, rows.num_rows, part):
                name_of_file = f"run_id={run_id}/{start + 1:06d}-benchmark"
                put(store, name, name_of_file, rows.slice(start, part))
    for name, parts in whole.items():
        if parts:
            put(store, name, "compacted/benchmark", pa.concat_tables(parts).unify_dictionaries())


def table(
    name: str, count: int, chance: np.random.Generator, ids: list[str], run: int, views: int = 1
) -> pa.Table:
    """Rows of a table's schema, of random numbers and plausible text."""
    schema = FILE_SCHEMAS[name]
    about = {column.name: column for column in COLUMNS[name]}
    start = datetime(2026, 1, 1 + run, tzinfo=UTC)

    def column(field: pa.Field) -> pa.Array:
        known = about[field.name]
        if field.name == "asset_id":
            return pa.array(ids)
        if field.name == "view":
            return pa.array(np.arange(count) % views)
        if field.name == "row_id":
            return pa.array([f"row-{id}" for id in ids])
        if field.name == "prompt":
            return pa.array([f"a DSLR photo of thing number {int(id, 16) // 4}" for id in ids])
        if field.name == "status":
            return pa.array(np.where(chance.random(count) < 0.95, "ok", "failed"))
        if field.name in ("spec_json", "error", "uri_mesh", "uri_preview", "uri_field", "uri"):
            return pa.array([f"/somewhere/in/the/store/{field.name}/{id}" * 3 for id in ids])
        if known.choices:
            return pa.array(chance.choice(known.choices, count))
        if field.type == TEXT:
            return pa.array([f"{field.name} {k}" for k in chance.integers(0, 20, count)])
        if field.type == REAL:
            low, high = known.low or 0.0, known.high or 1000.0
            return pa.array(chance.uniform(low, high, count))
        if field.type == WHOLE:
            return pa.array(chance.integers(int(known.low or 0), 20_000, count))
        if field.type == FLAG:
            return pa.array(chance.random(count) < 0.8)
        if field.type == TIME:
            return pa.array([start + timedelta(seconds=k) for k in range(count)], TIME)
        if field.type == TEXTS:
            return pa.array([[f"tag{k % 12}", f"group{k % 3}"] for k in range(count)], TEXTS)
        assert field.type == TEXT_MAP, field
        return pa.array([[("source", f"s{k % 5}")] for k in range(count)], TEXT_MAP)

    arrays = [column(field) for field in schema]
    return pa.Table.from_arrays(
        [array.cast(field.type) for array, field in zip(arrays, schema, strict=True)], schema=schema
    )


def put(store: Store, name: str, place: str, rows: pa.Table) -> None:
    data = io.BytesIO()
    pq.write_table(rows, data, compression="zstd", write_page_checksum=True)
    store.put_bytes(f"tables/{name}/{place}.parquet", data.getvalue())


if __name__ == "__main__":
    main()
