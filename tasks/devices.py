"""The devices of one machine: an engine process for each, and a queue of scenes in front.

`DevicePool.run` hands one scene to a device and blocks until its field is there. A waiting
scene costs a thread and nothing else, so every prompt can be its own Prefect task.
"""

import contextlib
import logging
import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tasks.engine_process import Engine
from tasks.scene_job import Event, Job, SceneError

Watcher = Callable[[Event], None]
Log = logging.Logger | logging.LoggerAdapter[Any]

ENGINE = (sys.executable, "-m", "sjc_engine.worker")


class DevicePool:
    """Runs scenes on engine processes, one process for each name in `devices`.

    devices: `cpu`, `cuda:0`, ...; a name may come twice. scenes_per_device: how many scenes one
    process steps together, until it runs out of memory and goes on with half of them; None: one on
    a CPU, which gains nothing from more, and as many as a GPU has memory for. compiled: whether
    priors' networks are (`sjc_engine.compiled`). restarts: how often a
    scene may lose its process before it counts as the culprit. silence: seconds without a message,
    with a scene on board, after which a process is killed. Log files lie under `scratch`/logs.
    """

    def __init__(
        self,
        devices: Sequence[str],
        scratch: Path,
        *,
        scenes_per_device: int | None = 1,
        compiled: bool = False,
        threads: int = 1,
        restarts: int = 2,
        silence: float = 900.0,
        grace: float = 60.0,
        command: Sequence[str] = ENGINE,
        log: Log = logging.getLogger(__name__),  # noqa: B008
    ) -> None:
        self.scenes_per_device = scenes_per_device
        self.compiled = compiled
        self.threads = threads
        self.restarts = restarts
        self.silence = silence
        self.grace = grace
        self.command = tuple(command)
        self.changed = threading.Condition()  # the one lock; notified when an engine has work
        self.closing = False
        self._waiting: list[Job] = []
        logs = scratch / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self._engines = [
            Engine(self, device, logs / f"engine-{index}-{device.replace(':', '')}.log")
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
        job = Job(
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

    def _check_time(self, job: Job, timeout: float | None) -> None:
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

    def _drop(self, job: Job) -> None:
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

    def _next_for(self, engine: Engine) -> Job | None:
        """The scene this engine should take now: same prior while it runs any, else the oldest."""
        if len(engine.active) >= engine.room or any(j.deaths for j in engine.active):
            return None
        same = [j for j in self._waiting if j.prior == engine.prior]
        if engine.active:  # a scene that has lost a process runs alone: it may be the culprit
            return next((j for j in same if not j.deaths), None)
        return next(iter(same + self._waiting), None)

    def lost(self, jobs: list[Job], problem: str) -> None:
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

    def returned(self, job: Job) -> None:
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


def _load(engine: Engine) -> int:
    return len(engine.active)
