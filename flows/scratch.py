"""The scratch folder of runs on this machine, and the private folders that hold what is theirs."""

import contextlib
import fcntl
import os
import platform
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from flows.errors import UsageError, disk_errors
from tasks.store.locks import lock_flaw

ASK_SECONDS = 0.5  # between two looks at a folder that another run uses


@contextlib.contextmanager
def sole_user(scratch: Path, wait: Callable[[], object] | None = None) -> Iterator[bool]:
    """Holds the scratch folder; the lock ends with the process. Whether another run had it before.

    Two runs would resume from one checkpoint and delete each other's files. wait: called when
    another run has the folder, which is then waited for; without it that is a UsageError.
    """
    with disk_errors("--scratch", scratch):
        make_private(scratch)
        opened = (scratch / "lock").open("a")
    with opened as lock:
        waited = False
        while not _locked(lock):
            if wait is None:
                raise UsageError(
                    f"another run uses {scratch}; wait for it, or name another folder with"
                    " --scratch"
                )
            if not waited:
                wait()
            waited = True
            time.sleep(ASK_SECONDS)
        yield waited


def in_use(scratch: Path) -> bool:
    """Whether a run has the folder now; not whether it will have it in a moment."""
    try:
        with (scratch / "lock").open("a") as lock:
            return not _locked(lock)
    except (OSError, UsageError):  # no folder yet, or none that can be used
        return False


def _locked(lock: IO[str]) -> bool:
    """Takes the lock of an open file; False while another process has it. Raises UsageError."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise UsageError(
            f"{lock.name} cannot be locked ({error.strerror}); with --scratch, name a folder on a"
            " disk of this machine"
        ) from error
    return True


def shard_scratch(scratch: str | None, plan: str, shard: int) -> Path:
    """The scratch folder of a shard, below that of the machine."""
    folder = scratch or os.environ.get("SJC_SCRATCH") or "~/.cache/sjc"
    return Path(folder).expanduser() / "shards" / f"{plan}-{shard:05d}"


def scratch_id(scratch: Path) -> str:
    """The name of a folder that has a sole user, unlike that of any other folder.

    A folder that was deleted under its user gets a new one. Where each machine has locks of its own
    a folder has a user for each of them.
    """
    make_private(scratch)
    with (scratch / "lock").open("a+") as lock:
        lock.seek(0)
        if not (name := lock.read()):
            name = secrets.token_hex(8)
            lock.write(name)
    return f"{name}-{platform.node()}" if lock_flaw(scratch) else name


def can_hold_files(folder: Path) -> bool:
    """Whether a folder is there and writable, or can be made; nothing is made."""
    nearest = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


def make_private(folder: Path) -> None:
    """Makes a folder, if it is missing, that is its owner's alone: fields and logs lie there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
