"""The scratch folder of runs on this machine."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from flows.errors import UsageError


@contextlib.contextmanager
def sole_user(scratch: Path) -> Iterator[None]:
    """Holds the scratch folder; UsageError when another run does. The lock ends with the process.

    Two runs would go on from one checkpoint and tidy away each other's files.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    with (scratch / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"another run uses {scratch}; wait for it, or name another folder with --scratch"
            ) from error
        yield
