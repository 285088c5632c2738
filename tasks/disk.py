"""What a disk answers that takes no more, and what to do about it."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

_ADVICE = {
    errno.ENOSPC: "the disk is full; free space there, then run the same command again",
    errno.EDQUOT: "the disk quota is used up; free space there, then run the same command again",
    errno.EFBIG: "the file size limit is reached; raise it (ulimit -f)",
    errno.EACCES: "permission denied; fix its permissions or choose another {place}",
    errno.EPERM: "the system refuses the write; fix its permissions or choose another {place}",
    errno.EROFS: "it is on a read-only file system; choose another {place}",
    errno.ENOENT: "it cannot be made there; choose another {place}",
    errno.ENOTDIR: "a part of the path is a file; choose another {place}",
    errno.EEXIST: "it is a file and not a directory; choose another {place}",
    errno.ENAMETOOLONG: "the path is too long; choose a shorter {place}",
}
LITTLE = 1 << 20  # bytes: not even a picture fits


def disk_advice(error: OSError, place: str = "folder") -> str:
    """What is wrong, and the fix, for an error of a disk; place: the option to name another."""
    if known := _ADVICE.get(error.errno or 0):
        return known.format(place=place)
    return f"{error.strerror or error}; check the disk"


def is_full(folder: Path) -> bool:
    """Whether a folder's disk has no room; programs that write there fail in ways of their own."""
    try:
        return shutil.disk_usage(folder).free < LITTLE
    except OSError:
        return False
