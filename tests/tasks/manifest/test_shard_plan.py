"""Shard plans: every asset in one shard, even shards, the same bytes each time, nothing forged."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from task_samples import Write, plan, spec

from tasks.manifest.resolve import Entry
from tasks.manifest.shard_plan import (
    MOST_ASSETS,
    VERSION,
    PlanError,
    ShardPlan,
    cut,
    fetch_images,
    keep_plan,
    load_plan,
    make_plan_file,
    read_plan,
)
from tasks.store import open_store
from tasks.store.interface import Store


def planned(entries: list[Entry], target: float = 25.0, each: float = 10.0) -> ShardPlan:
    seconds = {entry.spec.asset_id: each for entry in entries}
    return make_plan_file(
        entries, seconds, target, manifest="m.csv", manifest_sha256="0" * 64, settings={"limit": 1}
    )


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.floats(0.1, 100), st.booleans()), min_size=1),
    st.floats(1, 200),
)
def test_shards_are_whole_even_and_of_one_prior(
    drawn: list[tuple[int, float, bool]], target: float
) -> None:
    """Two assets of one seed share their field: only the texture differs."""
    specs, seconds = {}, {}
    for number, (seed, cost, other) in enumerate(drawn):
        made = dataclasses.replace(spec(seed=seed), prior="other/prior" if other else "toybox")
        mesh = dataclasses.replace(made.recipe.mesh, texture_size=8 * (number + 1))
        made = dataclasses.replace(made, recipe=dataclasses.replace(made.recipe, mesh=mesh))
        specs[made.asset_id], seconds[made.asset_id] = made, cost
    shard_of = cut(specs, seconds, target)
    assert shard_of.keys() == specs.keys()
    assert set(shard_of.values()) == set(range(max(shard_of.values()) + 1))
    fields: dict[str, set[int]] = {}
    priors: dict[int, set[str]] = {}
    loads: Counter[tuple[str, int]] = Counter()
    field_loads: Counter[str] = Counter()
    for asset_id, shard in shard_of.items():
        made = specs[asset_id]
        fields.setdefault(made.field_id, set()).add(shard)
        priors.setdefault(shard, set()).add(made.prior)
        loads[made.prior, shard] += seconds[asset_id]  # type: ignore[assignment]
        field_loads[made.field_id] += seconds[asset_id]  # type: ignore[assignment]
    assert all(len(shards) == 1 for shards in fields.values())
    assert all(len(found) == 1 for found in priors.values())
    longest = max(field_loads.values())
    for prior in {prior for prior, _ in loads}:
        found = [load for (p, _), load in loads.items() if p == prior]
        assert max(found) - min(found) <= longest + 1e-6
        assert max(found) <= target + longest + 1e-6


def test_many_short_assets_fill_several_shards() -> None:
    specs = {made.asset_id: made for made in (spec(seed=n) for n in range(2 * MOST_ASSETS + 1))}
    counts = Counter(cut(specs, dict.fromkeys(specs, 0.1), 1e6).values())
    assert sorted(counts.values()) == [200, 200, 201]


def test_no_shard_has_more_assets_than_one_flow_run_takes() -> None:
    """One asset outweighs all others, which would fit into the other shard by their seconds."""
    specs = {made.asset_id: made for made in (spec(seed=n) for n in range(MOST_ASSETS + 2))}
    seconds = dict.fromkeys(specs, 0.001) | {next(iter(specs)): 1e5}
    counts = Counter(cut(specs, seconds, 1e5).values())
    assert max(counts.values()) == MOST_ASSETS
    full = dict(list(specs.items())[:MOST_ASSETS])
    assert set(cut(full, dict.fromkeys(full, 0.1), 1e6).values()) == {0}


def test_shards_are_listed_in_order_whatever_the_manifests(write: Write) -> None:
    entries = plan(write("prompt,seed\na duck,0-3\n"), recipe="draft").entries
    seconds = {entry.spec.asset_id: 10.0 + n for n, entry in enumerate(entries)}
    made = make_plan_file(
        entries, seconds, 10.0, manifest="m.csv", manifest_sha256="0" * 64, settings={}
    )
    assert made.rows["shard"].to_pylist() == [3, 2, 1, 0], "the longest comes first"
    assert [list(assets.values()) for assets in made.shards().values()] == [[13], [12], [11], [10]]


def test_a_plan_is_the_same_each_time_and_holds_all_entries(write: Write) -> None:
    path = write("id,prompt,tags,meta.k,seed\na,a duck,x;y,v,0-3\nb,a duck,,,0\nc,a pig,,,\n")
    entries = plan(path, recipe="draft").entries
    made = planned(entries)
    assert made.data == planned(plan(path, recipe="draft").entries).data
    assert made.id != planned(entries, target=26.0, each=11.0).id
    assert made.settings == {"limit": 1}
    shards = made.shards()
    assert sorted(sum(assets.values()) for assets in shards.values()) == [20.0, 30.0]
    back = [entry for shard in shards for entry in made.entries(shard, Path())]
    plain = {e.row_id: dataclasses.replace(e, duplicate_of=None) for e in entries}
    assert {e.row_id: dataclasses.replace(e, duplicate_of=None) for e in back} == plain
    (duplicate,) = [e for e in back if e.duplicate_of is not None]
    assert duplicate.row_id == "b"
    with pytest.raises(PlanError, match="has no shard 2; it has 2"):
        made.entries(2, Path())


def test_pictures_travel_through_the_store(store: Store, write: Write, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "ball.png")
    entries = plan(write("prompt,image\na ball,ball.png\n"), prior="kxic/zero123-xl").entries
    made = planned(entries)
    keep_plan(store, made)
    content = (tmp_path / "ball.png").read_bytes()
    (tmp_path / "ball.png").unlink()
    keep_plan(store, made)  # the store has it
    found = load_plan(store, made.id).entries(0, tmp_path / "worker" / "images")
    fetch_images(store, found)
    assert found[0].image_path is not None
    assert found[0].image_path.read_bytes() == content

    other = open_store(tmp_path / "other")
    with pytest.raises(PlanError, match=r"ball\.png: No such file.* where the plan was made"):
        keep_plan(other, made)
    (tmp_path / "ball.png").write_bytes(b"something else")
    with pytest.raises(PlanError, match=r"ball\.png has changed"):
        keep_plan(other, made)
    assert list(other.list()) == []


def test_only_pictures_that_are_missing_are_fetched(store: Store, write: Write) -> None:
    for name, color in (("ball", "red"), ("cube", "blue")):
        Image.new("RGB", (32, 32), color).save(write("", f"{name}.png"))
    rows = "a ball,ball.png,kxic/zero123-xl\na cube,cube.png,kxic/zero123-xl\na duck,,toybox\n"
    made = planned(plan(write(f"prompt,image,prior\n{rows}")).entries)
    keep_plan(store, made)
    shards = [made.entries(shard, write("", "x").parent / "images") for shard in made.shards()]
    [(ball, cube)] = [found for found in shards if found[0].image_path]
    fetch_images(store, [ball])
    store.delete(f"plans/images/{ball.spec.image}")
    for found in shards:
        fetch_images(store, found)  # the one that the store lacks is there
    assert cube.image_path is not None
    assert len(list(cube.image_path.parent.iterdir())) == 2


def test_every_program_of_a_version_has_the_same_columns(write: Write) -> None:
    """Other columns need another `VERSION`: workers refuse a plan with columns unlike theirs."""
    made = planned(plan(write("prompt\na duck\n")).entries)
    columns = " ".join(field.name + "?" * field.nullable for field in made.rows.schema)
    assert (VERSION, columns) == (
        1,
        "shard manifest manifest_sha256 line row_id asset_id seconds prior_coverage? spec_json"
        " image_path? tags meta",
    )


@pytest.mark.parametrize("other", ["version", "columns"])
def test_a_plan_of_another_version_is_refused(write: Write, other: str) -> None:
    made = planned(plan(write("prompt\na duck\n")).entries)
    assert re.fullmatch("[0-9a-f]{16}", made.id)
    rows = made.rows
    if other == "version":
        facts = json.loads(rows.schema.metadata[b"sjc.plan"]) | {"version": VERSION + 1}
        rows = rows.replace_schema_metadata({b"sjc.plan": json.dumps(facts)})
    else:
        rows = rows.append_column("new", pa.array([1]))
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink)
    with pytest.raises(PlanError, match="x is a shard plan of another version; make it again"):
        read_plan(sink.getvalue().to_pybytes(), "x")


def changed(made: ShardPlan, column: str, change: Any) -> bytes:
    rows = made.rows.to_pylist(maps_as_pydicts="strict")
    for row in rows:
        row[column] = change(row[column])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, made.rows.schema), sink)
    return sink.getvalue().to_pybytes()


def test_what_is_no_plan_of_this_program_is_refused(write: Write, tmp_path: Path) -> None:
    made = planned(plan(write("prompt\na duck\n")).entries)
    for data in (b"", b"PAR1", made.data[:-9], b"prompt\na duck\n"):
        with pytest.raises(PlanError, match="x is not a shard plan; make one with"):
            read_plan(data, "x")

    def other_recipe(text: str) -> str:
        document = json.loads(text)
        document["recipe"]["optimize"]["new_key"] = 1
        return json.dumps(document)

    for column, change in (
        ("spec_json", other_recipe),
        ("spec_json", lambda text: text.replace("duck", "goose")),
    ):
        forged = read_plan(changed(made, column, change), "x")
        with pytest.raises(PlanError, match="another version of this program"):
            forged.entries(0, Path())
    store = open_store(tmp_path / "store")
    with pytest.raises(PlanError, match=f"has no plan {made.id}; `sjc dispatch` and"):
        load_plan(store, made.id)
    store.put_bytes(f"plans/{made.id}.parquet", changed(made, "seconds", lambda s: s + 1))
    with pytest.raises(PlanError, match="is damaged"):
        load_plan(store, made.id)
