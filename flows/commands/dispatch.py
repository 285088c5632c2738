"""`sjc dispatch` around the flow: the plan into the store, the server, the progress, the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from flows.commands import options
from flows.commands.app import command
from flows.commands.output import print_places, print_table
from flows.commands.run import read_shard_plan
from flows.errors import FAILED, UsageError, raise_error


@command(
    "sjc dispatch plan.parquet --store s3://bucket/first --workers 8",
    interrupted="shards at the pool continue; run the same command again to follow them",
)
def dispatch(
    context: typer.Context,
    plan: Annotated[Path, typer.Argument(help="A plan of `sjc plan`.")],
    store: options.Store = "./store",
    deployment: Annotated[
        str, typer.Option(help="FLOW/NAME of the deployment that runs shards.")
    ] = "generate-shard/shards",
    workers: Annotated[
        int | None, typer.Option(help="Of the work pool. Default: those that are online.")
    ] = None,
    timeout: options.Timeout = None,
    retry_failed: options.Retry = False,
    checkpoint_to_store: options.Checkpoint = False,
    compiled: options.Compiled = False,
    allow_pickle: options.AllowPickle = False,
    fast_launch: options.FastLaunch = False,
    quiet: options.Quiet = False,
    json_: options.Json = False,
) -> None:
    """Have a plan's shards made by the workers of a Prefect work pool, and wait for them."""
    from flows.context import watching
    from flows.prefect_server import environment, server
    from flows.settings import SHARD_OPTIONS, Settings
    from tasks.manifest.shard_plan import keep_plan
    from tasks.records.documents import check_usable
    from tasks.store import open_store

    if workers is not None and workers < 1:
        raise UsageError("--workers: use a whole number above 0")
    Settings("", timeout=timeout).check()
    made = read_shard_plan(plan)
    environment.apply(console_level="CRITICAL")
    connection = server.find()
    if connection is None:
        raise UsageError(
            "workers have to reach Prefect's server, and none is known; set PREFECT_API_URL "
            "(docs/many-machines.md), or start `sjc ui` for workers on this machine"
        )
    check_usable(opened := open_store(store))
    keep_plan(opened, made)  # where workers find it

    import flows.dispatch

    parameters = {name: context.params[name] for name in ("deployment", "workers", *SHARD_OPTIONS)}
    with watching(connection, quiet=quiet):
        state = flows.dispatch.dispatch(made.id, opened.url, **parameters, return_state=True)
    raise_error(state)
    counts = flows.dispatch.count_outcomes(made, opened)
    facts = {"plan": made.id, "assets": sum(counts.values()), **counts}
    places = {"store": opened.url, "tables": opened.uri("tables")}
    if json_:
        print(json.dumps({**facts, **places}, indent=1))
    else:
        print_table([facts])
        print_places(places)
    raise typer.Exit(0 if counts["ok"] == facts["assets"] else FAILED)
