"""Servers, networks and settings that people really have: tables and manifests go the same way."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import boto3
import pytest
from s3_manners import Manner, manners
from task_samples import fill

from tasks.manifest.reading import read_manifest
from tasks.store import open_store
from tasks.store.interface import StoreError
from tasks.tables.read import query

COUNT = "SELECT count(*) AS n FROM best_assets"
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture
def server(s3_environment: str, monkeypatch: pytest.MonkeyPatch) -> tuple[str, int]:
    """The live server, in an environment without proxies."""
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    address = urlsplit(s3_environment)
    assert address.hostname
    assert address.port
    return address.hostname, address.port


@pytest.fixture
def url(server: tuple[str, int], tmp_path: Path, made: set[str]) -> str:
    """A store with assets in its tables: one for the whole module."""
    url = "s3://manners/some/prefix"
    if url not in made:
        boto3.client("s3").create_bucket(Bucket="manners")
        fill(open_store(url), tmp_path)
        made.add(url)
    return url


@pytest.fixture(scope="module")
def made() -> set[str]:
    return set()


def use_all(url: str, folder: Path) -> None:
    """A store is written, its tables are read, and so is a manifest beside it."""
    name = f"lists/{folder.name}.csv"
    open_store(url).put_bytes(name, b"prompt\na duck\n")
    assert query(open_store(url, writable=False), COUNT).to_pylist() == [{"n": 5}]
    assert [row.prompt for row in read_manifest(f"{url}/{name}").rows] == ["a duck"]


@pytest.mark.parametrize("spelled", ["AWS_DEFAULT_REGION", "profile"])
@pytest.mark.parametrize(
    ("manner", "detail"), [("region", "garage"), ("named region", "eu-central-1")]
)
def test_the_region_that_the_server_wants(
    server: tuple[str, int], url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    manner: Manner, detail: str, spelled: str,
) -> None:  # fmt: skip
    with manners(server, manner, detail) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy)
        if manner == "named region":
            pass  # the replies say it
        elif spelled == "profile":
            monkeypatch.delenv("AWS_DEFAULT_REGION")
            (tmp_path / "config").write_text(f"[profile lab]\nregion = {detail}\n")
            monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
            (tmp_path / "keys").write_text(
                "[lab]\naws_access_key_id = a\naws_secret_access_key = b\n"
            )
            monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "keys"))
            monkeypatch.setenv("AWS_PROFILE", "lab")
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
                monkeypatch.delenv(name)
        else:
            monkeypatch.setenv("AWS_DEFAULT_REGION", detail)
        use_all(url, tmp_path)


def test_an_endpoint_with_a_path(
    server: tuple[str, int], url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with manners(server, "path", "/storage/v1/s3") as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"{proxy}/storage/v1/s3")
        use_all(url, tmp_path)


def test_a_server_behind_a_proxy(
    server: tuple[str, int], url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with manners(server, "forward") as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy)
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://s3.corp.invalid:9000")
        use_all(url, tmp_path)


@pytest.mark.parametrize(
    "refusal",
    [
        "403 SignatureDoesNotMatch",  # Google Cloud Storage
        "403 AccessDenied",
        "400 InvalidArgument",
        "411 MissingContentLength",
        "501 NotImplemented",
        "405 MethodNotAllowed",
    ],
)
def test_a_server_that_takes_no_checksums_is_sent_none(
    server: tuple[str, int], url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    refusal: str,
) -> None:  # fmt: skip
    with manners(server, "refuses checksums", refusal) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy)
        use_all(url, tmp_path)


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        ("AccessDenied", "these credentials may not do that; allow them to read, write and delete"),
        ("SignatureDoesNotMatch", "refuses what is written there, with and without a checksum"),
    ],
)
def test_credentials_that_may_only_read_read(
    server: tuple[str, int], url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    code: str, advice: str,
) -> None:  # fmt: skip
    with manners(server, "read-only", code) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy)
        assert query(open_store(url, writable=False), COUNT).to_pylist() == [{"n": 5}]
        with pytest.raises(StoreError, match=f"Cannot use {url}/?: .*{advice}"):
            open_store(url)


def test_an_address_without_a_bucket_is_named_as_it_was_written() -> None:
    with pytest.raises(StoreError, match="Cannot use s3://: this is not a valid bucket"):
        open_store("s3://")
