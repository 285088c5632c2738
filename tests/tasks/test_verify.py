"""Every kind of damage is found, named and, where that can be, mended; a whole store is whole."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from task_samples import all_tables, fill, make, spec

from flows.plan import asset_states
from tasks.commit import (
    asset_attempts,
    asset_manifest,
    close_interrupted,
    committed_attempt,
    finish_attempt,
    run_ids,
)
from tasks.store import Store, open_store
from tasks.tables import read_table, seal_run
from tasks.verify import Finding, repair_store, verify_store

DUCK = spec().asset_id


def damage(store: Store, key: str, content: bytes) -> None:
    store.put_bytes(key, content, replace=True)


@pytest.fixture
def whole(store: Store, tmp_path: Path) -> Store:
    """A store with all that there can be in one."""
    fill(store, tmp_path)
    make(store, tmp_path, spec(), "run3", "failed")
    assert verify_store(store) == []
    seal_run(store, "run1")
    return store


def kinds(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.kind, finding.key) for finding in findings]


def test_a_whole_store_is_whole_and_repairing_it_changes_nothing(whole: Store) -> None:
    assert verify_store(whole) == []
    before = {key: whole.get_bytes(key) for key in whole.list()}
    assert repair_store(whole, []) == []
    assert {key: whole.get_bytes(key) for key in whole.list()} == before


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"short", "5 bytes instead of 18"),
        (b"", "0 bytes instead of 18"),
        (None, "is missing"),
        ("flip", "not what was committed"),
    ],
)
def test_a_damaged_asset_is_named_and_made_again(
    tmp_path: Path, content: Any, problem: str
) -> None:
    store = open_store(tmp_path / "store")
    fill(store, tmp_path)
    [duck] = [k for k in store.list("assets/") if DUCK in k and k.endswith("mesh.glb")]
    good = store.get_bytes(duck)
    if content is None:
        store.delete(duck)
    else:
        damage(store, duck, bytes([good[0] ^ 1]) + good[1:] if content == "flip" else content)
    [finding] = verify_store(store)
    assert (finding.kind, finding.key) == ("asset", duck)
    assert problem in finding.problem
    assert asset_states(store, [DUCK]) == {DUCK: "finished"}
    done = repair_store(store, [finding])
    assert "set aside" in done[0]
    assert verify_store(store) == []
    assert asset_manifest(store, DUCK) is None
    assert asset_states(store, [DUCK]) == {DUCK: "interrupted"}  # the next run makes it
    row = read_table(store, "assets").set_index("asset_id").loc[DUCK]
    assert (row.status, row.error_type) == ("interrupted", "Damaged")
    assert duck in row.error
    make(store, tmp_path, spec(), "run9")
    assert read_table(store, "assets").set_index("asset_id").loc[DUCK].status == "ok"
    assert verify_store(store) == []


def test_tables_that_are_torn_or_lie_are_made_again(whole: Store, tmp_path: Path) -> None:
    before = all_tables(whole)
    keys = [key for key in whole.list("tables/assets/") if key.endswith(".parquet")]
    damage(whole, keys[0], whole.get_bytes(keys[0])[:-9])
    [finding] = verify_store(whole)
    assert finding.kind == "table"
    assert "is damaged" in finding.problem
    repair_store(whole, [finding])
    assert all_tables(whole) == before
    assert verify_store(whole) == []


def test_rows_that_are_gone_or_stand_for_nothing_are_found(whole: Store) -> None:
    before = all_tables(whole)
    for key in list(whole.list("tables/attempts/")):
        whole.delete(key)
    views = next(iter(whole.list("tables/views/run_id=run1/")))
    whole.put_bytes("tables/views/run_id=ghost/x.parquet", whole.get_bytes(views))
    found = verify_store(whole)
    assert [f.key for f in found] == ["tables/views", "tables/attempts"]
    count = len(before["attempts"])
    assert found[1].problem == f"{count} rows are missing and 0 have nothing behind them"
    assert found[0].problem.startswith("0 rows are missing and ")
    repair_store(whole, found)
    assert all_tables(whole) == before
    assert verify_store(whole) == []


TORN = [b"{", b"", b"[1]", b'{"asset_id": "x"}', b"\xff\x00"]


@pytest.mark.parametrize("content", TORN)
@pytest.mark.parametrize("name", ["manifest.json", "a01/attempt.json"])
def test_a_damaged_document_of_what_is_finished_is_named_and_the_asset_made_again(
    tmp_path: Path, name: str, content: bytes
) -> None:
    store = open_store(tmp_path / "store")
    make(store, tmp_path, spec(), "run1")
    damage(store, f"assets/{DUCK}/{name}", content)
    [finding] = verify_store(store)
    assert (finding.kind, finding.key) == ("asset", f"assets/{DUCK}/{name}")
    assert "sjc verify --repair" in finding.problem
    repair_store(store, [finding])
    assert verify_store(store) == []
    assert asset_states(store, [DUCK]) == {DUCK: "interrupted"}
    make(store, tmp_path, spec(), "run2")
    assert verify_store(store) == []


@pytest.mark.parametrize("content", TORN)
def test_a_damaged_attempt_costs_itself_and_no_other(tmp_path: Path, content: bytes) -> None:
    store = open_store(tmp_path / "store")
    make(store, tmp_path, spec(), "run1", "failed")
    make(store, tmp_path, spec(), "run2", "failed")
    key, kept = (
        f"assets/{DUCK}/a02/attempt.json",
        store.get_bytes(f"assets/{DUCK}/a01/attempt.json"),
    )
    damage(store, key, content)
    assert asset_states(store, [DUCK]) == {DUCK: "interrupted"}  # so it is tried again
    said: list[str] = []
    for _ in range(2):
        assert close_interrupted(store, [DUCK], tell=said.append) == []
    assert len(said) == 1, "it is told once"
    assert f"{DUCK}/a02/attempt.json was damaged" in said[0]
    assert store.get_bytes(f"assets/{DUCK}/a02/attempt.damaged") == content
    assert asset_states(store, [DUCK]) == {DUCK: "interrupted"}
    make(store, tmp_path, spec(), "run3")
    assert [a["attempt"] for a in asset_attempts(store, DUCK)] == ["a01", "a03"]
    assert store.get_bytes(f"assets/{DUCK}/a01/attempt.json") == kept
    found = verify_store(store)
    assert {f.key for f in found} == {"tables/assets", "tables/attempts"}  # a02's old rows
    repair_store(store, found)
    assert verify_store(store) == []


def test_an_attempt_that_calls_committed_files_failed_is_named_and_ended_again(
    whole: Store,
) -> None:
    name = committed_attempt(asset_manifest(whole, DUCK) or {})
    finish_attempt(whole, DUCK, name, "failed", error="the reply was lost")
    [finding] = verify_store(whole)
    assert str(finding).endswith("is failed, and its files are committed")
    assert f"assets/{DUCK}/{name}/attempt.json: ended as ok" in repair_store(whole, [finding])
    assert verify_store(whole) == []
    row = read_table(whole, "assets").set_index("asset_id").loc[DUCK]
    assert (row.status, row.attempt) == ("ok", name)


def test_repair_keeps_a_finished_asset_and_the_rest_of_the_store(whole: Store) -> None:
    """What is damaged is a failed attempt's document, and a run's."""
    mug = spec("a mug").asset_id
    before, (run, *_) = all_tables(whole), run_ids(whole)
    for key in (f"assets/{mug}/a01/attempt.json", f"runs/{run}.json"):
        damage(whole, key, b"{")
    found = verify_store(whole)
    assert sorted(kinds(found)) == [
        ("asset", f"assets/{mug}/a01/attempt.json"), ("run", f"runs/{run}.json"),
    ]  # fmt: skip
    repair_store(whole, found)
    assert verify_store(whole) == []
    assert asset_manifest(whole, mug) is not None
    after = all_tables(whole)
    gone = {name: len(rows) - len(after[name]) for name, rows in before.items()}
    lines = sum(row["run_id"] == run for row in before["entries"])
    assert gone == {"assets": 0, "attempts": 1, "views": 0, "runs": 1, "entries": lines}
    assert all(row in before[name] for name, rows in after.items() for row in rows)


def test_abandoned_files_are_found_when_they_are_old(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    make(store, tmp_path, spec(), "run1")
    folder = tmp_path / "store" / "assets" / DUCK / "a01"
    old, young = folder / ".mesh.glb.0123abcd", folder / ".mesh.glb.89abcdef"
    for path in (old, young, folder / ".keep"):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    os.utime(folder / ".keep", (0, 0))
    found = verify_store(store)
    assert kinds(found) == [("leftover", f"assets/{DUCK}/a01/{old.name}")]
    assert repair_store(store, found) == [f"assets/{DUCK}/a01/{old.name}: removed"]
    assert (old.exists(), young.exists(), (folder / ".keep").exists()) == (False, True, True)


def test_half_uploads_are_aborted(s3_url: str) -> None:
    store = open_store(s3_url)
    bucket, _, prefix = s3_url.removeprefix("s3://").partition("/")
    client = boto3.client("s3")
    for key in (f"{prefix}/assets/x/a01/mesh.glb", "somebody/elses"):
        client.create_multipart_upload(Bucket=bucket, Key=key)
    assert store.leftovers(timedelta(days=20_000), remove=True) == []  # moto says 2010
    name = "assets/x/a01/mesh.glb (multipart upload)"
    assert store.leftovers(timedelta(0), remove=False) == [name]
    assert store.leftovers(timedelta(0), remove=True) == [name]
    [left] = client.list_multipart_uploads(Bucket=bucket)["Uploads"]
    assert left["Key"] == "somebody/elses"
