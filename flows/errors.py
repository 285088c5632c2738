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
    from sjc_engine.atomic import is_refusal
    from tasks.disk import disk_advice
    from tasks.manifest_files import ManifestError
    from tasks.store import StoreError

    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
        sys.stdout.flush()  # a full disk is told here, and not by the interpreter's last words
    except ManifestError as error:
        fail(str(error), USAGE)
    except UsageError as error:
        fail(f"sjc: {error}", USAGE)
    except StoreError as error:
        fail(f"sjc: {error}", STORE)
    except RunError as error:
        fail(f"sjc: {error}", FAILED)
    except BrokenPipeError:  # `sjc assets | head`: nobody reads the rest
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except MemoryError:
        fail("sjc: out of memory; close other programs, or use fewer devices or scenes", FAILED)
    except OSError as error:  # of a folder that no option has been checked for
        if not is_refusal(error):
            raise
        place = f"{error.filename}: " if error.filename else "the output cannot be written: "
        fail(f"sjc: {place}{disk_advice(error)}", FAILED)
    except typer.Exit:  # has been told already, whatever came before it
        raise
    except (KeyboardInterrupt, Exception) as error:
        if not _is_interrupt(error):
            raise
        fail(f"sjc: interrupted; {interrupted}", INTERRUPTED)
    finally:
        signal.signal(signal.SIGTERM, before)


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether a Ctrl-C is behind it: a library may have made an error of its own of that."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt) or "KeyboardInterrupt" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def fail(message: str, code: int) -> NoReturn:
    print(message, file=sys.stderr)
    raise typer.Exit(code)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
