"""Table rows from the store's JSON documents, and from nothing else.

`attempt` is an ended `attempt.json`, `manifest` the asset's `manifest.json` ({} if there is none),
`run` a `runs/{run_id}.json`, `annotations` an `annotations/{digest}.json`. So every
table can be made again from the store.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sjc_engine.asset_files import MESH, view_file
from sjc_engine.spec import canonical_json
from tasks.store.interface import Store
from tasks.store.layout import file_key
from tasks.tables.columns import RowError
from tasks.tables.schemas import COLUMNS, CURVES, LINKED_FILES, OUTCOMES, STAGES, Row, Rows

Document = Mapping[str, Any]

_ASSET_COLUMNS = {column.name: column for column in COLUMNS["assets"]}
_VIEW_COLUMNS = {column.name: column for column in COLUMNS["views"]}
_ENTRY_COLUMNS = [column.name for column in COLUMNS["entries"]]
_names = list(_ASSET_COLUMNS)
# What the engine reports of an asset: from its memory to its last metric, and two more.
REPORT_KEYS = (
    "steps",
    "device",
    *_names[_names.index("peak_memory_bytes") : _names.index("foreground_fraction") + 1],
)
VIEW_KEYS = tuple(name for name in _VIEW_COLUMNS if name not in ("asset_id", "run_id", "uri"))
# Columns that have their value from the attempt as it is, and from its spec.
_OF_ATTEMPT = (
    "asset_id", "field_id", "run_id", "attempt", "status", "error_type", "error", "prior_coverage",
)  # fmt: skip
RESULTS = ("report", "timings", "versions")  # of an attempt
_OF_SPEC = ("prompt", "negative_prompt", "image", "seed", "prior", "prior_revision")


def check_report(report: Document, timings: Document, versions: Document) -> None:
    """Raises `RowError` unless the columns of `assets` and `views` can hold all of it."""
    _check_keys("report", report, (*REPORT_KEYS, "views", "history"))
    for view in report.get("views", []):
        _check_keys("report: views", view, VIEW_KEYS)
    _check_keys("timings", timings, STAGES)
    check_known(report, timings, versions)


def _check_keys(part: str, found: Iterable[str], known: Sequence[str]) -> None:
    unknown = ", ".join(sorted(set(found) - set(known)))
    if unknown:
        raise RowError(f"{part}: unknown key {unknown}; known: {', '.join(known)}")


def check_known(report: Document, timings: Document, versions: Document) -> None:
    """Raises `RowError` for a value that its column cannot hold; ignores keys without a column.

    For documents that were read: a later version may know more columns.
    """
    for key in REPORT_KEYS:
        _ASSET_COLUMNS[key].check(report.get(key))
    for stage in STAGES:
        _ASSET_COLUMNS[f"seconds_{stage}"].check(timings.get(stage))
    for name, version in versions.items():
        if not isinstance(version, str):
            raise RowError(f"versions: {name}: {version!r} is not text")
        _ASSET_COLUMNS["code_version"].check(version)  # of which UTF-8 can be made
    views = report.get("views", [])
    if not isinstance(views, list) or not all(isinstance(view, dict) for view in views):
        raise RowError("report: views: not a list of objects")
    for view in views:
        for key in VIEW_KEYS:
            _VIEW_COLUMNS[key].check(view.get(key))
    _check_history(report.get("history"))


def _check_history(history: Any) -> None:
    if not history:  # of an older version, or before the first step
        return
    if not isinstance(history, dict):
        raise RowError("report: history: not an object")
    for column in CURVES:
        column.check(history.get(column.name))
    if len({len(history[column.name]) for column in CURVES}) > 1:
        raise RowError("report: history: its lists are not equally long")


def rows_of_attempt(store: Store, attempt: Document, manifest: Document) -> Rows:
    """Its rows in each table. A row in the last, `assets`, says that it has those in the others."""
    return {
        "views": view_rows(store, attempt, manifest),
        "history": history_rows(attempt, manifest),
        "attempts": [attempt_row(attempt)],
        "assets": [asset_row(store, attempt, manifest)],
    }


def ended_rows(store: Store, attempts: Iterable[Document], manifest: Document | None) -> list[Rows]:
    """The same of those of an asset's attempts that have ended."""
    ended = (attempt for attempt in attempts if attempt["status"] != "running")
    return [rows_of_attempt(store, attempt, manifest or {}) for attempt in ended]


def rows_of_run(run: Document) -> Rows:
    """Its rows in each table."""
    return {"entries": entry_rows(run), "runs": [run_row(run)]}


