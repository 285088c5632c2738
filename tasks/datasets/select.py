"""Which assets a dataset holds, in which split each stands, and under what licence it came."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import accumulate
from typing import Any

from sjc_engine.asset_files import PREVIEW, THUMBNAIL
from sjc_engine.errors import UsageError
from sjc_engine.priors.sources import licence_of
from tasks.datasets.csv_text import plain
from tasks.datasets.near_duplicates import (
    SIMILAR,
    Pair,
    near_duplicates,
    normalised,
    without_near_duplicates,
)
from tasks.records.documents import CommittedFile, committed_files, finished_manifest, read_file
from tasks.store.interface import Store
from tasks.tables.read import FILES, of_files, query
from tasks.tables.schemas import COLUMNS

SPLITS = ("train", "val", "test")
FRACTIONS = (0.8, 0.1, 0.1)
# Where a file was when its row was written means nothing in a copy.
_LEFT_OUT = ", ".join(c.name for c in COLUMNS["assets"] if c.name.startswith("uri_"))
# Tags and meta of all entries that ever asked for the asset; of two values the later run's counts.
CANDIDATES = f"""
SELECT a.* EXCLUDE ({_LEFT_OUT}), coalesce(e.tags, []) AS tags, coalesce(e.meta, MAP()) AS meta
FROM best_assets a LEFT JOIN (
    SELECT asset_id, list_sort(list_distinct(flatten(list(tags)))) AS tags,
           last(meta ORDER BY run_id, line) AS meta
    FROM entries {{entries}} GROUP BY asset_id
) e USING (asset_id)
WHERE a.status = 'ok' {{asked}}
"""


class SelectionError(UsageError):
    """The selection cannot be a dataset; the message names what to change."""


@dataclass(frozen=True)
class Sample:
    """One asset: its row, and its files by their names within the attempt, "views/mesh_0.png"."""

    asset_id: str
    split: str
    row: dict[str, Any]
    files: dict[str, CommittedFile]
    picture: CommittedFile | None  # a small one

    @property
    def bytes(self) -> int:
        return sum(file.stored.bytes for file in self.files.values())

    @property
    def sha256(self) -> dict[str, str]:
        """Of each file."""
        return {name: file.stored.sha256 for name, file in self.files.items()}


@dataclass(frozen=True)
class Selection:
    """Samples by asset id, and what there is to know of their prompts.

    uses: assets of each prompt; pairs: near duplicates; dropped: prompts left out for another.
    """

    samples: list[Sample]
    uses: dict[str, int]
    pairs: list[Pair]
    dropped: set[str]

    def of(self, split: str) -> list[Sample]:
        return [sample for sample in self.samples if sample.split == split]


def candidate_rows(
    store: Store, where: str | None = None, manifest_sha256: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Finished assets, one row each with `tags` and `meta`, by asset id; `where` is SQL over them.

    With `manifest_sha256` those that the entries of these files asked for. Raises `QueryError` for
    wrong SQL.
    """
    of_manifest = f"WHERE {of_files(manifest_sha256)}" if manifest_sha256 else ""
    candidates = CANDIDATES.format(
        entries=of_manifest, asked="AND e.asset_id IS NOT NULL" if manifest_sha256 else ""
    )
    # on a separate line: `where` may end in a comment
    chosen = f"WHERE ({where}\n)" if where else ""
    sql = f"SELECT * FROM ({candidates}) AS assets {chosen} ORDER BY asset_id"
    rows: list[dict[str, Any]] = query(store, sql).to_pylist(maps_as_pydicts="strict")
    return rows


def select(
    store: Store,
    rows: Sequence[dict[str, Any]],
    include: Sequence[str],
    fractions: Sequence[float] = FRACTIONS,
    similar: float = SIMILAR,
    dedupe: bool = False,
) -> Selection:
    """Samples with the files that match a pattern of `include` ("mesh.glb", "views/*.png").

    With `dedupe`, of near-duplicate prompts the one with the highest clip_score stays. Raises
    `SelectionError` if there is no such file at all, `StoreError` for an asset without a manifest.
    """
    uses = Counter(row["prompt"] for row in rows)
    pairs = near_duplicates(list(uses), similar)
    dropped: set[str] = set()
    if dedupe:
        scores: dict[str, float] = {}
        for row in rows:
            scores[row["prompt"]] = max(scores.get(row["prompt"], 0.0), row["clip_score"] or 0.0)
        dropped = scores.keys() - without_near_duplicates(scores, pairs)
    rows = [row for row in rows if row["prompt"] not in dropped]
    with ThreadPoolExecutor(FILES) as pool:
        manifests = pool.map(lambda row: finished_manifest(store, row["asset_id"]), rows)
        found = [committed_files(r["asset_id"], m) for r, m in zip(rows, manifests, strict=True)]
    names = {name for files in found for name in files}
    wanted = {name for name in names for pattern in include if fnmatchcase(name, pattern)}
    if not wanted:
        raise SelectionError(f"--include {', '.join(include)}: no asset has such a file")
    samples = [
        Sample(
            row["asset_id"],
            split_of(row["prompt"], fractions),
            {
                **row,
                "licence": licence_of(row["prior"], row["prior_revision"]),
                "licence_of_prompt": row["meta"].get("licence") or row["meta"].get("license"),
            },
            {name: file for name, file in files.items() if name in wanted},
            files.get(THUMBNAIL) or files.get(PREVIEW),
        )
        for row, files in zip(rows, found, strict=True)
    ]
    return Selection(samples, uses, pairs, dropped)


def split_of(prompt: str, fractions: Sequence[float] = FRACTIONS) -> str:
    """The split of a prompt: the same for every seed, spelling in capitals, and dataset.

    fractions: of train, val and test; they count in proportion to their sum.
    """
    digest = hashlib.sha256(normalised(prompt).encode()).digest()
    edges = list(accumulate(fractions))
    position = int.from_bytes(digest[:6]) / 2**48 * edges[-1]
    return SPLITS[bisect_right(edges, position)]


def picture_of(store: Store, sample: Sample) -> bytes | None:
    """The sample's small picture, if it has one."""
    return None if sample.picture is None else read_file(store, sample.picture)


def sample_json(sample: Sample) -> bytes:
    """The sample's row as JSON."""
    text = json.dumps(
        {"split": sample.split, **sample.row}, default=plain, ensure_ascii=False, sort_keys=True
    )
    return text.encode()
