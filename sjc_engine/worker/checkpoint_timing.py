"""When a scene's next checkpoint is due: soon after its start, then every few seconds."""

import time

FIRST_CHECKPOINT_SECONDS = 1.0  # after a scene has started
CHECKPOINT_SECONDS = 5.0  # at least, between two checkpoints of a scene
CHECKPOINT_SHARE = 0.02  # at most, of the time


def first_save() -> float:
    """On the clock of `time.monotonic`, as `next_save`."""
    return time.monotonic() + FIRST_CHECKPOINT_SECONDS


def next_save(seconds: float = 0.0) -> float:
    """seconds: what the last checkpoint took."""
    return time.monotonic() + max(CHECKPOINT_SECONDS, seconds / CHECKPOINT_SHARE)
