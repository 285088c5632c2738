"""One device as the pool sees it: its scenes, its room, and whether it is broken."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tasks.devices.job import Job

# Processes that end one after the other, each under other scenes and before any of them did a
# step: the device is broken, not the scenes.
MOST_DEATHS = 3


@dataclass(eq=False)
class Device:
    """One device: the scenes that its process steps, and how many more it takes.

    room: scenes it takes now; most: it may take when its process has measured its memory. Guarded
    by the pool's lock.
    """

    name: str
    room: int = 1
    most: int = 1
    active: list[Job] = field(default_factory=list)
    prior: tuple[str, ...] | None = None  # the one its process has loaded
    early: dict[str, Any] | None = None  # load this spec's prior though there is no scene yet
    running: bool = False  # messages may be sent
    heard: float = 0.0  # monotonic seconds of the last message
    # Since a scene last did a step here: processes that ended, and the scenes that were on board
    deaths: int = 0
    victims: set[Job] = field(default_factory=set)
    retired: str = ""  # why it takes no more scenes

    def count_death(self, jobs: Sequence[Job], problem: str) -> None:
        """Its process ended under these scenes; `retired` once that was so MOST_DEATHS times."""
        if self.victims.isdisjoint(jobs):  # else one scene may be the culprit each time
            self.deaths += 1
            self.victims.update(jobs)
        if self.deaths >= MOST_DEATHS:
            ended = f"{self.deaths} engine processes, each with other scenes, ended before any step"
            self.retired = f"{ended}: {problem}"

    def count_step(self) -> None:
        """A scene did a step: it works."""
        self.deaths, self.victims = 0, set()
