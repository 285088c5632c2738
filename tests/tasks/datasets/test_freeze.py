"""Freezing a dataset: every byte is the store's, and nothing half-written looks finished."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from markdown_it import MarkdownIt
from task_samples import make, make_run, plan, spec

from sjc_engine.recipes import Recipe
from tasks.datasets.freeze import (
    MANIFEST,
    UNFINISHED,
    DatasetRequest,
    SelectionError,
    freeze,
)
from tasks.datasets.select import SPLITS, candidate_rows, select, split_of
from tasks.records.documents import asset_manifest
from tasks.store import open_store
from tasks.store.interface import Store, StoreError
from tasks.tables.read import QueryError
from tasks.tables.write import rebuild_tables

HOSTILE = '=HYPERLINK("http://x") </script><script>alert(1)</script> `|` ![x](y) <b>*bold*</b> 🦆'
ROWS = "duck,a duck,animal,v\npig,a pig,animal,\ncar,a car,vehicle,\nDUCK,A duck!,big,w\n"
FILES = {"mesh.glb", "preview.png", "field.safetensors", "views/mesh_1.png"}


@pytest.fixture
def filled(kept_store: Callable[..., Store], tmp_path: Path) -> Store:
    """Two spellings of a duck, a pig and a car; three more seeds of the pig; a failed mug."""

    def fill(store: Store) -> None:
        make_run(store, tmp_path, "run1", ROWS)
        for seed in range(1, 4):
            make(store, tmp_path, spec("a pig", seed), "run1", clip_score=10.0 * seed)
        make(store, tmp_path, spec("a mug"), "run1", "failed")

    return kept_store("filled", fill)


@pytest.fixture
def local(tmp_path: Path) -> Store:
    """The same on this disk."""
    store = open_store(tmp_path / "local")
    make_run(store, tmp_path, "run1", ROWS)
    return store


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def in_store(store: Store, asset_id: str) -> dict[str, bytes]:
    """An asset's files by name, as its manifest lists them."""
    manifest = asset_manifest(store, asset_id)
    assert manifest
    keys = manifest["files"]
    return {key.partition("/")[2]: store.get_bytes(f"assets/{asset_id}/{key}") for key in keys}


def ids(store: Store) -> list[str]:
    return [row["asset_id"] for row in candidate_rows(store)]


def test_shards_hold_the_stores_bytes_sample_by_sample(filled: Store, tmp_path: Path) -> None:
    out = tmp_path / "out"
    request = DatasetRequest(format="webdataset", include=tuple(sorted(FILES)))
    frozen = freeze(filled, str(out), request)
    seen: dict[str, dict[str, bytes]] = {}
    for shard in sorted((out / "data").iterdir()):
        split = shard.name.partition("-")[0]
        with tarfile.open(shard) as tar:
            names = tar.getnames()
            keys = [name.partition(".")[0] for name in names]
            assert keys == sorted(keys)  # the files of a sample stand together
            for name in names:
                file = tar.extractfile(name)
                assert file
                asset_id, _, member = name.partition(".")
                seen.setdefault(asset_id, {})[member] = file.read()
            for key in set(keys):
                about = json.loads(seen[key]["json"])
                assert about["split"] == split == split_of(about["prompt"])
    assert sorted(seen) == ids(filled)
    for asset_id, files in seen.items():
        stored = in_store(filled, asset_id)
        assert files["glb"] == stored["mesh.glb"]
        assert files["png"] == stored["preview.png"]
        assert files["mesh_1.png"] == stored["views/mesh_1.png"]
        assert files["field.safetensors"] == stored["field.safetensors"]
    assert frozen.document["assets"] == len(seen) == 7


# In a process of its own: the library leaves its files for the garbage collector to close.
READER = """
import json, sys, webdataset
samples = webdataset.WebDataset(sys.argv[1:], shardshuffle=False).decode()
print(json.dumps({s["__key__"]: [s["glb"].decode(), s["json"]["seed"]] for s in samples}))
"""


def test_the_webdataset_library_reads_the_shards(local: Store, tmp_path: Path) -> None:
    freeze(local, str(tmp_path / "out"), DatasetRequest(format="webdataset", shard_assets=2))
    shards = sorted(str(path) for path in (tmp_path / "out" / "data").iterdir())
    read = subprocess.run(
        [sys.executable, "-c", READER, *shards], capture_output=True, text=True, check=True
    )
    assert json.loads(read.stdout) == {
        row["asset_id"]: [in_store(local, row["asset_id"])["mesh.glb"].decode(), row["seed"]]
        for row in candidate_rows(local)
    }


