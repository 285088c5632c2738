"""A manifest that selects may be a file, a folder or an S3 prefix, whatever the command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import boto3
import pytest
from command_line import Said
from task_samples import make

from flows.evaluate import prepare
from tasks.manifest.resolve import read_manifest, resolve
from tasks.records.runs import finish_run, start_run
from tasks.store import open_store
from tasks.tables.read import read_table
from tasks.tables.write import record_run


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    """A folder of two manifests, run as one; another manifest was run before."""
    folder = tmp_path / "lists"
    folder.mkdir()
    (folder / "a.csv").write_text("id,prompt\nduck,a duck\n")
    (folder / "b.jsonl").write_text('{"prompt": "a pig"}\n')
    (tmp_path / "other.csv").write_text("prompt\na tank\n")
    store = open_store(tmp_path / "store")
    for name, path in (("run1", tmp_path / "other.csv"), ("run2", folder)):
        manifest = read_manifest(path)
        entries = resolve(manifest.rows, prior_revision=lambda _: "r", recipe="draft").entries
        run = start_run(store, name, manifest.name, manifest.sha256, entries, {})
        for entry in entries:
            make(store, tmp_path, entry.spec, name)
        record_run(store, finish_run(store, run, {e.row_id: "computed" for e in entries}))
    return folder


@pytest.fixture(params=["folder", "file", "prefix", "key"])
def selected(request: pytest.FixtureRequest, lists: Path) -> tuple[str, set[str]]:
    """A manifest's name, and the prompts that it selects."""
    if request.param == "folder":
        return str(lists), {"a duck", "a pig"}
    if request.param == "file":
        return str(lists / "a.csv"), {"a duck"}
    url = request.getfixturevalue("bucket_url")
    client = boto3.client("s3")
    for path in lists.iterdir():
        client.put_object(Bucket="toys", Key=f"lists/{path.name}", Body=path.read_bytes())
    if request.param == "prefix":
        return url, {"a duck", "a pig"}
    return f"{url}/b.jsonl", {"a pig"}


def test_every_command_takes_them(
    selected: tuple[str, set[str]], sjc: Callable[..., Said], tmp_path: Path
) -> None:
    manifest, prompts = selected
    said = sjc("assets", "--manifest", manifest, "--format", "json")
    assert {row["prompt"] for row in json.loads(said.out)} == prompts, said.err
    said = sjc("curate", "--manifest", manifest, "-o", "out", "--quiet", "--json")
    assert json.loads(said.out)["prompts"] == len(prompts), said.err
    assert sjc("duplicates", manifest).code == 0
    store = str(tmp_path / "store")
    chosen = prepare(store, None, manifest, {}, None)
    assert len(chosen.assets) == len(prompts)
    assert set(read_table(store, "assets", manifest)["prompt"]) == prompts
    assert len(read_table(store, "entries", manifest)) == len(prompts)
    assert list(read_table(store, "runs", manifest)["run_id"]) == ["run2"]


@pytest.mark.parametrize(
    ("manifest", "problem"),
    [
        ("nosuch.csv", "nosuch.csv:1: file: does not exist; check the path"),
        ("empty", "empty: file: holds no manifest; add a file"),
        ("s3://nosuch-bucket-toys/x", "s3://nosuch-bucket-toys/x: file: "),
    ],
)
def test_a_manifest_that_cannot_be_read_is_told(
    manifest: str,
    problem: str,
    lists: Path,
    bucket_url: str,
    sjc: Callable[..., Said],
    tmp_path: Path,
) -> None:
    (tmp_path / "empty").mkdir()
    for command in (["assets"], ["curate", "-o", "out"], ["evaluate"]):
        said = sjc(*command, "--manifest", manifest)
        assert (said.code, said.out) == (2, "")
        assert said.err.startswith(problem), said.err
    assert not (tmp_path / "out").exists()


def test_a_manifest_that_has_changed_selects_what_it_asked_for_as_it_is(
    lists: Path, sjc: Callable[..., Said]
) -> None:
    shutil.copy(lists / "a.csv", lists / "c.csv")
    assert len(json.loads(sjc("assets", "--manifest", str(lists), "--format", "json").out)) == 2
    (lists / "a.csv").write_text("id,prompt\nduck,a duck\nmug,a mug\n")
    (lists / "c.csv").unlink()
    rows = json.loads(sjc("assets", "--manifest", str(lists), "--format", "json").out)
    assert [row["prompt"] for row in rows] == ["a pig"], "no run has seen a.csv as it is now"
