"""What Prefect's pages show of a run. A view only: a server that is gone must not stop a run.

A `Board` sends it all from a separate thread, so that no asset ever waits for the server.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from uuid import UUID

import httpx
from PIL import Image
from prefect import runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import PrefectException
from prefect.utilities.context import get_task_and_flow_run_ids

from tasks.pages.html import data_uri

REQUEST_SECONDS = 60.0  # without an answer
UPDATE_SECONDS = 5.0  # between two updates of one artifact
PAUSE_SECONDS = 0.1  # after each request, so that hundreds of assets are a trickle all the same
CLOSE_SECONDS = 15.0  # for what is left to send when a run ends
HURRY_SECONDS = 3.0  # and when it is interrupted
MOST_WAITING = 200  # artifacts; more wait only while the server hangs
PREVIEWS = 300  # of a run: they are the largest thing that a run leaves in Prefect's database
PREVIEW_PIXELS = 1000  # width

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Artifact:
    """One artifact: what it is to show next, and where it is once it has been created."""

    about: dict[str, str]
    data: Any
    id: UUID | None = None
    sent: float = float("-inf")  # monotonic seconds


class Board:
    """The artifacts of a run. Of what has not been sent yet only the newest counts."""

    def __init__(self) -> None:
        self.previews = 0
        self._waiting: dict[Artifact, None] = {}  # a queue: the first is next
        self._changed = threading.Condition()
        self._deadline: float | None = None  # set when the run has ended
        self._sent = float("-inf")
        self._failed = False
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._work,), name="artifacts", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Sends what is left, but does not wait for ever."""
        seconds = CLOSE_SECONDS if kind is None or issubclass(kind, Exception) else HURRY_SECONDS
        with self._changed:
            self._deadline = time.monotonic() + seconds
            self._changed.notify_all()
        self._thread.join(seconds)

    def create(self, kind: str, key: str, data: Any, description: str) -> Artifact:
        """Shows an artifact with the task or flow run that calls this."""
        task_run_id, flow_run_id = get_task_and_flow_run_ids()
        about = {"type": kind, "key": key, "description": description}
        run = {"flow_run_id": flow_run_id, "task_run_id": task_run_id}
        artifact = Artifact(about | {name: str(id) for name, id in run.items() if id}, data)
        self.update(artifact, data)
        return artifact

    def update(self, artifact: Artifact, data: Any) -> None:
        """Shows `data` in the artifact, a few seconds later if it has only just been updated."""
        with self._changed:
            artifact.data = data
            if artifact not in self._waiting and len(self._waiting) < MOST_WAITING:
                self._waiting[artifact] = None
                self._changed.notify_all()

    def _work(self) -> None:
        client: SyncPrefectClient | None = None
        with ExitStack() as opened:
            while (artifact := self._next()) is not None:
                try:
                    if client is None:
                        # Its own: the flow's, which has no settings, is closed when that ends.
                        own = get_client({"timeout": REQUEST_SECONDS}, sync_client=True)
                        client = opened.enter_context(own)
                    self._send(client, artifact)
                except (httpx.HTTPError, PrefectException) as error:
                    if not self._failed:  # once is enough: the run does not depend on it
                        _log.warning("Prefect's pages show less than they could: %s", error)
                    self._failed = True

    def _next(self) -> Artifact | None:
        """Waits for an artifact that is due; None when there will be no more."""
        with self._changed:
            while True:
                now = time.monotonic()
                if self._deadline is not None and (not self._waiting or now > self._deadline):
                    return None
                due = {
                    artifact: max(artifact.sent + UPDATE_SECONDS, self._sent + PAUSE_SECONDS)
                    for artifact in self._waiting
                }
                for artifact, when in due.items():
                    if when <= now or self._deadline is not None:
                        del self._waiting[artifact]
                        return artifact
                self._changed.wait(min(due.values()) - now if due else None)

    def _send(self, client: SyncPrefectClient, artifact: Artifact) -> None:
        artifact.sent = self._sent = time.monotonic()
        # Not by the client's own methods: their events would keep every version for a week.
        if artifact.id is None:
            body = {**artifact.about, "data": artifact.data}
            artifact.id = UUID(client.request("POST", "/artifacts/", json=body).json()["id"])
        else:
            place, change = {"id": artifact.id}, {"data": artifact.data}
            client.request("PATCH", "/artifacts/{id}", json=change, path_params=place)


def artifact_key(kind: str, name: str) -> str:
    """A valid key: lower-case letters, digits and dashes."""
    return re.sub("[^a-z0-9]+", "-", f"{kind}-{name}".lower()).strip("-")


def show_progress(board: Board, name: str) -> Callable[[float], None]:
    """An artifact of how far an asset's optimisation is; call it with the share of its steps."""
    key, description = artifact_key("progress", name), f"Optimising {name}"
    artifact = board.create("progress", key, 0.0, description)
    return lambda share: board.update(artifact, 100 * share)


def show_preview(board: Board, name: str, picture: Path, caption: str) -> None:
    """An image artifact with the picture inside, so that no bucket has to be reachable."""
    if board.previews >= PREVIEWS:
        return
    board.previews += 1
    with Image.open(picture) as image:
        image.thumbnail((PREVIEW_PIXELS, PREVIEW_PIXELS))
        address = data_uri(image.convert("RGB"))
    board.create("image", artifact_key("preview", name), address, caption)


def describe_run(name: str, tags: Iterable[str], version: str) -> None:
    """Gives the flow run that calls this a name, more tags, and the version of its code."""
    flow_run_id = get_task_and_flow_run_ids()[1]
    if flow_run_id is None:
        return
    try:
        get_client(sync_client=True).update_flow_run(
            flow_run_id, version, name=name, tags=sorted({*runtime.flow_run.tags, *tags})
        )
    except (httpx.HTTPError, PrefectException) as error:
        _log.warning("the flow run keeps its first name: %s", error)
