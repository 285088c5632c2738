"""`sjc dispatch`: the shards of a plan, as flow runs on a work pool, until the store has them all.

What is done is read from the store, never from Prefect: dispatching again submits what the store
lacks, under idempotency keys that make the same request the same flow run.
"""

import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from uuid import UUID

import httpx
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, WorkerStatus
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Crashed, State

from flows.context import surroundings
from flows.errors import UsageError
from flows.plan import asset_states
from flows.prefect_server.heartbeats import crash_silent_runs
from flows.progress.results import final_state
from flows.progress.terminal import Watcher
from flows.settings import SHARD_OPTIONS
from tasks.manifest.shard_plan import ShardPlan, load_plan
from tasks.prefect_ui.artifacts import Board, show_progress
from tasks.records.documents import check_usable
from tasks.store import open_store
from tasks.store.interface import Store
from tasks.store.layout import tombstone_key
from tasks.tables.read import query

DEPLOYMENT = "generate-shard/shards"
AHEAD = 2  # shards at the pool for each worker: one runs, one waits, and no worker ever does
TRIES = 3  # flow runs of a shard that end and leave assets open
POLL_SECONDS = 5.0
FAILURES = ("failed", "diverged", "timeout")  # statuses of assets that only --retry-failed opens
PAGE = 100  # flow runs of one request


@dataclass
class Shard:
    """A shard on its way. open: its assets that the store lacks, and the seconds of each."""

    number: int
    open: dict[str, float]
    attempt: int = 1  # part of the idempotency key
    ended: list[str] = field(default_factory=list)  # how its flow runs ended, without the assets


@dataclass(frozen=True)
class Pool:
    """The deployment on a server that runs shards, and the parameters of every shard."""

    plan_id: str
    deployment: str
    parameters: dict[str, Any]
    workers: int | None

    @cached_property
    def work_pool(self) -> str:
        """The work pool of the deployment; UsageError if the server has none."""
        with get_client(sync_client=True) as client:
            try:
                found = client.read_deployment_by_name(self.deployment)
            except (ObjectNotFound, ValueError) as error:
                raise UsageError(
                    f"--deployment {self.deployment}: the server has none of this name; make it as"
                    " docs/many-machines.md shows"
                ) from error
        if not found.work_pool_name:
            raise UsageError(f"--deployment {self.deployment}: has no work pool; deploy it to one")
        return found.work_pool_name

    def size(self) -> int:
        """How many workers there are: the number that was given, or those that are online."""
        if self.workers is not None:
            return self.workers
        with get_client(sync_client=True) as client:
            workers = client.read_workers_for_work_pool(self.work_pool)
        return sum(worker.status == WorkerStatus.ONLINE for worker in workers)

    def submit(self, shard: Shard) -> FlowRun:
        """The shard's flow run; a new one only if none of this attempt exists."""
        run: FlowRun = run_deployment(  # type: ignore[assignment]  # outside an event loop
            self.deployment,
            parameters={**self.parameters, "plan": self.plan_id, "shard": shard.number},
            timeout=0,
            as_subflow=False,
            idempotency_key=f"{self.plan_id}-{shard.number}-{shard.attempt}",
            flow_run_name=f"shard {shard.number} of {self.plan_id}, try {shard.attempt}",
            tags=[f"plan:{self.plan_id}"],
        )
        return run

    def states(self, ids: Iterable[UUID]) -> dict[UUID, State[Any]]:
        """The states of flow runs; one that is no longer there counts as crashed."""
        wanted = list(ids)
        states: dict[UUID, State[Any]] = dict.fromkeys(wanted, Crashed(name="is gone"))
        with get_client(sync_client=True) as client:
            for start in range(0, len(wanted), PAGE):
                page = FlowRunFilter(id=FlowRunFilterId(any_=wanted[start : start + PAGE]))
                runs = client.read_flow_runs(flow_run_filter=page)
                states |= {run.id: run.state for run in runs if run.state is not None}
        return states


@flow(name="dispatch", flow_run_name="dispatch {plan}")
def dispatch(
    plan: str,
    store: str,
    deployment: str = DEPLOYMENT,
    workers: int | None = None,
    retry_failed: bool = False,
    timeout: float | None = None,
    checkpoint_to_store: bool = False,
    compiled: bool = False,
    allow_pickle: bool = False,
    fast_launch: bool = False,
) -> State[Any]:
    """Submits the shards of a plan that the store has, and waits until all assets have their row.

    workers: of the pool; about twice as many shards are kept there. None counts those online, again
    and again. The other parameters are each shard's.
    """
    options = {name: value for name, value in locals().items() if name in SHARD_OPTIONS}
    opened, watch = open_store(store), surroundings().watcher
    check_usable(opened)
    found = load_plan(opened, plan)
    pool = Pool(found.id, deployment, {"store": opened.url, **options}, workers)
    start = f"prefect worker start --pool {pool.work_pool}"
    if not pool.size():
        watch.note(f"pool {pool.work_pool} has no workers yet; start `{start}`")
    crash_silent_runs()
    with Board() as board:
        show = show_progress(board, f"plan {found.id}")
        dispatcher = Dispatcher(found, opened, pool, watch, show, retry_failed)
        dispatcher.drive()
        return conclude(found, opened, dispatcher.given_up.values(), board, watch)


