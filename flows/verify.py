"""`sjc verify`: whether a store is whole, and mending what can be mended."""

import json
import shutil
import sys
from datetime import timedelta
from pathlib import Path

from flows.errors import FAILED
from flows.scratch import sole_user
from tasks.commit import asset_manifest
from tasks.store import Store, open_store
from tasks.verify import Finding, repair_store, verify_store


def run(
    store: str, scratch: Path, abandoned: timedelta, *, repair: bool, quiet: bool, as_json: bool
) -> int:
    """Prints what is wrong, and with `repair` what was done; the exit code.

    abandoned: the age from which an unfinished file has nobody any more who writes it.
    """
    opened = open_store(store, writable=repair)

    def tell(done: int, total: int) -> None:
        if not quiet and (done % 100 == 0 or done == total):
            print(f"{done} of {total} assets read", file=sys.stderr, flush=True)

    findings = verify_store(opened, tell, abandoned)
    done = repair_store(opened, findings, abandoned) if repair else []
    if repair:
        done += tidy_scratch(opened, scratch)
    left = verify_store(opened, abandoned=abandoned) if repair and findings else findings
    if as_json:
        print(json.dumps({"findings": [vars(f) for f in findings], "done": done,
                          "left": [vars(f) for f in left]}, indent=1))  # fmt: skip
    else:
        show(opened, findings, done, left, repair=repair)
    return FAILED if left else 0


def show(
    store: Store, findings: list[Finding], done: list[str], left: list[Finding], *, repair: bool
) -> None:
    for finding in findings:
        print(finding)
    for line in done:
        print(line)
    if not findings:
        print(f"{store.url}: whole")
    elif not repair:
        print(f"{len(findings)} problems; `sjc verify --repair` mends them", file=sys.stderr)
    elif left:
        print(f"{len(left)} problems are left", file=sys.stderr)


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
