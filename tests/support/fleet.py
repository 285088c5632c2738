"""Workers on a process pool, with the stub shard flow, for tests and benchmarks."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_MARK = b"PREFECT__FLOW_RUN_ID="


def deploy(pool: str, name: str = "shards") -> None:
    """Makes a process pool, and on it the deployment `generate-shard/{name}` of the stub flow."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.flows import EntrypointType
    from stub_shard import generate_shard

    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
    deployment = generate_shard.to_deployment(
        name, work_pool_name=pool, entrypoint_type=EntrypointType.MODULE_PATH
    )
    deployment.apply()  # type: ignore[union-attr]  # outside an event loop


@contextlib.contextmanager
def start_workers(
    pool: str, count: int, variables: Mapping[str, str], log: Path
) -> Iterator["list[subprocess.Popen[bytes]]"]:
    """Workers that take one flow run at a time; they end with the block."""
    paths = os.pathsep.join(str(ROOT / folder) for folder in ("", "tests/support"))
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--limit", "1"]
    with log.open("ab") as output:
        workers = [
            subprocess.Popen(
                [*command, "--name", f"gpu{number}"],
                env={**variables, "PYTHONPATH": paths},
                stdout=output,
                stderr=output,
            )
            for number in range(count)
        ]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait(timeout=60)


def descendants(pid: int) -> list[int]:
    """The processes below one."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(child) for task in tasks for child in task.read_text().split()]
    return [found for child in children for found in (child, *descendants(child))]


def flow_run_of(pid: int) -> str | None:
    """The id of the flow run that a process executes."""
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return None
    return variables.partition(_MARK)[2][:36].decode() or None
