"""What can be known of a folder without making it."""

import os
from pathlib import Path


def can_hold_files(folder: Path) -> bool:
    """Whether a folder is there and writable, or can be made; nothing is made."""
    nearest = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)
