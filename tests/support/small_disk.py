"""A disk of a megabyte or two, to be filled up and made read-only."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


class SmallDisk:
    """A tmpfs that is mounted at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def resize(self, size: str) -> None:
        self._remount(f"size={size}")

    def make_read_only(self) -> None:
        self._remount("ro")

    def fill(self, leave: int = 0) -> Path:
        """Takes all room but so many bytes, with one file; returns it."""
        ballast = self.path / "ballast"
        with ballast.open("ab", buffering=0) as file:
            try:
                while file.write(bytes(1 << 16)):
                    pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
        os.truncate(ballast, max(0, ballast.stat().st_size - leave))
        return ballast

    def _remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.path)], check=True)


def mount(path: Path, size: str) -> bool:
    """Mounts a tmpfs at a folder; False where this user may mount nothing."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(path)]
    possible = os.geteuid() == 0 and shutil.which("mount")
    return bool(possible) and subprocess.run(command, capture_output=True).returncode == 0


def unmount(path: Path) -> None:
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def mounted(path: Path, size: str) -> Iterator[SmallDisk]:
    """The disk, until the test is over; skips where this user may mount nothing."""
    path.mkdir()
    if not mount(path, size):
        pytest.skip("only root, outside of most containers, may mount a small disk")
    try:
        yield SmallDisk(path)
    finally:
        unmount(path)
