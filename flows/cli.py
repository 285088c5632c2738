"""The command line `sjc`. What is slow to import is imported where it is needed."""

from dataclasses import fields
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows import completion
from flows.errors import fail, reported
from flows.manual import EXIT_CODES, LOOK, MAKE, OPERATE, Manual, examples

if TYPE_CHECKING:
    from flows.plan import Settings

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


class DataFormat(StrEnum):
    """How `curate` keeps the data."""

    files = "files"
    webdataset = "webdataset"
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
MANIFEST_HELP = "CSV, JSONL or Parquet file of prompts, or a folder of them; s3:// works too."
ManifestArgument = Annotated[str, typer.Argument(help=MANIFEST_HELP)]
LimitOption = Annotated[int | None, typer.Option(help="Only the first so many entries.")]
WhereOption = Annotated[
    str | None, typer.Option(help="Only entries for which this SQL holds: seed < 3.")
]
ScenesOption = Annotated[
    str,
    typer.Option(
        metavar="K|auto", help="Scenes that a device steps together; auto: by free memory."
    ),
]
DevicesOption = Annotated[
    str | None,
    typer.Option(
        help="One engine each, such as cpu,cpu or cuda:0,cuda:1; default: every GPU, else cpu.",
        autocompletion=completion.devices,
    ),
]
ScratchOption = Annotated[
    str, typer.Option(help="Folder for checkpoints, unfinished files and logs.")
]
TimeoutOption = Annotated[
    float | None, typer.Option(help="Seconds of optimisation that an asset may take.")
]
RetryOption = Annotated[bool, typer.Option("--retry-failed", help="Try failed assets again.")]
CheckpointOption = Annotated[
    bool,
    typer.Option(
        "--checkpoint-to-store",
        help="Checkpoints into the store too: another machine can go on.",
    ),
]
PriceOption = Annotated[
    float | None,
    typer.Option(envvar="SJC_PRICE_PER_HOUR", help="Of one device, for the costs in the UI."),
]
GalleryOption = Annotated[
    str | None,
    typer.Option(envvar="SJC_GALLERY", help="Folder or address of the gallery, for links."),
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
    checkpoint_to_store: CheckpointOption = False,
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


@app.command(rich_help_panel=MAKE, epilog=examples("sjc check manifests/toybox.csv"))
def check(
    manifest: ManifestArgument,
    prior: PriorOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
) -> None:
    """Validate a manifest, and show every bad row at once."""
    with reported():
        from flows.checking import check as check_rows

        check_rows(manifest, prior, recipe, parse_overrides(set_))


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
        str | None, typer.Option(help="Only assets that this manifest asks for.")
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
    rich_help_panel=MAKE,
    epilog=examples(
        "sjc evaluate --judge openai/clip-vit-large-patch14",
        'sjc evaluate --where "field_mesh_lpips IS NULL" --set lpips=lpips-alex',
    ),
)
def evaluate(
    store: StoreOption = "./store",
    where: Annotated[
        str | None, typer.Option(help="SQL over best_assets: clip_score < 25.")
    ] = None,
    manifest: Annotated[
        str | None, typer.Option(help="Only assets that this manifest asks for.")
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="Another judge: a CLIP folder, or owner/name on the hub.")
    ] = None,
    set_: SetOption = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda:N.")] = None,
    scratch: ScratchOption = ".sjc",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="The new rows as JSON.")] = False,
) -> None:
    """Measure finished assets again, with another judge perhaps; nothing is optimised again."""
    with reported("what was measured so far is recorded"):
        from flows import environment

        environment.apply(console_level="CRITICAL")
        from flows.evaluate import command

        overrides = parse_overrides(set_) | ({"judge": judge} if judge else {})
        code = command(
            store, where, manifest, overrides, device, scratch, quiet=quiet, as_json=json_
        )
        raise typer.Exit(code)


