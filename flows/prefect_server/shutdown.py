"""How an interrupted run ends: its own work first, then seconds for Prefect's last requests.

Prefect calls a server that is gone for a minute at each request, and for as long as it has events
left to send. Nothing of the run depends on it: the store is written by then.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from flows.errors import INTERRUPTED, ignore_late_interrupts

SECONDS = 8.0  # for Prefect, once the run's own work is done
RETRIES = 1  # of a request, after 2 seconds


@dataclass
class Shutdown:
    """Whether the end of a run has begun, and what is undone after it."""

    undo: contextlib.ExitStack
    begun: bool = False


@contextlib.contextmanager
def exit_when_interrupted() -> Iterator[Shutdown]:
    """The run in here is all that this process is for: it ends when the run is interrupted.

    Raises KeyboardInterrupt for such an end, also if Prefect stumbles over its server after it.
    """
    with contextlib.ExitStack() as undo:
        shutdown = Shutdown(undo)
        try:
            yield shutdown
        except Exception as error:
            if shutdown.begun:
                raise KeyboardInterrupt from error
            raise


@contextlib.contextmanager
def brief_shutdown(shutdown: Shutdown | None, *, part: bool = False) -> Iterator[None]:
    """Around a flow's own work: once that has been ended by a signal, Prefect has to be brief.

    shutdown: of the process, None where it has other work to do. part: this is a sub-flow, and its
    run still has work to do after it.
    """
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    ignore_late_interrupts()
    try:
        yield
    except BaseException as error:
        # Ctrl-C is a KeyboardInterrupt, and SIGTERM within a flow Prefect's TerminationSignal.
        if shutdown is not None and (shutdown.begun or not isinstance(error, Exception)):
            if not shutdown.begun:
                # For this thread alone: others may be in the middle of more.
                few = temporary_settings({PREFECT_CLIENT_MAX_RETRIES: RETRIES})
                shutdown.undo.enter_context(few)
            if not part:
                timer = threading.Timer(SECONDS, _exit_now)
                timer.daemon = True
                timer.start()
            shutdown.begun = True
        raise


def _exit_now() -> None:
    """Ends the process while Prefect still waits for its server."""
    with contextlib.suppress(OSError):
        print("sjc: Prefect's server does not answer: its pages miss the end", file=sys.stderr)
        sys.stderr.flush()
    os._exit(INTERRUPTED)
