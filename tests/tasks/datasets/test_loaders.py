"""What people load datasets with finds their meshes, pictures, prompts and splits."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars
import pytest
import trimesh
import yaml
from PIL import Image
from task_samples import make, make_run, spec

from tasks.datasets.features import kind_of
from tasks.datasets.freeze import DatasetRequest, freeze
from tasks.datasets.select import candidate_rows, split_of
from tasks.store import open_store
from tasks.store.interface import Store

ROWS = "".join(f"r{k},a toy {k},{'t' * (k % 2)},{'v' * (k % 3)}\n" for k in range(9))
SPLITS = {"train": "train", "val": "validation", "test": "test"}
FORMATS = ("files", "webdataset", "parquet")


def picture(suffix: str) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (4, 4), "gold").save(data, suffix)
    return data.getvalue()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Ten assets with real meshes and pictures; no entry, so no `meta`, is known of the last."""
    folder = tmp_path_factory.mktemp("real")
    opened = open_store(folder / "store")
    mesh = trimesh.creation.box().export(file_type="glb")
    contents = {"mesh.glb": mesh, "preview.png": picture("PNG")}
    make_run(opened, folder, "run1", ROWS, contents)
    make(opened, folder, spec("a lone toy"), "run1", contents=contents)
    return opened


@pytest.fixture(scope="module")
def frozen(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of each format, the shards of one or two assets."""
    folder = tmp_path_factory.mktemp("datasets")
    for format in FORMATS:
        request = DatasetRequest(format=format, shard_assets=2, fractions=(0.4, 0.3, 0.3))
        freeze(store, str(folder / format), request)
    return folder


@pytest.fixture(scope="module")
def prompts(store: Store) -> dict[str, set[str]]:
    """Of each split, as the Hub names it."""
    found: dict[str, set[str]] = {}
    for row in candidate_rows(store):
        split = SPLITS[split_of(row["prompt"], (0.4, 0.3, 0.3))]
        found.setdefault(split, set()).add(row["prompt"])
    assert len(found) == 3
    return found


# In a process of its own: `datasets` changes how pandas, PIL and multiprocessing work.
LOAD = """
import json, sys
import datasets
datasets.disable_progress_bars()
told = {}
for format in ("files", "webdataset", "parquet"):
    for streaming in (False, True):
        splits = datasets.load_dataset(f"{sys.argv[1]}/{format}", streaming=streaming)
        rows = {split: list(found) for split, found in splits.items()}
        for row in (row for found in rows.values() for row in found):
            about = row.get("json", row)
            assert row["glb"].to_geometry().faces.shape == (12, 3)
            picture = row["picture"] if format == "files" else row["png"]
            assert picture.convert("RGB").getpixel((0, 0)) == (255, 215, 0)
            assert about["meta"]["k"] in (None, "", "v", "vv"), about["meta"]
            assert about["tags"] in ([], ["t"])
            assert about["seed"] == 0 and about["clip_score"] == 0.5 and about["image"] is None
        told[f"{format} {streaming}"] = {
            split: sorted(row.get("json", row)["prompt"] for row in found)
            for split, found in rows.items()
        }
print(json.dumps(told))
"""


def test_hugging_face_datasets_loads_each_format(
    frozen: Path, prompts: dict[str, set[str]], tmp_path: Path
) -> None:
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOAD, str(frozen)],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]
    told = json.loads(ran.stdout)
    assert len(told) == 2 * len(FORMATS)
    expected = {split: sorted(found) for split, found in prompts.items()}
    assert all(found == expected for found in told.values()), told


def faces(data: Any) -> int:
    mesh: Any = trimesh.load(io.BytesIO(data), file_type="glb")
    return len(mesh.to_geometry().faces)


def test_pandas_polars_and_duckdb_open_the_tables(
    frozen: Path, prompts: dict[str, set[str]]
) -> None:
    every = set().union(*prompts.values())
    data = frozen / "parquet" / "data"
    panda = pd.read_parquet(data)
    assert set(panda.prompt) == every
    assert {faces(mesh["bytes"]) for mesh in panda.glb} == {12}
    bear = polars.read_parquet(data / "*.parquet")
    assert set(bear["prompt"]) == every
    assert faces(bear["glb"].struct.field("bytes")[0]) == 12
    assert set(bear["meta"].struct.field("k")) == {None, "", "v", "vv"}
    sql = f"SELECT prompt, glb.bytes FROM '{data}/*.parquet' WHERE meta['k'] = 'vv'"
    found = duckdb.execute(sql).fetchall()
    assert {prompt for prompt, _ in found} == {"a toy 2", "a toy 5", "a toy 8"}
    assert faces(found[0][1]) == 12
    for format in FORMATS:
        manifest = pd.read_parquet(frozen / format / "manifest.parquet")
        assert set(manifest.prompt) == every
        assert all(len(sums["mesh.glb"]) == 64 for sums in manifest.sha256)


def test_a_folders_meshes_are_where_its_table_says(frozen: Path) -> None:
    for table in (frozen / "files" / "data").glob("*/metadata.parquet"):
        for name in pd.read_parquet(table).glb_file_name:
            assert faces((table.parent / name).read_bytes()) == 12


def card(folder: Path) -> Any:
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def test_a_card_says_no_more_than_the_data_holds(
    store: Store, frozen: Path, tmp_path: Path
) -> None:
    """Pictures alone are loaded as such; what `datasets` knows no kind of is in no pattern."""
    from huggingface_hub import DatasetCardData

    for format in FORMATS:
        about = card(frozen / format)
        assert DatasetCardData(**about).to_dict().keys() >= {"license", "configs", "tags"}
    freeze(store, str(tmp_path / "views"), DatasetRequest(include=("views/*.png",)))
    [config] = card(tmp_path / "views")["configs"]
    assert config["data_files"][0]["path"][1].endswith("/*/views/mesh_1.png")
    freeze(store, str(tmp_path / "fields"), DatasetRequest(include=("field.safetensors",)))
    assert "configs" not in card(tmp_path / "fields")
    assert kind_of("turntable.mp4") is None, "it could not be decoded without ffmpeg"
