"""How far a run is, by what is reported of it: counts, and the time that is left."""

import threading
import time
from collections import Counter
from collections.abc import Mapping

GOOD = ("ok", "reused", "pruned")


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
        self._first: dict[str, tuple[float, int]] = {}  # when the first one was, and which
        self._made = 0  # assets of `work` that are through
        self._steps_done = 0  # since the first report
        self._since: float | None = None  # the first report
        self._started = time.monotonic()
        self._lock = threading.Lock()

    def progress(self, name: str, step: int, steps: int) -> None:
        """An asset's optimisation came this far."""
        with self._lock:
            now = time.monotonic()
            self._since = now if self._since is None else self._since
            self._first.setdefault(name, (now, step))
            # An asset's first report is where it resumes, which is no work of this run.
            self._steps_done += max(0, step - self._step.get(name, step))
            self._step[name], self._left[name] = step, steps - step

    def stage(self, name: str, stage: str) -> None:
        """Any stage after the optimisation means that all its steps are done."""
        if stage not in ("queue", "optimize"):
            with self._lock:
                self._optimized(name)

    def finished(self, name: str, outcome: str) -> None:
        """An asset is through, whichever way."""
        with self._lock:
            if outcome in GOOD:
                self._optimized(name)
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
            if self._since is not None and self._steps_done:
                pace = (time.monotonic() - self._since) / self._steps_done
                return pace * sum(self._left.values())
            return self.elapsed / self._made * len(self._left) if self._made else None

    def seconds_left_of(self, name: str) -> float | None:
        """The same for one asset's optimisation, at its own pace."""
        with self._lock:
            began, first = self._first.get(name, (0.0, 0))
            done = self._step.get(name, first) - first
            return (time.monotonic() - began) / done * self._left.get(name, 0) if done > 0 else None
