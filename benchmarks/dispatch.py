"""Many shards, a fleet of workers, and what the dispatcher costs.

    python benchmarks/dispatch.py [--assets 10000] [--workers 8] [--folder FOLDER] [--only PART]
                                  [--json FILE]

Runs on Prefect with PostgreSQL and Redis, which it starts (scripts/server-with-postgres). Assets
are stubs: made-up numbers and a tiny file, through the real documents, tables and flow runs.

simulation: the dispatcher is the real one, its time is the real time that it takes, and its flow
runs are on the server; the workers live in a simulated clock, and one dies half-way through.
workers: two real worker processes, and the process of one flow run is killed.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from uuid import UUID

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "support"))

import asyncpg
from fleet import deploy, descendants, flow_run_of, start_workers
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.states import Completed, Crashed, Running
from report import Figure, Report
from stub_shard import make_stubs

from flows.commands.plan import make_shard_plan
from flows.dispatch import DEPLOYMENT, Dispatcher, Pool, count_outcomes
from flows.dispatch import dispatch as dispatch_flow
from flows.plan import make_plan
from flows.prefect_server.heartbeats import SILENCE
from flows.progress.terminal import Watcher
from flows.run_record import close_attempts, entry_outcomes
from flows.scratch import sole_user
from flows.settings import Settings
from tasks.manifest.shard_plan import MOST_ASSETS, ShardPlan, keep_plan, make_plan_file
from tasks.records.attempts import start_attempt
from tasks.records.runs import finish_run, new_run_id, start_run
from tasks.store import open_store
from tasks.store.interface import Store
from tasks.tables.read import query
from tasks.tables.write import compact_store, record_run

ROOT = Path(__file__).resolve().parents[1]
SHARD_SECONDS = 600.0  # simulated; the target is 500 at least
SPREAD = 0.3  # of an asset's time: standard deviation of its logarithm
SMALL = "< 300"  # a million assets in shards of 300: below 1 GB


class Fleet:
    """Workers in a simulated clock that take flow runs from a pool; `sleep` lets it go on."""

    def __init__(self, plan: ShardPlan, store: Store, workers: int, folder: Path) -> None:
        self.plan, self.store, self.folder = plan, store, folder
        self.now = 0.0  # simulated seconds
        self.dispatcher = 0.0  # real seconds that the dispatcher took
        self.left = time.perf_counter()
        self.idle = list(range(workers))
        self.busy = [0.0] * workers
        self.events: list[tuple[float, int, UUID, int, str]] = []  # when, worker, run, shard, end
        self.doomed: int | None = workers // 2  # this worker dies in its second shard
        self.taken: dict[int, int] = dict.fromkeys(range(workers), 0)
        self.longest: list[float] = []
        chance = random.Random(0)
        self.seconds = {
            asset_id: seconds * chance.lognormvariate(-(SPREAD**2) / 2, SPREAD)
            for assets in plan.shards().values()
            for asset_id, seconds in assets.items()
        }

    def sleep(self, seconds: float) -> None:
        took = time.perf_counter() - self.left
        self.dispatcher += took
        until = self.now + took + seconds
        with get_client(sync_client=True) as client:
            self._take(client)
            while self.events and self.events[0][0] <= until:
                self.now, worker, run_id, shard, end = heapq.heappop(self.events)
                self._end(client, worker, run_id, shard, end)
                self._take(client)
        self.now = until
        self.left = time.perf_counter()

    def _take(self, client: Any) -> None:
        """Every idle worker takes the flow run that has waited longest."""
        if not self.idle:
            return
        waiting = client.get_scheduled_flow_runs_for_work_pool("simulated")
        for found in waiting[: len(self.idle)]:
            run, worker = found.flow_run, self.idle.pop(0)
            client.set_flow_run_state(run.id, Running())
            shard = run.parameters["shard"]
            self.taken[worker] += 1
            seconds = self._left_to_do(shard)
            if worker == self.doomed and self.taken[worker] == 2:
                self.busy[worker] += seconds / 2
                event = (self.now + seconds / 2, worker, run.id, shard, "dies")
            else:
                self.busy[worker] += seconds
                self.longest.append(seconds)
                event = (self.now + seconds, worker, run.id, shard, "ends")
            heapq.heappush(self.events, event)

    def _left_to_do(self, shard: int) -> float:
        assets = self.plan.shards()[shard]
        return sum(self.seconds[k] for k in assets if not self._finished(k))

    def _finished(self, asset_id: str) -> bool:
        return self.store.exists(f"assets/{asset_id}/manifest.json")

    def _end(self, client: Any, worker: int, run_id: UUID, shard: int, end: str) -> None:
        if end == "is noticed":
            client.set_flow_run_state(run_id, Crashed(message="Its heartbeats stopped."))
            return
        record_shard(self.plan, self.store, shard, self.folder, dies=end == "dies")
        if end == "dies":
            noticed = self.now + SILENCE.total_seconds()
            heapq.heappush(self.events, (noticed, worker, run_id, shard, "is noticed"))
            self.doomed = None
        else:
            client.set_flow_run_state(run_id, Completed())
            self.idle.append(worker)


def record_shard(
    plan: ShardPlan, store: Store, shard: int, folder: Path, *, dies: bool = False
) -> None:
    """What the flow `generate-shard` writes; one that dies stops within its middle asset."""
    settings = Settings(
        plan.id, store.url, devices=["cpu"], scratch=str(folder), plan=plan.id, shard=shard
    )
    made = make_plan(settings)
    with sole_user(folder):
        close_attempts(made, made.states, Watcher(), logging.getLogger(__name__))
    todo = list(made.todo)
    run = start_run(
        store, new_run_id(), plan.manifest, plan.manifest_sha256, made.entries, settings.to_json()
    )
    record_run(store, run)
    half = len(todo) // 2
    outcomes = make_stubs(made, todo[:half] if dies else todo, run["run_id"])
    if dies:
        start_attempt(store, made.assets[todo[half]].spec, run["run_id"])
        return
    outcomes |= {k: "reused" for k in made.assets if k not in outcomes}
    record_run(store, finish_run(store, run, entry_outcomes(made, outcomes)))


def ideal_seconds(fleet: Fleet, shards: Iterable[dict[str, float]], workers: int) -> float:
    """When the last shard would end if all shards lay at the pool at once and no worker died."""
    free = [0.0] * workers
    for assets in shards:
        began = heapq.heappop(free)
        heapq.heappush(free, began + sum(fleet.seconds[k] for k in assets))
    return max(free)


def planned(folder: Path, assets: int, shards: int) -> ShardPlan:
    """A plan of drafts in which each asset should take the same time."""
    manifest = folder / "manifest.csv"
    manifest.write_text("prompt,seed,recipe\n" + "".join(
        f"a yellow duck number {start},0-{min(5000, assets - start) - 1},draft\n"
        for start in range(0, assets, 5000)
    ))  # fmt: skip
    settings = Settings(str(manifest), str(folder / "none"))
    made, _ = make_shard_plan(settings, 1e12)
    entries = [entry for shard in made.shards() for entry in made.entries(shard, folder)]
    each = SHARD_SECONDS * shards / assets
    seconds = {entry.spec.asset_id: each for entry in entries}
    return make_plan_file(
        entries, seconds, SHARD_SECONDS, manifest=str(manifest),
        manifest_sha256=made.manifest_sha256, settings={},
    )  # fmt: skip


def database_bytes() -> int:
    async def ask() -> int:
        url = os.environ["SJC_DATABASE_URL"].replace("+asyncpg", "")
        connection = await asyncpg.connect(url)
        try:
            return int(await connection.fetchval("SELECT pg_database_size(current_database())"))
        finally:
            await connection.close()

    return asyncio.run(ask())


def simulation(folder: Path, assets: int, workers: int, report: Report) -> None:
    plan = planned(folder, assets, max(2 * workers, -(-assets // (MOST_ASSETS - 10))))
    store = open_store(folder / "store")
    keep_plan(store, plan)
    deploy("simulated", name="simulated")
    fleet = Fleet(plan, store, workers, folder / "scratch")
    before = database_bytes()

    @flow(name="simulated-dispatch")
    def simulated() -> None:
        pool = Pool(plan.id, "generate-shard/simulated", {"store": store.url}, workers)
        fleet.left = time.perf_counter()
        Dispatcher(
            plan, store, pool, Watcher(), lambda share: None, retry_failed=False, sleep=fleet.sleep
        ).drive()

    simulated()
    grown = database_bytes() - before
    shards = plan.shards()
    work = sum(fleet.busy)
    ideal = ideal_seconds(fleet, shards.values(), workers)
    alive = [seconds for n, seconds in enumerate(fleet.busy) if n != workers // 2]
    uneven = (max(alive) - min(alive)) / max(fleet.longest)
    about = f"{assets} assets, {len(shards)} shards, {workers} workers, one dies"
    figure = report.part("simulation", about)
    figure("shortest shard", min(sum(s.values()) for s in shards.values()), "s", ">= 500")
    figure("shards", len(shards), "", f">= {2 * workers}")
    figure("busiest - idlest worker, in shards", uneven, "", "<= 1")
    figure("dispatcher's own seconds / shards' seconds", 100 * fleet.dispatcher / work, "%", "< 2")
    figure("finish / finish without dispatcher and death", fleet.now / ideal)
    figure("database, per shard", grown / len(shards) / 1024, "KB", SMALL)
    figure("database, per asset", grown / assets, "bytes")
    check_rows(plan, store, figure)


def two_workers(folder: Path, assets: int, report: Report) -> None:
    plan = planned(folder, assets, max(4, -(-assets // (MOST_ASSETS - 10))))
    store = open_store(folder / "store")
    keep_plan(store, plan)
    deploy("gpus")
    before, began = database_bytes(), time.perf_counter()
    killed: list[int] = []
    variables = os.environ | {"SJC_SCRATCH": str(folder / "scratch")}
    with start_workers("gpus", 2, variables, folder / "workers.log") as processes:
        dispatch = subprocess.Popen([sys.executable, __file__, "--dispatch", plan.id, store.url])
        while dispatch.poll() is None:
            if not killed and len(list(store.list("tables/runs/"))) >= 2:  # well under way
                found = (p for w in processes for p in descendants(w.pid) if flow_run_of(p))
                if process := next(found, None):
                    os.kill(process, signal.SIGKILL)
                    killed.append(process)
            time.sleep(1)
    seconds, grown = time.perf_counter() - began, database_bytes() - before
    shards = plan.shards()
    figure = report.part("2 workers", f"{assets} assets, {len(shards)} shards, {seconds:.0f} s")
    figure("flow runs killed", len(killed), "", ">= 1")
    figure("database, per shard", grown / len(shards) / 1024, "KB", SMALL)
    check_rows(plan, store, figure)


def check_rows(plan: ShardPlan, store: Store, figure: Figure) -> None:
    """Rows of the plan's assets that are missing, and those that are there twice."""
    counts = count_outcomes(plan, store)
    sql = "SELECT count(*) - count(DISTINCT asset_id) AS twice FROM {} WHERE status = 'ok'"
    twice = [query(store, sql.format(t))["twice"][0].as_py() for t in ("assets", "attempts")]
    total = sum(counts.values())
    figure("assets without a row", total - counts["ok"], "", "<= 0")
    figure("assets with two rows", sum(twice), "", "<= 0")
    files = compact_store(store)
    figure("the same, after `sjc compact`", total - count_outcomes(plan, store)["ok"], "", "<= 0")
    figure("files of each table then", max(files.values()), "", "<= 1")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--assets", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument(
        "--folder", type=Path, help="where the stores lie; default: a temporary one"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--only", choices=("simulation", "workers"))
    parser.add_argument("--dispatch", nargs=2, metavar=("PLAN", "STORE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.dispatch:
        state = dispatch_flow(*options.dispatch, DEPLOYMENT, 2, return_state=True)
        return 0 if state.is_completed() else 1
    if "SJC_DATABASE_URL" not in os.environ:
        server = [sys.executable, str(ROOT / "scripts/server-with-postgres"), "--"]
        os.execv(sys.executable, [*server, sys.executable, *sys.argv])
    used = {name: getattr(options, name) for name in ("assets", "workers", "only")}
    report = Report("dispatch", used, ("prefect", "sqlalchemy", "duckdb"))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for name in ("simulation", "workers"):
            if options.only in (None, name):
                place = Path(folder) / name
                place.mkdir()
                if name == "simulation":
                    simulation(place, options.assets, options.workers, report)
                else:
                    two_workers(place, options.assets, report)
    report.write_json(options.json)
    return 0 if report.all_reached else 1


if __name__ == "__main__":
    sys.exit(main())
