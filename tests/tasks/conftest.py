"""Stores to test against: a directory, and a bucket on a live S3 server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import boto3
import pytest
from store_snapshots import Files, restore, snapshot
from task_samples import Write, fill, make, spec

from tasks.store import open_store
from tasks.store.interface import Store


@pytest.fixture
def s3_url(s3_environment: str, tmp_path: Path) -> str:
    """A fresh bucket and a prefix in it."""
    bucket = "bucket-" + tmp_path.name.replace("_", "-").lower()[-40:].strip("-")
    boto3.client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/some/prefix"


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """The same test against both back ends."""
    if request.param == "local":
        return open_store(tmp_path / "store")
    return open_store(request.getfixturevalue("s3_url"))


@pytest.fixture(scope="session")
def snapshots() -> dict[str, Files]:
    """What `kept_store` has made, by address."""
    return {}


@pytest.fixture(params=["local", "s3"])
def kept_store(
    request: pytest.FixtureRequest, tmp_path: Path, snapshots: dict[str, Files]
) -> Callable[[str, Callable[[Store], object]], Store]:
    """A store by name and what fills it, always at the same address: made once, then put back."""

    def kept(name: str, fill: Callable[[Store], object]) -> Store:
        url = str(tmp_path.parent / name)
        if request.param == "s3":
            request.getfixturevalue("s3_environment")
            url = f"s3://{name}/some/prefix"
        if url in snapshots:
            restore(url, snapshots[url])
        else:
            if request.param == "s3":
                boto3.client("s3").create_bucket(Bucket=name)
            fill(open_store(url))
            snapshots[url] = snapshot(url)
        return open_store(url)

    return kept


@pytest.fixture
def whole(kept_store: Callable[..., Store], tmp_path: Path) -> Store:
    """A store with all that there can be in one."""

    def everything(store: Store) -> None:
        fill(store, tmp_path)
        make(store, tmp_path, spec(), "run2", "failed")

    return kept_store("whole-store", everything)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a manifest, m.csv by default."""

    def write(content: str | bytes, name: str = "m.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write
