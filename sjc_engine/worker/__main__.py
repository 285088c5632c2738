"""The engine process: one device, one loaded prior, up to K scenes stepped together.

`python -m sjc_engine.worker --device cpu --parent PID` talks newline-delimited JSON. What else
prints goes to stderr. On stdin:

add   scene: name for the messages; spec: `AssetSpec.to_json()`; field: path for the result;
      checkpoint: path to save under. A checkpoint that is there already is gone on from;
      image: path of the picture whose SHA-256 is in the spec, or null.
      A scene of another prior, or precision, than the running ones waits for those.
drop  scene: forget it. Its checkpoint stays.
load  spec: load its prior, so that it is there for the scenes to come.

On stdout, each with `scene`, `first_step` (steps that an earlier process had done), `step`
(steps done) and, of a scene on board, `history` (`Scene.history`):

progress  steps: steps in all; loss; seconds: spent on this scene, earlier processes included;
          unsaved: why the last checkpoint could not be written, or null
done      field: path, written; steps; loss_first, loss_last, loss_min; seconds; rolled_back;
          words_cut: of the prompts, those beyond the text encoder's length;
          dtype: the precision of the prior's network, such as "float16";
          peak_memory_bytes: of this process (CPU) or this device (CUDA)
failed    error_type; error
returned  the scene has left for want of memory, and goes on from its checkpoint when it is added
          again. scenes: how many fit; error
room      no scene, no steps; once for each prior, on CUDA. scenes: how many fit; why
working   no steps. scene: or null, for all that wait for the prior; what is being done that is no
          step, such as "decoding views", and may take minutes; done, of total

A disk that takes no more costs checkpoints and no scene: it goes on without. If the field itself
cannot be written either the scene is `failed` with error_type ScratchFull, and ScratchLost for any
other error of the folder: neither is the scene's own.

A scene that cannot start, diverges or has an error in its own step is `failed` alone. An error in
everyone's step says nothing about whose it is: a scene that is alone is `failed`, and the process
ends; with more whoever runs it tries each alone. Out of memory the younger half leaves, and only a
scene that is alone is `failed`. An error of the device ends the process and is no scene's: whoever
runs it may try another device. SIGTERM, or the end of stdin, makes it checkpoint and end.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import partial
from types import ModuleType
from typing import IO, cast

from sjc_engine.worker.parent_death import die_with_parent

# Before seconds of imports, in which the parent may end
if __name__ == "__main__" and "--parent" in sys.argv:
    die_with_parent(int(sys.argv[sys.argv.index("--parent") + 1]))
    gc.set_threshold(50_000)  # at 700 a fifth of the time to import what all stays

import torch

from sjc_engine.files import is_refusal
from sjc_engine.memory import MemoryProbe, device_failed, out_of_memory, peak_memory
from sjc_engine.optimization.loop import try_step
from sjc_engine.optimization.scene import Diverged
from sjc_engine.priors.denoiser import Prior, load_prior
from sjc_engine.spec import prior_key
from sjc_engine.worker.checkpoint_timing import next_save
from sjc_engine.worker.running_scene import Message, RunningScene, log

PROGRESS_SECONDS = 0.5  # between two `progress` messages of a scene
# error_type: the same scene has room another time, or finds its folder again
SCRATCH_FULL, SCRATCH_LOST = "ScratchFull", "ScratchLost"
PROBED_STEPS = 2  # the first makes what the optimiser keeps


class OutOfMemory(MemoryError):
    """One scene is more than the device has memory for."""

    def __init__(self, device: torch.device, problem: object) -> None:
        super().__init__(f"no memory for this scene alone on {device}: {problem}")


def _place(message: Message) -> Message:
    """The place of a scene that is not on board."""
    return {"scene": message["scene"], "first_step": 0, "step": 0}


class Worker:
    """The process's state, and its one loop."""

    def __init__(
        self,
        device: str,
        replies: IO[str],
        *,
        compiled: bool = False,
        allow_pickle: bool = False,
        fast_launch: bool = False,
    ) -> None:
        self.device = torch.device(device)
        self.compiled = compiled  # whether priors' networks are
        self.allow_pickle = allow_pickle  # as of `load_prior`
        self.fast_launch = fast_launch
        self.replies = replies
        self.commands: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self.prior: Prior | None = None
        self.loaded: tuple[str, str, str, str] | None = None  # the `prior_key` of it
        self.waiting: list[Message] = []
        self.running: list[RunningScene] = []
        self.probe: MemoryProbe | None = None  # until it is known how many scenes fit

    def listen(self, lines: Iterable[str]) -> None:
        """Queues commands; their end is the command to end."""
        for line in lines:
            self.commands.put(json.loads(line))
        self.commands.put(None)

    def run(self) -> None:
        """Steps all scenes, and lets them join and leave in between, until told to end."""
        while self._take_commands():
            problem = ""
            try:
                self._admit()
                if self.running:
                    self._step()
                    self._report()
            except Exception as error:
                if not out_of_memory(error):
                    raise
                traceback.print_exception(error)
                problem = str(error) or type(error).__name__
            if problem:  # only now is the error gone, which held the step's tensors
                self._shed(problem)
        for run in list(self.running):
            self._save(run)

    def _take_commands(self) -> bool:
        idle = not self.running and not self.waiting
        while idle or not self.commands.empty():
            command = self.commands.get()
            if command is None:
                return False
            if command["type"] == "add":
                self.waiting.append(command)
            elif command["type"] == "load":
                self._load_early(command)
            else:
                key = command["scene"]
                self.waiting = [m for m in self.waiting if m["scene"] != key]
                self.running = [r for r in self.running if r.key != key]
            idle = False
        return True

    def _admit(self) -> None:
        """Takes waiting scenes on board; those of another prior once nothing else runs."""
        for message in list(self.waiting):
            loaded = self._served(message)
            if not loaded and self.running:
                continue
            try:
                if not loaded:
                    self._load(message["spec"])
                assert self.prior is not None
                run = RunningScene(message, self.prior)
            except Exception as error:
                if out_of_memory(error) and self.running:
                    raise
                if out_of_memory(error):
                    error = OutOfMemory(self.device, error)
                elif device_failed(error):
                    self._give_up(error)
                served = self._served(message)  # else it is the prior that cannot be loaded
                self._fail(_place(message), error, _scratch_error(error) if served else "")
            else:
                self.running.append(run)
                self._send(run.progress())
            self.waiting.remove(message)

    def _served(self, message: Message) -> bool:
        """Whether the prior that is loaded is that of the scene."""
        return self.loaded == prior_key(message["spec"])

    def _load_early(self, command: Message) -> None:
        """Loads the prior of scenes to come; if that fails, the first of them will tell."""
        if self.prior is None and not self.waiting:
            with contextlib.suppress(Exception):
                self._load(command["spec"])

    def _load(self, spec: Message) -> None:
        self.prior = self.loaded = None  # the old one's memory first
        prior, revision, dtype, loras = prior_key(spec)
        with absent("scipy"):  # half a second, for what no prior does
            self.prior = load_prior(
                prior,
                revision,
                self.device,
                dtype,
                allow_pickle=self.allow_pickle,
                loras=loras,
                on_work=self._working,
            )
        if self.compiled:
            self.prior.compile()
        if self.fast_launch:
            self.prior.enable_fast_launch()
        self.loaded = prior_key(spec)
        self.probe = MemoryProbe(self.device) if self.device.type == "cuda" else None

    def _step(self) -> None:
        assert self.prior is not None
        started = time.perf_counter()
        active = [run for run in list(self.running) if not self._over(run)]
        outcomes = try_step([r.scene for r in active], self.prior)
        seconds = time.perf_counter() - started
        errors = [o for o in outcomes if isinstance(o, Exception) and not isinstance(o, Diverged)]
        for error in filter(device_failed, errors):
            self._give_up(error)
        if len(errors) == len(active) > 1:
            raise errors[0]
        for run, outcome in zip(active, outcomes, strict=True):
            if isinstance(outcome, Exception):
                self._end(run, outcome)
            else:
                run.totals.count(outcome, seconds / len(active))
        if errors and len(active) == 1:
            raise SystemExit(1) from errors[0]  # a device error can poison whatever comes next
        probed = all(r.scene.step - r.first_step >= PROBED_STEPS for r in active)
        if self.probe and active and probed:
            capacity, self.probe = self.probe.capacity(len(active)), None
            self._send({"type": "room", "scenes": capacity.scenes, "why": str(capacity)})

    def _give_up(self, error: Exception) -> None:
        """Ends the process; the log's last line is what a person reads of it."""
        traceback.print_exception(error)
        raise SystemExit(f"{type(error).__name__}: {str(error).splitlines()[0]}") from error

    def _shed(self, problem: str) -> None:
        """Out of memory: the younger half leaves; a scene that was alone has failed."""
        outside = [message for message in self.waiting if self._served(message)]
        tried = len(self.running) + len(outside)
        fit = tried // 2
        self.probe = None
        for message in reversed(outside):
            self.waiting.remove(message)
            self._send({"type": "returned", **_place(message), "scenes": fit, "error": problem})
        for run in self.running:
            run.scene.optimizer.zero_grad()  # what the next step makes anew
        for number in reversed(range(len(self.running))):
            run = self.running[number]
            if number < fit and run.scene.intact:
                continue
            if run.scene.intact:
                self._save(run)
            if run not in self.running:  # its field is not finite
                continue
            if fit:
                self.running.remove(run)
                self._send({"type": "returned", **run.place(), "scenes": fit, "error": problem})
            else:
                self._end(run, OutOfMemory(self.device, problem))
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _report(self) -> None:
        for run in list(self.running):
            now, over = time.monotonic(), self._over(run)
            if run not in self.running:
                continue
            if over:
                self._finish(run)
            elif now > run.next_save:
                self._save(run)
            if now - run.last_report > PROGRESS_SECONDS and run in self.running:
                run.last_report = now
                run.record_step()
                self._send(run.progress())

    def _over(self, run: RunningScene) -> bool:
        """Whether no step is left; one whose last step turns out to have diverged fails here."""
        try:
            return run.scene.done
        except Diverged as error:
            self._end(run, error)
            return True

    def _save(self, run: RunningScene) -> None:
        try:
            run.save()
        except Diverged as error:
            self._end(run, error)
        except Exception as error:
            if not out_of_memory(error):
                raise
            # No reason to end a scene whose steps have memory enough
            log(f"{run.key} cannot be saved: {error}")
            run.next_save = next_save()

    def _finish(self, run: RunningScene) -> None:
        started = time.perf_counter()
        try:
            field = run.scene.finish(partial(self._working, scene=run.key))
            run.write(field)
        except (Diverged, OverflowError, OSError) as error:  # the second: beyond half precision
            self._end(run, error, _scratch_error(error))
            return
        self.running.remove(run)
        run.totals.seconds += time.perf_counter() - started
        self._send(
            {
                "type": "done",
                **run.place(),
                "field": str(run.field),
                "steps": run.scene.step,
                **asdict(run.totals),
                "rolled_back": run.scene.recovery.rolled_back,
                "words_cut": run.scene.words_cut,
                "dtype": run.scene.prior.precision,
                "peak_memory_bytes": peak_memory(self.device),
            }
        )

    def _end(self, run: RunningScene, error: Exception, kind: str = "") -> None:
        self.running.remove(run)
        self._fail(run.place(), error, kind)

    def _fail(self, place: Message, error: Exception, kind: str = "") -> None:
        """kind: the error_type, by default the name of the error's class."""
        log("".join(traceback.format_exception(error)))
        text = str(error) or type(error).__name__
        kind = kind or type(error).__name__
        self._send({"type": "failed", **place, "error_type": kind, "error": text})

    def _working(self, what: str, done: int, total: int, scene: str | None = None) -> None:
        facts = {"scene": scene, "what": what, "done": done, "total": total}
        self._send({"type": "working", **facts})

    def _send(self, message: Message) -> None:
        # A reader that is gone has closed stdin too: the loop ends with the next command.
        with contextlib.suppress(BrokenPipeError):
            self.replies.write(json.dumps(message) + "\n")
            self.replies.flush()


