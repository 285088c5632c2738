"""How an interrupted run ends: its own work first, then seconds for Prefect's last requests.

Prefect calls a server that is gone for a minute at each request, and for as long as it has events
left to send. Nothing of the run depends on it: the store is written by then.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

from flows.errors import INTERRUPTED

SECONDS = 8.0  # for Prefect, once the run's own work is done
RETRIES = 1  # of a request, after 2 seconds


@dataclass
class _End:
    """Whether the end of the run has begun, and what is undone after it."""

    brief: contextlib.ExitStack
    begun: bool = False


_END: ContextVar[_End | None] = ContextVar("end", default=None)


@contextlib.contextmanager
def exit_when_interrupted() -> Iterator[None]:
    """The run in here is all that this process is for: it ends when the run is interrupted.

    Raises KeyboardInterrupt for such an end, also if Prefect stumbles over its server after it.
    """
    with contextlib.ExitStack() as brief:
        end = _End(brief)
        token = _END.set(end)
        try:
            yield
        except Exception as error:
            if end.begun:
                raise KeyboardInterrupt from error
            raise
        finally:
            _END.reset(token)


@contextlib.contextmanager
def brief_shutdown(*, part: bool = False) -> Iterator[None]:
    """Around a flow's own work: once that has been ended by a signal, Prefect has to be brief.

    part: this is a sub-flow, and its run still has work to do after it.
    """
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    try:
        yield
    except BaseException as error:
        end = _END.get()
        # Ctrl-C is a KeyboardInterrupt, and SIGTERM within a flow Prefect's TerminationSignal.
        if end is not None and (end.begun or not isinstance(error, Exception)):
            if not end.begun:
                # For this thread alone: others may be in the middle of more.
                few = temporary_settings({PREFECT_CLIENT_MAX_RETRIES: RETRIES})
                end.brief.enter_context(few)
            if not part:
                timer = threading.Timer(SECONDS, _exit_now)
                timer.daemon = True
                timer.start()
            end.begun = True
        raise


def _exit_now() -> None:
    """Ends the process while Prefect still waits for its server."""
    with contextlib.suppress(OSError):
        print("sjc: Prefect's server does not answer: its pages miss the end", file=sys.stderr)
        sys.stderr.flush()
    os._exit(INTERRUPTED)
