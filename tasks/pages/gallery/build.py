"""A static web page over a store: a wall of thumbnails, and a page with a 3D viewer per asset.

The pages need no server and no network: everything they show is beside them. Text from manifests
is escaped or set as text, and a content security policy forbids whatever else it might become.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sjc_engine.asset_files import MESH, PREVIEW, THUMBNAIL, TURNTABLE
from sjc_engine.files import write_atomically
from tasks.manifest.resolve import recipe_diff
from tasks.pages.html import PAGE_CSS, escaped, page, source_hash
from tasks.pages.report.charts import Line, curves
from tasks.records.documents import CommittedFile, committed_files, finished_manifest, read_ahead
from tasks.store.interface import Store
from tasks.tables.columns import FLAG, REAL, TEXTS, TIME, WHOLE, Column
from tasks.tables.read import query
from tasks.tables.schemas import COLUMNS, RATINGS

_FILES = Path(__file__).parent
_RATINGS_JS, _INDEX_JS, _ASSET_JS = (
    (_FILES / name).read_text("utf-8") for name in ("ratings.js", "index.js", "asset.js")
)
_WALL_JS = _RATINGS_JS + _INDEX_JS
VIEWER = "model-viewer-umd.min.js"
RATINGS_SCRIPT = "ratings.js"
FOLDER = "assets"
# Of an asset's files, those that its page shows.
SHOWN = (THUMBNAIL, MESH, TURNTABLE, PREVIEW)
# Columns that a wall of thumbnails has no use for: long, or the same for all.
_LEFT_OUT = {"spec_json", "uri_mesh", "uri_preview", "uri_turntable", "uri_field", "sha256_mesh"}
_KINDS = {WHOLE: "number", REAL: "number", FLAG: "flag", TEXTS: "list"}
_COLUMNS = [c for c in (*COLUMNS["assets"], *RATINGS) if c.name not in _LEFT_OUT]
_RATED = ("rating", "label")  # keys of which the pages make a rating and labels
_SQL = """
SELECT a.*, (SELECT string_agg(DISTINCT row_id || ' ' || array_to_string(tags, ' '), ' ')
             FROM entries e WHERE e.asset_id = a.asset_id) AS entries, history,
       (SELECT list([key, value, who, epoch_ms(made_at)::VARCHAR] ORDER BY who, key)
        FROM annotations n WHERE n.asset_id = a.asset_id) AS said
FROM best_assets a LEFT JOIN (
    SELECT asset_id, h AS history FROM history h QUALIFY row_number() OVER
        (PARTITION BY asset_id ORDER BY try_cast(attempt[2:] AS INT) DESC) = 1
) USING (asset_id) {where} ORDER BY started_at, asset_id
"""


@dataclass(frozen=True)
class Gallery:
    """What was written."""

    index: Path
    assets: int
    copied: int  # files; those of an earlier gallery in the folder are kept


def build_gallery(
    store: Store,
    out: Path,
    where: str | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Gallery:
    """Writes OUT/index.html, a folder per asset and the viewer; `where` is SQL over best assets.

    Files that are there already in the right size are not copied again. The index comes last, so
    that it never names what is not there. Raises QueryError for wrong SQL.
    """
    table = query(store, _SQL.format(where=f"WHERE {where}" if where else ""))
    histories = table["history"]  # twenty kilobytes each as Python's numbers
    rows = table.drop_columns("history").to_pylist()
    (out / FOLDER).mkdir(parents=True, exist_ok=True)
    shutil.copyfile(_FILES / "vendor" / VIEWER, out / VIEWER)
    write_atomically(out / RATINGS_SCRIPT, _RATINGS_JS.encode())
    copied, place = 0, store_id(store)

    def write(found: tuple[dict[str, Any], Any]) -> int:
        row, history = found
        folder = out / FOLDER / row["asset_id"]
        return _write_asset(store, place, folder, row | {"history": history.as_py()})

    # Several at a time: each waits for the disk, or the network.
    for done, files in enumerate(read_ahead(write, zip(rows, histories, strict=True)), 1):
        copied += files
        on_progress(done, len(rows))
    index = out / "index.html"
    write_atomically(index, index_page(rows, place).encode())
    return Gallery(index, len(rows), copied)


def store_id(store: Store) -> str:
    """What browsers keep a store's ratings under; its address is not for everybody to see."""
    return hashlib.sha256(store.url.encode()).hexdigest()[:16]


