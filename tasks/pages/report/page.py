"""The HTML of a run's report."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterable, Sized
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import fmean, median
from typing import Any

from tasks.pages.html import PAGE_CSS, duration, escaped, page, source_hash
from tasks.pages.report.charts import Line, curves, histogram, number, share_bar
from tasks.tables.schemas import COLUMNS, RATINGS, STAGES

Row = dict[str, Any]


@dataclass(frozen=True)
class Thumbnail:
    """An asset's picture as a data URI, and its preview relative to the report."""

    data: str
    link: str


@dataclass(frozen=True)
class RunReport:
    """What the page shows. rows: one for each asset; wall, best, worst: some of them."""

    run: Row
    store: str
    rows: list[Row]
    wall: list[Row]
    best: list[Row]
    worst: list[Row]
    tiles: dict[str, Thumbnail] = field(default_factory=dict)  # by asset id
    large: dict[str, Thumbnail] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    command: str = ""  # that runs it again
    retry_command: str = ""  # the same, failed assets too
    lines: list[Line] = field(default_factory=list)  # of the charts of the optimisation


_CSS = PAGE_CSS + Path(__file__).with_name("report.css").read_text("utf-8")
HISTOGRAMS = (
    "clip_score", "clip_r_precision", "geometry_r_precision", "janus_score", "field_mesh_iou",
    "field_mesh_psnr", "faces", "foreground_fraction", "seconds_optimize", "rating",
)  # fmt: skip
MOST_FAILURES = 100  # lines of the table
MOST_LABELS = 20  # and as many assets in dispute
DISPUTED = 2  # the spread of ratings from which on people disagree
SHORT, LONG = 160, 600  # characters of a prompt, and of an error
_SHOWN_ELSEWHERE = ("manifest", "store", "prior", "recipe", "devices")  # settings
_NO_PICTURE = '<span class="none">no picture</span>'


def report_page(report: RunReport) -> str:
    """The whole page, of a size that does not grow with the run."""
    run, rows = report.run, report.rows
    title = Path(run["manifest"]).name
    body = f"""<main class="report">
<header class="run"><p class="note">Run {escaped(run["run_id"])}</p>
<h1>{_cut(title)}</h1><p class="note">{_when(run)} · {escaped(report.store)}</p></header>
{_figures(report)}
{_next_step(report)}
<section><h2>Assets <small>{_of_all(report)}</small></h2>
<div class="wall">{"".join(_tile(row, report.tiles) for row in report.wall)}</div></section>
{_extremes(report)}
<section><h2>Metrics <small>of {_count(_finished(rows), "finished asset")}</small></h2>
<div class="charts">{"".join(_histograms(rows))}</div></section>
{_people(rows)}
{_optimisation(report.lines)}
{_failures(rows)}
{_times(report)}
<section><h2>Settings</h2>{_table(_settings(report))}</section>
<footer class="note">Pictures link to the store's files, which lie two folders above this page. A
page with a 3D viewer for each asset: <code>sjc gallery -o pages --store
{escaped(shlex.quote(report.store))}</code></footer></main>"""
    policy = f"default-src 'none'; img-src data:; style-src {source_hash(_CSS)}"
    return page(f"{title}: run {run['run_id']}", body, policy, _CSS)


def state(row: Row) -> str:
    """What became of an asset: ok, reused, pruned, how it failed, or unfinished."""
    if row["status"] == "pruned":
        return "pruned"
    if row["outcome"] == "failed":
        return str(row["status"] or "failed")
    return {"computed": "ok", "reused": "reused", None: "unfinished"}[row["outcome"]]


def _finished(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row["status"] == "ok"]


def _failed(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row["outcome"] == "failed"]


def _made(report: RunReport) -> list[Row]:
    """The rows of this run itself, not those of reused assets."""
    return [row for row in report.rows if row["run_id"] == report.run["run_id"]]


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _when(run: Row) -> str:
    started, ended = _time(run["started_at"]), _time(run["ended_at"])
    shown = f"{started:%Y-%m-%d %H:%M:%S} to " if started else ""
    return shown + (f"{ended:%Y-%m-%d %H:%M:%S} UTC" if ended else "no recorded end")


def seconds_of(report: RunReport) -> float:
    """From the run's start to its end; of a killed run, to the end of its last asset."""
    started, ended = _time(report.run["started_at"]), _time(report.run["ended_at"])
    assert started is not None
    end = ended or max((row["ended_at"] for row in _made(report)), default=started)
    return float((end - started).total_seconds())


def device_hours(report: RunReport) -> tuple[str, float]:
    """What kind of device, and hours of them that the run held: devices times its duration."""
    made = _made(report)
    devices = report.run["settings"].get("devices") or sorted(
        {row["device"] for row in made if row["device"]}
    )
    kind = "GPU" if any(name.startswith("cuda") for name in devices) else "CPU engine"
    held = sum(name.startswith("cuda") for name in devices) if kind == "GPU" else len(devices)
    return kind, held * seconds_of(report) / 3600 if made else 0.0


