"""Stores to test against: a directory, and a bucket on a live S3 server."""

from __future__ import annotations

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
def whole_files() -> dict[str, Files]:
    """What `whole` has made, by address."""
    return {}


@pytest.fixture(params=["local", "s3"])
def whole(request: pytest.FixtureRequest, tmp_path: Path, whole_files: dict[str, Files]) -> Store:
    """A store with all that there can be in one, always at the same address."""
    url = str(tmp_path.parent / "whole-store")
    if request.param == "s3":
        request.getfixturevalue("s3_environment")
        url = "s3://whole-store/some/prefix"
    if url in whole_files:
        restore(url, whole_files[url])
    else:
        if request.param == "s3":
            boto3.client("s3").create_bucket(Bucket="whole-store")
        fill(open_store(url), tmp_path)
        make(open_store(url), tmp_path, spec(), "run2", "failed")
        whole_files[url] = snapshot(url)
    return open_store(url)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a manifest, m.csv by default."""

    def write(content: str | bytes, name: str = "m.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write
