"""A run's report: what it counts, what it says, how large it may grow, and hostile text in it."""

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image
from task_samples import make, make_run, rating, record_attempt, report, spec

from tasks.manifest.resolve import read_manifest, resolve
from tasks.pages.html import duration
from tasks.pages.report.charts import Line, curves, histogram, histogram_sheet
from tasks.pages.report.contents import (
    MOST_SHOWN,
    MOST_TILES,
    RunReport,
    Thumbnail,
    extremes,
    latest_run,
    read_report,
    sample,
    write_report,
)
from tasks.pages.report.page import device_hours, report_page, seconds_of
from tasks.records.annotations import save_annotations
from tasks.records.attempts import close_interrupted, finish_attempt, start_attempt
from tasks.records.commit import commit_asset
from tasks.records.documents import run_ids
from tasks.records.runs import start_run
from tasks.store import open_store
from tasks.store.interface import NotInStore, Store
from tasks.tables.schemas import COLUMNS, RATINGS
from tasks.tables.write import rebuild_tables, record_run

HOSTILE = "</script><script>pwned()</script><img src=x onerror=pwned()>\u2028 \"&\" 'x'"
SETTINGS = {
    "manifest": "m.csv", "prior": None, "recipe": "draft", "overrides": {"steps": 7},
    "limit": None, "where": "seed < 3", "devices": ["cuda:0", "cuda:1"], "scratch": ".sjc",
    "timeout": None,
}  # fmt: skip


def row(number: int, **changes: Any) -> dict[str, Any]:
    """A row as the report reads it, of an asset that the run has made."""
    whole = {column.name: None for column in (*COLUMNS["assets"], *RATINGS)}
    known = {"row_id": f"row-{number}", "asset_id": f"{number:016x}", "run_id": "run1"}
    texts = {"status": "ok", "outcome": "computed", "prompt": f"toy {number}", "prior": "toybox",
             "prior_revision": "r", "recipe": "draft", "evaluator": "toybox", "device": "cpu",
             "evaluator_revision": "r"}  # fmt: skip
    return {**whole, **report(), **known, **texts, "clip_score": number / 100, **changes}


def make_pictured(store: Store, folder: Path, prompt: str, run_id: str) -> None:
    """A finished asset whose picture is one."""
    asset = spec(prompt)
    attempt = start_attempt(store, asset, run_id)["attempt"]
    path = folder / "picture.png"
    Image.new("RGB", (256, 256), (200, 60, 40)).save(path)
    files = {"views/mesh_1.png": path, "preview.png": path, "mesh.glb": path}
    versions = {"torch": "9.9.9"}
    manifest = commit_asset(store, asset.asset_id, attempt, files, asset, report(), {}, versions)
    ended = finish_attempt(store, asset.asset_id, attempt, "ok", device="cpu")
    record_attempt(store, ended, manifest)


def command_line(store: str, run: Mapping[str, Any], *, retry: bool) -> str:
    return f"{run['run_id']} of {store}" + " --retry-failed" * retry


def begin(store: Store, folder: Path, rows: str, run_id: str = "run1") -> dict[str, Any]:
    path = folder / "m.csv"
    path.write_text(f"id,prompt\n{rows}")
    manifest = read_manifest(path)
    plan = resolve(manifest.rows, prior_revision=lambda _: "r", recipe="draft")
    run = start_run(store, run_id, str(path), manifest.sha256, plan.entries, SETTINGS)
    record_run(store, run)
    return run


def test_it_is_one_file_that_asks_nobody(store: Store, tmp_path: Path) -> None:
    begin(store, tmp_path, "duck,a duck\n")
    make_pictured(store, tmp_path, "a duck", "run1")
    place = write_report(store, "run1", command_line)
    page = store.get_bytes("runs/run1/report.html").decode()
    assert place == store.uri("runs/run1/report.html")
    assert "default-src 'none'; img-src data:; style-src 'sha256-" in page
    assert page.count('<img src="data:image/webp;base64,') == 2  # the wall, and the best
    assert not re.search(r'(src|href)="(?!data:|\.\./\.\./assets/|#)', page)
    assert f'href="../../assets/{spec("a duck").asset_id}/a01/preview.png"' in page
    assert "9.9.9" in page  # torch's version
    rebuild_tables(store)  # reads runs/, and must not take a page for a run
    assert run_ids(store) == ["run1"]
    assert write_report(store, "run1", command_line) == place, "it can be made again"


