"""A report per run, `runs/{run_id}/report.html`: one file that shows what a run made, and how well.

It is a view: everything in it is in the store's tables and files, and `sjc report` makes it again.
Links lead to the files beside it; the pictures are inside, so that it can be sent to somebody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from sjc_engine.asset_files import PREVIEW, THUMBNAIL, view_file
from tasks.pages.html import data_uri
from tasks.pages.report.charts import Line
from tasks.pages.report.page import Row, RunReport, Thumbnail, report_page
from tasks.pages.run_sheet import read_picture
from tasks.records.documents import LOOKUPS, asset_manifest, committed_files, read_run, run_ids
from tasks.store.interface import Damaged, NotInStore, Store
from tasks.store.layout import report_key
from tasks.tables.best_assets import BEST_FIRST, RATINGS_SQL
from tasks.tables.read import query

T = TypeVar("T")

MOST_TILES = 240  # of the wall, however many assets there are: a toy's picture takes 1 kB
MOST_SHOWN = 6  # best and worst assets
MOST_LINES = 24  # of a chart of the optimisation
PICTURES = (view_file("mesh", 1), THUMBNAIL)  # both from its left front
TILE_PIXELS, LARGE_PIXELS = 112, 208


class CommandLine(Protocol):
    """How the command of a run is written; only `flows` knows the options."""

    def __call__(self, store: str, run: Mapping[str, Any], *, retry: bool) -> str: ...


# What the run did for each asset: its own row, or for a reused one the row that it had.
_SQL = f"""
WITH mine AS (
    SELECT * FROM assets
    WHERE asset_id IN (SELECT asset_id FROM entries WHERE run_id = '{{run_id}}')
    QUALIFY row_number() OVER
        (PARTITION BY asset_id ORDER BY (run_id = '{{run_id}}') DESC, {BEST_FIRST}) = 1
)
SELECT e.row_id, e.asset_id,
    -- a run that was killed left no outcomes, but its rows are there
    coalesce(e.outcome, CASE WHEN m.run_id <> '{{run_id}}' THEN NULL WHEN m.status = 'ok'
        THEN 'computed' WHEN m.status <> 'interrupted' THEN 'failed' END) AS outcome,
    m.* EXCLUDE (asset_id), r.* EXCLUDE (asset_id)
