"""`sjc annotate`: what people say of assets, into the store and its tables."""

import getpass
import sys
from typing import Annotated

import typer

from flows.commands import options
from flows.commands.app import command
from flows.errors import UsageError


@command(
    "sjc annotate ratings.csv",
    "sjc annotate labels.jsonl --who anna",
    interrupted="run the same command again; nothing is counted twice",
)
def annotate(
    file: Annotated[
        str,
        typer.Argument(
            help="CSV, TSV, JSONL or Parquet (.gz too) with the columns asset_id, key, value and,"
            " optionally, who and when."
        ),
    ],
    store: options.Store = "./store",
    who: Annotated[
        str | None,
        typer.Option(help="The person of rows that name none.", show_default="your login name"),
    ] = None,
    quiet: options.Quiet = False,
) -> None:
    """Record ratings, labels and other judgements of people: the table annotations."""
    from tasks.records.annotations import read_annotations, save_annotations
    from tasks.store import open_store

    person = (login_name() if who is None else who).strip()
    if not person:
        raise UsageError("--who: is blank; write a name")
    rows = read_annotations(open_store(store, writable=False), file, person)
    opened = open_store(store)
    key, is_new = save_annotations(opened, rows)
    if not quiet:
        assets, people = (len({row[name] for row in rows}) for name in ("asset_id", "who"))
        known = "" if is_new else "; they were there already, and count from then"
        print(
            f"{len(rows):,} annotations, {assets:,} assets, {people:,} people{known}",
            file=sys.stderr,
        )
    print(opened.uri(key))


def login_name() -> str:
    """Of the user; raises UsageError where there is none, as in some containers."""
    try:
        return getpass.getuser()
    except (OSError, KeyError) as error:  # the second before Python 3.13
        raise UsageError("--who: this machine knows no login name; write a name") from error
