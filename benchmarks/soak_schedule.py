"""Which fault is due when: every kind once in an order by chance, and then again in another."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Mapping

from soak_faults import Scene, Strike

GAP = (2.0, 6.0)  # seconds between two faults
CALM_SECONDS = 7.0  # more, at most, until an asset gets through: a busy machine is not to starve
AIM_SECONDS = 15.0  # that a fault looks for its target; then another one has its turn
LONGEST = 5  # times as long as asked, at most, for the sake of kinds that did not strike yet


class Schedule:
    """Counts of the faults that struck, and of those that found no target."""

    def __init__(self, strikes: Mapping[str, Strike], chance: random.Random) -> None:
        self.struck: Counter[str] = Counter()
        self.missed: Counter[str] = Counter()
        self._strikes, self._chance = strikes, chance
        self._deck: list[str] = []
        self._began = time.monotonic()
        self._due = self._began + GAP[1]
        self._aiming: tuple[str, float] | None = None  # which fault, and until when
        self._finished = 0  # assets at the last fault

    def goes_on(self, seconds: float, kinds: int) -> bool:
        """Whether it is not over yet after so many seconds, for so many kinds of faults."""
        spent = time.monotonic() - self._began
        return spent < seconds or (len(self.struck) < kinds and spent < seconds * LONGEST)

    def strike(self, scene: Scene, finished: int) -> str | None:
        """Lets the fault that is due strike; its name if it did. finished: assets so far."""
        now = time.monotonic()
        if self._aiming is None:
            if now < self._due + (CALM_SECONDS if finished == self._finished else 0.0):
                return None
            if not self._deck:
                self._deck = sorted(self._strikes)
                self._chance.shuffle(self._deck)
            self._aiming = self._deck.pop(), now + AIM_SECONDS
        name, until = self._aiming
        struck = self._strikes[name](scene)
        if not struck and now < until:
            return None
        (self.struck if struck else self.missed)[name] += 1
        self._aiming, self._finished = None, finished
        self._due = now + self._chance.uniform(*GAP)
        return name if struck else None
