"""How far a run is, by what is reported of it: counts, and the time that is left."""

import threading
import time
from collections import Counter
from collections.abc import Mapping

GOOD = ("ok", "reused", "pruned")
# The first steps compile, tune and write the first checkpoint: they say nothing of the others.
WARM_UP = 3
ENOUGH = 5  # steps to measure before any time is shown
REST_SECONDS = 15.0  # what follows an asset's steps, until the first asset is through


class Tally:
    """Counts the assets of a run and the steps of those that it makes. Threads may share it.

    total: all assets. work: the steps of each asset to make, by its name.
    """

    def __init__(self, total: int = 0, work: Mapping[str, int] | None = None) -> None:
        self.total = total
        self.outcomes: Counter[str] = Counter()
        self.failures: dict[str, str] = {}  # by the names of assets
        self._left = dict(work or {})  # steps, of the assets that are not through
        self._step: dict[str, int] = {}  # the last one reported
        self._began: dict[str, int] = {}  # the first one, where the asset resumes
        self._warm: dict[str, tuple[float, int]] = {}  # when the last one of its warm-up was
        self._rest = REST_SECONDS
        self._optimized_at: dict[str, float] = {}
        self._made = 0  # assets of `work` that are through
        self._steps_done = 0  # since the warm-up of the first asset
        self._since: float | None = None  # when that was over
        self._started = time.monotonic()
        self._lock = threading.Lock()

    def progress(self, name: str, step: int, steps: int) -> None:
        """An asset's optimisation came this far."""
        with self._lock:
            now = time.monotonic()
            warming = step - self._began.setdefault(name, step) <= WARM_UP
            if warming:
                self._warm[name] = now, step
            if warming and not self._steps_done:
                self._since = now
            else:
                self._steps_done += max(0, step - self._step.get(name, step))
            self._step[name], self._left[name] = step, steps - step

    def stage(self, name: str, stage: str) -> None:
        """Any stage after the optimisation means that all its steps are done."""
        if stage not in ("queue", "optimize"):
            with self._lock:
                self._optimized(name)
                self._optimized_at.setdefault(name, time.monotonic())

    def finished(self, name: str, outcome: str) -> None:
        """An asset is through, whichever way."""
        with self._lock:
            if outcome in GOOD:
                self._optimized(name)
                if name in self._optimized_at:
                    self._rest = time.monotonic() - self._optimized_at[name]
            else:
                self.failures[name] = outcome
            self._made += self._left.pop(name, None) is not None
            self.outcomes[outcome] += 1

    def _optimized(self, name: str) -> None:
        """No step of this asset is left; with the lock held."""
        if name in self._step:  # a field that was there already took no work
            self._steps_done += self._left.get(name, 0)
        if name in self._left:
            self._left[name] = 0

    @property
    def done(self) -> int:
        """Assets that are through, failed ones included."""
        return self.outcomes.total()

    @property
    def failed(self) -> int:
        """Assets that are through, without being made, reused or pruned."""
        return len(self.failures)

    @property
    def to_go(self) -> int:
        return self.total - self.done

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._started

    @property
    def seconds_left(self) -> float | None:
        """At the pace so far; None while nothing is known of it, or no step is left."""
        with self._lock:
            if not any(self._left.values()):
                return None
            if self._since is not None and self._steps_done >= ENOUGH:
                pace = (time.monotonic() - self._since) / self._steps_done
                return pace * sum(self._left.values()) + self._rest
            return self.elapsed / self._made * len(self._left) if self._made else None

    def seconds_left_of(self, name: str) -> float | None:
        """The same for one asset, at its own pace."""
        with self._lock:
            since, first = self._warm.get(name, (0.0, 0))
            done = self._step.get(name, first) - first
            if done < ENOUGH:
                return None
            return (time.monotonic() - since) / done * self._left.get(name, 0) + self._rest
