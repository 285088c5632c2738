"""The card of a dataset: README.md as Hugging Face reads it, with pictures of what is in it."""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tasks.columns import Column
from tasks.curate_parts import column, member
from tasks.curate_pictures import histograms, number, wall
from tasks.curate_selection import Selection
from tasks.curate_tables import is_plain
from tasks.run_diff import METRICS
from tasks.schemas import COLUMNS
from tasks.store import Store

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
    values = {name: _values(selection, name) for name in METRICS}
    measured = [(columns[name], found) for name, found in values.items() if len(found)]
    return {
        "README.md": _readme(selection, facts, measured, keys).encode(),
        "card/histograms.png": histograms(measured),
        "card/wall.png": wall(store, selection.samples),
    }


def _readme(
    selection: Selection,
    facts: Mapping[str, Any],
    measured: list[tuple[Column, np.ndarray]],
    keys: Sequence[str],
) -> str:
    request, near = facts["request"], facts["near_duplicates"]
    priors = ", ".join(
        _code(prior) for prior in sorted({s.row["prior"] for s in selection.samples})
    )
    of_manifest = f" of the manifest {_code(request['manifest'])}" if request["manifest"] else ""
    left_out = f", {near['prompts_left_out']} prompts left out" if request["dedupe"] else ""
    return f"""{_front(facts)}
# {_text(request["name"])}

{facts["assets"]:,} meshes from {facts["prompts"]:,} prompts, made by Score Jacobian Chaining with
{priors}: one radiance field for each prompt and seed, turned into a textured mesh and scored.
glTF axes: +Y up, front +Z.

![Some of the assets](card/wall.png)

## How they were chosen

Finished assets{of_manifest} with

{_fenced(request["where"] or "true", "sql")}

The youngest is of {facts["newest"][:19]} UTC. Selection `{facts["selection"][:16]}`.

| split | prompts | assets | bytes |
|---|---|---|---|
{_split_rows(facts)}

A prompt's split follows from a hash of its words in lower case: all its seeds are in one split, and
it is in the same split of every dataset. Pairs of near-duplicate prompts (trigram similarity of
at least {near["similar"]:g}): {near["pairs"]}{left_out}; see `near_duplicates.csv`.

## What was measured

![Histograms](card/histograms.png)

| | 5% | median | 95% | better | of assets |
|---|---|---|---|---|---|
{_measured_rows(measured)}

Judged by {_judges(selection)}. Scores of different judges cannot be compared.

## Licences

The meshes were made with these weights; what follows for them is yours to judge. The last
column is what manifests say of the prompts (`meta.licence`). Rows have both, as `licence` and
`licence_of_prompt`.

| prior | licence of its weights | assets | of the prompts |
|---|---|---|---|
{_licence_rows(selection)}

## Files

{_layout(selection, facts)}

{_fenced(_reading(facts, keys), "python")}

To make the assets again, with the same weights:

{_again(selection)}

## Some of the prompts

{chr(10).join(f"- {_text(prompt)}" for prompt in _prompts(selection)[:SHOWN_PROMPTS])}
"""


def _front(facts: Mapping[str, Any]) -> str:
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
    if facts["request"]["format"] != "files":
        data = [
            {"split": HUB_SPLITS[split], "path": f"data/{split}-*"}
            for split, about in facts["splits"].items()
            if about["assets"]
        ]
        lines["configs"] = [{"config_name": "default", "data_files": data}]
    text = "\n".join(f"{k}: {json.dumps(v, ensure_ascii=True)}" for k, v in lines.items())
    return f"---\n{text}\n---\n"


def _split_rows(facts: Mapping[str, Any]) -> str:
    return "\n".join(
        f"| {split} ({about['fraction']:.0%}) | {about['prompts']:,} | {about['assets']:,} "
        f"| {about['bytes']:,} |"
        for split, about in facts["splits"].items()
    )


def _measured_rows(measured: list[tuple[Column, np.ndarray]]) -> str:
    lines = []
    for about, values in measured:
        low, middle, high = (number(q) for q in np.quantile(values, (0.05, 0.5, 0.95)))
        lines.append(
            f"| `{about.name}` | {low} | {middle} | {high} | {about.better} | {len(values):,} |"
        )
    return "\n".join(lines)


def _judges(selection: Selection) -> str:
    judges = {
        f"{_code(row['evaluator'])} (revision `{row['evaluator_revision'][:12]}`)"
        for row in (sample.row for sample in selection.samples)
        if row["evaluator"] and row["evaluator_revision"]
    }
    return ", ".join(sorted(judges)) or "nobody"


def _licence_rows(selection: Selection) -> str:
    rows = [sample.row for sample in selection.samples]
    counts = Counter((r["prior"], r["licence"], r["licence_of_prompt"] or "") for r in rows)
    return "\n".join(
        f"| {_code(prior)} | {_code(licence)} | {count:,} | {_text(of_prompt)} |"
        for (prior, licence, of_prompt), count in sorted(counts.items())
    )


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
        data = f"Parquet, one row for each asset, with its files in the binary columns {columns}"
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


def _prompts(selection: Selection) -> list[str]:
    return list(dict.fromkeys(sample.row["prompt"] for sample in selection.samples))


def _values(selection: Selection, name: str) -> np.ndarray:
    values = [sample.row[name] for sample in selection.samples]
    return np.array([value for value in values if value is not None], float)


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
