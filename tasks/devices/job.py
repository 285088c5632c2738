"""One scene between the pool that was asked for it and its outcome."""

import queue
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Event = dict[str, Any]


class SceneError(Exception):
    """A scene that did not become a field.

    status: `failed`, `diverged`, `timeout`, `cancelled` or `interrupted`. first_step and
    last_step: how far it came on `device` (both 0 and "" when it never started).
    log_tail: of one that failed, the last lines of its engine's log.
    """

    def __init__(self, status: str, error_type: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.error_type = error_type
        self.device = ""
        self.first_step = 0
        self.last_step = 0
        self.log_tail = ""


# What is no scene's own fault is `interrupted`, and resumes later: the message of each error_type.
_FAULTS = {
    "ScratchFull": "the scratch folder is full: {}; free space there, then run the same command"
    " again",
    "ScratchLost": "files in the scratch folder are missing or unusable: {}; run the same command"
    " again",
    "StoreError": "{}",  # which cannot be read or written
}


def interrupted(error_type: str, problem: object) -> SceneError:
    """The error of a scene that something else has kept from its end; error_type: of `_FAULTS`."""
    return SceneError("interrupted", error_type, _FAULTS[error_type].format(problem))


@dataclass(eq=False)
class Job:
    """One scene between `run` and its outcome. Guarded by the pool's lock."""

    key: str
    message: Event  # the `add` message
    prior: tuple[str, ...]  # its `prior_key`
    queued: float  # monotonic seconds
    started: float | None = None  # when a device first took it
    taken: float = 0.0  # when this device did
    spent: float = 0.0  # seconds on other devices, and in other processes, before
    device: str = ""
    first_step: int | None = None
    last_step: int = 0
    log_tail: Callable[[], str] = str  # of the engine that has it
    lost_on: list[Any] = field(default_factory=list)  # devices whose process ended under it
    events: "queue.SimpleQueue[Event | SceneError]" = field(default_factory=queue.SimpleQueue)

    def end(self, status: str, error_type: str, message: str) -> None:
        error = SceneError(status, error_type, message)
        error.device = self.device
        error.first_step, error.last_step = self.first_step or 0, self.last_step
        self.events.put(error)
