"""The priors of a run that are not on this machine yet: downloaded once, and shown meanwhile."""

from __future__ import annotations

import contextlib
import io
import sys
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from sjc_engine.errors import PriorError
from sjc_engine.priors.sources import find_prior, precision_on
from sjc_engine.spec import prior_key

if TYPE_CHECKING:
    from flows.plan import RunPlan

LINE_SECONDS = 10.0  # between two lines of one file
SHOWN_FROM = 10_000_000  # bytes: smaller files come without a word


class DownloadBar(tqdm):
    """How far a file is, also where Prefect's sake has the hub's own bars switched off."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        options.pop("name", None)  # of the hub's own bars
        super().__init__(*arguments, **options)


class DownloadLines(DownloadBar):
    """The same of large files in plain lines, for logs and pipes."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        shown = {"mininterval": LINE_SECONDS, "maxinterval": LINE_SECONDS, "file": io.StringIO()}
        form = "downloading {desc}: {n_fmt}B of {total_fmt}B, {rate_fmt}, {remaining} left"
        super().__init__(*arguments, **options | shown | {"bar_format": form})

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if msg != "" and (self.total or 0) >= SHOWN_FROM:
            print(self, file=sys.stderr, flush=True)


class NoBar(DownloadBar):
    """Shows nothing."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options | {"disable": True})


def download_priors(plan: RunPlan, *, quiet: bool = False) -> None:
    """Downloads what the plan's priors lack here, so that its devices need not, each by itself.

    What cannot be had is left to them: their scenes then fail, and others do not.
    """
    bar = NoBar if quiet else DownloadBar if sys.stderr.isatty() else DownloadLines
    allow_pickle = plan.settings.allow_pickle
    wanted = {prior_key(entry.spec.to_json())[:3] for entry in plan.todo.values()}
    for prior, revision, dtype in wanted:
        kinds = {precision_on(device.partition(":")[0], dtype) for device in plan.devices}
        with contextlib.suppress(PriorError):
            source = find_prior(prior, revision, allow_pickle=allow_pickle)
            source.fetch(half=kinds == {"float16"}, bar=bar)
