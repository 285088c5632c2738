"""The program `sjc` and its manual: commands in groups, examples below, plain text for pipes."""

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperGroup

from flows.errors import reported

# The manual's groups. A command is registered by its module, all of which `main.py` imports.
GROUPS = {
    "Make assets": ("run", "check", "generate", "evaluate"),
    "Look at assets": (
        "assets", "query", "annotate", "curate", "push", "duplicates", "diff", "gallery",
        "report", "sample2d",
    ),
    "Operate": (
        "serve", "deploy", "plan", "dispatch", "verify", "prune", "compact", "ui", "doctor",
    ),
}  # fmt: skip
LONG = 200  # characters of a command in the list: its first sentence, whole

EXIT_CODES = """\b
Exit codes:
  0    all is well
  1    some assets failed, or there is a problem; stdout says which
  2    wrong usage, or mistakes in the manifest; nothing was started
  3    the store cannot be used
  130  interrupted; the same command goes on

\b
Environment:
  SJC_STORE            the store where --store is not given
  AWS_ENDPOINT_URL_S3  the server of s3:// stores; credentials as for every AWS tool
  HF_HUB_OFFLINE=1     models from the local cache only
  PREFECT_API_URL      the Prefect server to report to; otherwise that of `sjc ui`, or its own

Results go to stdout, all else to stderr. `sjc COMMAND --help` explains a command;
`sjc --install-completion` teaches your shell to complete commands, options, recipes and runs."""


def examples(*lines: str) -> str:
    """An epilog whose lines stay as they are."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


class Manual(TyperGroup):
    """Lists the commands in `GROUPS`, whichever module is imported first."""

    def list_commands(self, ctx: Any) -> list[str]:
        """In the order of `GROUPS`, not of the alphabet."""
        return [name for names in GROUPS.values() for name in names]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Under the headings of `GROUPS`, with one width for all names."""
        width = max(map(len, self.list_commands(ctx)))
        for group, names in GROUPS.items():
            with formatter.section(group):
                formatter.write_dl(
                    [(n.ljust(width), self.commands[n].get_short_help_str(LONG)) for n in names]
                )


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


def command(
    *lines: str, interrupted: str = "nothing was written"
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a function the command of its name; what goes wrong in it is `reported`.

    lines: examples. interrupted: what to know after a Ctrl-C.
    """
    return lambda body: app.command(epilog=examples(*lines))(reported(interrupted)(body))
