"""Every kind of damage is found, named and, where that can be, mended; a whole store is whole."""

from __future__ import annotations

import itertools
import json
import os
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from task_samples import all_tables, fill, make, make_run, spec

from flows.plan import asset_states
from tasks.datasets.freeze import DatasetRequest, freeze
from tasks.records.attempts import asset_attempts, close_interrupted, finish_attempt
from tasks.records.documents import (
    asset_manifest,
    check_usable,
    committed_attempt,
    mark_format,
    run_ids,
)
from tasks.records.verify import Finding, plan_repairs, repair_store, unreadable, verify_store
from tasks.store import open_store
from tasks.store.interface import Damaged, NewerStore, NotInStore, Store, StoreError
from tasks.tables.read import read_table
from tasks.tables.schemas import SCHEMA_VERSION
from tasks.tables.write import compact_store

DUCK = spec().asset_id


def damage(store: Store, key: str, content: bytes) -> None:
    store.put_bytes(key, content, replace=True)


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


def test_damaged_documents_of_what_is_finished_are_named_and_the_assets_made_again(
    tmp_path: Path,
) -> None:
    """Each of another asset, so that one look at the store finds them all."""
    store = open_store(tmp_path / "store")
    cases = list(itertools.product(("manifest.json", "a01/attempt.json"), TORN))
    assets = [spec(seed=seed) for seed in range(len(cases))]
    keys = [f"assets/{asset.asset_id}/{case[0]}" for asset, case in zip(assets, cases, strict=True)]
    for asset, key, (_, content) in zip(assets, keys, cases, strict=True):
        make(store, tmp_path, asset, "run1")
        damage(store, key, content)
    found = verify_store(store)
    assert sorted(kinds(found)) == sorted(("asset", key) for key in keys)
    assert all(finding.problem.startswith("is damaged: ") for finding in found)
    repair_store(store, found)
    assert verify_store(store) == []
    ids = [asset.asset_id for asset in assets]
    assert asset_states(store, ids) == dict.fromkeys(ids, "interrupted")
    for asset in assets:
        make(store, tmp_path, asset, "run2")
    assert verify_store(store) == []


