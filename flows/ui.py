"""`sjc ui`: Prefect's server and pages on the loopback address."""

import sys

from flows import environment
from flows.errors import UsageError
from flows.server import HOST, healthy, serve_ui


def serve(port: int) -> None:
    """Serves until Ctrl-C. Raises UsageError when something serves there already."""
    environment.apply()
    if healthy(f"http://{HOST}:{port}/api"):
        raise UsageError(f"a Prefect server is up at http://{HOST}:{port} already")
    print(f"Prefect's pages: http://{HOST}:{port} (Ctrl-C ends them)", file=sys.stderr, flush=True)
    serve_ui(port)
