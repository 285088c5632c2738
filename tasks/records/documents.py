"""The store's JSON documents: what each must hold, how it is read, and how one is set aside.

Every reader gets its documents here. One that is torn, or is valid JSON with impossible content, is
therefore `Damaged` everywhere and never a traceback further on. Unknown keys are accepted: later
versions add some.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from sjc_engine.asset_files import MESH
from sjc_engine.spec import canonical_json
from tasks.store import layout
from tasks.store.interface import (
    Damaged,
    NewerStore,
    NotInStore,
    Store,
    StoredFile,
    StoreError,
    bytes_digest,
    check_key,
    read_checked,
    read_committed,
)
from tasks.tables.projection import (
    RESULTS,
    annotation_rows,
    asset_row,
    attempt_row,
    check_known,
    entry_rows,
    run_row,
)
from tasks.tables.schemas import SCHEMA_VERSION, check_row

Document = dict[str, Any]
S = TypeVar("S")
T = TypeVar("T")

LOOKUPS = 8  # assets whose documents are read at a time
FEW, QUICK = 16, 0.003  # the first reads tell whether threads pay: seconds of one that is quick
# Of the keys and documents, and of the tables' columns. Format 2 has other files in the tables: a
# program of format 1 would take some of them for damaged, or for rows that are there twice.
OURS = {"format": 2, "tables": SCHEMA_VERSION}
MOST_BYTES = 1 << 50  # of a file: a column holds the sum of many

_SHA256 = re.compile(r"[0-9a-f]{64}")


# The keys of each document with their types. Values that become rows are checked more strictly, by
# the columns of the tables.
_RESULTS: dict[str, Any] = dict.fromkeys(RESULTS, dict)
_SPEC: dict[str, Any] = {
    **dict.fromkeys(("prompt", "negative_prompt", "prior", "prior_revision"), str),
    "image": str | None,
    "seed": int,
    "recipe": {"name": str, "evaluate": dict},
}
_FILE: dict[str, Any] = {"bytes": int, "sha256": str}
_MARKER: dict[str, Any] = {**_RESULTS, "spec": _SPEC, "files": dict}
_ATTEMPT: dict[str, Any] = {
    **_RESULTS,
    **dict.fromkeys(("asset_id", "field_id", "attempt", "run_id", "status", "started_at"), str),
    **dict.fromkeys(("ended_at", "error_type", "error", "device"), str | None),
    **dict.fromkeys(("first_step", "last_step"), int | None),
    "spec": _SPEC,
    "prior_coverage": int | float | None,
}
_ENTRY: dict[str, Any] = {"line": int, "row_id": str, "asset_id": str, "tags": list, "meta": dict,
          "outcome": str | None}  # fmt: skip
_RUN: dict[str, Any] = {
    **dict.fromkeys(("run_id", "manifest", "manifest_sha256", "started_at"), str),
    **dict.fromkeys(("flow_run_id", "ended_at"), str | None),
    "settings": dict,
    "entries": list,
}
_ANNOTATION: dict[str, Any] = {
    **dict.fromkeys(("asset_id", "key", "who"), str),
    **dict.fromkeys(("value", "when"), str | None),
}


@dataclass(frozen=True)
class CommittedFile:
    """A file that a commit marker names: its key in the store, and its content."""

    key: str
    stored: StoredFile


def now() -> str:
    """The time as all documents write it: ISO 8601, microseconds, UTC."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def write_json(document: Mapping[str, Any]) -> bytes:
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1, sort_keys=True)
    return text.encode("utf-8")


def write(store: Store, key: str, document: Document, *, replace: bool = False) -> None:
    """Puts a document into the store; raises `AlreadyCommitted` unless it may `replace` another."""
    store.put_bytes(key, write_json(document), replace=replace)


def read_document(store: Store, key: str) -> Document:
    """Any JSON object; raises `NotInStore`, and `Damaged`."""
    return read_checked(store, key, partial(_object, types={}))


def read_attempt(store: Store, key: str, *, committed: bool = False) -> Document:
    """An `attempt.json`; raises `NotInStore`, and `Damaged`.

    committed: whether a commit marker names it, so that it must be there.
    """
    _, asset_id, attempt, _ = key.split("/")

    def check(data: bytes) -> Document:
        document = _object(data, _ATTEMPT)
        _same(document, asset_id=asset_id, attempt=attempt)
        ended = {"status": "interrupted", "ended_at": document["started_at"]}
        row = document | ended if document["status"] == "running" else document
        check_row("assets", asset_row(store, row, {}))
        check_row("attempts", attempt_row(row))
        check_known(document["report"], document["timings"], document["versions"])
        return document

    return (read_committed if committed else read_checked)(store, key, check)


def asset_ids(store: Store) -> list[str]:
    """Every asset that was ever begun."""
    names = (name.removesuffix("/") for name in store.names(layout.ASSETS.removesuffix("/")))
    return sorted(filter(layout.ASSET_ID.fullmatch, names))


