"""Whether file locks in a folder keep out the processes of other machines.

`flock` may fail, or succeed and hold on one machine alone. Only the mount says the second, and not
always: a kind of file system that may keep its locks to one machine counts as one that does.
"""

from __future__ import annotations

import errno
import fcntl
import re
from collections.abc import Iterator
from pathlib import Path

from tasks.store.disk import temporary_beside

MOUNTS = Path("/proc/self/mountinfo")  # of Linux, see proc(5)

# What file systems without locks answer.
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}

# GPFS and BeeGFS (unless tuned) lock whole files per machine, SMB did before Linux 5.5, and servers
# of 9p and virtiofs say yes to all or are never asked.
_LOCAL_KINDS = {
    "9p", "afs", "beegfs", "cifs", "gpfs", "orangefs", "prl_fs", "smb3", "vboxsf", "virtiofs",
}  # fmt: skip
# FUSE answers by itself for programs that do not ask for locks. These do, or are local disks.
_SOUND_FUSE = {
    "fuseblk", "fuse.ceph-fuse", "fuse.fuse-overlayfs", "fuse.glusterfs", "fuse.juicefs",
}  # fmt: skip
# Of NFS, of Lustre, and of GFS2 and OCFS2.
_LOCAL_OPTIONS = {"nolock", "local_lock=flock", "local_lock=all", "localflock", "localflocks"}


def lock_flaw(folder: Path) -> str:
    """Why locks in a folder, which may be missing, do not keep out others; empty if they do."""
    try:
        with temporary_beside(folder / "lock") as path, path.open("xb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            return f"flock: {error.strerror}"
    try:
        mounts = MOUNTS.read_text("utf-8", errors="surrogateescape")
    except OSError:  # not Linux
        return ""
    # The innermost, and of several at one place the last, which hides the others.
    place, unknown = folder.resolve(), (Path("/"), "", set[str]())
    around = [unknown, *(mount for mount in _mounts(mounts) if place.is_relative_to(mount[0]))]
    _, kind, options = max(reversed(around), key=lambda mount: len(mount[0].parts))
    if kind == "lustre" and not options & {"flock", "localflock"}:
        return "lustre, mounted without flock"
    if local := sorted(options & _LOCAL_OPTIONS):
        return f"{kind}, mounted with {local[0]}"
    if kind in _LOCAL_KINDS or (kind.startswith("fuse") and kind not in _SOUND_FUSE):
        return f"locks of {kind} may hold on one machine alone"
    return ""


def _mounts(text: str) -> Iterator[tuple[Path, str, set[str]]]:
    """Where each file system of a mountinfo is mounted, its kind, and its options."""
    for line in text.splitlines():
        front, _, back = line.partition(" - ")
        point, options = front.split(" ")[4:6]
        kind, _, more = back.split(" ", 2)
        # Spaces and the like are octal numbers
        place = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), point)
        yield Path(place), kind, {*options.split(","), *more.split(",")}
