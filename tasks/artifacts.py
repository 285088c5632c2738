"""What Prefect's pages show of a run. A view only: a server that is gone must not stop a run."""

import base64
import contextlib
import io
import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from PIL import Image
from prefect.artifacts import (
    create_image_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.exceptions import PrefectException

PROGRESS_SECONDS = 5.0
PREVIEW_PIXELS = 1100  # width; in the database for as long as the run is

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def _optional() -> Iterator[None]:
    try:
        yield
    except (httpx.HTTPError, PrefectException) as error:
        _log.warning("Prefect shows less than it could: %s", error)


def artifact_key(kind: str, name: str) -> str:
    """A valid key: lower-case letters, digits and dashes."""
    return re.sub("[^a-z0-9]+", "-", f"{kind}-{name}".lower()).strip("-")


class Progress:
    """A progress artifact that is updated at most every five seconds."""

    def __init__(self, name: str) -> None:
        self._id: UUID | None = None
        self._told = time.monotonic()
        with _optional():
            created = create_progress_artifact(
                0.0, key=artifact_key("progress", name), description=f"Optimising {name}"
            )
            assert isinstance(created, UUID)
            self._id = created

    def update(self, share: float) -> None:
        """share: of the steps, [0, 1]. The last update is never held back."""
        due = time.monotonic() - self._told >= PROGRESS_SECONDS or share >= 1
        if self._id is None or not due:
            return
        self._told = time.monotonic()
        with _optional():
            update_progress_artifact(self._id, progress=100 * share)


def show_preview(name: str, picture: Path, caption: str) -> None:
    """An image artifact with the picture inside, so that no bucket has to be reachable."""
    with Image.open(picture) as image:
        image.thumbnail((PREVIEW_PIXELS, PREVIEW_PIXELS))
        data = io.BytesIO()
        image.convert("P", palette=Image.Palette.ADAPTIVE).save(data, "PNG", optimize=True)
    url = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
    with _optional():
        create_image_artifact(url, key=artifact_key("preview", name), description=caption)


def show_table(key: str, rows: list[dict[str, Any]], description: str) -> None:
    with _optional():
        create_table_artifact(rows, key=key, description=description)


def show_text(key: str, markdown: str, description: str) -> None:
    with _optional():
        create_markdown_artifact(markdown, key=key, description=description)
