"""One device: the engine process on it, and the scenes that the process steps.

The messages to and from an engine process are those of `sjc_engine.worker`.
"""

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

from sjc_engine.memory import MOST_SCENES
from tasks.scene_job import Event, Job

if TYPE_CHECKING:
    from tasks.devices import DevicePool

# By an engine's error_type: what is not the scene's own fault is tried again by the next run.
_STATUS = {"Diverged": "diverged", "ScratchFull": "interrupted", "ScratchLost": "interrupted"}
_LAST_WORDS = 300  # characters of an engine's last line that go into an error


class Engine:
    """One device: its process, its scenes, and the thread that starts and reads the process.

    The thread lives as long as the pool because the kernel ties a child's parent-death signal
    to the thread that started it. Attributes are guarded by the pool's lock.
    """

    def __init__(self, pool: "DevicePool", device: str, log: Path) -> None:
        self.pool = pool
        self.device = device
        self.log = log
        self.active: list[Job] = []
        self.early: Event | None = None  # the prior to load though there is no scene yet
        self.prior: tuple[str, str | None] | None = None  # the one its process has loaded
        self._make_room()
        self.heard = 0.0  # monotonic seconds of the last message
        self.process: subprocess.Popen[str] | None = None
        self.thread = threading.Thread(target=self._live, name=f"engine-{device}", daemon=True)
        self.thread.start()

    def _make_room(self) -> None:
        """How many scenes it takes of a prior that it has not had: `room` now, `most` later."""
        auto = 1 if self.device == "cpu" else MOST_SCENES
        self.most = self.pool.scenes_per_device or auto
        self.room = self.pool.scenes_per_device or 1

    def take(self, job: Job) -> None:
        now = time.monotonic()
        if not self.active:
            self.heard = now
        if self.prior != job.prior:
            self._make_room()
        self.active.append(job)
        self.prior = job.prior
        job.device = self.device
        job.taken = now
        if job.started is None:
            job.started = now
        self.send(job.message)

    def send(self, message: Event) -> None:
        if self.process is None:
            return  # a process that starts is sent every active scene
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it ended: its reader takes the scenes back
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()

    def _live(self) -> None:
        pool = self.pool
        while True:
            with pool.changed:
                pool.changed.wait_for(lambda: pool.closing or self.early or bool(self.active))
                if pool.closing:
                    pool.lost(self._give_back(), "")
                    return
            with self._open_log() as log:
                try:
                    problem = self._run_process(log)
                except OSError as error:  # of the system, which starts no process
                    problem = f"{self.device}: cannot start {pool.command[0]}: {error.strerror}"
            with pool.changed:
                pool.lost(self._give_back(), problem)

    def _open_log(self) -> IO[str]:
        try:
            return self.log.open("a")
        except OSError:  # a full disk: the engine works without a log
            return open(os.devnull, "a")

    def _last_words(self) -> str:
        try:
            text = self.log.read_text("utf-8", errors="replace")
        except OSError as error:
            return f"(no log: {error.strerror})"
        return text.rstrip().rpartition("\n")[2][-_LAST_WORDS:]

    def _give_back(self) -> list[Job]:
        jobs, self.active = self.active, []
        self.prior = None
        return jobs

    def _run_process(self, log: IO[str]) -> str:
        """Starts one process, passes its messages on, and says how it ended."""
        pool = self.pool
        arguments = ["--device", self.device, "--threads", str(pool.threads)]
        arguments += ["--parent", str(os.getpid())]
        arguments += ["--compiled"] if pool.compiled else []
        environment = dict(os.environ)
        if self.device == "cpu":
            environment["OMP_NUM_THREADS"] = str(pool.threads)
        with pool.changed:  # before anything can fail: each warming up is one process
            early, self.early = self.early, None
        process = subprocess.Popen(
            [*pool.command, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        with pool.changed:
            self.process = process
            self.heard = time.monotonic()
            if early and not self.active:
                self.send({"type": "load", **early})
            for job in self.active:
                self.send(job.message)
            if pool.closing:
                self.stop()
        try:
            for line in process.stdout:
                self._heard(json.loads(line))
        except (ValueError, LookupError, TypeError):  # torn by a kill, or no engine's message
            process.kill()
        with pool.changed:
            self.process = None
        process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        code = process.wait()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"{self.device}: {how}; {self.log} ends with: {self._last_words()}"

    def _heard(self, event: Event) -> None:
        with self.pool.changed:
            self.heard = time.monotonic()
            if event["type"] == "room":
                self._gauged(event)
                return
            job = next((j for j in self.active if j.key == event["scene"]), None)
            if event["type"] == "returned":
                self._returned(job, event)
                return
            if job is None:
                return  # a scene dropped a moment ago
            job.last_step = event["step"]
            # Of the whole attempt: a process that replaces a dead one goes on from a later step.
            if job.first_step is None or event["first_step"] < job.first_step:
                job.first_step = event["first_step"]
            event["first_step"] = job.first_step
            if event["type"] != "progress":
                self.active.remove(job)
                self.pool.assign()
        if event["type"] == "failed":
            status = _STATUS.get(event["error_type"], "failed")
            job.end(status, event["error_type"], event["error"])
        else:
            job.events.put(event)

    def _gauged(self, event: Event) -> None:
        """Its process has measured how many scenes it has memory for. Holds the lock."""
        if self.pool.scenes_per_device is None:
            self.most = self.room = event["scenes"]
            self.pool.log.info("scenes per device on %s: %s", self.device, event["why"])
            self.pool.assign()

    def _returned(self, job: Job | None, event: Event) -> None:
        """Its process is out of memory, and goes on with fewer scenes. Holds the lock."""
        if event["scenes"] < self.room:
            self.most = self.room = event["scenes"]
            words = "%s: out of memory; going on with %d scenes at a time: %s"
            self.pool.log.warning(words, self.device, self.room, event["error"])
        if job is not None:
            self.active.remove(job)
            self.pool.returned(job)