def test_every_file_is_in_the_sums_and_they_are_right(filled: Store, tmp_path: Path) -> None:
    out = tmp_path / "out"
    freeze(filled, str(out), DatasetRequest(format="webdataset"))
    found = tree(out)
    sums = dict(line.split("  ")[::-1] for line in found["SHA256SUMS"].decode().splitlines())
    assert set(sums) == set(found) - {"SHA256SUMS", MANIFEST}
    assert all(hashlib.sha256(found[name]).hexdigest() == sums[name] for name in sums)
    listed = json.loads(found[MANIFEST])["files"]
    assert set(listed) == set(found) - {MANIFEST}
    assert all(file["bytes"] == len(found[name]) for name, file in listed.items())


def test_files_and_parquet_hold_the_same(filled: Store, tmp_path: Path) -> None:
    freeze(filled, str(tmp_path / "files"), DatasetRequest(include=("mesh.glb", "views/*.png")))
    freeze(filled, str(tmp_path / "table"), DatasetRequest(format="parquet"))
    freeze(filled, str(tmp_path / "links"), DatasetRequest(format="parquet", links=True))
    table = pq.read_table(tmp_path / "table" / "data").to_pylist(maps_as_pydicts="strict")
    linked = pq.read_table(tmp_path / "links" / "data").to_pylist(maps_as_pydicts="strict")
    assert sorted(row["asset_id"] for row in table) == ids(filled)
    for row, link in zip(table, linked, strict=True):
        stored = in_store(filled, row["asset_id"])
        folder = tmp_path / "files" / "data" / row["split"] / row["asset_id"]
        assert row["glb"]["bytes"] == (folder / "mesh.glb").read_bytes() == stored["mesh.glb"]
        assert row["png"] == {"bytes": stored["preview.png"], "path": f"{row['asset_id']}.png"}
        assert tree(folder).keys() == {"mesh.glb", "views/mesh_1.png", "asset.json"}
        assert link["glb_uri"].endswith(f"/assets/{row['asset_id']}/a01/mesh.glb")
        assert link["glb_sha256"] == hashlib.sha256(stored["mesh.glb"]).hexdigest()
    duck = next(row for row in table if row["prompt"] == "a duck")
    assert (duck["tags"], duck["meta"], duck["licence"]) == (["animal"], {"k": "v"}, "apache-2.0")


def test_the_same_selection_is_the_same_bytes(local: Store, tmp_path: Path, s3_url: str) -> None:
    """From another copy of the store, tables rebuilt, on another kind of it, and at a prefix."""
    request = DatasetRequest(format="webdataset", shard_assets=2)
    freeze(local, str(tmp_path / "first"), request)
    first = tree(tmp_path / "first")
    shutil.copytree(tmp_path / "local", tmp_path / "moved")
    moved = open_store(tmp_path / "moved")
    rebuild_tables(moved)
    freeze(moved, str(tmp_path / "second"), request)
    assert tree(tmp_path / "second") == first
    remote = open_store(s3_url)
    for key in local.list("assets/"):
        remote.put_bytes(key, local.get_bytes(key))
    for key in local.list("runs/"):
        remote.put_bytes(key, local.get_bytes(key))
    rebuild_tables(remote)
    bucket = s3_url.split("/")[2]
    there = freeze(remote, f"s3://{bucket}/dataset", request)
    assert there.card == f"s3://{bucket}/dataset/README.md"
    target = open_store(f"s3://{bucket}/dataset")
    assert {key: target.get_bytes(key) for key in target.list()} == first
    assert freeze(remote, f"s3://{bucket}/dataset", request).was_there


@pytest.mark.parametrize("format", ["files", "webdataset", "parquet"])
def test_a_damaged_file_stops_it_and_nothing_is_marked(
    local: Store, tmp_path: Path, format: str
) -> None:
    asset_id = ids(local)[2]
    mesh = tmp_path / "local" / "assets" / asset_id / "a01" / "mesh.glb"
    good = mesh.read_bytes()
    mesh.write_bytes(b"X" + good[1:])
    out = tmp_path / "out"
    request = DatasetRequest(format=format, shard_assets=1)
    with pytest.raises(StoreError, match=f"{asset_id}/a01/mesh.glb is damaged"):
        freeze(local, str(out), request)
    left = tree(out)
    assert MANIFEST not in left
    assert "README.md" not in left
    assert not any(Path(name).name.startswith(".") for name in left)
    assert not any(b"X" + good[1:] in content for content in left.values())
    mesh.write_bytes(good)
    freeze(local, str(out), request)
    freeze(local, str(tmp_path / "clean"), request)
    assert tree(out) == tree(tmp_path / "clean")


