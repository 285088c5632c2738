"""What Prefect's pages show of a run: its name, a live summary, its assets and its failures."""

import json
import re
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prefect.events import emit_event

from flows.plan import RunPlan
from flows.prefect_server.schedule import manifest_name, run_tags
from flows.progress.number_formats import cell
from flows.progress.results import RESULT_COLUMNS
from flows.progress.terminal import Watcher
from flows.progress.time_left import GOOD
from tasks.pages.html import duration
from tasks.prefect_ui.artifacts import Board, describe_run
from tasks.stages.versions import versions

SUMMARY_SECONDS = 10.0  # between two versions of the live summary
LISTED = 20  # failures in the summary; the table has more
ROWS = 300  # of a table: pages are slow beyond
LETTERS = 200  # of a reason


class PrefectSummary:
    """Puts a run on Prefect's pages. Every asset's own progress and preview come from its tasks.

    To be made in the flow's thread, once `watcher` knows that the run has begun.
    """

    def __init__(self, plan: RunPlan, board: Board, watcher: Watcher) -> None:
        self._plan, self._board = plan, board
        self._run_id, self._tally = watcher.run_id, watcher.tally
        self._updated = 0.0
        describe_run(run_name(plan), plan_tags(plan), versions()["code"])
        about = f"Run {self._run_id}"
        self._summary = board.create("markdown", "summary", self._text(), about)
        watcher.on_change = self._refresh

    def ended(self, rows: list[dict[str, Any]]) -> None:
        """The run is over; rows: what `results` has of its assets."""
        failed = [row for row in rows if row["status"] != "ok"]
        about = f"Assets of run {self._run_id}{_cut(rows)}"
        self._table("results", RESULT_COLUMNS, rows, about)
        if failed:
            columns = {"asset": "asset", "status": "status", "error": "reason"}
            about = f"Failed in run {self._run_id}{_cut(failed)}. Try them again:"
            about += f" `{self._plan.settings.command_line(retry=True)}`"
            self._table("failures", columns, failed, about)
        reasons = {row["asset"]: row["error"] or row["status"] for row in failed}
        self._board.update(self._summary, self._text(reasons))

    def _table(
        self, key: str, columns: Mapping[str, str], rows: list[dict[str, Any]], about: str
    ) -> None:
        """Publishes rows as a table artifact; columns: its headings, by the names of the rows."""
        table = [{title: cell(row[name]) for name, title in columns.items()} for row in rows[:ROWS]]
        self._board.create("table", key, json.dumps(table), about)

    def _refresh(self) -> None:
        """Publishes a new summary unless the last one is recent."""
        now = time.monotonic()
        if now - self._updated >= SUMMARY_SECONDS:
            self._updated = now
            self._board.update(self._summary, self._text())

    def _text(self, reasons: Mapping[str, str] | None = None) -> str:
        """The summary; with the reasons of the failures it is the last one of the run."""
        tally, plan = self._tally, self._plan
        made, reused = tally.outcomes["ok"], tally.outcomes["reused"]
        numbers = f"| {made} | {reused} | {tally.failed} | {tally.to_go} |"
        lines = [f"# {_plain(run_name(plan))}", ""]
        lines += ["| made | reused | failed | to go |", "|---:|---:|---:|---:|", numbers, ""]
        left = tally.seconds_left if reasons is None else None
        if left is not None:
            lines += [f"**About {duration(left)} left.**", ""]
        lines += [spent(plan, tally.elapsed, left, made), ""]
        failures = tally.failures if reasons is None else reasons
        if failures:
            lines += ["## Failed", "", "| asset | reason |", "|---|---|"]
            shown = list(failures.items())[:LISTED]
            lines += [f"| {_plain(name)} | {_plain(reason)} |" for name, reason in shown]
            if len(failures) > len(shown):
                lines += ["", f"and {len(failures) - len(shown)} more in `failures`"]
            lines += ["", "Try them again:", "", _block(plan.settings.command_line(retry=True)), ""]
        return "\n".join([*lines, *self._places(ended=reasons is not None)])

    def _places(self, *, ended: bool) -> list[str]:
        """Where to look, as far as it is there."""
        store, gallery = self._plan.store, self._plan.settings.gallery
        lines = ["## Where to look", "", f"- store: {_link(store.url)}"]
        run = f"runs/{self._run_id}"
        files = {"report": f"{run}/report.html", "all previews": f"{run}.png"} if ended else {}
        for name, key in files.items():
            if store.exists(key):
                lines += [f"- {name}: {_link(store.uri(key))}"]
        if gallery is not None:
            lines += [f"- gallery: {_link(gallery)}"]
        folder = gallery if gallery is not None and "://" not in gallery else "pages"
        command = ["sjc", "gallery", "-o", folder, "--store", store.url]
        return [*lines, "", "A gallery with a 3D viewer:", "", _block(shlex.join(command))]


