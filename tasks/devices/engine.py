"""The engine process of one device: starting it, writing to it, reading it, ending it.

The messages to and from an engine process are those of `sjc_engine.worker`.
"""

import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sjc_engine import rendering as kernels_folder
from tasks.devices.job import Event

_LAST_CHARACTERS = 300  # of an engine's last line, in an error
_LAST_LINES = 20  # of its log, for those who look into a failure


def numba_cache(scratch: Path) -> dict[str, str]:
    """A variable that gives Numba a place for compiled kernels where it would find none.

    In containers the installation is often read-only, and so is the home of a user without one.
    """
    code = Path(kernels_folder.__path__[0], "__pycache__")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path(os.path.expanduser("~"), ".cache"))
    found = (
        "NUMBA_CACHE_DIR" in os.environ or _can_hold_files(code) or _can_hold_files(home / "numba")
    )
    return {} if found else {"NUMBA_CACHE_DIR": str(scratch / "numba")}


def _can_hold_files(folder: Path) -> bool:
    """Of a folder that is not there yet the nearest one above it decides."""
    there = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    return os.access(there, os.W_OK)


@dataclass(eq=False)
class EngineProcess:
    """A process that is started whenever there is work and it is not there.

    One thread starts it and reads it. That lives as long as the pool, because the kernel ties a
    child's parent-death signal to the thread that started it. The callbacks run in it:
    wait_for_work blocks and returns False when there will be none; on_start may `send`; on_event
    gets each message; on_exit hears why the process ended, or did not start.
    """

    command: Sequence[str]
    device: str
    log: Path
    environment: dict[str, str]
    wait_for_work: Callable[[], bool]
    on_start: Callable[[], None]
    on_event: Callable[[Event], None]
    on_exit: Callable[[str], None]
    process: subprocess.Popen[str] | None = None

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._live, name=f"engine-{self.device}", daemon=True)

    def send(self, message: Event) -> None:
        """From `on_start` on; a process that has ended is sent nothing."""
        assert self.process is not None
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ValueError):  # ValueError: its pipe is closed
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()

    def _live(self) -> None:
        while self.wait_for_work():
            with self._open_log() as log:
                try:
                    problem = self._run_process(log)
                except OSError as error:  # of the system, which starts no process
                    problem = f"{self.device}: cannot start {self.command[0]}: {error.strerror}"
            self.on_exit(problem)

    def _open_log(self) -> IO[str]:
        try:
            return self.log.open("a")
        except OSError:  # a full disk: the engine works without a log
            return open(os.devnull, "a")

    def log_tail(self, lines: int = _LAST_LINES) -> str:
        """The last lines of all that its processes have printed."""
        try:
            text = self.log.read_text("utf-8", errors="replace")
        except OSError as error:
            return f"(no log: {error.strerror})"
        return "\n".join(text.rstrip().split("\n")[-lines:])

    def _run_process(self, log: IO[str]) -> str:
        """Starts one process, passes its messages on, and returns how it ended."""
        process = self.process = subprocess.Popen(
            [*self.command, "--device", self.device, "--parent", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, **self.environment},
        )
        assert process.stdin is not None
        assert process.stdout is not None
        self.on_start()
        try:
            for line in process.stdout:
                self.on_event(json.loads(line))
        except (ValueError, LookupError, TypeError):  # torn by a kill, or no engine's message
            process.kill()
        process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        code = process.wait()
        last = self.log_tail(1)[-_LAST_CHARACTERS:]
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"{self.device}: {how}; {self.log} ends with: {last}"
