"""Writing the data of a dataset, several files at a time, until all is there or one fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

from tasks.curate_destination import Destination
from tasks.curate_parts import Part, contents, write_parquet, write_tar
from tasks.curate_selection import Sample, sample_json
from tasks.store import Store, StoredFile

SHARDS = 2  # written at a time
READS = 16  # of files of the store, at a time


@dataclass(frozen=True)
class CopyProgress:
    """How much of the data is written."""

    assets: int
    assets_total: int
    bytes: int
    bytes_total: int


class _Stopped(Exception):
    """Another thread failed, or the user gave up."""


class Copy:
    """The data, several parts at a time.

    format: files, webdataset or parquet. linked: the store that Parquet files only point into.
    done: shards that an interrupted run wrote; `keep` hears of all whenever there is one more.
    """

    def __init__(
        self,
        store: Store,
        destination: Destination,
        format: str,
        linked: Store | None,
        done: dict[str, StoredFile],
        keep: Callable[[dict[str, StoredFile]], None],
        on_progress: Callable[[CopyProgress], None],
    ) -> None:
        self.store, self.destination = store, destination
        self.format, self.linked = format, linked
        self.done, self.keep, self.on_progress = done, keep, on_progress
        self.progress = CopyProgress(0, 0, 0, 0)
        self.lock, self.stop = threading.Lock(), threading.Event()

    def run(self, parts: Sequence[Part]) -> dict[str, StoredFile]:
        """Size and SHA-256 of every file by key. Raises `StoreError` for a damaged one."""
        assets = sum(len(part.samples) for part in parts)
        self.progress = CopyProgress(0, assets, 0, sum(part.bytes for part in parts))
        whole = self.format == "files"
        write = self._write_files if whole else self._write_shard
        files: dict[str, StoredFile] = {}
        with (
            ThreadPoolExecutor(READS) as reads,
            ThreadPoolExecutor(READS if whole else SHARDS) as pool,
        ):
            futures = [pool.submit(write, part, reads) for part in parts]
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
        made = {f"{part.key}/{name}": file.stored for name, file in sample.files.items()}
        if not all(self.destination.holds(key, stored) for key, stored in made.items()):
            for _, found in contents(self.store, [sample], reads):
                for name, data in found.items():
                    self.destination.put(f"{part.key}/{name}", data)
        self._report([sample])
        key = f"{part.key}/asset.json"
        return made | {key: self.destination.put(key, about)}

    def _write_shard(self, part: Part, reads: Executor) -> dict[str, StoredFile]:
        stored = self.done.get(part.key)
        if stored and self.destination.holds(part.key, stored):
            self._report(part.samples)
            return {part.key: stored}
        with self.destination.new_file(part.key) as target:
            if self.format == "webdataset":
                write_tar(target, self._found(part, reads))
            else:
                write_parquet(target, part.samples, self._found(part, reads), self.linked)
        with self.lock:
            self.done[part.key] = target.stored()
            self.keep(self.done)
        return {part.key: target.stored()}

    def _found(self, part: Part, reads: Executor) -> Iterator[tuple[Sample, dict[str, bytes]]]:
        if self.linked:
            samples: Iterator[tuple[Sample, dict[str, bytes]]] = ((s, {}) for s in part.samples)
        else:
            samples = contents(self.store, part.samples, reads)
        for sample, files in samples:
            self._check()
            yield sample, files
            self._report([sample])

    def _check(self) -> None:
        if self.stop.is_set():
            raise _Stopped

    def _report(self, samples: Sequence[Sample]) -> None:
        with self.lock:
            now = self.progress
            size = sum(sample.bytes for sample in samples)
            self.progress = CopyProgress(
                now.assets + len(samples), now.assets_total, now.bytes + size, now.bytes_total
            )
            self.on_progress(self.progress)