def run_name(plan: RunPlan) -> str:
    """Such as `paper.csv: 6 assets (2 new, 1 resumed)`."""
    counts = plan.counts()
    words = {"new": counts["new"], "resumed": counts["interrupted"]}
    if plan.settings.retry_failed:
        words["retried"] = counts["failed"]
    parts = ", ".join(f"{number} {word}" for word, number in words.items() if number)
    total = len(plan.assets)
    assets = f"{total} asset{'s' if total != 1 else ''}"
    return f"{manifest_name(plan.settings.manifest)}: {assets} ({parts or 'nothing new'})"


def plan_tags(plan: RunPlan) -> list[str]:
    """Those of a run's manifest and its priors."""
    return run_tags(plan.settings.manifest, (asset.spec.prior for asset in plan.assets.values()))


@contextmanager
def announced(plan: RunPlan, watcher: Watcher) -> Iterator[None]:
    """Emits Prefect's event `sjc.run.ended` once a run has ended in whichever way.

    To be used in the flow's thread: Prefect adds the flow run, its deployment and its tags.
    """
    try:
        yield
    finally:
        if watcher.run_id:  # else it has not begun
            tally, run = watcher.tally, {"run_id": watcher.run_id, "store": plan.store.url}
            counts = {name: tally.outcomes[name] for name in GOOD}
            counts["failed"] = tally.failed - tally.outcomes["interrupted"]
            counts["unfinished"] = tally.total - sum(counts.values())
            # Automations match labels of the resource, and can show the payload.
            resource = {f"sjc.{key}": str(value) for key, value in (run | counts).items()}
            resource["prefect.resource.id"] = f"sjc.run.{watcher.run_id}"
            resource["prefect.resource.name"] = run_name(plan)
            seconds = {"seconds": round(tally.elapsed, 1)}
            emit_event("sjc.run.ended", resource, payload=run | counts | seconds)


def spent(plan: RunPlan, seconds: float, left: float | None, made: int) -> str:
    """Time and cost so far and, while the run lasts, expected: devices are paid by the hour."""
    devices = plan.devices
    hours = seconds * len(devices) / 3600
    text = f"{duration(seconds)} on {', '.join(devices)}: {hours:.3g} device-hours"
    price = plan.settings.price_per_hour
    if price is None:
        return f"{text}."
    text += f", cost {hours * price:.2f} at {price:g} an hour"
    if left is not None:
        text += f", about {(seconds + left) * len(devices) / 3600 * price:.2f} in the end"
    elif made:
        text += f", {hours * price / made:.2g} for each asset made"
    return f"{text}."


def _cut(rows: list[dict[str, Any]]) -> str:
    """Says so when a table does not show all rows."""
    return f", the first {ROWS} of {len(rows)}" if len(rows) > ROWS else ""


def _plain(text: str) -> str:
    """Text of a manifest or an error as one line of Markdown that means nothing else."""
    line = " ".join(text.split())
    short = line if len(line) <= LETTERS else line[: LETTERS - 3] + "..."
    return re.sub(r"([\\`*_{}\[\]()<>#+!|~&-])", r"\\\1", short)


def _block(text: str) -> str:
    """A command to copy, as it is."""
    return f"```\n{text}\n```"


def _link(place: str) -> str:
    """An address to click on, or a path to copy: browsers follow no file links of a server."""
    return f"<{place}>" if place.startswith(("http://", "https://")) else f"`{place}`"