def test_what_a_run_did_and_not_what_others_did(store: Store, tmp_path: Path) -> None:
    """A reused asset shows its numbers; its time is another run's. A later success changes none."""
    make_run(store, tmp_path, "run0", "duck,a duck,,\n")
    run = begin(store, tmp_path, "duck,a duck\nmug,a mug\n")
    make(store, tmp_path, spec("a mug"), "run1", "failed")
    entries = [
        {**e, "outcome": o} for e, o in zip(run["entries"], ["reused", "failed"], strict=True)
    ]
    run |= {"entries": entries, "ended_at": run["started_at"]}
    run["retired_devices"] = {"cuda:1": "3 engine processes <ended>"}
    store.put_bytes("runs/run1.json", json.dumps(run).encode(), replace=True)
    record_run(store, run)
    make(store, tmp_path, spec("a mug"), "run2", "ok")
    found = read_report(store, "run1", command_line)
    assert [(r["row_id"], r["status"]) for r in found.rows] == [("duck", "ok"), ("mug", "failed")]
    page = report_page(found)
    assert "loss is NaN" in page
    assert "--retry-failed" in page
    assert "of 1 asset made or tried" in page
    assert "cuda:1 was no longer used" in page
    assert "3 engine processes &lt;ended&gt;" in page


def test_the_curves_are_of_this_runs_attempts_and_failed_ones_are_red(
    store: Store, tmp_path: Path
) -> None:
    make_run(store, tmp_path, "run0", "duck,a duck,,\n")
    begin(store, tmp_path, "duck,a duck\nmug,a mug\npig,a pig\n")
    make(store, tmp_path, spec("a mug"), "run1")
    attempt = start_attempt(store, spec("a pig"), "run1")["attempt"]
    history = {name: [1.0, 2.0] for name in report()["history"]} | {"steps": [1, 9]}
    ended = finish_attempt(
        store, spec("a pig").asset_id, attempt, "diverged", report={"history": history}
    )
    record_attempt(store, ended, {})
    lines = read_report(store, "run1", command_line).lines
    assert [(line.title, line.bad) for line in lines] == [
        ("mug (ok)", False),
        ("pig (diverged)", True),
    ]
    page = curves(lines)
    assert page.count('<polyline class="curve"') == page.count('class="curve bad"') == 5
    assert "pig (diverged): 2 at step 9" in page
    assert page in report_page(read_report(store, "run1", command_line))


