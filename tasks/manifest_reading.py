"""The rows of a manifest's files, read as a stream, each under an id of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tasks.manifest_files import ManifestError, Problem, Records
from tasks.manifest_ids import Place, RowIds
from tasks.manifest_rows import Known, Row, RowReader, given_id
from tasks.manifest_sources import digest, read_sources

MOST_PROBLEMS = 100_000  # that are told: nobody reads more


@dataclass(frozen=True)
class Manifest:
    """A manifest without mistakes of its own.

    name: as the user named it: a file, or a folder of files, here or on S3. sha256: that of the
    file, or of the list of its files'.
    """

    name: str
    sha256: str
    rows: list[Row]


class Reading:
    """The rows of a manifest, one after the other, so that any number of them fits into memory.

    manifest: a CSV, JSONL or Parquet file, a folder of them, s3://bucket/key or s3://bucket/prefix.
    Rows that are wrong are left out; `finish` tells of them. Raises `ManifestError` when there is
    nothing to read, and when a file changes meanwhile.
    """

    def __init__(self, manifest: str | Path) -> None:
        self.name = manifest.as_posix() if isinstance(manifest, Path) else manifest
        self._sources = read_sources(self.name)
        self.sha256 = digest(self._sources)

    def __iter__(self) -> Iterator[Row]:
        ids = RowIds()
        for source in self._sources:  # given ids go first, so all of them have to be known
            file, unheard = source.records.file, Records(source.records.file, source.records.open)
            for record in unheard:
                if row_id := given_id(record.cells)[0]:
                    ids.give(row_id, file, record.line)
        wrong = 0
        for source in self._sources:
            records = source.records
            known = Known()
            for record in records:
                reader = RowReader(record, records, source.folder, source.sha256, known)
                yield from _entries(reader, ids)
                if len(records.problems) + wrong > MOST_PROBLEMS:
                    self.finish()
            wrong += len(records.problems)

    def finish(self) -> None:
        """Raises `ManifestError` with every problem so far, if there are any."""
        if problems := self.problems:
            raise ManifestError(problems)

    @property
    def problems(self) -> list[Problem]:
        """What is wrong so far, in the order of the files and their lines."""
        return [
            problem
            for source in self._sources
            for problem in sorted(source.records.problems, key=lambda problem: problem.line or 0)
        ]


def _entries(reader: RowReader, ids: RowIds) -> list[Row]:
    """A record's entries under ids that no other row has; none if anything is wrong with it."""
    file, line = reader.records.file, reader.line
    row_id = reader.row_id()
    if not row_id:
        row_id = ids.derive(reader.slug(), file, line)
    elif ids.holder(row_id) != (file, line):
        _blame_twin(reader, row_id, ids.holder(row_id))
    rows = reader.rows(row_id)
    twin = ids.twin(row_id, [row.row_id for row in rows], file, line) if rows else None
    if twin is not None:  # a seed range may give a row the id of another
        _blame_twin(reader, *twin)
        return []
    return rows


def read_manifest(manifest: str | Path) -> Manifest:
    """The rows of a manifest, as `Reading` reads them.

    Raises `ManifestError` with every problem.
    """
    reading = Reading(manifest)
    rows = list(reading)
    reading.finish()
    return Manifest(reading.name, reading.sha256, rows)


def _blame_twin(reader: RowReader, row_id: str, other: Place) -> None:
    place = line_in(*other, reader.records.file)
    reader.blame("id", f"{row_id!r} is the id of {place} too", "make it unique")


def line_in(file: str, line: int, here: str) -> str:
    """A line of a manifest, said in a message about `here`."""
    return f"line {line}" if file == here else f"{file}:{line}"
