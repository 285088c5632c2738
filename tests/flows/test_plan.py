"""What a plan warns of, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from task_samples import make

from flows.commands.plan import make_shard_plan
from flows.errors import UsageError
from flows.plan import make_plan, missing_xatlas, read_shard
from flows.settings import Settings
from sjc_engine.errors import PriorError, SettingError
from sjc_engine.recipes import Recipe
from tasks.manifest.shard_plan import keep_plan, make_plan_file
from tasks.records.attempts import start_attempt
from tasks.records.prune import prune_assets
from tasks.store import open_store
from tasks.store.interface import NewerStore, StoreError
from tasks.store.leases import leases


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current one, where the scratch folder is unless it is named."""
    monkeypatch.chdir(tmp_path)


def test_without_xatlas_only_who_wants_textures_is_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    textured = Recipe.for_prior("toybox")
    plain = textured.override({"texture_size": 0})
    assert missing_xatlas([textured]) == []
    monkeypatch.setattr("flows.plan.find_spec", lambda name: None)
    assert missing_xatlas([plain]) == []
    [warning] = missing_xatlas([plain, textured])
    assert "vertex colours instead of textures" in warning


def test_a_flow_wants_the_store_that_its_command_has_opened(tmp_path: Path) -> None:
    manifest, root = tmp_path / "m.csv", tmp_path / "store"
    manifest.write_text("prompt\na duck\n")
    settings = Settings(str(manifest), str(root), devices=["cpu"], scratch=str(tmp_path / "sjc"))
    store = make_plan(settings).store
    root.rename(tmp_path / "away")
    root.mkdir()  # where its disk was mounted
    with pytest.raises(StoreError, match="is gone; mount its disk again"):
        make_plan(settings, store=store)
    assert list(root.iterdir()) == []


