"""The data of a dataset: verified copies of the store's files, as files, tar shards or Parquet."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.columns import TEXT, TEXT_MAP, TEXTS
from tasks.curate_destination import Digesting
from tasks.curate_selection import SPLITS, Sample, Selection, sample_json
from tasks.documents import read_file
from tasks.schemas import SCHEMAS
from tasks.store import Store

# What each format holds by default; a loader's samples should be small.
INCLUDED = {
    "files": ("mesh.glb", "preview.png", "thumbnail.webp", "turntable.mp4", "views/*.png"),
    "webdataset": ("mesh.glb", "preview.png"),
    "parquet": ("mesh.glb", "preview.png"),
}
AHEAD = 16  # samples that are read while others are written
GROUP_BYTES = 64 << 20  # of a Parquet row group: what a reader holds at once
_METADATA = [field for field in SCHEMAS["assets"] if not field.name.startswith("uri_")]
ROW_SCHEMA = pa.schema(
    [
        *_METADATA,
        pa.field("tags", TEXTS),
        pa.field("meta", TEXT_MAP),
        pa.field("licence", TEXT),
        pa.field("licence_of_prompt", TEXT),
    ]
)


@dataclass(frozen=True)
class Part:
    """A file of the dataset with these samples; of format `files`, a folder."""

    key: str
    samples: list[Sample]

    @property
    def bytes(self) -> int:
        return sum(sample.bytes for sample in self.samples)


def plan_parts(selection: Selection, format: str, most_bytes: int, most_samples: int) -> list[Part]:
    """Where each sample goes. Shards hold one split and at least one sample, in order."""
    if format == "files":
        return [Part(f"data/{sample.asset_id}", [sample]) for sample in selection.samples]
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


def contents(
    store: Store, samples: Sequence[Sample], pool: Executor
) -> Iterator[tuple[Sample, dict[str, bytes]]]:
    """Each sample with its files, read ahead in `pool`; raises `StoreError` for a damaged one."""
    left = iter(samples)
    while some := list(islice(left, AHEAD)):
        yield from zip(some, pool.map(partial(_read, store), some), strict=True)


def _read(store: Store, sample: Sample) -> dict[str, bytes]:
    return {name: read_file(store, file) for name, file in sample.files.items()}


def member(name: str) -> str:
    """What stands behind the asset id in a tar: glb for mesh.glb, mesh_0.png for views/mesh_0.png.

    The files that there is one of go by their ending alone, as WebDataset wants it.
    """
    path = PurePosixPath(name)
    alone = {"mesh.glb", "preview.png", "thumbnail.webp", "turntable.mp4"}
    return path.suffix[1:] if name in alone else path.name


def column(name: str) -> str:
    """The name of a file's column in Parquet: glb, png, mesh_0_png."""
    return re.sub(r"\W", "_", member(name))


def write_tar(target: Digesting, found: Iterator[tuple[Sample, dict[str, bytes]]]) -> None:
    """A tar whose samples are contiguous; owner, mode and time are always the same."""
    for sample, files in found:
        members = {member(name): data for name, data in files.items()}
        for name, data in {**members, "json": sample_json(sample)}.items():
            about = tarfile.TarInfo(f"{sample.asset_id}.{name}")
            about.size = len(data)
            target.write(about.tobuf(tarfile.USTAR_FORMAT))
            target.write(data)
            target.write(bytes(-len(data) % tarfile.BLOCKSIZE))
    target.write(bytes(2 * tarfile.BLOCKSIZE))


def write_parquet(
    target: Digesting,
    samples: Sequence[Sample],
    found: Iterator[tuple[Sample, dict[str, bytes]]],
    linked: Store | None = None,
) -> None:
    """Rows with the files' bytes in binary columns, in row groups of about 64 MB.

    With `linked`, the store of the files: their addresses there, and their SHA-256, instead.
    """
    names = sorted({name for sample in samples for name in sample.files})
    if linked:
        ends = ("uri", "sha256")
        about_files = [pa.field(f"{column(name)}_{end}", TEXT) for name in names for end in ends]
    else:
        about_files = [pa.field(column(name), pa.binary()) for name in names]
    schema = pa.schema([*ROW_SCHEMA, pa.field("split", TEXT), *about_files])
    compressed = dict.fromkeys(schema.names, "zstd") | {column(name): "none" for name in names}
    with pq.ParquetWriter(
        target,
        schema,
        compression=compressed,
        use_dictionary=["prior", "prior_revision", "recipe", "licence"],
        write_page_checksum=True,
    ) as writer:
        rows, size = [], 0
        for sample, files in found:
            row = {**sample.row, "split": sample.split}
            row |= {column(name): data for name, data in files.items()}
            if linked:
                for name, file in sample.files.items():
                    row[f"{column(name)}_uri"] = linked.uri(file.key)
                    row[f"{column(name)}_sha256"] = file.stored.sha256
            rows.append(row)
            size += sum(map(len, files.values()))
            if size >= GROUP_BYTES:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows, size = [], 0
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema))
