"""Which errors are tried again, and that a retry belongs to the same attempt."""

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    ReadTimeoutError,
    SSLError,
)
from prefect import flow, task
from prefect.client.schemas.objects import TaskRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Failed

from sjc_engine.mesh import unwrap
from tasks.stages.publish import publish
from tasks.stages.retries import STAGE, is_transient
from tasks.store.interface import AlreadyCommitted, NotInStore, StoreError, WrongBytes

# xatlas's process, in which somebody kills it as often as the file has letters.
KILLED = """
import os, pathlib, runpy, signal
left = pathlib.Path({left!r})
if text := left.read_text():
    left.write_text(text[1:])
    os.kill(os.getpid(), signal.SIGKILL)
runpy.run_path({real!r}, run_name="__main__")
"""

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
    ReadTimeoutError(**URL), ConnectionResetError(), TimeoutError(), WrongBytes("x"),
]  # fmt: skip
STAYS = [
    reply(403, "AccessDenied"), reply(404, "NoSuchBucket"), reply(400, "ExpiredToken"),
    reply(501, "NotImplemented"), NoCredentialsError(), SSLError(**URL, error=OSError("TLS")),
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
    assert publish.retries == 4
    assert publish.retry_delay_seconds == [10, 20, 40, 80]
    ask: Any = publish.retry_condition_fn
    run = TaskRun.model_construct()
    assert ask(publish, run, Failed(data=explained(reply(503, "SlowDown"))))
    assert not ask(publish, run, Failed(data=ValueError("a bug")))


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 2])
def test_a_killed_xatlas_is_started_once_more(
    kills: int, prefect_api: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By Prefect's own engine, with the real process and the real SIGKILL, as the kernel sends."""
    (tmp_path / "xatlas.py").write_text(
        KILLED.format(left=str(tmp_path / "left"), real=str(unwrap._PROCESS))
    )
    (tmp_path / "left").write_text("x" * kills)
    monkeypatch.setattr(unwrap, "_PROCESS", tmp_path / "xatlas.py")
    tetrahedron = (
        np.eye(4, 3, dtype=np.float32),
        np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [2, 0, 3]]),
    )

    @task(**STAGE | {"retry_delay_seconds": 0.1})
    def cut() -> int:
        return len(unwrap.unwrap(*tetrahedron, size=64).faces)

    with temporary_settings({PREFECT_API_URL: prefect_api}):
        state = flow(cut)(return_state=True)
    assert (tmp_path / "left").read_text() == ""
    if kills == 1:
        assert state.result() == 4
    else:
        with pytest.raises(unwrap.UnwrapKilled, match="memory is short"):
            state.result()