def test_a_plan_for_a_run_makes_the_scratch_folder_for_its_user_alone(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("prompt\na duck\n")
    scratch = tmp_path / "scratch"
    paths = str(tmp_path / "m.csv"), str(tmp_path / "store")
    settings = Settings(*paths, devices=["cpu"], scratch=str(scratch))
    make_plan(settings)
    assert scratch.stat().st_mode & 0o777 == 0o700
    scratch.rmdir()
    make_plan(settings, writable=False)
    assert not scratch.exists()


def test_a_plan_for_a_run_marks_its_store_and_leaves_a_newer_one_alone(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("prompt\na duck\n")
    root = tmp_path / "store"
    root.mkdir()
    scratch = str(tmp_path / "scratch")
    settings = Settings(str(tmp_path / "m.csv"), str(root), devices=["cpu"], scratch=scratch)
    make_plan(settings, writable=False)
    assert list(root.iterdir()) == []
    make_plan(settings)
    ours = json.loads((root / "store.json").read_bytes())
    (root / "store.json").write_text(json.dumps({**ours, "format": ours["format"] + 1}))
    for writable in (False, True):
        with pytest.raises(NewerStore, match="nothing was written, use a newer sjc"):
            make_plan(settings, writable=writable)


def test_a_plan_wants_a_scratch_folder_that_can_hold_files(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("prompt\na duck\n")
    paths = str(tmp_path / "m.csv"), str(tmp_path / "store")
    scratch = tmp_path / "m.csv" / "below"
    with pytest.raises(UsageError, match=f"--scratch {scratch} cannot be written"):
        make_plan(Settings(*paths, devices=["cpu"], scratch=str(scratch)))
    assert not (tmp_path / "store").exists()


def test_a_plan_has_the_entries_that_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("prompt,seed\na duck,0-2\na pig,\n")
    settings = Settings(str(tmp_path / "m.csv"), str(tmp_path / "store"), devices=["cpu"])

    def asked(**changes: Any) -> list[tuple[str, int]]:
        entries = make_plan(replace(settings, **changes)).entries
        return [(entry.spec.prompt, entry.spec.seed) for entry in entries]

    assert len(asked()) == 4
    assert asked(where="seed = 0") == [("a duck", 0), ("a pig", 0)]
    assert asked(where="seed > 0", limit=1) == [("a duck", 1)]


def test_a_field_that_a_finished_asset_has_is_used_again(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("prompt,texture_size\na duck,64\na duck,0\na pig,0\n")
    settings = Settings(str(tmp_path / "m.csv"), str(tmp_path / "store"), devices=["cpu"])
    done, other, pig = (entry.spec for entry in make_plan(settings).entries)
    make(open_store(settings.store), tmp_path, done, "run1")
    plan = make_plan(settings)
    assert list(plan.todo) == [other.asset_id, pig.asset_id]
    assert plan.reusable_fields == {other.field_id: done.asset_id}


def test_only_who_makes_something_is_told_that_there_is_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.plan.missing_gpus", lambda devices: [f"no GPU for {devices}"])
    (tmp_path / "m.csv").write_text("prompt\na duck\n")
    settings = Settings(str(tmp_path / "m.csv"), str(tmp_path / "store"), devices=["cpu"])
    warning = "no GPU for ['cpu']"
    plan = make_plan(settings)
    assert warning in plan.warnings
    make(plan.store, tmp_path, plan.entries[0].spec, "run1")
    assert warning not in make_plan(settings).warnings
    assert warning in make_plan(settings, writable=False).warnings


def test_a_shard_wants_the_prior_that_it_was_planned_with(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("prompt\na duck\n")
    settings = Settings(str(tmp_path / "m.csv"), str(tmp_path / "store"), devices=["cpu"])
    made, _ = make_shard_plan(settings, 3600.0)
    with pytest.raises(StoreError, match="There is no store"):
        read_shard(replace(settings, plan=made.id, shard=0))
    store = open_store(settings.store)
    keep_plan(store, made)
    assert [entry.row_id for entry in read_shard(replace(settings, plan=made.id, shard=0))[1]]
    entries = [
        replace(entry, spec=replace(entry.spec, prior_revision="of other weights"))
        for entry in made.entries(0, tmp_path)
    ]
    seconds = {entry.spec.asset_id: 1.0 for entry in entries}
    other = make_plan_file(entries, seconds, 9.0, manifest="", manifest_sha256="", settings={})
    keep_plan(store, other)
    with pytest.raises(PriorError, match="not the wanted of other weights"):
        make_plan(replace(settings, plan=other.id, shard=0))


def test_a_number_out_of_range_is_found_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("prompt\na duck\n")
    settings = Settings(str(tmp_path / "m.csv"), str(tmp_path / "store"), limit=0)
    with pytest.raises(SettingError, match="limit: 0 is out of range"):
        make_plan(settings)
    assert [path.name for path in tmp_path.iterdir()] == ["m.csv"]


def test_a_plan_counts_assets_by_state_and_rows_that_repeat_one(tmp_path: Path) -> None:
    manifest = tmp_path / "m.csv"
    manifest.write_text("prompt\na duck\na duck\na pig\na duck\n")
    plan = make_plan(Settings(str(manifest), str(tmp_path / "store"), devices=["cpu"]))
    counts = {state: count for state, count in plan.counts().items() if count}
    assert counts == {"new": 2, "duplicate": 2}


def test_a_plan_works_on_what_is_not_there_and_on_failures_if_asked(tmp_path: Path) -> None:
    manifest, root = tmp_path / "m.csv", tmp_path / "store"
    manifest.write_text("prompt\na new one\na cut one\na failed one\na whole one\na pruned one\n")
    settings = Settings(str(manifest), str(root), devices=["cpu"], recipe="draft")
    store = open_store(root)
    specs = {entry.spec.prompt.split()[1]: entry.spec for entry in make_plan(settings).entries}
    start_attempt(store, specs["cut"], "run1")
    make(store, tmp_path, specs["failed"], "run1", "failed")
    for name in ("whole", "pruned"):
        make(store, tmp_path, specs[name], "run1")
    with leases(store, "a pruner") as held:
        prune_assets(store, [specs["pruned"].asset_id], "so asked", held)
    plan = make_plan(settings)
    assert plan.counts() == {
        "new": 1, "interrupted": 1, "failed": 1, "finished": 1, "pruned": 1, "duplicate": 0
    }  # fmt: skip
    retried = make_plan(replace(settings, retry_failed=True))
    for made, names in ((plan, ("new", "cut")), (retried, ("new", "cut", "failed"))):
        assert list(made.todo) == [specs[name].asset_id for name in names]


def test_only_what_an_older_version_has_made_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pig is new, and the duck was made by version 1."""
    manifest, root = tmp_path / "m.csv", tmp_path / "store"
    manifest.write_text("prompt\na duck\na pig\n")
    settings = Settings(str(manifest), str(root), devices=["cpu"], recipe="draft")
    store = open_store(root)
    duck, _ = (entry.spec for entry in make_plan(settings).entries)
    monkeypatch.setattr("task_samples.ENGINE", "1.0+recipe1")
    make(store, tmp_path, duck, "run1")
    assert make_plan(settings).warnings == []
    monkeypatch.setattr("flows.plan.RECIPE_VERSION", 2)
    monkeypatch.setattr("sjc_engine.spec.RECIPE_VERSION", 2)
    again = make_plan(settings)
    assert again.counts()["new"] == 2
    assert again.warnings == [
        "1 asset was made by recipe version 1 and will be made again by version 2; CHANGELOG.md"
        " says why"
    ]


@pytest.mark.parametrize("devices", [[], ["gpu"], ["cpu", "tpu:0"]])
def test_a_plan_refuses_devices_that_are_none(tmp_path: Path, devices: list[str]) -> None:
    (tmp_path / "m.csv").write_text("prompt\na duck\n")
    store = tmp_path / "store"
    with pytest.raises(UsageError, match="--devices: "):
        make_plan(Settings(str(tmp_path / "m.csv"), str(store), devices=devices))
    assert not store.exists()
