"""The command line `sjc`. What is slow to import is imported where it is needed."""

from flows.cli import look, make, operate  # each adds its commands to the program
from flows.cli.app import app
from flows.errors import standard_streams

__all__ = ["app", "look", "main", "make", "operate"]


def main() -> None:
    with standard_streams():
        app()
