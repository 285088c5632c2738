"""What makes a function a stage: a Prefect task that is run again after errors that pass."""

from typing import Any

from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import exponential_backoff

from sjc_engine.mesh.unwrap import UnwrapKilled
from tasks.store.interface import WrongBytes

_BUSY = {"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "RequestLimitExceeded"}


def is_transient(error: object) -> bool:
    """Whether the same again may work in a while: the network failed, or a server is busy or down.

    What an error says may be the reason of one that it was raised from. Everything else, a full
    disk, wrong credentials or a bug, would only fail again.
    """
    from botocore import exceptions
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    if isinstance(error, exceptions.SSLError | exceptions.ProxyConnectionError):
        return False
    network = exceptions.ConnectionError | exceptions.HTTPClientError | HTTPError
    server = exceptions.IncompleteReadError | ResponseParserError
    if isinstance(error, ConnectionError | TimeoutError | WrongBytes | network | server):
        return True
    if isinstance(error, exceptions.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code = error.response.get("Error", {}).get("Code", "")
        return status == 429 or 500 <= status != 501 or code in _BUSY
    return isinstance(error, BaseException) and is_transient(error.__cause__)


def _passes(task: Any, task_run: TaskRun, state: State[Any]) -> bool:
    """Prefect's question, before it runs a failed task again.

    A helper process that was killed gets one more chance: memory may be free by then.
    """
    killed_once = isinstance(state.data, UnwrapKilled) and task_run.run_count < 2
    return killed_once or is_transient(state.data)


# Options of a stage's Prefect task. Further tries belong to the same attempt at an asset.
STAGE: dict[str, Any] = {
    "cache_policy": NO_CACHE,
    "retries": 4,
    "retry_delay_seconds": exponential_backoff(10),  # 10, 20, 40 and 80 s
    "retry_jitter_factor": 0.3,  # many machines must not come back at the same moment
    "retry_condition_fn": _passes,
}
