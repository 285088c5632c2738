"""Options that several commands have, and how their text is read."""

from collections.abc import Mapping
from dataclasses import fields
from enum import StrEnum
from typing import Annotated, Any, Literal

import typer

from flows.commands import completion
from flows.errors import fail
from flows.settings import Settings


class RowFormat(StrEnum):
    """How rows are printed."""

    table = "table"
    csv = "csv"
    json = "json"
    parquet = "parquet"


def _scenes(text: str) -> int | None:
    """A number of scenes, or None for `auto`."""
    if text == "auto":
        return None
    if not text.isdecimal():
        fail(f"sjc: --scenes-per-device: {text!r} is wrong; use a whole number above 0, or auto", 2)
    return int(text)


Store = Annotated[
    str,
    typer.Option(
        envvar="SJC_STORE", help="Where results are kept: a folder or s3://bucket/prefix."
    ),
]
Prior = Annotated[
    str | None,
    typer.Option(
        help="The 2D model: toybox, a diffusers folder, a .safetensors file, or a hub id "
        "owner/name[@REVISION].",
        autocompletion=completion.priors,
    ),
]
Recipe = Annotated[
    str | None,
    typer.Option(
        help="A preset, such as draft; the default fits the prior.",
        autocompletion=completion.recipes,
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A recipe key, such as steps=500; repeatable.",
        autocompletion=completion.settings,
    ),
]
Dtype = Annotated[
    Literal["auto", "float16", "bfloat16", "float32"] | None,
    typer.Option(
        show_default="auto",
        help="Precision of the prior's network; auto: float32 on the CPU, float16 on a GPU.",
    ),
]
MANIFEST_HELP = (
    "File of prompts (CSV, TSV, JSONL, Parquet or text; .gz too) or a folder of them; or s3://."
)
Manifest = Annotated[str, typer.Argument(help=MANIFEST_HELP)]
ManifestOrPlan = Annotated[str | None, typer.Argument(help=MANIFEST_HELP, show_default=False)]
Limit = Annotated[int | None, typer.Option(help="Only the first so many entries.")]
Where = Annotated[str | None, typer.Option(help="Only entries for which this SQL holds: seed < 3.")]
Scenes = Annotated[
    int | None,
    typer.Option(
        metavar="K|auto",
        parser=_scenes,
        show_default="auto",
        help="Scenes that a device steps together; auto: by free memory.",
    ),
]
Devices = Annotated[
    str | None,
    typer.Option(
        help="One engine each, such as cpu,cpu or cuda:0,cuda:1; default: every GPU, else cpu.",
        autocompletion=completion.devices,
    ),
]
Scratch = Annotated[str, typer.Option(help="Folder for checkpoints, unfinished files and logs.")]
Timeout = Annotated[
    float | None, typer.Option(help="Seconds of optimisation that an asset may take.")
]
Retry = Annotated[bool, typer.Option("--retry-failed", help="Try failed assets again.")]
Checkpoint = Annotated[
    bool,
    typer.Option(
        "--checkpoint-to-store",
        help="Copy checkpoints to the store, so that another machine can resume.",
    ),
]
Compiled = Annotated[
    bool,
    typer.Option(
        "--compiled",
        help="Compile the prior's network (torch.compile): a minute at first for faster steps.",
    ),
]
AllowPickle = Annotated[
    bool,
    typer.Option(
        "--allow-pickle",
        help="Read .bin weights where there are no safetensors, which are preferred: torch's "
        "restricted unpickler makes tensors of them, and runs nothing.",
    ),
]
FastLaunch = Annotated[
    bool,
    typer.Option(
        "--fast-launch",
        help="Launch a GPU's kernels with less work for the CPU (new: not yet run on a GPU).",
    ),
]
Price = Annotated[
    float | None,
    typer.Option(envvar="SJC_PRICE_PER_HOUR", help="Of one device, for the costs in the UI."),
]
Gallery = Annotated[
    str | None,
    typer.Option(envvar="SJC_GALLERY", help="Folder or address of the gallery, for links."),
]
CRON_HELP = 'Minute, hour, day, month, weekday: "0 2 * * *" is 2 o\'clock every night.'
Cron = Annotated[str, typer.Option(help=CRON_HELP)]
Timezone = Annotated[str, typer.Option(help="Of the schedule, such as Europe/Berlin.")]
Seed = Annotated[
    int, typer.Option(min=0, max=2**63 - 1, help="Seed of the random numbers.")  # as in a manifest
]
Device = Annotated[str | None, typer.Option(help="cpu or cuda:N.")]
OfManifest = Annotated[str | None, typer.Option(help="Only assets that this manifest asks for.")]
Format = Annotated[RowFormat, typer.Option(help="How to print.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Json = Annotated[bool, typer.Option("--json", help="The result as JSON.")]


def run_settings(options: Mapping[str, Any]) -> Settings:
    """The settings of a command with the options of a run: `context.params`."""
    given = {field.name: options[field.name] for field in fields(Settings) if field.name in options}
    if given["devices"] is not None:
        given["devices"] = given["devices"].split(",")
    return Settings(**given, overrides=parse_overrides(options["set_"], options["dtype"]))


def parse_overrides(pairs: list[str] | None, dtype: str | None = None) -> dict[str, Any]:
    """--set key=value ... and --dtype as a dict of text; the recipe knows the keys' types."""
    values = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            fail(f"sjc: --set {pair!r}: write key=value", 2)
        values[key.strip()] = value
    if dtype is not None:
        values["dtype"] = dtype
    return values
