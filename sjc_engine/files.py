"""Writing a file so that nobody ever sees half of it. Imports no torch: pages need it too."""

import errno
import os
from pathlib import Path

# What a disk answers that takes no more: it is to blame, and not what was to be written.
REFUSED = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS,
}  # fmt: skip


def is_refusal(error: BaseException | None) -> bool:
    """Whether a disk refused a write: full, read-only, or not allowed."""
    return isinstance(error, OSError) and error.errno in REFUSED


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data` so that a crash leaves either the old file or the new one.

    Parent folders are made: somebody may have deleted them since the last file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Makes new names in a folder survive a power cut."""
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