def test_an_interrupted_one_goes_on_with_its_shards(local: Store, tmp_path: Path) -> None:
    request = DatasetRequest(format="webdataset", shard_assets=1)
    out = tmp_path / "out"

    def interrupt(done: int, *_: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        freeze(local, str(out), request, interrupt)
    left = tree(out)
    assert MANIFEST not in left
    shards = set(json.loads(left[UNFINISHED])["shards"])
    assert shards == {name for name in left if name.startswith("data/")} != set()
    written = {name: (out / name).stat().st_ino for name in shards}
    torn = max(shards)  # a disk that lost its end
    (out / torn).write_bytes(left[torn][:-1])
    freeze(local, str(out), request)
    kept = {name for name, inode in written.items() if (out / name).stat().st_ino == inode}
    assert kept == shards - {torn}
    freeze(local, str(tmp_path / "clean"), request)
    assert tree(out) == tree(tmp_path / "clean")


KILLED = """
import os, signal, sys
from tasks.datasets.freeze import DatasetRequest, freeze
from tasks.store import open_store
def kill(done, *_):
    if done == 2:
        os.kill(os.getpid(), signal.SIGKILL)
request = DatasetRequest(format=sys.argv[3], shard_assets=1)
freeze(open_store(sys.argv[1]), sys.argv[2], request, kill)
"""


@pytest.mark.parametrize("format", ["files", "webdataset"])
def test_a_killed_one_can_be_run_again(local: Store, tmp_path: Path, format: str) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, local.url, str(out), format]
    root = Path(__file__).parents[3]
    died = subprocess.run(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)})
    assert died.returncode == -signal.SIGKILL
    assert MANIFEST not in tree(out)
    request = DatasetRequest(format=format, shard_assets=1)
    freeze(local, str(out), request)
    freeze(local, str(tmp_path / "clean"), request)
    assert tree(out) == tree(tmp_path / "clean")


def test_what_is_there_is_never_written_to(local: Store, tmp_path: Path) -> None:
    out = tmp_path / "out"
    freeze(local, str(out), DatasetRequest(format="webdataset"))
    before = tree(out)
    assert freeze(local, str(out), DatasetRequest(format="webdataset")).was_there
    with pytest.raises(SelectionError, match="holds a dataset of another selection"):
        freeze(local, str(out), DatasetRequest(where="seed = 0 AND faces > 0", format="webdataset"))
    assert tree(out) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(SelectionError, match="has other files in it"):
        freeze(local, str(tmp_path / "mine"), DatasetRequest())
    assert list(tree(tmp_path / "mine")) == ["notes.txt"]

    def interrupt(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        freeze(local, str(tmp_path / "half"), DatasetRequest(format="webdataset"), interrupt)
    with pytest.raises(SelectionError, match="an unfinished dataset of another selection"):
        freeze(local, str(tmp_path / "half"), DatasetRequest(format="parquet"))


def test_where_sees_tags_and_meta_and_wrong_sql_is_told(filled: Store) -> None:
    def prompts(where: str) -> list[str]:
        return sorted({row["prompt"] for row in candidate_rows(filled, where)})

    assert prompts("list_contains(tags, 'animal')") == ["a duck", "a pig"]
    assert prompts("meta['k'] = 'w' -- a comment") == ["A duck!"]
    assert prompts("true OR status = 'failed'") == ["A duck!", "a car", "a duck", "a pig"]
    with pytest.raises(QueryError, match="facez"):
        candidate_rows(filled, "facez > 3")


def test_a_selection_that_is_none_is_told_and_nothing_written(local: Store, tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match="no finished asset matches"):
        freeze(local, str(tmp_path / "out"), DatasetRequest(where="faces < 0"))
    with pytest.raises(SelectionError, match=r"--include \*\.stl"):
        freeze(local, str(tmp_path / "out"), DatasetRequest(include=("*.stl",)))
    assert not (tmp_path / "out").exists()


def test_splits_are_of_prompts_and_never_move() -> None:
    prompts = [f"a photo of thing number {k}" for k in range(4000)]
    where = {prompt: split_of(prompt) for prompt in prompts}
    shares = [list(where.values()).count(split) / len(prompts) for split in SPLITS]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.02)
    assert all(split_of(prompt.upper() + "!") == split for prompt, split in where.items())
    # Known values: a change of the hash would move assets from train to test.
    known = {"a duck": "train", "a snowman": "val", "a photo of thing number 11": "test"}
    assert {prompt: split_of(prompt) for prompt in known} == known
    assert {split_of(prompt, (0, 0, 1)) for prompt in prompts} == {"test"}
    more = {prompt for prompt in prompts if split_of(prompt, (0.9, 0.05, 0.05)) == "train"}
    assert more > {prompt for prompt, split in where.items() if split == "train"}


