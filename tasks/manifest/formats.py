"""Manifest files as records: CSV, TSV, JSON lines, Parquet or text, with each row's physical line.

Files are read as a stream, however long they are. Only their own rules are checked here: encoding,
header, cell counts. What the cells mean is `tasks.manifest.entries`' business.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import gzip
import io
import itertools
import json
import math
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from sjc_engine.recipes import RECIPE_KEYS

COLUMNS = ("prompt", "id", "negative_prompt", "image", "seed", "prior", "recipe", "tags")
META = "meta."


@dataclass(frozen=True, eq=False)  # one of each kind
class Columns:
    """The columns that a kind of file has. needed: those that its header must have.

    prefix: what the names of further ones begin with, "" if there are none.
    """

    needed: tuple[str, ...]
    optional: tuple[str, ...]
    prefix: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.needed, *self.optional)


MANIFEST = Columns(COLUMNS[:1], (*COLUMNS[1:], *RECIPE_KEYS), META)
UNNAMED = ("", "Unnamed: 0")  # pandas' row numbers, where this is the first column of a CSV
PANDAS_INDEX = "__index_level_"
MAX_FIELD = 10_000_000  # characters of a CSV field that are read before giving up
MAX_LINE = 4 * MAX_FIELD  # bytes
BATCH = 4096  # rows of a Parquet file at a time


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a manifest, and what to do about it.

    `line` is physical and the header is 1; None where no line is at fault, as for an option of the
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


# A row as the file has it: its line, and its cells, which are text in CSV, else JSON values.
Record = tuple[int, dict[str, Any]]


@dataclass(eq=False)
class Records:
    """The records of one manifest file, one after the other, and what is wrong so far.

    A file may be of another kind: one with other `columns`.
    folder: where its pictures' paths start from, None on S3. sha256: of its bytes, "" while they
    have not been read. open: gives them from their beginning; without it there are no records.
    """

    file: str
    folder: Path | None
    sha256: str = ""
    open: Callable[[], BinaryIO] | None = None
    problems: list[Problem] = field(default_factory=list)
    columns: Columns = MANIFEST

    def add_problem(self, line: int, column: str, problem: str, fix: str) -> None:
        self.problems.append(Problem(self.file, line, column, problem, fix))

    def __iter__(self) -> Iterator[Record]:
        """The rows. What is wrong with the file becomes a problem and is never raised."""
        if self.open is None or self.problems:
            return
        reader = READERS.get(kind_of(self.file))
        if reader is None:
            problem = f"its name ends in none of {', '.join(READERS)}, with or without .gz"
            self.add_problem(1, "file", problem, "rename or convert it")
            return
        empty = True
        try:
            with self.open() as content:
                if self.file.lower().endswith(".gz"):
                    content = cast(BinaryIO, gzip.GzipFile(fileobj=content))
                for record in reader(content, self):
                    empty = False
                    yield record
        except _Unreadable as error:
            self.add_problem(*error.args)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            problem = f"is not a whole gzip file ({shown(str(error))})"
            self.add_problem(1, "file", problem, "pack it again")
        if empty and not self.problems:
            self.add_problem(1, "file", "has no rows", f"add at least one {self.columns.needed[0]}")


def kind_of(name: str) -> str:
    """The ending that says how a file is read, such as `.csv` of `toys.CSV.gz`; "" for none."""
    path = PurePosixPath(name.lower())
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix


class _Unreadable(Exception):
    """From a line on a file cannot be read; holds what `Records.add_problem` takes."""


def _lines(content: BinaryIO) -> Iterator[str]:
    """The lines of a text in UTF-8, which end at line feeds alone; raises `_Unreadable`."""
    number = 0
    while line := content.readline(MAX_LINE + 1):
        number += 1
        if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise _Unreadable(1, "file", "is UTF-16", "save it as UTF-8")
        if len(line) > MAX_LINE:
            fix = "write one row on each line, as text"
            raise _Unreadable(number, "row", f"is longer than {MAX_LINE:,} bytes", fix)
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            problem = f"byte 0x{line[error.start]:02X} is not UTF-8"
            raise _Unreadable(number, "file", problem, "save it as UTF-8") from error


def _any_lines(content: BinaryIO) -> Iterator[str]:
    """The same, ended by carriage returns too; their ends stay, so that csv sees quoted ones."""
    return itertools.chain.from_iterable(io.StringIO(line, newline="") for line in _lines(content))


def _read_csv(content: BinaryIO, records: Records, separator: str = ",") -> Iterator[Record]:
    rows = _csv_rows(content, separator)
    header_line, header = next(rows, (1, []))
    width = len(header)
    while header and not header[-1].strip():
        header.pop()  # a spreadsheet's blank columns
    if not header or not _check_header(header, header_line, records):
        return
    known = [(k, c) for k, c in enumerate(header) if _column_problem(c, records.columns) is None]
    for line, cells in rows:
        if len(cells) not in (len(header), width):
            problem = f"{len(cells)} cells, and the header has {width}"
            fix = 'write one cell for each column, and put a cell with commas in "..."'
            records.add_problem(line, "row", problem, fix)
        elif any(map(str.strip, cells[len(header) :])):
            column = f"column {len(header) + 1}"
            raise _Unreadable(header_line, column, "has no name", "name it, or remove the column")
        elif header[0] in UNNAMED and not cells[0].isdecimal():
            problem = f"the column {header[0]!r} holds {shown(cells[0])!r}"
            records.add_problem(line, "row", problem, "name the column, or remove it")
        else:
            yield line, {name: cells[k] for k, name in known}


def _csv_rows(content: BinaryIO, separator: str) -> Iterator[tuple[int, list[str]]]:
    """The lines and cells of all rows that are not blank, the header's first."""
    lines = _any_lines(content)
    first = next(lines, "")
    chosen = re.fullmatch(r"sep=(.)\r?\n?", first)  # Excel's, before the header
    if not chosen:
        lines = itertools.chain([first], lines)
    reader = csv.reader(lines, strict=True, delimiter=chosen[1] if chosen else separator)
    while True:
        line = reader.line_num + (2 if chosen else 1)
        limit = csv.field_size_limit(MAX_FIELD)  # a global of csv's: for no longer than needed
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            # After this it is unknown where the next row begins.
            fix = 'put a cell with commas, quotes or line breaks in "...", with "" for a quote'
            raise _Unreadable(line, "row", f"is not CSV ({error})", fix) from error
        finally:
            csv.field_size_limit(limit)
        if cells:
            yield line, cells


