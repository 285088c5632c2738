"""Finished assets. `manifest.json` makes an asset one: it is written once, last, and never again.

It names the files of the one attempt that counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sjc_engine.spec import AssetSpec
from tasks.records import documents
from tasks.records.attempts import FAILURES, last_attempt, read_attempts
from tasks.records.documents import Document
from tasks.store import layout
from tasks.store.interface import AlreadyCommitted, Store
from tasks.tables.projection import check_report

UPLOADS = 4  # files at a time, of one asset


def asset_state(store: Store, asset_id: str) -> str:
    """What the store knows of an asset: `new`, `interrupted`, `failed`, `finished` or `pruned`."""
    folder = layout.asset_folder(asset_id)
    names = store.names(folder)
    if layout.MARKER in names:
        return "finished"
    if layout.TOMBSTONE in names:
        return "pruned"
    last = last_attempt(store, store.list(f"{folder}/a")) if names else None
    if last is None:
        return "new"
    return "failed" if last[1] in FAILURES else "interrupted"


def commit_asset(
    store: Store,
    asset_id: str,
    attempt: str,
    files: Mapping[str, Path],
    spec: AssetSpec,
    report: Mapping[str, Any],
    timings: Mapping[str, float],
    versions: Mapping[str, str],
) -> Document:
    """Upload an attempt's files, then write `manifest.json`: the asset is finished. Returns it.

    `files` maps names within the attempt ("mesh.glb", "views/mesh_0.png") to local files; a mesh
    must be among them. `report` holds columns of table `assets` and, under "views", rows of table
    `views`. Committing the same attempt again returns the manifest that is there; raises
    `AlreadyCommitted` if another attempt was committed first, and `RowError` for a report that
    fits no table, before any upload.
    """
    check_report(report, timings, versions)
    names = sorted(files)
    keys = [layout.file_key(asset_id, f"{attempt}/{name}") for name in names]
    with ThreadPoolExecutor(UPLOADS) as pool:
        stored = list(pool.map(store.put_file, keys, (files[name] for name in names)))
    manifest: Document = {
        "spec": spec.to_json(),
        "files": {
            f"{attempt}/{name}": {"bytes": file.bytes, "sha256": file.sha256}
            for name, file in zip(names, stored, strict=True)
        },
        "report": dict(report),
        "timings": dict(timings),
        "versions": dict(versions),
    }
    data = documents.write_json(manifest)
    documents.parse_marker(data)  # nothing is written that a reader would call damaged
    try:
        store.put_bytes(layout.marker_key(asset_id), data)
    except AlreadyCommitted:
        first = documents.asset_manifest(store, asset_id)
        if first is None or documents.committed_attempt(first) != attempt:
            raise
        return first
    return manifest


def set_aside(store: Store, asset_id: str, why: str) -> None:
    """Make a committed asset an unfinished one, since its files are not what was committed.

    The marker, with the only list of their SHA-256, is moved and not deleted. It goes first: until
    the attempts say so too, the asset is just not finished.
    """
    if store.exists(layout.marker_key(asset_id)):
        documents.set_document_aside(store, layout.marker_key(asset_id), why)
    attempts, damaged = read_attempts(store, asset_id)
    for key in damaged:
        documents.set_document_aside(store, key, why)
    for attempt in attempts:
        if attempt["status"] == "ok":
            document = attempt | {"status": "interrupted", "error_type": "Damaged", "error": why}
            key = layout.attempt_key(asset_id, attempt["attempt"])
            documents.write(store, key, document, replace=True)
