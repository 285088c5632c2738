"""A shard plan: the entries of a manifest cut into shards for many machines, as one Parquet file.

It is immutable and its id is a digest of its bytes. A row holds all that a machine needs to make
its asset, so that workers need the store and never the manifest. In the store a plan is
`plans/{id}.parquet`, and the pictures that its assets start from are `plans/images/{sha256}`.
"""

from __future__ import annotations

import hashlib
import heapq
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sjc_engine.errors import UsageError
from sjc_engine.spec import AssetSpec, canonical_json
from tasks.manifest.resolve import FROM_ROW, Entry
from tasks.store.interface import Damaged, NotInStore, Store, read_checked
from tasks.store.layout import image_key, plan_key

VERSION = 1
MOST_ASSETS = 300  # of one shard, which is one flow run: Prefect keeps well below 2,000 task runs

_METADATA = b"sjc.plan"
_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("manifest", pa.string(), nullable=False),  # of the row: its own file
        pa.field("manifest_sha256", pa.string(), nullable=False),
        pa.field("line", pa.int64(), nullable=False),
        pa.field("row_id", pa.string(), nullable=False),
        pa.field("asset_id", pa.string(), nullable=False),
        pa.field("seconds", pa.float64(), nullable=False),  # that its asset should take
        pa.field("prior_coverage", pa.float64()),
        pa.field("spec_json", pa.string(), nullable=False),
        pa.field("image_path", pa.string()),  # where the picture was when the plan was made
        pa.field("tags", pa.list_(pa.string()), nullable=False),
        pa.field("meta", pa.map_(pa.string(), pa.string()), nullable=False),
    ]
)


class PlanError(UsageError):
    """This is not a shard plan, or not one for this program; the message has the fix."""


@dataclass(frozen=True)
class ShardPlan:
    """A plan as it was read. settings: the options of `sjc plan`. rows: the file's content."""

    id: str  # 16 hex digits
    manifest: str
    manifest_sha256: str
    settings: dict[str, Any]
    rows: pa.Table
    data: bytes

    def shards(self) -> dict[int, dict[str, float]]:
        """The assets of each shard and the seconds they should take, each asset once."""
        shards: dict[int, dict[str, float]] = {}
        names = ("shard", "asset_id", "seconds")
        for shard, asset_id, seconds in zip(
            *(self.rows[name].to_pylist() for name in names), strict=True
        ):
            shards.setdefault(shard, {}).setdefault(asset_id, seconds)
        return dict(sorted(shards.items()))

    def images(self) -> dict[str, Path]:
        """The pictures of all assets by SHA-256, where they were when the plan was made."""
        rows = self.rows.filter(pc.is_valid(self.rows["image_path"]))
        paths = zip(rows["spec_json"].to_pylist(), rows["image_path"].to_pylist(), strict=True)
        return {json.loads(spec)["image"]: Path(path) for spec, path in paths}

    def entries(self, shard: int, images: Path) -> list[Entry]:
        """A shard's entries in the manifest's order; their pictures are in the folder `images`."""
        rows = self.rows.filter(pc.equal(self.rows["shard"], shard))
        if not rows.num_rows:
            raise PlanError(f"plan {self.id} has no shard {shard}; it has {len(self.shards())}")
        entries: list[Entry] = []
        first: dict[str, int] = {}
        for row in rows.to_pylist(maps_as_pydicts="strict"):
            spec = _spec(row)
            position = first.setdefault(row["asset_id"], len(entries))
            entries.append(
                Entry(
                    **{key: row[key] for key in FROM_ROW},
                    spec=spec,
                    duplicate_of=None if position == len(entries) else position,
                    prior_coverage=row["prior_coverage"],
                    image_path=images / spec.image if spec.image else None,
                )
            )
        return entries


def _spec(row: Mapping[str, Any]) -> AssetSpec:
    """The row's spec; PlanError unless this program makes the same asset of it."""
    other = PlanError(
        f"asset {row['asset_id']}: the plan was made by another version of this program; use that "
        "one on every machine, or make the plan again"
    )
    try:
        spec = AssetSpec.from_json(json.loads(row["spec_json"]))
    except (TypeError, ValueError) as error:
        raise other from error
    if spec.asset_id != row["asset_id"]:
        raise other
    return spec


