"""What is told of a run while it goes on: the time left, the summary, the command that retries."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from task_samples import record_attempt, report

from flows.commands.plan import make_shard_plan
from flows.pipeline import report_progress
from flows.plan import RunPlan, find_related_assets, make_plan
from flows.progress import summary_artifact, terminal, time_left
from flows.progress.results import RESULT_COLUMNS
from flows.progress.summary_artifact import PrefectSummary, run_name, spent
from flows.progress.terminal import Lines, Watcher
from flows.progress.time_left import Tally
from flows.settings import Settings
from sjc_engine.recipes import RECIPE_VERSION, Recipe
from sjc_engine.spec import AssetSpec
from tasks.prefect_ui.artifacts import Board
from tasks.records.attempts import finish_attempt, start_attempt
from tasks.records.commit import commit_asset
from tasks.store.interface import Store

ROOT = Path(__file__).parents[3]


class Clock:
    """time.monotonic, set by hand."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time_left, "time", clock)
    monkeypatch.setattr(summary_artifact, "time", clock)
    monkeypatch.setattr(time_left, "REST_SECONDS", 0.0)
    return clock


def test_the_time_left_is_that_of_the_steps_left(clock: Clock) -> None:
    run = Tally(5, {"a": 100, "b": 100, "resumed": 100, "copied": 100})
    run.finished("old", "reused")
    assert run.seconds_left is None
    run.progress("a", 1, 100)
    run.progress("resumed", 60, 100)  # these 60 are no work of this run
    clock.now += 10
    run.progress("a", 21, 100)
    run.progress("resumed", 80, 100)
    # 40 steps in 10 s; left are 79 + 20 + 100 of b + 100 of copied
    assert run.seconds_left == pytest.approx(299 / 4)
    run.stage("copied", "extract")  # its field was there already: no step has been done for it
    assert run.seconds_left == pytest.approx(199 / 4)
    run.finished("b", "diverged")
    assert run.seconds_left == pytest.approx(99 / 4)
    run.stage("a", "extract")  # the steps after its last report are done
    assert run.seconds_left == pytest.approx(20 * 10 / 119)
    for name in ("a", "copied", "resumed"):
        run.finished(name, "ok")
    assert run.seconds_left is None
    assert (run.done, run.failed, run.to_go, run.elapsed) == (5, 1, 0, 10)


