"""Charts as inline SVG, coloured by the page's style sheet, with words for who hears the page."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from tasks.pages.html import escaped
from tasks.tables.columns import Column
from tasks.tables.schemas import CURVES

WIDTH, HEIGHT, TOP = 300, 96, 6  # of the bars, in units of the drawing
MOST_BINS = 24
ACROSS, MARGIN = 3, 20  # of a sheet
SHEET_CSS = (
    "text{font:11px sans-serif;fill:#555}.bar{fill:#5c84be}.axis{stroke:#777}"
    ".median{stroke:#c85040;stroke-width:2}"
)


def number(value: float) -> str:
    """Three digits, or all of a large one."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def histogram(column: Column, values: Sequence[float]) -> str:
    """How a metric is spread, as a figure: bars over its values, a line at the median.

    values: at least one.
    """
    heard = (
        f"{column.name} of {len(values)} assets: {number(min(values))} to {number(max(values))},"
        f" median {number(median(values))}"
    )
    better = f"better: {column.better}" if column.better else ""
    return f"""<figure title="{escaped(column.meaning)}">
<figcaption><b>{escaped(column.name)}</b> <span>{_median(column, values)}</span>
<small>{better}</small></figcaption>
<svg viewBox="0 0 {WIDTH} {TOP + HEIGHT + 18}" role="img" aria-label="{escaped(heard)}">
{_bars(column, values)}
</svg></figure>"""


def histogram_sheet(measured: Sequence[tuple[Column, Sequence[float]]]) -> bytes:
    """All columns' histograms as one SVG file that needs no style sheet."""
    across = max(1, min(ACROSS, len(measured)))
    width, height = WIDTH + 2 * MARGIN, TOP + HEIGHT + 4 * MARGIN
    panels = []
    for place, (column, values) in enumerate(measured):
        row, left = divmod(place, across)
        better = f", better: {column.better}" if column.better else ""
        panels.append(
            f'<g transform="translate({left * width + MARGIN} {row * height + 2 * MARGIN})">'
            f'<text y="-{MARGIN / 2:.0f}">{escaped(column.name)}: {_median(column, values)}{better}'
            f"</text>{_bars(column, values)}</g>"
        )
    size = f'width="{across * width}" height="{-(-len(measured) // across) * height}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{SHEET_CSS}</style>'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(panels)}</svg>\n'
    ).encode()


def _bars(column: Column, values: Sequence[float]) -> str:
    """Shares are drawn from 0 to 1, so that two of them compare; others over what occurs."""
    low, high = (0.0, 1.0) if column.high == 1 else (float(min(values)), float(max(values)))
    if low == high:
        low, high = low - 0.5, high + 0.5
    bins = min(MOST_BINS, max(8, round(2 * len(values) ** 0.5)))
    counts, edges = np.histogram(np.clip(values, low, high), bins, (low, high))
    step, tallest = WIDTH / bins, int(counts.max())
    bars = []
    for k, count in enumerate(counts):
        if not count:
            continue
        tall = max(2.0, HEIGHT * count / tallest)
        about = f"{number(edges[k])} to {number(edges[k + 1])}: {count}"
        bars.append(
            f'<rect class="bar" x="{k * step + 0.5:.1f}" y="{TOP + HEIGHT - tall:.1f}"'
            f' width="{step - 1:.1f}" height="{tall:.1f}" rx="1"><title>{about}</title></rect>'
        )
    at = WIDTH * (min(max(float(median(values)), low), high) - low) / (high - low)
    return f"""{"".join(bars)}
<line class="axis" x1="0" x2="{WIDTH}" y1="{TOP + HEIGHT}" y2="{TOP + HEIGHT}"/>
<line class="median" x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="{TOP + HEIGHT}"/>
<text x="{WIDTH / 2:.0f}" y="{TOP + HEIGHT + 14}" text-anchor="middle">tallest bar: {tallest}</text>
<text x="0" y="{TOP + HEIGHT + 14}">{number(low)}</text>
<text x="{WIDTH}" y="{TOP + HEIGHT + 14}" text-anchor="end">{number(high)}</text>"""


class Line(NamedTuple):
    """What an attempt's steps measured; `history` is a row of the table of this name."""

    title: str
    history: Mapping[str, Any]
    bad: bool = False  # whether the attempt failed


def curves(lines: Sequence[Line]) -> str:
    """A chart for each measure over the steps, with a line for each attempt, at least one."""
    charts = (_curve(column, lines) for column in CURVES[1:])
    return f'<div class="charts">{"".join(charts)}</div>'


def _curve(column: Column, lines: Sequence[Line]) -> str:
    """The highest and lowest hundredths are cut off: a first step may be ten times the rest."""
    values = np.concatenate([line.history[column.name] for line in lines])
    low, high = map(float, np.quantile(values, (0.01, 0.99)))
    low, high = (low, high) if low < high else (low - 0.5, high + 0.5)
    last = max(line.history["steps"][-1] for line in lines)
    drawn = []
    for title, history, bad in lines:
        across = WIDTH * np.array(history["steps"]) / last
        down = HEIGHT * np.clip((high - np.array(history[column.name])) / (high - low), 0, 1)
        points = " ".join(f"{x:.0f},{TOP + y:.0f}" for x, y in zip(across, down, strict=True))
        end = f"{title}: {number(history[column.name][-1])} at step {history['steps'][-1]:,}"
        drawn.append(
            f'<polyline class="curve{" bad" * bad}" points="{points}">'
            f"<title>{escaped(end)}</title></polyline>"
        )
    ends = [line.history[column.name][-1] for line in lines]
    ended = f"ends at {number(median(ends))}" + " (median)" * (len(lines) > 1)
    heard = f"{column.name} over {last:,} steps, {number(low)} to {number(high)}, {ended}"
    bottom = TOP + HEIGHT
    return f"""<figure title="{escaped(column.meaning)}">
<figcaption><b>{column.name}</b> <span>{ended}</span></figcaption>
<svg viewBox="0 0 {WIDTH} {bottom + 18}" role="img" aria-label="{heard}">
<line class="axis" x1="0" x2="{WIDTH}" y1="{bottom}" y2="{bottom}"/>{"".join(drawn)}
<text x="0" y="{bottom + 14}">{number(low)} to {number(high)}</text>
<text x="{WIDTH}" y="{bottom + 14}" text-anchor="end">step {last:,}</text>
</svg></figure>"""


def share_bar(share: float) -> str:
    """A bar of this length, a share in [0, 1]."""
    return (
        '<svg class="share" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="rest" width="100" height="8"/>'
        f'<rect class="bar" width="{100 * share:.1f}" height="8"/></svg>'
    )


def _median(column: Column, values: Sequence[float]) -> str:
    unit = f" {column.unit}" if column.unit else ""
    return f"median {number(median(values))}{unit}"
