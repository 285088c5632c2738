"""Removing finished assets from the store, so that no run makes them again.

The commit marker becomes a tombstone, `pruned.json`, byte for byte: from then on nobody takes the
asset for a finished one. What follows may be repeated after a crash, by a second prune or a repair:
its attempts end as `pruned`, with all that is known of them, and its files go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from tasks.records import documents
from tasks.records.attempts import asset_attempts
from tasks.records.documents import Document
from tasks.store import layout
from tasks.store.interface import Store
from tasks.store.leases import Leases
from tasks.tables.projection import RESULTS, result_of
from tasks.tables.write import TableWriter


def sizes(store: Store, asset_ids: Sequence[str]) -> dict[str, list[int]]:
    """The bytes of each file of each asset. Raises `StoreError` for one that is not finished."""

    def size(asset_id: str) -> list[int]:
        manifest = (
            documents.asset_manifest(store, asset_id)
            or documents.tombstone(store, asset_id)  # of a prune that did not come to its end
            or documents.finished_manifest(store, asset_id)
        )
        return [file["bytes"] for file in manifest["files"].values()]

    return dict(zip(asset_ids, documents.read_ahead(size, asset_ids), strict=True))


def prune_assets(
    store: Store,
    asset_ids: Sequence[str],
    why: str,
    held: Leases,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Removes finished assets; returns those that were skipped, since a run works on them.

    why: for the column `error` of their rows.
    """
    skipped = []
    with TableWriter(store) as rows:
        for done, asset_id in enumerate(asset_ids, 1):
            if held.take(asset_id):
                if store.exists(layout.marker_key(asset_id)):
                    store.move(layout.marker_key(asset_id), layout.tombstone_key(asset_id))
                for attempt in finish_prune(store, asset_id, why):
                    rows.record(attempt, {})
                held.free(asset_id)
            else:
                skipped.append(asset_id)
            on_progress(done, len(asset_ids))
    return skipped


def finish_prune(store: Store, asset_id: str, why: str) -> list[Document]:
    """All that follows the tombstone; returns the attempts that are `pruned` by then."""
    manifest = documents.tombstone(store, asset_id) or {}
    pruned = []
    for attempt in asset_attempts(store, asset_id):
        document = attempt
        if attempt["status"] == "ok":
            results = {part: result_of(attempt, manifest, part) for part in RESULTS}
            document = (
                attempt | results | {"status": "pruned", "error_type": "Pruned", "error": why}
            )
            key = layout.attempt_key(asset_id, attempt["attempt"])
            documents.write(store, key, document, replace=True)
        if document["status"] == "pruned":
            pruned.append(document)
    with ThreadPoolExecutor(documents.LOOKUPS) as pool:
        keys = list(store.list(f"{layout.asset_folder(asset_id)}/"))
        list(pool.map(store.delete, filter(_goes, keys)))
    return pruned


def is_half_pruned(store: Store, asset_id: str) -> bool:
    """Whether the asset has its tombstone, and some of what should have gone with it."""
    keys = list(store.list(f"{layout.asset_folder(asset_id)}/"))
    if layout.tombstone_key(asset_id) not in keys:
        return False
    ok = any(attempt["status"] == "ok" for attempt in asset_attempts(store, asset_id))
    return ok or any(map(_goes, keys))


def _goes(key: str) -> bool:
    """Whether it goes with its asset: not the tombstone, nor attempts' documents."""
    name = key.rpartition("/")[2]
    return not name.startswith(("attempt.", "pruned."))