FROM entries e LEFT JOIN mine m USING (asset_id) LEFT JOIN ({RATINGS_SQL}) r USING (asset_id)
WHERE e.run_id = '{{run_id}}' AND e.outcome IS DISTINCT FROM 'duplicate'
ORDER BY e.line, e.row_id
"""


def latest_run(store: Store) -> str:
    """The last run of a manifest; raises `NotInStore` when there is none.

    An evaluation of finished assets is a run too, of no manifest's rows.
    """
    for run_id in reversed(run_ids(store)):
        if read_run(store, run_id)["entries"]:
            return run_id
    raise NotInStore(f"There is no run in {store.url}", "check --store, or run `sjc run`")


def write_report(store: Store, run_id: str, command_line: CommandLine) -> str:
    """Writes the run's report in place of an earlier one; returns where it is.

    command_line: writes the command of a run. Raises `NotInStore` when there is no such run, and
    `StoreError`.
    """
    page = report_page(read_report(store, run_id, command_line))
    store.put_bytes(report_key(run_id), page.encode(), replace=True)
    return store.uri(report_key(run_id))


def read_report(store: Store, run_id: str, command_line: CommandLine) -> RunReport:
    """Everything that the page of a run shows."""
    try:
        run = read_run(store, run_id)
    except NotInStore as error:
        raise NotInStore(
            f"There is no run {run_id} in {store.url}",
            "list them with `sjc query 'SELECT run_id, manifest FROM runs'`",
        ) from error
    if not run["entries"]:
        raise NotInStore(f"Run {run_id} made no assets: it has no report", "see `sjc assets`")
    found = query(store, _SQL.format(run_id=run_id)).to_pylist()
    rows = list({row["asset_id"]: row for row in reversed(found)}.values())[::-1]
    wall = sample(rows, MOST_TILES)
    best, worst = extremes(rows, MOST_SHOWN)
    tiles, versions = pictures(store, wall, TILE_PIXELS)
    large, _ = pictures(store, [*best, *worst], LARGE_PIXELS)
    command, retry_command = (command_line(store.url, run, retry=retry) for retry in (False, True))
    return RunReport(
        run, store.url, rows, wall, best, worst, tiles, large, versions, command, retry_command,
        read_lines(store, rows, run_id),
    )  # fmt: skip


def sample(rows: Sequence[T], most: int) -> list[T]:
    """All of them, or `most` of them at even distances."""
    if len(rows) <= most:
        return list(rows)
    return [rows[k * len(rows) // most] for k in range(most)]


def read_lines(store: Store, rows: Iterable[Row], run_id: str) -> list[Line]:
    """What the steps of some attempts of the run measured, half of them failed ones if it can be.

    The failed ones come last, and are drawn over the others.
    """
    made = [row for row in rows if row["run_id"] == run_id]
    bad = sample([row for row in made if row["status"] != "ok"], MOST_LINES // 2)
    good = sample([row for row in made if row["status"] == "ok"], MOST_LINES - len(bad))
    ids = ", ".join(repr(row["asset_id"]) for row in (*good, *bad))
    sql = f"SELECT * FROM history WHERE run_id = '{run_id}' AND asset_id IN ({ids or 'NULL'})"
    found = {(row["asset_id"], row["attempt"]): row for row in query(store, sql).to_pylist()}
    return [
        Line(f"{row['row_id']} ({row['status']})", found[key], bad=row["status"] != "ok")
        for row in (*good, *bad)
        if (key := (row["asset_id"], row["attempt"])) in found
    ]


def extremes(rows: Iterable[Row], most: int) -> tuple[list[Row], list[Row]]:
    """The best and the worst assets by the judge's score, none twice, the best and worst first.

    Scores of different judges don't compare: only the judge of most assets counts.
    """
    scored = [row for row in rows if row["status"] == "ok" and row["clip_score"] is not None]
    judges = Counter((row["evaluator"], row["evaluator_revision"]) for row in scored)
    if not judges:
        return [], []
    judge = judges.most_common(1)[0][0]
    same = [row for row in scored if (row["evaluator"], row["evaluator_revision"]) == judge]
    same.sort(key=lambda row: row["clip_score"], reverse=True)
    few = min(most, len(same) // 2)
    return same[: min(most, len(same) - few)], same[len(same) - few :][::-1]


def pictures(
    store: Store, rows: Sequence[Row], size: int
) -> tuple[dict[str, Thumbnail], dict[str, str]]:
    """Pictures of finished assets by id, and the versions of what made the last one.

    A picture that is missing or damaged is left out: a report is no place to fail for it. Raises
    `StoreError` for one that could not be read.
    """

    def load(row: Row) -> tuple[Thumbnail | None, dict[str, str]]:
        try:
            manifest = asset_manifest(store, row["asset_id"])
            if manifest is None:
                return None, {}
            files = committed_files(row["asset_id"], manifest)
            small = next((files[name] for name in PICTURES if name in files), None)
            if small is None:
                return None, manifest["versions"]
            data = data_uri(read_picture(store, small.key, size))
        except (Damaged, NotInStore):
            return None, {}
        large = files.get(PREVIEW, small)
        return Thumbnail(data, f"../../{large.key}"), manifest["versions"]

    finished = [row for row in rows if row["status"] == "ok"]
    with ThreadPoolExecutor(LOOKUPS) as pool:
        found = list(pool.map(load, finished))
    versions = next((made for _, made in reversed(found) if made), {})
    return {
        row["asset_id"]: picture
        for row, (picture, _) in zip(finished, found, strict=True)
        if picture is not None
    }, versions
