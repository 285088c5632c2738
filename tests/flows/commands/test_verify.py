"""`sjc verify`: what it says, and its exit codes."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from command_line import SJC, Said
from task_samples import all_tables, fill, make, spec

from flows.scratch import sole_user
from tasks.store import open_store
from tasks.tables.schemas import SCHEMAS
from tasks.tables.write import compact_store


@pytest.fixture
def mesh(tmp_path: Path) -> Path:
    """A finished asset's mesh in ./store."""
    make(open_store(tmp_path / "store"), tmp_path, spec(), "run1")
    return tmp_path / "store" / "assets" / spec().asset_id / "a01" / "mesh.glb"


def test_damage_is_told_and_mended(mesh: Path, sjc: Callable[..., Said], tmp_path: Path) -> None:
    said = sjc("verify")
    assert (said.code, said.out) == (0, f"{tmp_path / 'store'}: whole\n")
    mesh.chmod(0o600)
    mesh.write_bytes(b"torn")
    said = sjc("verify", "--quiet")
    assert said.code == 1
    assert said.out.endswith("mesh.glb: is damaged: 4 bytes instead of 18\n")
    assert "sjc verify --repair" in said.err
    said = sjc("verify", "--repair", "--json")
    assert said.code == 0
    told = json.loads(said.out)
    assert len(told["findings"]) == 1
    assert told["left"] == []
    assert told["planned"][0].startswith(f"assets/{spec().asset_id}: set aside (assets/")
    assert "run its manifest" in told["done"][0]
    assert sjc("verify").code == 0


def test_more_than_one_asset_is_set_aside_on_request_only(
    mesh: Path, sjc: Callable[..., Said], tmp_path: Path
) -> None:
    store = open_store(tmp_path / "store")
    make(store, tmp_path, spec("a pig"), "run1")
    for path in (tmp_path / "store" / "assets").glob("*/a01/mesh.glb"):
        path.write_bytes(b"torn")
    before = {key: store.get_bytes(key) for key in store.list()}
    said = sjc("verify", "--repair", "--quiet")
    assert said.code == 1
    assert said.out.count(": set aside (") == said.out.count("to do: assets/") == 2
    assert "2 assets and 0 other documents would be set aside" in said.err
    assert "sjc verify --repair --yes" in said.err
    told = json.loads(sjc("verify", "--repair", "--json").out)
    assert (len(told["planned"]), told["done"], len(told["left"])) == (3, [], 2)
    assert {key: store.get_bytes(key) for key in store.list()} == before
    said = sjc("verify", "--repair", "--yes", "--quiet")
    assert said.code == 0
    assert said.out.count("run its manifest to make it again") == 2


def test_a_file_without_permission_is_reported_and_nothing_repaired(
    mesh: Path, sjc: Callable[..., Said], tmp_path: Path
) -> None:
    """As any user but root has it."""
    marker = mesh.parents[1] / "manifest.json"
    before = marker.read_bytes()
    user = ["setpriv", "--bounding-set=-dac_override,-dac_read_search",
            "--inh-caps=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []  # fmt: skip
    repair = ["--repair", "--yes"]
    cases = [(0o000, []), (0o000, repair), (0o000, [*repair, "--json"]), (0o200, repair)]
    for mode, options in cases:
        mesh.chmod(mode)
        said = subprocess.run(
            [*user, *SJC, "verify", *options], cwd=tmp_path, capture_output=True, text=True
        )
        assert said.returncode == 3, said
        assert f"Cannot read {mesh}: permission denied" in said.stdout
        assert "--repair" not in said.stdout + said.stderr
        assert marker.read_bytes() == before
    mesh.chmod(0o600)
    assert sjc("verify").code == 0


def test_what_a_finished_asset_left_in_the_scratch_folder_goes(
    mesh: Path, sjc: Callable[..., Said], tmp_path: Path
) -> None:
    folders = [tmp_path / ".sjc" / "assets" / name for name in (spec().asset_id, "0" * 16)]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "mesh.glb").touch()
    with sole_user(tmp_path / ".sjc"):
        said = sjc("verify", "--repair")
    assert said.code == 2
    assert "another run uses .sjc" in said.err
    assert sjc("verify").code == 0
    assert folders[0].exists()
    assert sjc("verify", "--repair").code == 0
    assert [folder.exists() for folder in folders] == [False, True]


