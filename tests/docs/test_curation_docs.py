"""docs/curation.md does what it says: its Python runs as printed, its SQL finds what is there."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import trimesh
from PIL import Image
from task_samples import record_attempt, report
from typer.testing import CliRunner

from flows.commands.main import app
from tasks.manifest.resolve import read_manifest, resolve
from tasks.records.attempts import finish_attempt, start_attempt
from tasks.records.commit import commit_asset
from tasks.records.runs import finish_run, start_run
from tasks.store import open_store
from tasks.store.interface import Store
from tasks.tables.read import query
from tasks.tables.write import record_run

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "curation.md").read_text("utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
SHELL = re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = [shlex.split(line, comments=True) for block in SHELL
            for line in re.split(r"\n(?=sjc )", block.strip())]  # fmt: skip
QUESTIONS = [command[2] for command in COMMANDS if command[:2] == ["sjc", "query"]]
ROWS = """id,prompt,seed,tags,meta.source
duck,a duck,0-2,animal;toy,web
DUCK,A Duck!,0,animal,web
chair,a red chair,0,furniture,own
tank,a tank,0,,own
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished store, and the datasets that the page freezes."""
    folder = tmp_path_factory.mktemp("docs")
    store = open_store(folder / "store")
    (folder / "m.csv").write_text(ROWS)
    manifest = read_manifest(folder / "m.csv")
    entries = resolve(manifest.rows, prior_revision=lambda _: "r", recipe="draft").entries
    run = start_run(store, "run1", "m.csv", manifest.sha256, entries, {})
    for score, entry in enumerate(entries, 20):
        odd = {"single_color": True, "components": 3} if entry.row_id == "chair" else {}
        janus = 0.8 if entry.row_id == "chair" else 0.0
        status = "failed" if entry.row_id == "tank" else "ok"
        attempt = start_attempt(store, entry.spec, "run1", prior_coverage=1.0)["attempt"]
        made = {}
        if status == "ok":
            Image.new("RGB", (32, 32), "red").save(folder / "preview.png")
            trimesh.creation.box().export(folder / "mesh.glb")
            files = {name: folder / name for name in ("mesh.glb", "preview.png")}
            found = report(
                clip_score=float(score), janus_score=janus, faces=1000, components=1,
                clip_r_precision=1.0, geometry_r_precision=1.0 - janus,
            ) | odd  # fmt: skip
            timings = {"optimize": 40.0, "extract": 2.0, "evaluate": 1.0}
            made = commit_asset(
                store, entry.spec.asset_id, attempt, files, entry.spec, found, timings, {}
            )
        error = None if status == "ok" else ValueError("loss is NaN")
        ended = finish_attempt(
            store, entry.spec.asset_id, attempt, status, error=error, device="cpu",
            first_step=0, last_step=3,
        )  # fmt: skip
        record_attempt(store, ended, made)
    record_run(store, finish_run(store, run, {e.row_id: "computed" for e in entries}))
    for command in COMMANDS:
        if command[1] == "curate":
            out = command.index("-o") + 1
            command = [*command[1:out], str(folder / command[out]), *command[out + 1 :]]
            said = CliRunner().invoke(app, [*command, "--store", store.url])
            assert said.exit_code == 0, said.output
    return folder


def test_the_page_has_what_it_promises() -> None:
    assert len(QUESTIONS) == 10
    assert len(PYTHON) >= 5
    assert all(word in "\n".join(PYTHON) for word in ("read_table", "polars", "duckdb", "pandas"))


# Each block with names of its own, and all in one process, which starts once.
RUN = """
import contextlib, io, json, sys
for block in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(block, block.splitlines()[0], "exec"), {"__name__": "__main__"})
    assert said.getvalue().strip(), block
"""


def test_python_runs_as_printed(folder: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(PYTHON)],
        cwd=folder, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr


@pytest.fixture(scope="module")
def answers(folder: Path) -> list[list[dict[str, object]]]:
    store: Store = open_store(folder / "store", writable=False)
    return [query(store, sql).to_pylist() for sql in QUESTIONS]


def test_the_questions_are_answered(answers: list[list[dict[str, object]]]) -> None:
    best, rejects, failed, janus, cost, gap, tags, last, twice, sides = answers
    assert {row["prompt"]: (row["best_seed"], row["seeds"], row["spread"]) for row in best} == {
        "a duck": (2, 3, 2.0), "A Duck!": (0, 1, 0.0), "a red chair": (0, 1, 0.0),
    }  # fmt: skip
    assert [row["prompt"] for row in rejects] == ["a red chair"]
    assert [(row["status"], row["error_type"], row["assets"]) for row in failed] == [
        ("failed", "ValueError", 1)
    ]
    assert [row["prompt"] for row in janus] == ["a red chair"]
    assert (cost[0]["finished"], cost[0]["seconds_each"]) == (5, pytest.approx(43.0))
    assert gap[0]["prompt"] == "a red chair"
    assert {row["tag"]: (row["assets"], row["good"]) for row in tags} == {
        "animal": (4, 4), "furniture": (1, 1), "toy": (3, 3),
    }  # fmt: skip
    assert [row["row_id"] for row in last] == ["duck-s0", "duck-s1", "duck-s2", "DUCK", "chair",
                                               "tank"]  # fmt: skip
    assert [(row["spellings"], row["assets"]) for row in twice] == [(2, 4)]
    assert len(sides) == 2


def test_the_card_of_the_page_is_a_picture() -> None:
    with Image.open(ROOT / "docs" / "images" / "curation-card.png") as image:
        assert image.width > 400
