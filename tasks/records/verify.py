"""Whether a store is whole: files against their checksums, tables against the JSON behind them.

What is damaged may be repaired. What could not be read is reported as such, and while there is
any of it nothing is repaired at all (`tasks.store.interface` defines both).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from itertools import chain
from typing import Any, TypeVar

import pyarrow as pa

from tasks.records import documents
from tasks.records.attempts import confirm_attempt, is_needed
from tasks.records.commit import set_aside
from tasks.records.documents import Document
from tasks.records.prune import finish_prune, is_half_pruned
from tasks.store import layout
from tasks.store.checkpoints import finished_copies
from tasks.store.interface import Damaged, NewerStore, NotInStore, Store, StoreError
from tasks.tables.projection import annotation_rows, ended_rows, rows_of_run
from tasks.tables.read import connect, query
from tasks.tables.schemas import SCHEMAS, Rows
from tasks.tables.write import Projection, rebuild_tables

COMMITTED = ("ok", "running")  # the second until a later run closes the attempt
ABANDONED = timedelta(hours=24)  # no upload and no write takes that long
GONE = "the tables list it and nothing of it is there; mount its disk, if one is missing"
ENOUGH = 20  # files that could not be read: then the store is at fault, and the rest is not tried

OnProgress = Callable[[int, int], None]  # done, of how many
T = TypeVar("T")


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be.

    kind: asset, attempt, run, annotations, table or leftover; gone, of an asset that only tables
    know; pruned, of one that is so in part; or unreadable, of which nothing else is known.
    """

    kind: str
    key: str
    problem: str

    def __str__(self) -> str:
        return f"{self.key}: {self.problem}"


@dataclass(frozen=True)
class Repairs:
    """What `repair_store` would do. assets, documents: those to set aside, with the reason."""

    assets: dict[str, str] = field(default_factory=dict)
    documents: dict[str, str] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)
    attempts: list[str] = field(default_factory=list)
    pruned: list[str] = field(default_factory=list)
    tables: bool = False

    @property
    def losses(self) -> int:
        """How many things are no longer where they were."""
        return len(self.assets) + len(self.documents) + len(self.gone)

    def lines(self) -> list[str]:
        """One line for each."""
        lines = [f"assets/{asset_id}: set aside ({why})" for asset_id, why in self.assets.items()]
        lines += [f"{key}: set aside" for key in self.documents]
        lines += [f"{key}: taken out of the tables" for key in self.gone]
        lines += [f"{key}: ended as ok" for key in self.attempts]
        lines += [f"{key}: the rest of it pruned" for key in self.pruned]
        return [*lines, "tables: made again from the store's JSON"] if self.tables else lines


def verify_store(
    store: Store,
    on_progress: OnProgress = lambda done, total: None,
    abandoned: timedelta = ABANDONED,
) -> list[Finding]:
    """Reads everything once and writes nothing. Not while a run is active: its rows come later.

    Raises `StoreError` for a store that cannot be listed, is of a newer format, or has tables and
    no assets.
    """
    documents.check_usable(store)
    asset_ids = documents.asset_ids(store)
    findings, made = list[Finding](), Projection()
    checked = documents.read_ahead(partial(_check_asset, store), asset_ids)
    for done, (found, rows) in enumerate(checked, start=1):
        findings += found
        on_progress(done, len(asset_ids))
        if len(unreadable(findings)) >= ENOUGH:  # a store that answers nothing is not asked for all
            rest = f"the {len(asset_ids) - done} assets after it were not read"
            return [*findings, Finding("unreadable", store.url, rest)]
        for some in rows:
            made.add(some)
    for run_id in documents.run_ids(store):
        key = layout.run_key(run_id)
        if run := _read(findings, "run", key, documents.read_run, store, run_id):
            made.add(rows_of_run(run))
    for digest in documents.annotation_digests(store):
        key = layout.annotations_key(digest)
        if read := _read(findings, "annotations", key, documents.read_annotations, store, digest):
            made.add({"annotations": annotation_rows(read, digest)})
    findings += _check_tables(store, None if findings else made.tables())
    if unreadable(findings):
        return findings
    needless = finished_copies(store, asset_ids)
    findings += [Finding("leftover", key, "is of a finished asset") for key in needless]
    left = store.leftovers(abandoned, remove=False)
    return findings + [Finding("leftover", name, "was never finished") for name in left]


