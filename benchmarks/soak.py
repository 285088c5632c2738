"""Kills, breaks and starves a pipeline at work, and then asks whether anything was lost.

    python benchmarks/soak.py [--minutes 30] [--store folder|moto|swift] [--seed 0] [--json]

Two runners make one manifest of small assets, which grows as they get on, and start again whenever
they end. Meanwhile faults strike, in an order that the seed fixes: processes of every kind are
killed, stopped and told to end, Prefect's server too; requests to S3 fail, hang, break off and
arrive damaged; the disk is full; files are torn and lost; and `sjc compact` and `sjc verify` run
beside it all. At the end one last run is left alone, and everything that was ever acknowledged
must be there, exactly once and whole. Prints assets, faults and violations; exit code 1 for any.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import platform
import random
import secrets
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "tasks"))

from soak_checks import (
    Waste,
    check_attempts,
    check_endings,
    check_litter,
    check_manifest,
    check_reported,
    check_rows,
    check_tables,
    check_verified,
    wasted_steps,
)
from soak_faults import KILLS, Scene
from soak_ledger import Ledger
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
)
from soak_stores import open_place

from tasks.store import open_store

RUNNERS = 2
GAP = (2.0, 6.0)  # seconds between two faults
CALM_SECONDS = 12.0  # more, at most, until an asset gets through: a busy machine is not to starve
LONGEST = 5  # times as long as asked, at most, for the sake of faults that did not strike yet
AIM_SECONDS = 20.0  # that a fault looks for its target; then another one has its turn
LOOK_SECONDS = 1.0  # between two looks at the store
TICK = 0.05  # seconds; helpers live for a fraction of one
# Opaque in its middle after 20 steps, and a small mesh: an asset of about two seconds of one core.
SMALL: dict[str, Any] = {
    "recipe": "draft", "steps": 20, "lr": 0.3, "grid_size": 16, "ray_step": 0.08,
    "emptiness_weight": 0, "depth_weight": 30, "mesh_resolution": 32, "max_faces": 2000,
    "texture_size": 128, "evaluation_size": 32, "turntable_frames": 4, "turntable_size": 32,
}  # fmt: skip
LONG = {"steps": 300}  # so long that it has checkpoints
EVERY_LONG = 8  # rows
PROMPTS = ("a yellow duck", "a red chair", "a green mug", "a blue car", "a toy tank", "a house")


class Soak:
    """One test: what it started, what it saw, and what it found."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.rows: list[dict[str, Any]] = []
        self.manifest = folder / "manifest.csv"
        self.started = time.monotonic()
        self.faults: Counter[str] = Counter()
        self.missed: Counter[str] = Counter()
        self.endings: list[Ending] = []
        self.violations: list[str] = []
        self.dead: list[tuple[float, str]] = []  # when a life had ended, and its mark
        self.assets: list[dict[str, Any]] = []  # the last run's
        self.waste = Waste(0, 0, 0.0, 0)
        self.ids = f"{os.getpid()}-{secrets.token_hex(3)}"
        self.variables = os.environ | {
            MARK: self.ids,
            "OMP_NUM_THREADS": "1",
            "PREFECT_HOME": str(folder / "prefect"),
            "PYTHONPATH": str(ROOT),
        }

    def tell(self, text: str) -> None:
        line = f"{time.monotonic() - self.started:6.0f} s  {text}"
        with (self.folder / "soak.log").open("a") as log:
            log.write(line + "\n")
        if not self.options.quiet:
            print(line, file=sys.stderr, flush=True)

    # -- the manifest

    def grow(self, ledger: Ledger) -> None:
        """Keeps some assets ahead of the runners."""
        if len(self.rows) - len(ledger.assets) >= self.options.ahead / 2:
            return
        for number in range(len(self.rows), len(self.rows) + self.options.ahead):
            row = {"id": f"s{number:04d}", "prompt": PROMPTS[number % len(PROMPTS)]}
            row |= SMALL | {"seed": number}
            self.rows.append(row | (LONG if number % EVERY_LONG == EVERY_LONG - 1 else {}))
        temporary = self.manifest.with_suffix(".new")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)
        temporary.replace(self.manifest)

    # -- the faults

    def strike(self, scene: Scene, ledger: Ledger, runners: list[Runner]) -> None:
        """Lets faults strike until the time is over."""
        kinds = scene.kinds()
        deck: list[str] = []
        began = time.monotonic()
        aimed, name, looked, told, known = 0.0, "", 0.0, began, 0
        due = began + GAP[1]
        while self.goes_on((now := time.monotonic()) - began):
            self.tend(scene, runners)
            if now - looked > LOOK_SECONDS:
                looked = now
                ledger.look()
                self.grow(ledger)
            calm = CALM_SECONDS if len(ledger.assets) == known else 0.0
            if now > due + calm and not name:
                if not deck:
                    deck = sorted(kinds)
                    scene.chance.shuffle(deck)
                name, aimed = deck.pop(), now
            if name and kinds[name](scene):
                self.faults[name] += 1
                self.tell(f"{name}  ({len(ledger.assets)} assets, fault {self.faults.total()})")
                name, due = "", now + scene.chance.uniform(*GAP)
                known = len(ledger.assets)
            elif name and now - aimed > AIM_SECONDS:
                self.missed[name] += 1
                name = ""
            if now - told > 60:
                told = now
                self.tell(f"{len(ledger.assets)} assets, {self.faults.total()} faults")
            time.sleep(TICK)

    def goes_on(self, seconds: float) -> bool:
        """Whether faults strike after so many seconds of them."""
        wanted = self.options.minutes * 60
        return seconds < wanted or (
            len(self.faults) < self.options.kinds and seconds < wanted * LONGEST
        )

    def tend(self, scene: Scene, runners: list[Runner]) -> None:
        """Keeps runners and server going, and notes how processes ended and what they left."""
        scene.tend()
        scene.server.tend()
        for runner in runners:
            mark = runner.process.mark if runner.process else ""
            if ending := runner.tend():
                self.endings.append(ending)
                self.dead.append((time.monotonic(), mark))
                self.tell(f"{ending.name} ended after {ending.seconds:.0f} s: {ending.code}")
        self.look_for_orphans()

    def look_for_orphans(self, grace: float = GRACE) -> None:
        """Processes whose runner ended a while ago."""
        now = time.monotonic()
        for when, mark in [pair for pair in self.dead if now - pair[0] > grace]:
            self.dead.remove((when, mark))
            for pid, line in marked(mark).items():
                self.violations.append(f"process {pid} outlived its runner {mark}: {line[:200]}")

    # -- the end

    def finish(self, scene: Scene, ledger: Ledger, runners: list[Runner]) -> None:
        """Takes every fault back, and lets one last run finish what is left."""
        self.tell("no more faults")
        scene.tend(everything=True)
        if scene.place.proxy:
            scene.place.proxy.clear()
        scene.server.tend()
        for runner in runners:
            if runner.process:
                runner.process.end()
                self.dead.append((time.monotonic(), runner.process.mark))
                self.endings += [ending for ending in [runner.process.ended()] if ending]
        for process in scene.commands:
            process.end()
        scene.server.wait()
        ledger.look()
        last = self.sjc("last run", "run", *runners[0].words[:1], "--retry-failed",
                        "--devices", "cpu", "--scratch", str(runners[0].scratch))  # fmt: skip
        self.assets = results(last, self.folder / "end" / "last-run.out")
        ledger.look()

    def sjc(self, name: str, *words: str) -> Ending:
        """A command that nothing disturbs."""
        self.tell(f"{name} ...")
        command = [*SJC, *words, "--store", self.url, "--json"]
        process = Process(name.replace(" ", "-"), command, self.variables, self.folder / "end")
        ending = process.wait(self.options.patience)
        if ending is None:
            process.end()
            raise TimeoutError(f"{name} does not end within {self.options.patience:g} s")
        self.endings.append(ending)
        return ending

    def check(self, scene: Scene, ledger: Ledger, runners: list[Runner]) -> None:
        """Every invariant; violations are kept."""
        store = open_store(self.url, writable=False)
        scratches = [runner.scratch for runner in runners]
        self.violations += check_manifest(self.rows, self.assets)
        self.violations += check_reported(self.folder / "runs", self.assets, ledger)
        self.sjc("compact", "compact")
        self.tell("checking")
        self.violations += ledger.check()
        self.violations += check_attempts(ledger)
        self.violations += check_tables(store, scene.damaged)
        for number, scratch in enumerate(scratches):
            name = f"repair {number}"
            self.sjc(name, "verify", "--repair", "--older", "0", "--scratch", str(scratch))
            out = self.folder / "end" / f"repair-{number}.out"
            self.violations += check_verified(json.loads(out.read_text("utf-8")))
        self.violations += check_tables(store, set())
        self.violations += check_rows(store, ledger)
        self.violations += ledger.check()
        self.violations += check_litter(ledger, scratches)
        self.violations += check_endings([*self.endings, *(
            ending for process in scene.commands if (ending := process.ended()))])  # fmt: skip
        kills = sum(self.faults[name] for name in KILLS)
        self.waste = wasted_steps(store, scratches, kills, scenes=1)
        if self.waste.steps > self.waste.bound:
            self.violations.append(f"{self.waste.steps} steps again, at most {self.waste.bound}")
        self.attempts = _counts(store)

    # -- all of it

    def run(self) -> None:
        with open_place(self.options.store, self.folder) as place, self.server() as server:
            self.url, proxy = place.url, place.proxy
            ledger = Ledger(place.shelf, self.folder / "acknowledged.jsonl")
            self.grow(ledger)
            words = [str(self.manifest), "--devices", "cpu", "--store", self.url]
            self.variables |= {k: v for k, v in os.environ.items() if k.startswith("AWS_")}
            variables = self.variables | ({"AWS_ENDPOINT_URL_S3": proxy.url} if proxy else {})
            runners = [Runner(f"runner{n}", words, variables, self.folder) for n in range(RUNNERS)]
            chance = random.Random(self.options.seed)
            scene = Scene(chance, runners, server, place, self.folder, self.variables)
            try:
                self.strike(scene, ledger, runners)
                self.finish(scene, ledger, runners)
                self.check(scene, ledger, runners)
            finally:
                scene.tend(everything=True)
                for process in [*(r.process for r in runners), *scene.commands]:
                    if process:
                        process.end(10)
        self.dead = [(0.0, self.ids)]
        self.look_for_orphans()

    @contextlib.contextmanager
    def server(self) -> Iterator[Server]:
        server = Server(self.variables, self.folder)
        self.variables["PREFECT_API_URL"] = server.api_url
        self.tell("Prefect's server ...")
        server.start()
        try:
            server.wait()
            yield server
        finally:
            if server.process:
                server.process.end()

    def facts(self) -> dict[str, Any]:
        codes = Counter(str(ending.code) for ending in self.endings)
        return {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "store": self.options.store,
            "seed": self.options.seed,
            "seconds": round(time.monotonic() - self.started),
            "assets": len(self.rows),
            "attempts": self.attempts,
            "faults": self.faults.total(),
            "kinds": len(self.faults),
            "faults_by_kind": dict(sorted(self.faults.items())),
            "faults_without_target": dict(sorted(self.missed.items())),
            "exit_codes": dict(sorted(codes.items())),
            "steps_again": self.waste.steps,
            "steps_again_at_most": self.waste.bound,
            "scenes_resumed": self.waste.resumed,
            "violations": self.violations,
        }


