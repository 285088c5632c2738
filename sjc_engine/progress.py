"""How work that may take minutes reports how far it is: to a person, and to who would end it."""

from collections.abc import Callable

# Called with what is being done, how much of it is done, and of how much
OnWork = Callable[[str, int, int], object]


def unheard(what: str, done: int, total: int) -> None:
    """For work that nobody follows."""
