"""Two workers on Prefect with PostgreSQL and Redis make a plan's shards, and one is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import SJC
from fleet import descendants, flow_run_of, start_workers
from task_samples import all_tables

from flows.commands.plan import make_shard_plan
from flows.settings import Settings
from tasks.store import open_store
from tasks.store.interface import Store
from tasks.tables.read import query
from tasks.tables.schemas import SCHEMAS
from tasks.tables.write import compact_store

ROOT = Path(__file__).parents[2]
ASSETS, SHARDS = 9, 3

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of clients of a server with PostgreSQL and Redis."""
    scratch = tmp_path_factory.mktemp("scratch")
    server = subprocess.Popen(
        [sys.executable, ROOT / "scripts/server-with-postgres"], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    said = [server.stdout.readline() for _ in range(3)]
    try:
        assert all(said), "the server does not start"
        lines = (line.removeprefix("export ").strip().partition("=") for line in said)
        paths = os.pathsep.join(str(ROOT / p) for p in ("", "tests/support"))
        yield os.environ | {name: value for name, _, value in lines} | {
            "PYTHONPATH": paths, "SJC_SCRATCH": str(scratch), "SJC_STUB_SECONDS": "0.5",
        }  # fmt: skip
    finally:
        server.terminate()
        server.communicate(timeout=60)


def test_two_workers_make_a_plan_and_one_is_killed(
    variables: dict[str, str], tmp_path: Path
) -> None:
    store = open_store(tmp_path / "store")
    manifest, plan = tmp_path / "m.csv", tmp_path / "plan.parquet"
    manifest.write_text(f"prompt,seed,recipe\na yellow duck,0-{ASSETS - 1},draft\n")

    def sjc(*words: str) -> "subprocess.CompletedProcess[str]":
        command = [*SJC, *words, "--store", store.url]
        return subprocess.run(
            command, env=variables, capture_output=True, text=True, check=False, timeout=300
        )

    made, _ = make_shard_plan(Settings(str(manifest), str(tmp_path / "none")), 1e9)
    whole = sum(made.shards()[0].values())
    made, _ = make_shard_plan(Settings(str(manifest), str(tmp_path / "none")), whole / SHARDS)
    plan.write_bytes(made.data)
    assert len(made.shards()) == SHARDS
    subprocess.run(
        [sys.executable, "-c", "from fleet import deploy; deploy('gpus')"],
        env=variables,
        check=True,
    )
    with start_workers("gpus", 2, variables, tmp_path / "workers.log") as workers:
        dispatch = subprocess.Popen(
            [*SJC, "dispatch", str(plan), "--store", store.url, "--workers", "2"],
            env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        killed = kill_a_shard(store, workers)
        out, err = dispatch.communicate(timeout=300)
    assert dispatch.returncode == 0, err
    assert "Crashed" in err, "the server never knew; nothing was killed"
    assert {"ok", "open", str(ASSETS)} <= set(out.split())
    check_rows(store, killed)

    before = all_tables(store)
    again = sjc("dispatch", str(plan), "--json")
    assert (again.returncode, json.loads(again.stdout)["ok"]) == (0, ASSETS)
    assert all_tables(store) == before, "nothing is done twice"
    unused = dict.fromkeys(("views", "history", "annotations"), 0)
    assert compact_store(store) == {**dict.fromkeys(SCHEMAS, 1), **unused}
    assert all_tables(store) == before


def test_the_simulation_reaches_its_figures(variables: dict[str, str]) -> None:
    """A small version of benchmarks/dispatch.py, which prints them."""
    small = [str(ROOT / "benchmarks/dispatch.py"), "--only", "simulation", "--assets", "64"]
    ended = subprocess.run(
        [sys.executable, *small],
        env=variables | {"SJC_STUB_SECONDS": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("assets with") == 2


def kill_a_shard(store: Store, workers: "list[subprocess.Popen[bytes]]") -> str:
    """Kills the process of a flow run that has made its first asset; returns its run's id."""
    sql = """SELECT flow_run_id, run_id FROM runs
             WHERE ended_at IS NULL AND run_id IN (SELECT run_id FROM assets)"""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        children = [p for worker in workers for p in descendants(worker.pid)]
        # A process before those that it has started
        if shards := {flow_run: p for p in reversed(children) if (flow_run := flow_run_of(p))}:
            for begun in query(store, sql).to_pylist():
                if begun["flow_run_id"] in shards:
                    os.kill(shards[begun["flow_run_id"]], signal.SIGKILL)
                    return str(begun["run_id"])
        time.sleep(0.1)
    raise AssertionError("no shard ever began")


def check_rows(store: Store, killed: str) -> None:
    """Every asset once, by several runs of which one never ended."""
    counts = query(store, "SELECT count(*) AS n, count(DISTINCT asset_id) AS d FROM assets"
                          " WHERE status = 'ok'").to_pylist()  # fmt: skip
    assert counts == [{"n": ASSETS, "d": ASSETS}]
    unended = query(store, "SELECT run_id FROM runs WHERE ended_at IS NULL")["run_id"]
    assert unended.to_pylist() == [killed]
    shares = query(store, "SELECT run_id, count(*) AS n FROM assets GROUP BY 1 ORDER BY 2")
    assert len(shares) >= SHARDS, "each shard is a run, and the killed one two"
