"""What goes wrong for users: one message on stderr and an exit code, without a traceback."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

import typer

FAILED, USAGE, STORE, INTERRUPTED = 1, 2, 3, 130


class UsageError(ValueError):
    """What the user asked for cannot be done; the message says how to ask."""


class RunError(RuntimeError):
    """What was asked for is right and did not work."""


@contextlib.contextmanager
def reported(interrupted: str = "nothing was written") -> Iterator[None]:
    """Turns the mistakes of users, and their Ctrl-C, into messages and exit codes.

    interrupted: what to know after a Ctrl-C. Everything else is a defect of ours and keeps its
    traceback.
    """
    from tasks.manifest_files import ManifestError
    from tasks.store import StoreError

    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    except ManifestError as error:
        fail(str(error), USAGE)
    except UsageError as error:
        fail(f"sjc: {error}", USAGE)
    except StoreError as error:
        fail(f"sjc: {error}", STORE)
    except RunError as error:
        fail(f"sjc: {error}", FAILED)
    except KeyboardInterrupt:
        fail(f"sjc: interrupted; {interrupted}", INTERRUPTED)
    except BrokenPipeError:  # `sjc assets | head`: nobody reads the rest
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def fail(message: str, code: int) -> NoReturn:
    print(message, file=sys.stderr)
    raise typer.Exit(code)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
