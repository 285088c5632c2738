"""The command line `sjc`. What is slow to import is imported where it is needed."""

import sys
from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.errors import fail, reported

if TYPE_CHECKING:
    from flows.plan import Settings

app = typer.Typer(
    name="sjc",
    help="Prompts in, curated 3D dataset out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

MAX_SEED = 2**63 - 1  # as in a manifest
StoreOption = Annotated[
    str, typer.Option(envvar="SJC_STORE", help="A directory or s3://bucket/prefix.")
]
PriorOption = Annotated[
    str | None, typer.Option(help="toybox, a diffusers folder, or a hub id owner/name.")
]
RecipeOption = Annotated[str | None, typer.Option(help="A preset; the default fits the prior.")]


CRON_HELP = 'Minute, hour, day, month, weekday: "0 2 * * *" is 2 o\'clock every night.'
CronOption = Annotated[str, typer.Option(help=CRON_HELP)]
TimezoneOption = Annotated[str, typer.Option(help="Of the schedule, such as Europe/Berlin.")]


class Collision(StrEnum):
    """What becomes of a scheduled run while the one before still goes on."""

    enqueue = "enqueue"
    cancel_new = "cancel-new"


class Format(StrEnum):
    """How `assets` and `query` print."""

    table = "table"
    csv = "csv"
    json = "json"
    parquet = "parquet"


SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A recipe key; repeatable.")
]
MANIFEST_HELP = "CSV, JSONL or Parquet file of prompts, or a folder of them; s3:// works too."
ManifestArgument = Annotated[str, typer.Argument(help=MANIFEST_HELP)]
LimitOption = Annotated[int | None, typer.Option(help="Only the first N entries.")]
WhereOption = Annotated[str | None, typer.Option(help="SQL over the entries: seed < 3.")]
ScenesOption = Annotated[
    str, typer.Option(metavar="K|auto", help="Scenes that a device steps together.")
]
DevicesOption = Annotated[
    str | None, typer.Option(help="cpu, cpu,cpu, cuda:0,cuda:1, ... Default: every GPU.")
]
ScratchOption = Annotated[str, typer.Option(help="Folder for checkpoints and logs.")]
TimeoutOption = Annotated[
    float | None, typer.Option(help="Seconds of optimisation that an asset may take.")
]
RetryOption = Annotated[bool, typer.Option("--retry-failed", help="Try failed assets again.")]
PriceOption = Annotated[
    float | None,
    typer.Option(envvar="SJC_PRICE_PER_HOUR", help="Of one device, for the costs in the UI."),
]
GalleryOption = Annotated[
    str | None,
    typer.Option(envvar="SJC_GALLERY", help="Folder or address of the gallery, for links."),
]


@app.command()
def run(
    context: typer.Context,
    manifest: ManifestArgument,
    store: StoreOption = "./store",
    prior: PriorOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    limit: LimitOption = None,
    where: WhereOption = None,
    scenes_per_device: ScenesOption = "auto",
    devices: DevicesOption = None,
    scratch: ScratchOption = ".sjc",
    timeout: TimeoutOption = None,
    retry_failed: RetryOption = False,
    price_per_hour: PriceOption = None,
    gallery: GalleryOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and end.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="The result as JSON.")] = False,
) -> None:
    """Make the assets of a manifest: reuse the finished ones, go on with the interrupted ones."""
    with reported("run the same command again to go on"):
        from flows.run import dry_run as show_plan
        from flows.run import run as run_flow

        settings = run_settings(context)
        if dry_run:
            show_plan(settings, as_json=json_)
        else:
            raise typer.Exit(run_flow(settings, quiet=quiet, as_json=json_))


@app.command()
def check(
    manifest: ManifestArgument,
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


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to make.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the files.")],
    prior: Annotated[str, typer.Option(help="As for `run`.")] = "toybox",
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


@app.command()
def assets(
    store: StoreOption = "./store",
    manifest: Annotated[
        Path | None, typer.Option(help="Only assets that this manifest asks for.")
    ] = None,
    where: Annotated[str | None, typer.Option(help='SQL: "clip_score > 25".')] = None,
    format: Annotated[Format, typer.Option(help="How to print.")] = Format.table,
) -> None:
    """List the assets of a store: one row each, its best outcome."""
    with reported():
        from flows.listing import list_assets

        list_assets(store, manifest, where, format)


@app.command()
def query(
    sql: Annotated[str, typer.Argument(help="DuckDB SQL over the tables below.")],
    store: StoreOption = "./store",
    format: Annotated[Format, typer.Option(help="How to print.")] = Format.table,
) -> None:
    """Ask the tables assets, views, entries, attempts and runs, and the view best_assets."""
    with reported():
        from flows.listing import run_query

        run_query(store, sql, format)


@app.command()
def evaluate(
    store: StoreOption = "./store",
    where: Annotated[
        str | None, typer.Option(help="SQL over best_assets: clip_score < 25.")
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="Only assets that this manifest asks for.")
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="Another judge: a CLIP folder, or owner/name on the hub.")
    ] = None,
    set_: SetOption = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda:N.")] = None,
    scratch: Annotated[str, typer.Option(help="Folder for unfinished files and logs.")] = ".sjc",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="The new rows as JSON.")] = False,
) -> None:
    """Measure finished assets again, with another judge perhaps; nothing is optimised again."""
    with reported("what was measured so far is recorded"):
        from flows import environment

        environment.apply(console_level="CRITICAL")
        from flows.evaluate import command

        overrides = parse_overrides(set_) | ({"judge": judge} if judge else {})
        path = str(manifest) if manifest else None
        code = command(store, where, path, overrides, device, scratch, quiet=quiet, as_json=json_)
        raise typer.Exit(code)


