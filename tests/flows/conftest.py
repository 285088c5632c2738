"""The command line in this process, devices that are warm, and a live S3 server."""

import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import boto3
import pytest
from command_line import Said

from flows import context
from flows.commands.main import main
from tasks.devices.pool import DevicePool


@pytest.fixture
def sjc(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Said]:
    """Runs a command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["sjc", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return Said(int(ended.value.code or 0), out, err)

    return call


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., DevicePool]]:
    """Warm devices, by their names: a process takes ten seconds of a core to start.

    A run that a store or an interrupt has ended closes its devices: then there are new ones.
    """
    made: dict[tuple[str, ...], DevicePool] = {}
    with ExitStack() as stack:

        def pool(*devices: str) -> DevicePool:
            if devices not in made or made[devices]._closing:
                scratch = tmp_path_factory.mktemp("devices")
                fresh = DevicePool(devices, scratch, scenes_per_device=None)
                made[devices] = stack.enter_context(fresh)
            return made[devices]

        yield pool


@pytest.fixture
def warm(pools: Callable[..., DevicePool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands in this process find their device warm."""
    monkeypatch.setattr(
        context, "start_devices", lambda *_, **__: context.surrounded_by(pool=pools("cpu"))
    )


@pytest.fixture
def bucket_url(s3_environment: str) -> str:
    """A prefix in the only bucket of a live S3 server, which is empty."""
    urllib.request.urlopen(f"{s3_environment}/moto-api/reset", data=b"").close()
    boto3.client("s3").create_bucket(Bucket="toys")
    return "s3://toys/lists"
