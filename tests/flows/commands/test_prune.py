"""`sjc prune`: what it shows, what it removes, and what later runs make of that."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Said
from task_samples import make

from flows.dispatch import count_outcomes, open_shards
from sjc_engine.priors.sources import find_prior
from sjc_engine.spec import AssetSpec
from tasks.manifest.resolve import read_entries
from tasks.manifest.shard_plan import read_plan
from tasks.store import open_store
from tasks.store.leases import leases

DUCK = ["--where", "prompt = 'a yellow duck'"]


@pytest.fixture
def specs(tmp_path: Path) -> dict[str, AssetSpec]:
    """The assets of ./m.csv by their row ids, all finished in ./store."""
    (tmp_path / "m.csv").write_text("id,prompt\nduck,a yellow duck\ntank,a toy tank\n")
    _, resolved = read_entries(
        tmp_path / "m.csv", prior_revision=lambda prior: find_prior(prior).revision, recipe="draft"
    )
    store = open_store(tmp_path / "store")
    for entry in resolved.entries:
        make(store, tmp_path, entry.spec, "run1")
    return {entry.row_id: entry.spec for entry in resolved.entries}


def test_it_shows_first_and_removes_when_told_to(
    specs: dict[str, AssetSpec], sjc: Callable[..., Said], tmp_path: Path
) -> None:
    folder = tmp_path / "store" / "assets" / specs["duck"].asset_id
    before = sorted(folder.rglob("*"))
    said = sjc("prune", *DUCK)
    assert said.code == 0
    assert "a yellow duck" in said.out
    assert "a toy tank" not in said.out
    assert "1 asset, 4 files, 120 B: would be removed; --yes removes them" in said.out
    assert sorted(folder.rglob("*")) == before
    facts = json.loads(sjc("prune", *DUCK, "--yes", "--json").out)
    assert facts.pop("assets") == [specs["duck"].asset_id]
    assert facts == {"removed": True, "files": 4, "bytes": 120, "skipped": []}
    assert not list(folder.rglob("*.glb"))
    assert "a yellow duck" not in sjc("assets").out
    said = sjc("prune", *DUCK, "--yes")
    assert (said.code, said.out.splitlines()[-1]) == (0, "0 assets, 0 files, 0 B: removed")
    assert sjc("verify").code == 0


def test_runs_do_not_make_it_again_until_its_tombstone_is_gone(
    specs: dict[str, AssetSpec], sjc: Callable[..., Said], tmp_path: Path
) -> None:
    said = sjc("plan", "m.csv", "-o", "p.parquet", "--recipe", "draft")
    assert said.code == 0, said.err
    plan = read_plan((tmp_path / "p.parquet").read_bytes(), "p.parquet")
    assert sjc("prune", *DUCK, "--yes").code == 0
    manifest = ["m.csv", "--recipe", "draft", "--devices", "cpu"]
    tombstone = f"assets/{specs['duck'].asset_id}/pruned.json"
    said = sjc("run", *manifest, "--dry-run")
    assert f"skip, pruned ({tombstone})" in said.out
    assert "1 finished, 1 pruned" in said.out
    said = sjc("run", *manifest, "--json", "--retry-failed")
    assert said.code == 0, said.err
    assert {a["asset"]: a["status"] for a in json.loads(said.out)["assets"]} == {
        "duck": "pruned", "tank": "ok",
    }  # fmt: skip
    said = sjc("query", "SELECT count_reused, count_pruned FROM runs", "--format", "json")
    assert json.loads(said.out) == [{"count_reused": 1, "count_pruned": 1}]
    assert sjc("verify").code == 0
    [report] = (tmp_path / "store" / "runs").glob("*/report.html")
    assert '<span class="none">pruned</span>' in report.read_text()
    store = open_store(tmp_path / "store")
    assert open_shards(plan, store, retry_failed=True) == []
    assert count_outcomes(plan, store) == {"ok": 1, "failed": 0, "open": 0}
    (tmp_path / "store" / tombstone).unlink()
    assert len(open_shards(plan, store, retry_failed=False)[0].open) == 1
    assert "resume" in sjc("run", *manifest, "--dry-run").out


def test_what_a_run_works_on_is_skipped(
    specs: dict[str, AssetSpec], sjc: Callable[..., Said], tmp_path: Path
) -> None:
    with leases(open_store(tmp_path / "store"), "a run") as held:
        assert held.take(specs["duck"].asset_id)
        said = sjc("prune", "--where", "true", "--yes", "--quiet")
    assert said.code == 1
    assert "1 asset, 4 files, 108 B: removed" in said.out
    assert f"{specs['duck'].asset_id}: skipped, a run works on it" in said.err


def test_mistakes_are_told_before_anything_is_removed(
    specs: dict[str, AssetSpec], sjc: Callable[..., Said], tmp_path: Path
) -> None:
    said = sjc("prune", "--where", "clip_scor < 3", "--yes")
    assert said.code == 2
    assert "--where" in said.err
    assert sjc("prune", "--yes").code == 2
    assert sjc("prune", "--where", "true", "--store", "nowhere").code == 3
    (tmp_path / "store" / "assets" / specs["duck"].asset_id / "manifest.json").unlink()
    said = sjc("prune", "--where", "true", "--yes")
    assert said.code == 3
    assert "sjc verify" in said.err
    assert len(list((tmp_path / "store" / "assets").rglob("*.glb"))) == 2
