"""`sjc curate`, `sjc duplicates` and `sjc diff`: what users type, read, and get as exit codes."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Said
from task_samples import fill, make, spec

from tasks.datasets.freeze import DatasetRequest
from tasks.records.runs import start_run
from tasks.store import open_store
from tasks.store.interface import Store
from tasks.tables.write import record_run

Call = Callable[..., Said]
ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def store(tmp_path: Path) -> Store:
    """A store of two runs where the commands look for one."""
    (tmp_path / "made").mkdir()
    opened = open_store(tmp_path / "store")
    fill(opened, tmp_path / "made")
    return opened


def test_curate_says_what_it_did_and_where(sjc: Call, tmp_path: Path) -> None:
    said = sjc("curate", "--where", "list_contains(tags, 't')", "-o", "out")
    assert (said.code, said.out) == (0, f"{tmp_path}/out/README.md\n")
    assert said.err.splitlines()[0].startswith("1 of 1 assets, ")
    assert "1 assets of 1 prompts (1 train, 0 val, 0 test)" in said.err
    again = sjc("curate", "--where", "list_contains(tags, 't')", "-o", "out", "--json", "-q")
    assert (again.code, again.err) == (0, "")
    about = json.loads(again.out)
    assert (about["url"], about["assets"]) == (f"{tmp_path}/out", 1)
    for option in ("similar", "fractions", "shard_megabytes", "shard_assets", "name"):
        default = getattr(DatasetRequest(), option)
        found = about["request"][option]
        assert found == (list(default) if isinstance(default, tuple) else default)
    said = sjc("curate", "--manifest", "made/m.csv", "-o", "mine", "--format", "webdataset")
    assert said.code == 0
    assert "2 assets of 2 prompts" in said.err  # duck and car
    assert "`m.csv`" in (tmp_path / "mine" / "README.md").read_text()


WRONG: dict[str, tuple[int, str]] = {
    "-o out --where facez>3": (2, "--where: "),
    "-o out --where faces<0": (2, "no finished asset matches"),
    "-o out --splits 0.8,0.2": (2, "--splits '0.8,0.2': write three shares"),
    "-o out --splits 0,0,0": (2, "--splits"),
    "-o out --splits nan,1,1": (2, "--splits"),
    "-o out --include *.stl": (2, "--include *.stl"),
    "-o out --manifest nosuch.csv": (2, "nosuch.csv:1: file: does not exist; check the path"),
    "-o made": (2, "has other files in it"),
    "-o made/m.csv": (2, "is a file; name a folder"),
    "-o made/m.csv/x": (3, "choose another -o"),
    "-o ftp://host/x": (3, "is not a store"),
    "-o out --links": (2, "--links"),
    "-o out --store nowhere": (3, "There is no store at"),
}


@pytest.mark.parametrize("options", WRONG)
def test_a_mistake_is_one_message_and_nothing_is_written(
    options: str, sjc: Call, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    said = sjc("curate", *options.split())
    code, message = WRONG[options]
    assert (said.code, said.out) == (code, ""), said.err
    assert said.err.startswith(("sjc: ", "nosuch.csv:"))
    assert message in said.err.splitlines()[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_damaged_store_is_told(sjc: Call, tmp_path: Path) -> None:
    mesh = next((tmp_path / "store" / "assets").glob("*/a01/mesh.glb"))
    mesh.write_text("torn")
    said = sjc("curate", "-o", "out", "--format", "webdataset", "-q")
    assert (said.code, len(said.err.splitlines())) == (3, 1)
    assert f"{mesh} is damaged (4 bytes instead of " in said.err
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_ctrl_c_leaves_what_the_next_one_goes_on_with(
    store: Store, sjc: Call, tmp_path: Path
) -> None:
    for seed in range(1, 9):
        make(store, tmp_path / "made", spec("a pig", seed), "run1")
    script = (
        "import sys, time; import tasks.datasets.export as parts\n"
        "from flows.commands.main import main\n"
        "read = parts.read_file\n"
        "parts.read_file = lambda *a: (time.sleep(0.2), read(*a))[1]\n"
        "sys.argv = ['sjc', 'curate', '-o', 'out', '--format', 'webdataset',\n"
        "            '--shard-assets', '1', '-q']\n"
        "main()"
    )
    command = [sys.executable, "-c", script]
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("out/data/*.tar")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err == "sjc: interrupted; run the same command again to continue\n"
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert not list((tmp_path / "out").rglob(".*"))
    made = {path: path.stat().st_ino for path in tmp_path.glob("out/data/*.tar")}
    assert 0 < len(made) < 12
    said = sjc("curate", "-o", "out", "--format", "webdataset", "--shard-assets", "1", "-q")
    assert said.code == 0, said.err
    assert all(path.stat().st_ino == inode for path, inode in made.items())


def test_duplicates_of_a_store_and_of_a_manifest(store: Store, sjc: Call, tmp_path: Path) -> None:
    make(store, tmp_path / "made", spec("A duck!", 3), "run1")
    said = sjc("duplicates", "--format", "csv")
    (row,) = csv.DictReader(io.StringIO(said.out))
    assert (row["prompt_a"], row["prompt_b"], row["similarity"]) == ("A duck!", "a duck", "1.0")
    assert sjc("duplicates", "--where", "seed = 0", "--format", "json").out == "[]\n"
    (tmp_path / "m.csv").write_text("prompt,seed\na red chair,0-3\n=a red chairs,0\n")
    said = sjc("duplicates", "m.csv", "--similar", "0.7", "--format", "csv")
    (row,) = csv.DictReader(io.StringIO(said.out))
    assert (row["prompt_a"], row["count_a"], row["count_b"]) == ("'=a red chairs", "1", "4")
    assert "=a red chairs" in sjc("duplicates", "m.csv", "--similar", "0.7").out
    (tmp_path / "m.csv").write_text("prompt\n\n,\n")
    assert sjc("duplicates", "m.csv").code == 2


def test_diff_shows_what_changed_and_fails_for_new_failures(
    store: Store, sjc: Call, tmp_path: Path
) -> None:
    said = sjc("diff", "run1", "run2")
    assert said.code == 0
    first, _, *lines = said.out.splitlines()
    assert first == (
        "run1 -> run2: 1 added, 1 removed, 0 fixed, 0 broken, 0 remade, 0 measured, 1 same"
    )
    assert [line.split()[:2] for line in lines] == [["added", "car"], ["removed", "pig"]]
    rows = json.loads(sjc("diff", "previous", "latest", "--format", "json").out)
    assert {row["row_id"]: row["change"] for row in rows}["duck"] == "same"
    assert len(sjc("diff", "run1", "run1").out.splitlines()) == 1
    unknown = sjc("diff", "run1", "run9")
    assert (unknown.code, unknown.out, len(unknown.err.splitlines())) == (2, "", 1)
    assert "there is no run 'run9'" in unknown.err
    assert "its latest: run2 (" in unknown.err
    make(store, tmp_path / "made", spec("a bird"), "run3", "failed")
    entry = {"line": 2, "row_id": "bird", "asset_id": spec("a bird").asset_id, "tags": [],
             "meta": {}, "outcome": "failed"}  # fmt: skip
    record_run(store, {**start_run(store, "run3", "m.csv", "", [], {}), "entries": [entry]})
    broken = sjc("diff", "run2", "run3")
    assert broken.code == 1
    assert "loss is NaN" in broken.out
