"""One picture of a run: the previews of its assets, one below the other."""

import io
from collections.abc import Sequence

from PIL import Image

from sjc_engine.asset_files import PREVIEW
from tasks.records.documents import asset_manifest, committed_files
from tasks.store.interface import Damaged, NotInStore, Store, read_committed
from tasks.store.layout import picture_key

MOST = 24  # assets; more would make a picture that nobody scrolls through
WIDTH = 1400  # pixels


def write_sheet(store: Store, run_id: str, asset_ids: Sequence[str]) -> None:
    """Puts runs/{run_id}.png, for the first 24 of the assets, unless none has a preview.

    Raises `StoreError` for one that could not be read.
    """
    previews = [p for p in (_preview(store, k) for k in asset_ids[:MOST]) if p]
    if not previews:
        return
    sheet = Image.new("RGB", (WIDTH, sum(p.height for p in previews)), "white")
    top = 0
    for preview in previews:
        sheet.paste(preview, (0, top))
        top += preview.height
    data = io.BytesIO()
    sheet.save(data, "PNG", optimize=True)
    store.put_bytes(picture_key(run_id), data.getvalue(), replace=True)


def _preview(store: Store, asset_id: str) -> Image.Image | None:
    """None for a picture that is missing or damaged."""
    try:
        manifest = asset_manifest(store, asset_id)
        preview = committed_files(asset_id, manifest).get(PREVIEW) if manifest else None
        return read_picture(store, preview.key, WIDTH) if preview else None
    except (Damaged, NotInStore):
        return None


def read_picture(store: Store, key: str, size: int) -> Image.Image:
    """The first frame of a committed picture, RGB, at most `size` pixels wide and high.

    Raises `Damaged`, `NotInStore`, and `StoreError`.
    """

    def decode(data: bytes) -> Image.Image:
        try:
            with Image.open(io.BytesIO(data)) as image:
                small = image.convert("RGB")
        except (OSError, SyntaxError, EOFError) as error:  # what PIL has for damage
            raise ValueError(f"it is not a picture: {error}") from error
        small.thumbnail((size, size), Image.Resampling.LANCZOS)
        return small

    return read_committed(store, key, decode)
