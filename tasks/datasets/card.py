"""The card of a dataset: README.md as Hugging Face reads it, with pictures of what is in it."""

from __future__ import annotations

import html
import io
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from tasks.datasets.export import column, folder_schema, member
from tasks.datasets.features import card_features, kind_of, row_fields
from tasks.datasets.frozen_tables import is_plain
from tasks.datasets.select import Sample, Selection, picture_of
from tasks.pages.report.charts import histogram_sheet, number
from tasks.store.interface import Store
from tasks.tables.columns import Column
from tasks.tables.diff import METRICS
from tasks.tables.read import FILES
from tasks.tables.schemas import COLUMNS

Measured = tuple[Column, list[float]]  # a metric, and its values

SHOWN_PROMPTS = 12
SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}
HUB_SPLITS = {"train": "train", "val": "validation", "test": "test"}
# The Hub's words for licences; any other is named beside `license: other`.
HUB_LICENCES = ("apache-2.0", "creativeml-openrail-m", "openrail++", "deepfloyd-if-license")


def card_files(
    store: Store, selection: Selection, facts: Mapping[str, Any], keys: Sequence[str]
) -> dict[str, bytes]:
    """README.md and its pictures; `facts` are those of manifest.json, `keys` the data's files."""
    columns = {c.name: c for c in COLUMNS["assets"]}
    found = {name: [sample.row[name] for sample in selection.samples] for name in METRICS}
    measured = [
        (columns[name], [value for value in values if value is not None])
        for name, values in found.items()
        if any(value is not None for value in values)
    ]
    return {
        "README.md": _readme(selection, facts, measured, keys).encode(),
        "card/histograms.svg": histogram_sheet(measured),
        "card/wall.png": wall(store, selection.samples),
    }


def _readme(
    selection: Selection,
    facts: Mapping[str, Any],
    measured: Sequence[Measured],
    keys: Sequence[str],
) -> str:
    priors = ", ".join(map(_code, sorted({sample.row["prior"] for sample in selection.samples})))
    prompts = list(dict.fromkeys(sample.row["prompt"] for sample in selection.samples))
    return f"""{_front(selection, facts)}
# {_text(facts["request"]["name"])}

{facts["assets"]:,} meshes from {facts["prompts"]:,} prompts, made by Score Jacobian Chaining with
{priors}: one radiance field for each prompt and seed, turned into a textured mesh and scored.
glTF axes: +Y up, front +Z.

![Some of the assets](card/wall.png)

{_how_chosen(facts)}

{_how_measured(selection, measured)}

{_licences(selection)}

## Files

{_layout(selection, facts)}

{_fenced(_reading(facts, keys), "python")}

To make the assets again, with the same weights:

{_again(selection)}

## Some of the prompts

{chr(10).join(f"- {_text(prompt)}" for prompt in prompts[:SHOWN_PROMPTS])}
"""


def _how_chosen(facts: Mapping[str, Any]) -> str:
    request, near = facts["request"], facts["near_duplicates"]
    of_manifest = f" of the manifest {_code(request['manifest'])}" if request["manifest"] else ""
    left_out = f", {near['prompts_left_out']} prompts left out" if request["dedupe"] else ""
    rows = "\n".join(
        f"| {split} ({about['fraction']:.0%}) | {about['prompts']:,} | {about['assets']:,} "
        f"| {about['bytes']:,} |"
        for split, about in facts["splits"].items()
    )
    return f"""## How they were chosen

Finished assets{of_manifest} with

{_fenced(request["where"] or "true", "sql")}

The youngest is of {facts["newest"][:19]} UTC. Selection `{facts["selection"][:16]}`.

| split | prompts | assets | bytes |
|---|---|---|---|
{rows}

A prompt's split follows from a hash of its words in lower case: all its seeds are in one split, and
it is in the same split of every dataset. Pairs of near-duplicate prompts (trigram similarity of
at least {near["similar"]:g}): {near["pairs"]}{left_out}; see `near_duplicates.csv`."""


