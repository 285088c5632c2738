"""Freezing a selection of finished assets into a dataset that never changes again.

The data comes first, then the tables about it, then the card, then SHA256SUMS; `manifest.json`,
written last, says that all of it is there. Until then `unfinished.json` says whose folder this is,
and which shards it has. Nothing depends on when, where or how often the command ran: the same
selection gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from sjc_engine.spec import canonical_json
from tasks.commit import read_document
from tasks.curate_card import card_files
from tasks.curate_destination import Destination
from tasks.curate_parts import INCLUDED, Part, contents, plan_parts, write_parquet, write_tar
from tasks.curate_selection import (
    FRACTIONS,
    SPLITS,
    Sample,
    Selection,
    SelectionError,
    candidate_rows,
    sample_json,
    select,
)
from tasks.curate_tables import table_files
from tasks.near_duplicates import SIMILAR
from tasks.store import NotInStore, Store, StoredFile

FORMAT_VERSION = 1
MANIFEST, UNFINISHED, SUMS = "manifest.json", "unfinished.json", "SHA256SUMS"
SHARD_MEGABYTES = 500
SHARD_ASSETS = 10_000
SHARDS = 2  # written at a time
READS = 16  # of files of the store, at a time


@dataclass(frozen=True)
class Request:
    """What a dataset is to hold. Every field shapes its bytes.

    manifest: how the user names it; manifest_sha256: of its content.
    include: patterns of files within an asset; () for those of the format.
    fractions: of train, val and test. similar: trigram similarity of near-duplicate prompts.
    dedupe: keep one of them. links: Parquet with addresses in the store instead of bytes.
    """

    where: str | None = None
    manifest: str | None = None
    manifest_sha256: str | None = None
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


@dataclass(frozen=True)
class Progress:
    """How much of the data is written."""

    assets: int
    assets_total: int
    bytes: int
    bytes_total: int


def freeze(
    store: Store,
    out: str,
    request: Request,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Frozen:
    """Writes the dataset to a folder or s3:// prefix. An interrupted one goes on where it was.

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
    copy = _Copy(store, destination, request, digest, parts, done, on_progress)
    files = copy.run()
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


def _digest(store: Store, request: Request, selection: Selection) -> str:
    """What tells this dataset from any other."""
    samples = [
        [sample_json(sample).decode(), {name: file.sha256 for name, file in sample.files.items()}]
        for sample in selection.samples
    ]
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
    destination.put(UNFINISHED, _json({"selection": digest, "shards": {}}))
    return None, {}


class _Stopped(Exception):
    """Another thread failed, or the user gave up."""


class _Copy:
    """The data, several parts at a time."""

    def __init__(
        self,
        store: Store,
        destination: Destination,
        request: Request,
        digest: str,
        parts: Sequence[Part],
        done: dict[str, StoredFile],
        on_progress: Callable[[Progress], None],
    ) -> None:
        self.store, self.destination, self.request = store, destination, request
        self.digest, self.parts, self.done = digest, parts, done
        self.on_progress = on_progress
        assets = sum(len(part.samples) for part in parts)
        self.progress = Progress(0, assets, 0, sum(part.bytes for part in parts))
        self.lock, self.stop = threading.Lock(), threading.Event()

    def run(self) -> dict[str, StoredFile]:
        """Size and SHA-256 of every file by key."""
        whole = self.request.format == "files"
        write = self._write_files if whole else self._write_shard
        files: dict[str, StoredFile] = {}
        with (
            ThreadPoolExecutor(READS) as reads,
            ThreadPoolExecutor(READS if whole else SHARDS) as pool,
        ):
            futures = [pool.submit(write, part, reads) for part in self.parts]
            try:
                for future in futures:
                    files |= future.result()
            except BaseException:
                self.stop.set()
                pool.shutdown(cancel_futures=True)
                for future in futures:  # the first failure's reason, not that others stopped
                    if not future.cancelled() and not isinstance(future.exception(), _Stopped):
                        future.result()
                raise
        return files

    def _write_files(self, part: Part, reads: Executor) -> dict[str, StoredFile]:
        """An asset's folder; what an interrupted run wrote of it stays."""
        (sample,) = part.samples
        about = sample_json(sample)
        self._check()
        made = {f"{part.key}/{name}": stored for name, stored in sample.files.items()}
        if not all(self.destination.holds(key, stored) for key, stored in made.items()):
            for _, found in contents(self.store, [sample], reads):
                for name, data in found.items():
                    self.destination.put(f"{part.key}/{name}", data)
        self._tell([sample])
        key = f"{part.key}/asset.json"
        return made | {key: self.destination.put(key, about)}

    def _write_shard(self, part: Part, reads: Executor) -> dict[str, StoredFile]:
        stored = self.done.get(part.key)
        if stored and self.destination.holds(part.key, stored):
            self._tell(part.samples)
            return {part.key: stored}
        with self.destination.new_file(part.key) as target:
            if self.request.format == "webdataset":
                write_tar(target, self._found(part, reads))
            else:
                linked = self.store if self.request.links else None
                write_parquet(target, part.samples, self._found(part, reads), linked)
        with self.lock:
            self.done[part.key] = target.stored()
            shards = {key: asdict(stored) for key, stored in sorted(self.done.items())}
            self.destination.put(UNFINISHED, _json({"selection": self.digest, "shards": shards}))
        return {part.key: target.stored()}

    def _found(self, part: Part, reads: Executor) -> Iterator[tuple[Sample, dict[str, bytes]]]:
        if self.request.links:
            samples: Iterator[tuple[Sample, dict[str, bytes]]] = ((s, {}) for s in part.samples)
        else:
            samples = contents(self.store, part.samples, reads)
        for sample, files in samples:
            self._check()
            yield sample, files
            self._tell([sample])

    def _check(self) -> None:
        if self.stop.is_set():
            raise _Stopped

    def _tell(self, samples: Sequence[Sample]) -> None:
        with self.lock:
            now = self.progress
            size = sum(sample.bytes for sample in samples)
            self.progress = Progress(
                now.assets + len(samples), now.assets_total, now.bytes + size, now.bytes_total
            )
            self.on_progress(self.progress)


def _facts(
    request: Request,
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
    licences: dict[str, int] = {}
    for sample in samples:
        licences[sample.row["licence"]] = licences.get(sample.row["licence"], 0) + 1
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
    return json.dumps(document, ensure_ascii=False, indent=1, sort_keys=True).encode() + b"\n"
