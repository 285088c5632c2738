"""`sjc evaluate`: finished assets measured again, around the flow."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.commands import options
from flows.commands.app import command
from flows.commands.output import show
from flows.errors import FAILED, RunError, raise_error
from flows.progress.results import ASSET_COLUMNS, SECONDS


@command(
    "sjc evaluate --judge openai/clip-vit-large-patch14",
    'sjc evaluate --where "field_mesh_lpips IS NULL" --set lpips=lpips-alex',
    interrupted="what was measured so far is recorded",
)
def evaluate(
    store: options.Store = "./store",
    where: Annotated[
        str | None, typer.Option(help="SQL over best_assets: clip_score < 25.")
    ] = None,
    manifest: options.OfManifest = None,
    judge: Annotated[
        str | None, typer.Option(help="Another judge: a CLIP folder, or owner/name[@REVISION].")
    ] = None,
    set_: options.Set = None,
    device: options.Device = None,
    allow_pickle: options.AllowPickle = False,
    scratch: options.Scratch = ".sjc",
    quiet: options.Quiet = False,
    json_: Annotated[bool, typer.Option("--json", help="The new rows as JSON.")] = False,
) -> None:
    """Measure finished assets again, with another judge perhaps; nothing is optimised again."""
    from flows.prefect_server import environment, server

    environment.apply(console_level="CRITICAL")
    from flows.context import watching
    from flows.evaluate import evaluate as evaluate_flow
    from flows.evaluate import prepare
    from tasks.store.interface import StoreError
    from tasks.tables.read import query

    overrides = options.parse_overrides(set_) | ({"judge": judge} if judge else {})
    chosen = prepare(store, where, manifest, overrides, device, allow_pickle)
    connection = server.connect(Path(scratch, "logs", "prefect-server.log"))
    with watching(connection, quiet=quiet) as watch:
        state = evaluate_flow(
            store, where, manifest, overrides, device, scratch, allow_pickle, return_state=True
        )
    problem = None
    try:
        raise_error(state)
    except (RunError, StoreError) as error:  # of some assets; the others have new rows
        problem = error
        if not watch.run_id:  # it ended before its run began
            raise
    sql = f"SELECT *, {SECONDS} AS seconds FROM assets WHERE run_id = '{watch.run_id}'"
    rows = query(chosen.store, f"{sql} ORDER BY started_at, asset_id")
    failed = [row for row in rows.to_pylist() if row["status"] != "ok"]
    show(rows, "json" if json_ else "table", ASSET_COLUMNS)
    for row in failed:
        print(f"{row['asset_id']}: {row['error']}", file=sys.stderr)
    if problem:
        raise problem
    raise typer.Exit(FAILED if failed else 0)