def _front(selection: Selection, facts: Mapping[str, Any]) -> str:
    """The YAML that the Hub reads. JSON is YAML, so quoting is json's."""
    licences = list(facts["licences"])
    known = len(licences) == 1 and licences[0] in HUB_LICENCES
    lines = {
        "pretty_name": facts["request"]["name"],
        "license": licences[0] if known else "other",
        **({} if known else {"license_name": ", ".join(licences)}),
        "task_categories": ["text-to-3d"],
        "tags": ["3d", "mesh", "glb", "score-jacobian-chaining"],
        "size_categories": [
            next((name for most, name in SIZES.items() if facts["assets"] < most), "n>1M")
        ],
    }
    if patterns := _data_files(selection, facts["request"]["format"]):
        data = [
            {"split": HUB_SPLITS[split], "path": [f"data/{split}{end}" for end in patterns]}
            for split, about in facts["splits"].items()
            if about["assets"]
        ]
        lines["configs"] = [{"config_name": "default", "data_files": data}]
    if facts["request"]["format"] == "webdataset":
        lines["dataset_info"] = {"config_name": "default", "features": _tar_features(selection)}
    text = "\n".join(f"{k}: {json.dumps(v, ensure_ascii=True)}" for k, v in lines.items())
    return f"---\n{text}\n---\n"


def _data_files(selection: Selection, format: str) -> list[str]:
    """The patterns of the data that `datasets` loads, after data/SPLIT."""
    if format != "files":
        return ["-*"]
    samples = selection.samples
    if (schema := folder_schema(samples)) is None:
        return []
    loaded = {column(name): name for sample in samples for name in sample.files}
    ends = [f.name.removesuffix("_file_name") for f in schema if f.name.endswith("_file_name")]
    return ["/metadata.parquet", *(f"/*/{loaded[end]}" for end in ends)]


def _tar_features(selection: Selection) -> list[dict[str, Any]]:
    """What is in a sample of a tar: its row came through JSON, where a null has no type."""
    names = sorted({name for sample in selection.samples for name in sample.files})
    files = [{"name": member(name), "dtype": (kind_of(name) or "binary").lower()} for name in names]
    row = card_features(row_fields([sample.row for sample in selection.samples]))
    place = [{"name": name, "dtype": "string"} for name in ("__key__", "__url__")]
    return [*files, {"name": "json", "struct": row}, *place]


def _how_measured(selection: Selection, measured: Sequence[Measured]) -> str:
    lines = []
    for about, values in measured:
        low, middle, high = (number(q) for q in np.quantile(values, (0.05, 0.5, 0.95)))
        lines.append(
            f"| `{about.name}` | {low} | {middle} | {high} | {about.better} | {len(values):,} |"
        )
    judges = {
        f"{_code(row['evaluator'])} (revision `{row['evaluator_revision'][:12]}`)"
        for row in (sample.row for sample in selection.samples)
        if row["evaluator"] and row["evaluator_revision"]
    }
    return f"""## What was measured

![Histograms](card/histograms.svg)

| | 5% | median | 95% | better | of assets |
|---|---|---|---|---|---|
{chr(10).join(lines)}

Judged by {", ".join(sorted(judges)) or "nobody"}. Scores of different judges cannot be compared."""


def _licences(selection: Selection) -> str:
    rows = [sample.row for sample in selection.samples]
    counts = Counter((r["prior"], r["licence"], r["licence_of_prompt"] or "") for r in rows)
    lines = "\n".join(
        f"| {_code(prior)} | {_code(licence)} | {count:,} | {_text(of_prompt)} |"
        for (prior, licence, of_prompt), count in sorted(counts.items())
    )
    return f"""## Licences

The meshes were made with these weights; what follows for them is yours to judge. The last
column is what manifests say of the prompts (`meta.licence`). Rows have both, as `licence` and
`licence_of_prompt`.

| prior | licence of its weights | assets | of the prompts |
|---|---|---|---|
{lines}"""


