"""`sjc verify`: whether a store is whole, and mending what can be mended."""

import json
import shutil
import sys
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

from flows.errors import FAILED, STORE
from flows.scratch import sole_user
from tasks.documents import asset_manifest, mark_format
from tasks.store import Store, open_store
from tasks.verify import Finding, Repairs, plan_repairs, repair_store, unreadable, verify_store

MOST = 1  # things that a repair takes from their place without being asked again


def run(
    store: str,
    scratch: Path,
    abandoned: timedelta,
    *,
    repair: bool,
    yes: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    """Prints what is wrong, and with `repair` what will be done and what was; the exit code.

    abandoned: the age from which an unfinished file has nobody any more who writes it. yes: set
    aside however many assets are damaged.
    """
    opened = open_store(store, writable=repair)

    def tell(done: int, total: int) -> None:
        if not quiet and (done % 100 == 0 or done == total):
            print(f"{done} of {total} assets read", file=sys.stderr, flush=True)

    findings = verify_store(opened, tell, abandoned)
    if not as_json:
        show_findings(opened, findings, repair=repair)
    planned, done, left = Repairs(), list[str](), findings
    if repair and not unreadable(findings):
        planned = plan_repairs(opened, findings)
        if not as_json:
            show_lines(f"to do: {line}" for line in planned.lines())
        if planned.losses > MOST and not yes:
            refuse(planned)
        else:
            done, left = mend(opened, findings, abandoned, scratch)
            if not as_json:
                show_lines([*done, *([f"{len(left)} problems are left"] if left else [])])
    if as_json:
        show_json(findings, planned.lines(), done, left)
    if unreadable(left):
        return STORE
    return FAILED if left else 0


def mend(
    store: Store, findings: list[Finding], abandoned: timedelta, scratch: Path
) -> tuple[list[str], list[Finding]]:
    """Repairs the store and tidies the scratch folder: what was done, and what is left."""
    done = repair_store(store, findings, abandoned)
    mark_format(store)
    done += tidy_scratch(store, scratch)
    return done, verify_store(store, abandoned=abandoned) if findings else findings


def show_lines(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, flush=True)


def refuse(planned: Repairs) -> None:
    print(
        f"nothing was repaired: {len(planned.assets)} assets and {len(planned.documents)} other"
        f" documents would be set aside, and {len(planned.gone)} assets taken out of the"
        " tables; if that is right, `sjc verify --repair --yes`",
        file=sys.stderr,
    )


def show_findings(store: Store, findings: list[Finding], *, repair: bool) -> None:
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


def show_json(
    findings: list[Finding], planned: list[str], done: list[str], left: list[Finding]
) -> None:
    listed = {"findings": findings, "left": left}
    told = {name: [vars(finding) for finding in found] for name, found in listed.items()}
    print(json.dumps({**told, "planned": planned, "done": done}, indent=1))


def tidy_scratch(store: Store, scratch: Path) -> list[str]:
    """Removes what no run goes on from: unfinished files of assets that are finished by now, and
    what processes left that died within a write. UsageError in a run."""
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