def test_the_time_left_counts_what_follows_the_steps(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guess until an asset of the run has shown it."""
    monkeypatch.setattr(time_left, "REST_SECONDS", 15.0)
    run = Tally(2, {"a": 100, "b": 100})
    run.progress("a", 0, 100)
    clock.now += 10
    run.progress("a", 50, 100)
    assert (run.seconds_left_of("a"), run.seconds_left) == (10 + 15, 30 + 15)
    for stage in ("extract", "evaluate", "publish"):
        run.stage("a", stage)
        clock.now += 1
    run.finished("a", "ok")
    run.progress("b", 0, 100)
    clock.now += 10
    run.progress("b", 50, 100)
    assert run.seconds_left_of("b") == 10 + 3


# When a scene has reported which of its 80 steps, and at last its end, in seconds: as measured on a
# CPU with compiled kernels and without, and with a network that the first step compiles.
REPORTS = {
    "kernels": "6.9 0, 6.96 1, 8.2 3, 8.7 15, 9.3 30, 9.8 44, 10.3 59, 10.8 72, 11.1 80",
    "no kernels": "15.8 0, 16 1, 17.3 3, 17.7 11, 18.2 22, 18.8 34, 19.3 45, 19.9 59, 20.7 80",
    "compiled": "5 0, 46 1, 46.8 2, 47.5 3, 48.2 4, 48.9 5, 49.6 6, 50.3 7, 51 8, 76 44, 101.7 80",
}


@pytest.mark.parametrize("case", REPORTS)
def test_from_the_first_the_time_left_is_at_most_twice_off(case: str, clock: Clock) -> None:
    run, shown = Tally(1, {"a": 80}), 0
    *reports, (end, _) = [tuple(map(float, words.split())) for words in REPORTS[case].split(", ")]
    for clock.now, step in reports:
        run.progress("a", int(step), 80)
        for left in (run.seconds_left_of("a"), run.seconds_left):
            if left is not None:
                shown += 1
                assert (end - clock.now) / 2 <= left <= 2 * (end - clock.now), (clock.now, left)
    assert shown >= 4, "most of the way there is a time"


def test_assets_too_quick_for_reports_are_counted_whole(clock: Clock) -> None:
    run = Tally(4, {"a": 9, "b": 9})
    run.finished("old", "reused")
    run.finished("bad", "failed")  # by an earlier run
    assert run.seconds_left is None
    clock.now += 6
    run.finished("a", "ok")
    assert run.seconds_left == 6


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunPlan:
    monkeypatch.chdir(tmp_path)
    Path("toys.csv").write_text("id,prompt\nduck,a duck\npi|g*,\n".replace("pi|g*,", "pig,a pig"))
    return make_plan(
        Settings("toys.csv", "store", devices=["cpu", "cpu"], price_per_hour=3.0, gallery="wall")
    )


class Shown(Board):
    """A board that keeps what it should send."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: dict[str, list[Any]] = {}

    def update(self, artifact: Any, data: Any) -> None:
        self.texts.setdefault(artifact.about["key"], []).append(data)


def test_the_summary_of_a_run(plan: RunPlan, clock: Clock) -> None:
    board = Shown()
    told = Watcher()
    told.begun("run1", 2, {"duck": 100, "pig": 100})
    summary = PrefectSummary(plan, board, told)
    told.progress("duck", 1, 100, None)
    clock.now += 36
    told.progress("duck", 51, 100, None)
    texts = board.texts["summary"]
    assert "# toys.csv: 2 assets \\(2 new\\)" in texts[0]
    assert "| 0 | 0 | 0 | 2 |" in texts[-1]
    # 149 steps at 50 in 36 s are 107 s; 2 devices for 36 s and then for 143 s, at 3 an hour
    assert "**About 1 min 47 s left.**" in texts[-1]
    assert "36 s on cpu, cpu: 0.02 device-hours, cost 0.06 at 3 an hour" in texts[-1]
    assert "about 0.24 in the end" in texts[-1]
    told.progress("duck", 99, 100, None)
    assert len(texts) == 2 + 1, "at most one version in ten seconds"
    told.finished("duck", "ok", 30.0)
    clock.now += 36
    told.finished("pig", "diverged", 30.0)
    assert "| pig | diverged |" in texts[-1]

    store = plan.store
    store.put_bytes("runs/run1/report.html", b"x")
    rows = [dict.fromkeys(RESULT_COLUMNS) | {"asset": "duck", "status": "ok", "error": None}]
    reason = "<b>NaN</b> | at\n[step](http://x) 3"
    rows += [{**rows[0], "asset": "pig", "status": "diverged", "error": reason}]
    summary.ended(rows)
    last = texts[-1]
    assert "| 1 | 0 | 1 | 0 |" in last
    assert r"| pig | \<b\>NaN\</b\> \| at \[step\]\(http://x\) 3 |" in last
    assert "```\nsjc run toys.csv" in last
    assert "--retry-failed" in last
    assert f"- report: `{store.uri('runs/run1/report.html')}`" in last
    assert "all previews" not in last, "a picture that is not there is no place to look"
    assert "- gallery: `wall`" in last
    assert f"sjc gallery -o wall --store {store.url}" in last
    assert "0.06 for each" not in last
    assert "cost 0.12 at 3 an hour, 0.12 for each asset made" in last
    assert '"reason"' in board.texts["failures"][0]
    assert len(board.texts["results"]) == 1


def test_names_of_runs(plan: RunPlan) -> None:
    ids = list(plan.assets)
    plan.states.update({ids[0]: "finished", ids[1]: "interrupted"})
    assert run_name(plan) == "toys.csv: 2 assets (1 resumed)"
    plan.states[ids[1]] = "failed"
    assert run_name(plan) == "toys.csv: 2 assets (nothing new)"


def test_without_a_price_there_is_no_cost(plan: RunPlan) -> None:
    object.__setattr__(plan.settings, "price_per_hour", None)
    assert spent(plan, 3600, 100, 1) == "60 min on cpu, cpu: 2 device-hours."


def test_lines_tell_the_time_left(clock: Clock, capfd: pytest.CaptureFixture[str]) -> None:
    lines = Lines()
    lines.begun("run1", 2, {"a": 100, "b": 100})
    lines.progress("a", 1, 100, None)
    clock.now += 10
    lines.progress("a", 51, 100, None)
    lines.finished("a", "ok", 11.0)
    said = capfd.readouterr().err
    assert "a: step 1/100" in said, "the first is shown at once: the second may be minutes away"
    assert said.endswith("a: ok after 11 s (1/2 done, 1 to go, 10 s left)\n")


def test_lines_tell_of_work_that_is_no_step(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """At once when nothing was said yet, and then every ten seconds; the first step always."""
    monkeypatch.setattr(terminal, "time", clock)
    lines = Lines()
    for done in range(5):
        event = {"type": "working", "what": "decoding views", "done": done, "total": 64}
        report_progress(lines, "duck", event)
        clock.now += 4
    for step in (3, 4):
        report_progress(lines, "duck", {"type": "progress", "step": step, "steps": 9, "loss": 0.5})
    said = capfd.readouterr().err.splitlines()
    assert said[:2] == ["duck: decoding views 0/64", "duck: decoding views 3/64"]
    assert [line.partition(",")[0] for line in said[2:]] == ["duck: step 3/9"]


@pytest.mark.slow
def test_a_run_tells_the_server_that_it_has_ended_before_its_process_does(
    tmp_path: Path, prefect_api: str
) -> None:
    (tmp_path / "m.csv").write_text("prompt,seed\na yellow duck,0-2\n")
    command = [sys.executable, str(ROOT / "tests" / "support" / "stub_sjc.py"), "run", "m.csv"]
    variables = {**os.environ, "PREFECT_API_URL": prefect_api, "PYTHONPATH": str(ROOT)}
    subprocess.run([*command, "--quiet"], cwd=tmp_path, env=variables, check=True)
    wanted = {"event": {"name": ["sjc.run.ended"]}}
    store = str(tmp_path / "store")
    deadline = time.monotonic() + 60  # the server writes events now and then
    while True:
        found = httpx.post(f"{prefect_api}/events/filter", json={"filter": wanted}).json()["events"]
        if events := [event for event in found if event["payload"]["store"] == store]:
            break
        assert time.monotonic() < deadline
        time.sleep(0.2)
    (event,) = events
    run_id, resource = event["payload"]["run_id"], event["resource"]
    assert resource["prefect.resource.id"] == f"sjc.run.{run_id}"
    assert (resource["sjc.ok"], resource["sjc.failed"]) == ("3", "0")
    assert list((tmp_path / "store" / "runs").glob(f"{run_id}.json"))


def make(store: Store, spec: AssetSpec, tmp_path: Path, version: int = RECIPE_VERSION) -> None:
    """A finished asset."""
    made = tmp_path / "mesh.glb"
    made.write_bytes(b"x")
    versions = {"code": "1.0", "engine": f"0.1.0+recipe{version}"}
    attempt = start_attempt(store, spec, "run1")["attempt"]
    manifest = commit_asset(
        store, spec.asset_id, attempt, {made.name: made}, spec, report(), {}, versions
    )
    record_attempt(store, finish_attempt(store, spec.asset_id, attempt, "ok"), manifest)


def test_assets_of_an_older_recipe_version_are_a_warning(
    plan: RunPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only those that this plan makes again: the pig is new, and the duck was made by version 1."""
    duck = next(iter(plan.assets.values())).spec
    make(plan.store, duck, tmp_path, version=1)
    assert make_plan(plan.settings).warnings == plan.warnings

    monkeypatch.setattr("flows.plan.RECIPE_VERSION", 2)
    monkeypatch.setattr("sjc_engine.spec.RECIPE_VERSION", 2)
    again = make_plan(plan.settings)
    assert again.counts()["new"] == 2
    assert again.warnings == [
        *plan.warnings,
        "1 asset was made by recipe version 1 and will be made again by version 2; CHANGELOG.md"
        " says why",
    ]


def test_assets_of_another_revision_of_the_prior_are_a_warning(
    plan: RunPlan, tmp_path: Path
) -> None:
    duck = next(iter(plan.assets.values())).spec
    older = replace(duck, prior_revision="0" * 40)
    for spec in (older, replace(older, recipe=older.recipe.override({"steps": 7}))):
        make(plan.store, spec, tmp_path)
    warning = (
        "1 asset was made from another revision of the prior 'toybox' and will be made again;"
        " docs/priors.md says what a revision is"
    )
    assert make_plan(plan.settings).warnings == [*plan.warnings, warning]
    assert warning in make_shard_plan(plan.settings, 3600)[1]
    make(plan.store, duck, tmp_path)
    assert warning not in make_shard_plan(plan.settings, 3600)[1]


HUB = "stable-diffusion-v1-5/stable-diffusion-v1-5"
IN_01: dict[str, Any] = {
    "steps": 1000, "guidance_end": -1.0, "tick_end": 500, "grid_start": 0, "grid_size": 48,
    "ray_step": 2.1 / 96, "render_start": 0, "render_size": 32, "mesh_smoothing": 0.5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("prior", "now", "then"),
    [
        ("toybox", {}, IN_01),
        ("toybox", {"steps": 50, "grid_size": 96}, {**IN_01, "steps": 50, "grid_size": 96}),
        ("toybox-duck", {"grid_size": 96}, {"grid_size": 96, "ray_step": 2.1 / 96}),
        (HUB, {}, {"overhead_prompt": "elevation", "depth_loss": "fixed"}),
    ],
    ids=["toybox", "changed", "ray_step", "paper"],
)
def test_assets_that_version_01_made_with_other_values_are_a_warning(
    plan: RunPlan, tmp_path: Path, prior: str, now: dict[str, Any], then: dict[str, Any]
) -> None:
    """Not those that are finished, or that were asked for with other settings."""
    duck = replace(next(iter(plan.assets.values())).spec, prior=prior)
    preset = Recipe.for_prior(prior)
    make(plan.store, replace(duck, recipe=preset.override(then)), tmp_path)
    make(plan.store, replace(duck, seed=7, recipe=preset.override(now)), tmp_path)
    asked = [
        replace(duck, recipe=preset.override(now)),
        replace(duck, seed=7, recipe=preset.override(now)),
        replace(duck, recipe=preset.override({"steps": 7})),
    ]
    assert find_related_assets(plan.store, asked)[1] == [
        "1 asset was made before the preset, or the ray_step that goes with a grid_size, changed"
        " and will be made again; docs/upgrading.md says what changed"
    ]
