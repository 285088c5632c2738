"""Attempts, the commit marker and runs: one winner, nothing lost, whatever is killed when."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from sjc_engine.recipes import Recipe
from sjc_engine.spec import AssetSpec
from tasks.manifest.resolve import read_manifest, resolve
from tasks.records.attempts import (
    asset_attempts,
    close_interrupted,
    finish_attempt,
    is_needed,
    settled_attempts,
    start_attempt,
)
from tasks.records.commit import commit_asset
from tasks.records.documents import asset_manifest
from tasks.records.runs import finish_run, new_run_id, start_run
from tasks.store import open_store
from tasks.store.interface import AlreadyCommitted, Store, StoreError
from tasks.store.layout import attempt_number
from tasks.tables.columns import RowError

ROOT = Path(__file__).parents[3]
SPEC = AssetSpec("a duck", "", None, 0, "toybox", "r", Recipe.for_prior("toybox", "draft"))
REPORT: dict[str, Any] = {
    "steps": 300,
    "device": "cpu",
    "faces": 12,
    "clip_score": 31.5,
    "watertight": True,
    "views": [{"view": 0, "azimuth_deg": 0.0, "elevation_deg": 12.8, "source": "mesh"}],
}
RESULT: dict[str, Any] = {
    "report": REPORT,
    "timings": {"optimize": 40.0},
    "versions": {"code": "1"},
}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    folder = tmp_path / "files"
    folder.mkdir()
    names = {"mesh.glb": "mesh", "preview.png": "preview", "views/mesh_0.png": "view"}
    for name, text in names.items():
        (folder / name.replace("/", "-")).write_text(text)
    return {name: folder / name.replace("/", "-") for name in names}


def test_an_asset_from_start_to_end(store: Store, files: dict[str, Path]) -> None:
    started = start_attempt(store, SPEC, "run1", prior_coverage=1.0)
    key = f"assets/{SPEC.asset_id}/a01/attempt.json"
    assert json.loads(store.get_bytes(key))["status"] == "running"
    assert started["attempt"] == "a01"
    assert asset_manifest(store, SPEC.asset_id) is None

    manifest = commit_asset(store, SPEC.asset_id, "a01", files, SPEC, **RESULT)
    ended = finish_attempt(
        store, SPEC.asset_id, "a01", "ok", device="cpu", first_step=0, last_step=300
    )
    assert asset_manifest(store, SPEC.asset_id) == manifest
    assert set(manifest) == {"spec", "files", "report", "timings", "versions"}
    assert AssetSpec.from_json(manifest["spec"]) == SPEC
    assert set(manifest["files"]) == {f"a01/{name}" for name in files}
    for name, stored in manifest["files"].items():
        data = store.get_bytes(f"assets/{SPEC.asset_id}/{name}")
        assert stored["bytes"] == len(data)
        assert store.download(
            f"assets/{SPEC.asset_id}/{name}", files["mesh.glb"].with_name("copy"), stored["sha256"]
        )
    assert asset_attempts(store, SPEC.asset_id) == [ended]
    assert (ended["status"], ended["run_id"], ended["last_step"]) == ("ok", "run1", 300)
    assert started["started_at"] == ended["started_at"] <= ended["ended_at"]


def test_attempts_count_up(store: Store) -> None:
    first = start_attempt(store, SPEC, "run1")
    finish_attempt(store, SPEC.asset_id, "a01", "diverged", error=ValueError("loss is NaN"))
    second = start_attempt(store, SPEC, "run2")
    assert (first["attempt"], second["attempt"]) == ("a01", "a02")
    failed, running = asset_attempts(store, SPEC.asset_id)
    assert (failed["status"], failed["error_type"], failed["error"]) == (
        "diverged", "ValueError", "loss is NaN",
    )  # fmt: skip
    assert running["status"] == "running"


def test_settled_is_the_last_attempt_that_has_ended(store: Store) -> None:
    asset_id, none = SPEC.asset_id, "0" * 16
    assert settled_attempts(store, [asset_id, none]) == {asset_id: 0, none: 0}
    for number, name in ((1, "a01"), (2, "a02")):
        start_attempt(store, SPEC, "run")
        assert settled_attempts(store, [asset_id]) == {asset_id: number - 1}
        finish_attempt(store, asset_id, name, "failed", error=ValueError("loss is NaN"))
        assert settled_attempts(store, [asset_id]) == {asset_id: number}


def test_eight_runs_claim_eight_attempts(store: Store) -> None:
    barrier, claimed = threading.Barrier(8), []

    def claim(number: int) -> None:
        barrier.wait()
        claimed.append(start_attempt(store, SPEC, f"run{number}")["attempt"])

    threads = [threading.Thread(target=claim, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == [f"a{n:02d}" for n in range(1, 9)]


def test_claims_do_not_trust_the_server(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that lets two writers succeed: ours is overwritten before we look again."""
    put = type(store).put_bytes
    other = dict(start_attempt(store, SPEC, "other"), attempt="a02", token="theirs")

    def careless(self: Store, key: str, data: bytes, *, replace: bool = False) -> Any:
        stored = put(self, key, data, replace=replace)
        if key.endswith("/a02/attempt.json"):
            put(self, key, json.dumps(other).encode(), replace=True)
        return stored

    monkeypatch.setattr(type(store), "put_bytes", careless)
    assert start_attempt(store, SPEC, "run1")["attempt"] == "a03"


