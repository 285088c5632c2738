"""A read that fails never counts as damage: a sample of `read_faults`, or all of it.

`make sweep` tries every cell. SWEEP_SEED chooses another sample.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
import read_faults
from command_line import Said
from fault_proxy import FaultProxy
from read_faults import MANIFEST, Cell, local_fault, s3_fault, try_cell
from store_snapshots import restore, snapshot

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_api")]

SEED = int(os.environ.get("SWEEP_SEED", "15"))
WHOLE = os.environ.get("SWEEP") == "all"
CELLS = read_faults.matrix() if WHOLE else read_faults.some_cells(SEED, cheap=18, flows=2)

BUCKET, URL = "faults", "s3://faults/some/store"


def of(place: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("cell", [c for c in CELLS if c.place == place], ids=str)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, bytes]]:
    """A whole store in a folder, and its files."""
    folder = tmp_path_factory.mktemp("filled")
    (folder / "m.csv").write_text(MANIFEST)
    url = str(folder / "store")
    read_faults.fill(url, folder)
    return url, snapshot(url)


@pytest.fixture(scope="module")
def bucket(
    s3_endpoint: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, bytes]]:
    """The files of such a store in a bucket."""
    folder = tmp_path_factory.mktemp("filled")
    (folder / "m.csv").write_text(MANIFEST)
    with pytest.MonkeyPatch.context() as patch:
        user(patch, s3_endpoint)
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        read_faults.fill(URL, folder)
        yield snapshot(URL, s3_endpoint)


def user(patch: pytest.MonkeyPatch, endpoint: str) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        patch.delenv(name)
    patch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    patch.setenv("AWS_ACCESS_KEY_ID", "tester")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def surroundings(prefect_api: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    (tmp_path / "m.csv").write_text(MANIFEST)


def options(cell: Cell, judge: str) -> tuple[str, ...]:
    return ("--judge", judge) if cell.command == "evaluate" else ()


@of("local")
def test_in_a_folder(
    cell: Cell,
    local: tuple[str, dict[str, bytes]],
    surroundings: None,
    judge: str,
    sjc: Callable[..., Said],
) -> None:
    url, files = local
    try:
        fault = local_fault(Path(url), cell.kind, cell.fault)
        try_cell(cell, url, sjc, fault, options(cell, judge))
    finally:
        restore(url, files)


@of("s3")
def test_on_a_server(
    cell: Cell,
    bucket: dict[str, bytes],
    s3_endpoint: str,
    surroundings: None,
    judge: str,
    sjc: Callable[..., Said],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host, port = s3_endpoint.removeprefix("http://").split(":")
    with FaultProxy((host, int(port))) as proxy:
        user(monkeypatch, proxy.url)
        read_faults.quick_network(monkeypatch)
        try:
            fault = s3_fault(proxy, cell.kind, cell.fault)
            try_cell(cell, URL, sjc, fault, options(cell, judge), s3_endpoint)
        finally:
            restore(URL, bucket, s3_endpoint)


def test_the_commands_work_without_a_fault(
    local: tuple[str, dict[str, bytes]],
    surroundings: None,
    judge: str,
    sjc: Callable[..., Said],
) -> None:
    """Else no fault would prove anything."""
    url, files = local
    for command in read_faults.COMMANDS:
        if command in read_faults.FLOWS and not WHOLE:
            continue
        cell = Cell("local", "marker", "EIO", command)
        fault = read_faults.local_fault(Path(url) / "elsewhere", "marker", "EIO")
        struck = try_cell(cell, url, sjc, fault, options(cell, judge))
        assert not struck.times
    restore(url, files)
