"""The most memory that a piece of work takes, of this process and its children."""

from __future__ import annotations

import ctypes
import os
import resource
import threading
import time
from pathlib import Path


def resident() -> float:
    """MB of this process and its children right now."""
    pages = 0
    children = Path("/proc/self/task")
    pids = [os.getpid()]
    for task in children.iterdir():
        pids += [int(p) for p in (task / "children").read_text().split()]
    for pid in pids:
        try:
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return pages * resource.getpagesize() / 2**20


class Peak:
    """The most memory above the start's while the block runs, sampled every 10 ms."""

    def __enter__(self) -> Peak:
        # What was freed before must not serve the block unseen.
        if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
            libc.malloc_trim(0)
        self.start, self.added, self._on = resident(), 0.0, True
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while self._on:
            self.added = max(self.added, resident() - self.start)
            time.sleep(0.01)

    def __exit__(self, *_: object) -> None:
        self._on = False
        self._thread.join()
