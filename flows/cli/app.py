"""The program `sjc`, to which the modules beside this one add their commands."""

import typer

from flows.cli.manual import EXIT_CODES, Manual

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