def test_the_first_commit_counts(store: Store, files: dict[str, Path]) -> None:
    start_attempt(store, SPEC, "run1")
    start_attempt(store, SPEC, "run2")
    first = commit_asset(store, SPEC.asset_id, "a02", files, SPEC, **RESULT)
    with pytest.raises(AlreadyCommitted):
        commit_asset(store, SPEC.asset_id, "a01", files, SPEC, **RESULT)
    assert asset_manifest(store, SPEC.asset_id) == first
    again = commit_asset(store, SPEC.asset_id, "a02", files, SPEC, REPORT, {"publish": 9.0}, {})
    assert again == first, "the same attempt once more changes nothing"


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("report", {"clip": 1.0}, "unknown key clip"),
        ("report", dict.fromkeys("hbdfaceg"), "unknown key a, b, c, d, e, f, g, h; known: steps, "),
        ("report", {"clip_score": float("nan")}, "clip_score: nan is not finite"),
        ("report", {"clip_score": 101.0}, "clip_score: 101.0 is outside 0 to 100"),
        ("report", {"faces": "many"}, "faces: 'many' is not int64"),
        ("report", {"views": [{"view": 0}]}, "azimuth_deg: null is not allowed"),
        ("report", {"views": [dict(REPORT["views"][0], score=1)]}, "views: unknown key score"),
        ("timings", {"upload": 1.0}, "unknown key upload"),
        ("timings", {"publish": -1.0}, "seconds_publish: -1.0 is outside"),
        ("versions", {"code": 1}, "versions: code: 1 is not text"),
    ],
)
def test_a_report_that_no_table_holds_is_refused_before_the_upload(
    tmp_path: Path, files: dict[str, Path], part: str, value: Any, message: str
) -> None:
    store = open_store(tmp_path / "store")
    start_attempt(store, SPEC, "run1")
    before = list(store.list())
    with pytest.raises(RowError, match=message):
        commit_asset(store, SPEC.asset_id, "a01", files, SPEC, **{**RESULT, part: value})
    with pytest.raises(RowError, match=message):
        finish_attempt(store, SPEC.asset_id, "a01", "failed", **{part: value})
    assert list(store.list()) == before


def test_what_is_no_finished_asset_is_never_committed(store: Store, files: dict[str, Path]) -> None:
    start_attempt(store, SPEC, "run1")
    del files["mesh.glb"]
    with pytest.raises(ValueError, match=r"mesh\.glb is not among them"):
        commit_asset(store, SPEC.asset_id, "a01", files, SPEC, **RESULT)
    assert asset_manifest(store, SPEC.asset_id) is None


def test_a_finished_asset_needs_its_files_and_of_documents_its_own(
    store: Store, files: dict[str, Path]
) -> None:
    start_attempt(store, SPEC, "run1")
    start_attempt(store, SPEC, "run2")
    folder = f"assets/{SPEC.asset_id}"
    assert not is_needed(store, f"{folder}/a02/attempt.json"), "nothing is finished"
    commit_asset(store, SPEC.asset_id, "a02", files, SPEC, **RESULT)
    needed = {"a01/attempt.json": False, "a02/attempt.json": True, "a02/mesh.glb": True}
    for name, wanted in {**needed, "manifest.json": True}.items():
        assert is_needed(store, f"{folder}/{name}") == wanted, name
    store.put_bytes(f"{folder}/manifest.json", b"damaged", replace=True)
    assert is_needed(store, f"{folder}/a01/attempt.json"), "nobody knows"


def test_attempts_that_never_ended_are_closed(store: Store, files: dict[str, Path]) -> None:
    other = AssetSpec("a pig", "", None, 0, "toybox", "r", SPEC.recipe)
    start_attempt(store, SPEC, "run1")
    finish_attempt(store, SPEC.asset_id, "a01", "failed", error="x")
    start_attempt(store, SPEC, "run2")
    start_attempt(store, other, "run2")
    manifest = commit_asset(store, other.asset_id, "a01", files, other, **RESULT)
    # Killed here: one attempt in the middle, the other between its commit and its end.
    closed = close_interrupted(store, [SPEC.asset_id, other.asset_id, "0" * 16])
    assert [(a["asset_id"], a["attempt"], a["status"], m) for a, m in closed] == [
        (SPEC.asset_id, "a02", "interrupted", {}),
        (other.asset_id, "a01", "ok", manifest),
    ]
    assert [a["status"] for a in asset_attempts(store, SPEC.asset_id)] == ["failed", "interrupted"]
    assert close_interrupted(store, [SPEC.asset_id, other.asset_id]) == []


