"""`sjc ui`: Prefect's server and pages on the loopback address."""

import contextlib
import sys

from flows.errors import UsageError
from flows.prefect_server import environment
from flows.prefect_server.server import HOST, free_port, healthy, serve_ui


def serve(port: int) -> None:
    """Serves until Ctrl-C; port 0 is any free one. Raises UsageError when a server is up there."""
    environment.apply()
    port = port or free_port()
    if healthy(f"http://{HOST}:{port}/api"):
        raise UsageError(f"a Prefect server is up at http://{HOST}:{port} already")
    print(f"Prefect's pages: http://{HOST}:{port} (Ctrl-C ends them)", file=sys.stderr, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        serve_ui(port)
