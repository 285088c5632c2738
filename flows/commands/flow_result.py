"""How a flow that a command ran has ended."""

from typing import Any

from prefect.exceptions import FailedRun
from prefect.states import State


def check_end(state: State[Any]) -> None:
    """Raises what ended the flow early: KeyboardInterrupt when it was cancelled, or its error.

    A flow that returns a failed state, since every asset failed, has come to its end: the caller's
    report says so.
    """
    if state.is_cancelled():
        raise KeyboardInterrupt
    if not state.is_completed():
        problem = state.result(raise_on_failure=False)
        if isinstance(problem, Exception) and not isinstance(problem, FailedRun):
            raise problem
