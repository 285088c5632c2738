"""The flow with real prompts, the embedded prior and real engine processes, very small."""

import errno
import hashlib
import itertools
import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import scarce_engine
from command_line import BARE, TINY
from PIL import Image, ImageDraw
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
    TaskRunFilter,
    TaskRunFilterName,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import StateType, TaskRun
from prefect.states import Cancelled, Cancelling, State
from tiny_priors import build_zero123_prior

import flows.context
import flows.generate
import tasks.devices.engine
import tasks.stages.publish
from flows.context import surrounded_by
from flows.errors import UsageError
from flows.plan import make_plan
from flows.progress.terminal import Watcher
from flows.scratch import in_use, sole_user
from flows.settings import Settings
from sjc_engine import Recipe, load_field, load_prior, optimize
from sjc_engine.priors.tokens import text_limit, words_from
from tasks.devices.pool import DevicePool
from tasks.prefect_ui import cancel as cancelling
from tasks.records.attempts import finish_attempt, start_attempt
from tasks.records.documents import asset_manifest
from tasks.records.verify import verify_store
from tasks.store import locks, open_store
from tasks.store.interface import StoreError
from tasks.store.leases import FileLeases, leases
from tasks.tables.read import query, read_table
from tasks.tables.write import rebuild_tables

pytestmark = [pytest.mark.usefixtures("prefect_api"), pytest.mark.slow]

TABLES = ("assets", "views", "entries", "attempts", "history", "runs")


@pytest.fixture
def run(tmp_path: Path, judge: str, pools: Callable[..., DevicePool]) -> Any:
    """Runs the flow on the lines of a CSV with the store and the scratch folder of this test.

    warm: whether its engine processes are there already; else it starts and ends them, as runs do.
    """

    def run_flow(*lines: str, warm: bool = True, **parameters: Any) -> State[Any]:
        manifest = tmp_path / "manifest.csv"
        manifest.write_text("\n".join(lines) + "\n")
        overrides = {**BARE, "judge": judge, **parameters.pop("overrides", {})}
        devices = parameters.pop("devices", ["cpu"])
        with surrounded_by(pool=pools(*devices) if warm else None):
            return flows.generate.generate(
                str(manifest),
                store=str(tmp_path / "store"),
                scratch=parameters.pop("scratch", str(tmp_path / "scratch")),
                devices=devices,
                overrides=overrides,
                return_state=True,
                **parameters,
            )

    return run_flow


def tables(tmp_path: Path) -> dict[str, pd.DataFrame]:
    return {name: read_table(tmp_path / "store", name) for name in TABLES}


def task_runs(state: State[Any], *, some: bool = True) -> list[TaskRun]:
    assert state.state_details.flow_run_id is not None
    wanted = FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
    deadline = time.monotonic() + 20
    with get_client(sync_client=True) as client:
        while True:  # the server hears of them by events, a moment later
            runs = client.read_task_runs(flow_run_filter=wanted)
            if bool(runs) == some and all(r.state and r.state.is_final() for r in runs):
                return runs
            assert time.monotonic() < deadline, runs
            time.sleep(0.2)


