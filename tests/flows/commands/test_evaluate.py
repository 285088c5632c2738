"""`sjc evaluate`: finished assets are measured again, and nothing else happens to them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Said
from synthetic_fields import TOTEM, centers, make_field, soft_density
from task_samples import make, record_attempt, spec

import flows.evaluate
from sjc_engine.mesh.extract import extract_mesh
from sjc_engine.recipes import MeshRecipe
from sjc_engine.spec import AssetSpec
from tasks.records.attempts import finish_attempt, start_attempt
from tasks.records.commit import commit_asset
from tasks.store import open_store
from tasks.tables.read import query, read_table


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("asset")
    points = centers(16)
    field = make_field(soft_density(TOTEM(points), 60.0), np.sin(9 * points))
    field.save(folder / "field.safetensors")
    recipe = MeshRecipe(iso_level=5.0, mesh_resolution=24, max_faces=300, texture_size=0)
    extract_mesh(field, recipe).export(folder / "mesh.glb")
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def assets(tmp_path: Path, files: dict[str, Path]) -> list[AssetSpec]:
    """Three finished assets and a failed one in ./store."""
    store = open_store(tmp_path / "store")
    made = [spec(seed=seed) for seed in range(3)]
    for asset in made:
        name = start_attempt(store, asset, "run1")["attempt"]
        report = {"clip_score": 1.0 + asset.seed}
        manifest = commit_asset(store, asset.asset_id, name, files, asset, report, {}, {})
        record_attempt(store, finish_attempt(store, asset.asset_id, name, "ok"), manifest)
    make(store, tmp_path, spec("a pig"), "run1", "failed")
    return made


@pytest.mark.slow
def test_the_selected_assets_get_new_rows(
    assets: list[AssetSpec],
    judge: str,
    sjc: Callable[..., Said],
    tmp_path: Path,
    prefect_api: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flows.evaluate, "PART", 1)  # two parts
    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    said = sjc("evaluate", "--where", "seed > 0", "--judge", judge, "--json",
               "--set", "evaluation_size=32")  # fmt: skip
    assert said.code == 0, said.err
    rows = json.loads(said.out)
    assert sorted(row["seed"] for row in rows) == [1, 2]
    assert {row["evaluator"] for row in rows} == {judge}
    store = open_store(tmp_path / "store")
    best = read_table(store, "assets").set_index("seed")
    assert best.loc[0].run_id.tolist() == ["run1", "run1"]  # not selected; the pig
    assert set(best.loc[[1, 2], "run_id"]) == {rows[0]["run_id"]}
    assert not set(best.loc[[1, 2], "clip_score"]) & {2.0, 3.0}
    [run] = query(store, "SELECT * FROM runs").to_pylist()
    assert run["manifest"] == "evaluate seed > 0"
    assert run["ended_at"]

    mesh = tmp_path / "store" / "assets" / assets[1].asset_id / "a01" / "mesh.glb"
    mesh.chmod(0o600)
    mesh.write_bytes(b"torn")
    said = sjc("evaluate", "--where", "seed > 0", "--set", "evaluation_size=32", "--quiet")
    assert said.code == 1
    assert "mesh.glb" in said.err
    assert "Traceback" not in said.err
    again = read_table(store, "assets").set_index("seed")
    assert again.loc[1].run_id == rows[0]["run_id"]  # a failed evaluation hides nothing
    assert again.loc[2].run_id not in ("run1", rows[0]["run_id"])


@pytest.mark.slow
def test_it_can_be_cancelled_on_the_pages(
    assets: list[AssetSpec],
    sjc: Callable[..., Said],
    tmp_path: Path,
    prefect_api: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @contextlib.contextmanager
    def cancelled_at_once(task: object, run: Callable[[], object]) -> Iterator[None]:
        run()
        yield

    monkeypatch.setattr(flows.evaluate, "watch_cancels", cancelled_at_once)
    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    said = sjc("evaluate", "--set", "evaluation_size=32", "--quiet")
    assert said.code == 130
    assert said.err == "sjc: interrupted; what was measured so far is recorded\n"
    [run] = query(open_store(tmp_path / "store"), "SELECT * FROM runs").to_pylist()
    assert run["ended_at"]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ("--set steps=3", 2, "--set steps: an evaluation has judge, lpips, evaluation_size only"),
        ("--set evaluation_size=1", 2, "--set evaluation_size: 1 is out of range"),
        ("--judge nosuch", 2, "--set judge: 'nosuch' is unknown; use toybox"),
        ("--set lpips=nosuch", 2, "--set lpips: the weights 'nosuch' cannot be loaded"),
        ("--where sed=1", 2, "sed"),
        ("--where seed>5", 2, "no finished asset"),
        ("--manifest nosuch.csv", 2, "nosuch.csv:1: file: does not exist"),
        ("--device cuda:77", 2, "there is no cuda:77"),
        ("--store nosuch", 3, "no store at"),
    ],
)
def test_what_cannot_be_measured_is_one_message(
    options: str, code: int, message: str, assets: Any, sjc: Callable[..., Said], tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    said = sjc("evaluate", *options.split())
    assert said.code == code, said.err
    assert message in said.err
    assert "Traceback" not in said.err
    assert said.out == ""
    assert sorted(tmp_path.rglob("*")) == before
