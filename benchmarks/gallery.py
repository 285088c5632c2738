"""The gallery's wall with many assets, in headless Chromium.

    python benchmarks/gallery.py [--assets 10000] [--rounds 5] [--json FILE]

Rows are made up, pictures too (one file, linked under every id). Printed, medians over rounds:
bytes of the page, time to the first contentful paint from a fresh browser's point of view, and the
time from a keystroke in the search box, a new filter or another order to the new wall, layout
included. Then 100 assets are rated by keys ("next", and 1 to 5): the time from each key to the
painted frame, median and worst.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from PIL import Image
from report import Report

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from browser import Page, browser

from sjc_engine.toybox.captions import NOUNS
from tasks.pages.gallery.build import FOLDER, index_page
from tasks.tables.schemas import COLUMNS, RATINGS

ACTIONS = {
    "search": "search.value = '{word}'; update();",
    "filter": "filters.replaceChildren(); addFilter('clip_score', '≥', '{number}'); update();",
    "sort": "sort.value = '{metric}'; update();",
}
TIMED = """(() => {{ const began = performance.now(); {action} void document.body.offsetHeight;
return performance.now() - began; }})()"""

RATED = 100
PAINTED = """keyTimes = [];
addEventListener("keydown", (event) => requestAnimationFrame(() => {
    const { port1, port2 } = new MessageChannel();  // its message comes after the frame
    port1.onmessage = () => keyTimes.push(performance.now() - event.timeStamp);
    port2.postMessage(0);
}), true)"""


def rows(count: int) -> list[dict[str, object]]:
    chance = random.Random(0)
    nouns = [noun for words in NOUNS.values() for noun in words]
    made = []
    for k in range(count):
        row: dict[str, object] = dict.fromkeys(c.name for c in (*COLUMNS["assets"], *RATINGS))
        row |= {"rating_count": 0, "labels": [], "said": None}
        prompt = f"a photo of a {chance.choice(nouns)} beside a {chance.choice(nouns)}, number {k}"
        row |= {"asset_id": f"{k:016x}", "prompt": prompt, "status": "ok", "seed": k % 7}
        row |= {"entries": f"row-{k} toys", "started_at": f"2026-01-01 00:00:{k % 60:02}"}
        for column in COLUMNS["assets"]:
            if column.name in row and row[column.name] is None and str(column.type) == "double":
                row[column.name] = chance.uniform(0, 100)
        made.append(row)
    return made


def rate(page: Page) -> list[float]:
    """Milliseconds from each key to the frame that shows what it did."""
    page.run("judgements.who = 'anna'; search.value = ''; filters.replaceChildren(); update();")
    page.run(PAINTED)
    for k in range(RATED):
        for number, key in enumerate(("j", f"{k % 5 + 1}"), 1):
            page.key(key)
            page.wait(f"keyTimes.length === {2 * k + number}")
    assert page.run("judgements.unsaved") == RATED
    times: list[float] = page.run("keyTimes")
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--assets", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    settings = parser.parse_args()
    report = Report("gallery", {"assets": settings.assets, "rounds": settings.rounds}, ())
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        began = time.perf_counter()
        page_text = index_page(rows(settings.assets), "benchmark")
        report.figure("page written in", time.perf_counter() - began, "s")
        (root / "index.html").write_text(page_text)
        report.figure("page", len(page_text.encode()) / 1e6, "MB")
        picture = root / "thumbnail.webp"
        Image.effect_noise((128, 128), 60).convert("RGB").save(picture)
        for k in range(settings.assets):
            (root / FOLDER / f"{k:016x}").mkdir(parents=True)
            (root / FOLDER / f"{k:016x}" / "thumbnail.webp").symlink_to(picture)
        paints: list[float] = []
        times: dict[str, list[float]] = {name: [] for name in (*ACTIONS, "a key to rate by")}
        for number in range(settings.rounds):
            with browser() as page:
                page.open(f"file://{root}/index.html")
                page.wait("performance.getEntriesByName('first-contentful-paint').length")
                paints.append(
                    page.run("performance.getEntriesByName('first-contentful-paint')[0].startTime")
                )
                for word, metric in (("duck", "clip_score"), ("tank number 7", "seed")):
                    for name, action in ACTIONS.items():
                        script = action.format(word=word, number=10 * number, metric=metric)
                        times[name].append(page.run(TIMED.format(action=script)))
                times["a key to rate by"] += rate(page)
                assert page.complaints == [], page.complaints
    report.figure("first contentful paint", median(paints), "ms")
    for name, values in times.items():
        report.figure(name, median(values), "ms")
        report.figure(f"{name}, longest", max(values), "ms")
    report.write_json(settings.json)


if __name__ == "__main__":
    main()