@contextlib.contextmanager
def absent(package: str) -> Iterator[None]:
    """Without an optional package of what is imported within, if it has not been imported yet."""
    hidden = sys.modules.setdefault(package, cast(ModuleType, None)) is None
    try:
        yield
    finally:
        if hidden:
            del sys.modules[package]


def _scratch_error(error: Exception) -> str:
    """The error_type of what the scratch folder answers; empty for any other error."""
    if not isinstance(error, OSError):
        return ""
    return SCRATCH_FULL if is_refusal(error) else SCRATCH_LOST


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m sjc_engine.worker")
    parser.add_argument("--device", default="cpu", help="cpu, cuda:0, ...")
    parser.add_argument("--threads", type=int, default=1, help="threads of a CPU device")
    parser.add_argument("--compiled", action="store_true", help="compile priors' networks")
    parser.add_argument("--allow-pickle", action="store_true", help="read .bin weights")
    parser.add_argument("--fast-launch", action="store_true", help="Prior.enable_fast_launch")
    parser.add_argument("--parent", type=int, required=True, help="process id of the parent")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which decides
    torch.set_num_threads(arguments.threads)
    if torch.device(arguments.device).type == "cuda":
        torch.cuda.set_device(arguments.device)  # else libraries take memory of cuda:0 too
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # a library that prints must not break the protocol
    worker = Worker(
        arguments.device,
        replies,
        compiled=arguments.compiled,
        allow_pickle=arguments.allow_pickle,
        fast_launch=arguments.fast_launch,
    )
    signal.signal(signal.SIGTERM, lambda *_: worker.commands.put(None))
    threading.Thread(target=worker.listen, args=(sys.stdin,), daemon=True).start()
    worker.run()


if __name__ == "__main__":
    main()
    sys.stderr.flush()
    os._exit(0)  # else the interpreter would take its modules apart: half a second of a core
