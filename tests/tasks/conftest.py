"""Stores to test against: a directory, and a bucket on a live S3 server."""

from __future__ import annotations

from pathlib import Path

import boto3
import pytest
from task_samples import Write

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


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a manifest, m.csv by default."""

    def write(content: str | bytes, name: str = "m.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write
