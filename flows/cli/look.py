"""Commands that look at assets: assets, query, curate, duplicates, diff, gallery, report, ..."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from flows.cli import completion
from flows.cli.app import app
from flows.cli.manual import LOOK, examples
from flows.cli.options import (
    MAX_SEED,
    DataFormat,
    DeviceOption,
    Format,
    FormatOption,
    JsonOption,
    OfManifestOption,
    QuietOption,
    StoreOption,
)
from flows.errors import fail, reported

command = partial(app.command, rich_help_panel=LOOK)


@command(
    epilog=examples(
        'sjc assets --where "clip_r_precision >= 0.9 AND watertight"',
        "sjc assets --manifest prompts.csv --format csv",
    ),
)
def assets(
    store: StoreOption = "./store",
    manifest: OfManifestOption = None,
    where: Annotated[
        str | None, typer.Option(help='Only assets for which this SQL holds: "clip_score > 25".')
    ] = None,
    format: FormatOption = Format.table,
) -> None:
    """List the assets of a store: one row each, its best outcome."""
    with reported():
        from flows.progress.results import list_assets

        list_assets(store, manifest, where, format)


@command(
    epilog=examples(
        'sjc query "SELECT status, count(*) FROM best_assets GROUP BY ALL"',
        'sjc query "SELECT * FROM views" --format parquet',
    ),
)
def query(
    sql: Annotated[str, typer.Argument(help="DuckDB SQL over the tables below.")],
    store: StoreOption = "./store",
    format: FormatOption = Format.table,
) -> None:
    """Ask the tables assets, views, entries, attempts and runs, and the view best_assets."""
    with reported():
        from flows.progress.results import run_query

        run_query(store, sql, format)


@command(
    epilog=examples(
        'sjc curate -o datasets/ducks --where "clip_score > 60"',
        "sjc curate -o s3://bucket/ducks --format webdataset",
    ),
)
def curate(
    out: Annotated[str, typer.Option("-o", "--out", help="A new folder or s3://bucket/prefix.")],
    where: Annotated[
        str | None, typer.Option(help="SQL over finished assets, their tags and meta.")
    ] = None,
    manifest: OfManifestOption = None,
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
    quiet: QuietOption = False,
    json_: JsonOption = False,
) -> None:
    """Freeze a selection into a dataset: data, manifest, splits, checksums and a card."""
    with reported("run the same command again to go on"):
        from flows.commands.curate import curate as write
        from flows.commands.curate import fractions
        from tasks.curate import Request
        from tasks.manifest_sources import file_digests

        request = Request(
            where=where,
            manifest=Path(manifest).name if manifest else None,
            manifest_sha256=tuple(file_digests(manifest)) if manifest else (),
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


@command(
    epilog=examples(
        "sjc duplicates manifests/toybox.csv",
    ),
)
def duplicates(
    manifest: Annotated[
        str | None, typer.Argument(help="Its prompts; without one, those of finished assets.")
    ] = None,
    store: StoreOption = "./store",
    where: Annotated[str | None, typer.Option(help='SQL over assets: "clip_score > 25".')] = None,
    similar: Annotated[
        float, typer.Option(min=0.3, max=1, help="Least similarity of a pair.")
    ] = 0.85,
    format: FormatOption = Format.table,
) -> None:
    """List pairs of prompts that say almost the same, the most alike first."""
    with reported():
        from flows.commands.curate import duplicates as show_pairs

        show_pairs(manifest, store, where, similar, format)


@command(
    epilog=examples(
        "sjc diff previous latest",
    ),
)
def diff(
    run_a: Annotated[str, typer.Argument(help="A run's id, its beginning, or `previous`.")],
    run_b: Annotated[str, typer.Argument(help="The run to compare with it, or `latest`.")],
    store: StoreOption = "./store",
    format: FormatOption = Format.table,
) -> None:
    """Show what changed between two runs; exit code 1 if something new fails."""
    with reported():
        from flows.commands.curate import diff as show_changes

        raise typer.Exit(show_changes(run_a, run_b, store, format))


@command(
    epilog=examples("sjc gallery -o pages", 'sjc gallery -o best --where "clip_score > 60"'),
)
def gallery(
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write.")],
    store: StoreOption = "./store",
    where: Annotated[
        str | None, typer.Option(help="Only assets for which this SQL holds: faces < 9000.")
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Write a web page over a store: thumbnails, search, filters, and a 3D viewer per asset."""
    with reported("what was copied stays; run it again to go on"):
        from flows.commands.gallery import gallery as write

        write(store, out, where, quiet=quiet)


@command(
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
        from flows.commands.gallery import report as write

        write(store, run_id)


@command(
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
    device: DeviceOption = None,
    quiet: QuietOption = False,
) -> None:
    """Draw the paper's 2D experiments: the perturbed score, samples, schedules and guidance."""
    with reported():
        from flows.commands.sample2d import sample2d as draw

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
