"""`sjc curate`: from the store to a dataset."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flows.commands import options
from flows.commands.app import command
from flows.errors import UsageError
from flows.progress.counter import counter
from flows.progress.number_formats import size_text
from flows.progress.results import where_errors

if TYPE_CHECKING:
    from tasks.datasets.freeze import DatasetRequest, Frozen


@command(
    'sjc curate -o datasets/ducks --where "clip_score > 60"',
    "sjc curate -o s3://bucket/ducks --format webdataset",
    interrupted="run the same command again to continue",
)
def curate(
    out: Annotated[str, typer.Option("-o", "--out", help="A new folder or s3://bucket/prefix.")],
    where: Annotated[
        str | None, typer.Option(help="SQL over finished assets, their tags and meta.")
    ] = None,
    manifest: options.OfManifest = None,
    format: Annotated[
        Literal["files", "webdataset", "parquet"], typer.Option(help="How the data is kept.")
    ] = "files",
    store: options.Store = "./store",
    include: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help='Files of an asset: "views/*.png"; repeatable.'),
    ] = None,
    splits: Annotated[
        str, typer.Option(help="Shares of train, val and test, by the prompt's hash.")
    ] = "0.8,0.1,0.1",
    similar: Annotated[
        float, typer.Option(min=0.3, max=1, help="Similarity of near-duplicate prompts.")
    ] = 0.85,
    dedupe: Annotated[
        bool, typer.Option("--dedupe", help="Keep the best of near-duplicate prompts.")
    ] = False,
    links: Annotated[
        bool, typer.Option("--links", help="parquet: addresses in the store, not the bytes.")
    ] = False,
    shard_size: Annotated[
        float, typer.Option(min=1, metavar="MB", help="Megabytes of a shard, about.")
    ] = 500,
    shard_assets: Annotated[int, typer.Option(min=1, help="Assets of a shard, at most.")] = 10_000,
    name: Annotated[str, typer.Option(help="Title of the card.")] = "3D assets by SJC Foundry",
    quiet: options.Quiet = False,
    json_: options.Json = False,
) -> None:
    """Freeze a selection into a dataset: data, manifest, splits, checksums and a card."""
    from tasks.datasets.freeze import DatasetRequest
    from tasks.manifest.locations import file_digests

    request = DatasetRequest(
        where=where,
        manifest=Path(manifest).name if manifest else None,
        manifest_sha256=tuple(file_digests(manifest)) if manifest else (),
        format=format,
        include=tuple(include or ()),
        fractions=_fractions(splits),
        similar=similar,
        dedupe=dedupe,
        links=links,
        shard_megabytes=shard_size,
        shard_assets=shard_assets,
        name=name,
    )
    frozen = _freeze(store, out, request, quiet=quiet)
    if not quiet:
        print(_summary(frozen), file=sys.stderr)
    if json_:
        about = {key: value for key, value in frozen.document.items() if key != "files"}
        print(json.dumps({"url": frozen.url, **about}, ensure_ascii=False, indent=1))
    else:
        print(frozen.card)


def _fractions(text: str) -> tuple[float, ...]:
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


def _freeze(store: str, out: str, request: DatasetRequest, *, quiet: bool) -> Frozen:
    """Writes the dataset. Raises UsageError, StoreError."""
    from tasks.datasets.freeze import freeze
    from tasks.store import open_store

    if "://" not in out and Path(out).exists() and not Path(out).is_dir():
        raise UsageError(f"-o {out}: is a file; name a folder or s3://bucket/prefix")
    if request.links and request.format != "parquet":
        raise UsageError(f"--links: goes with --format parquet, not {request.format}")
    opened = open_store(store, writable=False)
    with where_errors():
        return freeze(opened, out, request, counter("assets", quiet=quiet))


def _summary(frozen: Frozen) -> str:
    """What was made, in one line for a person."""
    document = frozen.document
    splits = ", ".join(f"{s['assets']} {name}" for name, s in document["splits"].items())
    return (
        f"{'was there already, ' if frozen.was_there else ''}{document['assets']} assets of "
        f"{document['prompts']} prompts ({splits}), {size_text(document['bytes'])}, "
        f"near-duplicate pairs of prompts: {document['near_duplicates']['pairs']}"
    )