def test_damaged_attempts_cost_themselves_and_no_other(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    for seed, content in enumerate(TORN):
        asset_id = spec(seed=seed).asset_id
        for run_id in ("run1", "run2"):
            make(store, tmp_path, spec(seed=seed), run_id, "failed")
        key, first = (f"assets/{asset_id}/{name}/attempt.json" for name in ("a02", "a01"))
        kept = store.get_bytes(first)
        damage(store, key, content)
        assert asset_states(store, [asset_id]) == {asset_id: "interrupted"}  # so it is tried again
        said: list[str] = []
        for _ in range(2):
            assert close_interrupted(store, [asset_id], report=said.append) == []
        assert len(said) == 1, "it is told once"
        assert f"{asset_id}/a02/attempt.json was damaged" in said[0]
        aside, reason = (k for k in store.list(f"assets/{asset_id}/a02/") if k != key)
        assert aside.endswith(".damaged")
        assert store.get_bytes(aside) == content
        assert f"{key} was set aside: ".encode() in store.get_bytes(reason)
        assert asset_states(store, [asset_id]) == {asset_id: "interrupted"}
        make(store, tmp_path, spec(seed=seed), "run3")
        assert [a["attempt"] for a in asset_attempts(store, asset_id)] == ["a01", "a03"]
        assert store.get_bytes(first) == kept
    found = verify_store(store)
    old = f"0 rows are missing and {len(TORN)} have nothing behind them"  # a02's
    assert [(f.key, f.problem) for f in found] == [("tables/assets", old), ("tables/attempts", old)]
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
    assert gone == dict.fromkeys(before, 0) | {"attempts": 1, "runs": 1, "entries": lines}
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


# --- what could not be read, and what must not be touched -----------------------------------------


def everything(store: Store) -> dict[str, bytes]:
    return {key: store.get_bytes(key) for key in store.list()}


def test_a_file_that_cannot_be_read_is_no_damage(
    whole: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, get_bytes = everything(whole), type(whole).get_bytes

    def refused(self: Store, key: str) -> bytes:
        if key.endswith("mesh.glb"):
            raise StoreError(f"Cannot read {key}: access denied.")
        return get_bytes(self, key)

    # Beside it something is damaged indeed, which might be all that there is to it.
    [pig] = [k for k in before if spec("a pig").asset_id in k and k.endswith("preview.png")]
    damage(whole, pig, b"torn")
    before[pig] = b"torn"
    with monkeypatch.context() as patch:
        patch.setattr(type(whole), "get_bytes", refused)
        found = verify_store(whole)
        assert len(unreadable(found)) == 4
        assert all("access denied" in str(finding) for finding in unreadable(found))
        with pytest.raises(StoreError, match=r"4 files of .* could not be read, so nothing was"):
            repair_store(whole, found)
    assert everything(whole) == before
    assert kinds(verify_store(whole)) == [("asset", pig)]


def test_a_store_that_answers_nothing_is_given_up_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path / "store")
    for number in range(40):
        make(store, tmp_path, spec(seed=number), "run1", "failed")
    asked: list[str] = []

    def refused(self: Store, key: str) -> bytes:
        asked.append(key)
        raise NotInStore("no format") if key == "store.json" else StoreError("no answer")

    monkeypatch.setattr(type(store), "get_bytes", refused)
    found = verify_store(store)
    assert 20 <= len(unreadable(found)) < 40
    assert "were not read" in found[-1].problem
    assert len(asked) < 60


def test_what_is_whole_when_it_is_read_again_is_left_alone(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    make(store, tmp_path, spec(), "run1")
    before = everything(store)
    [mesh] = [key for key in before if key.endswith("mesh.glb")]
    damage(store, mesh, b"torn")
    found = verify_store(store)
    damage(store, mesh, before[mesh])
    assert "left as it is" in repair_store(store, found)[0]
    assert asset_manifest(store, DUCK) is not None


def test_a_marker_is_moved_with_its_reason_and_can_be_moved_back(
    store: Store, tmp_path: Path
) -> None:
    make(store, tmp_path, spec(), "run1")
    before = everything(store)
    marker = f"assets/{DUCK}/manifest.json"
    [mesh] = [key for key in before if key.endswith("mesh.glb")]
    damage(store, mesh, b"torn")
    repair_store(store, verify_store(store))
    aside, reason = (k for k in store.list(f"assets/{DUCK}/manifest."))
    assert (store.get_bytes(aside), aside.endswith(".damaged")) == (before[marker], True)
    moment, _, why = store.get_bytes(reason).decode().partition(" ")
    assert abs(datetime.now(UTC) - datetime.fromisoformat(moment)) < timedelta(minutes=1)
    assert f"{mesh}: is damaged: 4 bytes instead of 18" in why

    damage(store, mesh, before[mesh])
    store.move(aside, marker)
    found = verify_store(store)
    assert [f.problem for f in found] == ["is interrupted, and its files are committed"]
    repair_store(store, found)
    assert verify_store(store) == []
    attempt = f"assets/{DUCK}/a01/attempt.json"
    assert store.get_bytes(attempt) == before[attempt]
    assert store.get_bytes(marker) == before[marker]


def test_one_asset_that_cannot_be_read_again_keeps_all_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path / "store")
    for number in range(3):
        make(store, tmp_path, spec(seed=number), "run1")
    for key in [key for key in store.list() if key.endswith("mesh.glb")]:
        damage(store, key, b"torn")
    found = verify_store(store)
    before, get_bytes = everything(store), type(store).get_bytes
    last = max(key for key in before if key.endswith("mesh.glb"))

    def refused(self: Store, key: str) -> bytes:
        if key == last:
            raise StoreError(f"Cannot read {key}: no answer.")
        return get_bytes(self, key)

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "get_bytes", refused)
        with pytest.raises(StoreError, match=r"could not be read, so nothing was repaired"):
            repair_store(store, found)
    assert everything(store) == before