def read_ahead(read: Callable[[S], T], assets: Iterable[S]) -> Iterator[T]:
    """`read` of each asset, in order: LOOKUPS at a time, and none further ahead of the caller.

    One after the other where the first FEW are quick and hardly wait, as on a disk of this machine:
    threads would wait for each other, and take twice as long.
    """
    following = iter(assets)
    seconds = busy = 0.0
    for asset in islice(following, FEW):
        began, worked = time.monotonic(), time.thread_time()
        found = read(asset)
        seconds, busy = seconds + time.monotonic() - began, busy + time.thread_time() - worked
        yield found
    if seconds < min(2 * busy, FEW * QUICK):
        yield from map(read, following)
        return
    with ThreadPoolExecutor(LOOKUPS) as pool:
        ahead = deque(pool.submit(read, asset) for asset in islice(following, LOOKUPS))
        while ahead:
            yield ahead.popleft().result()
            ahead.extend(pool.submit(read, asset) for asset in islice(following, 1))


def attempt_keys(store: Store, asset_id: str) -> list[str]:
    """The keys of all `attempt.json` of an asset."""
    keys = store.list(f"{layout.asset_folder(asset_id)}/a")
    return [k for k in keys if layout.is_attempt_document(k) and k.endswith(".json")]


def read_run(store: Store, run_id: str) -> Document:
    """The document of a run; raises `NotInStore`, and `Damaged`."""

    def check(data: bytes) -> Document:
        document = _object(data, _RUN)
        for entry in document["entries"]:
            _check_types(entry, _ENTRY, "entries.")
        _same(document, run_id=run_id)
        check_row("runs", run_row(document))
        for row in entry_rows(document):
            check_row("entries", row)
        return document

    return read_checked(store, layout.run_key(run_id), check)


def asset_manifest(store: Store, asset_id: str) -> Document | None:
    """The commit marker, or None while the asset is not finished; raises `Damaged`."""
    try:
        return read_checked(store, layout.marker_key(asset_id), parse_marker)
    except NotInStore:
        return None


def tombstone(store: Store, asset_id: str) -> Document | None:
    """What the commit marker of a pruned asset was, None if it is not pruned; raises `Damaged`."""
    try:
        return read_checked(store, layout.tombstone_key(asset_id), parse_marker)
    except NotInStore:
        return None


def finished_manifest(store: Store, asset_id: str) -> Document:
    """The commit marker of an asset that the tables call finished; `StoreError` without one."""
    manifest = asset_manifest(store, asset_id)
    if manifest is None:
        store.listed(layout.marker_key(asset_id))  # its folder may be a disk that is not mounted
        raise NotInStore(
            f"{store.uri(layout.marker_key(asset_id))} is missing although the tables say that the"
            " asset is finished",
            f"see what `sjc verify --store {store.url}` finds",
        )
    return manifest


def committed_attempt(manifest: Mapping[str, Any]) -> str:
    """The attempt whose files a commit marker names, such as "a01"."""
    return str(min(manifest["files"])).partition("/")[0]


def committed_files(asset_id: str, manifest: Mapping[str, Any]) -> dict[str, CommittedFile]:
    """A finished asset's files by name within the attempt, such as "views/mesh_0.png", in order."""
    return {
        name.partition("/")[2]: CommittedFile(
            layout.file_key(asset_id, name), StoredFile(about["bytes"], about["sha256"])
        )
        for name, about in sorted(manifest["files"].items())
    }


def read_file(store: Store, file: CommittedFile) -> bytes:
    """The content of a committed file; raises `Damaged` unless it is what was committed."""

    def check(data: bytes) -> bytes:
        found = bytes_digest(data)
        if found.bytes != file.stored.bytes:
            raise ValueError(f"{found.bytes:,} bytes instead of {file.stored.bytes:,}")
        if found != file.stored:
            raise ValueError("not what was committed")
        return data

    return read_committed(store, file.key, check)


def run_ids(store: Store) -> list[str]:
    """Every run of the store, the oldest first. Its picture and its report are beside its JSON."""
    return [run_id for run_id in map(layout.run_of, store.list(layout.RUNS)) if run_id]


def annotations_digest(rows: Sequence[Mapping[str, Any]]) -> str:
    """What a document of these annotations is called: 16 hex digits."""
    return hashlib.sha256(canonical_json(rows).encode()).hexdigest()[:16]


def read_annotations(store: Store, digest: str) -> Document:
    """A document of annotations; raises `NotInStore`, and `Damaged`."""

    def check(data: bytes) -> Document:
        document = _object(data, {"made_at": str, "rows": list})
        for row in document["rows"]:
            _check_types(row, _ANNOTATION, "rows.")
        if annotations_digest(document["rows"]) != digest:
            raise ValueError("rows: not those that its name is the digest of")
        for row in annotation_rows(document, digest):
            check_row("annotations", row)
        return document

    return read_checked(store, layout.annotations_key(digest), check)


