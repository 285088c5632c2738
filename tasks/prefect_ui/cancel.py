"""What people cancel on Prefect's pages, or through its API, during a run.

The server only takes notes: tasks run in this process, so it is for us to ask.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextvars import copy_context
from uuid import UUID

import httpx
from prefect import runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter
from prefect.exceptions import PrefectException

ASK_SECONDS = 10.0  # a thousand runs at once are two hundred requests a second

_ENDING = {"state": {"type": {"any_": ["CANCELLING", "CANCELLED"]}}}


@contextlib.contextmanager
def watch_cancels(task: Callable[[str], object], run: Callable[[], object]) -> Iterator[None]:
    """Calls `task` with the name of each cancelled task run of this flow run, again and again,
    and `run` once when the flow run, or the one that it is a part of, is cancelled.

    Both are called from a separate thread. A server that is gone cancels nothing.
    """
    if runtime.flow_run.id is None:
        yield
        return
    own, root = UUID(runtime.flow_run.id), UUID(runtime.flow_run.root_flow_run_id)
    ending = threading.Event()

    def poll() -> None:
        earlier: set[UUID] | None = None  # of a flow run that is run again
        with get_client(sync_client=True) as client:
            while not ending.wait(ASK_SECONDS if earlier is not None else 0):
                with contextlib.suppress(httpx.HTTPError, PrefectException):
                    found = _cancelled_tasks(client, own)
                    earlier = set(found) if earlier is None else earlier
                    for task_run in found.keys() - earlier:
                        task(found[task_run])
                    if _is_cancelled(client, [own, root]):
                        run()
                        return

    thread = threading.Thread(target=copy_context().run, args=(poll,), name="cancels", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join(2.0)  # a request that hangs is none of ours


def _cancelled_tasks(client: SyncPrefectClient, flow_run: UUID) -> dict[UUID, str]:
    found = client.read_task_runs(
        flow_run_filter=FlowRunFilter.model_validate({"id": {"any_": [flow_run]}}),
        task_run_filter=TaskRunFilter.model_validate(_ENDING),
    )
    return {run.id: run.name for run in found}


def _is_cancelled(client: SyncPrefectClient, flow_runs: list[UUID]) -> bool:
    wanted = FlowRunFilter.model_validate({"id": {"any_": flow_runs}, **_ENDING})
    return bool(client.read_flow_runs(flow_run_filter=wanted, limit=1))
