"""`sjc ui`: Prefect's server and pages on the loopback address."""

import contextlib
import sys
from typing import Annotated

import typer

from flows.commands.app import command
from flows.errors import UsageError


@command("sjc ui", "sjc ui --port 0")
def ui(port: Annotated[int, typer.Option(help="Port on the loopback address.")] = 4200) -> None:
    """Serve Prefect's pages; runs of the same PREFECT_HOME find this server and report to it."""
    from flows.prefect_server import environment
    from flows.prefect_server.server import HOST, free_port, healthy, serve_ui

    environment.apply()
    port = port or free_port()
    address = f"http://{HOST}:{port}"
    if healthy(f"{address}/api"):
        raise UsageError(f"a Prefect server is up at {address} already")
    print(f"Prefect's pages: {address} (Ctrl-C ends them)", file=sys.stderr, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        serve_ui(port)