def _counts(store: Any) -> dict[str, int]:
    from tasks.tables import query

    rows = query(store, "SELECT status, count(*) AS n FROM attempts GROUP BY 1 ORDER BY 1")
    return {row["status"]: row["n"] for row in rows.to_pylist()}


def show(facts: dict[str, Any]) -> None:
    for name, value in facts.items():
        if name == "violations":
            print(f"{name:22}{len(value)}")
            for line in value:
                print(f"  {line}")
        elif isinstance(value, dict):
            print(f"{name:22}" + ", ".join(f"{k} {n}" for k, n in value.items()))
        else:
            print(f"{name:22}{value}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="of faults")
    parser.add_argument("--kinds", type=int, default=0, help="of faults, before it ends")
    parser.add_argument("--store", choices=("folder", "moto", "swift"), default="folder")
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    parser.add_argument("--ahead", type=int, default=24, help="rows that the manifest grows by")
    parser.add_argument("--patience", type=float, default=900, help="seconds for the last run")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    parser.add_argument("--keep", action="store_true", help="the folder, without violations too")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--json", action="store_true", help="the result as JSON")
    options = parser.parse_args()
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="sjc-soak-", dir=options.folder)).resolve()
    soak = Soak(options, folder)
    try:
        soak.run()
    except KeyboardInterrupt:
        print(f"interrupted; what there is lies in {folder}", file=sys.stderr)
        return 130
    except TimeoutError as error:
        print(f"{error}; everything lies in {folder}", file=sys.stderr)
        return 1
    facts = soak.facts()
    keep = options.keep or soak.violations
    if keep:
        facts["folder"] = str(folder)
    else:
        shutil.rmtree(folder)
    if options.json:
        print(json.dumps(facts, indent=1))
    else:
        show(facts)
    return 1 if soak.violations else 0


if __name__ == "__main__":
    sys.exit(main())
