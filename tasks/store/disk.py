"""Files that appear whole, and what a disk answers that takes no more, with what to do about it."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

_ADVICE = {
    errno.ENOSPC: ("the disk is full", "free space there, then run the same command again"),
    errno.EDQUOT: (
        "the disk quota is used up",
        "free space there, then run the same command again",
    ),
    errno.EFBIG: ("the file size limit is reached", "raise it (ulimit -f)"),
    errno.EACCES: ("permission denied", "fix its permissions or choose another {place}"),
    errno.EPERM: ("the system refuses the write", "fix its permissions or choose another {place}"),
    errno.EROFS: ("it is on a read-only file system", "choose another {place}"),
    errno.ENOENT: ("it cannot be made there", "choose another {place}"),
    errno.ENOTDIR: ("a part of the path is a file", "choose another {place}"),
    errno.EEXIST: ("it is a file and not a directory", "choose another {place}"),
    errno.ENAMETOOLONG: ("the path is too long", "choose a shorter {place}"),
}
_NO_INODES = (
    "the file system has no inodes left (`df -i` shows it)",
    "delete files there, or choose another {place} on a file system with more inodes",
)
LITTLE = 1 << 20  # bytes: not even a picture fits
FEW = 16  # inodes, or blocks: what has failed may have given some back by now


@contextlib.contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """A free name for a file until it is renamed to `path`; nothing stays there afterwards."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def disk_problem(error: OSError, place: str = "folder") -> tuple[str, str]:
    """What is wrong, and the fix, for an error of a disk; place: the option to name another."""
    target = error.filename2 or error.filename  # with two, the first is where the data comes from
    problem, fix = _ADVICE.get(error.errno or 0, (error.strerror or str(error), "check the disk"))
    if error.errno == errno.ENOSPC and isinstance(target, str) and _no_inodes(Path(target)):
        problem, fix = _NO_INODES
    return problem, fix.format(place=place)


def disk_advice(error: OSError, place: str = "folder") -> str:
    """The same as one phrase."""
    return "; ".join(disk_problem(error, place))


def is_full(folder: Path) -> bool:
    """Whether a folder's disk has no room or no inodes.

    Programs that write there fail in various ways.
    """
    try:
        return shutil.disk_usage(folder).free < LITTLE or _no_inodes(folder)
    except OSError:
        return False


def _no_inodes(path: Path) -> bool:
    """Whether the file system of a path, which may be missing, has room for data and not for files.

    Some file systems do not count inodes, and some make them as long as there are blocks.
    """
    place = path.absolute()
    nearest = next(folder for folder in (place, *place.parents) if os.path.exists(folder))
    try:
        usage = os.statvfs(nearest)
    except OSError:
        return False
    return usage.f_files > 0 and usage.f_favail < FEW <= usage.f_bavail