def unreadable(findings: Iterable[Finding]) -> list[Finding]:
    """Those of something that could not be read, which prove nothing about the store."""
    return [finding for finding in findings if finding.kind == "unreadable"]


def plan_repairs(store: Store, findings: Iterable[Finding]) -> Repairs:
    """What to do about findings; writes nothing.

    A damaged asset is set aside, so that the next run of its manifest makes it again; so is a
    damaged document of an attempt that does not count, of a run or of annotations, and nothing
    else with it.
    Raises `StoreError` if anything could not be read: it may be all that the other findings are.
    """
    findings = list(findings)
    if unread := unreadable(findings):
        raise StoreError(
            f"{len(unread)} files of {store.url} could not be read, so nothing was repaired; the"
            f" first is {unread[0]}"
        )
    assets: dict[str, str] = {}
    aside: dict[str, str] = {}
    for finding in findings:
        if finding.kind == "asset" and is_needed(store, finding.key):
            assets.setdefault(finding.key.split("/")[1], str(finding))
        elif finding.kind in ("asset", "run", "annotations"):
            aside.setdefault(finding.key, finding.problem)
    aside = {k: why for k, why in aside.items() if k.split("/")[1] not in assets}
    gone, attempts, pruned = (
        [f.key for f in findings if f.kind == kind] for kind in ("gone", "attempt", "pruned")
    )
    tables = bool({finding.kind for finding in findings} - {"leftover"})
    return Repairs(assets, aside, gone, attempts, pruned, tables)


def repair_store(
    store: Store, findings: Iterable[Finding], abandoned: timedelta = ABANDONED
) -> list[str]:
    """Mends what can be mended; returns what was done, a line each.

    Nothing is lost by it: what is set aside is moved. Each asset is read once more before that,
    and left alone if it is whole by then. Raises `StoreError` as `plan_repairs` and `verify_store`
    do.
    """
    repairs = plan_repairs(store, findings)
    documents.check_usable(store)
    plan_repairs(store, _check_tables(store, None))  # read them all, or write nothing
    done = []
    found = (_check_asset(store, asset_id)[0] for asset_id in repairs.assets)
    again = plan_repairs(store, chain.from_iterable(found)).assets
    for asset_id in repairs.assets:
        if asset_id in again:
            set_aside(store, asset_id, again[asset_id])
            done.append(f"assets/{asset_id}: set aside; run its manifest to make it again")
        else:
            done.append(f"assets/{asset_id}: left as it is; read again, it is whole")
    for key, why in repairs.documents.items():
        if store.exists(key):
            documents.set_document_aside(store, key, why)
            done.append(f"{key}: set aside")
    for key in repairs.attempts:
        _, asset_id, attempt, _ = key.split("/")
        confirm_attempt(store, asset_id, attempt)
        done.append(f"{key}: ended as ok")
    for key in repairs.pruned:
        finish_prune(store, key.split("/")[1], "sjc prune, which `sjc verify --repair` finished")
        done.append(f"{key}: the rest of it pruned")
    if repairs.tables:
        rebuild_tables(store)
        done.append("tables: made again from the store's JSON")
    removed = [*store.leftovers(abandoned, remove=True)]
    for key in finished_copies(store, documents.asset_ids(store)):
        store.delete(key)
        removed.append(key)
    return done + [f"{name}: removed" for name in removed]


