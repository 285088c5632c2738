"""The JSON that is the truth: attempts at an asset, the commit marker, and runs.

Every attempt writes under its own folder, so that two runs of one asset never meet in a file.
`attempt.json` is written when an attempt starts and when it ends. `manifest.json` names the files
of the one attempt that counts; it is written once, last, and never again. An asset is finished if
and only if its `manifest.json` exists.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sjc_engine.spec import AssetSpec
from tasks.documents import (
    Document,
    asset_manifest,
    attempt_key,
    attempt_keys,
    committed_attempt,
    marker_key,
    now,
    parse_marker,
    read_attempt,
    read_document,
    set_document_aside,
    write_json,
)
from tasks.rows import check_report
from tasks.store import AlreadyCommitted, Damaged, Store

if TYPE_CHECKING:
    from tasks.manifest import Entry

UPLOADS = 4  # files at a time, of one asset
LOOKUPS = 8  # assets at a time
FAILURES = ("failed", "diverged", "timeout", "cancelled")  # are not tried again by themselves

_ATTEMPT_FILE = re.compile(r"assets/[0-9a-f]{16}/a(\d{2,})/.+")
_ATTEMPT_DOCUMENT = re.compile(r"assets/[0-9a-f]{16}/a\d{2,}/attempt\.(json|(.+\.)?damaged)")


def new_run_id() -> str:
    """An id that sorts by time, such as ``20250131T101502-3f9a2c``."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


def asset_attempts(store: Store, asset_id: str) -> list[Document]:
    """Every attempt's document, the oldest first; a damaged one costs its attempt and no other."""
    return _attempts(store, asset_id)[0]


def _attempts(store: Store, asset_id: str) -> tuple[list[Document], list[str]]:
    """Every attempt's document, the oldest first, and the keys of those that are damaged."""
    documents, damaged = [], []
    for key in sorted(attempt_keys(store, asset_id), key=_number_in):
        try:
            documents.append(read_attempt(store, key))
        except Damaged:
            damaged.append(key)
    return documents, damaged


def asset_state(store: Store, asset_id: str) -> str:
    """What the store knows of an asset: `new`, `interrupted`, `failed` or `finished`."""
    keys = list(store.list(f"assets/{asset_id}/"))
    if marker_key(asset_id) in keys:
        return "finished"
    last = last_attempt(store, keys)
    if last is None:
        return "new"
    return "failed" if last[1] in FAILURES else "interrupted"


def last_attempt(store: Store, keys: Iterable[str]) -> tuple[int, str] | None:
    """The number and the status of an asset's last attempt, None if there is none.

    keys: of the asset's files. An attempt whose document is damaged, or was set aside, is
    `interrupted`.
    """
    keys = [key for key in keys if _ATTEMPT_DOCUMENT.fullmatch(key)]
    if not keys:
        return None
    key = max(keys, key=lambda key: (_number_in(key), key.endswith(".json")))
    try:
        status = read_attempt(store, key)["status"] if key.endswith(".json") else "interrupted"
    except Damaged:
        status = "interrupted"
    return _number_in(key), status


def settled_attempts(store: Store, asset_ids: Iterable[str]) -> dict[str, int]:
    """By asset, the number of the last attempt that has ended, 0 if none has.

    Later attempts that end are news. Attempts have an order of their own: clocks of machines
    differ, and some go back.
    """

    def settled(asset_id: str) -> int:
        number, status = last_attempt(store, store.list(f"assets/{asset_id}/a")) or (0, "")
        return number - 1 if status == "running" else number

    ids = list(asset_ids)
    with ThreadPoolExecutor(LOOKUPS) as pool:
        return dict(zip(ids, pool.map(settled, ids), strict=True))


def attempt_number(attempt: str) -> int:
    """3 for "a03"."""
    return int(attempt.removeprefix("a"))


def _number_in(key: str) -> int:
    return attempt_number(key.split("/")[2])


def start_attempt(
    store: Store, spec: AssetSpec, run_id: str, prior_coverage: float | None = None
) -> Document:
    """Claim the asset's next attempt and write its `attempt.json` with status `running`."""
    about = {
        "asset_id": spec.asset_id,
        "field_id": spec.field_id,
        "spec": spec.to_json(),
        "prior_coverage": prior_coverage,
    }
    return _claim(store, about, run_id)


