"""The command line `sjc`. What is slow to import is imported where it is needed."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.errors import fail, reported

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


class Format(StrEnum):
    """How `assets` and `query` print."""

    table = "table"
    csv = "csv"
    json = "json"
    parquet = "parquet"


class DataFormat(StrEnum):
    """How `curate` keeps the data."""

    files = "files"
    webdataset = "webdataset"
    parquet = "parquet"


SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A recipe key; repeatable.")
]


@app.command()
def run(
    manifest: Annotated[str, typer.Argument(help="CSV, JSONL or Parquet file of prompts.")],
    store: StoreOption = "./store",
    prior: PriorOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N entries.")] = None,
    where: Annotated[str | None, typer.Option(help="SQL over the entries: seed < 3.")] = None,
    scenes_per_device: Annotated[
        str, typer.Option(metavar="K|auto", help="Scenes that a device steps together.")
    ] = "auto",
    devices: Annotated[
        str | None, typer.Option(help="cpu, cpu,cpu, cuda:0,cuda:1, ... Default: every GPU.")
    ] = None,
    scratch: Annotated[str, typer.Option(help="Folder for checkpoints and logs.")] = ".sjc",
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


@app.command()
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
def curate(
    out: Annotated[str, typer.Option("-o", "--out", help="A new folder or s3://bucket/prefix.")],
    where: Annotated[
        str | None, typer.Option(help="SQL over finished assets, their tags and meta.")
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="Only assets that this manifest asks for.")
    ] = None,
    format: Annotated[DataFormat, typer.Option(help="How the data is kept.")] = DataFormat.files,
    store: StoreOption = "./store",
    include: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help='Files of an asset: "views/*.png"; repeatable.'),
    ] = None,
    splits: Annotated[
        str, typer.Option(help="Shares of train, val and test, by the prompt's hash.")
    ] = "0.8,0.1,0.1",
    similar: Annotated[
        float, typer.Option(min=0.3, max=1, help="Similarity of near-duplicate prompts.")
    ] = 0.85,
    dedupe: Annotated[
        bool, typer.Option("--dedupe", help="Keep the best of near-duplicate prompts.")
    ] = False,
    links: Annotated[
        bool, typer.Option("--links", help="parquet: addresses in the store, not the bytes.")
    ] = False,
    shard_size: Annotated[
        float, typer.Option(min=1, metavar="MB", help="Megabytes of a shard, about.")
    ] = 500,
    shard_assets: Annotated[int, typer.Option(min=1, help="Assets of a shard, at most.")] = 10_000,
    name: Annotated[str, typer.Option(help="Title of the card.")] = "3D assets by SJC Foundry",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="The result as JSON.")] = False,
) -> None:
    """Freeze a selection into a dataset: data, manifest, splits, checksums and a card."""
    with reported("run the same command again to go on"):
        from flows.curation import curate as write
        from flows.curation import digest_of, fractions
        from tasks.curate import Request

        request = Request(
            where=where,
            manifest=manifest.name if manifest else None,
            manifest_sha256=digest_of(manifest) if manifest else None,
            format=format,
            include=tuple(include or ()),
            fractions=fractions(splits),
            similar=similar,
            dedupe=dedupe,
            links=links,
            shard_megabytes=shard_size,
            shard_assets=shard_assets,
            name=name,
        )
        write(store, out, request, quiet=quiet, as_json=json_)


@app.command()
def duplicates(
    manifest: Annotated[
        Path | None, typer.Argument(help="Its prompts; without one, those of finished assets.")
    ] = None,
    store: StoreOption = "./store",
    where: Annotated[str | None, typer.Option(help='SQL over assets: "clip_score > 25".')] = None,
    similar: Annotated[
        float, typer.Option(min=0.3, max=1, help="Least similarity of a pair.")
    ] = 0.85,
    format: Annotated[Format, typer.Option(help="How to print.")] = Format.table,
) -> None:
    """List pairs of prompts that say almost the same, the most alike first."""
    with reported():
        from flows.curation import duplicates as show_pairs

        show_pairs(manifest, store, where, similar, format)


@app.command()
def diff(
    run_a: Annotated[str, typer.Argument(help="A run's id, its beginning, or `previous`.")],
    run_b: Annotated[str, typer.Argument(help="The run to compare with it, or `latest`.")],
    store: StoreOption = "./store",
    format: Annotated[Format, typer.Option(help="How to print.")] = Format.table,
) -> None:
    """Show what changed between two runs; exit code 1 if something new fails."""
    with reported():
        from flows.curation import diff as show_changes

        raise typer.Exit(show_changes(run_a, run_b, store, format))


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
def ui(
    port: Annotated[int, typer.Option(help="Port on the loopback address.")] = 4200,
) -> None:
    """Serve Prefect's pages; runs of the same PREFECT_HOME find this server and report to it."""
    with reported():
        from flows.ui import serve

        serve(port)


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