def artifacts(state: State[Any]) -> dict[str, Any]:
    flow_run_id = state.state_details.flow_run_id
    assert flow_run_id is not None
    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]))
    with get_client(sync_client=True) as client:
        return {a.key: a for a in client.read_artifacts(artifact_filter=wanted) if a.key}


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file with its size and its time of change."""
    found = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): (p.stat().st_size, p.stat().st_mtime_ns) for p in found}


def test_a_manifest_becomes_assets_tables_and_pages(run: Any, tmp_path: Path) -> None:
    lines = ("id,prompt,tags,meta.who", "duck,a yellow duck,toy;animal,me", "tank,a toy tank,,")
    again = "duck2,a yellow duck,,"
    state = run(*lines, again, devices=["cpu", "cpu"], overrides=TINY)
    assert (state.name, state.message) == ("Completed", "2 ok")

    found = tables(tmp_path)
    assets = found["assets"].set_index("prompt")
    assert list(assets.status) == ["ok", "ok"]
    assert (assets.steps == 20).all()
    assert (assets.faces <= 2000).all()
    stages = ("queue", "optimize", "extract", "evaluate", "publish")
    assert all((assets[f"seconds_{stage}"] >= 0).all() for stage in stages)
    assert assets.clip_score.between(0, 100).all()
    assert (assets.prior_coverage == 1).all()
    assert [list(cut) for cut in assets.words_cut] == [[], []]
    assert dict(zip(found["entries"].row_id, found["entries"].outcome, strict=True)) == {
        "duck": "computed",
        "tank": "computed",
        "duck2": "duplicate",
    }
    assert len(found["views"]) == 2 * 2 * 9
    for _, history in found["history"].iterrows():
        assert list(history.steps) == list(range(1, 21))
        last = found["assets"].set_index("asset_id").loss_last[history.asset_id]
        assert history.loss[-1] == pytest.approx(last, rel=1e-5)
    assert list(found["attempts"].status) == ["ok", "ok"]
    assert (found["attempts"].last_step == 20).all()
    (row,) = found["runs"].to_dict("records")
    assert (row["count_computed"], row["count_duplicate"], row["count_failed"]) == (2, 1, 0)
    assert row["flow_run_id"] == str(state.state_details.flow_run_id)
    assert json.loads(row["settings"])["overrides"]["steps"] == 20

    store = open_store(tmp_path / "store")
    for asset_id in assets.asset_id:
        manifest = asset_manifest(store, asset_id)
        assert manifest is not None
        names = {name.partition("/")[2] for name in manifest["files"]}
        assert {"mesh.glb", "preview.png", "field.safetensors", "views/mesh_8.png"} <= names
        assert {"turntable.mp4", "thumbnail.webp"} <= names
        for name, facts in manifest["files"].items():
            data = (tmp_path / "store" / "assets" / asset_id / name).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (
                facts["bytes"],
                facts["sha256"],
            )
    assert all(Path(uri).is_file() for uri in [*assets.uri_mesh, *found["views"].uri])
    assert (tmp_path / "store" / "runs" / f"{row['run_id']}.png").is_file()
    page = (tmp_path / "store" / "runs" / row["run_id"] / "report.html").read_text()
    assert page.count("data:image/webp;base64,") == 2 + 2  # the wall; best and worst
    parts = [p for p in (tmp_path / "store" / "tables").rglob("*") if p.is_file()]
    assert len(parts) == len(TABLES), "a run has one file in each table"
    scratch = tmp_path / "scratch"
    kept = [p for p in scratch.rglob("*") if p.is_file() and p.parent.name != "logs"]
    assert kept == [scratch / "lock"], "only the lock file stays"

    names = {f"{stage}-{name}" for stage in stages[1:] for name in ("duck", "tank")}
    assert {r.name for r in task_runs(state)} == names
    shown = artifacts(state)
    assert {"progress-duck", "preview-duck", "preview-tank", "summary", "results"} <= set(shown)
    assert shown["preview-duck"].data.startswith("data:image/webp;base64,")
    assert float(shown["progress-duck"].data) == 100.0

    before = files(tmp_path / "store" / "assets")
    second = run(*lines, again, overrides=TINY)
    assert (second.name, second.message) == ("Completed", "2 reused")
    assert files(tmp_path / "store" / "assets") == before
    assert task_runs(second, some=False) == []
    outcomes = query(store, "SELECT outcome, count(*) n FROM entries GROUP BY ALL ORDER BY 1")
    assert outcomes.to_pydict() == {
        "outcome": ["computed", "duplicate", "reused"],
        "n": [2, 2, 2],
    }
    assert len(read_table(store, "runs")) == 2


def test_words_that_were_cut_are_in_the_row(run: Any, tmp_path: Path) -> None:
    """As the plan foresaw them, and of a field that is used again too."""
    prompt = "a yellow duck " + "on a red boat " * 8
    for faces in (1000, 2000):
        state = run("prompt", prompt, overrides={"max_faces": faces})
        assert state.message == "1 ok"
    limit, style = text_limit("toybox"), Recipe.for_prior("toybox").optimize.view_style
    assert limit is not None
    foreseen = words_from(prompt, limit.prompt_end(prompt, style))
    found = query(open_store(tmp_path / "store"), "SELECT * FROM assets WHERE len(words_cut) > 0")
    rows = found.to_pylist()
    assert [row["words_cut"] for row in rows] == [foreseen, foreseen]
    assert foreseen[-3:] == ["a", "red", "boat"]
    assert all(row["prior_coverage"] < 1 for row in rows)
    assert all(row["words_cut_by_judge"][-1] == "boat" for row in rows)


def test_pictures_become_assets(run: Any, tmp_path: Path) -> None:
    """The column `image`, its path from the manifest's folder, all the way to a mesh."""
    prior = build_zero123_prior(tmp_path / "zero123")
    (tmp_path / "pictures").mkdir()
    picture = tmp_path / "pictures" / "ball.png"
    ball = Image.new("RGBA", (32, 32))
    ImageDraw.Draw(ball).ellipse((6, 6, 25, 25), "red")
    ball.save(picture)
    lines = ("id,prompt,image", "ball,a red ball,pictures/ball.png")
    settings = {"prior": str(prior), "overrides": {"render_size": 8, "silhouette_weight": 1e4}}
    state = run(*lines, **settings)
    assert (state.name, state.message) == ("Completed", "1 ok")
    (asset,) = tables(tmp_path)["assets"].to_dict("records")
    sha256 = hashlib.sha256(picture.read_bytes()).hexdigest()
    assert (asset["image"], asset["recipe"], asset["steps"]) == (sha256, "zero123", 20)
    assert asset["faces"] > 0
    assert load_field(asset["uri_field"]).space == "rgb"
    assert run(*lines, **settings).message == "1 reused"


