"""Manifest files as records: CSV, JSON lines or Parquet, with the physical line of every row.

Only the files' own rules are checked here: encoding, header, cell counts. What the cells mean is
`tasks.manifest`'s business.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sjc_engine.recipes import RECIPE_KEYS

COLUMNS = ("prompt", "id", "negative_prompt", "image", "seed", "prior", "recipe", "tags")
META = "meta."
MAX_FIELD = 10_000_000  # characters of a CSV field that are read before giving up


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a manifest, and what to do about it.

    `line` is physical and the header is 1; None for what no line is to blame for, such as the
    command line.
    """

    file: str
    line: int | None
    column: str
    problem: str
    fix: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.column}: {self.problem}; {self.fix}"


class ManifestError(ValueError):
    """Everything that is wrong with a manifest, one line each."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = list(problems)


@dataclass(frozen=True)
class Record:
    """A row as the file has it. Cells are text in CSV, and JSON values otherwise."""

    line: int
    cells: dict[str, Any]


@dataclass
class Records:
    """The records of the file called `file`, and what is wrong so far."""

    file: str
    rows: list[Record] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def blame(self, line: int, column: str, problem: str, fix: str) -> None:
        self.problems.append(Problem(self.file, line, column, problem, fix))


def read_file(path: Path) -> tuple[Records, bytes]:
    """The records of a manifest file and its bytes. Never raises for what is in the file."""
    name = path.as_posix()
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            data = path.read_bytes()
            return parse(name, data), data
        problem, fix = "is not a regular file", "name a CSV, JSONL or Parquet file"
    except (FileNotFoundError, NotADirectoryError):
        problem, fix = "does not exist", "check the path"
    except OSError as error:
        problem, fix = f"cannot be read ({error.strerror})", "fix its permissions"
    records = Records(name)
    records.blame(1, "file", problem, fix)
    return records, b""


def parse(name: str, data: bytes) -> Records:
    """The records in the bytes of a manifest file; the end of its name tells how to read them."""
    records = Records(name)
    reader = READERS.get(PurePosixPath(name).suffix.lower())
    if reader is None:
        ends = ", ".join(READERS)
        records.blame(1, "file", f"its name ends in none of {ends}", "rename or convert it")
        return records
    reader(data, records)
    if not records.rows and not records.problems:
        records.blame(1, "file", "has no rows", "add at least one prompt")
    return records


def _read_csv(data: bytes, records: Records) -> None:
    text = _decode(data, records)
    if text is None:
        return
    with _field_limit(MAX_FIELD):
        # newline="" keeps line ends as they are: csv must see which of them are quoted.
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        header: list[str] | None = None
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                # After this nobody can tell where the next row begins.
                problem = f"is not CSV ({error})"
                fix = 'put a cell with commas, quotes or line breaks in "...", with "" for a quote'
                records.blame(line, "row", problem, fix)
                break
            if not cells:
                continue
            if header is None:
                header = cells
                if not _check_header(header, line, records):
                    break
            elif len(cells) != len(header):
                problem = f"{len(cells)} cells, and the header has {len(header)}"
                fix = 'write one cell for each column, and put a cell with commas in "..."'
                records.blame(line, "row", problem, fix)
            else:
                row = zip(header, cells, strict=True)
                known = {name: cell for name, cell in row if _column_problem(name) is None}
                records.rows.append(Record(line, known))


def _check_header(header: Sequence[str], line: int, records: Records) -> bool:
    """Whether the rows can be read; unknown columns are reported, and their cells left out."""
    doubled = False
    if "prompt" not in header:
        apart = [mark for mark in ";\t|" if "prompt" in header[0].split(mark)]
        if apart:
            records.blame(line, "header", f"cells are separated by {apart[0]!r}", "use commas")
            return False
        records.blame(line, "header", "there is no column 'prompt'", "add it")
    for position, name in enumerate(header):
        if header.index(name) < position:
            doubled = True
            records.blame(line, shown(name), "is in the header twice", "keep one of the columns")
        elif problem := _column_problem(name):
            records.blame(line, shown(name) or f"column {position + 1}", *problem)
    return "prompt" in header and not doubled


def shown(text: str) -> str:
    """`text` on one short line."""
    short = text if len(text) <= 60 else text[:57] + "..."
    return short if short.isprintable() else ascii(short)


def _column_problem(name: str) -> tuple[str, str] | None:
    """What is wrong with a column's name, and the fix."""
    if name in COLUMNS or name in RECIPE_KEYS:
        return None
    if name.startswith(META) and name != META and name.isprintable():
        return None
    if not name.strip():
        return "has no name", "name it, or remove the column"
    known = [*COLUMNS, *RECIPE_KEYS]
    close = difflib.get_close_matches(name.strip().lower(), known, n=1, cutoff=0.6)
    fix = f"did you mean {close[0]!r}?" if close else f"remove it, or call it {META}NAME"
    return "is an unknown column", fix


def _read_jsonl(data: bytes, records: Records) -> None:
    text = _decode(data, records)
    if text is None:
        return
    # Not splitlines(): JSON strings may hold characters such as U+2028 that it splits at.
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            row = json.loads(content, object_pairs_hook=_object, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            records.blame(line, "row", f"is not JSON ({error})", "write one JSON object per line")
            continue
        if not isinstance(row, dict):
            records.blame(line, "row", "is not a JSON object", "write one JSON object per line")
            continue
        for name in row:
            if problem := _column_problem(name):
                records.blame(line, shown(name) or "row", *problem)
        records.rows.append(Record(line, _present(row)))


def _present(row: dict[str, Any]) -> dict[str, Any]:
    """The known cells that are not null."""
    return {
        name: value
        for name, value in row.items()
        if value is not None and _column_problem(name) is None
    }


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        raise ValueError("a key is there twice")
    return row


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON value")


def _read_parquet(data: bytes, records: Records) -> None:
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        schema = file.schema_arrow
        if not _check_header(schema.names, 1, records):
            return
        for name, kind in zip(schema.names, schema.types, strict=True):
            if not (_is_plain(kind) or (pa.types.is_list(kind) and _is_plain(kind.value_type))):
                records.blame(1, shown(name), f"has the type {kind}", "store it as text")
                return
        rows = file.read().to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = shown(str(error))
        records.blame(1, "file", f"is not a readable Parquet file ({reason})", "write it again")
        return
    records.rows += [Record(line, _present(row)) for line, row in enumerate(rows, start=2)]


READERS = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}


def _is_plain(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    plain = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_null)
    return any(test(kind) for test in (*plain, pa.types.is_floating, pa.types.is_boolean))


def _decode(data: bytes, records: Records) -> str | None:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        records.blame(1, "file", "is UTF-16", "save it as UTF-8")
        return None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problem = f"byte 0x{data[error.start]:02X} is not UTF-8"
        records.blame(line, "file", problem, "save it as UTF-8")
        return None


@contextmanager
def _field_limit(characters: int) -> Iterator[None]:
    """csv's limit on a field is a global of its module."""
    before = csv.field_size_limit(characters)
    try:
        yield
    finally:
        csv.field_size_limit(before)
