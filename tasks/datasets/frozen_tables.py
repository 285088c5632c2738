"""The files beside a dataset's data: its frozen manifest, prompts to run again, near duplicates."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence

import pyarrow as pa

from tasks.datasets.csv_text import FORMULAS, to_csv
from tasks.datasets.export import Part
from tasks.datasets.features import row_fields, text_struct
from tasks.datasets.near_duplicates import Pair
from tasks.datasets.select import Sample, Selection, split_of
from tasks.manifest.resolve import recipe_diff
from tasks.tables.columns import REAL, TEXT, WHOLE
from tasks.tables.write import parquet_bytes

_SIDES = (("prompt", TEXT), ("count", WHOLE), ("split", TEXT))
PAIR_SCHEMA = pa.schema(
    {
        "similarity": REAL,
        **{f"{name}_{side}": kind for name, kind in _SIDES for side in "ab"},
        "left_out": TEXT,
    }
)


def table_files(
    selection: Selection, parts: Sequence[Part], fractions: Sequence[float]
) -> dict[str, bytes]:
    """The files by name."""
    asked = [manifest_row(sample) for sample in selection.samples]
    rows = [
        {**sample.row, "split": sample.split, "path": part.key, "sha256": sample.sha256}
        for part in parts
        for sample in part.samples
    ]
    schema = pa.schema(
        [
            *row_fields(rows),
            pa.field("path", TEXT),  # of the shard, or of the asset's folder
            *text_struct("sha256", {name for row in rows for name in row["sha256"]}),
        ]
    )
    names = list(dict.fromkeys(name for row in asked for name in row))
    pairs = pair_rows(selection.pairs, selection.uses, fractions, selection.dropped)
    return {
        "manifest.parquet": parquet_bytes(pa.Table.from_pylist(rows, schema)),
        "prompts.csv": to_csv(pa.table({n: [row.get(n) for row in asked] for n in names})).encode(),
        "prompts.jsonl": "".join(
            json.dumps(row, ensure_ascii=False) + "\n" for row in asked
        ).encode(),
        "near_duplicates.csv": to_csv(pairs).encode(),
    }


def manifest_row(sample: Sample) -> dict[str, str]:
    """A row of a manifest that asks for this very asset; its id is the asset's."""
    spec = json.loads(sample.row["spec_json"])
    preset, changes = recipe_diff(spec["prior"], spec["recipe"])
    row = {
        "id": sample.asset_id,
        "prompt": spec["prompt"],
        "negative_prompt": spec["negative_prompt"],
        "seed": str(spec["seed"]),
        "prior": spec["prior"],
        "recipe": preset,
        "tags": ";".join(sample.row["tags"]),
        # The store has no pictures, only their hashes; they are to be put there.
        **({"image": f"pictures/{spec['image']}.png"} if spec["image"] else {}),
        **{key: str(value) for key, value in changes.items()},
        **{f"meta.{key}": value for key, value in sample.row["meta"].items()},
    }
    return {name: value for name, value in row.items() if value}


def is_plain(selection: Selection) -> bool:
    """Whether prompts.csv asks for the very same: no cell had to get a quote in front."""
    rows = map(manifest_row, selection.samples)
    return not any(value.startswith(FORMULAS) for row in rows for value in row.values())


def pair_rows(
    pairs: Sequence[Pair],
    uses: Mapping[str, int],
    fractions: Sequence[float],
    dropped: Collection[str] = (),
) -> pa.Table:
    """Near-duplicate prompts with their numbers of assets, and the splits they fall into."""
    rows = [
        {
            "similarity": pair.similarity,
            "prompt_a": pair.first,
            "prompt_b": pair.second,
            "count_a": uses[pair.first],
            "count_b": uses[pair.second],
            "split_a": split_of(pair.first, fractions),
            "split_b": split_of(pair.second, fractions),
            "left_out": "".join(
                side for side, p in (("a", pair.first), ("b", pair.second)) if p in dropped
            ),
        }
        for pair in pairs
    ]
    return pa.Table.from_pylist(rows, PAIR_SCHEMA)
