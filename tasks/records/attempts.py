"""Attempts at an asset: what `attempt.json` says when one starts, and when it ends.

Every attempt writes under its own folder, so that two runs of one asset never meet in a file.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from sjc_engine.spec import AssetSpec
from tasks.records import documents
from tasks.records.documents import Document
from tasks.store import layout
from tasks.store.interface import AlreadyCommitted, Damaged, Store
from tasks.tables.projection import check_report

FAILURES = ("failed", "diverged", "timeout", "cancelled")  # are not retried without being asked


def asset_attempts(store: Store, asset_id: str) -> list[Document]:
    """Every attempt's document, the oldest first; a damaged one costs its attempt and no other."""
    return read_attempts(store, asset_id)[0]


def read_attempts(store: Store, asset_id: str) -> tuple[list[Document], list[str]]:
    """Every attempt's document, the oldest first, and the keys of those that are damaged."""
    found, damaged = [], []
    for key in sorted(documents.attempt_keys(store, asset_id), key=layout.attempt_number):
        try:
            found.append(documents.read_attempt(store, key))
        except Damaged:
            damaged.append(key)
    return found, damaged


def last_attempt(store: Store, keys: Iterable[str]) -> tuple[int, str] | None:
    """The number and the status of an asset's last attempt, None if there is none.

    keys: of the asset's files. An attempt whose document is damaged, or was set aside, is
    `interrupted`.
    """
    keys = [key for key in keys if layout.is_attempt_document(key)]
    if not keys:
        return None
    key = max(keys, key=lambda key: (layout.attempt_number(key), key.endswith(".json")))
    status = "interrupted"
    if key.endswith(".json"):
        with contextlib.suppress(Damaged):
            status = documents.read_attempt(store, key)["status"]
    return layout.attempt_number(key), status


def settled_attempts(store: Store, asset_ids: Iterable[str]) -> dict[str, int]:
    """By asset, the number of the last attempt that has ended, 0 if none has.

    Later attempts that end are news. Their numbers give the order, since clocks of machines
    differ, and some go back.
    """

    def settled(asset_id: str) -> int:
        keys = store.list(f"{layout.asset_folder(asset_id)}/a")
        number, status = last_attempt(store, keys) or (0, "")
        return number - 1 if status == "running" else number

    ids = list(asset_ids)
    return dict(zip(ids, documents.read_ahead(settled, ids), strict=True))


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
    keys = store.list(f"{layout.asset_folder(asset_id)}/a")
    number = 1 + max(
        map(layout.attempt_number, filter(layout.ATTEMPT_FILE.fullmatch, keys)), default=0
    )
    document: Document = {
        **about,
        "run_id": run_id,
        "status": "running",
        "started_at": documents.now(),
        "ended_at": None,
        **dict.fromkeys(("error_type", "error", "device", "first_step", "last_step")),
        **{key: {} for key in ("report", "timings", "versions")},
        "token": secrets.token_hex(8),
    }
    while True:
        document["attempt"] = f"a{number:02d}"
        key = layout.attempt_key(asset_id, document["attempt"])
        try:
            documents.write(store, key, document)
            # Two writers can both succeed on servers that ignore If-None-Match; one of them reads
            # back the other's token.
            if documents.read_document(store, key)["token"] == document["token"]:
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
    document = documents.read_document(store, layout.attempt_key(asset_id, attempt))
    if isinstance(error, BaseException):
        error_type = error_type or type(error).__name__
    document |= {
        "status": status,
        "ended_at": documents.now(),
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
    documents.write(store, layout.attempt_key(asset_id, attempt), document, replace=True)
    return document


def confirm_attempt(store: Store, asset_id: str, attempt: str) -> None:
    """Ends an attempt as ok, since its files are committed; its other values stay."""
    key = layout.attempt_key(asset_id, attempt)
    document = documents.read_document(store, key)
    document |= {"status": "ok", "error": None, "error_type": None}
    document["ended_at"] = document["ended_at"] or documents.now()
    documents.write(store, key, document, replace=True)


def close_interrupted(
    store: Store,
    asset_ids: Iterable[str],
    take: Callable[[str], bool] = lambda asset_id: True,
    report: Callable[[str], None] = lambda line: None,
    has_rows: Callable[[Document], bool] = lambda attempt: True,
) -> list[tuple[Document, Document]]:
    """End every attempt that never ended; returns (attempt, manifest or {}) for their rows.

    An attempt that was committed before its process died ends as `ok`, any other as
    `interrupted`, and one whose document is damaged is set aside, which is reported. take: asked
    for each asset that has such attempts (`Leases.take`); one that another run works on is left
    alone. If a process that was thought dead is alive after all, it writes the true end later.
    has_rows: asked for each attempt that has ended before; those without are returned as well.
    """
    close = partial(_close, store, take, report, has_rows)
    return [pair for pairs in documents.read_ahead(close, asset_ids) for pair in pairs]


def _close(
    store: Store,
    take: Callable[[str], bool],
    report: Callable[[str], None],
    has_rows: Callable[[Document], bool],
    asset_id: str,
) -> list[tuple[Document, Document]]:
    attempts, running, damaged = _open_attempts(store, asset_id)
    # Again once it is ours: until then its attempts may have come to their own end.
    if ours := bool(running or damaged) and take(asset_id):
        attempts, running, damaged = _open_attempts(store, asset_id)
        for key in damaged:
            report(f"{store.uri(key)} was damaged; its attempt counts as interrupted")
            documents.set_document_aside(store, key, "its content is not that of an attempt")
    # Their process died between the last word in `attempt.json` and the rows.
    bare = [
        a for a in attempts if a not in running and a["status"] != "running" and not has_rows(a)
    ]
    open_ = running if ours else []
    manifest = (documents.asset_manifest(store, asset_id) or {}) if open_ or bare else {}
    return [(attempt, manifest) for attempt in bare] + [
        (_end(store, attempt, manifest), manifest) for attempt in open_
    ]


def _open_attempts(store: Store, asset_id: str) -> tuple[list[Document], list[Document], list[str]]:
    """All attempts, those without their true end, and keys of damaged documents not needed.

    A committed attempt which a run has closed as interrupted right before its commit lacks its
    true end too.
    """
    attempts, damaged = read_attempts(store, asset_id)
    running = [attempt for attempt in attempts if attempt["status"] == "running"]
    if attempts and not any(attempt["status"] == "ok" for attempt in attempts):
        manifest = documents.asset_manifest(store, asset_id)
        name = manifest and documents.committed_attempt(manifest)
        running += [a for a in attempts if a["attempt"] == name and a not in running]
    return attempts, running, [key for key in damaged if not is_needed(store, key)]


def _end(store: Store, attempt: Document, manifest: Document) -> Document:
    asset_id, name = attempt["asset_id"], attempt["attempt"]
    if manifest and documents.committed_attempt(manifest) == name:
        return finish_attempt(store, asset_id, name, "ok")
    error = "The process ended without a word; a later run closed this attempt."
    return finish_attempt(
        store, asset_id, name, "interrupted", error=error, error_type="Interrupted"
    )


def is_needed(store: Store, key: str) -> bool:
    """Whether a finished asset needs this file: false of other attempts' documents."""
    _, asset_id, name, *rest = key.split("/")
    if rest != ["attempt.json"]:
        return True
    try:
        manifest = documents.asset_manifest(store, asset_id)
    except Damaged:
        return True
    return manifest is not None and documents.committed_attempt(manifest) == name
