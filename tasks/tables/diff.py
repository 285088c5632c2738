"""What changed between two runs: entries, their outcomes, and the metrics of their assets."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pyarrow as pa

from sjc_engine.errors import UsageError
from tasks.store.interface import Store
from tasks.tables.best_assets import BEST_FIRST
from tasks.tables.read import query

METRICS = (
    "clip_score", "clip_r_precision", "geometry_r_precision", "janus_score", "field_mesh_iou",
    "field_mesh_psnr", "field_mesh_lpips", "faces", "components",
)  # fmt: skip
_SECONDS = ("seconds_optimize", "seconds_extract", "seconds_evaluate")
NUMBERS = (*METRICS, "seconds")
LATEST = 8  # runs that an error message lists

# Of an entry of both runs: it failed and is ok, the reverse, it is another asset, the same asset
# has other numbers, nothing.
CHANGES = ("added", "removed", "fixed", "broken", "remade", "measured", "same")
# An entry's asset as it was when the run ended: a later success does not change the past. Entries
# have one key in both runs if their row ids are the same, else if their assets are.
_STATES = f"""
SELECT e.line, e.row_id, e.asset_id, coalesce(a.status, 'unfinished') AS status, a.error,
       coalesce(o.row_id, e.asset_id || '/' || row_number() OVER
           (PARTITION BY e.asset_id, o.row_id IS NULL ORDER BY e.line, e.row_id)) AS key,
       {", ".join(f"a.{name}::DOUBLE AS {name}" for name in METRICS)},
       {" + ".join(f"coalesce(a.{name}, 0)" for name in _SECONDS)} AS seconds
FROM entries e
LEFT JOIN (SELECT row_id FROM entries WHERE run_id = '{{other}}') o USING (row_id)
LEFT JOIN (
    SELECT * REPLACE (replace(status, 'pruned', 'ok') AS status)
    FROM assets, (SELECT ended_at AS run_ended_at FROM runs WHERE run_id = '{{run_id}}')
    WHERE run_ended_at IS NULL OR ended_at <= run_ended_at
    QUALIFY row_number() OVER (PARTITION BY asset_id ORDER BY {BEST_FIRST}) = 1
) a USING (asset_id)
WHERE e.run_id = '{{run_id}}'
"""
_DIFFERENCE = f"""
SELECT CASE WHEN a.row_id IS NULL THEN 'added' WHEN b.row_id IS NULL THEN 'removed'
            WHEN a.status <> 'ok' AND b.status = 'ok' THEN 'fixed'
            WHEN a.status = 'ok' AND b.status <> 'ok' THEN 'broken'
            WHEN a.asset_id <> b.asset_id THEN 'remade'
            WHEN {" OR ".join(f"a.{n} IS DISTINCT FROM b.{n}" for n in METRICS)} THEN 'measured'
            ELSE 'same' END AS change,
       coalesce(b.row_id, a.row_id) AS row_id, a.asset_id AS asset_a, b.asset_id AS asset_b,
       a.status AS status_a, b.status AS status_b, a.error AS error_a, b.error AS error_b,
       {", ".join(f"a.{n} AS {n}_a, b.{n} AS {n}_b, b.{n} - a.{n} AS {n}_delta" for n in NUMBERS)}
FROM a FULL JOIN b USING (key) ORDER BY b.line NULLS LAST, 2
"""


class UnknownRun(UsageError):
    """There is no such run, or more than one; the message lists the latest ones."""


@dataclass(frozen=True)
class Difference:
    """One row for each entry of either run, `change` saying what became of it."""

    run_a: str
    run_b: str
    rows: pa.Table

    def counts(self) -> dict[str, int]:
        """Entries by change."""
        found = Counter(self.rows["change"].to_pylist())
        return {change: found[change] for change in CHANGES}

    def new_failures(self) -> int:
        """Entries that are not ok in the second run, and were ok in the first or not there."""
        return sum(
            row["change"] == "broken" or (row["change"] == "added" and row["status_b"] != "ok")
            for row in self.rows.to_pylist()
        )


def diff_runs(store: Store, run_a: str, run_b: str) -> Difference:
    """Entries are matched by row id, and what is left by asset.

    A run is named by its id, the beginning of it, `latest`, or `previous`, the one before. Raises
    `UnknownRun`.
    """
    runs = query(store, "SELECT run_id, manifest FROM runs ORDER BY started_at DESC, run_id DESC")
    known = [(row["run_id"], row["manifest"]) for row in runs.to_pylist()]
    first, second = (_named(store, known, name) for name in (run_a, run_b))
    before = _STATES.format(run_id=first, other=second)
    after = _STATES.format(run_id=second, other=first)
    rows = query(store, f"WITH a AS ({before}), b AS ({after}) {_DIFFERENCE}")
    return Difference(first, second, rows)


def _named(store: Store, known: list[tuple[str, str]], name: str) -> str:
    ids = [run_id for run_id, _ in known]
    position = {"latest": 0, "previous": 1}.get(name)
    if position is not None and position < len(ids):
        return ids[position]
    found = [run_id for run_id in ids if run_id == name] or [
        run_id for run_id in ids if name and run_id.startswith(name)
    ]
    if len(found) == 1:
        return found[0]
    latest = ", ".join(f"{run_id} ({manifest})" for run_id, manifest in known[:LATEST])
    problem = f"{len(found)} runs begin with {name!r}" if found else f"there is no run {name!r}"
    raise UnknownRun(f"{problem} in {store.url}; its latest: {latest or 'none'}")