def index_page(rows: list[dict[str, Any]], store_id: str) -> str:
    """The wall. Its data is in the page as JSON, which pages opened as files may read too."""
    described = [_described(column) for column in _COLUMNS]
    described.append({"name": "entries", "kind": "text", "about": "", "sorts": False})
    names = [column["name"] for column in described]
    data = {
        "columns": described,
        "folder": FOLDER,
        "rows": [[_plain(row[name]) for name in names] for row in rows],
        "store": store_id,
        "said": {row["asset_id"]: said for row in rows if (said := _said(row))},
    }
    body = f"""<header><h1>Assets <small id="count"></small></h1>
<div class="tools">
<input type="search" id="search" placeholder="Search prompts, ids and tags">
<select id="status" title="Outcome"><option value="">any status</option></select>
<select id="rated" title="What people say"></select>
<label>sort by <select id="sort"></select></label>
<button id="down"></button>
<button id="add">add filter</button>
</div><div class="filters" id="filters"></div></header>
<div id="grid"><p class="empty" hidden>Nothing matches.</p></div>
<footer id="bar" class="bar"></footer><datalist id="words"></datalist>
<script type="application/json" id="data">{_json(data)}</script>
<script>{_WALL_JS}</script>"""
    # The cards are placed by scripts that set single properties, which a policy lets be.
    policy = (
        "default-src 'none'; img-src 'self' data:;"
        f" style-src {source_hash(PAGE_CSS)}; script-src {source_hash(_WALL_JS)}"
    )
    return page("Assets", body, policy, PAGE_CSS)


def asset_page(
    row: dict[str, Any], files: dict[str, CommittedFile], kept: Iterable[str], store_id: str
) -> str:
    """One asset. `files` are the manifest's, by name within the attempt; `kept` are beside it."""
    kept = set(kept)
    spec = json.dumps(json.loads(row["spec_json"]), indent=1, ensure_ascii=False)
    pictures = []
    if TURNTABLE in kept:
        pictures.append(f'<video src="{TURNTABLE}" autoplay loop muted playsinline></video>')
    elif THUMBNAIL in kept:  # smaller, but it turns too
        pictures.append(f'<img class="turntable" src="{THUMBNAIL}" alt="">')
    if row["error"]:
        pictures.append(f"<pre>{escaped(row['error_type'])}: {escaped(row['error'])}</pre>")
    viewer = (
        '<model-viewer camera-controls auto-rotate shadow-intensity="0" exposure="1"'
        f' alt="{escaped(row["prompt"])}"></model-viewer>'
        if MESH in kept
        else ""
    )
    data = {"store": store_id, "id": row["asset_id"], "said": _said(row)}
    sheet = f'<h2>Views</h2><img class="sheet" src="{PREVIEW}" alt="">'
    body = f"""<main><p><a href="../../index.html">All assets</a></p>
<p class="prompt-title" dir="auto">{escaped(row["prompt"])}</p>
<p class="note">{escaped(row["asset_id"])} · {escaped(row["status"])} · seed {row["seed"]}
 · {escaped(row["prior"])} · recipe {escaped(row["recipe"])}</p>
<div class="first"><div>{viewer}</div><div>{"".join(pictures)}
<h2>Make it again</h2><pre>{escaped(command(row))}</pre></div></div>
{sheet if PREVIEW in kept else ""}
{_people(row)}
{_curves(row)}
<h2>What is known of it</h2><div class="columns">{_metrics(row)}</div>
<h2>Files</h2>{_files(files, kept)}
<h2>Recipe and all else it depends on</h2><pre>{escaped(spec)}</pre>
</main><footer id="bar" class="bar"></footer>
<script type="application/json" id="data">{_json(data)}</script>
<script src="../../{VIEWER}"></script><script src="../../{RATINGS_SCRIPT}"></script>
<script>{_ASSET_JS}</script>"""
    # The viewer styles its own parts, decodes in workers, and reads the mesh by fetch.
    policy = (
        "default-src 'none'; img-src 'self' data: blob:; media-src 'self';"
        " connect-src 'self' data: blob:; worker-src blob:; style-src 'unsafe-inline';"
        f" script-src 'self' 'wasm-unsafe-eval' {source_hash(_ASSET_JS)}"
    )
    return page(row["prompt"], body, policy, PAGE_CSS)


