"""The soak test, shortened, and that what it checks can fail."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from swift_server import unavailable
from task_samples import fill, make, spec

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from soak_checks import check_attempts, check_litter, check_rows, check_tables
from soak_faults import Scene
from soak_ledger import Folder, Ledger
from soak_manifest import Manifest
from soak_outside import compiled_clock
from soak_processes import MARK, ROOT, Process, marked
from soak_schedule import Schedule

from tasks.records.attempts import start_attempt
from tasks.store import open_store
from tasks.store.interface import Store
from tasks.tables.write import compact_store

DUCK = f"assets/{spec('a duck').asset_id}"


@pytest.fixture
def place(tmp_path: Path) -> tuple[Store, Ledger]:
    """A store whose assets the ledger has seen."""
    store = open_store(tmp_path / "store")
    fill(store, tmp_path)
    compact_store(store)
    ledger = Ledger(Folder(tmp_path / "store"), tmp_path / "acknowledged.jsonl")
    ledger.look()
    assert len(ledger.assets) == 4
    return store, ledger


def test_a_store_in_order_has_no_violations(place: tuple[Store, Ledger]) -> None:
    store, ledger = place
    assert ledger.check() == []
    assert check_rows(store, ledger) + check_tables(store, set()) == []
    assert check_attempts(ledger) + check_litter(ledger, []) == []


def rewrite(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "word"),
    [(Path.unlink, "lost"), (lambda path: path.write_bytes(b"x"), "changed"), (rewrite, "again")],
)
@pytest.mark.parametrize("name", ["a01/mesh.glb", "manifest.json"])
def test_acknowledged_files_are_watched(
    place: tuple[Store, Ledger], tmp_path: Path, harm: Callable[[Path], None], word: str, name: str
) -> None:
    harm(tmp_path / "store" / DUCK / name)
    [problem] = place[1].check()
    assert problem.startswith(f"{DUCK}/{name}: acknowledged")
    assert word in problem


def test_an_asset_that_is_committed_before_its_files_is_found(
    place: tuple[Store, Ledger], tmp_path: Path
) -> None:
    store, ledger = place
    make(store, tmp_path, spec("a boat"), "run3")
    (tmp_path / "store" / "assets" / spec("a boat").asset_id / "a01" / "mesh.glb").unlink()
    ledger.look()
    assert [line.rpartition(": ")[2] for line in ledger.check()] == [
        "committed, but it is not there"
    ]


def test_rows_that_are_lost_doubled_or_open_are_found(
    place: tuple[Store, Ledger], tmp_path: Path
) -> None:
    store, ledger = place
    start_attempt(store, spec("a boat"), "run3")
    assert len(check_attempts(ledger)) == 1
    assert check_attempts(ledger, {spec("a boat").asset_id}) == [], "no manifest asks for it"
    make(store, tmp_path, spec("a pen"), "run1")
    [part] = (tmp_path / "store/tables/assets/run_id=run1").iterdir()
    (part.parents[1] / "run_id=other").mkdir()
    twice = part.parents[1] / "run_id=other" / part.name
    twice.write_bytes(part.read_bytes())
    ledger.look()
    assert any("2 rows of status ok" in line for line in check_rows(store, ledger))
    part.unlink()
    twice.unlink()
    assert any("0 rows of status ok" in line for line in check_rows(store, ledger))
    assert any("is missing" in line for line in check_tables(store, set()))
    assert check_tables(store, {"run1"}) == [], "a part of this run was deleted on purpose"


def test_litter_is_found(place: tuple[Store, Ledger], tmp_path: Path) -> None:
    torn = tmp_path / "scratch" / "fields" / ".x.checkpoint.1.tmp"
    torn.parent.mkdir(parents=True)
    torn.touch()
    place[1].shelf.leave_litter(f"{DUCK}/a99")
    assert len(check_litter(place[1], [tmp_path / "scratch"])) == 2


def test_a_process_that_outlives_its_parent_is_found(tmp_path: Path) -> None:
    child = "import time; print('here', flush=True); time.sleep(60)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    mark = f"test-{os.getpid()}"
    process = Process("parent", [sys.executable, "-c", code], os.environ | {MARK: mark}, tmp_path)
    try:
        deadline = time.monotonic() + 30
        while not process.out.read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(marked(mark)) == 2
        process.send(signal.SIGKILL)
        assert process.wait(30) is not None
        [(orphan, line)] = marked(mark).items()
        assert "time.sleep(60)" in line
        os.kill(orphan, signal.SIGKILL)
    finally:
        for pid in marked(mark):
            os.kill(pid, signal.SIGKILL)


def test_every_kind_strikes_once_before_any_strikes_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = itertools.count(step=5.0)
    monkeypatch.setattr("soak_schedule.time.monotonic", lambda: next(clock))
    strikes = {name: lambda scene: True for name in "abc"} | {"never": lambda scene: False}
    schedule = Schedule(strikes, random.Random(0))
    names = [schedule.strike(cast(Scene, None), finished) for finished in range(24)]
    struck = [name for name in names if name]
    assert [sorted(struck[n : n + 3]) for n in (0, 3)] == [["a", "b", "c"]] * 2
    assert schedule.missed["never"] >= 1
    assert set(schedule.struck) == set("abc")


def test_an_edited_manifest_has_its_rows_in_another_order_and_one_other_asset(
    tmp_path: Path,
) -> None:
    manifest = Manifest(tmp_path / "manifest.csv", 4)
    manifest.grow(0)
    before = manifest.path.read_text().splitlines()
    manifest.edit(random.Random(0))
    after = manifest.path.read_text().splitlines()
    assert after[0] == before[0]
    assert len(set(before) & set(after)) == len(before) - 1
    assert [line.partition(",")[0] for line in after[1:]] == ["s0003", "s0002", "s0001", "s0000"]


@pytest.mark.system  # it needs a C compiler
def test_the_clock_of_a_run_is_set_back(tmp_path: Path) -> None:
    library = compiled_clock(tmp_path)
    code = "import time; time.sleep(0.01); print(time.time())"
    variables = os.environ | {"LD_PRELOAD": str(library), "CLOCK_BACK": "3600"}
    printed = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True)
    assert 3600 <= time.time() - float(printed.stdout) < 4500


@pytest.mark.system
def test_nothing_is_lost(tmp_path: Path) -> None:
    """Half a minute of benchmarks/soak.py on S3; `make soak` takes longer, and a folder too."""
    if reason := unavailable(tmp_path):
        pytest.skip(reason)
    command = [sys.executable, str(ROOT / "benchmarks/soak.py"), "--minutes", "0.5"]
    command += ["--kinds", "5", "--store", "swift"]
    ended = subprocess.run(
        [*command, "--ahead", "4", "--seed", "3", "--folder", str(tmp_path), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    facts = json.loads(ended.stdout)
    assert facts["violations"] == []
    assert facts["kinds"] >= 5
    assert facts["assets"] >= 2
    assert list(tmp_path.iterdir()) == [], "evidence is kept for violations alone"
