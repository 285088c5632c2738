"""`sjc push`: a dataset to the Hugging Face hub."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.commands import options
from flows.commands.app import command
from flows.errors import UsageError
from flows.progress.counter import counter


@command(
    "sjc push datasets/ducks me/ducks",
    "sjc push datasets/ducks me/ducks --private",
    interrupted="run the same command again to continue",
)
def push(
    dataset: Annotated[str, typer.Argument(help="A folder that `sjc curate` has written.")],
    repository: Annotated[str, typer.Argument(help="OWNER/NAME on the hub; made if missing.")],
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository private.")
    ] = False,
    quiet: options.Quiet = False,
    json_: options.Json = False,
) -> None:
    """Upload a dataset to the Hugging Face hub, in place of an earlier one in that repository."""
    if "://" in dataset:
        raise UsageError(f"{dataset}: name a folder; copy the dataset to this machine first")
    from huggingface_hub.utils import disable_progress_bars

    from tasks.datasets.push import push as upload

    disable_progress_bars()  # one line of our own says how far it is
    progress = counter("files", quiet=quiet)
    pushed = upload(Path(dataset), repository, private=private, on_progress=progress)
    if not quiet:
        there = "was there already, " if pushed.was_there else ""
        print(f"{there}{pushed.files} files", file=sys.stderr)
    if json_:
        facts = {"url": pushed.url, "files": pushed.files, "was_there": pushed.was_there}
        print(json.dumps(facts, indent=1))
    else:
        print(pushed.url)
