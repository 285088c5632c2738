"""What ends a command: one message and an exit code."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import weakref

import pytest
import typer

from flows.errors import INTERRUPTED, reported


class Thing: ...


def interrupt_in_callback() -> None:
    thing = Thing()
    watch = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT))
    del thing
    assert watch() is None, "it was interrupted within the callback"
    threading.Event().wait(60)
    pytest.fail("the interrupt is lost")


def test_ctrl_c_within_a_callback_ends_the_command_too(capsys: pytest.CaptureFixture[str]) -> None:
    """Python drops what a callback raises, such as that of a module's lock after its import."""
    with pytest.raises(typer.Exit) as ended, reported():
        interrupt_in_callback()
    assert ended.value.exit_code == INTERRUPTED
    assert capsys.readouterr().err == "sjc: interrupted; nothing was written\n"


@pytest.mark.parametrize(
    "work", ["flows.errors.reported()", "flows.prefect_server.shutdown.brief_shutdown(None)"]
)
def test_ctrl_c_at_the_very_end_of_a_process_is_no_traceback(work: str) -> None:
    """Such as within what torch calls at the interpreter's end."""
    code = (
        "import signal, weakref, flows.errors, flows.prefect_server.shutdown\n"
        "class Thing: ...\n"
        "thing = Thing()\n"
        "weakref.finalize(thing, signal.raise_signal, signal.SIGINT)\n"
        f"with {work}: print('done')\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")
