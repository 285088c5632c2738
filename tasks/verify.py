"""Whether a store is whole: files against their checksums, tables against the JSON behind them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import pyarrow as pa

from tasks.checkpoint_copy import finished_copies
from tasks.commit import (
    LOOKUPS,
    asset_manifest,
    committed_attempt,
    finish_attempt,
    is_needed,
    read_attempt,
    read_run,
    run_ids,
    set_aside,
    set_document_aside,
)
from tasks.row_keys import last_rows
from tasks.schemas import SCHEMAS
from tasks.store import NotInStore, Store, StoreError, bytes_digest
from tasks.table_reader import TableError, query
from tasks.tables import projection, rebuild_tables

COMMITTED = ("ok", "running")  # the second until a later run closes the attempt
ABANDONED = timedelta(hours=24)  # no upload and no write takes that long

Tell = Callable[[int, int], None]


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be. kind: asset, attempt, run, table or leftover."""

    kind: str
    key: str
    problem: str

    def __str__(self) -> str:
        return f"{self.key}: {self.problem}"


def verify_store(
    store: Store, tell: Tell = lambda done, total: None, abandoned: timedelta = ABANDONED
) -> list[Finding]:
    """Reads everything once and writes nothing. Not while a run goes on: its rows come later."""
    asset_ids = asset_ids_of(store)
    findings: list[Finding] = []
    with ThreadPoolExecutor(LOOKUPS) as pool:
        checks = pool.map(lambda asset_id: _check_asset(store, asset_id), asset_ids)
        for done, found in enumerate(checks, 1):
            findings += found
            tell(done, len(asset_ids))
    for run_id in run_ids(store):
        findings += _readable("run", f"runs/{run_id}.json", partial(read_run, store, run_id))
    if not findings:  # the tables are made from these documents
        findings += _check_tables(store)
    needless = finished_copies(store, asset_ids)
    findings += [Finding("leftover", key, "is of a finished asset") for key in needless]
    left = store.leftovers(abandoned, remove=False)
    return findings + [Finding("leftover", name, "was never finished") for name in left]


def asset_ids_of(store: Store) -> list[str]:
    """Every asset that was ever begun."""
    return sorted({key.split("/")[1] for key in store.list("assets/")})


def repair_store(
    store: Store, findings: Iterable[Finding], abandoned: timedelta = ABANDONED
) -> list[str]:
    """Mends what can be mended; returns what was done, a line each.

    A damaged asset is set aside, so that the next run of its manifest makes it again; so is a
    damaged document of an attempt that does not count, or of a run, and nothing else with it.
    """
    findings = list(findings)
    done = []
    lost = {
        f.key.split("/")[1]: f for f in findings if f.kind == "asset" and is_needed(store, f.key)
    }
    for asset_id, finding in lost.items():
        set_aside(store, asset_id, str(finding))
        done.append(f"assets/{asset_id}: set aside; run its manifest to make it again")
    for finding in findings:
        spare = finding.kind == "asset" and not is_needed(store, finding.key)
        if (spare or finding.kind == "run") and store.exists(
            finding.key
        ):  # not gone with its asset
            set_document_aside(store, finding.key)
            done.append(f"{finding.key}: set aside")
    for key in (f.key for f in findings if f.kind == "attempt"):
        _, asset_id, attempt, _ = key.split("/")
        finish_attempt(store, asset_id, attempt, "ok")
        done.append(f"{key}: ended as ok")
    if {finding.kind for finding in findings} - {"leftover"}:
        rebuild_tables(store)
        done.append("tables: made again from the store's JSON")
    removed = [*store.leftovers(abandoned, remove=True)]
    for key in finished_copies(store, asset_ids_of(store)):
        store.delete(key)
        removed.append(key)
    return done + [f"{name}: removed" for name in removed]


def _check_asset(store: Store, asset_id: str) -> list[Finding]:
    """The commit marker, every file that it names, and every attempt's document."""
    folder = f"assets/{asset_id}"
    findings = []
    attempts = [k for k in store.list(f"{folder}/a") if k.endswith("/attempt.json")]
    for key in attempts:
        findings += _readable("asset", key, partial(read_attempt, store, key))
    marker = partial(asset_manifest, store, asset_id)
    if damaged := _readable("asset", f"{folder}/manifest.json", marker):
        return findings + damaged
    manifest = marker() or {"files": {}}
    for name, about in manifest["files"].items():
        key = f"{folder}/{name}"
        try:
            stored = bytes_digest(store.get_bytes(key))
        except NotInStore:
            findings.append(Finding("asset", key, "is missing"))
        except StoreError as error:  # S3 sent other bytes than were stored, again and again
            findings.append(Finding("asset", key, f"cannot be read: {error}"))
        else:
            if (stored.bytes, stored.sha256) != (about["bytes"], about["sha256"]):
                sizes = f"{stored.bytes:,} bytes instead of {about['bytes']:,}"
                wrong = sizes if stored.bytes != about["bytes"] else "not what was committed"
                findings.append(Finding("asset", key, f"is damaged: {wrong}"))
    if manifest["files"]:
        key = f"{folder}/{committed_attempt(manifest)}/attempt.json"
        if key not in attempts:
            findings.append(Finding("asset", key, "is missing"))
        elif not findings and (status := read_attempt(store, key)["status"]) not in COMMITTED:
            findings.append(Finding("attempt", key, f"is {status}, and its files are committed"))
    return findings


def _readable(kind: str, key: str, read: Callable[[], object]) -> list[Finding]:
    try:
        read()
    except StoreError as error:
        return [Finding(kind, key, "is missing" if isinstance(error, NotInStore) else str(error))]
    return []


def _check_tables(store: Store) -> list[Finding]:
    """Each table's rows against those that follow from the JSON."""
    findings = []
    for table, contents in projection(store).items():
        wanted = last_rows(table, pa.concat_tables([SCHEMAS[table].empty_table(), *contents]))
        try:
            # Until a run is sealed each try at an asset has its row.
            found = last_rows(table, query(store, f"SELECT * FROM {table}"))
        except TableError as error:
            findings.append(Finding("table", f"tables/{table}", str(error)))
            continue
        missing, extra = _differences(_rows(wanted), _rows(found))
        if missing or extra:
            problem = f"{missing} rows are missing and {extra} have nothing behind them"
            findings.append(Finding("table", f"tables/{table}", problem))
    return findings


def _rows(table: pa.Table) -> Counter[str]:
    """The rows as text, however often each is there."""
    names = sorted(table.column_names)
    rows: list[dict[str, Any]] = table.select(names).to_pylist(maps_as_pydicts="strict")
    return Counter(map(repr, rows))


def _differences(wanted: Counter[str], found: Counter[str]) -> tuple[int, int]:
    return (wanted - found).total(), (found - wanted).total()
