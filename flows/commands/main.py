"""`sjc` with all its commands. What is slow to import is imported where it is needed."""

import atexit
import contextlib
import gc
import logging
import os
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path


def refuse_strangers(root: Path) -> None:
    """Ends the program when `tasks` or `sjc_engine` would not be those in `root`.

    These names are common enough for a user to have such a folder or file on PYTHONPATH.
    """
    for name in ("tasks", "sjc_engine"):
        spec = find_spec(name)
        found = Path(spec.origin) if spec and spec.origin else None
        if found is None or found.resolve().parents[1] != root:
            problem = f"its package {name!r} should be {root / name}, and Python finds {found}"
            print(f"sjc: {problem}; take that out of PYTHONPATH, or rename it", file=sys.stderr)
            sys.exit(2)


refuse_strangers(Path(__file__).resolve().parents[2])  # before they are imported

from flows.commands.app import GROUPS, app  # noqa: E402
from flows.errors import standard_streams  # noqa: E402

for _names in GROUPS.values():
    for _name in _names:
        import_module(f"flows.commands.{_name}")  # which adds its command to `app`


def sjc() -> None:
    """The entry point of the program `sjc`, whose process ends at once.

    Else the interpreter would take its modules apart: a second of a core when torch is among them.
    """
    code = 1

    def leave() -> None:
        logging.shutdown()
        for stream in filter(None, (sys.stdout, sys.stderr)):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)

    # Stages that end after the interpreter began to shut down: Prefect cannot send their records.
    logging.raiseExceptions = False
    atexit.register(leave)  # the first of all, so that it is the last to be called
    try:
        main()
    except SystemExit as ended:
        code = int(ended.code or 0)
        raise


def main() -> None:
    """`sjc`, in a process that goes on after it."""
    gc.set_threshold(50_000)  # at 700 a fifth of the time to import what all stays
    with standard_streams():
        app()
