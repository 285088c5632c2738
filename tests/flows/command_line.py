"""What a command said."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Said:
    """How a command ended."""

    code: int
    out: str
    err: str
