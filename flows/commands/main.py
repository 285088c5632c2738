"""`sjc` with all its commands. What is slow to import is imported where it is needed."""

from importlib import import_module

from flows.commands.app import GROUPS, app
from flows.errors import standard_streams

for _names in GROUPS.values():
    for _name in _names:
        import_module(f"flows.commands.{_name}")  # which adds its command to `app`


def main() -> None:
    """The entry point of the program `sjc`."""
    with standard_streams():
        app()
