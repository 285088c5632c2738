"""What a person sees during a run: live lines on a terminal, plain ones elsewhere."""

import sys
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flows.progress.time_left import GOOD, Tally
from tasks.pages.html import duration

LINE_SECONDS = 10.0  # between two plain lines of one asset's steps, or of its other work


class Watcher:
    """Follows a run, from several threads. By itself it counts and shows nothing."""

    run_id = ""
    on_change: Callable[[], object] | None = None  # called after progress, and for each end
    _noted: frozenset[str] = frozenset()

    @cached_property
    def tally(self) -> Tally:
        """The counts of the run, empty until it has begun."""
        return Tally()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def begun(self, run_id: str, total: int, work: Mapping[str, int] | None = None) -> None:
        """A run starts, with so many assets; work: the steps of those that it is to make."""
        self.run_id, self.tally = run_id, Tally(total, work)
        self.note(f"run {run_id}: {total} assets")

    def note(self, text: str) -> None:
        """One line that stays."""

    def problem(self, text: str) -> None:
        """What went wrong and is in no row: shown with --quiet too."""
        print(text, file=sys.stderr, flush=True)

    def once(self, text: str) -> None:
        """The same, but each text only once."""
        if text not in self._noted:
            self._noted |= {text}
            self.note(text)

    def stage(self, name: str, stage: str) -> None:
        """An asset begins a stage; while it waits for a device that is `queue`."""
        self.tally.stage(name, stage)

    def progress(self, name: str, step: int, steps: int, loss: float | None) -> None:
        """An asset's optimisation came this far."""
        self.tally.progress(name, step, steps)
        self._changed()

    def working(self, name: str, what: str, done: int, total: int) -> None:
        """What is done for an asset that is no step of its optimisation."""

    def finished(self, name: str, outcome: str, seconds: float) -> None:
        """An asset is through; outcome: `ok`, `reused` or how it failed."""
        self.tally.finished(name, outcome)
        self._changed()

    def _changed(self) -> None:
        if self.on_change is not None:
            self.on_change()


def terminal_watcher(*, quiet: bool) -> Watcher:
    """What suits stderr."""
    if quiet:
        return Watcher()
    return Screen() if sys.stderr.isatty() else Lines()


class Lines(Watcher):
    """Plain lines for logs and pipes; each asset has one at most every ten seconds.

    Steps and other work do not count for each other, or the last line of loading would keep the
    first step back, and a step may take half a minute.
    """

    def __init__(self) -> None:
        self._printed: dict[tuple[str, str], float] = {}

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def stage(self, name: str, stage: str) -> None:
        super().stage(name, stage)
        if stage != "queue":
            self.note(f"{name}: {stage}")

    def progress(self, name: str, step: int, steps: int, loss: float | None) -> None:
        super().progress(name, step, steps, loss)
        if self._is_due(name, "step"):
            left = _left(self.tally.seconds_left_of(name))
            self.note(_joined(f"{name}: step {step}/{steps}", _loss(loss), left))

    def working(self, name: str, what: str, done: int, total: int) -> None:
        if self._is_due(name, "work"):
            self.note(f"{name}: {what} {done}/{total}")

    def _is_due(self, name: str, kind: str) -> bool:
        """Whether the asset's last line of this kind is old enough for the next."""
        now = time.monotonic()
        due = now - self._printed.get((name, kind), -LINE_SECONDS) >= LINE_SECONDS
        if due:
            self._printed[name, kind] = now
        return due

    def finished(self, name: str, outcome: str, seconds: float) -> None:
        super().finished(name, outcome, seconds)
        took = f" after {seconds:.0f} s" if seconds else ""
        self.note(f"{name}: {outcome}{took} ({_run(self.tally)})")


class Screen(Watcher):
    """One line for each running asset, drawn again in place; notes scroll above."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._rows: dict[str, tuple[str, int, int, float | None]] = {}  # the stage, its progress
        self._live = Live(
            console=self._console, refresh_per_second=4, get_renderable=self._draw, transient=True
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def note(self, text: str) -> None:
        self._console.print(Text(text))

    problem = note

    def stage(self, name: str, stage: str) -> None:
        super().stage(name, stage)
        self._rows[name] = (stage, 0, 0, None)

    def progress(self, name: str, step: int, steps: int, loss: float | None) -> None:
        super().progress(name, step, steps, loss)
        self._rows[name] = ("optimize", step, steps, loss)

    def working(self, name: str, what: str, done: int, total: int) -> None:
        self._rows[name] = (what, done, total, None)

    def finished(self, name: str, outcome: str, seconds: float) -> None:
        self._rows.pop(name, None)
        super().finished(name, outcome, seconds)
        mark = ("✓", "green") if outcome in GOOD else ("✗", "red")
        took = f" {seconds:.0f} s" if seconds else ""
        self._console.print(Text.assemble(mark, f" {name} {outcome}{took}"))

    def _draw(self) -> Table:
        """The running assets, and below them how far the run is."""
        table = Table.grid(padding=(0, 2))
        for name, (stage, step, steps, loss) in list(self._rows.items()):
            if stage == "queue":
                continue
            table.add_row(
                Text(name, style="bold", overflow="ellipsis", no_wrap=True),
                Text(stage),
                ProgressBar(total=steps, completed=step, width=24) if steps else "",
                Text(f"{step}/{steps}" if steps else ""),
                Text(_loss(loss)),
                Text(_left(self.tally.seconds_left_of(name)) if stage == "optimize" else ""),
            )
        seconds = int(self.tally.elapsed)
        clock = f"{seconds // 60}:{seconds % 60:02d}"
        table.add_row(Text(f"{_run(self.tally)}, {clock}", "dim"))
        return table


def _run(tally: Tally) -> str:
    """How far the whole run is."""
    done = f"{tally.done}/{tally.total} done"
    return _joined(done, f"{tally.to_go} to go", _left(tally.seconds_left))


def _joined(*parts: str) -> str:
    """The parts that are not empty."""
    return ", ".join(filter(None, parts))


def _loss(loss: float | None) -> str:
    return "" if loss is None else f"loss {loss:.3g}"


def _left(seconds: float | None) -> str:
    return "" if seconds is None else f"{duration(seconds)} left"
