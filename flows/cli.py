"""The command line `sjc`. What is slow to import is imported where it is needed."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from flows import completion
from flows.errors import fail, reported
from flows.manual import EXIT_CODES, LOOK, MAKE, OPERATE, Manual, examples

app = typer.Typer(
    name="sjc",
    cls=Manual,
    help="Prompts in, curated 3D dataset out.\n\nBegin with `sjc doctor`, then"
    " `sjc run manifests/toybox.csv --recipe draft --limit 2`.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"max_content_width": 100},
)

MAX_SEED = 2**63 - 1  # as in a manifest
StoreOption = Annotated[
    str,
    typer.Option(
        envvar="SJC_STORE", help="Where results are kept: a folder or s3://bucket/prefix."
    ),
]
PriorOption = Annotated[
    str | None,
    typer.Option(
        help="The 2D model: toybox, a diffusers folder, or a hub id owner/name.",
        autocompletion=completion.priors,
    ),
]
RecipeOption = Annotated[
    str | None,
    typer.Option(
        help="A preset, such as draft; the default fits the prior.",
        autocompletion=completion.recipes,
    ),
]


class Format(StrEnum):
    """How `assets` and `query` print."""

    table = "table"
    csv = "csv"
    json = "json"
    parquet = "parquet"


SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A recipe key, such as steps=500; repeatable.",
        autocompletion=completion.settings,
    ),
]


@app.command(
    rich_help_panel=MAKE,
    epilog=examples(
        "sjc run manifests/paper.csv",
        "sjc run manifests/toybox.csv --recipe draft --limit 2      a quick look",
        "sjc run prompts.csv --dry-run                              what it would do",
        "sjc run prompts.csv --devices cuda:0,cuda:1 --store s3://bucket/first",
        "sjc run prompts.csv --retry-failed --set steps=2000",
    ),
)
def run(
    manifest: Annotated[str, typer.Argument(help="CSV, JSONL or Parquet file of prompts.")],
    store: StoreOption = "./store",
    prior: PriorOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many entries.")] = None,
    where: Annotated[
        str | None, typer.Option(help="Only entries for which this SQL holds: seed < 3.")
    ] = None,
    scenes_per_device: Annotated[
        str, typer.Option(metavar="K|auto", help="Scenes that a device steps together.")
    ] = "auto",
    devices: Annotated[
        str | None,
        typer.Option(
            help="One engine each, such as cpu,cpu or cuda:0,cuda:1; default: every GPU, else cpu.",
            autocompletion=completion.devices,
        ),
    ] = None,
    scratch: Annotated[
        str, typer.Option(help="Folder for checkpoints, unfinished files and logs.")
    ] = ".sjc",
    timeout: Annotated[
        float | None, typer.Option(help="Seconds of optimisation that an asset may take.")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try failed assets again.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and end.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="The result as JSON.")] = False,
) -> None:
    """Make the assets of a manifest: reuse the finished ones, go on with the interrupted ones."""
    with reported("run the same command again to go on"):
        from flows.plan import Settings
        from flows.run import dry_run as show_plan
        from flows.run import run as run_flow

        settings = Settings(
            manifest=manifest,
            store=store,
            prior=prior,
            recipe=recipe,
            overrides=parse_overrides(set_),
            limit=limit,
            where=where,
            devices=devices.split(",") if devices is not None else None,
            scenes_per_device=parse_scenes(scenes_per_device),
            scratch=scratch,
            retry_failed=retry_failed,
            timeout=timeout,
        )
        if dry_run:
            show_plan(settings, as_json=json_)
        else:
            raise typer.Exit(run_flow(settings, quiet=quiet, as_json=json_))


@app.command(rich_help_panel=MAKE, epilog=examples("sjc check manifests/toybox.csv"))
def check(
    manifest: Annotated[str, typer.Argument(help="CSV, JSONL or Parquet file of prompts.")],
    prior: PriorOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
) -> None:
    """Validate a manifest, and show every bad row at once."""
    with reported():
        from flows.plan import Settings, read_entries

        settings = Settings(manifest, prior=prior, recipe=recipe, overrides=parse_overrides(set_))
        _, resolved = read_entries(settings, lambda prior: "")  # names are enough here
        for warning in resolved.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        assets = len({entry.spec.asset_id for entry in resolved.entries})
        print(f"{manifest}: {len(resolved.entries)} entries, {assets} assets, no errors")


@app.command(
    rich_help_panel=MAKE,
    epilog=examples(
        'sjc generate "a DSLR photo of a yellow duck" -o duck',
        'sjc generate "a mug" --image mug.png --prior kxic/zero123-xl -o mug',
    ),
)
def generate(
    prompt: Annotated[str, typer.Argument(help="What to make.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the files.")],
    prior: Annotated[
        str, typer.Option(help="As for `run`.", autocompletion=completion.priors)
    ] = "toybox",
    recipe: RecipeOption = None,
    set_: SetOption = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the random numbers.")] = 0,
    image: Annotated[Path | None, typer.Option(help="A picture, for priors that take one.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda:N.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="The result as JSON.")] = False,
) -> None:
    """Make one asset with the engine alone: no manifest, no store, no Prefect."""
    with reported():
        from flows.single import Request, make

        request = Request(prompt, out, prior, recipe, parse_overrides(set_), seed, image, device)
        make(request, quiet=quiet, as_json=json_)


@app.command(
    rich_help_panel=LOOK,
    epilog=examples(
        'sjc assets --where "clip_r_precision >= 0.9 AND watertight"',
        "sjc assets --manifest prompts.csv --format csv",
    ),
)
def assets(
    store: StoreOption = "./store",
    manifest: Annotated[
        Path | None, typer.Option(help="Only assets that this manifest asks for.")
    ] = None,
    where: Annotated[
        str | None, typer.Option(help='Only assets for which this SQL holds: "clip_score > 25".')
    ] = None,
    format: Annotated[Format, typer.Option(help="How to print.")] = Format.table,
) -> None:
    """List the assets of a store: one row each, its best outcome."""
    with reported():
        from flows.listing import list_assets

        list_assets(store, manifest, where, format)


@app.command(
    rich_help_panel=LOOK,
    epilog=examples(
        'sjc query "SELECT status, count(*) FROM best_assets GROUP BY ALL"',
        'sjc query "SELECT * FROM views" --format parquet',
    ),
)
def query(
    sql: Annotated[str, typer.Argument(help="DuckDB SQL over the tables below.")],
    store: StoreOption = "./store",
    format: Annotated[Format, typer.Option(help="How to print.")] = Format.table,
) -> None:
    """Ask the tables assets, views, entries, attempts and runs, and the view best_assets."""
    with reported():
        from flows.listing import run_query

        run_query(store, sql, format)


@app.command(
    rich_help_panel=LOOK,
    epilog=examples("sjc gallery -o pages", 'sjc gallery -o best --where "clip_score > 60"'),
)
def gallery(
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write.")],
    store: StoreOption = "./store",
    where: Annotated[
        str | None, typer.Option(help="Only assets for which this SQL holds: faces < 9000.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Write a web page over a store: thumbnails, search, filters, and a 3D viewer per asset."""
    with reported("what was copied stays; run it again to go on"):
        from flows.pages import gallery as write

        write(store, out, where, quiet=quiet)


