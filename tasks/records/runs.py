"""The document of a run: `runs/{run_id}.json`."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from tasks.manifest.resolve import FROM_ROW, Entry
from tasks.records.documents import Document, now, write
from tasks.store.interface import Store
from tasks.store.layout import run_key


def new_run_id() -> str:
    """An id that sorts by time, such as ``20250131T101502-3f9a2c``."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


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
            {key: getattr(entry, key) for key in FROM_ROW}
            | {"asset_id": entry.spec.asset_id, "outcome": None}
            for entry in entries
        ],
    }
    write(store, run_key(run_id), document, replace=True)
    return document


def finish_run(store: Store, run: Document, outcomes: Mapping[str, str]) -> Document:
    """Write the end of a run; `outcomes` maps row ids to `computed`, `reused`, ... Returns it."""
    entries = [{**e, "outcome": outcomes.get(e["row_id"], e["outcome"])} for e in run["entries"]]
    document = {**run, "ended_at": now(), "entries": entries}
    write(store, run_key(run["run_id"]), document, replace=True)
    return document
