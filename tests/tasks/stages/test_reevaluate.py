"""Measuring a finished asset again, from the files in either kind of store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_fields import TOTEM, centers, make_field, soft_density
from task_samples import all_tables, make, record_attempt, report, spec
from tiny_clip import save_tiny_clip

from sjc_engine.mesh.extract import extract_mesh
from sjc_engine.recipes import MeshRecipe
from tasks.records.attempts import asset_attempts, finish_attempt, start_attempt
from tasks.records.commit import commit_asset
from tasks.records.documents import asset_manifest
from tasks.stages.judges import Judges
from tasks.stages.reevaluate import evaluation_recipe, reevaluate
from tasks.store import open_store
from tasks.store.interface import Damaged, Store, StoreError
from tasks.tables.read import query, read_table
from tasks.tables.write import TableWriter, rebuild_tables

REPORT = {
    "steps": 800, "vertices": 12, "genus": 1, "clip_score": 1.0, "field_mesh_lpips": 0.5,
    "history": report()["history"],
}  # fmt: skip
CHANGES: dict[str, Any] = {"evaluation_size": 32}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files of a small real asset."""
    folder = tmp_path_factory.mktemp("asset")
    points = centers(24)
    field = make_field(soft_density(TOTEM(points), 60.0), np.sin(9 * points))
    field.save(folder / "field.safetensors")
    recipe = MeshRecipe(iso_level=5.0, mesh_resolution=32, max_faces=800, texture_size=128)
    extract_mesh(field, recipe).export(folder / "mesh.glb")
    (folder / "mesh_3.png").write_bytes(b"a picture")
    return {
        "field.safetensors": folder / "field.safetensors",
        "mesh.glb": folder / "mesh.glb",
        "views/mesh_3.png": folder / "mesh_3.png",
    }


@pytest.fixture
def asset_id(store: Store, files: dict[str, Path]) -> str:
    """A finished asset, with its rows."""
    asset = spec()
    attempt = start_attempt(store, asset, "run1", prior_coverage=0.5)["attempt"]
    timings = {"optimize": 40.0, "extract": 2.0, "evaluate": 9e5}
    manifest = commit_asset(store, asset.asset_id, attempt, files, asset, REPORT, timings, {})
    ended = finish_attempt(
        store, asset.asset_id, attempt, "ok", device="cuda:1", first_step=0, last_step=800
    )
    record_attempt(store, ended, manifest)
    return asset.asset_id


def measure(store: Store, asset_id: str, scratch: Path) -> None:
    rows = TableWriter(store)
    reevaluate.fn("duck", store, asset_id, "run2", CHANGES, Judges(), scratch, rows)


def test_a_new_row_has_new_numbers_and_the_old_history(
    store: Store, asset_id: str, tmp_path: Path
) -> None:
    before = {k: store.get_bytes(k) for k in store.list("assets/")}
    with TableWriter(store) as rows:
        metrics = reevaluate.fn("duck", store, asset_id, "run2", CHANGES, Judges(), tmp_path, rows)
    [row] = read_table(store, "assets").to_dict("records")
    assert (row["run_id"], row["attempt"], row["status"]) == ("run2", "a02", "ok")
    # measured again, from the files
    assert row["clip_score"] == metrics["clip_score"] != REPORT["clip_score"]
    assert row["field_mesh_iou"] > 0.9
    assert row["evaluator"] == "toybox"
    assert row["seconds_evaluate"] < 1e5
    assert row["field_mesh_lpips"] is None or np.isnan(row["field_mesh_lpips"])  # not this time
    # said again
    assert (row["vertices"], row["genus"], row["steps"]) == (12, 1, 800)
    assert (row["seconds_optimize"], row["device"], row["prior_coverage"]) == (40.0, "cuda:1", 0.5)
    assert row["uri_mesh"].endswith(f"{asset_id}/a01/mesh.glb")
    views = query(store, "SELECT * FROM views WHERE run_id = 'run2'").to_pylist()
    assert len(views) == 18
    assert [v["view"] for v in views if v["uri"]] == [3]
    attempt = asset_attempts(store, asset_id)[-1]
    assert (attempt["first_step"], attempt["last_step"]) == (800, 800)  # no step was made
    assert "history" not in attempt["report"]
    assert {k: v for k, v in before.items() if store.get_bytes(k) != v} == {}
    assert not list(tmp_path.glob("evaluate-*"))
    tables = all_tables(store)
    rebuild_tables(store)
    assert all_tables(store) == tables


