"""`sjc duplicates`: prompts that say almost the same."""

from collections import Counter
from typing import Annotated

import typer

from flows.commands import options
from flows.commands.app import command
from flows.commands.output import show
from flows.progress.results import where_errors


@command("sjc duplicates manifests/toybox.csv")
def duplicates(
    manifest: Annotated[
        str | None, typer.Argument(help="Its prompts; without one, those of finished assets.")
    ] = None,
    store: options.Store = "./store",
    where: Annotated[str | None, typer.Option(help='SQL over assets: "clip_score > 25".')] = None,
    similar: Annotated[
        float, typer.Option(min=0.3, max=1, help="Least similarity of a pair.")
    ] = 0.85,
    format: options.Format = options.RowFormat.table,
) -> None:
    """List pairs of prompts that say almost the same, the most alike first."""
    from tasks.datasets.frozen_tables import pair_rows
    from tasks.datasets.near_duplicates import near_duplicates
    from tasks.datasets.select import FRACTIONS, candidate_rows
    from tasks.manifest.resolve import read_manifest
    from tasks.store import open_store

    if manifest is not None:
        uses = Counter(row.prompt for row in read_manifest(manifest).rows)
    else:
        with where_errors():
            rows = candidate_rows(open_store(store, writable=False), where)
        uses = Counter(row["prompt"] for row in rows)
    pairs = pair_rows(near_duplicates(list(uses), similar), uses, FRACTIONS)
    show(pairs.drop_columns("left_out"), format)
