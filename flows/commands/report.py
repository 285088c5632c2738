"""`sjc report`: one web page over a run."""

from typing import Annotated

import typer

from flows.commands import completion, options
from flows.commands.app import command


@command("sjc report", "sjc report 20250131T101502-3f9a2c --store s3://bucket/first")
def report(
    run_id: Annotated[
        str | None,
        typer.Argument(help="The run; by default the latest.", autocompletion=completion.runs),
    ] = None,
    store: options.Store = "./store",
) -> None:
    """Write a run's report again, and print where it is: one HTML file in the store."""
    from flows.settings import recorded_command
    from tasks.pages.report.contents import latest_run, write_report
    from tasks.records.documents import check_usable
    from tasks.store import open_store
    from tasks.store.interface import check_key

    opened = open_store(store, writable=False)
    check_usable(opened)
    chosen = check_key(run_id) if run_id else latest_run(opened)
    print(write_report(opened, chosen, recorded_command))
