"""The picture on a dataset's card: a wall of its assets."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from tasks.curate_selection import Sample
from tasks.documents import read_file
from tasks.store import Store
from tasks.table_reader import FILES

TILES, ACROSS, TILE, GAP = 60, 10, 112, 6  # of the wall; in pixels
FAINTEST = 8  # levels from white that count as the object


def wall(store: Store, samples: Sequence[Sample]) -> bytes:
    """A PNG of small pictures of the first 60 assets. Ids are hashes: they are chosen blindly."""
    shown = samples[:TILES]
    across = min(ACROSS, math.ceil(math.sqrt(2 * len(shown))))
    width, height = (n * (TILE + GAP) + GAP for n in (across, math.ceil(len(shown) / across)))
    sheet = Image.new("RGB", (width, height), "white")
    with ThreadPoolExecutor(FILES) as pool:
        tiles = pool.map(lambda sample: _tile(store, sample), shown)
        for k, tile in enumerate(tiles):
            if tile:
                row, place = divmod(k, across)
                left, top = (GAP + n * (TILE + GAP) for n in (place, row))
                sheet.paste(
                    tile, (left + (TILE - tile.width) // 2, top + (TILE - tile.height) // 2)
                )
    data = io.BytesIO()
    sheet.quantize(256, dither=Image.Dither.NONE).save(data, "PNG", optimize=True)
    return data.getvalue()


def _tile(store: Store, sample: Sample) -> Image.Image | None:
    """The asset's picture, or None if it has none that can be shown."""
    if sample.picture is None:
        return None
    try:
        with Image.open(io.BytesIO(read_file(store, sample.picture))) as image:
            picture = image.convert("RGB")
    except UnidentifiedImageError:
        return None
    # The object alone: pictures are rendered on white, with room for every pose.
    drawn = ImageChops.difference(picture, Image.new("RGB", picture.size, "white")).convert("L")
    picture = picture.crop(drawn.point(lambda level: 255 * (level > FAINTEST)).getbbox())
    return ImageOps.contain(picture, (TILE, TILE), Image.Resampling.LANCZOS)