def start_evaluation(store: Store, committed: Mapping[str, Any], run_id: str) -> Document:
    """The same at a finished asset, to measure it again; `committed` is the attempt that counts.

    Its spec is taken over as it stands: an older version's may have other keys than today's.
    """
    keys = ("asset_id", "field_id", "spec", "prior_coverage")
    return _claim(store, {key: committed[key] for key in keys}, run_id)


def _claim(store: Store, about: Mapping[str, Any], run_id: str) -> Document:
    asset_id = about["asset_id"]
    numbers = [_ATTEMPT_FILE.fullmatch(key) for key in store.list(f"assets/{asset_id}/a")]
    number = 1 + max((int(found[1]) for found in numbers if found), default=0)
    document: Document = {
        **about,
        "run_id": run_id,
        "status": "running",
        "started_at": now(),
        "ended_at": None,
        "error_type": None,
        "error": None,
        "device": None,
        "first_step": None,
        "last_step": None,
        "report": {},
        "timings": {},
        "versions": {},
        "token": secrets.token_hex(8),
    }
    while True:
        document["attempt"] = f"a{number:02d}"
        key = attempt_key(asset_id, document["attempt"])
        try:
            store.put_bytes(key, write_json(document))
            # Two writers can both succeed on servers that ignore If-None-Match; one of them reads
            # back the other's token.
            if read_document(store, key)["token"] == document["token"]:
                return document
        except AlreadyCommitted:
            pass
        number += 1


def finish_attempt(
    store: Store,
    asset_id: str,
    attempt: str,
    status: str,
    *,
    error: BaseException | str | None = None,
    error_type: str | None = None,
    device: str | None = None,
    first_step: int | None = None,
    last_step: int | None = None,
    report: Mapping[str, Any] | None = None,
    timings: Mapping[str, float] | None = None,
    versions: Mapping[str, str] | None = None,
) -> Document:
    """Write the end of an attempt into its `attempt.json`; returns the document.

    Call it after `commit_asset` for status `ok`: report, timings and versions are then in the
    manifest and may be left out here. Raises `RowError` for a report that fits no table.
    """
    document = read_document(store, attempt_key(asset_id, attempt))
    if isinstance(error, BaseException):
        error_type = error_type or type(error).__name__
    document |= {
        "status": status,
        "ended_at": now(),
        "error_type": error_type,
        "error": None if error is None else str(error),
        "device": device,
        "first_step": first_step,
        "last_step": last_step,
        "report": dict(report or {}),
        "timings": dict(timings or {}),
        "versions": dict(versions or {}),
    }
    check_report(document["report"], document["timings"], document["versions"])
    store.put_bytes(attempt_key(asset_id, attempt), write_json(document), replace=True)
    return document


