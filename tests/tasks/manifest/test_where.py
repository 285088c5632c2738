"""Which entries a condition and a limit pick."""

from __future__ import annotations

import pytest
from task_samples import Write, plan

from sjc_engine.errors import UsageError
from tasks.manifest.resolve import Entry
from tasks.manifest.where import select


@pytest.fixture
def entries(write: Write) -> list[Entry]:
    rows = "duck,a duck,0-2,toy;bird,bath,\npig,a pig,,toy,,draft\n"
    return plan(write(f"id,prompt,seed,tags,meta.room,recipe\n{rows}")).entries


@pytest.mark.parametrize(
    ("where", "limit", "picked"),
    [
        (None, None, ["duck-s0", "duck-s1", "duck-s2", "pig"]),
        (None, 2, ["duck-s0", "duck-s1"]),
        ("seed > 0", None, ["duck-s1", "duck-s2"]),
        ("seed > 0", 1, ["duck-s1"]),
        ("seed = 2 OR id = 'pig'", None, ["duck-s2", "pig"]),
        ("list_contains(tags, 'bird') AND seed < 2", None, ["duck-s0", "duck-s1"]),
        ("meta['room'] = 'bath' AND line = 2 AND seed = 1", None, ["duck-s1"]),
        ("recipe = 'draft' AND prior = 'toybox' AND prompt LIKE '%pig'", None, ["pig"]),
        ("negative_prompt = '' AND image IS NULL", 9, ["duck-s0", "duck-s1", "duck-s2", "pig"]),
    ],
)
def test_entries_are_picked_in_the_manifests_order(
    entries: list[Entry], where: str | None, limit: int | None, picked: list[str]
) -> None:
    assert [entry.row_id for entry in select(entries, where, limit)] == picked


def test_an_asset_is_picked_by_its_id(entries: list[Entry]) -> None:
    assert select(entries, f"asset_id = '{entries[2].spec.asset_id}'", None) == [entries[2]]


def test_a_condition_that_picks_nothing_is_an_error(entries: list[Entry]) -> None:
    with pytest.raises(UsageError, match=r"--where 'seed > 9': no entry of the manifest matches"):
        select(entries, "seed > 9", None)


@pytest.mark.parametrize("where", ["colour = 'red'", "seed >", "number(", "seed / 'x' > 1"])
def test_a_wrong_condition_is_told_with_the_columns(entries: list[Entry], where: str) -> None:
    columns = "line, seed, tags, meta, id, asset_id, recipe, prompt, negative_prompt, image, prior"
    with pytest.raises(UsageError, match=rf"--where: .*; columns: {columns}$"):
        select(entries, where, None)