def command(row: dict[str, Any]) -> str:
    """The command line that makes the asset again, without a store."""
    spec = json.loads(row["spec_json"])
    parts = ["sjc", "generate", spec["prompt"], "-o", row["asset_id"], "--prior", spec["prior"]]
    preset, changes = recipe_diff(spec["prior"], spec["recipe"])
    parts += ["--recipe", preset, "--seed", str(spec["seed"])]
    if spec["image"]:
        parts += ["--image", "PICTURE"]
    for key, value in changes.items():
        parts += ["--set", f"{key}={value}"]
    return shlex.join(parts)


def _write_asset(store: Store, store_id: str, folder: Path, row: dict[str, Any]) -> int:
    """The asset's folder; returns how many files were copied."""
    folder.mkdir(exist_ok=True)
    files: dict[str, CommittedFile] = {}
    copied = 0
    if row["status"] == "ok":
        files = committed_files(row["asset_id"], finished_manifest(store, row["asset_id"]))
        for name in SHOWN:
            file, path = files.get(name), folder / name
            if file and not (path.exists() and path.stat().st_size == file.stored.bytes):
                store.download(file.key, path, file.stored.sha256)
                copied += 1
        mesh = folder / MESH
        if mesh.exists() and not (folder / "mesh.js").exists():
            text = base64.b64encode(mesh.read_bytes()).decode()
            script = f'window.MESH = "data:model/gltf-binary;base64,{text}";\n'
            write_atomically(folder / "mesh.js", script.encode())
    kept = [name for name in SHOWN if (folder / name).exists()]
    write_atomically(folder / "index.html", asset_page(row, files, kept, store_id).encode())
    return copied


def _described(column: Column) -> dict[str, Any]:
    about = column.meaning
    if column.better:
        about += f" Better: {column.better}."
    kind = _KINDS.get(column.type, "text")
    if column.choices and column.name != "status":  # which has its own control
        kind = "choice"
    sorts = (
        kind not in ("text", "list")
        or column.type == TIME
        or column.name in ("prompt", "status", "asset_id")
    )
    choices = {"choices": column.choices} if kind == "choice" else {}
    return {"name": column.name, "kind": kind, "about": about, "sorts": sorts, **choices}


def _plain(value: Any) -> Any:
    """As JSON has it, with no more digits than are read."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    return value.isoformat(sep=" ", timespec="seconds") if hasattr(value, "isoformat") else value


def _said(row: dict[str, Any]) -> list[list[Any]]:
    """Ratings and labels: key, value, who, and milliseconds since 1970."""
    said = row["said"] or []
    return [[key, value, who, int(when)] for key, value, who, when in said if key in _RATED]


def _people(row: dict[str, Any]) -> str:
    lines = [
        f"<tr><td>{escaped(who)}</td><td>{escaped(key)}</td><td>{escaped(value)}</td></tr>"
        for key, value, who, _ in row["said"] or []
        if value is not None
    ]
    return f"<h2>What people say</h2><table>{''.join(lines)}</table>" if lines else ""


def _metrics(row: dict[str, Any]) -> str:
    lines = []
    for column in _COLUMNS:
        value = _plain(row[column.name])
        if value in (None, []) or column.name in ("prompt", "error"):
            continue
        number = " class='number'" if isinstance(value, int | float) else ""
        shown = f"{value:,}" if type(value) is int else value
        if isinstance(value, list):
            shown = ", ".join(value)
        lines.append(
            f'<tr title="{escaped(_described(column)["about"])}"><td>{column.name}</td>'
            f"<td{number}>{escaped(shown)} {escaped(column.unit)}</td></tr>"
        )
    return f"<table>{''.join(lines)}</table>"


def _curves(row: dict[str, Any]) -> str:
    """What its steps measured; nothing of an asset that an older version made."""
    if not row["history"]:
        return ""
    drawn = curves([Line("this asset", row["history"], bad=row["status"] != "ok")])
    return f"<h2>Optimisation</h2>{drawn}"


def _files(files: dict[str, CommittedFile], kept: set[str]) -> str:
    if not files:
        return "<p class='note'>None.</p>"
    lines = ["<tr><th>file</th><th>bytes</th><th>SHA-256</th></tr>"]
    for name, file in files.items():
        shown = f'<a href="{escaped(name)}">{escaped(name)}</a>' if name in kept else escaped(name)
        lines.append(
            f'<tr><td>{shown}</td><td class="number">{file.stored.bytes:,}</td>'
            f'<td class="hash">{file.stored.sha256}</td></tr>'
        )
    return f"<table>{''.join(lines)}</table>"


def _json(data: Any) -> str:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
