"""Bad manifests by the hundred, and long ones: no traceback, no wrong row, no growing memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from manifest_fuzzer import KINDS, fuzz, parse
from task_samples import Write, plan, problems

from tasks.manifest import formats
from tasks.manifest.locations import read_sources
from tasks.manifest.resolve import ManifestError, read_manifest


def test_bad_manifests_are_refused_and_right_cells_come_out_verbatim(tmp_path: Path) -> None:
    tally = fuzz(seed=7, count=700, folder=tmp_path)
    assert not tally.violations, "\n".join(tally.violations[:3])
    assert tally.kinds.keys() == KINDS.keys()
    assert tally.accepted > 100
    assert [path.stem for path in tmp_path.iterdir()] == ["case"] * 4, "nothing else was written"


def test_the_oracle_sees_a_shifted_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that fills short rows up, as the csv module's DictReader does, is found out."""
    right = formats.csv.reader

    class Lenient:
        def __init__(self, *arguments: object, **options: bool) -> None:
            self.rows = right(*arguments, **options)  # type: ignore[arg-type]
            self.width = 0

        @property
        def line_num(self) -> int:
            return self.rows.line_num

        def __next__(self) -> list[str]:
            cells = next(self.rows)
            self.width = self.width or len(cells)
            return (cells + [""] * self.width)[: self.width] if cells else cells

    monkeypatch.setattr(formats.csv, "reader", Lenient)
    tally = fuzz(seed=7, count=300, folder=tmp_path)
    found = {text.split("(")[1].split(")")[0] for text in tally.violations}
    assert {"short row", "extra cell"} <= found


def test_the_parser_of_the_oracle() -> None:
    assert parse(b'\xef\xbb\xbfprompt,id\r\n\r\n"a ""b""\r\n,c",x\r\nd,""\r\n') == [
        (3, {"prompt": 'a "b"\r\n,c', "id": "x"}), (5, {"prompt": "d", "id": ""}),
    ]  # fmt: skip
    for bad in (b'prompt\n"a', b'prompt\n"a"b', b"prompt,id\na", b"prompt\n\xff", b"id\na", b""):
        assert parse(bad) is None


# --- long files --------------------------------------------------------------------------------

MEASURE = """
import resource, sys
from tasks.manifest.locations import read_sources
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
[records] = read_sources(sys.argv[1])
count = sum(1 for record in records)
print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_files_are_read_as_a_stream(tmp_path: Path, ending: str) -> None:
    """Long cells show it: 40,000 rows of 2 kB are 80 MB."""
    path, prompt, count = tmp_path / f"long.{ending}", "a red duck " * 180, 40_000
    if ending == "csv":
        path.write_text("prompt,seed\n" + "".join(f"{prompt},{k}\n" for k in range(count)))
    elif ending == "jsonl":
        with path.open("w") as file:
            file.writelines(json.dumps({"prompt": prompt, "seed": k}) + "\n" for k in range(count))
    else:
        table = pa.table({"prompt": [prompt] * count, "seed": list(range(count))})
        pq.write_table(table, path, row_group_size=4096, use_dictionary=False, compression=None)
    assert path.stat().st_size > 75e6
    command = [sys.executable, "-c", MEASURE, str(path)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert int(said[0]) == count
    assert int(said[1]) < 50_000, f"{said[1]} kB more"


def test_what_resolving_says_of_rows(write: Write) -> None:
    path = write("id,prompt,seed\na,a duck,0-2\nb,a duck,1\nc,a zebra,\n")
    found = plan(path)
    assert (len(found.entries), found.assets, found.problems) == (5, 4, [])
    assert [text.split(": ", 1)[1] for text in found.warnings] == [
        "id: b is the same asset as a-s1 (line 2); it is made once",
        f"prompt: {found.warnings[1].split(': prompt: ')[1]}",
    ]
    for rows in ("prompt,steps\na,5\nb,0\nc,0\n", "prompt,recipe\na,draft\nb,paper\nc,paper\n"):
        with pytest.raises(ManifestError) as caught:  # also of the same mistake in every row
            plan(write(rows), prior="toybox")
        assert [problem.line for problem in caught.value.problems] == [3, 4]


@pytest.mark.parametrize("rows", ["a,\n" * 10, "a,0-3\nb,0-3\n", "a,wrong\n" * 10])
def test_a_manifest_has_a_limit(write: Write, rows: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.manifest.reading.MAX_ROWS", 7)
    line = 3 if "-" in rows else 9
    assert problems(write("prompt,seed\n" + rows)) == [
        f"m.csv:{line}: row: exceeds the limit of 7 rows of a manifest (each seed of a range is"
        " one); split the list into shards, which are separate manifests, and give each to"
        " `sjc run`, or to `sjc plan` and `sjc dispatch`, with the same --store"
    ]


def test_as_many_rows_as_the_limit_are_right(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.manifest.reading.MAX_ROWS", 7)
    assert len(plan(write("prompt,seed\n" + "a,\n" * 3 + "b,0-3\n")).entries) == 7


def test_a_line_that_never_ends_is_not_read(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MAX_LINE", 3 << 20)
    content = "prompt\na\n" + "x" * (4 << 20) + "\n"
    [problem] = problems(write(content))
    assert problem.startswith("m.csv:3: row: is longer than 3,145,728 bytes; ")
    assert len(read_manifest(write("prompt\n" + "a" * 90_000 + "\n")).rows) == 1


def test_a_file_that_changes_while_it_is_read(write: Write) -> None:
    path = write("prompt\na\nb\n")
    [records] = read_sources(str(path))
    path.write_text("prompt\na\nb\nc\n")
    with pytest.raises(ManifestError, match="was changed while it was read; try again"):
        list(records)


def test_ids_of_ranges_and_of_later_rows(write: Write) -> None:
    """Only entries need different ids: the id of a range stands for none."""
    assert problems(write("id,prompt,seed\nx-s1,a,\nx,b,0-1\n")) == [
        "m.csv:3: id: 'x-s1' is the id of line 2 too; make it unique"
    ]
    assert problems(write("id,prompt,seed\nx,b,0-1\nx-s1,a,\n")) == [
        "m.csv:3: id: 'x-s1' is the id of line 2 too; make it unique"
    ]
    for rows in ("x,b,0-1\nx-s1,a,0-1\n", "x-s1,a,0-1\nx,b,0-1\n"):
        assert len(read_manifest(write("id,prompt,seed\n" + rows)).rows) == 4