@app.command()
def gallery(
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write.")],
    store: StoreOption = "./store",
    where: Annotated[str | None, typer.Option(help="SQL over best_assets: faces < 9000.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Write a web page over a store: thumbnails, search, filters, and a 3D viewer per asset."""
    with reported("what was copied stays; run it again to go on"):
        from flows.pages import gallery as write

        write(store, out, where, quiet=quiet)


@app.command()
def sample2d(
    prompt: Annotated[str, typer.Argument(help="What to draw; priors without words ignore it.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The PNG file to write.")],
    prior: Annotated[
        list[str] | None,
        typer.Option(help="As for `run`; repeatable. Default: toybox and toybox-duck."),
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


@app.command()
def serve(
    context: typer.Context,
    manifest: ManifestArgument,
    cron: CronOption,
    timezone: TimezoneOption = "UTC",
    store: StoreOption = "./store",
    prior: PriorOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    limit: LimitOption = None,
    where: WhereOption = None,
    scenes_per_device: ScenesOption = "auto",
    devices: DevicesOption = None,
    scratch: ScratchOption = ".sjc",
    timeout: TimeoutOption = None,
    retry_failed: RetryOption = False,
    price_per_hour: PriceOption = None,
    gallery: GalleryOption = None,
) -> None:
    """Run a manifest by the clock, in this process: each run makes what is new."""
    with reported("finished assets are in the store; the next run goes on"):
        from flows.serve import serve as serve_runs

        settings = run_settings(context)
        serve_runs(settings, cron, timezone)


@app.command()
def deploy(
    context: typer.Context,
    manifest: Annotated[
        str | None, typer.Argument(help="As for `run`. Default: the deployments of --file.")
    ] = None,
    cron: Annotated[str | None, typer.Option(help=CRON_HELP)] = None,
    timezone: TimezoneOption = "UTC",
    name: Annotated[str | None, typer.Option(help="Default: the manifest's name.")] = None,
    pool: Annotated[str, typer.Option(help="Work pool; made if there is none.")] = "gpu",
    on_collision: Annotated[
        Collision, typer.Option(help="For a run while the one before still goes on.")
    ] = Collision.enqueue,
    file: Annotated[Path, typer.Option(help="Deployments in Prefect's format.")] = Path(
        "prefect.yaml"
    ),
    store: StoreOption = "./store",
    prior: PriorOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    limit: LimitOption = None,
    where: WhereOption = None,
    scenes_per_device: ScenesOption = "auto",
    devices: DevicesOption = None,
    scratch: ScratchOption = ".sjc",
    timeout: TimeoutOption = None,
    retry_failed: RetryOption = False,
    price_per_hour: PriceOption = None,
    gallery: GalleryOption = None,
) -> None:
    """Put scheduled runs on a work pool, from prefect.yaml or of a manifest, for workers."""
    with reported():
        from flows import deploy as deployments
        from flows.schedule import deployment_name

        if manifest is None:
            if cron is not None or name is not None:
                fail("sjc: --cron and --name are for a manifest; name one, or leave them out", 2)
            deployments.deploy(deployments.read_file(file), file)
            return
        settings = run_settings(context)
        deployments.deploy(
            deployments.one_deployment(
                settings,
                name or deployment_name(manifest),
                cron,
                timezone,
                pool,
                on_collision.replace("-", "_").upper(),
            )
        )


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="Port on the loopback address.")] = 4200,
) -> None:
    """Serve Prefect's pages; runs of the same PREFECT_HOME find this server and report to it."""
    with reported():
        from flows.ui import serve

        serve(port)


def run_settings(context: typer.Context) -> "Settings":
    """The options of `run`, which `serve` and `deploy` have too."""
    from flows.plan import Settings

    given = {f.name: context.params[f.name] for f in fields(Settings) if f.name != "overrides"}
    given["scenes_per_device"] = parse_scenes(given["scenes_per_device"])
    if given["devices"] is not None:
        given["devices"] = given["devices"].split(",")
    return Settings(**given, overrides=parse_overrides(context.params["set_"]))


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
