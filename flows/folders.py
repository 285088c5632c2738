"""Folders: whether one can hold files, and making one that is private."""

import contextlib
import os
from pathlib import Path


def can_hold_files(folder: Path) -> bool:
    """Whether a folder is there and writable, or can be made; nothing is made."""
    nearest = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


def make_private(folder: Path) -> None:
    """Makes a folder, if it is missing, that is its owner's alone: fields and logs lie there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