def annotation_digests(store: Store) -> list[str]:
    """Every document of annotations."""
    return [d for d in map(layout.annotations_of, store.list(layout.ANNOTATIONS)) if d]


def check_usable(store: Store) -> None:
    """Raises `StoreError` for a store that must be left alone, before anything is written to it.

    That is one of a newer format, and one whose tables are there and whose assets are not: a part
    of it is not mounted, or not copied yet.
    """
    found = _format(store) or OURS
    for name, version in OURS.items():
        if found[name] > version:
            raise NewerStore(
                f"{store.url} has {name} version {found[name]} and this program knows up to"
                f" {version}",
                "nothing was written, use a newer sjc",
            )
    for name in ("assets", "runs"):
        kept, tables = f"{name}/", f"tables/{name}/"
        # Twice: a first run that begins meanwhile writes its documents before its tables.
        if _is_empty(store, kept) and not _is_empty(store, tables) and _is_empty(store, kept):
            raise StoreError(
                f"{store.uri(name)} is empty although the tables list {name}; nothing was written",
                "mount or copy all of the store; if this was deleted on purpose, delete"
                f" {store.uri('tables')} too",
            )


def mark_format(store: Store) -> None:
    """Leaves this program's versions in a store that has none, or older ones."""
    found = _format(store)
    if found is None or any(found[name] < version for name, version in OURS.items()):
        write(store, layout.FORMAT, OURS, replace=True)


def _format(store: Store) -> Document | None:
    """The versions of a store, None for one from before there was such a file, and a new one."""
    try:
        return read_checked(store, layout.FORMAT, partial(_object, types=dict.fromkeys(OURS, int)))
    except NotInStore:
        return None
    except Damaged as error:
        raise StoreError(
            f"{store.uri(layout.FORMAT)} is damaged ({error.flaw}), so the version that"
            " wrote the store is unknown; nothing was written",
            "delete it if no newer sjc ever did",
        ) from error


def set_document_aside(store: Store, key: str, why: str) -> None:
    """Moves a damaged file away, bytes as they are, and leaves its reason beside it.

    ``a02/attempt.json`` becomes ``a02/attempt.TIME.damaged``, with ``a02/attempt.TIME.reason``.
    """
    moment = datetime.now(UTC)
    stem = f"{key.rpartition('.')[0]}.{moment:%Y%m%dT%H%M%S%f}"
    reason = f"{moment.isoformat(timespec='seconds')} {key} was set aside: {why}\n"
    store.put_bytes(f"{stem}.reason", reason.encode())
    store.move(key, f"{stem}.damaged")


def _is_empty(store: Store, prefix: str) -> bool:
    return next(store.list(prefix), None) is None


def _object(data: bytes, types: Mapping[str, Any]) -> Document:
    """The JSON object, with keys of these types; `ValueError` for anything else."""
    try:
        document = json.loads(data)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    _check_types(document, types)
    return dict(document)


def _check_types(found: Any, types: Mapping[str, Any], where: str = "") -> None:
    """`ValueError`, which names the first wrong key, unless `found` is an object of these types."""
    if not isinstance(found, dict):
        raise ValueError(f"{where or 'it'} is not an object")
    for key, kind in types.items():
        if key not in found:
            raise ValueError(f"{where}{key} is missing")
        if isinstance(kind, dict):
            _check_types(found[key], kind, f"{where}{key}.")
        elif not isinstance(found[key], kind) or isinstance(found[key], bool):
            raise ValueError(f"{where}{key}: it is {type(found[key]).__name__}")


def _same(document: Document, **expected: str) -> None:
    for key, value in expected.items():
        if document[key] != value:
            raise ValueError(f"{key}: it is {document[key]!r} in the place of {value!r}")


def parse_marker(data: bytes) -> Document:
    """A commit marker from its JSON; `ValueError` for one that no finished asset can have."""
    document = _object(data, _MARKER)
    check_known(document["report"], document["timings"], document["versions"])
    for name, about in document["files"].items():
        try:
            check_key(name)
        except StoreError as error:
            raise ValueError(f"files: {error}") from error
        _check_types(about, _FILE, f"files: {name}: ")
        if not 0 <= about["bytes"] < MOST_BYTES or not _SHA256.fullmatch(about["sha256"]):
            raise ValueError(f"files: {name}: not a size and a SHA-256")
    attempts = {name.partition("/")[0] for name in document["files"]}
    if len(attempts) != 1 or not layout.ATTEMPT.fullmatch(*attempts):
        raise ValueError("files: not the files of one attempt")
    if f"{attempts.pop()}/{MESH}" not in document["files"]:
        raise ValueError(f"files: {MESH} is not among them")
    return document