def confirm_attempt(store: Store, asset_id: str, attempt: str) -> None:
    """Ends an attempt as ok, since its files are committed; all else that it says stays."""
    key = attempt_key(asset_id, attempt)
    document = read_document(store, key) | {"status": "ok", "error": None, "error_type": None}
    if document["ended_at"] is None:
        document["ended_at"] = now()
    store.put_bytes(key, write_json(document), replace=True)


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
    must be among them. `report`
    holds columns of table `assets` and, under "views", rows of table `views`. Committing the same
    attempt again returns the manifest that is there; raises `AlreadyCommitted` if another attempt
    was committed first, and `RowError` for a report that fits no table, before any upload.
    """
    check_report(report, timings, versions)
    names = sorted(files)
    keys = [f"assets/{asset_id}/{attempt}/{name}" for name in names]
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
    data = write_json(manifest)
    parse_marker(data)  # nothing is written that a reader would call damaged
    try:
        store.put_bytes(marker_key(asset_id), data)
    except AlreadyCommitted:
        first = asset_manifest(store, asset_id)
        if first is None or committed_attempt(first) != attempt:
            raise
        return first
    return manifest


def close_interrupted(
    store: Store,
    asset_ids: Iterable[str],
    take: Callable[[str], bool] = lambda asset_id: True,
    tell: Callable[[str], None] = lambda line: None,
) -> list[tuple[Document, Document]]:
    """End every attempt that never ended; returns (attempt, manifest or {}) for their rows.

    An attempt that was committed before its process died ends as `ok`, any other as
    `interrupted`, and one whose document is damaged is set aside, which is told. take: asked for
    each asset that has such attempts (`Leases.take`); one that another run works on is left
    alone. If a process that was thought dead lives after all, it writes the true end later.
    """

    def open_attempts(asset_id: str) -> tuple[list[Document], list[str]]:
        attempts, damaged = _attempts(store, asset_id)
        spare = [key for key in damaged if not is_needed(store, key)]
        return [a for a in attempts if a["status"] == "running"], spare

    def close(asset_id: str) -> list[tuple[Document, Document]]:
        # Again once it is ours: until then its attempts may have come to their own end.
        if not any(open_attempts(asset_id)) or not take(asset_id):
            return []
        running, damaged = open_attempts(asset_id)
        for key in damaged:
            tell(f"{store.uri(key)} was damaged; its attempt counts as interrupted")
            set_document_aside(store, key, "its content is not that of an attempt")
        manifest = (asset_manifest(store, asset_id) or {}) if running else {}
        closed = []
        for attempt in running:
            name = attempt["attempt"]
            if manifest and committed_attempt(manifest) == name:
                document = finish_attempt(store, asset_id, name, "ok")
            else:
                document = finish_attempt(
                    store,
                    asset_id,
                    name,
                    "interrupted",
                    error="The process ended without a word; a later run closed this attempt.",
                    error_type="Interrupted",
                )
            closed.append((document, manifest))
        return closed

    with ThreadPoolExecutor(LOOKUPS) as pool:
        return [pair for pairs in pool.map(close, asset_ids) for pair in pairs]


def is_needed(store: Store, key: str) -> bool:
    """Whether a finished asset is not whole without this key: false of other attempts' words."""
    _, asset_id, name, *rest = key.split("/")
    if rest != ["attempt.json"]:
        return True
    try:
        manifest = asset_manifest(store, asset_id)
    except Damaged:
        return True
    return manifest is not None and committed_attempt(manifest) == name


def set_aside(store: Store, asset_id: str, why: str) -> None:
    """Make a committed asset an unfinished one, since its files are not what was committed.

    The marker, with the only list of their SHA-256, is moved and not deleted. It goes first: until
    the attempts say so too, the asset is just not finished.
    """
    if store.exists(marker_key(asset_id)):
        set_document_aside(store, marker_key(asset_id), why)
    attempts, damaged = _attempts(store, asset_id)
    for key in damaged:
        set_document_aside(store, key, why)
    for attempt in attempts:
        if attempt["status"] == "ok":
            document = attempt | {"status": "interrupted", "error_type": "Damaged", "error": why}
            key = attempt_key(asset_id, attempt["attempt"])
            store.put_bytes(key, write_json(document), replace=True)


def start_run(
    store: Store,
    run_id: str,
    manifest: str,
    manifest_sha256: str,
    entries: Sequence[Entry],
    settings: Mapping[str, Any],
    flow_run_id: str | None = None,
) -> Document:
    """Write `runs/{run_id}.json` without an end; returns it."""
    document: Document = {
        "run_id": run_id,
        "manifest": manifest,
        "manifest_sha256": manifest_sha256,
        "flow_run_id": flow_run_id,
        "settings": dict(settings),
        "started_at": now(),
        "ended_at": None,
        "entries": [
            {
                "manifest": entry.manifest,
                "manifest_sha256": entry.manifest_sha256,
                "line": entry.line,
                "row_id": entry.row_id,
                "asset_id": entry.spec.asset_id,
                "tags": entry.tags,
                "meta": entry.meta,
                "outcome": None,
            }
            for entry in entries
        ],
    }
    store.put_bytes(f"runs/{run_id}.json", write_json(document), replace=True)
    return document


def finish_run(store: Store, run: Document, outcomes: Mapping[str, str]) -> Document:
    """Write the end of a run; `outcomes` maps row ids to `computed`, `reused`, ... Returns it."""
    entries = [{**e, "outcome": outcomes.get(e["row_id"], e["outcome"])} for e in run["entries"]]
    document = {**run, "ended_at": now(), "entries": entries}
    store.put_bytes(f"runs/{run['run_id']}.json", write_json(document), replace=True)
    return document