def _layout(selection: Selection, facts: Mapping[str, Any]) -> str:
    names = sorted({name for sample in selection.samples for name in sample.files})
    columns = ", ".join(f"`{column(name)}`" for name in names)
    if facts["request"]["format"] == "files":
        data = "a folder `data/ASSET_ID/` for each asset, with its row in `asset.json`"
    elif facts["request"]["format"] == "webdataset":
        members = ", ".join(f"`ASSET_ID.{member(name)}`" for name in [*names, "json"])
        data = f"tar shards, the files of a sample one after the other: {members}"
    elif facts["request"]["links"]:
        data = f"Parquet; columns `NAME_uri` and `NAME_sha256` say where the files are: {columns}"
    else:
        data = f"Parquet, one row for each asset, with its files in the columns {columns}"
    if _data_files(selection, facts["request"]["format"]) and not facts["request"]["links"]:
        data += """
- `datasets.load_dataset`, of Hugging Face, takes the folder or, on the hub, OWNER/NAME: splits are
  `train`, `validation` and `test`, with meshes and pictures decoded"""
    return f"""- `data/`: {data}
- `manifest.parquet`: a row for each asset: metrics, tags, split, where it is, SHA-256 of its files
- `prompts.csv`, `prompts.jsonl`: what was asked for, as manifests for `sjc run`
- `SHA256SUMS`: for `sha256sum -c SHA256SUMS`; `manifest.json` was written last"""


def _reading(facts: Mapping[str, Any], keys: Sequence[str]) -> str:
    if facts["request"]["format"] == "webdataset":
        split = next(split for split, about in facts["splits"].items() if about["assets"])
        last = max(key for key in keys if key.startswith(f"data/{split}-"))[-9:-4]
        return f"""import webdataset

shards = "data/{split}-{{00000..{last}}}.tar"
for sample in webdataset.WebDataset(shards, shardshuffle=False).decode("pil"):
    mesh, picture, row = sample["glb"], sample.get("png"), sample["json"]"""
    if facts["request"]["format"] == "parquet":
        return 'import pandas\n\nassets = pandas.read_parquet("data")'
    return """import pandas

assets = pandas.read_parquet("manifest.parquet")
meshes = assets["path"] + "/mesh.glb\""""


def _again(selection: Selection) -> str:
    plain = is_plain(selection)
    text = _fenced(f"sjc run {'prompts.csv' if plain else 'prompts.jsonl'}", "console")
    if not plain:
        text += (
            "\n\n`prompts.csv` has a quote in front of cells that a spreadsheet would run; "
            "`prompts.jsonl` has every prompt letter by letter."
        )
    if any(sample.row["image"] for sample in selection.samples):
        text += "\n\nThe pictures to start from go into `pictures/`, named by their SHA-256."
    return text


def _text(text: str) -> str:
    """Text of users on one line that is neither Markdown nor HTML."""
    line = " ".join(text.split())
    return re.sub(r"([\\`*_{}\[\]()#+\-.!|~:@/])", r"\\\1", html.escape(line))


def _code(text: str) -> str:
    """Text of users as a code span; no number of backticks in it ends it."""
    line = " ".join(text.split()).replace("|", "\\|")
    ticks = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{ticks} {line} {ticks}" if "`" in line else f"`{line}`"


def _fenced(text: str, language: str) -> str:
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


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
                sheet.paste(tile, (left, top))
    data = io.BytesIO()
    sheet.quantize(256, dither=Image.Dither.NONE).save(data, "PNG", optimize=True)
    return data.getvalue()


def _tile(store: Store, sample: Sample) -> Image.Image | None:
    """The asset's picture, or None if it has none that can be shown."""
    if (data := picture_of(store, sample)) is None:
        return None
    try:
        with Image.open(io.BytesIO(data)) as image:
            picture = image.convert("RGB")
    except UnidentifiedImageError:
        return None
    # The object alone: pictures are rendered on white, with room for every pose.
    drawn = ImageChops.difference(picture, Image.new("RGB", picture.size, "white")).convert("L")
    picture = picture.crop(drawn.point(lambda level: 255 * (level > FAINTEST)).getbbox())
    return ImageOps.pad(picture, (TILE, TILE), Image.Resampling.LANCZOS, color="white")