def asset_row(store: Store, attempt: Document, manifest: Document) -> Row:
    """The row of table `assets` for the outcome of one attempt."""
    spec = attempt["spec"]
    recipe = spec["recipe"]
    report, timings, versions = (result_of(attempt, manifest, part) for part in RESULTS)
    files, uris = _files(attempt, manifest), _uris(store, attempt, manifest)
    values = {key: value for key, value in recipe.items() if key != "name"}
    return {
        **{key: attempt[key] for key in _OF_ATTEMPT},
        **{key: spec[key] for key in _OF_SPEC},
        "recipe": recipe["name"],
        "recipe_hash": hashlib.sha256(canonical_json(values).encode("utf-8")).hexdigest()[:16],
        "spec_json": canonical_json(spec),
        **{f"seconds_{stage}": timings.get(stage) for stage in STAGES},
        **{key: report.get(key) for key in REPORT_KEYS},
        "steps": report.get("steps", attempt["last_step"]),
        "device": report.get("device", attempt["device"]),
        **{f"uri_{column}": uris.get(name) for column, name in LINKED_FILES.items()},
        "bytes_total": sum(file["bytes"] for file in files.values()) if files else None,
        "sha256_mesh": next(
            (file["sha256"] for name, file in files.items() if name.endswith(f"/{MESH}")), None
        ),
        "code_version": versions.get("code"),
        "engine_version": versions.get("engine"),
        "started_at": _time(attempt["started_at"]),
        "ended_at": _time(attempt["ended_at"]),
    }


def view_rows(store: Store, attempt: Document, manifest: Document) -> list[Row]:
    """The rows of table `views` for one attempt; none unless it is, or was, ok."""
    if attempt["status"] not in ("ok", "pruned"):
        return []
    uris = _uris(store, attempt, manifest)
    return [
        {
            "asset_id": attempt["asset_id"],
            "run_id": attempt["run_id"],
            **{key: view.get(key) for key in VIEW_KEYS},
            "uri": uris.get(view_file(view["source"], view["view"])),
        }
        for view in result_of(attempt, manifest, "report").get("views", [])
    ]


def history_rows(attempt: Document, manifest: Document) -> list[Row]:
    """The row of table `history` for one attempt; none unless it made steps, and kept them."""
    history = result_of(attempt, manifest, "report").get("history")
    if not history:
        return []
    about = {key: attempt[key] for key in ("asset_id", "attempt", "run_id")}
    return [about | {column.name: history[column.name] for column in CURVES}]


def attempt_row(attempt: Document) -> Row:
    """The row of table `attempts`."""
    same = ("asset_id", "attempt", "run_id", "status", "error", "device", "first_step", "last_step")
    return {
        **{key: attempt[key] for key in same},
        "started_at": _time(attempt["started_at"]),
        "ended_at": _time(attempt["ended_at"]),
    }


def entry_rows(run: Document) -> list[Row]:
    """The rows of table `entries` for one run."""
    return [
        {key: entry.get(key, run.get(key)) for key in _ENTRY_COLUMNS} | {"run_id": run["run_id"]}
        for entry in run["entries"]
    ]


def run_row(run: Document) -> Row:
    """The row of table `runs`."""
    started, ended = _time(run["started_at"]), _time(run["ended_at"])
    outcomes = Counter(entry["outcome"] for entry in run["entries"])
    return {
        "run_id": run["run_id"],
        "manifest": run["manifest"],
        "count_entries": len(run["entries"]),
        "count_assets": len({entry["asset_id"] for entry in run["entries"]}),
        **{f"count_{outcome}": outcomes[outcome] for outcome in OUTCOMES},
        "count_pruned": outcomes["pruned"] or None,
        "started_at": started,
        "ended_at": ended,
        "seconds_total": (ended - started).total_seconds() if ended and started else None,
        "flow_run_id": run["flow_run_id"],
        "settings": canonical_json(run["settings"]),
    }


def annotation_rows(annotations: Document, digest: str) -> list[Row]:
    """The rows of table `annotations`: all of the document, those that are replaced too."""
    return [
        {key: row[key] for key in ("asset_id", "key", "value", "who")}
        | {"made_at": _time(row["when"] or annotations["made_at"]), "document": digest}
        for row in annotations["rows"]
    ]


def _files(attempt: Document, manifest: Document) -> dict[str, dict[str, Any]]:
    """The asset's files if this attempt ended well; a later evaluation shares them."""
    return manifest.get("files", {}) if attempt["status"] == "ok" else {}


def _uris(store: Store, attempt: Document, manifest: Document) -> dict[str, str]:
    """Where those are, by name within the attempt."""
    return {
        name.partition("/")[2]: store.uri(file_key(attempt["asset_id"], name))
        for name in _files(attempt, manifest)
    }


def result_of(attempt: Document, manifest: Document, part: str) -> dict[str, Any]:
    """The attempt's own report, timings or versions, or those that were committed with it."""
    if attempt[part] or attempt["status"] != "ok":
        return dict(attempt[part])
    return dict(manifest.get(part, {}))


def _time(text: str | None) -> datetime | None:
    """`ValueError` for what is no time with a zone."""
    if text is None:
        return None
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text} has no time zone")
    return moment
