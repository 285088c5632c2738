"""The course of a soak test: runners at work under faults, a last run in peace, and the checks."""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import SIGKILL
from typing import ParamSpec

from fault_proxy import Fault, FaultProxy
from soak_checks import (
    Waste,
    check_attempts,
    check_endings,
    check_first_run,
    check_litter,
    check_manifest,
    check_reported,
    check_rows,
    check_tables,
    check_verified,
    count_attempts,
    wasted_steps,
)
from soak_faults import ENGINE_KILLS, Scene
from soak_ledger import Ledger
from soak_manifest import Manifest
from soak_processes import (
    GRACE,
    MARK,
    ROOT,
    SJC,
    Ending,
    Process,
    Runner,
    Server,
    marked,
    results,
    run_here,
)
from soak_schedule import Schedule
from soak_stores import open_place

from tasks.store import open_store
from tasks.store.interface import StoreError

RUNNERS = (("--retry-failed",), ())  # one of the two tries again what has failed
LOOK_SECONDS = 1.0  # between two looks at the store
TELL_SECONDS = 60.0  # between two lines on how far it is
TICK = 0.05  # seconds; helpers live for a fraction of one
P = ParamSpec("P")


class Soak:
    """One test: what it started, what it saw, and what it found.

    folder: for everything. seed: of the faults. ahead: rows that the manifest grows by. patience:
    seconds that the last run may take.
    """

    def __init__(self, folder: Path, *, seed: int, ahead: int, patience: float, quiet: bool):
        self.folder, self.seed, self.patience, self.quiet = folder, seed, patience, quiet
        self.manifest = Manifest(folder / "manifest.csv", ahead)
        self.violations: list[str] = []
        self.endings: list[Ending] = []
        self.struck: Counter[str] = Counter()
        self.missed: Counter[str] = Counter()
        self.attempts: dict[str, int] = {}
        self.waste = Waste(0, 0, 0.0, 0)
        self.url = ""
        self.runners: list[Runner] = []
        self._started = time.monotonic()
        self._dead: list[tuple[float, str]] = []  # when a life had ended, and its mark
        self._mark = f"{os.getpid()}-{secrets.token_hex(3)}"
        self._variables = os.environ | {
            MARK: self._mark,
            "OMP_NUM_THREADS": "1",
            "PREFECT_HOME": str(folder / "prefect"),
            "PYTHONPATH": str(ROOT),
        }

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def run(self, store: str, seconds: float, kinds: int) -> None:
        """The whole test, with faults for so many seconds, and until so many kinds have struck.

        store: as for `open_place`. Raises TimeoutError when a server or the last run hangs.
        """
        with open_place(store, self.folder) as place, self._server() as server:
            self.url = place.url
            ledger = Ledger(place.shelf, self.folder / "acknowledged.jsonl")
            self.manifest.grow(0)
            self._variables |= {k: v for k, v in os.environ.items() if k.startswith("AWS_")}
            way = {"AWS_ENDPOINT_URL_S3": place.proxy.url} if place.proxy else {}
            words = [str(self.manifest.path), "--devices", "cpu", "--store", self.url]
            self.runners = [
                Runner(f"runner{n}", [*words, *own], self._variables | way, self.folder)
                for n, own in enumerate(RUNNERS)
            ]
            chance = random.Random(self.seed)
            scene = Scene(
                chance, self.runners, server, place, self.folder, self._variables, self.manifest
            )
            try:
                self._strike(scene, ledger, seconds, kinds)
                self._finish(scene, ledger)
            finally:
                scene.tend(everything=True)
                for process in [*(r.process for r in self.runners), *scene.commands]:
                    if process:
                        process.end(10)
        self._dead = [(0.0, self._mark)]
        self._look_for_orphans()

    def _tell(self, text: str) -> None:
        line = f"{self.seconds:6.0f} s  {text}"
        with (self.folder / "soak.log").open("a") as log:
            log.write(line + "\n")
        if not self.quiet:
            print(line, file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def _server(self) -> Iterator[Server]:
        server = Server(self._variables, self.folder)
        self._variables["PREFECT_API_URL"] = server.api_url
        self._tell("Prefect's server ...")
        server.start()
        try:
            server.wait()
            yield server
        finally:
            if server.process:
                server.process.end()

    # -- under faults

    def _strike(self, scene: Scene, ledger: Ledger, seconds: float, kinds: int) -> None:
        schedule = Schedule(scene.kinds(), scene.chance)
        self.struck, self.missed = schedule.struck, schedule.missed
        looked, told = 0.0, time.monotonic()
        while schedule.goes_on(seconds, kinds):
            now = time.monotonic()
            self._tend(scene)
            if now - looked > LOOK_SECONDS:
                looked = now
                ledger.look()
                self.manifest.grow(len(ledger.assets))
            so_far = f"({len(ledger.assets)} assets, {self.struck.total()} faults)"
            if name := schedule.strike(scene, len(ledger.assets)):
                self._tell(f"{name}  {so_far}")
            elif now - told > TELL_SECONDS:
                told = now
                self._tell(so_far)
            time.sleep(TICK)

    def _tend(self, scene: Scene) -> None:
        """Keeps runners and server going, and notes how processes ended and what they left."""
        scene.tend()
        scene.server.tend()
        for runner in self.runners:
            mark = runner.process.mark if runner.process else ""
            if ending := runner.tend():
                self._end(ending, mark)
        self._look_for_orphans(GRACE)

    def _end(self, ending: Ending, mark: str) -> None:
        self.endings.append(ending)
        self._dead.append((time.monotonic(), mark))
        self._tell(f"{ending.name} ended after {ending.seconds:.0f} s: {ending.code}")

    def _look_for_orphans(self, grace: float = 0.0) -> None:
        """Processes whose runner ended a while ago."""
        now = time.monotonic()
        for when, mark in [pair for pair in self._dead if now - pair[0] > grace]:
            self._dead.remove((when, mark))
            for pid, line in marked(mark).items():
                self.violations.append(f"process {pid} outlived its runner {mark}: {line[:200]}")

    # -- in peace

    def _finish(self, scene: Scene, ledger: Ledger) -> None:
        """Takes every fault back, lets one last run finish what is left, and checks it all."""
        self._tell("no more faults")
        scene.tend(everything=True)
        if scene.place.proxy:
            scene.place.proxy.clear()
        for runner in self.runners:
            if process := runner.process:
                process.end()
                if ending := process.ended():
                    self._end(ending, process.mark)
        for command in scene.commands:
            command.end()
            self.endings += [ending for ending in [command.ended()] if ending]
        scene.server.wait()
        ledger.look()
        scratches = [runner.scratch for runner in self.runners]
        out = self._sjc("last-run", "run", str(self.manifest.path), "--retry-failed",
                        "--devices", "cpu", "--scratch", str(scratches[0]))  # fmt: skip
        assets = results(out)
        ledger.look()
        self._claim(check_manifest, self.manifest.ids, assets)
        self._claim(check_reported, self.folder / "runs", assets, ledger)
        self._sjc_here("compact", "compact")
        store = open_store(self.url, writable=False)
        self._claim(self._spoil_marker, scene, ledger)
        if scene.place.proxy:
            self._claim(self._spoil_repair, scene.place.proxy)
        self._claim(ledger.check)
        unasked = ledger.shelf.asset_ids() - {str(asset["asset_id"]) for asset in assets}
        self._claim(check_attempts, ledger, unasked)
        self._claim(check_tables, store, scene.damaged)
        for number, scratch in enumerate(scratches):
            words = ("--repair", "--yes", "--older", "0", "--scratch", str(scratch))
            out = self._sjc_here(f"repair-{number}", "verify", *words)
            self._claim(check_verified, out, ended=True)
        self._claim(check_tables, store, set())
        self._claim(check_rows, store, ledger)
        self._claim(ledger.check)
        self._claim(check_litter, ledger, scratches)
        self._claim(check_endings, self.endings)
        for command in scene.commands:
            if command.name.startswith("verify"):
                self._claim(check_verified, command.out, ended=False)
            self._claim(check_first_run, command)
        self.violations += scene.violations
        kills = sum(self.struck[name] for name in ENGINE_KILLS)
        kills += sum(ending.code == -SIGKILL for ending in self.endings)
        self.waste = wasted_steps(store, scratches, kills, scenes=1)
        if self.waste.steps > self.waste.bound:
            self.violations.append(f"{self.waste.steps} steps again, at most {self.waste.bound}")
        self.attempts = count_attempts(store)

    def _spoil_marker(self, scene: Scene, ledger: Ledger) -> list[str]:
        """A marker with a wrong SHA-256: `sjc verify` has to name its asset, and no other."""
        asset = scene.chance.choice(sorted(ledger.assets))
        key = f"assets/{asset}/manifest.json"
        whole = ledger.shelf.read(key)
        assert whole is not None
        marker = json.loads(whole)
        scene.chance.choice(list(marker["files"].values()))["sha256"] = "0" * 64
        ledger.shelf.write(key, json.dumps(marker).encode())
        out = self._sjc_here("verify-marker", "verify")
        ledger.shelf.write(key, whole)
        files = ledger.assets[asset].files
        files[key] = files[key][0], ledger.shelf.stamp(key)
        self.struck["wrong marker"] += 1
        findings = json.loads(out.read_text("utf-8"))["findings"]
        found = {line["key"].split("/")[1] for line in findings if line["kind"] == "asset"}
        wrong = f"a wrong marker of asset {asset}: sjc verify names {sorted(found)}"
        return [] if found == {asset} and self.endings[-1].code == 1 else [wrong]

    def _spoil_repair(self, proxy: FaultProxy) -> list[str]:
        """A repair that may not read some files has to end with exit code 3, and write nothing."""
        fault = proxy.add(
            Fault("status", r"^GET .*mesh\.glb", times=None, status=403, code="AccessDenied")
        )
        direct = os.environ["AWS_ENDPOINT_URL_S3"]
        os.environ["AWS_ENDPOINT_URL_S3"] = proxy.url
        try:
            self._sjc_here("repair-unread", "verify", "--repair", "--yes", "--older", "0")
        finally:
            os.environ["AWS_ENDPOINT_URL_S3"] = direct
            proxy.clear()
        self.struck["repair without reads"] += 1
        code = self.endings[-1].code
        wrong = f"a repair that could not read ended with {code}"
        return [] if fault.hits and code == 3 else [wrong]

    def _sjc(self, name: str, *words: str) -> Path:
        """A command that nothing disturbs; where its output lies. Raises TimeoutError."""
        self._tell(f"{name} ...")
        command = [*SJC, *words, "--store", self.url, "--json"]
        process = Process(name, command, self._variables, self.folder / "end")
        try:
            ending = process.wait(self.patience)
        finally:
            process.end()
        if ending is None:
            raise TimeoutError(f"{name} does not end within {self.patience:g} s")
        self._end(ending, process.mark)
        return process.out

    def _sjc_here(self, name: str, *words: str) -> Path:
        """The same in this process, which has imported most of it already."""
        self._tell(f"{name} ...")
        out = self.folder / "end" / f"{name}.out"
        ending = run_here(name, [*words, "--store", self.url, "--json"], out)
        self._end(ending, f"{self._mark}.{name}")
        return out

    def _claim(self, check: Callable[P, list[str]], *words: P.args, **options: P.kwargs) -> None:
        """Adds what a check finds; a store that it cannot even read is a finding too."""
        try:
            self.violations += dict.fromkeys(check(*words, **options))
        except StoreError as error:
            self.violations.append(str(error))
