"""`sjc verify`: whether a store is whole, and mending what can be mended."""

from __future__ import annotations

import json
import shutil
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands import options
from flows.commands.app import command
from flows.errors import FAILED, STORE
from flows.progress.counter import counter

if TYPE_CHECKING:
    from tasks.records.verify import Finding
    from tasks.store.interface import Store

MOST = 1  # things that a repair takes from their place without being asked again


@command(
    "sjc verify --store s3://bucket/first",
    "sjc verify --repair",
    interrupted="nothing is half done; run it again",
)
def verify(
    store: options.Store = "./store",
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Set damaged assets aside, make the tables again, remove abandoned files. Nothing"
            " is repaired while any file cannot be read.",
        ),
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Repair even if it sets aside more than one document.")
    ] = False,
    older: Annotated[
        float,
        typer.Option(
            min=0, metavar="HOURS", help="Unfinished files of this age count as abandoned."
        ),
    ] = 24,
    scratch: options.Scratch = ".sjc",
    quiet: options.Quiet = False,
    json_: options.Json = False,
) -> None:
    """Check every file against its checksum and every table against the JSON behind it."""
    from tasks.records.verify import unreadable, verify_store
    from tasks.store import open_store

    opened = open_store(store, writable=repair)
    abandoned = timedelta(hours=older)
    findings = verify_store(opened, counter("assets read", quiet=quiet), abandoned)
    if not json_:
        show_findings(opened, findings, repair=repair)
    planned, done, left = list[str](), list[str](), findings
    if repair and not unreadable(findings):
        planned, done, left = mend(opened, findings, abandoned, Path(scratch), yes=yes, quiet=json_)
    if json_:
        listed = {"findings": findings, "left": left}
        lists = {name: [vars(finding) for finding in found] for name, found in listed.items()}
        print(json.dumps({**lists, "planned": planned, "done": done}, indent=1))
    raise typer.Exit(STORE if unreadable(left) else FAILED if left else 0)


def show_findings(store: Store, findings: list[Finding], *, repair: bool) -> None:
    """Prints what was found, and on stderr what follows from it."""
    from tasks.records.verify import unreadable

    for finding in findings:
        print(finding)
    unread = len(unreadable(findings))
    if not findings:
        print(f"{store.url}: whole")
    elif unread:
        print(
            f"{unread} files could not be read, so nothing is known about them, and nothing was"
            " written; see the reasons above and run it again",
            file=sys.stderr,
        )
    elif not repair:
        print(f"{len(findings)} problems; `sjc verify --repair` mends them", file=sys.stderr)


def mend(
    store: Store,
    findings: list[Finding],
    abandoned: timedelta,
    scratch: Path,
    *,
    yes: bool,
    quiet: bool,
) -> tuple[list[str], list[str], list[Finding]]:
    """Repairs the store, of which every file could be read, and tidies the scratch folder.

    abandoned: the age from which an unfinished file no longer has a writer. yes: set aside however
    many assets are damaged. Returns what was planned, what was done, and what is left, and prints
    it unless `quiet`.
    """
    from tasks.records.documents import mark_format
    from tasks.records.verify import plan_repairs, repair_store, verify_store

    def report(line: str) -> None:
        if not quiet:
            print(line, flush=True)

    repairs = plan_repairs(store, findings)
    planned = repairs.lines()
    for line in planned:
        report(f"to do: {line}")
    if repairs.losses > MOST and not yes:
        print(
            f"nothing was repaired: {len(repairs.assets)} assets and {len(repairs.documents)} other"
            f" documents would be set aside, and {len(repairs.gone)} assets taken out of the"
            " tables; if that is right, `sjc verify --repair --yes`",
            file=sys.stderr,
        )
        return planned, [], findings
    done = repair_store(store, findings, abandoned)
    mark_format(store)
    done += tidy_scratch(store, scratch)
    left = verify_store(store, abandoned=abandoned) if findings else findings
    for line in done:
        report(line)
    if left:
        report(f"{len(left)} problems are left")
    return planned, done, left


def tidy_scratch(store: Store, scratch: Path) -> list[str]:
    """Removes what no run resumes from: unfinished files of assets that are finished by now, and
    what processes left that died within a write. UsageError in a run."""
    from flows.scratch import sole_user
    from tasks.records.documents import asset_manifest

    folders = sorted((scratch / "assets").glob("*"))
    torn = sorted(path for path in (scratch / "fields").glob(".*"))  # no other name begins so
    if not folders and not torn:
        return []
    with sole_user(scratch):
        finished = [folder for folder in folders if asset_manifest(store, folder.name) is not None]
        for folder in finished:
            shutil.rmtree(folder)
        for path in torn:
            path.unlink(missing_ok=True)
    return [f"{path}: removed" for path in (*finished, *torn)]