def make_plan_file(
    entries: Sequence[Entry],
    seconds: Mapping[str, float],
    target: float,
    *,
    manifest: str,
    manifest_sha256: str,
    settings: Mapping[str, Any],
) -> ShardPlan:
    """Cuts entries into shards of about `target` seconds; the same arguments give the same bytes.

    seconds: what each asset should take, by asset id.
    """
    specs: dict[str, AssetSpec] = {}
    for entry in entries:
        specs.setdefault(entry.spec.asset_id, entry.spec)
    shards = cut(specs, seconds, target)
    rows = [
        {
            **{key: getattr(entry, key) for key in FROM_ROW},
            "shard": shards[asset_id],
            "asset_id": asset_id,
            "seconds": seconds[asset_id],
            "prior_coverage": entry.prior_coverage,
            "spec_json": canonical_json(entry.spec.to_json()),
            "image_path": entry.image_path.as_posix() if entry.image_path else None,
        }
        for entry in entries
        for asset_id in (entry.spec.asset_id,)
    ]
    facts = {
        "version": VERSION,
        "manifest": manifest,
        "manifest_sha256": manifest_sha256,
        "settings": dict(settings),
    }
    schema = _SCHEMA.with_metadata({_METADATA: canonical_json(facts).encode()})
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), sink, compression="zstd")
    return read_plan(sink.getvalue(), "the plan")


def cut(
    specs: Mapping[str, AssetSpec], seconds: Mapping[str, float], target: float
) -> dict[str, int]:
    """The shard, from 0, of each asset: of one prior, even, and at most about `target` seconds.

    Assets of one field stay together. The longest field goes to the emptiest shard first (LPT), so
    that shards differ by less than one field. One that has `MOST_ASSETS` takes no more.
    """
    fields: dict[tuple[str, str], dict[str, list[str]]] = {}  # by prior, then by field
    for asset_id, spec in specs.items():
        prior = fields.setdefault((spec.prior, spec.prior_revision), {})
        prior.setdefault(spec.field_id, []).append(asset_id)
    shard_of: dict[str, int] = {}
    shards = 0
    for groups in fields.values():
        loads = [sum(seconds[asset_id] for asset_id in group) for group in groups.values()]
        assets = sum(map(len, groups.values()))
        count = max(math.ceil(sum(loads) / target), math.ceil(assets / MOST_ASSETS))
        count = min(count, len(groups))
        open_shards = [(0.0, shards + n, 0) for n in range(count)]  # seconds, number, assets
        shards += count
        for load, group in sorted(
            zip(loads, groups.values(), strict=True), key=lambda pair: pair[0], reverse=True
        ):
            # There is one: as many as hold all assets were opened, or one for each field.
            filled, number, held = heapq.heappop(open_shards)
            shard_of |= dict.fromkeys(group, number)
            if held + len(group) < MOST_ASSETS:
                heapq.heappush(open_shards, (filled + load, number, held + len(group)))
    return shard_of


def read_plan(data: bytes, name: str) -> ShardPlan:
    """A plan from its file's bytes; PlanError, which calls it `name`, for anything else."""
    try:
        # With threads a short process may abort as it ends (pyarrow 26).
        rows = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
        facts = json.loads((rows.schema.metadata or {})[_METADATA])
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise PlanError(f"{name} is not a shard plan; make one with `sjc plan`") from error
    if facts["version"] != VERSION or not rows.schema.equals(_SCHEMA):
        raise PlanError(f"{name} is a shard plan of another version; make it again")
    digest = hashlib.sha256(data).hexdigest()[:16]
    return ShardPlan(
        digest, facts["manifest"], facts["manifest_sha256"], facts["settings"], rows, data
    )


def keep_plan(store: Store, plan: ShardPlan) -> None:
    """Puts a plan and the pictures of its assets where workers find them.

    Raises PlanError for a picture that is neither in the store nor where it was.
    """
    for sha256, path in plan.images().items():
        key = image_key(sha256)
        if store.exists(key):
            continue
        try:
            data = path.read_bytes()
        except OSError as error:
            raise PlanError(
                f"image {path}: {error.strerror}; run this where the plan was made"
            ) from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise PlanError(f"image {path} has changed since the plan was made; make a new plan")
        store.put_bytes(key, data)
    store.put_bytes(plan_key(plan.id), plan.data)


def load_plan(store: Store, plan_id: str) -> ShardPlan:
    """The plan of this id from the store; PlanError if it is not there, or not itself."""
    try:
        name = store.uri(plan_key(plan_id))
        plan = read_checked(store, plan_key(plan_id), lambda data: read_plan(data, name))
    except NotInStore as error:
        raise PlanError(
            f"{store.url} has no plan {plan_id}; `sjc dispatch` and `sjc run --plan` put it there"
        ) from error
    except Damaged as error:
        raise PlanError(error.flaw) from error
    if plan.id != plan_id:
        raise PlanError(f"{store.uri(plan_key(plan_id))} is damaged; delete it and dispatch again")
    return plan


def fetch_images(store: Store, entries: Sequence[Entry]) -> None:
    """Brings the pictures of entries from `keep_plan`'s place to their `image_path`."""
    for entry in entries:
        if entry.image_path and entry.spec.image and not entry.image_path.exists():
            entry.image_path.parent.mkdir(parents=True, exist_ok=True)
            store.download(image_key(entry.spec.image), entry.image_path, entry.spec.image)
