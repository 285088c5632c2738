"""The processes of the soak test: runners that begin again whenever they end, and their server."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import Signals

from flows.prefect_server.server import HOST, free_port, healthy

ROOT = Path(__file__).resolve().parents[1]
SJC = (sys.executable, "-c", "from flows.commands.main import sjc; sjc()")
MARK = "SJC_SOAK"  # a variable that every process of the test inherits
GRACE = 15.0  # seconds after the end of a runner until each of its processes must be gone
ENGINE, HELPER = "sjc_engine.worker", "xatlas_process.py"  # in their command lines


@dataclass(frozen=True)
class Ending:
    """How a process ended. said: the end of its stderr."""

    name: str
    code: int
    seconds: float
    said: str


class Process:
    """One process in a group of its own, with its output in files, marked in its environment."""

    def __init__(
        self, name: str, command: Sequence[str], variables: Mapping[str, str], folder: Path
    ) -> None:
        self.name = name
        folder.mkdir(parents=True, exist_ok=True)
        self.out, self.err = folder / f"{name}.out", folder / f"{name}.err"
        self.started = time.monotonic()
        self.mark = f"{variables[MARK]}.{name}"
        with self.out.open("ab") as out, self.err.open("ab") as err:
            self._process = subprocess.Popen(
                command,
                env={**variables, MARK: self.mark},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                process_group=0,
            )
        self.pid = self._process.pid

    def ended(self) -> Ending | None:
        """How it ended; None while it lives."""
        code = self._process.poll()
        if code is None:
            return None
        said = self.err.read_text("utf-8", errors="replace")
        return Ending(self.name, code, time.monotonic() - self.started, said)

    def send(self, number: Signals) -> None:
        """To the process alone; nothing happens when it has ended."""
        self._process.send_signal(number)

    def send_group(self, number: Signals) -> None:
        if self._process.poll() is None:
            os.killpg(self.pid, number)

    def wait(self, seconds: float) -> Ending | None:
        deadline = time.monotonic() + seconds
        while self.ended() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        return self.ended()

    def end(self, seconds: float = 60.0) -> None:
        """Asks it to end, and kills its group when it does not."""
        self.send_group(Signals.SIGCONT)
        self.send(Signals.SIGTERM)
        if self.wait(seconds) is None:
            self.send_group(Signals.SIGKILL)
            self._process.wait()


class Runner:
    """`sjc run` on one manifest, again and again; each life is a process of its own."""

    def __init__(self, name: str, words: Sequence[str], variables: Mapping[str, str], folder: Path):
        self.name, self.words, self.variables, self.folder = name, words, variables, folder
        self.scratch = folder / name
        self.lives = 0
        self.process: Process | None = None
        self.ready = 0.0  # monotonic seconds from which on the next life may begin
        self.once: dict[str, str] = {}  # variables of the next life alone

    def start(self) -> None:
        self.lives += 1
        command = [*SJC, "run", *self.words, "--scratch", str(self.scratch), "--json"]
        name = f"{self.name}-{self.lives:03d}"
        self.process = Process(name, command, {**self.variables, **self.once}, self.folder / "runs")
        self.once = {}

    def hold(self, seconds: float) -> None:
        """No life begins before."""
        self.ready = max(self.ready, time.monotonic() + seconds)

    def tend(self) -> Ending | None:
        """Starts the next life when it is time, and tells of a life that has ended."""
        if self.process is None:
            if time.monotonic() >= self.ready:
                self.start()
            return None
        ending = self.process.ended()
        if ending is not None:
            self.process = None
            self.hold(1.0)
        return ending

    def flow(self) -> Process | None:
        """The process that runs the flow, once it has made its plan."""
        return self.process if self.process and self.children(ENGINE) else None

    def children(self, word: str) -> list[int]:
        """Its processes that have this word in their command line."""
        if self.process is None:
            return []
        return [pid for pid, line in marked(self.process.mark).items() if word in line]


class Server:
    """A Prefect server that is started again after its end."""

    def __init__(self, variables: Mapping[str, str], folder: Path) -> None:
        self.variables, self.folder = variables, folder
        self.port = free_port()
        self.api_url = f"http://{HOST}:{self.port}/api"
        self.lives = 0
        self.process: Process | None = None

    def start(self) -> None:
        self.lives += 1
        command = [sys.executable, "-m", "flows.prefect_server.server", "--port", str(self.port)]
        command += ["--parent", str(os.getpid())]
        self.process = Process(
            f"server-{self.lives:03d}", command, self.variables, self.folder / "servers"
        )

    def wait(self, seconds: float = 120.0) -> None:
        """Until it answers, whatever has just struck it; TimeoutError."""
        deadline = time.monotonic() + seconds
        while not healthy(self.api_url):
            self.tend()
            if time.monotonic() > deadline:
                raise TimeoutError(f"the Prefect server does not start; see {self.folder}/servers")
            time.sleep(0.2)

    def tend(self) -> None:
        if self.process is None or self.process.ended():
            self.start()


def run_here(name: str, words: Sequence[str], out: Path) -> Ending:
    """`sjc` in this process, with its output in a file."""
    from flows.commands.main import main

    errors, began, code = io.StringIO(), time.monotonic(), 0
    sys.argv = ["sjc", *words]
    with (
        out.open("w", encoding="utf-8") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(errors),
    ):
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        except Exception:
            traceback.print_exc()
            code = 1
    return Ending(name, code, time.monotonic() - began, errors.getvalue())


def marked(mark: str) -> dict[int, str]:
    """Living processes whose mark is this one, or begins with it and a dot, and what they run."""
    found = {}
    wanted = f"{MARK}={mark}".encode()
    for folder in _processes():
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
            if any(v == wanted or v.startswith(wanted + b".") for v in variables):
                line = (folder / "cmdline").read_bytes()
                found[int(folder.name)] = line.replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it ended, or is another user's
            continue
    return found


def _processes() -> Iterator[Path]:
    return (folder for folder in Path("/proc").iterdir() if folder.name.isdecimal())


def results(out: Path) -> list[dict[str, object]]:
    """The assets of a run's JSON; [] for a run that did not come so far."""
    try:
        assets: list[dict[str, object]] = json.loads(out.read_text("utf-8"))["assets"]
    except ValueError:
        return []
    return assets
