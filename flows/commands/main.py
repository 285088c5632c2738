"""`sjc` with all its commands. What is slow to import is imported where it is needed."""

import gc
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


def main() -> None:
    """The entry point of the program `sjc`."""
    gc.set_threshold(50_000)  # at 700 a fifth of the time to import what all stays
    with standard_streams():
        app()