@app.command(
    rich_help_panel=LOOK,
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
    manifest: Annotated[
        str | None, typer.Option(help="Only assets that this manifest asks for.")
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
        from flows.curation import fractions
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


@app.command(
    rich_help_panel=LOOK,
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
    format: Annotated[Format, typer.Option(help="How to print.")] = Format.table,
) -> None:
    """List pairs of prompts that say almost the same, the most alike first."""
    with reported():
        from flows.curation import duplicates as show_pairs

        show_pairs(manifest, store, where, similar, format)


@app.command(
    rich_help_panel=LOOK,
    epilog=examples(
        "sjc diff previous latest",
    ),
)
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


@app.command(
    rich_help_panel=OPERATE,
    epilog=examples(
        'sjc serve manifests/paper.csv --cron "0 2 * * *"',
        'sjc serve prompts/ --cron "*/30 * * * *" --store s3://bucket/first',
    ),
)
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
    checkpoint_to_store: CheckpointOption = False,
) -> None:
    """Run a manifest by the clock, in this process: each run makes what is new."""
    with reported("finished assets are in the store; the next run goes on"):
        from flows.serve import serve as serve_runs

        settings = run_settings(context)
        serve_runs(settings, cron, timezone)


@app.command(
    rich_help_panel=OPERATE,
    epilog=examples(
        "sjc deploy",
        'sjc deploy manifests/paper.csv --cron "0 2 * * *" --pool gpu',
    ),
)
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
    checkpoint_to_store: CheckpointOption = False,
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


@app.command(
    rich_help_panel=OPERATE,
    epilog=examples(
        "sjc plan prompts.csv -o plan.parquet",
        "sjc plan prompts.csv -o plan.parquet --shard-seconds 3600",
    ),
)
def plan(
    manifest: ManifestArgument,
    out: Annotated[Path, typer.Option("-o", "--out", help="The plan to write, a Parquet file.")],
    store: Annotated[
        str, typer.Option(envvar="SJC_STORE", help="Whose finished assets tell how long it takes.")
    ] = "./store",
    prior: PriorOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    where: WhereOption = None,
    limit: LimitOption = None,
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


@app.command(
    rich_help_panel=OPERATE,
    epilog=examples(
        "sjc dispatch plan.parquet --store s3://bucket/first --workers 8",
    ),
)
def dispatch(
    plan: Annotated[Path, typer.Argument(help="A plan of `sjc plan`.")],
    store: StoreOption = "./store",
    deployment: Annotated[
        str, typer.Option(help="FLOW/NAME of the deployment that runs shards.")
    ] = "generate-shard/shards",
    workers: Annotated[
        int | None, typer.Option(help="Of the work pool. Default: those that are online.")
    ] = None,
    timeout: TimeoutOption = None,
    retry_failed: RetryOption = False,
    checkpoint_to_store: CheckpointOption = False,
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
            checkpoint_to_store=checkpoint_to_store,
            quiet=quiet,
            as_json=json_,
        )
        raise typer.Exit(code)


@app.command(
    rich_help_panel=OPERATE,
    epilog=examples("sjc verify --store s3://bucket/first", "sjc verify --repair"),
)
def verify(
    store: StoreOption = "./store",
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Set damaged assets aside, make the tables again, remove abandoned files.",
        ),
    ] = False,
    older: Annotated[
        float,
        typer.Option(
            min=0, metavar="HOURS", help="Unfinished files of this age count as abandoned."
        ),
    ] = 24,
    scratch: ScratchOption = ".sjc",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="The result as JSON.")] = False,
) -> None:
    """Check every file against its checksum and every table against the JSON behind it."""
    with reported("nothing is half done; run it again"):
        from flows.verify import run

        abandoned = timedelta(hours=older)
        code = run(store, Path(scratch), abandoned, repair=repair, quiet=quiet, as_json=json_)
        raise typer.Exit(code)


@app.command(
    rich_help_panel=OPERATE,
    epilog=examples(
        "sjc compact",
        "sjc compact --store s3://bucket/first",
    ),
)
def compact(
    store: StoreOption = "./store",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="The result as JSON.")] = False,
) -> None:
    """Merge each table's files into one; readers and runs may go on meanwhile."""
    with reported("the tables are right as they are; run it again to go on"):
        from flows.compacting import run

        run(store, quiet=quiet, as_json=json_)


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


def run_settings(context: typer.Context) -> "Settings":
    """The options of `run`, which `serve` and `deploy` have too."""
    from flows.plan import Settings

    options = context.params
    given = {field.name: options[field.name] for field in fields(Settings) if field.name in options}
    given["scenes_per_device"] = parse_scenes(given["scenes_per_device"])
    if given["devices"] is not None:
        given["devices"] = given["devices"].split(",")
    return Settings(**given, overrides=parse_overrides(options["set_"]))


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
