"""What a table column is: its type, meaning, unit, range and which direction is better."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, partial
from typing import Any

import pyarrow as pa

TEXT, WHOLE, REAL, FLAG = pa.string(), pa.int64(), pa.float64(), pa.bool_()
TIME = pa.timestamp("us", tz="UTC")
TEXTS, TEXT_MAP = pa.list_(TEXT), pa.map_(TEXT, TEXT)
WHOLES, REALS = pa.list_(pa.int32()), pa.list_(pa.float32())

_KINDS: dict[pa.DataType, Any] = {
    TEXT: str,
    WHOLE: int,
    REAL: int | float,
    FLAG: bool,
    TIME: datetime,
    **dict.fromkeys((TEXTS, WHOLES, REALS), list),
}
_ITEMS: dict[pa.DataType, Any] = {WHOLES: int, REALS: int | float}
_EXACT = 2**53  # whole numbers below are floats as well


class RowError(ValueError):
    """A row does not fit its table; the message names table, column and value."""


@dataclass(frozen=True)
class Column:
    """One column. `low` and `high` are inclusive; `better` is "higher", "lower" or ""."""

    name: str
    meaning: str
    type: pa.DataType = TEXT
    required: bool = False
    unit: str = ""
    low: float | None = None
    high: float | None = None
    better: str = ""
    choices: tuple[str, ...] = ()

    def check(self, value: Any) -> None:
        """Raises `RowError` unless `value` may stand in this column."""
        if value is None:
            if self.required:
                raise RowError(f"{self.name}: null is not allowed")
            return
        try:
            # Arrow cuts 1.5 down to a whole 1 and takes True for one.
            if not isinstance(value, self._kind) or (
                isinstance(value, bool) and self._kind is not bool
            ):
                raise TypeError(f"it is {type(value).__name__}")
            if not _surely_fits(value):
                pa.array([value], self.type)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise RowError(f"{self.name}: {value!r} is not {self.type}; {error}") from error
        if self.choices and value not in self.choices:
            raise RowError(f"{self.name}: {value!r} is not one of {', '.join(self.choices)}")
        if isinstance(value, float) and not math.isfinite(value):
            raise RowError(f"{self.name}: {value} is not finite")
        if self._item_kind and not all(
            isinstance(item, self._item_kind) and math.isfinite(item) for item in value
        ):
            raise RowError(f"{self.name}: not every item is a finite {self.type.value_type}")
        # A mean of float32 ones may exceed 1.
        if (self.low is not None and value < self.low - 1e-6) or (
            self.high is not None and value > self.high * (1 + 1e-6)
        ):
            raise RowError(f"{self.name}: {value} is outside {self.range}")

    # Looked up once: the hash of an Arrow type costs more than all of a check
    @cached_property
    def _kind(self) -> Any:
        return _KINDS.get(self.type, object)

    @cached_property
    def _item_kind(self) -> Any:
        return _ITEMS.get(self.type)

    @property
    def range(self) -> str:
        """The allowed values in words."""
        if self.choices:
            return ", ".join(f"`{choice}`" for choice in self.choices)
        if self.low is None:
            return ""
        return f"{self.low:g} to {self.high:g}" if self.high is not None else f"≥ {self.low:g}"


def _surely_fits(value: Any) -> bool:
    """Whether Arrow needs not be asked if a column of this value's kind can hold it."""
    match value:
        case str():
            return value.isascii()
        case int():
            return abs(value) < _EXACT
    return isinstance(value, float)


# A share of something, and one of 100; a number of things; a duration; what is always there.
share = partial(Column, type=REAL, low=0, high=1)
score = partial(Column, type=REAL, low=0, high=100, better="higher")
count = partial(Column, type=WHOLE, low=0)
seconds = partial(Column, type=REAL, unit="s", low=0, better="lower")
required = partial(Column, required=True)
