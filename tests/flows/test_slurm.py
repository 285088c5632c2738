"""A plan's shards as the tasks of an array, on a real SLURM."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_line import Said
from slurm_cluster import ask, slurm_cluster, unavailable

from tasks.records.verify import verify_store
from tasks.store import open_store
from tasks.tables.read import query

ROOT = Path(__file__).parents[2]
SHARDS, EACH = 8, 3  # shards, and assets of one

pytestmark = pytest.mark.system


@pytest.fixture
def variables(
    prefect_api: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> Iterator[dict[str, str]]:
    """Of a shell on the cluster, whose `sjc` makes stubs."""
    if reason := unavailable():
        pytest.skip(reason)
    program = tmp_path / "bin" / "sjc"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT}/tests/support/stub_sjc.py "$@"\n')
    program.chmod(0o755)
    paths = os.pathsep.join(str(ROOT / folder) for folder in ("", "tests/support"))
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster | {
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "PYTHONPATH": paths,
            "PREFECT_API_URL": prefect_api,
            "SJC_STUB_SECONDS": "3",
        }


def until(condition: Callable[[], object], variables: dict[str, str], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, ask(variables, "squeue")
        time.sleep(0.5)


def test_an_array_makes_every_asset_once(
    variables: dict[str, str], sjc: Callable[..., Said]
) -> None:
    """Two tasks at a time; one is killed and requeued, the time of another one is over."""
    Path("m.csv").write_text(f"prompt,seed,recipe\na duck,0-{SHARDS * EACH - 1},draft\n")
    said = ""
    for seconds in ("1e9", ""):  # of all; then of a shard
        words = ["plan", "m.csv", "-o", f"p{seconds}.parquet", "--store", "store", "--json"]
        seconds = seconds or str(json.loads(said)["hours"] * 3600 / SHARDS)
        words += ["--shard-seconds", seconds, "--slurm", "job.sh"]
        said = sjc(*words).out
    plan = json.loads(said)
    assert (plan["shards"], plan["assets"]) == (SHARDS, SHARDS * EACH)

    job = ask(variables, "sbatch", "--parsable", "--gpus=0", "job.sh").strip()
    store = open_store("store")
    begun = """SELECT CAST(settings->>'shard' AS INT) AS shard FROM runs
               WHERE ended_at IS NULL AND run_id IN (SELECT run_id FROM assets)"""

    def at_work() -> list[int]:
        """Shards that have made an asset, and have more to make."""
        running = ask(variables, "squeue", "--noheader", "--states=R", "--format=%K").split()
        shards = [row["shard"] for row in query(store, begun).to_pylist()]
        return [shard for shard in shards if str(shard) in running]

    until(lambda: len(at_work()) == 2, variables)
    first, second = at_work()
    ask(variables, "scontrol", "requeue", f"{job}_{first}")
    told = time.monotonic()
    # It asks again and again while the task ends.
    over = ["scancel", "--signal=USR1", "--batch", f"{job}_{second}"]
    signalling = subprocess.Popen(over, env=os.environ | variables, stderr=subprocess.DEVNULL)
    log = Path(f"sjc-{plan['plan']}-{second}.log")
    until(lambda: "run the same command again" in log.read_text(), variables)
    assert time.monotonic() - told < 20, "SIGTERM to its end"
    signalling.kill()
    signalling.wait()
    until(lambda: not ask(variables, "squeue", "--noheader").strip(), variables)

    sql = "SELECT count(*) AS n, count(DISTINCT asset_id) AS d FROM assets WHERE status = 'ok'"
    assert query(store, sql).to_pylist() == [{"n": SHARDS * EACH, "d": SHARDS * EACH}]
    runs = query(store, "SELECT count(*) AS n FROM runs").to_pylist()[0]["n"]
    assert runs == SHARDS + 2, "each shard is a run, and two were run again"
    assert verify_store(store) == []
