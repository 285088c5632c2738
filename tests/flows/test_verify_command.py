"""`sjc verify`: what it says, and its exit codes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Said
from task_samples import make, spec

from flows.scratch import sole_user
from tasks.store import open_store


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
    assert "run its manifest" in told["done"][0]
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


def test_what_died_within_a_write_goes_from_store_and_scratch_folder(
    mesh: Path, sjc: Callable[..., Said], tmp_path: Path
) -> None:
    checkpoint = tmp_path / ".sjc" / "fields" / f"{'0' * 16}.checkpoint"
    torn = [
        checkpoint.with_name(f".{checkpoint.name}.123.tmp"),
        mesh.with_name(".mesh.glb.0badf00d"),
    ]
    checkpoint.parent.mkdir(parents=True)
    for path in (checkpoint, *torn):
        path.write_bytes(b"half")
    assert sjc("verify", "--repair").code == 0
    assert [path.exists() for path in torn] == [False, True]  # the store's is too young
    assert sjc("verify", "--older", "0").code == 1
    assert sjc("verify", "--repair", "--older", "0").code == 0
    assert [path.exists() for path in (checkpoint, *torn)] == [True, False, False]


def test_there_must_be_a_store(sjc: Callable[..., Said]) -> None:
    said = sjc("verify", "--store", "nowhere")
    assert (said.code, "no store at" in said.err) == (3, True)
