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
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from sjc_engine.memory import MOST_SCENES
from sjc_engine.spec import prior_key
from tasks.devices.device import Device
from tasks.devices.engine import EngineProcess, numba_cache
from tasks.devices.job import Event, Job, SceneError

Watcher = Callable[[Event], None]
Log = logging.Logger | logging.LoggerAdapter[Any]

# -P: a folder of the user may have a `tasks.py` or a `sjc_engine`.
ENGINE = (sys.executable, "-P", "-m", "sjc_engine.worker")
GRACE = 60.0  # seconds for the engines to write their checkpoints and end
# By an engine's error_type: what is not the scene's own fault is tried again by the next run.
_STATUS = {"Diverged": "diverged", "ScratchFull": "interrupted", "ScratchLost": "interrupted"}


@dataclass(eq=False)
class DevicePool:
    """Runs scenes on engine processes, one process for each name in `devices`.

    devices: `cpu`, `cuda:0`, ...; a name may come twice. scenes_per_device: how many scenes one
    process steps together, until it runs out of memory and continues with half of them; None: one
    on a CPU, which gains nothing from more, and as many as a GPU has memory for. compiled: whether
    priors' networks are (`sjc_engine.priors.compiled`). allow_pickle: as of `load_prior`.
    fast_launch: whether they and the renderer are launched so (`Prior.enable_fast_launch`).
    restarts: how often a scene may lose its process before it counts as the culprit. silence:
    seconds without a message, with a scene on board, after which a process is killed. A device
    whose processes end one after the other before any step is retired, and its scenes go to others.
    Log files are under `scratch`/logs.
    """

    devices: Sequence[str]
    scratch: Path
    scenes_per_device: int | None = 1
    compiled: bool = False
    allow_pickle: bool = False
    fast_launch: bool = False
    threads: int = 1
    restarts: int = 2
    silence: float = 900.0
    command: Sequence[str] = ENGINE
    log: Log = logging.getLogger(__name__)  # noqa: RUF009
    _closing: bool = False
    _waiting: list[Job] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._changed = threading.Condition()  # the one lock; notified when a device has work
        self._devices = [Device(name) for name in self.devices]
        logs = self.scratch / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self._engines = {
            device: self._engine(device, logs / f"engine-{k}-{device.name.replace(':', '')}.log")
            for k, device in enumerate(self._devices)
        }
        for device, engine in self._engines.items():
            self._reset_room(device)
            engine.thread.start()
        self.report_to(self.log)

    def _engine(self, device: Device, log: Path) -> EngineProcess:
        switches = {
            "--compiled": self.compiled,
            "--allow-pickle": self.allow_pickle,
            "--fast-launch": self.fast_launch,
        }
        chosen = [switch for switch, on in switches.items() if on]
        return EngineProcess(
            [*self.command, "--threads", str(self.threads), *chosen],
            device.name,
            log,
            numba_cache(log.parent.parent)
            | ({"OMP_NUM_THREADS": str(self.threads)} if device.name == "cpu" else {}),
            wait_for_work=partial(self._wait_for_work, device),
            on_start=partial(self._on_start, device),
            on_event=partial(self._on_event, device),
            on_exit=partial(self._on_exit, device),
        )

    def __enter__(self) -> "DevicePool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def report_to(self, log: Log, show: Callable[[str], object] = lambda _: None) -> None:
        """Where devices and their scenes are logged from now on; show: what a person must see."""
        self.log, self._show = log, show
        if self.scenes_per_device is None and any(d.name == "cpu" for d in self._devices):
            log.info("scenes per device on cpu: 1 (side by side they take as long)")

    @property
    def slots(self) -> int:
        """How many scenes run at the same time, at most."""
        return sum(device.most for device in self._devices if not device.retired)

    @property
    def retired(self) -> dict[str, str]:
        """The devices that are no longer used, and why."""
        return {device.name: device.retired for device in self._devices if device.retired}

    def warm_up(self, specs: Sequence[dict[str, Any]]) -> None:
        """Starts the processes that these scenes will want; else each starts with its first."""
        with self._changed:
            for device, spec in zip(self._devices, specs, strict=False):
                device.early = spec
            self._changed.notify_all()

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
        the spec's picture. on_progress: gets the engine's `progress` and `working` messages of the
        scene. timeout: seconds from the moment a device takes the scene. cancelled: set it to
        give the scene up. Raises SceneError; the checkpoint stays.
        """
        paths = {"field": str(field), "checkpoint": str(checkpoint)}
        picture = str(image) if image else None
        message: Event = {"type": "add", "spec": spec, **paths, "image": picture}
        job = Job(
            key=f"{checkpoint.name}-{time.monotonic_ns()}",
            message=message,
            prior=prior_key(spec),
            queued=time.monotonic(),
        )
        message["scene"] = job.key
        with self._changed:
            if self._closing:
                raise SceneError("interrupted", "Interrupted", "the run is ending")
            self._waiting.append(job)
            self._assign()
        try:
            while True:
                with contextlib.suppress(queue.Empty):
                    event = job.events.get(timeout=0.5)
                    if isinstance(event, SceneError):
                        event.log_tail = job.log_tail() if event.status == "failed" else ""
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
        with self._changed:
            device = next((d for d in self._devices if job in d.active), None)
            if device is None or job.started is None:
                return
            if timeout is not None and job.spent + now - job.taken > timeout:
                job.end("timeout", "Timeout", f"no field after {timeout:g} s; its checkpoint stays")
            elif now - device.heard > self.silence:
                self._engines[device].kill()  # its exit gives the scenes back

    def _drop(self, job: Job) -> None:
        """Takes a scene away from wherever it is; nothing happens when it has ended."""
        with self._changed:
            for device in self._devices:
                if job in device.active:
                    self._send(device, {"type": "drop", "scene": job.key})
                    device.active.remove(job)
            if job in self._waiting:
                self._waiting.remove(job)
            self._assign()

    def close(self) -> None:
        """Lets the engines write their checkpoints and ends them; scenes become `interrupted`."""
        with self._changed:
            self._closing = True
            for job in self._waiting:
                job.end("interrupted", "Interrupted", "the run was stopped before it started")
            self._waiting.clear()
            for engine in self._engines.values():
                engine.stop()
            self._changed.notify_all()
        deadline = time.monotonic() + GRACE
        for engine in self._engines.values():
            engine.thread.join(max(0.0, deadline - time.monotonic()))
            if engine.thread.is_alive():
                engine.kill()
                engine.thread.join()

    # The methods from here to the callbacks are called with the lock held.

    def _assign(self) -> None:
        """Gives waiting scenes to devices with room, the emptiest device first."""
        while not self._closing:
            if all(device.retired for device in self._devices):
                self._end_waiting()
            emptiest = sorted(self._devices, key=lambda device: len(device.active))
            pairs = ((d, job) for d in emptiest if (job := self._next_for(d)))
            device, job = next(pairs, (None, None))
            if device is None or job is None:
                break
            self._waiting.remove(job)
            self._give(device, job)
        self._changed.notify_all()

    def _next_for(self, device: Device) -> Job | None:
        """The scene this device should take now: same prior while it runs any, else the oldest."""
        full = len(device.active) >= device.room or any(j.lost_on for j in device.active)
        if full or device.retired:
            return None
        waiting = [j for j in self._waiting if not self._wants_another(device, j)]
        same = [j for j in waiting if j.prior == device.prior]
        if device.active:  # a scene that has lost a process runs alone: it may be the culprit
            return next((j for j in same if not j.lost_on), None)
        return next(iter(same + waiting), None)

    def _wants_another(self, device: Device, job: Job) -> bool:
        """Whether a scene waits for a device that it has not tried: it lost two processes here."""
        untried = (d for d in self._devices if not d.retired and d not in job.lost_on)
        return job.lost_on.count(device) > 1 and any(untried)

    def _give(self, device: Device, job: Job) -> None:
        now = time.monotonic()
        if not device.active:
            device.heard = now
        if device.prior != job.prior:
            self._reset_room(device)
        device.active.append(job)
        device.prior = job.prior
        job.device, job.taken = device.name, now
        job.log_tail = self._engines[device].log_tail
        if job.started is None:
            job.started = now
        self._send(device, job.message)

    def _reset_room(self, device: Device) -> None:
        """How many scenes it takes of a prior that it has not had."""
        device.room = self.scenes_per_device or 1
        device.most = self.scenes_per_device or (1 if device.name == "cpu" else MOST_SCENES)

    def _send(self, device: Device, message: Event) -> None:
        if device.running:  # a process that starts is sent every active scene
            self._engines[device].send(message)

    def _take_back(self, device: Device, problem: str) -> None:
        """Ends the scenes of a process that ended, or queues them again."""
        jobs, device.active = device.active, []
        device.prior = None
        again = []
        for job in jobs:
            job.lost_on.append(device)
            job.spent += time.monotonic() - job.taken
        if not self._closing:
            device.count_death(jobs, problem)
            if device.retired:
                self._retire(device, jobs)
        for job in jobs:
            if self._closing:
                job.end(
                    "interrupted", "Interrupted", "the run was stopped; run it again to continue"
                )
            elif (deaths := len(job.lost_on)) > self.restarts:
                job.end("failed", "EngineDied", f"{deaths} engine processes ended: {problem}")
            else:
                again.append(job)
        self._waiting[:0] = again
        self._assign()

    def _retire(self, device: Device, jobs: Sequence[Job]) -> None:
        """Says that a device takes no more scenes. Those that it failed get their tries back."""
        left = [d for d in self._devices if not d.retired]
        for job in [*jobs, *self._waiting, *(j for d in left for j in d.active)]:
            if left:
                job.lost_on = [d for d in job.lost_on if d is not device]
        names = ", ".join(d.name for d in left)
        then = f"its scenes go to {names}" if left else "no device is left, so the run ends"
        text = f"{device.name} is no longer used; {then}. {device.retired}"
        self.log.error(text)
        self._show(text)

    def _end_waiting(self) -> None:
        """Ends the scenes that no device is left for; those that never ran resume with the next."""
        reasons = "; ".join(dict.fromkeys(self.retired.values()))
        text = f"no device is left: {reasons}; see `sjc doctor`"
        for job in self._waiting:
            if job.lost_on:
                job.end("failed", "EngineDied", text)
            else:
                job.end("interrupted", "NoDevice", f"{text}, then run the same command again")
        self._waiting.clear()

    # The callbacks of engine processes, each in the process's own thread.

    def _wait_for_work(self, device: Device) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._closing or device.early or bool(device.active))
            if self._closing:
                self._take_back(device, "")
                return False
            return True

    def _on_start(self, device: Device) -> None:
        with self._changed:
            device.running, device.heard = True, time.monotonic()
            if device.early and not device.active:
                self._send(device, {"type": "load", "spec": device.early})
            device.early = None
            for job in device.active:
                self._send(device, job.message)
            if self._closing:
                self._engines[device].stop()

    def _on_exit(self, device: Device, problem: str) -> None:
        with self._changed:
            device.running = False
            device.early = None  # one try, if it could not start
            self._take_back(device, problem)

    def _on_event(self, device: Device, event: Event) -> None:
        with self._changed:
            device.heard = time.monotonic()
            of_all = {"room": self._on_room, "working": self._on_working}.get(event["type"])
            if of_all is not None:
                of_all(device, event)
                return
            job = next((j for j in device.active if j.key == event["scene"]), None)
            if event["type"] == "returned":
                self._on_returned(device, job, event)
                return
            if job is None:
                return  # a scene dropped a moment ago
            job.last_step = event["step"]
            if event["step"] > event["first_step"] or event["type"] == "done":
                device.count_step()
            # Of the whole attempt: a process that replaces a dead one starts from a later step.
            if job.first_step is None or event["first_step"] < job.first_step:
                job.first_step = event["first_step"]
            event["first_step"] = job.first_step
            if event["type"] != "progress":
                device.active.remove(job)
                self._assign()
        if event["type"] == "failed":
            status = _STATUS.get(event["error_type"], "failed")
            job.end(status, event["error_type"], event["error"])
        else:
            job.events.put(event)

    def _on_working(self, device: Device, event: Event) -> None:
        """Its process does something that is no step, for one scene or for all that wait."""
        for job in device.active:
            if event["scene"] in (None, job.key):
                job.events.put(event)

    def _on_room(self, device: Device, event: Event) -> None:
        """Its process has measured how many scenes it has memory for."""
        if self.scenes_per_device is None:
            device.most = device.room = event["scenes"]
            self.log.info("scenes per device on %s: %s", device.name, event["why"])
            self._assign()

    def _on_returned(self, device: Device, job: Job | None, event: Event) -> None:
        """Its process is out of memory, and continues with fewer scenes."""
        if event["scenes"] < device.room:
            device.most = device.room = event["scenes"]
            message = "%s: out of memory; continuing with %d scenes at a time: %s"
            self.log.warning(message, device.name, device.room, event["error"])
        if job is not None:
            device.active.remove(job)
            job.spent += time.monotonic() - job.taken
            self._waiting.insert(0, job)
            self._assign()