def test_an_attempt_that_was_closed_right_before_its_commit_ends_as_ok(
    store: Store, files: dict[str, Path]
) -> None:
    """Its run was taken for dead, committed all the same, and died before it could say so."""
    start_attempt(store, SPEC, "run1")
    [(closed, _)] = close_interrupted(store, [SPEC.asset_id])
    assert closed["status"] == "interrupted"
    manifest = commit_asset(store, SPEC.asset_id, "a01", files, SPEC, **RESULT)
    [(ended, found)] = close_interrupted(store, [SPEC.asset_id])
    assert (ended["status"], ended["error"], found) == ("ok", None, manifest)
    assert close_interrupted(store, [SPEC.asset_id]) == []


def test_an_attempt_beside_a_committed_one_ends_as_interrupted(
    store: Store, files: dict[str, Path]
) -> None:
    start_attempt(store, SPEC, "run1")
    start_attempt(store, SPEC, "run2")
    manifest = commit_asset(store, SPEC.asset_id, "a01", files, SPEC, **RESULT)
    closed = close_interrupted(store, [SPEC.asset_id])
    assert [(a["attempt"], a["status"]) for a, _ in closed] == [
        ("a01", "ok"), ("a02", "interrupted"),
    ]  # fmt: skip
    assert [found for _, found in closed] == [manifest, manifest]


KILLED = """
import json, os, signal, sys
from pathlib import Path
from sjc_engine.spec import AssetSpec
from tasks.records import attempts, commit
from tasks.store import open_store
url, puts, spec, files, result = (json.loads(text) for text in sys.argv[1:])
spec, store, left = AssetSpec.from_json(spec), open_store(url), [puts]
for name in ("put_bytes", "put_file"):
    def put(*args, method=getattr(store, name), **options):
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return method(*args, **options)
    setattr(store, name, put)
commit.UPLOADS = 1
attempts.start_attempt(store, spec, "run1")
paths = {name: Path(path) for name, path in files.items()}
commit.commit_asset(store, spec.asset_id, "a01", paths, spec, **result)
attempts.finish_attempt(store, spec.asset_id, "a01", "ok")
"""


@pytest.mark.parametrize("puts", [1, 2, 4, 5])
def test_killed_between_two_writes(tmp_path: Path, files: dict[str, Path], puts: int) -> None:
    """SIGKILL after the start, one file, all files, the marker: never half an asset."""
    paths = {name: str(path) for name, path in files.items()}
    arguments = [str(tmp_path / "store"), puts, SPEC.to_json(), paths, RESULT]
    result = subprocess.run(
        [sys.executable, "-c", KILLED, *map(json.dumps, arguments)], cwd=ROOT, check=False
    )
    assert result.returncode == -9
    store = open_store(tmp_path / "store")
    manifest = asset_manifest(store, SPEC.asset_id)
    assert (manifest is not None) == (puts == 5)
    [(attempt, _)] = close_interrupted(store, [SPEC.asset_id])
    assert attempt["status"] == ("ok" if manifest else "interrupted")
    if manifest is None:
        attempt = start_attempt(store, SPEC, "run2")
        assert attempt["attempt"] == "a02"
        manifest = commit_asset(store, SPEC.asset_id, "a02", files, SPEC, **RESULT)
    for name in manifest["files"]:
        assert store.exists(f"assets/{SPEC.asset_id}/{name}")


def test_a_damaged_document_names_itself(store: Store) -> None:
    key = f"assets/{SPEC.asset_id}/manifest.json"
    for content in (b"", b"[]", b"\xff", b'{"files": '):
        store.put_bytes(key, content, replace=True)
        with pytest.raises(StoreError, match=rf"{key} is damaged .*sjc verify --repair"):
            asset_manifest(store, SPEC.asset_id)


def test_a_run_is_written_when_it_starts_and_when_it_ends(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("id,prompt,tags,meta.x\na,a duck,t;u,1\nb,a duck,,\nc,a pig,,\n")
    manifest = read_manifest(path)
    plan = resolve(manifest.rows, prior_revision=lambda _: "r")
    run_id = new_run_id()
    run = start_run(
        store, run_id, str(path), manifest.sha256, plan.entries, {"limit": None}, "flow-1"
    )
    assert json.loads(store.get_bytes(f"runs/{run_id}.json")) == run
    assert run["ended_at"] is None
    ended = finish_run(store, run, {"a": "computed", "b": "duplicate"})
    assert json.loads(store.get_bytes(f"runs/{run_id}.json")) == ended
    assert [entry["outcome"] for entry in ended["entries"]] == ["computed", "duplicate", None]
    assert ended["entries"][0] == {
        "manifest": str(path), "manifest_sha256": manifest.sha256, "line": 2, "row_id": "a",
        "asset_id": plan.entries[0].spec.asset_id, "tags": ["t", "u"],
        "meta": {"x": "1"}, "outcome": "computed",
    }  # fmt: skip
    assert ended["settings"] == {"limit": None}


def test_run_ids_sort_by_time() -> None:
    ids = [new_run_id() for _ in range(20)]
    assert len(set(ids)) == 20
    assert [id[:15] for id in ids] == sorted(id[:15] for id in ids)
    assert attempt_number("a107") == 107
