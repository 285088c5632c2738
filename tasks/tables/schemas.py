"""The tables: their columns, their Arrow schemas, and the check of a row before it is written.

`docs/tables.md` is this file for people.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from sjc_engine.asset_files import FIELD, MESH, PREVIEW, TURNTABLE
from tasks.tables.columns import (
    FLAG,
    REAL,
    REALS,
    TEXT_MAP,
    TEXTS,
    TIME,
    WHOLE,
    WHOLES,
    Column,
    RowError,
    count,
    required,
    score,
    seconds,
    share,
)

# Version 2 has more columns: coverage, field_mesh_lpips, lpips_weights; version 3 has rolled_back,
# version 4 words_cut, words_cut_by_judge and dtype, version 5 count_pruned.
# Files of older versions are read as if they held nulls there.
SCHEMA_VERSION = 5

STATUSES = ("ok", "failed", "diverged", "timeout", "cancelled", "interrupted", "pruned")
COVERAGES = ("good", "small", "cropped")
OUTCOMES = ("computed", "reused", "duplicate", "failed")
STAGES = ("queue", "optimize", "extract", "evaluate", "publish")
LINKED_FILES = {  # an asset's files with a column `uri_...` of their own
    "mesh": MESH, "preview": PREVIEW, "turntable": TURNTABLE, "field": FIELD,
}  # fmt: skip

Row = dict[str, Any]
Rows = dict[str, list[Row]]  # by table

_ASSET_ID = required("asset_id", "Id of the asset: first 16 hex digits of its spec's SHA-256.")
_RUN_ID = required("run_id", "The run. Kept as the folder name `run_id=...`, not in the file.")
_ATTEMPT = required("attempt", "Attempt at this asset: `a01`, `a02`, ...")
_STATUS = required("status", "How it ended.", choices=STATUSES)
_STARTED = required("started_at", "When the attempt started (UTC).", TIME)
_ENDED = required("ended_at", "When the attempt ended (UTC).", TIME)
_IOU = share(
    "field_mesh_iou", "Overlap (IoU) of the mesh's and the field's silhouettes.", better="higher"
)
_PSNR = score(
    "field_mesh_psnr",
    "Likeness of the mesh's and the field's pictures, on the pixels of either silhouette.",
    unit="dB",
)
_LPIPS = Column(
    "field_mesh_lpips",
    "LPIPS distance of the mesh's pictures from the field's; null without `lpips` weights.",
    REAL,
    low=0,
    better="lower",
)
_CLIP = score(
    "clip_score",
    "100 max(cos, 0) of picture and prompt, as the judge sees them. Only comparable between rows "
    "of the same evaluator and revision.",
)

TABLES: dict[str, tuple[str, tuple[Column, ...]]] = {
    "assets": (
        "One row per asset per run that worked on it: its outcome. A run that finds an asset "
        "finished writes no row here, only in `entries`.",
        (
            _ASSET_ID,
            required("field_id", "Id of the field: assets that share it differ after it only."),
            _RUN_ID,
            _ATTEMPT,
            _STATUS,
            Column("error_type", "Class of the error; null when ok."),
            Column("error", "Message of the error; null when ok."),
            required("prompt", "The prompt, verbatim."),
            required("negative_prompt", "The negative prompt; empty for none."),
            Column("image", "SHA-256 of the conditioning image; null for none."),
            required("seed", "Seed of the scene's random generator.", WHOLE, low=0),
            required("prior", "The 2D diffusion model: builtin name, folder or hub id."),
            required("prior_revision", "Its revision; for a folder the digest of its weights."),
            share(
                "prior_coverage",
                "Share of the prompt's content words that the embedded prior knows; null for "
                "priors without a fixed vocabulary.",
                better="higher",
            ),
            required("recipe", "The preset it began as."),
            required("recipe_hash", "First 16 hex digits of the SHA-256 of all recipe values."),
            required("spec_json", "The whole spec as canonical JSON: enough to make it again."),
            count("steps", "Optimisation steps done."),
            Column("device", "Device of the optimisation, such as `cpu` or `cuda:0`."),
            seconds("seconds_queue", "Wait for a device."),
            seconds("seconds_optimize", "Optimisation, earlier interrupted attempts included."),
            seconds("seconds_extract", "Mesh extraction."),
            seconds("seconds_evaluate", "Evaluation."),
            seconds("seconds_publish", "Upload to the store."),
            count(
                "peak_memory_bytes", "Peak memory of the engine process or device.", unit="bytes"
            ),
            Column("loss_first", "Loss of the first step.", REAL),
            Column("loss_last", "Loss of the last step.", REAL),
            Column("loss_min", "Smallest loss of a step.", REAL),
            Column(
                "rolled_back",
                "Whether a step was not finite once: the scene went back to its last snapshot, and"
                " on at half the learning rate.", FLAG,
                better="lower",
            ),
            Column(
                "words_cut",
                "Words of the prompt, then of the negative prompt, that are beyond the length of "
                "the prior's text encoder, together with the words that name the view; empty when "
                "all were read, null when that is not known.", TEXTS,
            ),
            Column(
                "dtype",
                "Precision of the prior's network: float32, float16 or bfloat16. It is part of the"
                " asset's id where the recipe's `dtype` asks for it, and not where that is auto.",
            ),
            count("vertices", "Vertices of the mesh."),
            count("faces", "Triangles of the mesh."),
            count(
                "components", "Connected parts of the mesh. Most things are one.", better="lower"
            ),
            Column("watertight", "Whether the mesh is closed and oriented.", FLAG, better="higher"),
            Column("genus", "Handles, summed over the parts; a sphere has 0.", WHOLE),
            Column("area", "Surface area.", REAL, unit="world units²", low=0),
            Column("volume", "Signed volume; negative: inside out.", REAL, unit="world units³"),
            *(
                Column(
                    f"bbox_{end}_{axis}",
                    f"Bounding box of the exported file (front +Z, up +Y): {end}imum {axis}.", REAL,
                    unit="world units",
                )
                for end in ("min", "max")
                for axis in "xyz"
            ),
            count("degenerate_faces", "Triangles of (almost) no area.", better="lower"),
            Column("single_color", "95% of the surface has one colour.", FLAG, better="lower"),
            Column("evaluator", "The judge: builtin name, folder or hub id."),
            Column("evaluator_revision", "The judge's revision."),
            Column("distractors_sha256", "SHA-256 of the captions that it chose among."),
            Column(
                "words_cut_by_judge",
                "Words of the prompt that are beyond the judge's length, together with 'backside "
                "view of'; empty when all were read, null when that is not known.", TEXTS,
            ),
            _CLIP,
            share(
                "clip_r_precision",
                "Share of the eight views whose best caption, among the prompt and the "
                "distractors, is the prompt.",
                better="higher",
            ),
            share("geometry_r_precision", "The same without any colours.", better="higher"),
            share(
                "janus_score",
                "Share of the five views from azimuth 90 to 270 degrees whose picture is nearer "
                "(cosine, by the judge) to 'front view of PROMPT' than to 'side view of PROMPT' "
                "and 'backside view of PROMPT'. Says nothing about round objects.",
                better="lower",
            ),
            _IOU,
            _PSNR,
            _LPIPS,
            Column("lpips_weights", "The LPIPS weights: folder@revision."),
            Column(
                "coverage",
                "How the field lies in its nine pictures: `cropped` if it reaches a border, "
                "`small` if it covers less than 2% of the pixels, else `good`.",
                choices=COVERAGES,
            ),
            share("opacity_mean", "Mean opacity of the field's pictures."),
            share("foreground_fraction", "Share of their pixels with opacity above 0.5."),
            *(
                Column(f"uri_{name}", f"Where {file} is: a path or s3://; null if not made.")
                for name, file in LINKED_FILES.items()
            ),
            count("bytes_total", "Size of all the asset's files.", unit="bytes"),
            Column("sha256_mesh", "SHA-256 of mesh.glb."),
            Column("code_version", "Version of the pipeline."),
            Column("engine_version", "Version of the engine."),
            _STARTED,
            _ENDED,
        ),
    ),
    "views": (
        "One row per evaluation view of an asset, from the field and from the mesh.",
        (
            _ASSET_ID,
            _RUN_ID,
            required("view", "Number: 0 to 7 go around, 8 is from above.", WHOLE, low=0),
            required(
                "azimuth_deg",
                "0 sees the front, 90 the object's own left side.",
                REAL, unit="degrees", low=0, high=360,
            ),
            required(
                "elevation_deg", "Above the horizon.", REAL, unit="degrees", low=-90, high=90
            ),
            required("source", "What the picture shows.", choices=("field", "mesh")),
            _CLIP,
            Column("top_caption", "The caption that the judge likes best."),
            _IOU,
            _PSNR,
            _LPIPS,
            Column("uri", "Where the picture is; null if not kept."),
        ),
    ),
    "entries": (
        "One row per manifest entry per run. Many entries may point at one asset.",
        (
            _RUN_ID,
            required("manifest", "The row's manifest file, here or on S3."),
            required("manifest_sha256", "SHA-256 of that file."),
            required("line", "Physical line of its row; the header is 1.", WHOLE, low=1),
            required("row_id", "The row's id, given or derived."),
            _ASSET_ID,
            required("tags", "Its tags.", TEXTS),
            required("meta", "Its `meta.*` cells, without that prefix.", TEXT_MAP),
            Column(
                "outcome",
                "What the run did for it; null while the run goes on, or if it was killed.",
                choices=(*OUTCOMES, "pruned"),
            ),
        ),
    ),
    "attempts": (
        "One row per ended attempt at an asset.",
        (
            _ASSET_ID,
            _ATTEMPT,
            _RUN_ID,
            _STATUS,
            Column("error", "Message of the error; null when ok."),
            Column("device", "Device of the optimisation; null if it got none."),
            count("first_step", "Steps that earlier attempts had done."),
            count("last_step", "Steps done at the end."),
            _STARTED,
            _ENDED,
        ),
    ),
    "history": (
        "One row per ended attempt that optimised: what its steps measured, about 100 of them.",
        (
            _ASSET_ID,
            _ATTEMPT,
            _RUN_ID,
            required("steps", "Which steps: the first, every so many, the last.", WHOLES),
            required("loss", "What was minimised; its score part is a surrogate.", REALS),
            required("score_norm", "Root mean square of the weighted score.", REALS),
            required("emptiness", "Mean log(1 + beta w), before its weight.", REALS),
            required("opacity", "Mean opacity of the rendered views, 0 to 1.", REALS),
            required("sigma", "Mean noise level.", REALS),
        ),
    ),
    "runs": (
        "One row per run.",
        (
            _RUN_ID,
            required("manifest", "The manifest as the user named it."),
            required("count_entries", "Entries of the manifest.", WHOLE, low=0),
            required("count_assets", "Different assets among them.", WHOLE, low=0),
            *(
                required(f"count_{outcome}", f"Entries with outcome `{outcome}`.", WHOLE, low=0)
                for outcome in OUTCOMES
            ),
            count("count_pruned", "Entries whose asset was pruned; null for none."),
            required("started_at", "When the run started (UTC).", TIME),
            Column("ended_at", "When it ended (UTC); null if it was killed.", TIME),
            seconds("seconds_total", "Time between both."),
            Column("flow_run_id", "Id of the Prefect flow run."),
            required("settings", "The flow's parameters, as JSON."),
        ),
    ),
    "annotations": (
        "One row for what a person says of an asset under a key: the latest. See"
        " [annotations.md](annotations.md).",
        (
            _ASSET_ID,
            required("key", "What it is about: `rating`, `label`, or any other word."),
            Column(
                "value",
                "A rating from 1 to 5, labels as `a;b`, or any other text; null if withdrawn.",
            ),
            required("who", "The person."),
            required("made_at", "When it was said (UTC).", TIME),
            required("document", "Where it is in the store: `annotations/DOCUMENT.json`."),
        ),
    ),
}  # fmt: skip

# What people say of an asset in all: columns of the view `best_assets` beside those of `assets`.
RATINGS = (
    Column("rating", "Mean of people's ratings; null if there is none.", REAL, low=1, high=5,
           better="higher"),
    count("rating_count", "People who rated it.", required=True),
    Column("rating_spread", "The highest rating less the lowest: 0 where all agree.", REAL, low=0,
           high=4, better="lower"),
    required("labels", "Labels that anybody gave it, each once, sorted.", TEXTS),
)  # fmt: skip

COLUMNS: dict[str, tuple[Column, ...]] = {name: columns for name, (_, columns) in TABLES.items()}
CURVES = tuple(column for column in COLUMNS["history"] if column.type in (WHOLES, REALS))


def _fields(columns: Iterable[Column]) -> list[pa.Field]:
    return [pa.field(c.name, c.type, nullable=not c.required) for c in columns]


SCHEMAS: dict[str, pa.Schema] = {
    table: pa.schema(_fields(columns), {"sjc.table": table, "sjc.version": str(SCHEMA_VERSION)})
    for table, columns in COLUMNS.items()
}
RATING_FIELDS = _fields(RATINGS)
# In the files the run is the folder's name alone: a column too, and pandas and pyarrow could not
# read the folder as the hive-partitioned table that it is.
FILE_SCHEMAS: dict[str, pa.Schema] = {
    table: pa.schema([field for field in schema if field.name != "run_id"], schema.metadata)
    for table, schema in SCHEMAS.items()
}
# A compacted file has the rows of many runs, and so the column: as a dictionary, which is what
# pandas makes of the folders' names too. It is in no run's folder.
_RUN_COLUMN = pa.field("run_id", pa.dictionary(pa.int32(), pa.string()), nullable=False)
COMPACTED_SCHEMAS: dict[str, pa.Schema] = {
    table: pa.schema([_RUN_COLUMN if f.name == "run_id" else f for f in schema], schema.metadata)
    for table, schema in SCHEMAS.items()
}

# What tells the rows of a table apart. Annotations are of no run: the later replaces the earlier.
ROW_KEYS = {
    "assets": ("run_id", "asset_id"),
    "attempts": ("run_id", "asset_id", "attempt"),
    "views": ("run_id", "asset_id", "source", "view"),
    "history": ("run_id", "asset_id", "attempt"),
    "entries": ("run_id", "row_id"),
    "runs": ("run_id", "manifest"),
    "annotations": ("asset_id", "key", "who"),
}
# Which of several rows with the same key counts: the first in this order, as SQL. A run that was
# taken for dead may still write the true end of an attempt, so `interrupted` gives way; what was ok
# may be pruned later, and has no files then. Attempts are numbered, since machines' clocks differ.
_TRUE_END = ("status = 'interrupted'", "status <> 'pruned'", "ended_at DESC")
COUNTS_FIRST: dict[str, tuple[str, ...]] = {
    "assets": ("try_cast(attempt[2:] AS INT) DESC", *_TRUE_END),
    "attempts": _TRUE_END,
    "views": ("uri IS NOT NULL",),
    "history": (),
    "entries": ("outcome IS NULL",),
    "runs": ("ended_at IS NULL",),
    "annotations": ("made_at DESC", "document DESC"),
}


def is_file_schema(table: str, schema: pa.Schema, version: int, *, compacted: bool) -> bool:
    """Whether files of the table have, or had in an earlier version, these columns.

    Versions only ever add columns that may be null.
    """
    today = (COMPACTED_SCHEMAS if compacted else FILE_SCHEMAS)[table]
    if version < SCHEMA_VERSION:
        today = pa.schema([f for f in today if f.name in schema.names or not f.nullable])
    return bool(schema.equals(today, check_metadata=False))


def check_row(table: str, row: Mapping[str, Any]) -> None:
    """Raises `RowError` unless `row` has exactly the table's columns with values that fit."""
    columns = COLUMNS[table]
    names = {column.name for column in columns}
    for problem, keys in (("unknown", row.keys() - names), ("missing", names - row.keys())):
        if keys:
            raise RowError(f"table {table}: {problem} column {', '.join(sorted(keys))}")
    for column in columns:
        try:
            column.check(row[column.name])
        except RowError as error:
            raise RowError(f"table {table}: {error}") from error.__cause__


def to_arrow(table: str, run_id: str | None, rows: Iterable[Row]) -> pa.Table:
    """Rows as a file's content, of one run, or of many with their `run_id`; raises `RowError`."""
    rows = list(rows)
    for row in rows:
        check_row(table, row)
        if run_id and row["run_id"] != run_id:
            raise RowError(f"table {table}: run_id: {row['run_id']!r} in the part of {run_id!r}")
    schema = (FILE_SCHEMAS if run_id else SCHEMAS)[table]
    return pa.Table.from_pylist([{f: row[f] for f in schema.names} for row in rows], schema)