@pytest.mark.parametrize("place", ["local", "s3"])
def test_all_tables_come_back_from_the_json(
    place: str, sjc: Callable[..., Said], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = str(tmp_path / "store") if place == "local" else request.getfixturevalue("bucket_url")
    store = open_store(url)
    fill(store, tmp_path)
    compact_store(store)
    make(store, tmp_path, spec("a boat"), "run3")
    before = all_tables(store)
    assert all(before.values())
    for key in list(store.list("tables/")):
        store.delete(key)
    if place == "local":
        shutil.rmtree(tmp_path / "store" / "tables")
    said = sjc("verify", "--store", url, "--quiet")
    assert said.code == 1
    assert said.out.count("rows are missing and 0 have nothing behind them") == len(SCHEMAS)
    said = sjc("verify", "--repair", "--store", url, "--quiet")
    assert said.code == 0
    assert "tables: made again from the store's JSON" in said.out
    assert all_tables(store) == before
    assert sjc("verify", "--store", url).code == 0


def end_of_data(path: Path, column: str) -> int:
    """Where the last byte of a column's values is: other bytes of the file may mean nothing."""
    file = pq.read_metadata(path)
    chunk = file.row_group(0).column(file.schema.names.index(column))
    begin = chunk.dictionary_page_offset or chunk.data_page_offset
    return int(begin + chunk.total_compressed_size - 1)


def test_a_flipped_byte_in_a_table_is_an_error_that_names_the_file(
    sjc: Callable[..., Said], tmp_path: Path
) -> None:
    store = open_store(tmp_path / "store")
    fill(store, tmp_path)
    compact_store(store)
    [path] = (tmp_path / "store/tables/views/compacted").iterdir()
    path.chmod(0o600)
    content = bytearray(path.read_bytes())
    content[end_of_data(path, "clip_score")] ^= 1
    path.write_bytes(content)
    said = sjc("query", "SELECT * FROM views", "--format", "csv")
    assert (said.code, said.out) == (3, "")
    assert said.err.startswith(f"sjc: {path} is damaged (")
    assert f"`sjc verify --repair --store {store.url}`" in said.err
    assert sjc("verify", "--repair").code == 0
    assert sjc("query", "SELECT * FROM views", "--format", "csv").code == 0


def test_what_died_within_a_write_goes_from_store_and_scratch_folder(
    mesh: Path, sjc: Callable[..., Said], tmp_path: Path
) -> None:
    checkpoint = tmp_path / ".sjc" / "fields" / f"{'0' * 16}.checkpoint"
    torn = [
        checkpoint.with_name(f".{checkpoint.name}.123.tmp"),
        checkpoint.with_name(f".{checkpoint.name}.fetched.0123abcd"),
        mesh.with_name(".mesh.glb.0badf00d"),
    ]
    checkpoint.parent.mkdir(parents=True)
    for path in (checkpoint, *torn):
        path.write_bytes(b"half")
    assert sjc("verify", "--repair").code == 0
    assert [path.exists() for path in torn] == [False, False, True]  # the store's is too young
    assert sjc("verify", "--older", "0").code == 1
    assert sjc("verify", "--repair", "--older", "0").code == 0
    assert [path.exists() for path in (checkpoint, *torn)] == [True, False, False, False]


def test_there_must_be_a_store(sjc: Callable[..., Said]) -> None:
    said = sjc("verify", "--store", "nowhere")
    assert (said.code, "no store at" in said.err) == (3, True)
