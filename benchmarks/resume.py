"""How soon a killed run computes again, and what its checkpoints cost.

    python benchmarks/resume.py [--rounds 3] [--device cpu] [--only resume|checkpoints]

Resume: `sjc run` of one asset, on a terminal, is killed with all its processes (kill -9) once it
has a checkpoint, and the same command is given again. Printed, medians over rounds: the time from
the kill to the first step beyond the checkpoint, as the terminal shows it, once with a Prefect
server that is up and once without; and how many steps are made twice.

Checkpoints: time of a step and of a checkpoint, the interval that follows from it, and the share of
the time that checkpoints take.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import pty
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from statistics import median

from flows.prefect_server import environment

STEPS = 1_000_000  # so many that no run comes to its end
SHOWN = re.compile(rf"(\d+)/{STEPS}")
TARGET_SECONDS = {"with a server": 10.0, "without a server": 40.0}
TARGET_SHARE = 0.02
SJC = [sys.executable, "-c", "from flows.commands.main import main; main()"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", choices=["resume", "checkpoints"])
    arguments = parser.parse_args()
    names = ("torch", "prefect")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, device {arguments.device}; {versions}")
    print(f"load of the machine before: {os.getloadavg()[0]:.1f}\n")
    if arguments.only != "checkpoints":
        print("| Prefect | kill to first new step, s | target | steps made twice |")
        print("|---|---|---|---|")
        for name, target in TARGET_SECONDS.items():
            rounds = resumes(arguments.rounds, arguments.device, server=name == "with a server")
            seconds, twice = (median(values) for values in zip(*rounds, strict=True))
            print(f"| {name} | {seconds:.1f} | {target:.0f} | {twice:.0f} |", flush=True)
        print()
    if arguments.only != "resume":
        print("| field | step, s | checkpoint, s | interval, s | share | target |")
        print("|---|---|---|---|---|---|")
        fine = {"grid_size": 100, "ray_step": 2.1 / 96}  # the toybox's rays
        for name, settings in {"toybox": {}, "grid of 100³ (paper)": fine}.items():
            step, save, interval = checkpoint_costs(arguments.device, settings)
            share = save / (interval + save)
            print(
                f"| {name} | {step:.3f} | {save:.3f} | {interval:.1f} | {share:.2%} |"
                f" {TARGET_SHARE:.0%} |"
            )


def resumes(rounds: int, device: str, *, server: bool) -> list[tuple[float, int]]:
    """Seconds until it computes again, and steps made twice, of each kill."""
    found = []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        place = Path(folder)
        (place / "m.csv").write_text(f"id,prompt,steps\nduck,a yellow duck,{STEPS}\n")
        os.environ["PREFECT_HOME"] = f"{folder}/home"
        environment.apply()
        variables = os.environ | {"COLUMNS": "120"}
        variables.pop("PREFECT_API_URL", None)
        if server:
            variables["PREFECT_API_URL"] = stack.enter_context(serving(variables))
        run = Run(place, device, variables)
        try:
            run.until(lambda: bool(list((place / ".sjc/fields").glob("*.checkpoint"))))
            for _ in range(rounds):
                run.until(run.has_stepped)
                last = run.shown[-1]
                run.kill()
                killed = time.monotonic()
                run = Run(place, device, variables)
                run.until(run.has_stepped)
                found.append((time.monotonic() - killed, max(0, last - run.shown[0])))
        finally:
            run.kill()
    return found


class Run:
    """`sjc run` on a terminal of its own: what it shows is how far it is."""

    def __init__(self, folder: Path, device: str, variables: dict[str, str]) -> None:
        self.terminal, screen = pty.openpty()
        os.set_blocking(self.terminal, False)
        self.process = subprocess.Popen(
            [*SJC, "run", "m.csv", "--devices", device],
            cwd=folder, env=variables, stdin=screen, stdout=screen, stderr=screen,
            start_new_session=True,
        )  # fmt: skip
        os.close(screen)
        self.shown: list[int] = []  # the first and the last step that it has shown
        self.said = ""

    def has_stepped(self) -> bool:
        return bool(self.shown) and self.shown[-1] > self.shown[0]

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 300
        while not condition():
            with contextlib.suppress(OSError):  # nothing to read
                text = os.read(self.terminal, 65536).decode(errors="replace")
                self.said = (self.said + text)[-9999:]
            steps = [int(step) for step in SHOWN.findall(self.said)]
            if steps:
                self.shown = [self.shown[0] if self.shown else steps[0], steps[-1]]
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the run does not go on:\n{self.said[-3000:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.terminal)


@contextlib.contextmanager
def serving(variables: dict[str, str]) -> Iterator[str]:
    """The address of a Prefect server that is up."""
    from flows.prefect_server.server import HOST, Server, free_port

    port = free_port()
    command = [sys.executable, "-m", "flows.prefect_server.server", "--port", str(port)]
    process = subprocess.Popen([*command, "--parent", str(os.getpid())], env=variables)
    try:
        server = Server(f"http://{HOST}:{port}/api", Path(os.devnull))
        server.wait()
        yield server.api_url
    finally:
        process.terminate()
        process.wait()


def checkpoint_costs(device: str, settings: dict[str, float]) -> tuple[float, float, float]:
    """Median seconds of a step and of a checkpoint, and the interval that the engine chooses."""
    import torch

    from sjc_engine import Recipe, load_prior
    from sjc_engine.optimization.loop import step_scenes
    from sjc_engine.priors.sources import find_prior
    from sjc_engine.spec import AssetSpec
    from sjc_engine.worker.running_scene import RunningScene

    torch.set_num_threads(1)
    prior = load_prior("toybox", device=torch.device(device))
    recipe = Recipe.for_prior("toybox").override({"steps": STEPS, **settings})
    spec = AssetSpec("a yellow duck", "", None, 0, "toybox", find_prior("toybox").revision, recipe)
    with tempfile.TemporaryDirectory() as folder:
        names = {name: f"{folder}/{name}" for name in ("field", "checkpoint")}
        run = RunningScene({"scene": "duck", "spec": spec.to_json(), **names}, prior)
        steps: list[float] = []
        saves, intervals = [], []
        for _ in range(5):
            steps += [timed(lambda: step_scenes([run.scene], prior)) for _ in range(4)]
            saves.append(timed(run.save))
            intervals.append(run.next_save - time.monotonic())
    return median(steps), median(saves), median(intervals)


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
