"""The devices of one machine: an engine process for each, and a queue of scenes in front.

`DevicePool.run` hands one scene to a device and blocks until its field is there. A waiting
scene costs a thread and nothing else, so every prompt can be its own Prefect task. The
messages to and from an engine process are those of `sjc_engine.worker`.
"""

import contextlib
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from sjc_engine.memory import MOST_SCENES

Event = dict[str, Any]
Watcher = Callable[[Event], None]
Log = logging.Logger | logging.LoggerAdapter[Any]

ENGINE = (sys.executable, "-m", "sjc_engine.worker")
_STATUS = {"Diverged": "diverged", "ScratchFull": "interrupted"}  # by an engine's error_type
_LAST_WORDS = 300  # characters of an engine's last line that go into an error


class SceneError(Exception):
    """A scene that did not become a field.

    status: `failed`, `diverged`, `timeout`, `cancelled` or `interrupted`. first_step and
    last_step tell how far it came on `device` (both 0 and "" when it never started).
    """

    def __init__(self, status: str, error_type: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.error_type = error_type
        self.device = ""
        self.first_step = 0
        self.last_step = 0


def scratch_full(error: BaseException) -> SceneError:
    """What fails for want of room in the scratch folder is `interrupted`, and goes on later."""
    advice = "free space there, then run the same command again"
    return SceneError(
        "interrupted", "ScratchFull", f"the scratch folder is full: {error}; {advice}"
    )


@dataclass(eq=False)
class _Job:
    """One scene between `run` and its outcome. Guarded by the pool's lock."""

    key: str
    message: Event  # the `add` message
    prior: tuple[str, str | None]  # (id, revision)
    queued: float  # monotonic seconds
    started: float | None = None  # when a device first took it
    taken: float = 0.0  # when this device did
    spent: float = 0.0  # seconds on other devices, and in other processes, before
    device: str = ""
    first_step: int | None = None
    last_step: int = 0
    deaths: int = 0  # engine processes that ended under it
    events: "queue.SimpleQueue[Event | SceneError]" = field(default_factory=queue.SimpleQueue)

    def end(self, status: str, error_type: str, message: str) -> None:
        error = SceneError(status, error_type, message)
        error.device = self.device
        error.first_step, error.last_step = self.first_step or 0, self.last_step
        self.events.put(error)


class DevicePool:
    """Runs scenes on engine processes, one process for each name in `devices`.

    devices: `cpu`, `cuda:0`, ...; a name may come twice. scenes_per_device: how many scenes one
    process steps together, until it runs out of memory and goes on with half of them; None: one on
    a CPU, which gains nothing from more, and as many as a GPU has memory for. restarts: how often a
    scene may lose its process before it counts as the culprit. silence: seconds without a message,
    with a scene on board, after which a process is killed. Log files lie under `scratch`/logs.
    """

    def __init__(
        self,
        devices: Sequence[str],
        scratch: Path,
        *,
        scenes_per_device: int | None = 1,
        threads: int = 1,
        restarts: int = 2,
        silence: float = 900.0,
        grace: float = 60.0,
        command: Sequence[str] = ENGINE,
        log: Log = logging.getLogger(__name__),  # noqa: B008
    ) -> None:
        self.scenes_per_device = scenes_per_device
        self.threads = threads
        self.restarts = restarts
        self.silence = silence
        self.grace = grace
        self.command = tuple(command)
        self.changed = threading.Condition()  # the one lock; notified when an engine has work
        self.closing = False
        self._waiting: list[_Job] = []
        logs = scratch / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self._engines = [
            _Engine(self, device, logs / f"engine-{index}-{device.replace(':', '')}.log")
            for index, device in enumerate(devices)
        ]
        self.report_to(log)

    def __enter__(self) -> "DevicePool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def report_to(self, log: Log) -> None:
        """Where the choice of scenes per device, and what changes it, is told from now on."""
        self.log = log
        if self.scenes_per_device is None and any(e.device == "cpu" for e in self._engines):
            log.info("scenes per device on cpu: 1 (side by side they take as long)")

    @property
    def slots(self) -> int:
        """How many scenes run at the same time, at most."""
        return sum(engine.most for engine in self._engines)

    def warm_up(self, specs: Sequence[dict[str, Any]]) -> None:
        """Starts the processes that these scenes will want; else each starts with its first."""
        with self.changed:
            for engine, spec in zip(self._engines, specs, strict=False):
                engine.early = {k: spec[k] for k in ("prior", "prior_revision")}
            self.changed.notify_all()

    def run(
        self,
        spec: dict[str, Any],
        *,
        field: Path,
        checkpoint: Path,
        image: Path | None = None,
        timeout: float | None = None,
        on_progress: Watcher | None = None,
        cancelled: threading.Event | None = None,
    ) -> Event:
        """Optimises the scene of an `AssetSpec.to_json()` and blocks until its field is written.

        Returns the engine's `done` message plus `device` and `seconds_queue`. image: the file of
        the spec's picture. timeout: seconds from the moment a device takes the scene. cancelled:
        set it to give the scene up. Raises SceneError; the checkpoint stays.
        """
        paths = {"field": str(field), "checkpoint": str(checkpoint)}
        picture = str(image) if image else None
        message: Event = {"type": "add", "spec": spec, **paths, "image": picture}
        job = _Job(
            key=f"{checkpoint.name}-{time.monotonic_ns()}",
            message=message,
            prior=(spec["prior"], spec["prior_revision"]),
            queued=time.monotonic(),
        )
        message["scene"] = job.key
        with self.changed:
            if self.closing:
                raise SceneError("interrupted", "Interrupted", "the run is ending")
            self._waiting.append(job)
            self.assign()
        try:
            while True:
                with contextlib.suppress(queue.Empty):
                    event = job.events.get(timeout=0.5)
                    if isinstance(event, SceneError):
                        raise event
                    if event["type"] == "done":
                        assert job.started is not None
                        wait = job.started - job.queued
                        return event | {"device": job.device, "seconds_queue": wait}
                    if on_progress is not None:
                        on_progress(event | {"device": job.device})
                if cancelled is not None and cancelled.is_set():
                    job.end("cancelled", "Cancelled", "cancelled; its checkpoint stays")
                self._check_time(job, timeout)
        finally:
            self._drop(job)

    def _check_time(self, job: _Job, timeout: float | None) -> None:
        """Ends a scene that is over its time and an engine that went silent under it."""
        now = time.monotonic()
        with self.changed:
            engine = next((e for e in self._engines if job in e.active), None)
            if engine is None or job.started is None:
                return
            if timeout is not None and job.spent + now - job.taken > timeout:
                job.end("timeout", "Timeout", f"no field after {timeout:g} s; its checkpoint stays")
            elif now - engine.heard > self.silence:
                engine.kill()  # its reader sees the end of the pipe and gives the scenes back

    def _drop(self, job: _Job) -> None:
        """Takes a scene away from wherever it is; nothing happens when it has ended."""
        with self.changed:
            for engine in self._engines:
                if job in engine.active:
                    engine.send({"type": "drop", "scene": job.key})
                    engine.active.remove(job)
            if job in self._waiting:
                self._waiting.remove(job)
            self.assign()

    def assign(self) -> None:
        """Gives waiting scenes to engines with room, the emptiest engine first. Holds the lock."""
        while not self.closing:
            pairs = ((e, j) for e in sorted(self._engines, key=_load) if (j := self._next_for(e)))
            engine, job = next(pairs, (None, None))
            if engine is None or job is None:
                break
            self._waiting.remove(job)
            engine.take(job)
        self.changed.notify_all()

    def _next_for(self, engine: "_Engine") -> _Job | None:
        """The scene this engine should take now: same prior while it runs any, else the oldest."""
        if len(engine.active) >= engine.room or any(j.deaths for j in engine.active):
            return None
        same = [j for j in self._waiting if j.prior == engine.prior]
        if engine.active:  # a scene that has lost a process runs alone: it may be the culprit
            return next((j for j in same if not j.deaths), None)
        return next(iter(same + self._waiting), None)

    def lost(self, jobs: list[_Job], problem: str) -> None:
        """Takes back the scenes of an engine process that ended. Holds the lock."""
        again = []
        for job in jobs:
            job.deaths += 1
            job.spent += time.monotonic() - job.taken
            if self.closing:
                job.end("interrupted", "Interrupted", "the run was stopped; run it again to go on")
            elif job.deaths > self.restarts:
                job.end("failed", "EngineDied", f"{job.deaths} engine processes ended: {problem}")
            else:
                again.append(job)
        self._waiting[:0] = again
        self.assign()

    def returned(self, job: _Job) -> None:
        """Takes back a scene that an engine has no memory for. Holds the lock."""
        job.spent += time.monotonic() - job.taken
        self._waiting.insert(0, job)
        self.assign()

    def close(self) -> None:
        """Lets the engines write their checkpoints and ends them; scenes become `interrupted`."""
        with self.changed:
            self.closing = True
            for job in self._waiting:
                job.end("interrupted", "Interrupted", "the run was stopped before it started")
            self._waiting.clear()
            for engine in self._engines:
                engine.stop()
            self.changed.notify_all()
        deadline = time.monotonic() + self.grace
        for engine in self._engines:
            engine.thread.join(max(0.0, deadline - time.monotonic()))
            if engine.thread.is_alive():
                with self.changed:
                    engine.kill()
                engine.thread.join()


def _load(engine: "_Engine") -> int:
    return len(engine.active)


class _Engine:
    """One device: its process, its scenes, and the thread that starts and reads the process.

    The thread lives as long as the pool because the kernel ties a child's parent-death signal
    to the thread that started it. Attributes are guarded by the pool's lock.
    """

    def __init__(self, pool: DevicePool, device: str, log: Path) -> None:
        self.pool = pool
        self.device = device
        self.log = log
        self.active: list[_Job] = []
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

    def take(self, job: _Job) -> None:
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

    def _give_back(self) -> list[_Job]:
        jobs, self.active = self.active, []
        self.prior = None
        return jobs

    def _run_process(self, log: IO[str]) -> str:
        """Starts one process, passes its messages on, and says how it ended."""
        pool = self.pool
        arguments = ["--device", self.device, "--threads", str(pool.threads)]
        arguments += ["--parent", str(os.getpid())]
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
        for line in process.stdout:
            try:
                event = json.loads(line)
            except ValueError:  # the torn last line of a killed process, or no engine at all
                process.kill()
                break
            self._heard(event)
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

    def _returned(self, job: _Job | None, event: Event) -> None:
        """Its process is out of memory, and goes on with fewer scenes. Holds the lock."""
        if event["scenes"] < self.room:
            self.most = self.room = event["scenes"]
            words = "%s: out of memory; going on with %d scenes at a time: %s"
            self.pool.log.warning(words, self.device, self.room, event["error"])
        if job is not None:
            self.active.remove(job)
            self.pool.returned(job)
