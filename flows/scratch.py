"""The scratch folder of runs on this machine."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from flows.errors import UsageError
from flows.folders import make_private
from tasks.disk import disk_advice


@contextlib.contextmanager
def sole_user(scratch: Path) -> Iterator[None]:
    """Holds the scratch folder; UsageError when another run does. The lock ends with the process.

    Two runs would go on from one checkpoint and tidy away each other's files.
    """
    try:
        make_private(scratch)
        opened = (scratch / "lock").open("a")
    except OSError as error:
        raise UsageError(f"--scratch {scratch}: {disk_advice(error, '--scratch')}") from error
    with opened as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"another run uses {scratch}; wait for it, or name another folder with --scratch"
            ) from error
        yield
