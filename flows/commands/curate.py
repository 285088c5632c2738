"""`sjc curate` and `sjc duplicates`: from the store to a dataset."""

import json
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow.compute as pc

from flows.commands.output import show
from flows.errors import FAILED, UsageError
from tasks.curate import Progress, Request, SelectionError, freeze
from tasks.curate_selection import FRACTIONS, candidate_rows
from tasks.curate_tables import pair_rows
from tasks.manifest import read_manifest
from tasks.near_duplicates import near_duplicates
from tasks.run_diff import UnknownRun, diff_runs
from tasks.store import open_store
from tasks.table_reader import QueryError

FINE = 0
LINE_SECONDS = 2.0  # between two lines of progress


def curate(store: str, out: str, request: Request, *, quiet: bool, as_json: bool) -> None:
    """Writes a dataset and prints where its card is. Raises UsageError, StoreError."""
    if "://" not in out and Path(out).exists() and not Path(out).is_dir():
        raise UsageError(f"-o {out}: is a file; name a folder or s3://bucket/prefix")
    if request.links and request.format != "parquet":
        raise UsageError(f"--links: goes with --format parquet, not {request.format}")
    began = time.monotonic()
    told = began

    def tell(progress: Progress) -> None:
        nonlocal told
        now = time.monotonic()
        if quiet or (now - told < LINE_SECONDS and progress.assets < progress.assets_total):
            return
        told = now
        rate = progress.bytes / max(now - began, 1e-3)
        print(
            f"{progress.assets} of {progress.assets_total} assets, "
            f"{size(progress.bytes)} of {size(progress.bytes_total)}, {size(rate)}/s",
            file=sys.stderr,
            flush=True,
        )

    try:
        frozen = freeze(open_store(store, writable=False), out, request, tell)
    except QueryError as error:
        raise UsageError(f"--where: {error.problem}") from error
    except SelectionError as error:
        raise UsageError(str(error)) from error
    document = frozen.document
    if not quiet:
        splits = ", ".join(f"{s['assets']} {name}" for name, s in document["splits"].items())
        there = "was there already, " if frozen.was_there else ""
        print(
            f"{there}{document['assets']} assets of {document['prompts']} prompts ({splits}), "
            f"{size(document['bytes'])}, near-duplicate pairs of prompts: "
            f"{document['near_duplicates']['pairs']}",
            file=sys.stderr,
        )
    if as_json:
        about = {key: value for key, value in document.items() if key != "files"}
        print(json.dumps({"url": frozen.url, **about}, ensure_ascii=False, indent=1))
    else:
        print(frozen.card)


def duplicates(
    manifest: str | None, store: str, where: str | None, similar: float, format: str
) -> None:
    """Prints near-duplicate prompts: a manifest's, or without one those of finished assets."""
    if manifest is not None:
        uses = Counter(row.prompt for row in read_manifest(manifest).rows)
    else:
        try:
            rows = candidate_rows(open_store(store, writable=False), where)
        except QueryError as error:
            raise UsageError(f"--where: {error.problem}") from error
        uses = Counter(row["prompt"] for row in rows)
    pairs = pair_rows(near_duplicates(list(uses), similar), uses, FRACTIONS)
    show(pairs.drop_columns("left_out"), format)


# What a person wants to see of an entry that changed, and its heading.
DIFF_COLUMNS = {
    "change": "change",
    "row_id": "entry",
    "asset_a": "asset before",
    "asset_b": "asset after",
    "status_a": "before",
    "status_b": "after",
    "clip_score_delta": "CLIP",
    "clip_r_precision_delta": "R-prec",
    "geometry_r_precision_delta": "geo R-prec",
    "janus_score_delta": "Janus",
    "field_mesh_iou_delta": "IoU",
    "faces_delta": "faces",
    "seconds_delta": "seconds",
    "error_b": "error",
}


def diff(run_a: str, run_b: str, store: str, format: str) -> int:
    """Prints what changed; a `table` leaves out the rest. Returns 1 for new failures, else 0."""
    try:
        found = diff_runs(open_store(store, writable=False), run_a, run_b)
    except UnknownRun as error:
        raise UsageError(str(error)) from error
    rows = found.rows
    if format == "table":
        counts = ", ".join(f"{count} {change}" for change, count in found.counts().items())
        print(f"{found.run_a} -> {found.run_b}: {counts}")
        rows = rows.filter(pc.not_equal(rows["change"], "same"))
        if not rows.num_rows:
            return FINE
    show(rows, format, DIFF_COLUMNS)
    return FAILED if found.new_failures() else FINE


def fractions(text: str) -> tuple[float, ...]:
    """--splits 0.8,0.1,0.1 as numbers; they count in proportion to their sum."""
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if len(found) != 3 or not all(0 <= part < 1e9 for part in found) or not sum(found):
        raise UsageError(
            f"--splits {text!r}: write three shares of train, val and test: 0.8,0.1,0.1"
        )
    return found


def size(number: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"
