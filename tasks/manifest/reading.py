"""The rows of a manifest's files, each entry under a unique id."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from tasks.manifest.entries import Memo, Row, RowReader
from tasks.manifest.formats import ManifestError, Problem, Records
from tasks.manifest.locations import digest, read_sources

MAX_ROWS = 300_000  # of a manifest: a run holds all of them in memory

Place = tuple[str, int]  # file and line
# A row's entries. Without a given id, the first is "" and theirs are the endings of their seeds.
Entries = tuple[str, list[Row], Records]


@dataclass(frozen=True)
class Manifest:
    """A manifest as it was read.

    name: as the user named it: a file, or a folder of files, here or on S3. sha256: that of the
    file, or of the list of its files'. rows: those without problems.
    """

    name: str
    sha256: str
    rows: list[Row]
    problems: list[Problem]


def read_manifest(manifest: str | Path) -> Manifest:
    """A manifest whose rows have no problems; raises `ManifestError` with every problem."""
    found = read_rows(manifest)
    if found.problems:
        raise ManifestError(found.problems)
    return found


def read_rows(manifest: str | Path, *, allow_pickle: bool = False) -> Manifest:
    """The rows of a manifest, and what is wrong with the others, in the order of files and lines.

    manifest: a CSV, JSONL or Parquet file, a folder of them, s3://bucket/key or s3://bucket/prefix.
    Raises `ManifestError` when there is nothing to read or too much, and when a file changes
    meanwhile.
    """
    name = manifest.as_posix() if isinstance(manifest, Path) else manifest
    sources = read_sources(name)
    found: list[Entries] = []
    given: dict[str, Place] = {}
    count = 0
    for records in sources:
        memo = Memo(allow_pickle=allow_pickle)
        for line, cells in records:
            reader = RowReader(cells, records.folder, memo)
            place, row_id = (records.file, line), reader.row_id()
            if row_id and (first := given.setdefault(row_id, place)) != place:
                reader.add_error("id", *_is_taken(row_id, first, place[0]))
            rows = reader.rows(row_id, records.file, records.sha256, line)
            for error in reader.errors:
                records.add_problem(line, error.key, error.problem, error.fix)
            if not reader.errors:
                found.append((row_id, rows, records))
            count += len(rows)
            if count > MAX_ROWS:
                raise ManifestError([_too_many(*place)])
    rows = _with_ids(found, set(given))
    problems = [
        problem
        for records in sources
        for problem in sorted(records.problems, key=lambda problem: problem.line or 0)
    ]
    return Manifest(name, digest(sources), rows, problems)


def _too_many(file: str, line: int) -> Problem:
    return Problem(
        file,
        line,
        "row",
        f"exceeds the limit of {MAX_ROWS:,} rows of a manifest (each seed of a range is one)",
        "split the list into shards, which are separate manifests, and give each to `sjc run`,"
        " or to `sjc plan` and `sjc dispatch`, with the same --store",
    )


def _with_ids(found: list[Entries], taken: set[str]) -> list[Row]:
    """The rows, those without an id under one that is made from the prompt.

    taken: all given ids. A seed range may give an entry the id of another, which is a problem.
    """
    rows: list[Row] = []
    holders: dict[str, Place] = {}
    repeats: Counter[str] = Counter()
    for row_id, made, records in found:
        if not row_id:
            row_id = _free_id(_slug(made[0].prompt), taken, repeats)
            made = [replace(row, row_id=row_id + row.row_id) for row in made]
        unique = True
        for row in made:
            place = (row.manifest, row.line)
            if (first := holders.setdefault(row.row_id, place)) != place and unique:
                unique = False
                records.add_problem(row.line, "id", *_is_taken(row.row_id, first, row.manifest))
        if unique:
            rows += made
    return rows


def _slug(prompt: str) -> str:
    words = re.findall(r"[a-z0-9]+", prompt.lower())
    sha256 = hashlib.sha256(prompt.encode()).hexdigest()
    return "-".join(words)[:60].strip("-") or f"prompt-{sha256[:8]}"


def _free_id(slug: str, taken: set[str], repeats: Counter[str]) -> str:
    """An id like `slug` that is not taken, and is from now on."""
    row_id = slug
    while row_id in taken:
        repeats[slug] += 1
        row_id = f"{slug}-{repeats[slug] + 1}"
    taken.add(row_id)
    return row_id


def _is_taken(row_id: str, first: Place, here: str) -> tuple[str, str]:
    return f"{row_id!r} is the id of {line_in(*first, here)} too", "make it unique"


def line_in(file: str, line: int, here: str) -> str:
    """A line of a manifest, as a message about the file `here` names it."""
    return f"line {line}" if file == here else f"{file}:{line}"
