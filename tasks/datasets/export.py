"""The data of a dataset: verified copies of the store's files, as files, tar shards or Parquet.

Several parts are written at a time, until all are there or one fails.
"""

from __future__ import annotations

import io
import re
import tarfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Executor, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from sjc_engine.asset_files import MESH, PREVIEW, THUMBNAIL, TURNTABLE, VIEWS
from tasks.datasets.destination import Destination
from tasks.datasets.features import FILE, kind_of, row_fields, with_features
from tasks.datasets.select import SPLITS, Sample, Selection, sample_json
from tasks.records.documents import read_file
from tasks.store.interface import CHUNK, Store, StoredFile
from tasks.tables.columns import TEXT

ONCE = (MESH, PREVIEW, THUMBNAIL, TURNTABLE)  # files that an asset has one of
# What each format holds by default; a loader's samples should be small.
INCLUDED = {
    "files": (*ONCE, f"{VIEWS}/*.png"),
    "webdataset": (MESH, PREVIEW),
    "parquet": (MESH, PREVIEW),
}
AHEAD = 16  # samples that are read while others are written
GROUP_BYTES = 64 << 20  # of a Parquet row group: what a reader holds at once


@dataclass(frozen=True)
class Part:
    """A file of the dataset with these samples; of format `files`, a folder."""

    key: str
    samples: list[Sample]


def plan_parts(selection: Selection, format: str, most_bytes: int, most_samples: int) -> list[Part]:
    """Where each sample goes. Shards hold one split and at least one sample, in order."""
    if format == "files":
        return [Part(f"data/{s.split}/{s.asset_id}", [s]) for s in selection.samples]
    suffix = "tar" if format == "webdataset" else "parquet"
    parts: list[Part] = []
    for split in SPLITS:
        shards: list[list[Sample]] = []
        size = 0
        for sample in selection.of(split):
            if not shards or len(shards[-1]) >= most_samples or size + sample.bytes > most_bytes:
                shards.append([])
                size = 0
            shards[-1].append(sample)
            size += sample.bytes
        parts += [
            Part(f"data/{split}-{number:05}.{suffix}", samples)
            for number, samples in enumerate(shards)
        ]
    return parts


def member(name: str) -> str:
    """What stands behind the asset id in a tar: glb for mesh.glb, mesh_0.png for views/mesh_0.png.

    The files that there is one of go by their ending alone, as WebDataset wants it.
    """
    path = PurePosixPath(name)
    return path.suffix[1:] if name in ONCE else path.name


def column(name: str) -> str:
    """The name of a file's column in Parquet: glb, png, mesh_0_png."""
    return re.sub(r"\W", "_", member(name))


def write_tar(target: BinaryIO, found: Iterator[tuple[Sample, dict[str, bytes]]]) -> None:
    """A tar whose samples are contiguous; owner, mode and time are always the same."""
    form = tarfile.USTAR_FORMAT
    with tarfile.TarFile(fileobj=target, mode="w", format=form, copybufsize=CHUNK) as tar:
        for sample, files in found:
            members = {member(name): data for name, data in files.items()}
            for name, data in {**members, "json": sample_json(sample)}.items():
                about = tarfile.TarInfo(f"{sample.asset_id}.{name}")
                about.size = len(data)
                tar.addfile(about, io.BytesIO(data))


Row = tuple[dict[str, Any], int]  # and the bytes of its files


def parquet_schema(samples: Sequence[Sample], *, linked: bool = False) -> pa.Schema:
    """Rows with the files' bytes; with `linked`, their addresses and SHA-256 instead."""
    names = sorted({name for sample in samples for name in sample.files})
    fields = row_fields([sample.row for sample in samples])
    if linked:
        ends = ("uri", "sha256")
        return pa.schema(
            [*fields, *(pa.field(f"{column(n)}_{e}", TEXT) for n in names for e in ends)]
        )
    kinds = {column(name): kind for name in names if (kind := kind_of(name))}
    files = [pa.field(column(n), FILE if column(n) in kinds else pa.binary()) for n in names]
    return with_features(pa.schema([*fields, *files]), kinds)


def parquet_rows(
    found: Iterator[tuple[Sample, dict[str, bytes]]], linked: Store | None = None
) -> Iterator[Row]:
    """As `parquet_schema` has them; `linked` is the store of the files."""
    for sample, files in found:
        row = {**sample.row, "split": sample.split}
        for name, data in files.items():
            path = f"{sample.asset_id}.{member(name)}"
            row[column(name)] = {"bytes": data, "path": path} if kind_of(name) else data
        if linked:
            for name, file in sample.files.items():
                row[f"{column(name)}_uri"] = linked.uri(file.key)
                row[f"{column(name)}_sha256"] = file.stored.sha256
        yield row, sum(map(len, files.values()))


def folder_schema(samples: Sequence[Sample]) -> pa.Schema | None:
    """Of the `metadata.parquet` beside the folders of assets; None if `datasets` cannot load them.

    It loads files of one kind by the paths in such a table: meshes or, without them, pictures.
    Beside meshes the table holds each asset's small picture itself.
    """
    names = sorted({name for sample in samples for name in sample.files})
    meshes = [name for name in names if kind_of(name) == "Mesh"]
    files = [pa.field(f"{column(n)}_file_name", TEXT) for n in meshes or names if kind_of(n)]
    pictures = {"picture": "Image"} if meshes else {}
    fields = row_fields([sample.row for sample in samples])
    schema = pa.schema([*fields, *files, *(pa.field(name, FILE) for name in pictures)])
    return with_features(schema, pictures) if files else None


