"""Lines of progress for commands that go through many things: how many, and how fast."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from flows.progress.number_formats import size_text

LINE_SECONDS = 2.0  # between two lines


def counter(text: str, *, quiet: bool) -> Callable[..., None]:
    """A callback that prints `2 of 9 {text}` to stderr, every few seconds and at the last.

    What else it is called with are bytes that are done, and all.
    """
    began = last = time.monotonic()

    def report(done: int, total: int, *sizes: int) -> None:
        nonlocal last
        now = time.monotonic()
        if quiet or (now - last < LINE_SECONDS and done < total):
            return
        last, line = now, f"{done} of {total} {text}"
        if sizes:
            line += f", {' of '.join(map(size_text, sizes))}"
            line += f", {size_text(sizes[0] / max(now - began, 1e-3))}/s"
        print(line, file=sys.stderr, flush=True)

    return report
