"""Columns that Hugging Face's `datasets` understands: meshes and pictures by name, and no maps."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from tasks.tables.columns import FLAG, REAL, TEXT, TEXTS, TIME, WHOLE
from tasks.tables.schemas import RATING_FIELDS, SCHEMAS

KINDS = {".glb": "Mesh", ".png": "Image", ".webp": "Image"}
FILE = pa.struct({"bytes": pa.binary(), "path": TEXT})  # how `datasets` keeps these kinds in Arrow
_DTYPES = {TEXT: "string", WHOLE: "int64", REAL: "float64", FLAG: "bool", TIME: "string"}


def kind_of(file: str) -> str | None:
    """What a file is to `datasets`; None for what it would not decode, or not without ffmpeg."""
    return KINDS.get(PurePosixPath(file).suffix)


def text_struct(name: str, keys: Iterable[str]) -> list[pa.Field]:
    """A column of texts by key; none without keys, since Parquet has no struct without fields."""
    fields = [pa.field(key, TEXT) for key in sorted(keys)]
    return [pa.field(name, pa.struct(fields))] if fields else []


def row_fields(rows: Sequence[Mapping[str, Any]]) -> list[pa.Field]:
    """The columns that each row of a dataset has: those of `assets`, and what people said."""
    return [
        *(f for f in SCHEMAS["assets"] if not f.name.startswith("uri_")),
        *RATING_FIELDS,
        pa.field("tags", TEXTS),
        *text_struct("meta", {key for row in rows for key in row["meta"]}),
        pa.field("licence", TEXT),
        pa.field("licence_of_prompt", TEXT),
        pa.field("split", TEXT),
    ]


def with_features(schema: pa.Schema, kinds: Mapping[str, str]) -> pa.Schema:
    """The schema, saying which columns of `FILE` are meshes and pictures."""
    features = {name: {"_type": kind} for name, kind in kinds.items()}
    return schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def card_features(fields: Iterable[pa.Field]) -> list[dict[str, Any]]:
    """What a card's YAML says of columns that come from JSON, where a null has no type."""
    return [{"name": field.name, **_card_type(field.type)} for field in fields]


def _card_type(type: pa.DataType) -> dict[str, Any]:
    if pa.types.is_struct(type):
        return {"struct": card_features(type)}
    return {"list": "string"} if type == TEXTS else {"dtype": _DTYPES[type]}