def test_all_seeds_of_a_prompt_are_in_one_split(filled: Store, tmp_path: Path) -> None:
    freeze(filled, str(tmp_path / "out"), DatasetRequest(format="webdataset", fractions=(1, 1, 1)))
    rows = pq.read_table(tmp_path / "out" / "manifest.parquet").to_pylist()
    splits: dict[str, set[str]] = {}
    for row in rows:
        splits.setdefault(row["prompt"].lower().strip("!"), set()).add(row["split"])
        assert row["path"].startswith(f"data/{row['split']}-")
    assert all(len(found) == 1 for found in splits.values())
    assert sorted(splits) == ["a car", "a duck", "a pig"]


def test_hostile_prompts_stay_text(store: Store, tmp_path: Path) -> None:
    make(store, tmp_path, spec(HOSTILE), "run1")
    make(store, tmp_path, spec("- a list\n---\n# a title"), "run1")
    where = "prompt <> '```' AND '</script>' <> prompt"
    request = DatasetRequest(where=where, name="x\n---\n# y", format="parquet")
    freeze(store, str(tmp_path / "out"), request)
    found = {name: data.decode("utf-8", "replace") for name, data in tree(tmp_path / "out").items()}
    cells = [cell for row in csv.reader(io.StringIO(found["prompts.csv"])) for cell in row]
    assert f"'{HOSTILE}" in cells
    assert not any(cell.startswith(("=", "+", "-", "@")) for cell in cells)
    front, _, body = found["README.md"].removeprefix("---\n").partition("\n---\n")
    assert 'pretty_name: "x\\n---\\n# y"' in front.splitlines()
    page = MarkdownIt("commonmark").enable("table").render(body)
    assert "<script>" not in page
    assert page.count("<img") == 2  # the card's own pictures
    assert "<b>" not in page
    assert page.count("<h1>") == 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "sjc run prompts.jsonl" in page
    again = plan(tmp_path / "out" / "prompts.jsonl")
    assert {entry.spec.prompt for entry in again.entries} == {HOSTILE, "- a list\n---\n# a title"}


def test_the_prompts_ask_for_the_very_same_assets(local: Store, tmp_path: Path) -> None:
    changed = Recipe.for_prior("toybox", "draft").override({"steps": 7, "depth_weight": 2.5})
    other = replace(spec("a tank", 5), recipe=changed, prior_revision="r-toybox")
    for asked in (other, replace(spec("a pig", 2), prior_revision="r-toybox", negative_prompt="x")):
        make(local, tmp_path, asked, "run2")
    freeze(local, str(tmp_path / "out"), DatasetRequest(where="prior_revision = 'r-toybox'"))
    for name in ("prompts.csv", "prompts.jsonl"):
        again = plan(tmp_path / "out" / name)
        assert again.warnings == []
        assert {e.row_id for e in again.entries} == {e.spec.asset_id for e in again.entries}
        assert other.asset_id in {entry.row_id for entry in again.entries}
        assert len(again.entries) == 2


def test_dedupe_keeps_the_best_of_near_duplicates(filled: Store, tmp_path: Path) -> None:
    plain = freeze(filled, str(tmp_path / "all"), DatasetRequest(format="webdataset"))
    assert plain.document["near_duplicates"]["pairs"] == 1
    text = (tmp_path / "all" / "near_duplicates.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert {rows[0]["prompt_a"], rows[0]["prompt_b"]} == {"a duck", "A duck!"}
    assert (rows[0]["similarity"], rows[0]["split_a"]) == ("1.0", rows[0]["split_b"])
    request = DatasetRequest(format="webdataset", dedupe=True)
    fewer = freeze(filled, str(tmp_path / "fewer"), request)
    assert fewer.document["assets"] == plain.document["assets"] - 1
    assert fewer.document["near_duplicates"]["prompts_left_out"] == 1


def test_the_best_of_all_scores_of_a_prompt_counts(local: Store) -> None:
    """Not that of its last seed."""
    rows = {row["prompt"]: row for row in candidate_rows(local)}
    duck, other = rows["a duck"], rows["A duck!"]
    scored = [duck | {"clip_score": score} for score in (90.0, None, 10.0)]
    found = select(local, [*scored, other | {"clip_score": 50.0}], ["mesh.glb"], dedupe=True)
    assert found.dropped == {"A duck!"}


def test_a_full_bucket_name_that_is_missing_is_told(local: Store, s3_environment: str) -> None:
    with pytest.raises(StoreError, match=r"the bucket does not exist; create it or correct"):
        freeze(local, "s3://no-such-bucket/x", DatasetRequest())