def test_another_judge_and_size_may_be_asked(tmp_path: Path, files: dict[str, Path]) -> None:
    store = open_store(tmp_path / "store")
    save_tiny_clip(tmp_path / "judge")
    asset = spec()
    attempt = start_attempt(store, asset, "run1")["attempt"]
    commit_asset(store, asset.asset_id, attempt, files, asset, REPORT, {}, {})
    ended = finish_attempt(store, asset.asset_id, attempt, "ok", report=REPORT)
    assert ended["status"] == "ok"
    judge = str(tmp_path / "judge")
    changes = {**CHANGES, "judge": judge}
    metrics = reevaluate.fn(
        "duck", store, asset.asset_id, "run2", changes, Judges(), tmp_path, TableWriter(store)
    )
    assert metrics["evaluator"] == judge


def test_a_spec_of_an_older_version_is_measured_under_its_own_id(
    tmp_path: Path, files: dict[str, Path]
) -> None:
    """Its recipe has no key `lpips`, so that today's program would give it another id."""
    store = open_store(tmp_path / "store")
    attempt = start_attempt(store, spec(), "run1")["attempt"]
    commit_asset(store, spec().asset_id, attempt, files, spec(), REPORT, {}, {})
    finish_attempt(store, spec().asset_id, attempt, "ok")
    folder = tmp_path / "store" / "assets" / spec().asset_id
    for path in (folder / "manifest.json", folder / "a01" / "attempt.json"):
        document = json.loads(path.read_text())
        del document["spec"]["recipe"]["evaluate"]["lpips"]
        document["spec"]["recipe"]["evaluate"]["ancient"] = 1
        path.unlink()
        path.write_text(json.dumps(document))
    old = json.loads((folder / "manifest.json").read_text())["spec"]
    assert evaluation_recipe(old, CHANGES).lpips == "none"
    reevaluate.fn(
        "duck", store, spec().asset_id, "run2", CHANGES, Judges(), tmp_path, TableWriter(store)
    )
    assert asset_attempts(store, spec().asset_id)[-1]["spec"] == old


def test_a_damaged_file_is_an_error_and_nothing_is_written(
    tmp_path: Path, files: dict[str, Path]
) -> None:
    store = open_store(tmp_path / "store")
    asset = spec()
    attempt = start_attempt(store, asset, "run1")["attempt"]
    manifest = commit_asset(store, asset.asset_id, attempt, files, asset, REPORT, {}, {})
    record_attempt(store, finish_attempt(store, asset.asset_id, attempt, "ok"), manifest)
    mesh = tmp_path / "store" / "assets" / asset.asset_id / "a01" / "mesh.glb"
    mesh.chmod(0o600)
    mesh.write_bytes(mesh.read_bytes()[:-7])
    before = list(store.list())
    with pytest.raises(Damaged, match=r"mesh\.glb"):
        reevaluate.fn(
            "duck", store, asset.asset_id, "run2", CHANGES, Judges(), tmp_path, TableWriter(store)
        )
    assert list(store.list()) == before
    [best] = read_table(store, "assets").to_dict("records")
    assert (best["run_id"], best["status"]) == ("run1", "ok")
    assert not list(tmp_path.glob("evaluate-*"))


def test_what_is_not_finished_cannot_be_measured(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    make(store, tmp_path, spec(), "run1", "failed")
    with pytest.raises(StoreError, match=r"manifest\.json is missing"):
        reevaluate.fn(
            "duck", store, spec().asset_id, "run2", CHANGES, Judges(), tmp_path, TableWriter(store)
        )
    assert asset_manifest(store, spec().asset_id) is None
    assert len(asset_attempts(store, spec().asset_id)) == 1