@dataclass
class Dispatcher:
    """Keeps a pool in work until no shard of a plan is open.

    A shard whose flow run has ended with assets still open goes to the end of the queue, until
    `TRIES` have ended so; one that was cancelled by hand stays so. Interrupting this loses nothing:
    submitted flow runs continue, and the next dispatch finds them. on_progress: gets the share of
    the open assets that is done, in [0, 1].
    """

    plan: ShardPlan
    store: Store
    pool: Pool
    watch: Watcher
    on_progress: Callable[[float], object]
    retry_failed: bool
    sleep: Callable[[float], None] = time.sleep
    waiting: deque[Shard] = field(default_factory=deque)
    running: dict[UUID, Shard] = field(default_factory=dict)
    given_up: dict[int, Shard] = field(default_factory=dict)
    _noted: str = ""

    def drive(self) -> None:
        """Until all is done. The last look is at the rows: a shard may have ended before them."""
        for again in range(TRIES):
            shards = open_shards(self.plan, self.store, self.retry_failed and not again)
            self.waiting.extend(s for s in shards if s.number not in self.given_up)
            if not self.waiting:
                break
            count = sum(len(shard.open) for shard in self.waiting)
            self.watch.note(f"{len(self.waiting)} shards with {count} open assets")
            while self.waiting or self.running:
                try:
                    self._fill()
                    self.sleep(POLL_SECONDS)
                    self._collect()
                except (httpx.TransportError, PrefectHTTPStatusError) as error:
                    self.watch.note(f"Prefect's server does not answer ({error}); trying again")
                    self.sleep(POLL_SECONDS)
                left = sum(len(s.open) for s in [*self.waiting, *self.running.values()])
                self.on_progress(1 - left / count)

    def _fill(self) -> None:
        """Submits shards while fewer than `AHEAD` for each worker are at the pool."""
        size = max(1, self.pool.size())
        while self.waiting and len(self.running) < AHEAD * size:
            shard = self.waiting[0]
            run = self.pool.submit(shard)
            if run.state is not None and run.state.is_final():  # of a dispatch before this one
                shard.attempt += 1
                continue
            self.running[run.id] = self.waiting.popleft()
        line = f"{len(self.running)} shards at the pool, {len(self.waiting)} to come"
        if line != self._noted:
            shards = [*self.waiting, *self.running.values()]
            hours = sum(sum(shard.open.values()) for shard in shards) / size / 3600
            self.watch.note(f"{line}; about {hours:.1f} hours for {size} workers")
            self._noted = line

    def _collect(self) -> None:
        """Takes back the shards whose flow runs have ended."""
        for run_id, state in self.pool.states(self.running).items():
            if not state.is_final():
                continue
            shard = self.running[run_id]
            shard.open = self._still_open(shard, state)
            del self.running[run_id]
            shard.attempt += 1
            how = f"{state.name}: {state.message or ''}".rstrip(": ")
            self.watch.note(f"shard {shard.number}: {how}; {len(shard.open)} assets open")
            if not shard.open:
                continue
            shard.ended.append(how)
            if state.is_cancelled() or len(shard.ended) >= TRIES:
                self.given_up[shard.number] = shard
            else:
                self.waiting.append(shard)

    def _still_open(self, shard: Shard, state: State[Any]) -> dict[str, float]:
        """The shard's assets that the store lacks, after a flow run that ended in this state."""
        known = asset_states(self.store, sorted(shard.open))
        # One that has died did so perhaps before it tried again
        failed = {"failed"} if state.is_crashed() and self.retry_failed else set()
        still = {"new", "interrupted"} | failed
        return {k: seconds for k, seconds in shard.open.items() if known[k] in still}


def open_shards(plan: ShardPlan, store: Store, retry_failed: bool) -> list[Shard]:
    """The shards of a plan with assets whose row the store lacks, or, if asked, that failed."""
    known = outcomes(plan, store)
    closed = {"ok", "pruned"} if retry_failed else {"ok", "pruned", *FAILURES}
    shards = [
        Shard(number, {k: seconds for k, seconds in assets.items() if known.get(k) not in closed})
        for number, assets in plan.shards().items()
    ]
    return [shard for shard in shards if shard.open]


def outcomes(plan: ShardPlan, store: Store) -> dict[str, str]:
    """The status of each of the plan's assets that has a row: its best outcome."""
    sql = "SELECT DISTINCT asset_id, status FROM assets WHERE status = 'pruned' UNION ALL"
    rows = query(store, f"{sql} SELECT asset_id, status FROM best_assets").to_pylist()
    known = {
        row["asset_id"]: row["status"]
        for row in rows
        if row["status"] != "pruned" or store.exists(tombstone_key(row["asset_id"]))
    }
    return {k: known[k] for assets in plan.shards().values() for k in assets if k in known}


def count_outcomes(plan: ShardPlan, store: Store) -> dict[str, int]:
    """How many of the plan's assets are `ok`, `failed`, and `open`."""
    known = Counter(outcomes(plan, store).values())
    failed = sum(known[status] for status in FAILURES)
    left = sum(map(len, plan.shards().values())) - known["ok"] - known["pruned"] - failed
    return {"ok": known["ok"], "failed": failed, "open": left}


def conclude(
    plan: ShardPlan, store: Store, given_up: Iterable[Shard], board: Board, watch: Watcher
) -> State[Any]:
    """The flow's final state, and a table of what is left."""
    rows = [
        {"shard": shard.number, "open assets": len(shard.open), "ended": "; ".join(shard.ended)}
        for shard in given_up
    ]
    if rows:
        about = f"Shards of plan {plan.id} that were given up"
        board.create("table", "given-up", json.dumps(rows), about)
    for row in rows:
        watch.note(f"shard {row['shard']} is given up: {row['ended']}")
    counts = count_outcomes(plan, store)
    return final_state(counts, counts["ok"], {"plan": plan.id, "counts": counts})