# An engine with a checkpoint after each scene's first step, and not only after a second
EAGER = """
from sjc_engine.worker import __main__, checkpoint_timing
checkpoint_timing.FIRST_CHECKPOINT_SECONDS = 0.0
__main__.main()
"""


def test_a_killed_engine_goes_on_from_its_checkpoint(
    run: Any, tmp_path: Path, judge: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The field of the interrupted asset is, bit for bit, that of one that was never touched."""
    command = (sys.executable, "-P", "-c", EAGER)
    monkeypatch.setattr(flows.context, "DevicePool", partial(DevicePool, command=command))
    overrides = {"steps": 60}
    others, resumed = engines(), []

    def kill_once() -> None:
        fields = tmp_path / "scratch" / "fields"
        while not list(fields.glob("*.checkpoint")):
            time.sleep(0.01)
        (engine,) = engines() - others
        resumed.append(engine)
        os.kill(engine, signal.SIGKILL)

    killer = threading.Thread(target=kill_once, daemon=True)
    killer.start()
    state = run("id,prompt", "duck,a yellow duck", warm=False, overrides=overrides)
    killer.join(timeout=1)
    assert resumed, "nothing was killed: the test has tested nothing"
    assert state.name == "Completed"
    (asset,) = tables(tmp_path)["assets"].to_dict("records")
    assert (asset["attempt"], asset["steps"]) == ("a01", 60)
    (attempt,) = tables(tmp_path)["attempts"].to_dict("records")
    assert (attempt["first_step"], attempt["last_step"]) == (0, 60)
    (log,) = (tmp_path / "scratch" / "logs").glob("engine-*.log")
    assert "resumes from step" in log.read_text()

    settings = Settings(
        str(tmp_path / "manifest.csv"),
        str(tmp_path / "store"),
        overrides={**BARE, "judge": judge, **overrides},
    )
    (entry,) = make_plan(settings, writable=False).entries
    (whole,) = optimize(["a yellow duck"], load_prior("toybox"), entry.spec.recipe, seeds=[0])
    whole.save(tmp_path / "whole.safetensors")
    assert (tmp_path / "whole.safetensors").read_bytes() == Path(asset["uri_field"]).read_bytes()


def engines() -> set[int]:
    """This process's engine processes."""
    tasks = Path("/proc/self/task").glob("*/children")
    children = [int(child) for task in tasks for child in task.read_text().split()]
    return {p for p in children if "sjc_engine.worker" in Path(f"/proc/{p}/cmdline").read_text()}


def test_a_failed_asset_is_a_row_and_is_tried_again_only_when_asked(
    run: Any, tmp_path: Path
) -> None:
    lines = ("id,prompt,iso_level", "duck,a yellow duck,", "bad,a toy tank,1000000")
    state = run(*lines)
    assert state.is_completed()
    assert (state.name, state.message) == ("CompletedWithErrors", "1 ok, 1 failed")
    bad = tables(tmp_path)["assets"].set_index("prompt").loc["a toy tank"]
    assert (bad.status, bad.error_type, bad.attempt) == ("failed", "EmptyField", "a01")
    assert "1e+06" in bad.error
    assert bad.steps == 20
    states = {r.name: r.state_name for r in task_runs(state)}
    assert states == {
        **{f"{s}-duck": "Completed" for s in ("optimize", "extract", "evaluate", "publish")},
        "optimize-bad": "Completed",
        "extract-bad": "Failed",
    }

    again = run(*lines)
    assert (again.name, again.message) == ("CompletedWithErrors", "1 reused, 1 failed")
    assert task_runs(again, some=False) == []
    retried = run(*lines, retry_failed=True, where="id = 'bad'")
    assert {r.name for r in task_runs(retried)} == {"optimize-bad", "extract-bad"}
    assert sorted(tables(tmp_path)["attempts"].status) == ["failed", "failed", "ok"]
    outcomes = tables(tmp_path)["entries"].groupby("row_id").outcome.agg(list).to_dict()
    assert outcomes == {"duck": ["computed", "reused"], "bad": ["failed"] * 3}


def test_out_of_memory_fewer_scenes_run_together_and_only_the_too_large_one_fails(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engines whose network takes four pictures at a time: two scenes, or none of `bad`."""
    command = (sys.executable, scarce_engine.__file__, "batch", "4")
    monkeypatch.setattr(flows.context, "DevicePool", partial(DevicePool, command=command))
    lines = ["id,prompt,views_per_step", *(f"duck{n},a yellow duck {n}," for n in range(4))]
    state = run(*lines, "bad,a toy tank,4", warm=False, scenes_per_device=5)
    assert (state.name, state.message) == ("CompletedWithErrors", "4 ok, 1 failed")
    assets = tables(tmp_path)["assets"].set_index("prompt")
    bad = assets.loc["a toy tank"]
    assert (bad.status, bad.error_type) == ("failed", "OutOfMemory")
    assert "no memory for this scene alone on cpu: CUDA out of memory: 8 pictures" in bad.error
    assert list(tables(tmp_path)["attempts"].attempt) == ["a01"] * 5
    (log,) = (tmp_path / "scratch" / "logs").glob("engine-*.log")
    assert "OutOfMemoryError" in log.read_text()


def test_a_field_is_made_once_for_all_its_meshes(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The field waits in the scratch folder; later parts and runs fetch it from the store."""
    monkeypatch.setattr(flows.generate, "PART", 2)
    lines = ["a,a yellow duck,2000", "b,a yellow duck,1000", "c,a yellow duck,500"]
    run("id,prompt,max_faces", *lines)
    run("id,prompt,max_faces", "d,a yellow duck,400")
    assets = tables(tmp_path)["assets"]
    faces = sorted(assets.faces)
    assert faces[0] <= 400 < faces[1] <= 500 < faces[2] <= 1000 < faces[3] <= 2000
    assert assets.field_id.nunique() == 1
    assert assets.seconds_optimize.nunique() == 1  # the one optimisation's
    assert assets.seconds_queue.notna().sum() == 1
    contents = {Path(uri).read_bytes() for uri in assets.uri_field}
    assert len(contents) == 1
    assert load_field(assets.uri_field[0]).resolution == 16


def test_a_large_manifest_runs_in_parts_and_may_fail_altogether(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows.generate, "PART", 2)
    started: list[str] = []
    start = tasks.devices.engine.EngineProcess._run_process

    def spy(engine: Any, log: Any) -> Any:
        started.append(engine.device)
        return start(engine, log)

    monkeypatch.setattr(tasks.devices.engine.EngineProcess, "_run_process", spy)
    state = run("prompt,seed", "a yellow duck,0-2", warm=False, timeout=0.001)
    assert started == ["cpu"], "both parts use one process, which loads the prior once"
    assert (state.is_failed(), state.message) == (True, "3 timeout")
    assert sorted(r.name.partition("-")[0] for r in task_runs(state)) == ["generate"] * 2
    found = tables(tmp_path)
    assert len(found["runs"]) == 1
    assert list(found["entries"].outcome) == ["failed"] * 3
    assets = found["assets"]
    assert [*assets.status, *assets.error_type] == ["timeout"] * 3 + ["Timeout"] * 3


def test_a_damaged_attempt_is_told_of_and_set_aside(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("prompt\na yellow duck\n")
    settings = Settings(str(tmp_path / "m.csv"), str(tmp_path / "store"), devices=["cpu"])
    settings = replace(settings, scratch=str(tmp_path / "scratch"))
    plan = make_plan(settings)
    (entry,) = plan.entries
    start_attempt(plan.store, entry.spec, "run1")
    key = f"assets/{entry.spec.asset_id}/a01/attempt.json"
    plan.store.put_bytes(key, plan.store.get_bytes(key)[:40], replace=True)
    told: list[str] = []

    class Notes(Watcher):
        def note(self, text: str) -> None:
            told.append(text)

    @flow
    def close() -> None:
        plan = make_plan(settings)
        with sole_user(Path(settings.scratch)):
            flows.run_record.close_attempts(plan, plan.states, Notes(), logging.getLogger())

    for _ in range(2):
        assert make_plan(settings).counts()["interrupted"] == 1
        close()
    assert told == [f"{plan.store.uri(key)} was damaged; its attempt counts as interrupted"]
    assert not plan.store.exists(key)


@pytest.mark.parametrize(("freed", "status"), [(True, "interrupted"), (False, "running")])
def test_a_killed_runs_attempt_is_closed_when_its_lease_ends_during_the_next_run(
    freed: bool, status: str, tmp_path: Path
) -> None:
    (tmp_path / "m.csv").write_text("prompt\na yellow duck\n")
    plan = make_plan(Settings(str(tmp_path / "m.csv"), str(tmp_path / "store"), devices=["cpu"]))
    (entry,) = plan.entries
    asset_id = entry.spec.asset_id
    attempt = start_attempt(plan.store, entry.spec, "killed")["attempt"]
    with leases(plan.store, "killed") as held:
        assert held.take(asset_id)
        with flows.run_record.recorded(plan, Watcher(), logging.getLogger()) as (*_, outcomes):
            outcomes[asset_id] = "reused"
            if freed:
                held.free(asset_id)
    found = json.loads(plan.store.get_bytes(f"assets/{asset_id}/{attempt}/attempt.json"))
    assert found["status"] == status
    assert list(tables(tmp_path)["attempts"].status) == ["interrupted"] * freed


def test_whether_a_scratch_folder_is_in_use(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    assert not in_use(scratch)
    with sole_user(scratch):
        assert in_use(scratch)
    assert not in_use(scratch)


def test_a_scratch_folder_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    scratch = tmp_path / "scratch"
    wanted = r"scratch/lock cannot be locked \(No locks available\); with --scratch, name a folder"
    with pytest.raises(UsageError, match=wanted), sole_user(scratch):
        pass
    assert not in_use(scratch)


@pytest.mark.parametrize(
    "how", ["one scratch folder", "two scratch folders", "locks that lie", "broken leases"]
)
def test_two_runs_of_a_manifest_at_once(
    how: str, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One works, and the other waits or takes other rows; the store is right in any case."""
    if how in ("locks that lie", "broken leases"):
        monkeypatch.setattr(FileLeases, "take", lambda self, asset_id: True)
    if how == "locks that lie":
        (tmp_path / "mounts").write_text("1 0 0:1 / / rw - lustre x rw,localflock")
        monkeypatch.setattr(locks, "MOUNTS", tmp_path / "mounts")
    folders = ["scratch"] * 2 if how == "one scratch folder" else ["scratch", "other"]
    both = threading.Barrier(2)

    # So that one run has not taken all rows when the other begins
    options = {"warm": False} if how == "two scratch folders" else {"devices": ["cpu", "cpu"]}

    def one(folder: str) -> State[Any]:
        both.wait()
        lines = ("prompt,seed", "a yellow duck,0-3")
        return run(*lines, scratch=str(tmp_path / folder), **options)

    with ThreadPoolExecutor(2) as pool:
        states = list(pool.map(one, folders))
    assert all(state.is_completed() for state in states), states
    found = tables(tmp_path)
    assets, attempts, entries = found["assets"], found["attempts"], found["entries"]
    good = assets[assets.status == "ok"]
    assert len(good) == good.asset_id.nunique() == 4
    counts = entries.outcome.value_counts().to_dict()
    assert counts == {"computed": 4, "reused": 4}
    if how == "broken leases":
        assert set(attempts.status) <= {"ok", "cancelled"}
    else:
        assert list(attempts.attempt) == ["a01"] * 4, "an asset was made twice"
    if how == "two scratch folders":
        assert good.run_id.nunique() == 2, "one of them did nothing"
    assert verify_store(open_store(tmp_path / "store")) == []
    assert not list((tmp_path / "store").glob("*leases/*"))


def test_the_rows_that_a_dying_run_could_not_write_are_written_by_who_goes_on(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies after this one has looked for such attempts."""
    close = flows.run_record.close_attempts

    def close_and_miss(plan: Any, asset_ids: Any, watch: Watcher, log: Any) -> Any:
        closed = close(plan, asset_ids, watch, log)
        (entry,) = plan.todo.values()
        attempt = start_attempt(plan.store, entry.spec, "other")["attempt"]
        error = OSError("no room for rows")
        finish_attempt(plan.store, entry.spec.asset_id, attempt, "interrupted", error=error)
        return closed

    monkeypatch.setattr(flows.run_record, "close_attempts", close_and_miss)
    assert run("id,prompt", "duck,a yellow duck").is_completed()
    attempts = tables(tmp_path)["attempts"]
    assert dict(zip(attempts.attempt, attempts.status, strict=True)) == {
        "a01": "interrupted",
        "a02": "ok",
    }
    assert verify_store(open_store(tmp_path / "store")) == []


def test_a_failure_of_the_future_is_tried_again(run: Any, tmp_path: Path) -> None:
    """Attempts are in the order of their numbers: a clock may have gone back an hour since."""
    line = ("id,prompt", "duck,a yellow duck")
    assert run(*line, timeout=0.001).is_failed()
    store = open_store(tmp_path / "store")
    [key] = [k for k in store.list("assets/") if k.endswith("attempt.json")]
    document = json.loads(store.get_bytes(key))
    assert document["status"] == "timeout"
    for name in ("started_at", "ended_at"):
        later = datetime.fromisoformat(document[name]) + timedelta(hours=1)
        document[name] = later.isoformat(timespec="microseconds")
    store.put_bytes(key, json.dumps(document).encode(), replace=True)
    rebuild_tables(store)

    assert run(*line, retry_failed=True).is_completed()
    attempts = tables(tmp_path)["attempts"].sort_values("attempt")
    assert list(attempts.status) == ["timeout", "ok"]
    assert list(tables(tmp_path)["assets"].status) == ["ok"]
    assert verify_store(store) == []


class Deletes(Watcher):
    """Somebody who deletes a folder at the first step of any asset, or at a stage's beginning."""

    def __init__(self, folder: Path, at: str) -> None:
        self.folder, self.at = folder, at

    def _delete(self) -> None:
        self.at = ""
        shutil.rmtree(self.folder)

    def progress(self, name: str, step: int, steps: int, loss: float | None) -> None:
        if self.at == "progress":
            self._delete()

    def stage(self, name: str, stage: str) -> None:
        if self.at == stage:
            self._delete()


@pytest.mark.parametrize("at", ["progress", "publish"])
def test_a_deleted_scratch_folder_fails_no_asset(run: Any, tmp_path: Path, at: str) -> None:
    """It costs the steps of what was in it, as the docs say, and the next run makes the rest."""
    line = ("id,prompt", "duck,a yellow duck")
    with surrounded_by(watcher=Deletes(tmp_path / "scratch", at)):
        run(*line)
    statuses = list(tables(tmp_path)["attempts"].status)
    assert statuses == (["ok"] if at == "progress" else ["interrupted"])
    if at != "progress":
        [row] = tables(tmp_path)["assets"].to_dict("records")
        assert row["error_type"] == "ScratchLost"
        assert "run the same command again" in row["error"]
        assert run(*line).is_completed()
    assert list(tables(tmp_path)["assets"].status) == ["ok"]
    assert verify_store(open_store(tmp_path / "store")) == []


def test_a_field_that_cannot_be_kept_fails_no_asset(run: Any, tmp_path: Path) -> None:
    """Its reason is in the row, though it was the engine that met it."""
    line = ("id,prompt", "duck,a yellow duck")
    in_the_way = tmp_path / "scratch" / "fields"
    in_the_way.parent.mkdir()
    in_the_way.write_text("a file")
    run(*line)
    [row] = tables(tmp_path)["assets"].to_dict("records")
    assert (row["status"], row["error_type"]) == ("interrupted", "ScratchLost")
    assert "fields" in row["error"]
    in_the_way.unlink()
    assert run(*line).is_completed()
    assert list(tables(tmp_path)["assets"].status) == ["ok"]


def test_a_store_that_cannot_be_used_fails_no_asset(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise StoreError("Cannot write mesh.glb: these credentials may not do that.")

    line = ("id,prompt", "duck,a yellow duck")
    with monkeypatch.context() as patch:
        patch.setattr(tasks.stages.publish, "commit_asset", refused)
        run(*line)
    [row] = tables(tmp_path)["assets"].to_dict("records")
    assert (row["status"], row["error_type"]) == ("interrupted", "StoreError")
    assert "may not do that" in row["error"]
    assert run(*line).is_completed()
    assert list(tables(tmp_path)["assets"].status) == ["ok"]


def test_what_fails_after_the_commit_fails_no_asset(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish, calls = tasks.stages.publish.finish_attempt, itertools.count()

    def fails_once(*arguments: Any, **more: Any) -> Any:
        if next(calls) == 0:
            raise ValueError("a reply that cannot be read")
        return finish(*arguments, **more)

    monkeypatch.setattr(tasks.stages.publish, "finish_attempt", fails_once)
    state = run("id,prompt", "duck,a yellow duck")
    assert (state.is_completed(), state.message) == (True, "1 ok")
    found = tables(tmp_path)
    assert list(found["assets"].status) == list(found["attempts"].status) == ["ok"]
    assert list(found["entries"].outcome) == ["computed"]
    assert found["assets"].clip_score.notna().all()
    assert verify_store(open_store(tmp_path / "store")) == []


LONG = ("id,prompt,steps", "long,a toy tank,1000000", "short,a yellow duck,20")


def once_running(
    name: str, act: Callable[[SyncPrefectClient, TaskRun], object]
) -> threading.Thread:
    """Does something to a task run as soon as it runs and has made a step."""

    def wait() -> None:
        wanted = TaskRunFilter(
            name=TaskRunFilterName(any_=[name]),
            state=TaskRunFilterState(type=TaskRunFilterStateType(any_=[StateType.RUNNING])),
        )
        with get_client(sync_client=True) as client:
            while not (found := client.read_task_runs(task_run_filter=wanted)):
                time.sleep(0.2)
            act(client, found[0])

    thread = threading.Thread(target=copy_context().run, args=(wait,), daemon=True)
    thread.start()
    return thread


def test_one_asset_is_cancelled_and_the_others_go_on(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the server's API, as its pages do it."""
    monkeypatch.setattr(cancelling, "ASK_SECONDS", 0.5)
    cancel = once_running(
        "optimize-long",
        lambda client, task: client.set_task_run_state(task.id, Cancelled(), force=True),
    )
    state = run(*LONG)
    cancel.join(10)
    assert (state.name, state.message) == ("CompletedWithErrors", "1 ok, 1 cancelled")
    assert {r.name: r.state_name for r in task_runs(state)}["optimize-long"] == "Cancelled"
    rows = tables(tmp_path)["assets"].set_index("prompt")
    assert rows.status.to_dict() == {"a toy tank": "cancelled", "a yellow duck": "ok"}
    assert rows.loc["a toy tank"].error_type == "Cancelled"
    again = run(*LONG)
    assert (task_runs(again, some=False), again.message) == ([], "1 reused, 1 failed")


def test_a_flow_run_is_cancelled_as_a_whole(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancelling, "ASK_SECONDS", 0.5)

    def cancel(client: SyncPrefectClient, task: TaskRun) -> None:
        assert task.flow_run_id is not None
        client.set_flow_run_state(task.flow_run_id, Cancelling())

    others = engines()
    canceller = once_running("optimize-long", cancel)
    state = run(*LONG[:2], warm=False)
    canceller.join(10)
    assert state.is_cancelled()
    assert state.state_details.flow_run_id is not None
    with get_client(sync_client=True) as client:
        seen = client.read_flow_run(state.state_details.flow_run_id).state
    assert seen is not None
    assert seen.is_cancelled()
    assert engines() <= others
    (row,) = tables(tmp_path)["runs"].to_dict("records")
    assert row["ended_at"] is not pd.NaT, "the run knows its end"
    (attempt,) = (tmp_path / "store").rglob("attempt.json")
    assert json.loads(attempt.read_text())["status"] == "running", "the next run closes it"
