"""The pictures on a dataset's card: a wall of its assets, and histograms of their metrics."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from tasks.columns import WHOLE, Column
from tasks.curate_parts import read_verified
from tasks.curate_selection import Sample
from tasks.store import Store
from tasks.table_reader import FILES

TILES, ACROSS, TILE, GAP = 60, 10, 112, 6  # of the wall; in pixels
PANEL_WIDTH, PANEL_HEIGHT, PANELS_ACROSS, MARGIN = 300, 200, 4, 18
FAINTEST = 8  # levels from white that count as the object
BINS = 24
INK, FAINT, BAR, MEDIAN = (32, 32, 36), (120, 120, 128), (92, 132, 190), (200, 80, 60)
SMOOTH = 2  # drawn so much larger, for smooth edges


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
    return _png(sheet.quantize(256, dither=Image.Dither.NONE))


def _tile(store: Store, sample: Sample) -> Image.Image | None:
    """The asset's picture, or None if it has none that can be shown."""
    if sample.picture is None:
        return None
    try:
        with Image.open(io.BytesIO(read_verified(store, *sample.picture))) as image:
            picture = image.convert("RGB")
    except UnidentifiedImageError:
        return None
    # The object alone: pictures are rendered on white, with room for every pose.
    drawn = ImageChops.difference(picture, Image.new("RGB", picture.size, "white")).convert("L")
    picture = picture.crop(drawn.point(lambda level: 255 * (level > FAINTEST)).getbbox())
    return ImageOps.contain(picture, (TILE, TILE), Image.Resampling.LANCZOS)


def histograms(measured: Sequence[tuple[Column, np.ndarray]]) -> bytes:
    """A PNG with a panel for each column: counts over its values, and a line at the median."""
    across = max(1, min(PANELS_ACROSS, len(measured)))
    down = max(1, math.ceil(len(measured) / across))
    sheet = Image.new("RGB", (across * PANEL_WIDTH, down * PANEL_HEIGHT), "white")
    for k, (column, values) in enumerate(measured):
        row, place = divmod(k, across)
        sheet.paste(_panel(column, values), (place * PANEL_WIDTH, row * PANEL_HEIGHT))
    return _png(sheet.quantize(64, dither=Image.Dither.NONE))


def _panel(column: Column, values: np.ndarray) -> Image.Image:
    width, height = PANEL_WIDTH * SMOOTH, PANEL_HEIGHT * SMOOTH
    panel = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(panel)
    title, label = (ImageFont.load_default(size * SMOOTH) for size in (13, 10))
    left, right, top, bottom = (
        MARGIN * SMOOTH, width - MARGIN * SMOOTH, 46 * SMOOTH, height - 30 * SMOOTH
    )  # fmt: skip
    better = f"  ({column.better} is better)" if column.better else ""
    unit = f", {column.unit}" if column.unit else ""
    pen.text((left, 8 * SMOOTH), column.name + unit, INK, title)
    pen.text((right, 10 * SMOOTH), better, FAINT, label, anchor="ra")
    counts, edges = _counts(column, values)
    span = edges[-1] - edges[0]

    def x(value: float) -> float:
        return left + float((value - edges[0]) / span) * (right - left)

    for count, start, end in zip(counts, edges[:-1], edges[1:], strict=True):
        if count:
            tip = bottom - max(SMOOTH, float(count / counts.max()) * (bottom - top))
            pen.rectangle((x(start) + SMOOTH / 2, tip, x(end) - SMOOTH / 2, bottom), BAR)
    pen.line((left, bottom, right, bottom), FAINT, SMOOTH)
    middle = float(np.median(values))
    pen.line((x(middle), top - 4 * SMOOTH, x(middle), bottom), MEDIAN, SMOOTH)
    below = bottom + 5 * SMOOTH
    inset = 0.5 if column.type == WHOLE and edges[0] % 1 == 0.5 else 0.0  # to the bars' middles
    pen.text((left, below), number(edges[0] + inset), FAINT, label)
    pen.text((right, below), number(edges[-1] - inset), FAINT, label, anchor="ra")
    pen.text(((left + right) / 2, below), f"median {number(middle)}", MEDIAN, label, anchor="ma")
    pen.text((left, top - 2 * SMOOTH), f"{counts.max():,}", FAINT, label, anchor="ld")
    return panel.resize((PANEL_WIDTH, PANEL_HEIGHT), Image.Resampling.BOX)


def number(value: float) -> str:
    """Four digits, or a whole number with its thousands apart."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _counts(column: Column, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bars and their edges: one for each whole number where those are few."""
    low, high = float(values.min()), float(values.max())
    if column.type == WHOLE and high - low < BINS:
        around = max(0, 2 - (high - low))
        return np.histogram(values, np.arange(low - 0.5 - around, high + 1 + around))
    if column.low == 0 and column.high == 1:
        return np.histogram(values, BINS, (0, 1))
    return np.histogram(values, BINS)


def _png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    return data.getvalue()