@app.command(
    rich_help_panel=LOOK,
    epilog=examples("sjc report", "sjc report 20250131T101502-3f9a2c --store s3://bucket/first"),
)
def report(
    run_id: Annotated[
        str | None,
        typer.Argument(help="The run; by default the latest.", autocompletion=completion.runs),
    ] = None,
    store: StoreOption = "./store",
) -> None:
    """Write a run's report again, and print where it is: one HTML file in the store."""
    with reported():
        from flows.pages import report as write

        write(store, run_id)


@app.command(
    rich_help_panel=LOOK,
    epilog=examples('sjc sample2d "a DSLR photo of a yellow duck" -o experiments.png'),
)
def sample2d(
    prompt: Annotated[str, typer.Argument(help="What to draw; priors without words ignore it.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The PNG file to write.")],
    prior: Annotated[
        list[str] | None,
        typer.Option(
            help="As for `run`; repeatable. Default: toybox and toybox-duck.",
            autocompletion=completion.priors,
        ),
    ] = None,
    guidance: Annotated[str, typer.Option(help="Scales of the grid's columns.")] = "1,3,10,30",
    steps: Annotated[int, typer.Option(min=1, help="Steps along the score.")] = 400,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the random numbers.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu or cuda:N.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Draw the paper's 2D experiments: the perturbed score, samples, schedules and guidance."""
    with reported():
        from flows.experiments import sample2d as draw

        try:
            scales = [float(text) for text in guidance.split(",")]
        except ValueError:
            fail(f"sjc: --guidance {guidance!r}: write numbers with commas between", 2)
        draw(
            prompt,
            out,
            prior or ["toybox", "toybox-duck"],
            scales,
            steps,
            seed,
            device,
            quiet=quiet,
        )


@app.command(rich_help_panel=OPERATE, epilog=examples("sjc ui", "sjc ui --port 0"))
def ui(
    port: Annotated[int, typer.Option(help="Port on the loopback address.")] = 4200,
) -> None:
    """Serve Prefect's pages; runs of the same PREFECT_HOME find this server and report to it."""
    with reported():
        from flows.ui import serve

        serve(port)


@app.command(
    rich_help_panel=OPERATE,
    epilog=examples("sjc doctor", "sjc doctor --store s3://bucket/first --json"),
)
def doctor(
    store: StoreOption = "./store",
    scratch: Annotated[Path, typer.Option(help="As for `run`.")] = Path(".sjc"),
    json_: Annotated[bool, typer.Option("--json", help="The result as JSON.")] = False,
) -> None:
    """Examine this machine: versions, devices, weights, store, server; what to do where it fails.

    Nothing is made. Exit code 0 when a run would work, 1 when there is a problem.
    """
    from flows.doctor import doctor as examine  # works where what `reported` imports is missing

    raise typer.Exit(examine(store, scratch, as_json=json_))


def parse_overrides(pairs: list[str] | None) -> dict[str, Any]:
    """--set key=value ... as a dict of text; the recipe reads each value as its key's type."""
    values = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            fail(f"sjc: --set {pair!r}: write key=value", 2)
        values[key.strip()] = value
    return values


def parse_scenes(text: str) -> int | None:
    """A number of scenes, or None for `auto`."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        fail("sjc: --scenes-per-device: use a whole number above 0, or auto", 2)
    return int(text)


def main() -> None:
    app()
