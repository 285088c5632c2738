"""Commands that operate many runs: serve, deploy, plan, dispatch, verify, compact, ui, doctor."""

from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.app import app
from flows.cli.manual import OPERATE, examples
from flows.cli.options import (
    CRON_HELP,
    CheckpointOption,
    Collision,
    CompiledOption,
    CronOption,
    DevicesOption,
    GalleryOption,
    JsonOption,
    LimitOption,
    ManifestArgument,
    PriceOption,
    PriorOption,
    QuietOption,
    RecipeOption,
    RetryOption,
    ScenesOption,
    ScratchOption,
    SetOption,
    StoreOption,
    TimeoutOption,
    TimezoneOption,
    WhereOption,
    parse_overrides,
    run_settings,
)
from flows.errors import fail, reported

command = partial(app.command, rich_help_panel=OPERATE)


@command(
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
    scenes_per_device: ScenesOption = None,
    devices: DevicesOption = None,
    scratch: ScratchOption = ".sjc",
    timeout: TimeoutOption = None,
    retry_failed: RetryOption = False,
    price_per_hour: PriceOption = None,
    gallery: GalleryOption = None,
    checkpoint_to_store: CheckpointOption = False,
    compiled: CompiledOption = False,
) -> None:
    """Run a manifest by the clock, in this process: each run makes what is new."""
    with reported("finished assets are in the store; the next run goes on"):
        from flows.commands.serve import serve as serve_runs

        settings = run_settings(context.params)
        serve_runs(settings, cron, timezone)


@command(
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
    scenes_per_device: ScenesOption = None,
    devices: DevicesOption = None,
    scratch: ScratchOption = ".sjc",
    timeout: TimeoutOption = None,
    retry_failed: RetryOption = False,
    price_per_hour: PriceOption = None,
    gallery: GalleryOption = None,
    checkpoint_to_store: CheckpointOption = False,
    compiled: CompiledOption = False,
) -> None:
    """Put scheduled runs on a work pool, from prefect.yaml or of a manifest, for workers."""
    with reported():
        from flows.commands import deploy as deployments
        from flows.prefect_server.schedule import deployment_name

        if manifest is None:
            if cron is not None or name is not None:
                fail("sjc: --cron and --name are for a manifest; name one, or leave them out", 2)
            deployments.deploy(deployments.read_file(file), file)
            return
        settings = run_settings(context.params)
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


@command(
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
    json_: JsonOption = False,
) -> None:
    """Cut a manifest into shards for many machines; `dispatch` has them made."""
    with reported():
        from flows.commands.plan import plan as write
        from flows.settings import Settings

        settings = Settings(
            manifest, store, prior, recipe, parse_overrides(set_), limit=limit, where=where
        )
        write(settings, out, shard_seconds, quiet=quiet, as_json=json_)


@command(
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
    compiled: CompiledOption = False,
    quiet: QuietOption = False,
    json_: JsonOption = False,
) -> None:
    """Have a plan's shards made by the workers of a Prefect work pool, and wait for them."""
    with reported("shards at the pool go on; run the same command again to follow them"):
        from flows.commands.dispatch import run

        code = run(
            plan,
            store,
            deployment,
            workers,
            retry_failed=retry_failed,
            timeout=timeout,
            checkpoint_to_store=checkpoint_to_store,
            compiled=compiled,
            quiet=quiet,
            as_json=json_,
        )
        raise typer.Exit(code)


@command(
    epilog=examples("sjc verify --store s3://bucket/first", "sjc verify --repair"),
)
def verify(
    store: StoreOption = "./store",
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Set damaged assets aside, make the tables again, remove abandoned files. Nothing"
            " is repaired while any file cannot be read.",
        ),
    ] = False,
    yes: Annotated[
        bool,
        typer.Option("--yes", help="Repair even if it sets aside more than one document."),
    ] = False,
    older: Annotated[
        float,
        typer.Option(
            min=0, metavar="HOURS", help="Unfinished files of this age count as abandoned."
        ),
    ] = 24,
    scratch: ScratchOption = ".sjc",
    quiet: QuietOption = False,
    json_: JsonOption = False,
) -> None:
    """Check every file against its checksum and every table against the JSON behind it."""
    with reported("nothing is half done; run it again"):
        from flows.commands.verify import run

        abandoned = timedelta(hours=older)
        code = run(
            store, Path(scratch), abandoned, repair=repair, yes=yes, quiet=quiet, as_json=json_
        )
        raise typer.Exit(code)


@command(
    epilog=examples(
        "sjc compact",
        "sjc compact --store s3://bucket/first",
    ),
)
def compact(
    store: StoreOption = "./store",
    quiet: QuietOption = False,
    json_: JsonOption = False,
) -> None:
    """Merge each table's files into one; readers and runs may go on meanwhile."""
    with reported("the tables are right as they are; run it again to go on"):
        from flows.commands.compact import run

        run(store, quiet=quiet, as_json=json_)


@command(epilog=examples("sjc ui", "sjc ui --port 0"))
def ui(
    port: Annotated[int, typer.Option(help="Port on the loopback address.")] = 4200,
) -> None:
    """Serve Prefect's pages; runs of the same PREFECT_HOME find this server and report to it."""
    with reported():
        from flows.commands.ui import serve

        serve(port)


@command(
    epilog=examples("sjc doctor", "sjc doctor --store s3://bucket/first --json"),
)
def doctor(
    store: StoreOption = "./store",
    scratch: Annotated[Path, typer.Option(help="As for `run`.")] = Path(".sjc"),
    json_: JsonOption = False,
) -> None:
    """Examine this machine: versions, devices, weights, store, server; what to do where it fails.

    Nothing is made. Exit code 0 when a run would work, 1 when there is a problem.
    """
    from flows.commands.doctor import (
        doctor as examine,  # works where what `reported` imports is missing
    )

    raise typer.Exit(examine(store, scratch, as_json=json_))