def folder_rows(samples: Sequence[Sample], pictures: Iterator[bytes | None]) -> Iterator[Row]:
    """As `folder_schema` has them."""
    for sample, picture in zip(samples, pictures, strict=True):
        row = {**sample.row, "split": sample.split}
        for name in sample.files:
            row[f"{column(name)}_file_name"] = f"{sample.asset_id}/{name}"
        if picture and sample.picture:
            path = f"{sample.asset_id}{PurePosixPath(sample.picture.key).suffix}"
            row["picture"] = {"bytes": picture, "path": path}
        yield row, len(picture or b"")


def write_parquet(target: BinaryIO, schema: pa.Schema, found: Iterator[Row]) -> None:
    """Rows in row groups of about 64 MB; files are compressed already."""
    files = [f"{f.name}.bytes" for f in schema if f.type == FILE]
    files += [f.name for f in schema if f.type == pa.binary()]
    compressed = dict.fromkeys(schema.names, "zstd") | dict.fromkeys(files, "none")
    with pq.ParquetWriter(
        target,
        schema,
        compression=compressed,
        use_dictionary=["prior", "prior_revision", "recipe", "licence"],
        write_page_checksum=True,
    ) as writer:
        rows, size = [], 0
        for row, taken in found:
            rows.append(row)
            size += taken
            if size >= GROUP_BYTES:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows, size = [], 0
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema))


SHARDS = 2  # written at a time
READS = 16  # of files of the store, at a time


# Hears how much of the data is written: assets, of how many, and bytes, of how many.
OnCopied = Callable[[int, int, int, int], None]


class _Stopped(Exception):
    """Another thread failed, or the user gave up."""


@dataclass(eq=False)
class Copy:
    """The data, several parts at a time.

    format: files, webdataset or parquet. linked: the store that Parquet files only point into.
    done: shards that an interrupted run wrote; `keep` hears of all whenever there is one more.
    """

    store: Store
    destination: Destination
    format: str
    linked: Store | None
    done: dict[str, StoredFile]
    keep: Callable[[dict[str, StoredFile]], None]
    on_progress: OnCopied
    assets: int = 0  # that are written
    written: int = 0  # bytes
    lock: threading.Lock = field(default_factory=threading.Lock)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self, parts: Sequence[Part]) -> dict[str, StoredFile]:
        """Size and SHA-256 of every file by key. Raises `StoreError` for a damaged one."""
        sizes = [sample.bytes for part in parts for sample in part.samples]
        self.total = len(sizes), sum(sizes)
        # One for all parts: readers that stream them expect no other
        samples = [sample for part in parts for sample in part.samples]
        self._schema = parquet_schema(samples, linked=self.linked is not None)
        whole = self.format == "files"
        write = self._write_files if whole else self._write_shard
        files: dict[str, StoredFile] = {}
        with (
            ThreadPoolExecutor(READS) as reads,
            ThreadPoolExecutor(READS if whole else SHARDS) as pool,
        ):
            futures = [pool.submit(write, part, reads) for part in parts]
            try:  # until then no failure's reason is that others stopped
                ended, _ = wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                self.stop.set()
                pool.shutdown(cancel_futures=True)
            for future in ended:
                files |= future.result()
        return files

    def _write_files(self, part: Part, reads: Executor) -> dict[str, StoredFile]:
        """An asset's folder; what an interrupted run wrote of it stays."""
        (sample,) = part.samples
        about = sample_json(sample)
        self._check()
        made = {f"{part.key}/{name}": file.stored for name, file in sample.files.items()}
        if not all(self.destination.holds(key, stored) for key, stored in made.items()):
            for name, file in sample.files.items():
                self.destination.put(f"{part.key}/{name}", read_file(self.store, file))
        self._report([sample])
        key = f"{part.key}/asset.json"
        return made | {key: self.destination.put(key, about)}

    def _write_shard(self, part: Part, reads: Executor) -> dict[str, StoredFile]:
        stored = self.done.get(part.key)
        if stored and self.destination.holds(part.key, stored):
            self._report(part.samples)
            return {part.key: stored}

        def write(target: BinaryIO) -> None:
            if self.format == "webdataset":
                write_tar(target, self._found(part, reads))
            else:
                rows = parquet_rows(self._found(part, reads), self.linked)
                write_parquet(target, self._schema, rows)

        stored = self.destination.put_new(part.key, write)
        with self.lock:
            self.done[part.key] = stored
            self.keep(self.done)
        return {part.key: stored}

    def _found(self, part: Part, reads: Executor) -> Iterator[tuple[Sample, dict[str, bytes]]]:
        """Each sample with its files, read ahead."""
        left = iter(part.samples)
        while some := list(islice(left, AHEAD)):
            for sample, files in zip(some, reads.map(self._read, some), strict=True):
                self._check()
                yield sample, files
                self._report([sample])

    def _read(self, sample: Sample) -> dict[str, bytes]:
        if self.linked:
            return {}
        return {name: read_file(self.store, file) for name, file in sample.files.items()}

    def _check(self) -> None:
        if self.stop.is_set():
            raise _Stopped

    def _report(self, samples: Sequence[Sample]) -> None:
        with self.lock:
            self.assets += len(samples)
            self.written += sum(sample.bytes for sample in samples)
            self.on_progress(self.assets, self.total[0], self.written, self.total[1])
