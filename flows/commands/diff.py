"""`sjc diff`: what changed between two runs."""

from typing import Annotated

import typer

from flows.commands import options
from flows.commands.app import command
from flows.commands.output import show
from flows.errors import FAILED
from flows.progress.results import HEADINGS

# What a person wants to see of an entry that changed, and its heading.
METRICS = ("clip_score", "clip_r_precision", "geometry_r_precision", "janus_score",
           "field_mesh_iou", "faces", "seconds")  # fmt: skip
DIFF_COLUMNS = {
    "change": "change", "row_id": "entry", "asset_a": "asset before", "asset_b": "asset after",
    "status_a": "before", "status_b": "after",
    **{f"{name}_delta": HEADINGS.get(name, name) for name in METRICS},
    "error_b": "error",
}  # fmt: skip


@command("sjc diff previous latest")
def diff(
    run_a: Annotated[str, typer.Argument(help="A run's id, its beginning, or `previous`.")],
    run_b: Annotated[str, typer.Argument(help="The run to compare with it, or `latest`.")],
    store: options.Store = "./store",
    format: options.Format = options.RowFormat.table,
) -> None:
    """Show what changed between two runs; exit code 1 if something new fails."""
    import pyarrow.compute as pc

    from tasks.store import open_store
    from tasks.tables.diff import diff_runs

    found = diff_runs(open_store(store, writable=False), run_a, run_b)
    rows = found.rows
    if format == options.RowFormat.table:  # for people: without what is the same
        counts = ", ".join(f"{count} {change}" for change, count in found.counts().items())
        print(f"{found.run_a} -> {found.run_b}: {counts}")
        rows = rows.filter(pc.not_equal(rows["change"], "same"))
    if rows.num_rows or format != options.RowFormat.table:
        show(rows, format, DIFF_COLUMNS)
    raise typer.Exit(FAILED if found.new_failures() else 0)
