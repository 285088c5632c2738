"""What changed between two runs, against stores in which it is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from task_samples import fill, make, make_run, record_attempt, report, spec

from tasks.manifest.resolve import read_manifest, resolve
from tasks.records.attempts import asset_attempts
from tasks.records.documents import asset_manifest
from tasks.records.runs import finish_run, start_run
from tasks.store import open_store
from tasks.store.interface import Store
from tasks.tables.diff import Difference, UnknownRun, diff_runs
from tasks.tables.write import record_run


def changes(difference: Difference) -> dict[str, str]:
    return {row["row_id"]: row["change"] for row in difference.rows.to_pylist()}


def run(store: Store, folder: Path, run_id: str, rows: str, **states: Any) -> None:
    """A run in which an asset's status is given by its row id: "ok" with metrics, or "failed"."""
    path = folder / "n.csv"
    path.write_text(f"id,prompt,seed\n{rows}")
    manifest = read_manifest(path)
    entries = resolve(manifest.rows, prior_revision=lambda _: "r", recipe="draft").entries
    document = start_run(store, run_id, "n.csv", manifest.sha256, entries, {})
    for entry in entries:
        state = states.get(entry.row_id)
        if state == "failed":
            make(store, folder, entry.spec, run_id, "failed")
        elif state is not None:
            make(store, folder, entry.spec, run_id, **state)
    record_run(store, finish_run(store, document, {}))


def test_entries_are_matched_by_row_and_then_by_asset(store: Store, tmp_path: Path) -> None:
    fill(store, tmp_path)
    found = diff_runs(store, "run1", "run2")
    assert changes(found) == {"duck": "same", "car": "added", "pig": "removed"}
    assert found.new_failures() == 0
    make_run(store, tmp_path, "run3", "bird,a duck,,\ncar,a car,,\n")
    renamed = diff_runs(store, "run2", "run3")
    assert changes(renamed) == {"bird": "same", "car": "same"}
    assert renamed.counts() == dict.fromkeys(
        ("added", "removed", "fixed", "broken", "remade", "measured"), 0
    ) | {"same": 2}


def test_every_kind_of_change_and_the_numbers(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    ok = {"clip_score": 20.0, "faces": 100}
    run(
        store, tmp_path, "r1",
        "gone,a gone,0\nfix,a fix,0\nbreak,a break,0\nagain,again,0\nkept,kept,0\nbad,bad,0\n",
        gone=ok, fix="failed", again=ok, kept=ok, bad="failed", **{"break": ok},
    )  # fmt: skip
    run(
        store, tmp_path, "r2",
        "fix,a fix,0\nbreak,a break,1\nagain,again,1\nkept,kept,0\nbad,bad,0\nnew,new,0\n",
        fix=ok, again={"clip_score": 26.0, "faces": 90}, new="failed", **{"break": "failed"},
    )  # fmt: skip
    found = diff_runs(store, "r1", "r2")
    assert changes(found) == {
        "fix": "fixed", "break": "broken", "again": "remade", "kept": "same", "bad": "same",
        "new": "added", "gone": "removed",
    }  # fmt: skip
    rows = {row["row_id"]: row for row in found.rows.to_pylist()}
    assert (rows["again"]["clip_score_delta"], rows["again"]["faces_delta"]) == (6.0, -10.0)
    assert rows["again"]["asset_a"] != rows["again"]["asset_b"]
    assert (rows["fix"]["status_a"], rows["fix"]["status_b"]) == ("failed", "ok")
    assert rows["fix"]["error_a"] == "loss is NaN"
    assert rows["fix"]["clip_score_delta"] is None
    assert found.new_failures() == 2  # break and new; bad failed before
    assert diff_runs(store, "r2", "r1").new_failures() == 1  # what was fixed
    assert set(changes(diff_runs(store, "r1", "r1")).values()) == {"same"}


def test_the_past_stays_as_it_was(tmp_path: Path) -> None:
    """An asset that failed in a run, and was made by a later one, has failed in that run."""
    store = open_store(tmp_path / "store")
    run(store, tmp_path, "r1", "a,a duck,0\nb,a pig,0\n", a="failed", b={"clip_score": 20.0})
    run(store, tmp_path, "r2", "a,a duck,0\nb,a pig,0\n", a={})
    pig = spec("a pig").asset_id
    manifest = asset_manifest(store, pig)
    assert manifest
    (attempt,) = asset_attempts(store, pig)
    judged = {**attempt, "attempt": "a02", "report": report(clip_score=30.0)}
    later = "2100-01-01T00:00:00.000000+00:00"
    record_attempt(store, {**judged, "run_id": "r3", "ended_at": later}, manifest)
    assert changes(diff_runs(store, "r1", "r2")) == {"a": "fixed", "b": "same"}
    run(store, tmp_path, "r4", "a,a duck,0\nb,a pig,0\n")
    document = {**start_run(store, "r5", "n.csv", "", [], {}), "ended_at": later}
    entries = [{"line": 2, "row_id": "b", "asset_id": pig, "tags": [], "meta": {}, "outcome": None}]
    record_run(store, {**document, "entries": entries})
    (row,) = (r for r in diff_runs(store, "r1", "r5").rows.to_pylist() if r["row_id"] == "b")
    assert (row["change"], row["clip_score_delta"]) == ("measured", 10.0)


def test_runs_are_named_by_id_beginning_and_place(store: Store, tmp_path: Path) -> None:
    for name in ("20260101T000000-aa", "20260102T000000-bb", "20260102T000000-cc"):
        make_run(store, tmp_path, name, "duck,a duck,,\n")
    found = diff_runs(store, "20260101", "latest")
    assert (found.run_a, found.run_b) == ("20260101T000000-aa", "20260102T000000-cc")
    assert diff_runs(store, "previous", "latest").run_a == "20260102T000000-bb"
    with pytest.raises(UnknownRun, match=r"there is no run 'x'.*-cc \(.*m\.csv\), .*-bb"):
        diff_runs(store, "x", "latest")
    with pytest.raises(UnknownRun, match="2 runs begin with '20260102'"):
        diff_runs(store, "20260102", "latest")
    with pytest.raises(UnknownRun, match="there is no run ''"):
        diff_runs(store, "", "latest")
