"""Freezing a selection of finished assets into a dataset that never changes again.

The data comes first, then the tables about it, then the card, then SHA256SUMS; `manifest.json`,
written last, marks it as complete. Until then `unfinished.json` names the selection it belongs to
and which shards it has. Nothing depends on when, where or how often the command ran: the same
selection gives the same bytes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from sjc_engine.spec import canonical_json
from tasks.datasets.card import card_files
from tasks.datasets.destination import Destination
from tasks.datasets.export import (
    INCLUDED,
    Copy,
    OnCopied,
    folder_rows,
    folder_schema,
    plan_parts,
    write_parquet,
)
from tasks.datasets.frozen_tables import table_files
from tasks.datasets.near_duplicates import SIMILAR
from tasks.datasets.select import (
    FRACTIONS,
    SPLITS,
    Selection,
    SelectionError,
    candidate_rows,
    picture_of,
    sample_json,
    select,
)
from tasks.records.documents import read_document, write_json
from tasks.store.interface import Damaged, NotInStore, Store, StoredFile
from tasks.tables.read import FILES

FORMAT_VERSION = 2
MANIFEST, UNFINISHED, SUMS = "manifest.json", "unfinished.json", "SHA256SUMS"
SHARD_MEGABYTES = 500
SHARD_ASSETS = 10_000


@dataclass(frozen=True)
class DatasetRequest:
    """What a dataset is to hold. Every field shapes its bytes.

    manifest: how the user names it; manifest_sha256: of each of its files.
    include: patterns of files within an asset; () for those of the format.
    fractions: of train, val and test. similar: trigram similarity of near-duplicate prompts.
    dedupe: keep one of them. links: Parquet with addresses in the store instead of bytes.
    """

    where: str | None = None
    manifest: str | None = None
    manifest_sha256: tuple[str, ...] = ()
    format: str = "files"
    include: tuple[str, ...] = ()
    fractions: tuple[float, ...] = FRACTIONS
    similar: float = SIMILAR
    dedupe: bool = False
    links: bool = False
    shard_megabytes: float = SHARD_MEGABYTES
    shard_assets: int = SHARD_ASSETS
    name: str = "3D assets by SJC Foundry"


@dataclass(frozen=True)
class Frozen:
    """A finished dataset: where it is, its manifest.json, and whether it was there before."""

    url: str
    card: str
    document: dict[str, Any]
    was_there: bool


def freeze(
    store: Store, out: str, request: DatasetRequest, on_progress: OnCopied = lambda *_: None
) -> Frozen:
    """Writes the dataset to a folder or s3:// prefix. An interrupted one resumes.

    Raises `QueryError` for wrong SQL, `SelectionError` for what cannot be a dataset or be written
    to `out`, and `StoreError` for a damaged file; then nothing is marked as finished.
    """
    rows = candidate_rows(store, request.where, request.manifest_sha256)
    if not rows:
        raise SelectionError("no finished asset matches; see `sjc assets` for what there is")
    include = request.include or INCLUDED[request.format]
    selection = select(store, rows, include, request.fractions, request.similar, request.dedupe)
    most_bytes = int(request.shard_megabytes * 1e6)
    parts = plan_parts(selection, request.format, most_bytes, request.shard_assets)
    digest = _digest(store, request, selection)
    destination = Destination(out)
    url, card = destination.store.url, destination.store.uri("README.md")
    finished, done = _begin(destination, digest)
    if finished is not None:
        return Frozen(url, card, finished, was_there=True)
    keep = partial(_keep, destination, digest)
    linked = store if request.links else None
    files = Copy(store, destination, request.format, linked, done, keep, on_progress).run(parts)
    if request.format == "files":
        files |= _folder_tables(store, selection, destination)
    for key, data in table_files(selection, parts, request.fractions).items():
        files[key] = destination.put(key, data)
    facts = _facts(request, include, selection, digest, files)
    for key, data in card_files(store, selection, facts, sorted(files)).items():
        files[key] = destination.put(key, data)
    sums = "".join(f"{files[key].sha256}  {key}\n" for key in sorted(files))
    files[SUMS] = destination.put(SUMS, sums.encode())
    document = {**facts, "files": {key: asdict(files[key]) for key in sorted(files)}}
    destination.put(MANIFEST, _json(document))
    destination.store.delete(UNFINISHED)
    return Frozen(url, card, document, was_there=False)


def _folder_tables(
    store: Store, selection: Selection, destination: Destination
) -> dict[str, StoredFile]:
    """`metadata.parquet` beside the assets of each split, as `datasets` wants it."""
    if (schema := folder_schema(selection.samples)) is None:
        return {}
    files = {}
    with ThreadPoolExecutor(FILES) as pool:
        for split in SPLITS:
            if samples := selection.of(split):
                pictures = pool.map(lambda sample: picture_of(store, sample), samples)
                write = partial(write_parquet, schema=schema, found=folder_rows(samples, pictures))
                key = f"data/{split}/metadata.parquet"
                files[key] = destination.put_new(key, write)
    return files


def _digest(store: Store, request: DatasetRequest, selection: Selection) -> str:
    """Identifies the dataset: what was asked for, and every file in it."""
    samples = [[sample_json(sample).decode(), sample.sha256] for sample in selection.samples]
    asked = {**asdict(request), "store": store.url if request.links else None}
    text = canonical_json([FORMAT_VERSION, asked, samples])
    return hashlib.sha256(text.encode()).hexdigest()


def _begin(
    destination: Destination, digest: str
) -> tuple[dict[str, Any] | None, dict[str, StoredFile]]:
    """The finished dataset if it is there, else the shards of an unfinished one."""
    store = destination.store
    for name in (MANIFEST, UNFINISHED):
        try:
            found = read_document(store, name)
        except NotInStore:
            continue
        except Damaged as error:
            raise SelectionError(
                f"-o {store.url}: {name} is damaged ({error.flaw}); name another folder"
            ) from error
        if found.get("selection") != digest:
            kind = "a" if name == MANIFEST else "an unfinished"
            raise SelectionError(
                f"-o {store.url}: holds {kind} dataset of another selection; name another folder"
            )
        if name == MANIFEST:
            return found, {}
        destination.sweep()
        return None, {key: StoredFile(**file) for key, file in found["shards"].items()}
    if next(store.list(), None) is not None:
        raise SelectionError(f"-o {store.url}: has other files in it; name an empty folder")
    _keep(destination, digest, {})
    return None, {}


def _keep(destination: Destination, digest: str, shards: dict[str, StoredFile]) -> None:
    """Notes the shards that are written."""
    kept = {"selection": digest, "shards": {key: asdict(shards[key]) for key in shards}}
    destination.put(UNFINISHED, _json(kept))


def _facts(
    request: DatasetRequest,
    include: Sequence[str],
    selection: Selection,
    digest: str,
    files: dict[str, StoredFile],
) -> dict[str, Any]:
    """manifest.json but for its list of files."""
    samples = selection.samples
    total = sum(request.fractions)
    splits = {}
    for split, fraction in zip(SPLITS, request.fractions, strict=True):
        chosen = selection.of(split)
        splits[split] = {
            "fraction": fraction / total,
            "assets": len(chosen),
            "prompts": len({sample.row["prompt"] for sample in chosen}),
            "bytes": sum(sample.bytes for sample in chosen),
        }
    licences = Counter(sample.row["licence"] for sample in samples)
    return {
        "format_version": FORMAT_VERSION,
        "selection": digest,
        "request": {**asdict(request), "include": list(include)},
        "assets": len(samples),
        "prompts": len({sample.row["prompt"] for sample in samples}),
        "bytes": sum(file.bytes for key, file in files.items() if key.startswith("data/")),
        "splits": splits,
        "licences": dict(sorted(licences.items())),
        "newest": max(sample.row["ended_at"] for sample in samples).isoformat(),
        "near_duplicates": {
            "similar": request.similar,
            "pairs": len(selection.pairs),
            "prompts_left_out": len(selection.dropped),
        },
    }


def _json(document: dict[str, Any]) -> bytes:
    return write_json(document) + b"\n"
