"""Commands that make assets: run, check, generate, evaluate."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from flows.cli import completion
from flows.cli.app import app
from flows.cli.manual import MAKE, examples
from flows.cli.options import (
    MAX_SEED,
    CheckpointOption,
    CompiledOption,
    DeviceOption,
    DevicesOption,
    GalleryOption,
    JsonOption,
    LimitOption,
    ManifestArgument,
    OfManifestOption,
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
    WhereOption,
    parse_overrides,
    run_settings,
)
from flows.errors import reported

command = partial(app.command, rich_help_panel=MAKE)


@command(
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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and end.")] = False,
    quiet: QuietOption = False,
    json_: JsonOption = False,
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
    """Make the assets of a manifest: reuse the finished ones, go on with the interrupted ones."""
    with reported("run the same command again to go on"):
        from flows.commands.run import dry_run as show_plan
        from flows.commands.run import run as run_flow

        settings = run_settings(context.params)
        if dry_run:
            show_plan(settings, as_json=json_)
        else:
            raise typer.Exit(run_flow(settings, quiet=quiet, as_json=json_))


@command(epilog=examples("sjc check manifests/toybox.csv"))
def check(
    manifest: ManifestArgument,
    prior: PriorOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
) -> None:
    """Validate a manifest, and show every bad row at once."""
    with reported():
        from flows.commands.check import check as check_rows

        check_rows(manifest, prior, recipe, parse_overrides(set_))


@command(
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
    device: DeviceOption = None,
    quiet: QuietOption = False,
    json_: JsonOption = False,
) -> None:
    """Make one asset with the engine alone: no manifest, no store, no Prefect."""
    with reported():
        from flows.commands.generate import Request, make

        request = Request(prompt, out, prior, recipe, parse_overrides(set_), seed, image, device)
        make(request, quiet=quiet, as_json=json_)


@command(
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
    manifest: OfManifestOption = None,
    judge: Annotated[
        str | None, typer.Option(help="Another judge: a CLIP folder, or owner/name on the hub.")
    ] = None,
    set_: SetOption = None,
    device: DeviceOption = None,
    scratch: ScratchOption = ".sjc",
    quiet: QuietOption = False,
    json_: Annotated[bool, typer.Option("--json", help="The new rows as JSON.")] = False,
) -> None:
    """Measure finished assets again, with another judge perhaps; nothing is optimised again."""
    with reported("what was measured so far is recorded"):
        from flows.prefect_server import environment

        environment.apply(console_level="CRITICAL")
        from flows.evaluate import command as measure

        overrides = parse_overrides(set_) | ({"judge": judge} if judge else {})
        code = measure(
            store, where, manifest, overrides, device, scratch, quiet=quiet, as_json=json_
        )
        raise typer.Exit(code)
