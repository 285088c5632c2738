"""A flow that a command runs: who watches it, and how it ended."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from flows.context import surrounded_by
from flows.prefect_server.server import Server
from flows.progress.terminal import Watcher, terminal_watcher

if TYPE_CHECKING:
    from prefect.states import State


@contextlib.contextmanager
def watching(server: Server, *, quiet: bool) -> Iterator[Watcher]:
    """Shows the flow that is run within on the terminal; `server` has to be there for it."""
    with server.available(), terminal_watcher(quiet=quiet) as watch, surrounded_by(watcher=watch):
        yield watch


def raise_error(state: State[Any]) -> None:
    """Raises what ended the flow early: KeyboardInterrupt when it was cancelled, or its error.

    A flow that returns a failed state, since every asset failed, has come to its end: the caller
    reports it.
    """
    from prefect.exceptions import FailedRun

    if state.is_cancelled():
        raise KeyboardInterrupt
    if not state.is_completed():
        problem = state.result(raise_on_failure=False)
        if isinstance(problem, Exception) and not isinstance(problem, FailedRun):
            raise problem
