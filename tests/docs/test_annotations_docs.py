"""docs/annotations.md does what it says, with what Label Studio exports and its own example."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

from task_samples import make, rating, spec

from tasks.records.annotations import read_annotations, save_annotations
from tasks.store import open_store
from tasks.tables.read import query

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "annotations.md").read_text("utf-8")
TO_LABEL_STUDIO, FROM_LABEL_STUDIO = re.findall(
    r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE
)


def test_label_studio_gets_ratings_and_gives_some_back(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    for prompt in ("a duck", "a pig"):
        make(store, tmp_path, spec(prompt), "run1")
    save_annotations(store, [rating(spec(), "3")])
    for program in (TO_LABEL_STUDIO, FROM_LABEL_STUDIO):
        subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
        if program is TO_LABEL_STUDIO:
            tasks = {
                t["data"]["prompt"]: t for t in json.loads((tmp_path / "import.json").read_text())
            }
            (tmp_path / "project-1-at-2026.json").write_text(json.dumps([exported(tasks["a pig"])]))
    assert tasks["a duck"]["predictions"][0]["result"][0]["value"] == {"rating": 3}
    save_annotations(store, read_annotations(store, tmp_path / "labelled.jsonl", "nobody"))
    rows = query(store, "SELECT asset_id, who, value FROM annotations WHERE who <> 'anna'")
    pig = {"asset_id": spec("a pig").asset_id, "who": "10"}
    found = sorted(rows.to_pylist(), key=lambda row: row["value"])
    assert found == [pig | {"value": "4"}, pig | {"value": "floaters;two faces"}]


def exported(task: dict[str, object]) -> dict[str, object]:
    """The task as Label Studio gives it back when the user 10 has worked on it."""
    parts = {"rating": {"rating": 4}, "choices": {"choices": ["floaters", "two faces"]}}
    names = {"rating": "rating", "choices": "label"}
    result = [
        {"id": kind, "type": kind, "value": value, "from_name": names[kind], "to_name": "asset"}
        for kind, value in parts.items()
    ]
    times = {
        "created_at": "2026-03-09T22:16:08.728353Z",
        "updated_at": "2026-03-09T22:16:08.728378Z",
    }
    return {**task, "id": 1, "annotations": [{"result": result, "completed_by": 10, **times}]}


def test_the_example_of_a_file_can_be_read(tmp_path: Path) -> None:
    [example] = re.findall(r"^```csv\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    store = open_store(tmp_path / "store")
    make(store, tmp_path, spec(), "run1")
    [asset_id] = {row["asset_id"] for row in csv.DictReader(example.splitlines())}
    (tmp_path / "m.csv").write_text(example.replace(asset_id, spec().asset_id))
    rows = read_annotations(store, tmp_path / "m.csv", "me")
    assert [row["value"] for row in rows] == ["4", "round;toy", "rubber"]