def _figures(report: RunReport) -> str:
    counts = Counter(state(row) for row in report.rows)
    kind, hours = device_hours(report)
    work = [sum(row[f"seconds_{s}"] or 0 for s in STAGES[1:]) for row in _made(report)]
    failed = len(_failed(report.rows))
    figures = [
        ("assets", f"{len(report.rows):,}", ""),
        ("made", f"{counts['ok']:,}", ""),
        ("reused", f"{counts['reused']:,}", ""),
        ("failed", f"{failed:,}", "bad" if failed else ""),
        ("duration", duration(seconds_of(report)), ""),
        (f"{kind} hours", f"{hours:.2f}" if hours < 100 else f"{hours:,.0f}", ""),
    ]
    if counts["pruned"]:
        figures.insert(3, ("pruned", f"{counts['pruned']:,}", ""))
    if counts["unfinished"]:
        figures.insert(4, ("unfinished", f"{counts['unfinished']:,}", "bad"))
    if work:
        figures.append(("work per asset", duration(median(work)), ""))
    if scores := [r["clip_score"] for r in _finished(report.rows) if r["clip_score"] is not None]:
        figures.append(("median score", number(median(scores)), ""))
    cards = "".join(
        f'<div class="{mark}"><dd>{value}</dd><dt>{name}</dt></div>'
        for name, value, mark in figures
    )
    return f'<dl class="figures">{cards}</dl>'


def _next_step(report: RunReport) -> str:
    """What went wrong with devices, and the commands that continue, when something is left."""
    notes = [
        f"<p>{escaped(device)} was no longer used; <code>sjc doctor</code> examines it."
        f" {escaped(reason)}</p>"
        for device, reason in report.run.get("retired_devices", {}).items()
    ]
    if any(row["outcome"] is None for row in report.rows):
        command = report.command
        notes.append(f"<p>To resume what is unfinished:</p><pre>{escaped(command)}</pre>")
    if _failed(report.rows):
        command = report.retry_command
        notes.append(
            f'<p>To try the <a href="#failures">failed ones</a> again:</p>'
            f"<pre>{escaped(command)}</pre>"
        )
    return f'<section class="next">{"".join(notes)}</section>' if notes else ""


def _of_all(report: RunReport) -> str:
    shown, everything = len(report.wall), len(report.rows)
    if shown == everything:
        return f"all {everything:,}" if everything != 1 else "the only one"
    return f"{shown:,} of {everything:,}, at even distances through the manifest"


def _tile(row: Row, pictures: dict[str, Thumbnail], note: str = "") -> str:
    picture, about = pictures.get(row["asset_id"]), state(row)
    name = _cut(row["row_id"])
    title = f"{name}: {_cut(row['prompt'] or '')} ({about})"
    mark = "" if about in ("ok", "reused", "pruned") else " bad"
    inside = f'<img src="{picture.data}" alt="{title}">' if picture else _NO_PICTURE
    if mark or about == "pruned":
        inside = f'<span class="none">{escaped(about)}</span>'
    score = number(row["clip_score"]) if row["clip_score"] is not None and not mark else ""
    stars = f" ★ {number(row['rating'])}" if row["rating"] is not None else ""
    words = f"<b>{name}</b><i>{score}{stars}</i>{note}"
    link = f' href="{escaped(picture.link)}"' if picture and not mark else ""
    return f'<a class="tile{mark}"{link} title="{title}">{inside}<span>{words}</span></a>'


def _extremes(report: RunReport) -> str:
    if not report.best:
        return ""
    judge = _cut(report.best[0]["evaluator"] or "unknown")
    parts = []
    for title, rows in (("Best", report.best), ("Worst", report.worst)):
        tiles = "".join(
            _tile(row, report.large, f'<em dir="auto">{_cut(row["prompt"])}</em>') for row in rows
        )
        if rows:
            parts.append(
                f"<section><h2>{title} <small>by clip_score of the judge {judge}</small></h2>"
                f'<div class="wall large">{tiles}</div></section>'
            )
    return f'<div class="pair">{"".join(parts)}</div>'


def _histograms(rows: list[Row]) -> Iterable[str]:
    columns = {column.name: column for column in (*COLUMNS["assets"], *RATINGS)}
    finished = _finished(rows)
    known = {name: [r[name] for r in finished if r[name] is not None] for name in HISTOGRAMS}
    drawn = [histogram(columns[name], values) for name, values in known.items() if values]
    return drawn or ['<p class="note">None: no asset is finished.</p>']


def _optimisation(lines: list[Line]) -> str:
    if not lines:  # its assets are older, or were all reused
        return ""
    small = f"of {_count(lines, 'attempt')} of this run; failed ones are red"
    return f"<section><h2>Optimisation <small>{small}</small></h2>{curves(lines)}</section>"


