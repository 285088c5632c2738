"""Charts as inline SVG, coloured by the page's style sheet, with words for who hears the page."""

from collections.abc import Sequence
from statistics import median

import numpy as np

from tasks.columns import Column
from tasks.html import escaped

WIDTH, HEIGHT, TOP = 300, 96, 6  # of the bars, in units of the drawing
MOST_BINS = 24


def number(value: float) -> str:
    """Three digits, or all of a large one."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def histogram(column: Column, values: Sequence[float]) -> str:
    """How a metric is spread: bars over its values, a line at the median. values: at least one.

    Shares are drawn from 0 to 1, so that two of them compare; others over what occurs.
    """
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
        told = f"{number(edges[k])} to {number(edges[k + 1])}: {count}"
        bars.append(
            f'<rect class="bar" x="{k * step + 0.5:.1f}" y="{TOP + HEIGHT - tall:.1f}"'
            f' width="{step - 1:.1f}" height="{tall:.1f}" rx="1"><title>{told}</title></rect>'
        )
    middle = float(median(values))
    at = WIDTH * (min(max(middle, low), high) - low) / (high - low)
    heard = (
        f"{column.name} of {len(values)} assets: {number(min(values))} to {number(max(values))},"
        f" median {number(middle)}"
    )
    better = f"better: {column.better}" if column.better else ""
    return f"""<figure title="{escaped(column.meaning)}">
<figcaption><b>{escaped(column.name)}</b> <span>median {number(middle)}{_unit(column)}</span>
<small>{better}</small></figcaption>
<svg viewBox="0 0 {WIDTH} {TOP + HEIGHT + 18}" role="img" aria-label="{escaped(heard)}">
{"".join(bars)}
<line class="axis" x1="0" x2="{WIDTH}" y1="{TOP + HEIGHT}" y2="{TOP + HEIGHT}"/>
<line class="median" x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="{TOP + HEIGHT}"/>
<text x="{WIDTH / 2:.0f}" y="{TOP + HEIGHT + 14}" text-anchor="middle">tallest bar: {tallest}</text>
<text x="0" y="{TOP + HEIGHT + 14}">{number(low)}</text>
<text x="{WIDTH}" y="{TOP + HEIGHT + 14}" text-anchor="end">{number(high)}</text>
</svg></figure>"""


def share_bar(share: float) -> str:
    """A bar as long as the share, [0, 1], says."""
    return (
        '<svg class="share" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="rest" width="100" height="8"/>'
        f'<rect class="bar" width="{100 * share:.1f}" height="8"/></svg>'
    )


def _unit(column: Column) -> str:
    return f" {column.unit}" if column.unit else ""
