"""Disks that are full, read-only or closed: what is said, what stays, and that it goes on later."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from command_line import TINY, Said
from small_disk import SmallDisk, mounted
from task_samples import make, make_run, spec

import flows.generate
from flows.context import surrounded_by
from flows.errors import UsageError, reported
from flows.pipeline import report_progress
from flows.prefect_server import environment
from flows.progress.terminal import Lines
from flows.scratch import sole_user
from sjc_engine import Recipe, load_field
from sjc_engine.priors.denoiser import load_prior
from sjc_engine.worker.__main__ import Worker
from sjc_engine.worker.running_scene import RunningScene
from tasks.devices.pool import DevicePool
from tasks.records.verify import verify_store
from tasks.store import open_store
from tasks.store.disk import is_full
from tasks.store.interface import AlreadyCommitted, StoreError, TakesNoMore
from tasks.tables.read import query

FULL = "the disk is full; free space there, then run the same command again"
NO_INODES = r"the file system has no inodes left \(`df -i` shows it\); delete files there"
Call = Callable[..., Said]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    yield from mounted(tmp_path / "disk", "4m")


def hidden(folder: Path) -> list[str]:
    """Temporary files; there should be none. (Leases are empty and stay.)"""
    return [str(path) for path in folder.rglob(".*") if path.name != ".leases"]


@pytest.fixture
def runner(
    judge: str, pools: Callable[..., DevicePool]
) -> Callable[[Path, str, Path], Callable[..., Any]]:
    """Makes what runs the flow on the first entries of a manifest; one process serves all runs."""

    def make_runner(manifest: Path, store: str, scratch: Path) -> Callable[..., Any]:
        def run(limit: int = 1) -> Any:
            with surrounded_by(pool=pools("cpu")):
                return flows.generate.generate(
                    str(manifest),
                    store=store,
                    scratch=str(scratch),
                    devices=["cpu"],
                    overrides={**TINY, "judge": judge},
                    limit=limit,
                    return_state=True,
                )

        return run

    return make_runner


# --- the store ---------------------------------------------------------------------------------


def test_a_full_store_keeps_what_it_has(disk: SmallDisk, tmp_path: Path) -> None:
    store = open_store(disk.path / "store")
    make(store, tmp_path, spec(), "run1")
    ballast = disk.fill()
    before = list(store.list())
    for replace in (False, True):
        with pytest.raises(TakesNoMore, match=f"^Cannot write {disk.path}/store/.*: {FULL}"):
            store.put_bytes("assets/x/a01/mesh.glb", bytes(100_000), replace=replace)
    assert list(store.list()) == before
    assert hidden(disk.path) == []
    ballast.unlink()
    assert verify_store(store) == []


def test_a_read_only_store_is_read(disk: SmallDisk, sjc: Call, tmp_path: Path) -> None:
    place = disk.path / "store"
    make_run(open_store(place), tmp_path, "run1", "duck,a duck,,\n")
    disk.make_read_only()
    assert sjc("assets", "--store", str(place)).code == 0
    assert sjc("verify", "--store", str(place)).code == 0
    (tmp_path / "one.csv").write_text("prompt\na pig\n")
    for command in (["run", "one.csv"], ["compact"], ["verify", "--repair"], ["report"]):
        said = sjc(*command, "--store", str(place))
        assert said.code == 3, command
        assert f"{place}" in said.err
        assert said.err.endswith("it is on a read-only file system; choose another --store.\n")
    assert not (tmp_path / ".sjc").exists(), "found before anything starts"


def test_a_download_blames_its_own_disk(disk: SmallDisk, tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    store.put_bytes("x", bytes(100_000))
    disk.fill()
    with pytest.raises(StoreError, match=f"^Cannot write {disk.path}/copy: {FULL}") as caught:
        store.download("x", disk.path / "copy")
    assert not isinstance(caught.value, TakesNoMore | AlreadyCommitted)
    assert hidden(disk.path) == []


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_a_run_into_a_full_store_goes_on_when_there_is_room(
    disk: SmallDisk, tmp_path: Path, runner: Callable[..., Any]
) -> None:
    (tmp_path / "m.csv").write_text("id,prompt\nduck,a duck\ntank,a toy tank\n")
    store = open_store(disk.path / "store")
    run = runner(tmp_path / "m.csv", store.url, tmp_path / "scratch")
    assert run(1).is_completed()
    first = {key: store.get_bytes(key) for key in store.list("assets/")}
    ballast = disk.fill(leave=30_000)  # for the JSON of an attempt, and no mesh
    problem = run(2).result(raise_on_failure=False)
    assert isinstance(problem, TakesNoMore), problem
    assert FULL in str(problem)
    assert hidden(disk.path / "store") == []
    assert {key: store.get_bytes(key) for key in first} == first
    ballast.unlink()
    (field,) = (tmp_path / "scratch" / "fields").glob("*.safetensors")
    assert run(2).is_completed()
    rows = query(store, "SELECT status, count(*) AS n FROM assets GROUP BY ALL ORDER BY ALL")
    assert rows.to_pylist() == [{"status": "interrupted", "n": 1}, {"status": "ok", "n": 2}]
    assert not field.exists(), "it was gone on with, and is in the store by now"
    assert verify_store(store) == []


def test_a_disk_without_inodes_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for disk in mounted(tmp_path / "disk", "4m,nr_inodes=40"):
        store = open_store(disk.path / "store")
        free = os.statvfs(disk.path).f_favail
        assert not is_full(disk.path)
        for k in range(free):
            (disk.path / f"file{k}").touch()
        assert is_full(disk.path)
        with pytest.raises(TakesNoMore, match=f"^Cannot write {disk.path}/store/x: {NO_INODES}"):
            store.put_bytes("x", b"data")
        (disk.path / "file0").unlink()  # for a temporary file, which is removed again
        with pytest.raises(TakesNoMore, match=f"^Cannot write {disk.path}/store/x: {NO_INODES}"):
            store.put_bytes("x", b"data")
        (disk.path / "file0").touch()
        monkeypatch.setenv("PREFECT_HOME", str(disk.path / "home"))
        with pytest.raises(UsageError, match=f"^PREFECT_HOME {disk.path}/home: {NO_INODES}"):
            environment.apply()
        for k in range(free):
            (disk.path / f"file{k}").unlink()
        assert not is_full(disk.path)
        store.put_bytes("x", b"data")
        disk.fill()
        with pytest.raises(TakesNoMore, match=FULL):
            store.put_bytes("y", bytes(100_000))


# --- the scratch folder ------------------------------------------------------------------------


def test_a_scene_outlives_a_full_scratch_folder(disk: SmallDisk, capfd: Any) -> None:
    prior = load_prior("toybox")
    recipe = Recipe.for_prior("toybox", "draft").override(
        {"steps": 6, "grid_size": 32, "views_per_step": 1, "ray_step": 0.1}
    )
    about = spec().to_json() | {"recipe": recipe.to_json(), "prior_revision": prior.revision}
    paths = {"field": str(disk.path / "f.safetensors"), "checkpoint": str(disk.path / "f.ckpt")}
    message = {"scene": "duck", "spec": about, **paths}

    def step(run: RunningScene) -> None:
        engine = Worker("cpu", sys.stdout)
        engine.prior, engine.running = prior, [run]
        engine._step()

    run = RunningScene(message, prior)
    step(run)
    run.save()
    assert run.progress()["unsaved"] is None
    step(run)
    disk.fill()
    run.save()
    assert run.progress()["unsaved"] == f"{disk.path}: No space left on device"
    assert hidden(disk.path) == []
    assert RunningScene(message, prior).scene.step == 1, "the earlier checkpoint is whole"
    while not run.scene.done:
        step(run)
    run.write(run.scene.finish())  # there is room where the checkpoint was
    assert load_field(disk.path / "f.safetensors").resolution == 32
    assert not (disk.path / "f.ckpt").exists()
    assert "duck has no checkpoint of step 2" in capfd.readouterr().err


def test_one_warning_tells_that_there_are_no_checkpoints(capfd: Any) -> None:
    watch = Lines()
    for name in ("duck", "tank", "duck"):
        event = {"type": "progress", "step": 1, "steps": 9, "loss": 0.1}
        event["unsaved"] = "fields: No space left on device"
        report_progress(watch, name, event)
        report_progress(watch, name, event | {"unsaved": None})
    said = [line for line in capfd.readouterr().err.splitlines() if "step 1/9" not in line]
    assert said == [
        "warning: no checkpoints, assets continue without them: fields: No space left on device"
    ]


def test_a_field_that_has_no_room_at_all_is_not_a_failure_of_the_scene(
    disk: SmallDisk, capfd: Any
) -> None:
    """The asset is `interrupted`: the next run makes it without --retry-failed."""
    prior = load_prior("toybox")
    recipe = Recipe.for_prior("toybox", "draft").override({"steps": 1, "grid_size": 32})
    about = spec().to_json() | {"recipe": recipe.to_json(), "prior_revision": prior.revision}
    paths = {"field": str(disk.path / "f.safetensors"), "checkpoint": str(disk.path / "f.ckpt")}
    engine = Worker("cpu", sys.stdout)
    engine.prior = prior
    engine.running = [RunningScene({"scene": "duck", "spec": about, **paths}, prior)]
    disk.fill()
    engine._step()
    engine._report()
    out = capfd.readouterr().out
    assert '"type": "failed"' in out
    assert '"error_type": "ScratchFull"' in out
    assert hidden(disk.path) == []


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_an_asset_whose_files_have_no_room_goes_on_later(
    disk: SmallDisk, tmp_path: Path, runner: Callable[..., Any]
) -> None:
    (tmp_path / "m.csv").write_text("id,prompt\nduck,a duck\n")
    store = open_store(tmp_path / "store")
    run = runner(tmp_path / "m.csv", store.url, disk.path / "scratch")
    ballast = disk.fill(leave=90_000)  # for the field, and not for meshes and pictures
    assert run().message == "1 interrupted"
    sql = "SELECT status, error_type FROM assets ORDER BY attempt"
    assert query(store, sql).to_pylist() == [{"status": "interrupted", "error_type": "ScratchFull"}]
    ballast.unlink()
    (field,) = (disk.path / "scratch" / "fields").glob("*.safetensors")
    assert run().is_completed(), "without --retry-failed"
    assert [row["status"] for row in query(store, sql).to_pylist()] == ["interrupted", "ok"]
    assert not field.exists()


def test_a_scratch_folder_without_room_is_told_before_the_work(
    disk: SmallDisk, sjc: Call, tmp_path: Path
) -> None:
    disk.make_read_only()
    (tmp_path / "m.csv").write_text("prompt\na duck\n")
    said = sjc("run", "m.csv", "--scratch", str(disk.path / "sjc"))
    assert (said.code, f"--scratch {disk.path}/sjc" in said.err) == (2, True)
    assert not (tmp_path / "store").exists()
    with (
        pytest.raises(UsageError, match=f"--scratch {disk.path}/x: .*read-only"),
        sole_user(disk.path / "x"),
    ):
        pass


# --- Prefect's home, and what -o names ---------------------------------------------------------


def test_a_full_prefect_home_is_told_before_a_server_starts(
    disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(disk.path))
    disk.fill()
    with pytest.raises(UsageError, match=f"^PREFECT_HOME {disk.path}: {FULL}"):
        environment.apply()
    assert sorted(path.name for path in disk.path.iterdir()) == ["ballast"]


OUTPUTS = {
    "generate": ["generate", "a duck", "-o", "{out}"],
    "files": ["curate", "-o", "{out}"],
    "webdataset": ["curate", "-o", "{out}", "--format", "webdataset"],
    "parquet": ["curate", "-o", "{out}", "--format", "parquet"],
    "gallery": ["gallery", "-o", "{out}"],
    "plan": ["plan", "one.csv", "-o", "{out}.parquet"],
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_that_has_no_room_names_itself(
    name: str, disk: SmallDisk, sjc: Call, tmp_path: Path
) -> None:
    make_run(open_store(tmp_path / "store"), tmp_path, "run1", "duck,a duck,,\npig,a pig,,\n")
    (tmp_path / "one.csv").write_text("prompt\na pig\n")
    disk.fill()
    out = str(disk.path / "out")
    said = sjc(*(part.format(out=out) for part in OUTPUTS[name]))
    assert said.code in (2, 3), said.err
    last = said.err.splitlines()[-1]
    assert last.startswith(("sjc: -o ", "sjc: Cannot ")), said.err
    assert out in last
    assert FULL in last
    assert "Traceback" not in said.err
    assert hidden(disk.path) == []


def test_rows_that_find_no_room_are_told(tmp_path: Path) -> None:
    """`sjc query ... > FILE` on a full disk."""
    make_run(open_store(tmp_path / "store"), tmp_path, "run1", "duck,a duck,,\n")
    for format in ("csv", "json", "parquet"):
        script = "import sys; from flows.commands.main import main; sys.argv[0] = 'sjc'; main()"
        with open("/dev/full", "w") as full:
            ended = subprocess.run(
                [sys.executable, "-c", script, "query", "SELECT * FROM assets", "--format", format],
                cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            )  # fmt: skip
        assert (ended.returncode, ended.stderr) == (
            1, f"sjc: the output cannot be written: {FULL}\n",
        )  # fmt: skip


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_the_exit_code_is_right_whatever_stdout_and_stderr_take(
    unbuffered: str, tmp_path: Path
) -> None:
    (tmp_path / "good.csv").write_text("prompt\na pig\n")
    error = tmp_path / "error.txt"
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}

    def code(*arguments: str, before: str = "", **streams: Any) -> int:
        script = f"import sys; sys.argv[0] = 'sjc'; {before}\n"
        script += "from flows.commands.main import main; main()"
        command = [sys.executable, "-c", script, *arguments]
        environment["PYTHONPATH"] = str(Path(__file__).parents[2])
        return subprocess.run(command, cwd=tmp_path, env=environment, **streams).returncode

    with open("/dev/full", "w") as full:
        assert code("assets", "--store", "nosuch", stderr=full) == 3
        assert code("no-such-command", stderr=full) == 2
        assert code("check", "nosuch.csv", stdout=full, stderr=full) == 2
        assert code("check", "good.csv", stdout=full, stderr=full) == 1
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))"
    for size, message in ((5000, ""), (4080, "sjc: There is no")):
        error.write_text(" " * size)
        with error.open("a") as limited:
            assert code("assets", "--store", "nosuch", before=limit, stderr=limited) == 3
        assert error.read_text().strip() == message


@pytest.mark.parametrize("keeps", ["the name", "the context"])
def test_an_error_that_a_library_made_of_ctrl_c_is_ctrl_c(keeps: str, capfd: Any) -> None:
    named = "Error calling function `_ser_model`: KeyboardInterrupt: "
    error = RuntimeError(named if keeps == "the name" else "the query has failed")
    if keeps == "the context":
        error.__context__ = KeyboardInterrupt()
    with pytest.raises(typer.Exit) as ended, reported("go on"):
        raise error
    assert ended.value.exit_code == 130
    assert capfd.readouterr().err == "sjc: interrupted; go on\n"


def test_no_memory_is_one_message(capfd: Any) -> None:
    with pytest.raises(typer.Exit) as ended, reported():
        raise MemoryError
    assert ended.value.exit_code == 1
    assert capfd.readouterr().err.startswith("sjc: out of memory; close other programs, or ")