def _people(rows: list[Row]) -> str:
    """What people say of the assets; nothing if they say nothing."""
    rated = [row for row in rows if row["rating_count"]]
    labels = Counter(label for row in rows for label in row["labels"] or ())
    if not rated and not labels:
        return ""
    lines = [("rated", f"{len(rated):,} of {_count(rows, 'asset')}")]
    if rated:
        lines.append(("mean rating", number(fmean(row["rating"] for row in rated))))
    disputed = [row for row in rated if row["rating_spread"] >= DISPUTED]
    for row in sorted(disputed, key=lambda row: -row["rating_spread"])[:MOST_LABELS]:
        about = f"{number(row['rating'])} of {row['rating_count']} people"
        lines.append((row["row_id"], f"in dispute: {about}, spread {number(row['rating_spread'])}"))
    lines += [(label, f"{count:,} labelled") for label, count in labels.most_common(MOST_LABELS)]
    return f"<section><h2>What people say</h2>{_table(lines)}</section>"


def _failures(rows: list[Row]) -> str:
    failed = _failed(rows)
    if not failed:
        return ""
    kinds = Counter(str(row["error_type"] or "unknown") for row in failed).most_common(8)
    summary = ", ".join(f"{count:,} {_cut(kind)}" for kind, count in kinds)
    lines = "".join(
        f"<tr><td>{_cut(row['row_id'])}</td><td>{escaped(state(row))}</td>"
        f'<td dir="auto">{_cut(row["prompt"] or "")}</td>'
        f"<td>{_cut(row['error_type'] or '')}: {_cut(row['error'] or '', LONG)}</td></tr>"
        for row in failed[:MOST_FAILURES]
    )
    more = len(failed) - MOST_FAILURES
    rest = f'<p class="note">And {more:,} more: sjc assets --where "status != \'ok\'"</p>'
    return f"""<section id="failures"><h2>Failures <small>{summary}</small></h2>
<table class="wide"><thead><tr><th>entry</th><th>status</th><th>prompt</th><th>reason</th></tr>
</thead><tbody>{lines}</tbody></table>{rest if more > 0 else ""}</section>"""


def _times(report: RunReport) -> str:
    made = _made(report)
    if not made:
        return ""
    spent = {s: [r[f"seconds_{s}"] for r in made if r[f"seconds_{s}"] is not None] for s in STAGES}
    work = sum(sum(spent[stage]) for stage in STAGES if stage != "queue") or 1.0
    lines = []
    for stage in STAGES:
        seconds = spent[stage]
        if not seconds:
            continue
        share = "" if stage == "queue" else share_bar(sum(seconds) / work)
        lines.append(
            f"<tr><td>{stage}</td><td>{share}</td>"
            f"<td class='number'>{duration(sum(seconds))}</td>"
            f"<td class='number'>{duration(median(seconds))}</td>"
            f"<td class='number'>{duration(max(seconds))}</td></tr>"
        )
    headings = "".join(
        f'<th class="number">{name}</th>' for name in ("in all", "median", "longest")
    )
    return f"""<section><h2>Time <small>of {_count(made, "asset")} made or tried by this run;
queue is the wait for a device</small></h2><table class="times">
<thead><tr><th>stage</th><th>share of the work</th>{headings}</tr></thead>
<tbody>{"".join(lines)}</tbody></table></section>"""


def _settings(report: RunReport) -> Iterable[tuple[str, str]]:
    run, rows = report.run, report.rows
    yield "command", report.command
    yield "manifest", f"{run['manifest']} (SHA-256 {run['manifest_sha256'][:16]})"
    yield "entries", f"{len(run['entries']):,}"
    for name, value in run["settings"].items():
        if name not in _SHOWN_ELSEWHERE and value not in (None, {}, [], False):
            yield name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    for name, shown in (
        ("prior", lambda row: f"{row['prior']} at {row['prior_revision'][:12]}"),
        ("recipe", lambda row: row["recipe"]),
        ("judge", lambda row: f"{row['evaluator']} at {(row['evaluator_revision'] or '')[:12]}"),
        ("device", lambda row: row["device"]),
    ):
        known = Counter(shown(row) for row in rows if row["status"] == "ok")
        for value, count in known.most_common(8):
            yield name, value if len(known) == 1 else f"{value} ({count:,} assets)"
    yield from sorted(report.versions.items())
    yield "flow run", str(run["flow_run_id"])


def _table(lines: Iterable[tuple[str, str]]) -> str:
    cells = (f"<tr><td>{escaped(a)}</td><td>{_cut(b, LONG)}</td></tr>" for a, b in lines)
    return f'<table class="settings">{"".join(cells)}</table>'


def _cut(text: str, most: int = SHORT) -> str:
    return escaped(text if len(text) <= most else text[: most - 1] + "…")


def _count(rows: Sized, noun: str) -> str:
    return f"{len(rows):,} {noun}{'' if len(rows) == 1 else 's'}"