def test_names_that_are_no_assets_are_let_be(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    make(store, tmp_path, spec(), "run1", "failed")
    for name in ("notes/x", f"{DUCK}/a01/old/attempt.json", f"{DUCK}/a01.bak/attempt.json"):
        damage(store, f"assets/{name}", b"somebody's own")
    assert verify_store(store) == []
    assert close_interrupted(store, [DUCK]) == []
    assert asset_states(store, [DUCK]) == {DUCK: "failed"}


def test_an_empty_folder_is_no_asset_and_no_damage(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    make(store, tmp_path, spec(), "run1", "failed")
    (tmp_path / "store" / "assets" / ("0" * 16) / "a01").mkdir(parents=True)
    assert verify_store(store) == []
    assert repair_store(store, []) == []
    assert asset_states(store, ["0" * 16]) == {"0" * 16: "new"}
    assert list(read_table(store, "assets")["asset_id"]) == [DUCK]


def wrong(marker: dict[str, Any], how: str) -> dict[str, Any]:
    """A commit marker that is valid JSON and says something impossible."""
    mesh = "a01/mesh.glb"
    files = marker["files"]
    match how:
        case "no files":
            return marker | {"files": {}}
        case "null files":
            return marker | {"files": None}
        case "no mesh":
            return marker | {"files": {k: v for k, v in files.items() if k != mesh}}
        case "two attempts":
            return marker | {"files": files | {"a02/mesh.glb": files[mesh]}}
        case "a bad name":
            return marker | {"files": files | {"a01/../../x": files[mesh]}}
        case "a bad sum":
            return marker | {"files": files | {mesh: {"bytes": 18, "sha256": "?"}}}
        case "text for bytes":
            return marker | {"files": files | {mesh: files[mesh] | {"bytes": "18"}}}
        case "no spec":
            return marker | {"spec": None}
        case "another spec":
            return marker | {"spec": marker["spec"] | {"prompt": "a pig"}}
        case "text for a number":
            return marker | {"report": marker["report"] | {"clip_score": "high"}}
        case _:
            return {key: value for key, value in marker.items() if key != "timings"}


WRONG = (
    "no files", "null files", "no mesh", "two attempts", "a bad name", "a bad sum",
    "text for bytes", "no spec", "another spec", "text for a number", "no timings",
)  # fmt: skip


def test_markers_that_are_valid_json_but_wrong_are_damage(tmp_path: Path) -> None:
    store, assets, keys = open_store(tmp_path / "store"), [], []
    for seed, how in enumerate(WRONG):
        assets.append(spec(seed=seed))
        make(store, tmp_path, assets[-1], "run1")
        asset_id = assets[-1].asset_id
        key = f"assets/{asset_id}/manifest.json"
        damage(store, key, json.dumps(wrong(json.loads(store.get_bytes(key)), how)).encode())
        keys.append(key if how != "another spec" else f"assets/{asset_id}/a01/attempt.json")
        if how != "another spec":
            one = DatasetRequest(name="x", where=f"asset_id = '{asset_id}'")
            with pytest.raises(Damaged, match=rf"{asset_id}/manifest\.json is damaged \("):
                freeze(store, str(tmp_path / "out"), one)
    found = verify_store(store)
    assert sorted(finding.key for finding in found) == sorted(keys)
    assert set(plan_repairs(store, found).assets) == {asset.asset_id for asset in assets}
    repair_store(store, found)
    assert verify_store(store) == []
    for asset in assets:
        make(store, tmp_path, asset, "run2")
    assert verify_store(store) == []


def test_attempts_that_are_valid_json_but_wrong_are_damage(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {"asset_id": "0" * 16}, {"attempt": "a07"}, {"status": "fine"}, {"ended_at": None},
        {"ended_at": "yesterday"}, {"spec": {}}, {"last_step": "3"}, {"report": []},
        {"first_step": -5}, {"report": {"views": [1]}}, {"report": {"views": {}}},
        {"report": {"views": [{"source": "mesh"}]}}, {"started_at": "2026-01-01T00:00:00"},
    ]  # fmt: skip
    store, keys = open_store(tmp_path / "store"), []
    for seed, change in enumerate(changes):
        make(store, tmp_path, spec(seed=seed), "run1", "failed")
        keys.append(f"assets/{spec(seed=seed).asset_id}/a01/attempt.json")
        damage(store, keys[-1], json.dumps(json.loads(store.get_bytes(keys[-1])) | change).encode())
    found = verify_store(store)
    assert sorted(kinds(found)) == sorted(("asset", key) for key in keys)
    repair_store(store, found)
    assert verify_store(store) == []


def test_runs_that_are_valid_json_but_wrong_are_damage(tmp_path: Path) -> None:
    """Or that have an entry with a line that no table can hold."""
    changes: list[dict[str, Any]] = [
        {"run_id": "other"}, {"entries": None}, {"entries": [{}]}, {"started_at": 3},
        {"settings": "none"}, {"ended_at": "2026-01-01T00:00:00"},
    ]  # fmt: skip
    changes += [{"line": value} for value in (0, -3, 1e30, 10**30)]
    store, keys = open_store(tmp_path / "store"), []
    for number, change in enumerate(changes):
        make_run(store, tmp_path, f"run{number}", "duck,a duck,t,v\n")
        keys.append(f"runs/run{number}.json")
        run = json.loads(store.get_bytes(keys[-1]))
        (run["entries"][0] if "line" in change else run).update(change)
        damage(store, keys[-1], json.dumps(run).encode())
    found = verify_store(store)
    assert sorted(kinds(found)) == sorted(("run", key) for key in keys)
    repair_store(store, found)
    assert verify_store(store) == []


def test_json_that_is_nested_too_deeply_is_damage(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    damage(store, "runs/run1.json", b'{"a":' * 100_000)
    assert kinds(verify_store(store)) == [("run", "runs/run1.json")]


@pytest.mark.parametrize("folder", ["assets/", "runs/"])
def test_a_store_that_is_empty_although_its_tables_are_not_is_refused(
    whole: Store, folder: str
) -> None:
    """A part of it is not mounted, or not copied yet."""
    for key in list(whole.list(folder)):
        whole.delete(key)
    before = everything(whole)
    for refused in (verify_store, compact_store, partial(repair_store, findings=[])):
        with pytest.raises(StoreError, match="is empty although the tables list"):
            refused(whole)
    assert everything(whole) == before


def test_a_first_run_that_begins_meanwhile_is_no_missing_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path / "store")
    listing = type(store).list

    def list_late(self: Store, prefix: str = "") -> Any:
        if prefix == "tables/runs/":
            monkeypatch.undo()
            make_run(store, tmp_path, "run1", "duck,a duck,,\n")
        return listing(self, prefix)

    monkeypatch.setattr(type(store), "list", list_late)
    check_usable(store)
    assert run_ids(store) == ["run1"], "it began in between"


def test_a_newer_store_is_refused(whole: Store) -> None:
    whole.delete("store.json")
    assert verify_store(whole) == [], "of an older version, which is fine"
    contents = {
        b'{"format": 3, "tables": 1}': (NewerStore, "format version 3 and this program knows up"),
        b'{"format": 1, "tables": 99}': (NewerStore, "tables version 99 and this program knows up"),
        b'{"format": "?"}': (
            StoreError,
            r"store\.json is damaged .* that wrote the store is unknown",
        ),
    }
    for content, (kind, message) in contents.items():
        damage(whole, "store.json", content)
        before = everything(whole)
        for refused in (verify_store, compact_store, partial(repair_store, findings=[])):
            with pytest.raises(kind, match=message):
                refused(whole)
        assert everything(whole) == before


def test_a_store_gets_the_versions_of_the_newest_program_that_wrote_to_it(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    mark_format(store)
    new = store.get_bytes("store.json")
    assert json.loads(new) == {"format": 2, "tables": SCHEMA_VERSION}
    damage(store, "store.json", b'{"format": 1, "tables": 1}')
    check_usable(store)
    mark_format(store)
    assert store.get_bytes("store.json") == new


@pytest.mark.parametrize("damaged", [False, True])
def test_newer_tables_are_never_replaced_by_older_ones(whole: Store, damaged: bool) -> None:
    key = next(iter(whole.list("tables/attempts/")))
    table = pq.read_table(pa.BufferReader(whole.get_bytes(key)), partitioning=None)
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({"sjc.version": "99"}), sink)
    damage(whole, key, sink.getvalue().to_pybytes())
    if damaged:  # then tables are not compared at all
        damage(whole, next(k for k in whole.list("assets/") if k.endswith("mesh.glb")), b"torn")
    before = everything(whole)
    with pytest.raises(NewerStore, match="schema version 99"):
        verify_store(whole)
    finding = Finding("table", "tables/assets", "rows are missing")
    with pytest.raises(NewerStore, match="schema version 99"):
        repair_store(whole, [finding])
    assert everything(whole) == before


def test_a_file_that_nobody_here_wrote_is_set_aside_and_not_deleted(whole: Store) -> None:
    own = whole.get_bytes(next(iter(whole.list("tables/attempts/"))))
    damage(whole, "tables/assets/mine.parquet", own)
    [finding] = verify_store(whole)
    assert "not in a run's folder" in finding.problem
    repair_store(whole, [finding])
    [aside] = [key for key in whole.list("tables/assets/mine.") if key.endswith(".damaged")]
    assert whole.get_bytes(aside) == own
    assert verify_store(whole) == []
