"""`sjc prune`: assets out of the store."""

import json
import sys
from typing import Annotated

import typer

from flows.commands import options
from flows.commands.app import command
from flows.commands.output import show
from flows.errors import FAILED
from flows.progress.counter import counter
from flows.progress.number_formats import size_text
from flows.progress.results import ASSET_COLUMNS, SECONDS, selected_assets


@command(
    'sjc prune --where "clip_score < 20"',
    'sjc prune --where "clip_score < 20" --yes',
    interrupted="each asset is whole or pruned, but perhaps one; run it again to finish",
)
def prune(
    where: Annotated[
        str, typer.Option(help='Finished assets for which this SQL holds: "clip_score < 20".')
    ],
    store: options.Store = "./store",
    yes: Annotated[bool, typer.Option("--yes", help="Remove them; else they are shown.")] = False,
    quiet: options.Quiet = False,
    json_: options.Json = False,
) -> None:
    """Remove finished assets from the store; runs do not make them again."""
    from tasks.records.documents import check_usable, mark_format
    from tasks.records.prune import prune_assets, sizes
    from tasks.records.runs import new_run_id
    from tasks.store import open_store
    from tasks.store.leases import leases

    opened = open_store(store, writable=False)  # one that is not there must not be made
    check_usable(opened)
    rows = selected_assets(opened, f"*, {SECONDS} AS seconds", None, where, "status = 'ok'")
    found = sizes(opened, rows["asset_id"].to_pylist())
    skipped: list[str] = []
    if not json_:
        show(rows, "table", ASSET_COLUMNS)
    if yes and found:
        writable = open_store(store)
        mark_format(writable)
        report, why = counter("assets pruned", quiet=quiet), f"sjc prune --where {where!r}"
        with leases(writable, new_run_id()) as held:
            skipped = prune_assets(writable, list(found), why, held, report)
    gone = [size for asset_id, size in found.items() if asset_id not in skipped]
    files, size = sum(map(len, gone)), sum(map(sum, gone))
    if json_:
        facts = {"removed": yes, "files": files, "bytes": size, "skipped": skipped}
        print(json.dumps({"assets": [k for k in found if k not in skipped], **facts}, indent=1))
    else:
        done = "removed" if yes else "would be removed; --yes removes them"
        count = f"{len(gone):,} asset{'s' * (len(gone) != 1)}"
        print(f"{count}, {files:,} files, {size_text(size)}: {done}")
    for asset_id in skipped:
        print(f"{asset_id}: skipped, a run works on it; run this again later", file=sys.stderr)
    raise typer.Exit(FAILED if skipped else 0)
