"""`sjc query`: SQL over a store's tables."""

from typing import Annotated

import typer

from flows.commands import options
from flows.commands.app import command
from flows.commands.output import show
from flows.errors import UsageError


@command(
    'sjc query "SELECT status, count(*) FROM best_assets GROUP BY ALL"',
    'sjc query "SELECT * FROM views" --format parquet',
)
def query(
    sql: Annotated[str, typer.Argument(help="DuckDB SQL over the tables below.")],
    store: options.Store = "./store",
    format: options.Format = options.RowFormat.table,
) -> None:
    """Ask the tables: assets, views, entries, attempts, history, runs, annotations, best_assets."""
    from tasks.store import open_store
    from tasks.tables.read import QueryError
    from tasks.tables.read import query as run_query

    try:
        rows = run_query(open_store(store, writable=False), sql)
    except QueryError as error:
        raise UsageError(str(error)) from error
    show(rows, format)
