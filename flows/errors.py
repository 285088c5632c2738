"""What goes wrong for users: one message on stderr and an exit code, without a traceback."""

import _thread
import atexit
import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from sjc_engine.errors import SettingError
from sjc_engine.errors import UsageError as UsageError
from sjc_engine.files import is_refusal
from tasks.store.disk import disk_advice

if TYPE_CHECKING:
    from prefect.states import State

FAILED, USAGE, STORE, INTERRUPTED = 1, 2, 3, 130


class RunError(RuntimeError):
    """What was asked for is right and did not work."""


class _Stderr(io.FileIO):
    """Drops what cannot be written: a full disk below stderr must not end a run."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Around the whole program: its exit code is right whatever happens to stdout and stderr.

    The interpreter flushes both when it ends, and would replace the code by 120 when that fails.
    """
    stderr = sys.__stderr__
    if stderr is not None and sys.stderr is stderr:  # neither closed nor a test's
        writer = io.BufferedWriter(_Stderr(stderr.fileno(), "w", closefd=False))
        sys.stderr = io.TextIOWrapper(writer, stderr.encoding, stderr.errors, line_buffering=True)
    try:
        yield
    except BaseException as ended:
        if (error := _flush_stdout()) and isinstance(ended, SystemExit) and not ended.code:
            print(f"sjc: the output cannot be written: {disk_advice(error)}", file=sys.stderr)
            sys.exit(FAILED)
        raise


def _flush_stdout() -> OSError | None:
    """Why stdout takes no more, which then goes nowhere; a reader that has left is no reason."""
    if sys.stdout is None:
        return None
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return None if isinstance(error, BrokenPipeError) else error
    return None


@contextlib.contextmanager
def disk_errors(option: str, path: Path, *, only_refusals: bool = False) -> Iterator[None]:
    """A disk's error within is a UsageError about the option that names `path`.

    only_refusals: other errors pass, where not all that is done within is writing.
    """
    try:
        yield
    except OSError as error:
        if only_refusals and not is_refusal(error):
            raise
        raise UsageError(f"{option} {path}: {disk_advice(error, option)}") from error


@contextlib.contextmanager
def reported(interrupted: str = "nothing was written") -> Iterator[None]:
    """Turns the mistakes of users, and their Ctrl-C, into messages and exit codes.

    interrupted: what to know after a Ctrl-C. Everything else is a defect of ours and keeps its
    traceback.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C is
    hook, sys.unraisablehook = sys.unraisablehook, _interrupt_again
    try:
        yield
    except typer.Exit:  # the message is out, whatever error came before it
        raise
    except BrokenPipeError:  # `sjc assets | head`: the rest is not read
        raise typer.Exit(0) from None
    except (KeyboardInterrupt, Exception) as error:
        known = _message(error, interrupted)
        if known is None:
            raise
        fail(*known)
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGTERM, before)
        ignore_late_interrupts()


def ignore_late_interrupts() -> None:
    """From the interpreter's last callbacks on, Ctrl-C has only these to stop, with a traceback."""
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)


def _interrupt_again(unraisable: "sys.UnraisableHookArgs") -> None:
    """Repeats a Ctrl-C that has struck within a callback, such as an import's: Python drops it."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        # In a thread: here it would be dropped again.
        _thread.start_new_thread(signal.pthread_kill, (_thread.get_ident(), signal.SIGINT))
    else:
        sys.__unraisablehook__(unraisable)


def _message(error: BaseException, interrupted: str) -> tuple[str, int] | None:
    """Message and exit code of an error that is no defect of this program; None for one that is."""
    from sjc_engine.recipes import RECIPE_KEYS
    from tasks.manifest.formats import ManifestError
    from tasks.store.interface import StoreError

    if isinstance(error, ManifestError):
        return str(error), USAGE
    if isinstance(error, SettingError):
        key = error.key
        option = f"--set {key}" if key in RECIPE_KEYS else f"--{key.replace('_', '-')}"
        return f"sjc: {option}: {error.problem}; {error.fix}", USAGE
    for kind, code in ((UsageError, USAGE), (StoreError, STORE), (RunError, FAILED)):
        if isinstance(error, kind):
            return f"sjc: {error}", code
    if isinstance(error, MemoryError):
        return "sjc: out of memory; close other programs, or use fewer devices or scenes", FAILED
    if isinstance(error, OSError) and is_refusal(error):  # of a folder that no option names
        place = f"{error.filename}: " if error.filename else "the output cannot be written: "
        return f"sjc: {place}{disk_advice(error)}", FAILED
    if _is_interrupt(error):
        return f"sjc: interrupted; {interrupted}", INTERRUPTED
    return None


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether a Ctrl-C is behind it: a library may have wrapped it in another error."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt) or "KeyboardInterrupt" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def fail(message: str, code: int) -> NoReturn:
    """Ends the command with a message on stderr and an exit code."""
    print(message, file=sys.stderr)
    raise typer.Exit(code)


def raise_error(state: "State[Any]") -> None:
    """Raises what ended a flow early: KeyboardInterrupt when it was cancelled, or its error.

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
