"""`sjc gallery`: a static web page over a store. `sjc report`: one page over a run."""

import sys
from pathlib import Path

from flows.errors import UsageError
from flows.settings import recorded_command
from tasks.disk import disk_advice
from tasks.documents import check_usable
from tasks.gallery import build_gallery
from tasks.report import latest_run, write_report
from tasks.store import check_key, open_store
from tasks.table_reader import QueryError


def gallery(store: str, out: Path, where: str | None, *, quiet: bool) -> None:
    """Writes the pages and prints the index's path. Raises UsageError, StoreError."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"-o {out}: is a file; name a folder")
    opened = open_store(store, writable=False)

    def tell(done: int, total: int) -> None:
        if not quiet and (done % 100 == 0 or done == total):
            print(f"{done} of {total} assets", file=sys.stderr, flush=True)

    try:
        made = build_gallery(opened, out, where, tell)
    except QueryError as error:
        raise UsageError(f"--where: {error.problem}") from error
    except OSError as error:
        raise UsageError(f"-o {out}: {disk_advice(error, '-o')}") from error
    if not quiet:
        print(f"{made.assets} assets, {made.copied} files copied", file=sys.stderr)
    print(made.index)


def report(store: str, run_id: str | None) -> None:
    """Writes the report of a run, the latest by default, and prints where. Raises StoreError."""
    opened = open_store(store, writable=False)
    check_usable(opened)
    chosen = check_key(run_id) if run_id else latest_run(opened)
    print(write_report(opened, chosen, recorded_command))
