"""`sjc annotate`, and what its rows do in the other commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Said
from task_samples import make, spec

from flows.commands import annotate
from tasks.store import open_store

DUCK = spec().asset_id


def test_ratings_choose_assets_everywhere(sjc: Callable[..., Said], tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    for prompt in ("a duck", "a pig"):
        make(store, tmp_path, spec(prompt), "run1")
    rated = ("--where", "rating >= 4 AND list_contains(labels, 'round')")
    assert json.loads(sjc("assets", *rated, "--format", "json").out) == []
    assert sjc("curate", *rated, "-o", "none").code == 2
    rows = f"asset_id,key,value\n{DUCK},rating,5\n{DUCK},label,round;toy\n"
    (tmp_path / "ratings.csv").write_text(rows)
    said = sjc("annotate", "ratings.csv", "--who", "anna")
    assert (said.code, said.err) == (0, "2 annotations, 1 assets, 1 people\n")
    assert list(store.list("annotations/")) == [said.out.strip().removeprefix(f"{store.url}/")]
    assert "were there already" in sjc("annotate", "ratings.csv", "--who", "anna").err
    assert sjc("annotate", "ratings.csv", "--who", "ben", "-q").err == ""
    [row] = json.loads(sjc("assets", *rated, "--format", "json").out)
    assert (row["asset_id"], row["rating"], row["rating_count"]) == (DUCK, 5.0, 2)
    [row] = json.loads(sjc("query", "SELECT DISTINCT value FROM annotations WHERE key = 'label'",
                           "--format", "json").out)  # fmt: skip
    assert row == {"value": "round;toy"}
    for format in ("files", "webdataset", "parquet"):
        assert sjc("curate", *rated, "-o", format, "--format", format).code == 0
    [path] = (tmp_path / "files").rglob("asset.json")
    asset = json.loads(path.read_text())
    assert (asset["rating"], asset["rating_spread"], asset["labels"]) == (
        5.0,
        0.0,
        ["round", "toy"],
    )


def test_mistakes_are_told_and_nothing_is_written(sjc: Callable[..., Said], tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    make(store, tmp_path, spec(), "run1")
    (tmp_path / "r.csv").write_text(f"asset_id,key,value\n{DUCK},rating,9\nduck,rating,3\n")
    said = sjc("annotate", "r.csv")
    assert (said.code, said.out) == (2, "")
    assert [line.partition(";")[0] for line in said.err.splitlines()] == [
        "r.csv:2: value: '9' is not a rating",
        f"r.csv:3: asset_id: 'duck' is not in {store.url}",
    ]
    assert sjc("annotate", "r.csv", "--who", " ").err == "sjc: --who: is blank; write a name\n"
    assert sjc("annotate", "r.csv", "--store", "nowhere").code == 3
    assert not (tmp_path / "nowhere").exists()
    assert list(store.list("annotations/")) == []


def test_a_machine_without_login_names_wants_one(
    sjc: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown() -> str:
        raise OSError("No username set in the environment")

    monkeypatch.setattr(annotate.getpass, "getuser", unknown)
    said = sjc("annotate", "r.csv")
    assert (said.code, "--who: this machine knows no login name" in said.err) == (2, True)
