"""`sjc gallery`: a static web page over a store."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.commands import options
from flows.commands.app import command
from flows.errors import UsageError, disk_errors
from flows.progress.counter import counter
from flows.progress.results import where_errors


@command(
    "sjc gallery -o pages",
    'sjc gallery -o best --where "clip_score > 60"',
    interrupted="what was copied stays; run it again to continue",
)
def gallery(
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write.")],
    store: options.Store = "./store",
    where: Annotated[
        str | None, typer.Option(help="Only assets for which this SQL holds: faces < 9000.")
    ] = None,
    quiet: options.Quiet = False,
) -> None:
    """Write a web page over a store: thumbnails, search, filters, and a 3D viewer per asset."""
    from tasks.pages.gallery.build import build_gallery
    from tasks.store import open_store

    if out.exists() and not out.is_dir():
        raise UsageError(f"-o {out}: is a file; name a folder")
    opened = open_store(store, writable=False)
    with where_errors(), disk_errors("-o", out):
        made = build_gallery(opened, out, where, counter("assets", quiet=quiet))
    if not quiet:
        print(f"{made.assets} assets, {made.copied} files copied", file=sys.stderr)
    print(made.index)
