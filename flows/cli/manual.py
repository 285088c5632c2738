"""How `sjc --help` reads: commands in groups, examples below, as plain text that can be piped."""

from typing import Any

from typer.core import TyperGroup

LONG = 200  # characters of a command in the list: its first sentence, whole
MAKE, LOOK, OPERATE = "Make assets", "Look at assets", "Operate"

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
    """Lists the commands under the heading that each names as its `rich_help_panel`."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {MAKE: [], LOOK: [], OPERATE: []}
        for name, command in self.commands.items():
            heading = getattr(command, "rich_help_panel", None)
            lines = groups.setdefault(heading if isinstance(heading, str) else OPERATE, [])
            if not command.hidden:
                lines.append((name, command.get_short_help_str(LONG)))
        width = max(len(name) for name in self.commands)
        for heading, lines in groups.items():
            if lines:
                with formatter.section(heading):
                    formatter.write_dl([(name.ljust(width), about) for name, about in lines])
