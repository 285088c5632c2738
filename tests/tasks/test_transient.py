"""Which errors are tried again, and that a retry belongs to the same attempt."""

import errno
from typing import Any

import pytest
from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    ReadTimeoutError,
    SSLError,
)
from prefect.client.schemas.objects import TaskRun
from prefect.states import Failed

from tasks.publish import publish_asset
from tasks.store import AlreadyCommitted, NotInStore, StoreError
from tasks.transient import is_transient

URL = {"endpoint_url": "http://x"}


def reply(status: int, code: str) -> ClientError:
    answer: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "PutObject")


def explained(cause: Exception) -> StoreError:
    error = StoreError("Cannot write s3://bucket/key")
    error.__cause__ = cause
    return error


PASSES = [
    reply(500, "InternalError"), reply(503, "SlowDown"), reply(400, "RequestTimeout"),
    reply(429, "TooManyRequests"), EndpointConnectionError(**URL), ConnectTimeoutError(**URL),
    ReadTimeoutError(**URL), ConnectionResetError(), TimeoutError(),
]  # fmt: skip
STAYS = [
    reply(403, "AccessDenied"), reply(404, "NoSuchBucket"), reply(400, "ExpiredToken"),
    reply(501, "NotImplemented"), NoCredentialsError(), SSLError(**URL, error="certificate"),
    OSError(errno.ENOSPC, "full"), PermissionError(), MemoryError(), ValueError("a bug"),
    AlreadyCommitted("x"), NotInStore("x"), StoreError("x"),
]  # fmt: skip


@pytest.mark.parametrize("error", PASSES, ids=repr)
def test_what_passes_is_tried_again(error: Exception) -> None:
    assert is_transient(error)
    assert is_transient(explained(error)), "and so is what it was the reason of"


@pytest.mark.parametrize("error", STAYS, ids=repr)
def test_what_stays_is_not(error: Exception) -> None:
    assert not is_transient(error)
    assert not is_transient(explained(error))


def test_tasks_wait_longer_each_time() -> None:
    assert publish_asset.retries == 4
    assert publish_asset.retry_delay_seconds == [10, 20, 40, 80]
    ask: Any = publish_asset.retry_condition_fn
    run = TaskRun.model_construct()
    assert ask(publish_asset, run, Failed(data=explained(reply(503, "SlowDown"))))
    assert not ask(publish_asset, run, Failed(data=ValueError("a bug")))
