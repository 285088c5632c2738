"""Runs whose machine, or whose store, is lost in the middle, and the runs that follow."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import Said, tiny
from fault_proxy import Fault, FaultProxy
from swift_server import S3Server

from sjc_engine.optimization.checkpoint import read_checkpoint
from tasks.devices.pool import DevicePool
from tasks.records.attempts import asset_attempts
from tasks.records.verify import verify_store
from tasks.store import open_store
from tasks.store.interface import Store

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm")]


@pytest.fixture
def network(
    swift: S3Server, prefect_api: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FaultProxy]:
    """The way to the bucket, as all machines' environments name it."""
    with FaultProxy(swift.address) as proxy:
        for name, value in swift.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("PREFECT_API_URL", prefect_api)
        monkeypatch.setenv("SJC_STORE", f"s3://bucket/{tmp_path.name}")
        yield proxy


# A machine whose leases end sooner after its last heartbeat than those of `sjc`.
BRIEF = """
from tasks.store import leases
leases.EXPIRE_SECONDS, leases.BEAT_SECONDS = 5.0, 1.0
from flows.commands.main import main
main()
"""


def command(judge: str, steps: int, *options: str) -> list[str]:
    """`sjc run` of one asset, without `sjc`."""
    Path("m.csv").write_text("id,prompt\nduck,a yellow duck\n")
    return ["run", "m.csv", "--devices", "cpu", *tiny(judge, steps=steps), *options]


def attempts(store: Store) -> list[dict[str, Any]]:
    (asset_id,) = {key.split("/")[1] for key in store.list("assets/")}
    return asset_attempts(store, asset_id)


def test_another_machine_goes_on_where_one_was_lost(
    network: FaultProxy,
    judge: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sjc: Callable[..., Said],
) -> None:
    """kill -9 on machine A: machine B has lost at most one checkpoint's worth of steps."""
    store = open_store(os.environ["SJC_STORE"])
    lost = subprocess.Popen(
        [
            *(sys.executable, "-c", BRIEF),
            *command(judge, 100_000, "--checkpoint-to-store", "--scratch", "A"),
        ],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    steps: list[int] = []  # of A's checkpoints
    try:
        while len(steps) < 2:
            assert lost.poll() is None, lost.communicate()
            for path in Path("A/fields").glob("*.checkpoint"):
                if (step := int(read_checkpoint(path)[1]["step"])) not in steps:
                    steps.append(step)
            time.sleep(0.2)  # a checkpoint lasts a second or longer
    finally:
        os.killpg(lost.pid, signal.SIGKILL)
        lost.communicate()

    def stop(pool: DevicePool, job: Any, timeout: float | None) -> None:
        """A timeout as soon as a step is done: 100,000 of them are only for A to be in."""
        if job.first_step is not None and job.last_step > job.first_step:
            job.end("timeout", "Timeout", "that will do")

    monkeypatch.setattr(DevicePool, "_check_time", stop)
    said = sjc(*command(judge, 100_000, "--checkpoint-to-store", "--scratch", "B"))
    assert said.code == 1, said.err
    killed, ended = attempts(store)
    assert (killed["status"], ended["status"]) == ("interrupted", "timeout")
    assert 0 < ended["first_step"] in steps, "B went on from A's last checkpoint or the one before"
    assert ended["first_step"] < ended["last_step"]


def test_credentials_that_expire_end_the_run_and_lose_nothing(
    network: FaultProxy, judge: str, sjc: Callable[..., Said]
) -> None:
    """Not even the asset's failure can be written any more; its field waits in the scratch."""
    store = open_store(os.environ["SJC_STORE"])
    expired: dict[str, Any] = {"times": None, "status": 403, "code": "ExpiredToken"}
    network.add(Fault("status", r"^PUT .*/assets/.*/(mesh|preview)", **expired))
    network.add(Fault("status", r"^PUT .*/attempt\.json", skip=1, **expired))
    said = sjc(*command(judge, 20, "--checkpoint-to-store"))
    assert said.code == 3, said.err
    assert "the credentials have expired; renew them and run the same command again" in said.err
    assert "Traceback" not in said.err

    network.clear()
    said = sjc(*command(judge, 20, "--checkpoint-to-store"))
    assert said.code == 0, said.err
    first, second = attempts(store)
    assert (first["status"], second["status"]) == ("interrupted", "ok")
    assert "queue" not in second["timings"], "nothing is optimised again"
    assert list(store.list("checkpoints/")) == []
    assert verify_store(store) == []