def _check_asset(store: Store, asset_id: str) -> tuple[list[Finding], list[Rows]]:
    """The commit marker, every file that it names, and every attempt's document; and their rows.

    Ends at the first thing that cannot be read: the asset cannot be judged then.
    """
    findings: list[Finding] = []
    folder = layout.asset_folder(asset_id)
    keys = _read(findings, "asset", folder, documents.attempt_keys, store, asset_id)
    if keys is None:
        return findings, []
    attempts = {
        key: _read(findings, "asset", key, documents.read_attempt, store, key)
        for key in sorted(keys, key=layout.attempt_number)
    }
    marker = layout.marker_key(asset_id)
    manifest = _read(findings, "asset", marker, documents.asset_manifest, store, asset_id)
    if manifest is not None:
        _check_commit(findings, store, asset_id, manifest, attempts)
    elif not findings and _read(findings, "asset", folder, is_half_pruned, store, asset_id):
        findings.append(Finding("pruned", folder, "is pruned in part, since the process ended"))
    return findings, ended_rows(store, filter(None, attempts.values()), manifest)


def _check_commit(
    findings: list[Finding],
    store: Store,
    asset_id: str,
    manifest: Document,
    attempts: Mapping[str, Document | None],
) -> None:
    """Adds what is wrong with the files that a commit marker names, and with its attempt."""
    for file in documents.committed_files(asset_id, manifest).values():
        if unreadable(findings):
            return
        _read(findings, "asset", file.key, documents.read_file, store, file)
    key = layout.attempt_key(asset_id, documents.committed_attempt(manifest))
    if key in attempts:
        attempt = attempts[key]
    else:
        read = partial(documents.read_attempt, store, key, committed=True)
        attempt = _read(findings, "asset", key, read)
    if attempt and attempt["spec"] != manifest["spec"]:
        findings.append(Finding("asset", key, "is of another spec than manifest.json"))
    elif attempt and attempt["status"] not in COMMITTED and not findings:
        problem = f"is {attempt['status']}, and its files are committed"
        findings.append(Finding("attempt", key, problem))


def _read(
    findings: list[Finding], kind: str, key: str, read: Callable[..., T], *arguments: Any
) -> T | None:
    """What `read` returns, or None, and what its error says about `key` goes to the findings."""
    try:
        return read(*arguments)
    except NewerStore:
        raise
    except NotInStore:
        problem = "is missing"
    except Damaged as error:
        problem = f"is damaged: {error.flaw}"
    except StoreError as error:
        kind, problem = "unreadable", str(error)
    findings.append(Finding(kind, key, problem))
    return None


def _check_tables(store: Store, wanted: Mapping[str, pa.Table] | None) -> list[Finding]:
    """Each table's rows against those that follow from the JSON, where these are known."""
    findings: list[Finding] = []
    for table in SCHEMAS:
        key = f"tables/{table}"
        content = _read(findings, "table", key, query, store, f"SELECT * FROM {table}")
        if content is None or wanted is None:
            continue
        rows = wanted[table]
        if table == "assets":
            known = rows["asset_id"].unique().to_pylist()
            gone = set(content["asset_id"].unique().to_pylist()).difference(known)
            findings += [
                Finding("gone", layout.asset_folder(asset_id), GONE) for asset_id in sorted(gone)
            ]
        missing, extra = _rows_less(rows, content), _rows_less(content, rows)
        if missing or extra:
            problem = f"{missing} rows are missing and {extra} have nothing behind them"
            findings.append(Finding("table", key, problem))
    return findings


def _rows_less(rows: pa.Table, others: pa.Table) -> int:
    """How many rows are not among the others, or more often."""
    with connect() as connection:
        connection.register("these", rows)
        connection.register("others", others.select(rows.column_names))
        sql = "SELECT count(*) FROM (FROM these EXCEPT ALL FROM others)"
        [[number]] = connection.sql(sql).fetchall()
    return int(number)
