"""kill -9 at every stage: the next run finishes, and repeats nothing that was kept.

A run is killed in a process of its own: just before it writes a certain file into the store, or
as it enters a stage. The stages do real work on a real field; its optimisation is made once.
"""

import json
import multiprocessing
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from command_line import BARE

import flows.generate
import tasks.stages.evaluate
import tasks.stages.extract
from flows.plan import make_plan
from flows.settings import Settings
from sjc_engine import load_prior, optimize
from tasks.devices.pool import DevicePool
from tasks.records.verify import verify_store
from tasks.store import open_store
from tasks.store.local import LocalStore
from tasks.tables.read import read_table

pytestmark = pytest.mark.slow


# What is not written any more, or not begun, by a run that is killed -> how the attempts end.
# Each of these runs is the one that goes on after the one before.
KILLS: dict[str, list[str]] = {
    "put: assets/.*/a01/attempt.json": [],
    "stage: extract": ["interrupted"],
    "stage: evaluate": ["interrupted"] * 2,
    "put: assets/.*/field.safetensors": ["interrupted"] * 3,
    "put: assets/.*/views/mesh_8.png": ["interrupted"] * 4,
    "put: assets/.*/manifest.json": ["interrupted"] * 5,
    "second put: assets/.*/a06/attempt.json": ["interrupted"] * 5 + ["ok"],
    "put: tables/views/.*": ["interrupted"] * 5 + ["ok"],  # while it closes the attempt
    "put: tables/assets/.*": ["interrupted"] * 5 + ["ok"],
    "second put: runs/.*.json": ["interrupted"] * 5 + ["ok"],
}


def die(*arguments: Any, **options: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_run(point: str, parameters: dict[str, Any]) -> None:
    """In a process of its own."""
    kind, _, what = point.partition(": ")
    if kind == "stage":
        module, name = {"extract": (tasks.stages.extract, "write_mesh"),
                        "evaluate": (tasks.stages.evaluate, "contact_sheet")}[what]  # fmt: skip
        setattr(module, name, die)
    else:
        put, left = LocalStore._put, [1 if kind == "second put" else 0]

        def watched(self: LocalStore, key: str, *arguments: Any) -> Any:
            if re.fullmatch(what, key):
                if not left[0]:
                    die()
                left[0] -= 1
            return put(self, key, *arguments)

        LocalStore._put = watched  # type: ignore[assignment, method-assign]
    DevicePool.warm_up = lambda *_: None  # type: ignore[method-assign]  # the field is there
    flows.generate.generate(**parameters, return_state=True)


@pytest.fixture(scope="module")
def forks(prefect_api: str) -> Any:
    """Starts processes quickly: they are forks of one that has imported what they need."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_API_URL", prefect_api)
        context = multiprocessing.get_context("forkserver")
        clip = "transformers.models.clip"
        preload = ["flows.generate", "tasks.stages.evaluate", "sjc_engine.rendering.kernels"]
        context.set_forkserver_preload(
            [*preload, f"{clip}.modeling_clip", f"{clip}.tokenization_clip"]
        )
        process = context.Process(target=int)
        process.start()
        process.join()
    return context


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, judge: str) -> Path:
    """A scratch folder with the finished field of the duck."""
    folder = tmp_path_factory.mktemp("kept")
    (folder / "m.csv").write_text("id,prompt\nduck,a yellow duck\n")
    settings = Settings(
        str(folder / "m.csv"), str(folder / "store"), overrides={**BARE, "judge": judge}
    )
    (entry,) = make_plan(settings).entries
    (field,) = optimize(["a yellow duck"], load_prior("toybox"), entry.spec.recipe, seeds=[0])
    fields = folder / "scratch" / "fields"
    fields.mkdir(parents=True)
    field.save(fields / f"{entry.spec.field_id}.safetensors")
    notes = {"steps": 20, "loss_first": 1.0, "loss_last": 0.5, "loss_min": 0.5, "first_step": 0,
             "peak_memory_bytes": 1, "device": "cpu", "seconds": 1.0}  # fmt: skip
    (fields / f"{entry.spec.field_id}.json").write_text(json.dumps(notes))
    return folder


def test_runs_that_are_killed_at_every_stage_in_turn(
    kept: Path, forks: Any, tmp_path: Path, judge: str
) -> None:
    shutil.copytree(kept / "scratch", tmp_path / "scratch")
    store = open_store(tmp_path / "store")
    parameters = {
        "manifest": str(kept / "m.csv"),
        "store": store.url,
        "scratch": str(tmp_path / "scratch"),
        "devices": ["cpu"],
        "overrides": {**BARE, "judge": judge},
    }
    committed: dict[str, Any] = {}
    for point, statuses in KILLS.items():
        process = forks.Process(target=killed_run, args=(point, parameters))
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL, f"{point}: not killed, nothing is tested"
        now = files(tmp_path / "store" / "assets")
        assert committed.items() <= now.items(), f"{point}: a committed file was written again"
        committed = {k: v for k, v in now.items() if not k.endswith("attempt.json")}
        ended = read_table(store, "attempts")
        known = [s for s in ended.sort_values("attempt").status if s != "running"]
        assert known == statuses[: len(known)], f"{point}: wrong rows"

    state = flows.generate.generate(**parameters, return_state=True)
    assert (state.name, state.message) == ("Completed", "1 reused")
    assert committed.items() <= files(tmp_path / "store" / "assets").items()
    attempts = read_table(store, "attempts").sort_values("attempt")
    assert list(attempts.status) == ["interrupted"] * 5 + ["ok"]
    assert list(attempts.attempt) == [f"a0{n}" for n in range(1, 7)], "a row is there twice"
    (asset,) = read_table(store, "assets").to_dict("records")
    assert (asset["status"], asset["attempt"], asset["steps"]) == ("ok", "a06", 20)
    assert len(read_table(store, "views")) == 18
    assert verify_store(store) == []
    # Two were killed while they closed the attempts of others, before they began themselves.
    assert len(read_table(store, "runs")) == len(KILLS) + 1 - 2


def files(folder: Path) -> dict[str, tuple[int, int]]:
    found = (p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    return {str(p.relative_to(folder)): (p.stat().st_size, p.stat().st_mtime_ns) for p in found}