def _check_header(header: Sequence[str], line: int, records: Records) -> bool:
    """Whether the rows can be read; unknown columns are reported, and their cells left out."""
    doubled, missing = False, [name for name in records.columns.needed if name not in header]
    if missing:
        apart = [mark for mark in ",;\t|" if missing[0] in header[0].split(mark)]
        if apart:
            fix = "use commas, or tabs in a file that ends in .tsv"
            records.add_problem(line, "header", f"cells are separated by {apart[0]!r}", fix)
            return False
        for name in missing:
            records.add_problem(line, "header", f"the column {name!r} is missing", "add it")
    for position, name in enumerate(header):
        if header.index(name) < position:
            doubled = True
            records.add_problem(
                line, shown(name), "is in the header twice", "keep one of the columns"
            )
        elif (position == 0 and name in UNNAMED) or name.startswith(PANDAS_INDEX):
            continue  # left out, as pandas itself does
        elif problem := _column_problem(name, records.columns):
            records.add_problem(line, shown(name) or f"column {position + 1}", *problem)
    return not missing and not doubled


def shown(text: str) -> str:
    """`text` on one short line."""
    short = text if len(text) <= 60 else text[:57] + "..."
    return short if short.isprintable() else ascii(short)


@lru_cache(1024)  # of few names, asked for in every row
def _column_problem(name: str, columns: Columns) -> tuple[str, str] | None:
    """What is wrong with a column's name, and the fix."""
    prefix = columns.prefix
    if name in columns.names:
        return None
    if prefix and name.startswith(prefix) and name != prefix and name.isprintable():
        return None
    if not name.strip():
        return "has no name", "name it, or remove the column"
    close = difflib.get_close_matches(name.strip().lower(), columns.names, n=1, cutoff=0.6)
    other = f"remove it, or call it {prefix}NAME" if prefix else "remove it"
    return "is an unknown column", f"did you mean {close[0]!r}?" if close else other


def _read_jsonl(content: BinaryIO, records: Records) -> Iterator[Record]:
    fix = "write one JSON object per line"
    for line, text in enumerate(_lines(content), start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            records.add_problem(line, "row", f"is not JSON ({error})", fix)
            continue
        if not isinstance(row, dict):
            records.add_problem(line, "row", "is not a JSON object", fix)
            continue
        for name in row:
            if problem := _column_problem(name, records.columns):
                records.add_problem(line, shown(name) or "row", *problem)
        yield line, _present(row, records.columns)


def _present(row: dict[str, Any], columns: Columns) -> dict[str, Any]:
    """The known cells that are not null, which pandas writes as NaN."""
    return {
        name: value
        for name, value in row.items()
        if _column_problem(name, columns) is None
        and not (value is None or (isinstance(value, float) and math.isnan(value)))
    }


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        raise ValueError("a key is there twice")
    return row


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON value")


def _read_parquet(content: BinaryIO, records: Records) -> Iterator[Record]:
    content.seek(0, io.SEEK_END)  # unpacks all of a gzip file, whose errors are not Parquet's
    try:
        file = pq.ParquetFile(content)
        schema = file.schema_arrow
        if not _check_header(schema.names, 1, records):
            return
        for name, kind in zip(schema.names, schema.types, strict=True):
            if not name.startswith(PANDAS_INDEX) and not (
                _is_plain(kind) or (pa.types.is_list(kind) and _is_plain(kind.value_type))
            ):
                raise _Unreadable(1, shown(name), f"has the type {kind}", "store it as text")
        batches = file.iter_batches(BATCH, use_threads=False)
        rows = (row for batch in batches for row in batch.to_pylist())
        for line, row in enumerate(rows, start=2):
            yield line, _present(row, records.columns)
    except (pa.ArrowException, OSError, ValueError) as error:
        problem = f"is not a readable Parquet file ({shown(str(error))})"
        raise _Unreadable(1, "file", problem, "write it again") from error


def _read_text(content: BinaryIO, records: Records) -> Iterator[Record]:
    for number, line in enumerate(_any_lines(content), start=1):
        if prompt := line.strip():
            yield number, {"prompt": prompt}


READERS: dict[str, Callable[[BinaryIO, Records], Iterator[Record]]] = {
    ".csv": _read_csv, ".tsv": partial(_read_csv, separator="\t"), ".jsonl": _read_jsonl,
    ".parquet": _read_parquet, ".txt": _read_text,
}  # fmt: skip


def _is_plain(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    plain = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_null)
    return any(test(kind) for test in (*plain, pa.types.is_floating, pa.types.is_boolean))
