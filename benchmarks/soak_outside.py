"""Faults of what is around a run: its clock, its disks, Prefect's database, and what people do.

Like all faults, each strikes once and says whether it found a target.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import sqlite3
import subprocess
from functools import partial
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM
from typing import TYPE_CHECKING

from soak_manifest import SMALL
from soak_processes import run_here

if TYPE_CHECKING:
    from soak_faults import Scene

CLOCK = Path(__file__).with_name("soak_clock.c")
# Seconds. S3 servers refuse requests whose time is more than 15 minutes wrong.
BACK_FOLDER, BACK_S3 = 3600, 600
LOCKED_SECONDS = 8.0  # Prefect's database
AWAY_SECONDS = 4.0  # a store's disk
FIRST_RUNS = "first"
FIRST_SEED = 100_000  # of assets that are in no other manifest


def set_clock_back(scene: Scene) -> bool:
    """The next run of a runner lives in the past, clock and all."""
    running = [runner for runner in scene.runners if runner.flow()]
    if not running:
        return False
    library = compiled_clock(scene.folder)
    runner = scene.chance.choice(running)
    back = BACK_S3 if scene.place.proxy else BACK_FOLDER
    runner.once = {"LD_PRELOAD": str(library), "CLOCK_BACK": str(back)}
    assert runner.process is not None
    runner.process.send(SIGTERM)
    return True


def compiled_clock(folder: Path) -> Path:
    """The library that sets a clock back, in a folder; needs a C compiler."""
    library = folder / "clock.so"
    if not library.exists():
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, CLOCK, "-ldl"], check=True)
    return library


def delete_scratch(scene: Scene) -> bool:
    """`rm -rf .sjc` under a run."""
    running = [runner for runner in scene.runners if runner.flow()]
    if not running:
        return False
    shutil.rmtree(scene.chance.choice(running).scratch, ignore_errors=True)
    return True


def edit_manifest(scene: Scene) -> bool:
    """Rows in another order, with other tags, and one that asks for something else."""
    scene.manifest.edit(scene.chance)
    return True


def raise_format(scene: Scene) -> bool:
    """A newer program has marked the store: this one must neither run nor compact."""
    shelf = scene.place.shelf
    if (content := shelf.read("store.json")) is None:
        return False
    newer = {name: version + 1 for name, version in json.loads(content).items()}
    shelf.write("store.json", json.dumps(newer).encode())
    words = {"run": [str(scene.manifest.path), "--devices", "cpu"], "compact": []}
    for name, own in words.items():
        scratch = ["--scratch", str(scene.folder / "newer")] if name == "run" else []
        out = scene.folder / f"newer-{name}.out"
        ending = run_here(name, [name, *own, *scratch, "--store", scene.place.url], out)
        if ending.code != 3 or "use a newer sjc" not in ending.said:
            scene.violations.append(f"{name} of a newer store: {ending.code}, {ending.said!r}")
    shelf.write("store.json", content)
    return True


def lock_database(scene: Scene) -> bool:
    """Another program holds Prefect's database for longer than SQLite's drivers wait."""
    database = sqlite3.connect(_database(scene), timeout=1, isolation_level=None)
    try:
        database.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError:  # it is being written, or replaced
        database.close()
        return False
    scene.after(LOCKED_SECONDS, database.close)
    return True


def replace_database(scene: Scene) -> bool:
    """Prefect's server finds an empty database after it was killed."""
    process = scene.server.process
    if process is None or process.ended():
        return False
    process.send_group(SIGKILL)
    process.wait(10)
    for path in _database(scene).parent.glob("prefect.db*"):
        path.unlink()
    return True


def _database(scene: Scene) -> Path:
    return Path(scene.variables["PREFECT_HOME"], "prefect.db")


def start_first_runs(scene: Scene) -> bool:
    """Two runs at once, of assets of their own, with a PREFECT_HOME that nobody has used."""
    if scene.busy() or FIRST_RUNS in {c.name.partition("-")[0] for c in scene.commands}:
        return False
    variables = {k: v for k, v in scene.variables.items() if k != "PREFECT_API_URL"}
    variables["PREFECT_HOME"] = str(scene.folder / f"home{len(scene.commands)}")
    for n in range(2):
        path = scene.folder / f"first{n}.csv"
        row = {"id": f"first{n}", "prompt": "a stool", **SMALL, "seed": FIRST_SEED + n}
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
            writer.writerow(row)
        scratch = scene.folder / f"first{n}"
        words = (str(path), "--devices", "cpu", "--scratch", str(scratch))
        scene.command("run", *words, called=FIRST_RUNS, variables=variables)
    return True


def take_store_away(scene: Scene) -> bool:
    """The disk of a store is not mounted for a while: an empty folder is in its place."""
    store = Path(scene.place.url)
    if not _can_move(scene, store):
        return False
    away = store.with_name("store.away")
    store.rename(away)
    store.mkdir()
    scene.after(AWAY_SECONDS, partial(_bring_back, scene, store, away))
    return True


def _bring_back(scene: Scene, store: Path, away: Path) -> None:
    empty = store.with_name("store.empty")
    store.rename(empty)
    away.rename(store)
    names = [str(path.relative_to(empty)) for path in empty.rglob("*") if path.is_file()]
    if found := [name for name in names if not name.startswith(".leases/")]:
        scene.violations.append(f"a run wrote into the empty place of its store: {found[:5]}")
    shutil.rmtree(empty)


def link_store(scene: Scene) -> bool:
    """The store moves to another folder, and a link leads there."""
    store = Path(scene.place.url)
    if store.is_symlink() or not _can_move(scene, store):
        return False
    elsewhere = store.with_name(f"elsewhere{scene.chance.randrange(10**6)}")
    store.rename(elsewhere)
    store.symlink_to(elsewhere)
    return True


def _can_move(scene: Scene, store: Path) -> bool:
    """Whether it is a store; a run that begins, and would begin a new one, waits."""
    if scene.flow() is None or scene.busy() or not (store / "store.json").exists():
        return False
    for runner in scene.runners:
        if runner.process and not runner.flow():
            runner.process.send(SIGSTOP)
            scene.after(2 * AWAY_SECONDS, partial(runner.process.send, SIGCONT))
        runner.hold(2 * AWAY_SECONDS)
    return True


def use_up_inodes(scene: Scene) -> bool:
    """The disk of the store takes no new file for a while; only where it is a disk of its own."""
    assert scene.place.disk is not None
    usage = os.statvfs(scene.place.disk)
    used = usage.f_files - usage.f_ffree
    if scene.flow() is None or not _set_inodes(scene.place.disk, used):
        return False
    scene.after(AWAY_SECONDS, partial(_set_inodes, scene.place.disk, usage.f_files))
    return True


def _set_inodes(disk: Path, number: int) -> bool:
    command = ["mount", "-o", f"remount,nr_inodes={number}", str(disk)]
    return subprocess.run(command, capture_output=True).returncode == 0
