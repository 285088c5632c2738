"""What changed between two runs: entries, their outcomes, and the metrics of their assets."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from sjc_engine.errors import UsageError
from tasks.store.interface import Store
from tasks.tables.columns import REAL, TEXT
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
# An entry's asset as it was when the run ended: a later success does not change the past.
_STATES = f"""
SELECT e.row_id, e.asset_id, coalesce(a.status, 'unfinished') AS status, a.error,
       {", ".join(f"a.{name}::DOUBLE AS {name}" for name in METRICS)},
       {" + ".join(f"coalesce(a.{name}, 0)" for name in _SECONDS)} AS seconds
FROM entries e LEFT JOIN (
    SELECT * FROM assets, (SELECT ended_at AS run_ended_at FROM runs WHERE run_id = '{{run_id}}')
    WHERE run_ended_at IS NULL OR ended_at <= run_ended_at
    QUALIFY row_number() OVER (
        PARTITION BY asset_id
        ORDER BY (status = 'ok') DESC, try_cast(attempt[2:] AS INT) DESC, ended_at DESC, run_id DESC
    ) = 1
) a USING (asset_id)
WHERE e.run_id = '{{run_id}}' ORDER BY e.line, e.row_id
"""
SCHEMA = pa.schema(
    [
        *((name, TEXT) for name in (
            "change", "row_id", "asset_a", "asset_b", "status_a", "status_b", "error_a", "error_b",
        )),
        *((f"{name}_{side}", REAL) for name in NUMBERS for side in
          ("a", "b", "delta")),
    ]
)  # fmt: skip


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
    before, after = (query(store, _STATES.format(run_id=id)).to_pylist() for id in (first, second))
    rows = [_row(a, b) for a, b in _matched(before, after)]
    return Difference(first, second, pa.Table.from_pylist(rows, SCHEMA))


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


def _matched(
    before: list[dict[str, Any]], after: list[dict[str, Any]]
) -> list[tuple[dict[str, Any] | None, dict[str, Any] | None]]:
    """Entries of the second run with theirs of the first, then those that are gone."""
    by_row = {state["row_id"]: state for state in before}
    new_rows = {state["row_id"] for state in after}
    by_asset: dict[str, list[dict[str, Any]]] = {}
    for state in reversed(before):
        if state["row_id"] not in new_rows:
            by_asset.setdefault(state["asset_id"], []).append(state)
    pairs: list[tuple[dict[str, Any] | None, dict[str, Any] | None]] = []
    for state in after:
        same = by_asset.get(state["asset_id"])
        match = by_row.get(state["row_id"]) or (same.pop() if same else None)
        pairs.append((match, state))
    gone = [state for states in by_asset.values() for state in states]
    return pairs + [(state, None) for state in sorted(gone, key=lambda state: state["row_id"])]


def _row(a: dict[str, Any] | None, b: dict[str, Any] | None) -> dict[str, Any]:
    row: dict[str, Any] = {"change": _change(a, b), "row_id": (b or a or {})["row_id"]}
    for side, state in (("a", a or {}), ("b", b or {})):
        row |= {f"asset_{side}": state.get("asset_id")}
        row |= {f"{name}_{side}": state.get(name) for name in ("status", "error", *NUMBERS)}
    for name in NUMBERS:
        old, new = row[f"{name}_a"], row[f"{name}_b"]
        row[f"{name}_delta"] = None if old is None or new is None else new - old
    return row


def _change(a: dict[str, Any] | None, b: dict[str, Any] | None) -> str:
    if a is None or b is None:
        return "added" if a is None else "removed"
    if (a["status"] == "ok") != (b["status"] == "ok"):
        return "fixed" if b["status"] == "ok" else "broken"
    if a["asset_id"] != b["asset_id"]:
        return "remade"
    return "same" if all(a[name] == b[name] for name in METRICS) else "measured"