def test_assets_of_older_versions_have_no_curves(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    begin(store, tmp_path, "duck,a duck\n")
    make(store, tmp_path, spec("a duck"), "run1", history=None)
    assert "<polyline" not in report_page(read_report(store, "run1", command_line))


def test_a_curve_that_never_changes_is_drawn() -> None:
    flat = {name: [0.5, 0.5] for name in report()["history"]} | {"steps": [1, 2]}
    assert 'points="150,54 300,54"' in curves([Line("duck", flat)])
    assert "nan" not in curves([Line("one step", {name: [1] for name in flat})])


def test_a_run_that_was_killed_has_a_report(store: Store, tmp_path: Path) -> None:
    begin(store, tmp_path, "duck,a duck\nmug,a mug\n")
    start_attempt(store, spec("a mug"), "run1")
    for attempt, manifest in close_interrupted(store, [spec("a mug").asset_id]):
        record_attempt(store, attempt, manifest)
    page = report_page(read_report(store, "run1", command_line))
    assert "no recorded end" in page
    assert page.count("unfinished") >= 3
    assert "To resume what is unfinished" in page
    assert "retry-failed" not in page


def test_an_evaluation_has_no_report(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    make_run(store, tmp_path, "run1", "duck,a duck,,\n")
    start_run(store, "run2", "2 assets again", "", [], {})
    assert latest_run(store) == "run1"
    with pytest.raises(NotInStore, match="made no assets"):
        write_report(store, "run2", command_line)


def test_no_such_run(store: Store) -> None:
    with pytest.raises(NotInStore, match="There is no run in"):
        latest_run(store)
    with pytest.raises(NotInStore, match="There is no run nope in"):
        write_report(store, "nope", command_line)


def test_a_damaged_picture_is_left_out(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    make_run(store, tmp_path, "run1", "duck,a duck,,\n")  # its pictures are text
    assert "no picture" in report_page(read_report(store, "run1", command_line))


def large(count: int) -> str:
    rows = [row(k, prompt=HOSTILE * 400, row_id="x" * 128) for k in range(count)]
    rows[::7] = [
        {**r, "status": "failed", "outcome": "failed", "error_type": "E", "error": HOSTILE * 400}
        for r in rows[::7]
    ]
    run = {
        "run_id": "run1", "manifest": f"{HOSTILE}.csv", "manifest_sha256": "0" * 64,
        "entries": rows, "settings": {**SETTINGS, "where": HOSTILE}, "flow_run_id": None,
        "started_at": "2026-01-01T00:00:00+00:00", "ended_at": "2026-01-01T01:00:00+00:00",
    }  # fmt: skip
    noise = io.BytesIO()
    Image.effect_noise((112, 112), 80).save(noise, "WEBP", quality=80)
    tiles = {r["asset_id"]: Thumbnail(f"data:image/webp;base64,{noise.getvalue().hex()}", "../x")
             for r in rows}  # fmt: skip
    best, worst = extremes(rows, MOST_SHOWN)
    return report_page(
        RunReport(run, "/store", rows, sample(rows, MOST_TILES), best, worst, tiles, tiles)
    )


def test_its_size_does_not_grow_with_the_run() -> None:
    small, big = large(1000), large(10_000)
    assert f"{MOST_TILES:,} of 10,000, at even distances" in big
    assert len(big) < 1.02 * len(small) < 5e6
    assert big.count('class="tile') <= MOST_TILES + 2 * MOST_SHOWN


def test_text_stays_text() -> None:
    page = large(300)
    assert "<script" not in page
    assert "<img src=x" not in page
    body = re.sub(r"<meta[^>]*>|<link[^>]*>|<!doctype html>|<img [^>]*>", "", page)
    ElementTree.fromstring(body.replace("&middot;", ""))  # every tag is ours, and is closed


def test_best_and_worst_are_of_one_judge_and_none_is_both() -> None:
    rows = [row(k) for k in range(9)] + [row(99, evaluator="other"), row(98, status="failed")]
    best, worst = extremes(rows, 6)
    assert [r["row_id"] for r in best] == ["row-8", "row-7", "row-6", "row-5", "row-4"]
    assert [r["row_id"] for r in worst] == ["row-0", "row-1", "row-2", "row-3"]
    assert extremes([row(1)], 6) == ([row(1)], [])
    assert extremes([], 6) == ([], [])


def test_a_histogram_holds_every_value() -> None:
    columns = {column.name: column for column in COLUMNS["assets"]}
    samples: dict[str, list[float]] = {
        "clip_score": [10.0, 20.0, 20.0, 35.0],
        "clip_r_precision": [0.0, 1.0, 1.0, 0.5],
        "faces": [7, 7, 7],
    }
    for name, values in samples.items():
        drawn = histogram(columns[name], values)
        counts = [int(n) for n in re.findall(r": (\d+)</title>", drawn)]
        assert sum(counts) == len(values)
        assert "nan" not in drawn
    both = [(columns[name], [0.5, 1.0]) for name in ("clip_score", "clip_r_precision")]
    sheet = ElementTree.fromstring(histogram_sheet(both))
    assert "clip_r_precision: median 0.75, better: higher" in "".join(sheet.itertext())
    assert sheet.find("{*}style") is not None, "it stands alone"
    bars = ElementTree.fromstring(histogram(columns["clip_r_precision"], [0.0, 1.0])).iter("rect")
    assert [float(bar.attrib["x"]) for bar in bars] == [0.5, 263.0]  # both ends of eight bins


def test_its_commands_come_from_whoever_knows_the_options(store: Store, tmp_path: Path) -> None:
    begin(store, tmp_path, "duck,a duck\n")
    page = report_page(read_report(store, "run1", command_line))
    assert f"run1 of {store.url} --retry-failed" not in page  # nothing has failed
    assert f"run1 of {store.url}" in page


def test_what_people_say_is_shown_if_they_say_anything(store: Store, tmp_path: Path) -> None:
    make_run(store, tmp_path, "run1", "duck,a duck,,\npig,a pig,,\nmug,a mug,,\n")
    assert "What people say" not in report_page(read_report(store, "run1", command_line))
    label = {**rating(spec("a pig"), HOSTILE), "key": "label"}
    duck = [rating(spec(), "5"), rating(spec(), "2", "ben")]
    save_annotations(store, [*duck, rating(spec("a mug"), "4"), label])
    page = report_page(read_report(store, "run1", command_line))
    for line in ("rated</td><td>2 of 3 assets", "mean rating</td><td>3.75", "0.5 ★ 3.5</i>",
                 "duck</td><td>in dispute: 3.5 of 2 people, spread 3", "</td><td>1 labelled",
                 "rating of 2 assets: 3.5 to 4"):  # fmt: skip
        assert line in page
    assert "<script>pwned" not in page


def test_hours_are_devices_times_duration() -> None:
    run = {
        "run_id": "run1", "settings": SETTINGS, "started_at": "2026-01-01T00:00:00+00:00",
        "ended_at": "2026-01-01T00:30:00+00:00",
    }  # fmt: skip
    made = RunReport(run, "", [row(1)], [], [], [])
    assert seconds_of(made) == 1800
    assert device_hours(made) == ("GPU", 1.0)
    assert device_hours(RunReport(run, "", [row(1, run_id="run0")], [], [], [])) == ("GPU", 0.0)


def test_durations() -> None:
    assert [duration(s) for s in (0.123, 42, 105, 946, 7380)] == [
        "0.12 s",
        "42 s",
        "1 min 45 s",
        "16 min",
        "2 h 3 min",
    ]
