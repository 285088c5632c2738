"""Pruning: what goes, what stays, what is known afterwards, and a process that dies within."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from store_snapshots import restore, snapshot
from task_samples import all_tables, make_run, record_attempt, spec

from tasks.records.attempts import finish_attempt, start_evaluation
from tasks.records.commit import asset_state
from tasks.records.documents import asset_manifest, read_attempt
from tasks.records.prune import prune_assets, sizes
from tasks.records.verify import repair_store, verify_store
from tasks.store import open_store
from tasks.store.interface import Store, StoreError
from tasks.store.layout import attempt_key, marker_key, tombstone_key
from tasks.store.leases import leases
from tasks.tables.diff import diff_runs
from tasks.tables.read import query, read_table
from tasks.tables.write import compact_store, rebuild_tables

DUCK = spec("a duck").asset_id


def fill(store: Store, folder: Path) -> None:
    """Two assets, one of them measured again by a second run."""
    make_run(store, folder, "run1", "duck,a duck,t,v\npig,a pig,,\n")
    committed = read_attempt(store, attempt_key(DUCK, "a01"))
    attempt = start_evaluation(store, committed, "run2")["attempt"]
    report = {"steps": 3, "clip_score": 12.5}
    ended = finish_attempt(store, DUCK, attempt, "ok", report=report)
    record_attempt(store, ended, asset_manifest(store, DUCK) or {})


@pytest.fixture
def filled(kept_store: Callable[..., Store], tmp_path: Path) -> Store:
    return kept_store("prune-store", lambda store: fill(store, tmp_path))


def prune(store: Store, owner: str = "me") -> list[str]:
    with leases(store, owner) as held:
        return prune_assets(store, [DUCK], "so asked", held)


def is_whole(store: Store) -> bool:
    """Whether the duck is all there, or nothing of it that counts."""
    manifest = asset_manifest(store, DUCK)
    names = manifest["files"] if manifest else {}
    return all(store.exists(f"assets/{DUCK}/{name}") for name in names)


def check_pruned(store: Store) -> None:
    assert sorted(store.list(f"assets/{DUCK}/")) == [
        attempt_key(DUCK, "a01"), attempt_key(DUCK, "a02"), tombstone_key(DUCK),
    ]  # fmt: skip
    assert asset_state(store, DUCK) == "pruned"
    assert read_table(store, "assets")["prompt"].tolist() == ["a pig"]
    rows = query(
        store,
        "SELECT attempt, status, error, clip_score, uri_mesh, bytes_total FROM assets"
        f" WHERE asset_id = '{DUCK}' ORDER BY attempt",
    ).to_pylist()
    assert [(row["attempt"], row["status"]) for row in rows] == [
        ("a01", "pruned"),
        ("a02", "pruned"),
    ]
    assert [row["clip_score"] for row in rows] == [0.5, 12.5], "what was measured is still known"
    assert not any(row["uri_mesh"] or row["bytes_total"] for row in rows)
    uris = query(store, f"SELECT DISTINCT uri FROM views WHERE asset_id = '{DUCK}'")
    assert uris["uri"].to_pylist() == [None]
    assert verify_store(store) == []


def test_files_go_and_what_was_measured_stays(filled: Store) -> None:
    marker = filled.get_bytes(marker_key(DUCK))
    assert len(sizes(filled, [DUCK])[DUCK]) == 4
    before = len(all_tables(filled)["views"])
    assert prune(filled) == []
    assert filled.get_bytes(tombstone_key(DUCK)) == marker
    check_pruned(filled)
    rows = all_tables(filled)
    assert len(rows["views"]) == before
    rebuild_tables(filled)
    assert all_tables(filled) == rows
    compact_store(filled)
    assert all_tables(filled) == rows
    assert prune(filled) == [], "again, which changes nothing"
    assert all_tables(filled) == rows
    assert diff_runs(filled, "run1", "run1").counts()["same"] == 2
    filled.delete(tombstone_key(DUCK))
    assert asset_state(filled, DUCK) == "interrupted", "a run makes it again"
    assert verify_store(filled) == []


def test_an_asset_that_a_run_works_on_is_skipped(filled: Store) -> None:
    before = sorted(filled.list("assets/"))
    with leases(filled, "a run") as held:
        assert held.take(DUCK)
        assert prune(filled) == [DUCK]
        assert sorted(filled.list("assets/")) == before


class Dying:
    """A store's changes until its process dies: there are none after it."""

    def __init__(self, store: Store, changes: int) -> None:
        self.store, self.left, self.died = store, changes, False
        for name in ("put_bytes", "move", "delete"):
            setattr(store, name, self._until_then(getattr(store, name)))

    def _until_then(self, change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*arguments: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                self.died = True
                raise StoreError("killed")
            return change(*arguments, **options)

        return changed


@pytest.mark.parametrize("finish", ["prune", "repair"])
def test_a_prune_that_was_killed_is_finished_later(tmp_path: Path, finish: str) -> None:
    """Killed before each of its changes in turn."""
    store = open_store(tmp_path / "store")
    fill(store, tmp_path)
    files = snapshot(store.url)
    for changes in range(60):
        restore(store.url, files)
        dying = Dying(open_store(store.url), changes)
        with contextlib.suppress(StoreError):
            prune(dying.store)
        assert is_whole(store)
        if finish == "repair":
            repair_store(store, verify_store(store))
            assert verify_store(store) == []
        if finish == "prune" or asset_manifest(store, DUCK):
            prune(store)
        check_pruned(store)
        if not dying.died:
            assert changes > 8
            return
    raise AssertionError("it never comes to its end")


def test_a_marker_that_was_copied_and_not_yet_deleted(filled: Store) -> None:
    """On S3 a move is two changes."""
    filled.put_bytes(tombstone_key(DUCK), filled.get_bytes(marker_key(DUCK)))
    assert asset_state(filled, DUCK) == "finished"
    assert verify_store(filled) == []
    prune(filled)
    check_pruned(filled)
