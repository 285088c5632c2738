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
def plan(
    manifest: Annotated[str, typer.Argument(help="CSV, JSONL or Parquet file of prompts.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The plan to write, a Parquet file.")],
    store: Annotated[
        str, typer.Option(envvar="SJC_STORE", help="Whose finished assets tell how long it takes.")
    ] = "./store",
    prior: PriorOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    where: Annotated[str | None, typer.Option(help="SQL over the entries: seed < 3.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N entries.")] = None,
    shard_seconds: Annotated[
        float, typer.Option(help="Seconds of one device that a shard should take.")
    ] = 5400,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No warnings.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="The result as JSON.")] = False,
) -> None:
    """Cut a manifest into shards for many machines; `dispatch` has them made."""
    with reported():
        from flows.plan import Settings
        from flows.planning import plan as write

        settings = Settings(
            manifest, store, prior, recipe, parse_overrides(set_), limit=limit, where=where
        )
        write(settings, out, shard_seconds, quiet=quiet, as_json=json_)


@app.command()
def dispatch(
    plan: Annotated[Path, typer.Argument(help="A plan of `sjc plan`.")],
    store: StoreOption = "./store",
    deployment: Annotated[
        str, typer.Option(help="FLOW/NAME of the deployment that runs shards.")
    ] = "generate-shard/shards",
    workers: Annotated[
        int | None, typer.Option(help="Of the work pool. Default: those that are online.")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds of optimisation that an asset may take.")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try failed assets again.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="The result as JSON.")] = False,
) -> None:
    """Have a plan's shards made by the workers of a Prefect work pool, and wait for them."""
    with reported("shards at the pool go on; run the same command again to follow them"):
        from flows.dispatching import run

        code = run(
            plan,
            store,
            deployment,
            workers,
            retry_failed=retry_failed,
            timeout=timeout,
            quiet=quiet,
            as_json=json_,
        )
        raise typer.Exit(code)


@app.command()
def compact(
    store: StoreOption = "./store",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="The result as JSON.")] = False,
) -> None:
    """Merge each table's files into one; readers and runs may go on meanwhile."""
    with reported("the tables are right as they are; run it again to go on"):
        from flows.compacting import run

        run(store, quiet=quiet, as_json=json_)


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
