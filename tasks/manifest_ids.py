"""The ids of a manifest's rows: the given ones, and for the other rows ids from their prompts."""

from __future__ import annotations

from collections import Counter

Place = tuple[str, int]  # file and line

_LINE_BITS = 40


class RowIds:
    """Who holds which id. Ids that are given go first, wherever they stand.

    A million rows fit into 150 MB: places are numbers, `file << _LINE_BITS | line`.
    """

    def __init__(self) -> None:
        self._holders: dict[str, int] = {}
        self._ranged: dict[str, int] = {}  # ids that a seed range makes, ID-s0, ID-s1, ...
        self._bases: set[str] = set()  # ids that stand for such a range, and for no row
        self._uses: Counter[str] = Counter()
        self._files: dict[str, int] = {}

    def give(self, row_id: str, file: str, line: int) -> None:
        """Notes a given id; the first row that has it holds it."""
        self._holders.setdefault(row_id, self._number(file, line))

    def derive(self, slug: str, file: str, line: int) -> str:
        """An id like `slug` that is free. Every given id has to be known by now."""
        row_id = slug
        while row_id in self._holders:
            self._uses[slug] += 1
            row_id = f"{slug}-{self._uses[slug] + 1}"
        self._holders[row_id] = self._number(file, line)
        return row_id

    def holder(self, row_id: str) -> Place:
        """The row of an id that is known."""
        return self._place(self._holders[row_id])

    def twin(self, row_id: str, made: list[str], file: str, line: int) -> tuple[str, Place] | None:
        """Takes the ids of a row's entries; the first that an earlier row has, with its place.

        made: [row_id], or what its seed range makes of it.
        """
        number = self._number(file, line)
        if made != [row_id]:
            self._bases.add(row_id)
        for name in made:
            other = self._ranged.get(name)
            if other is None and name != row_id and name not in self._bases:
                other = self._holders.get(name)
                other = None if other is None or other >= number else other
            if other is not None:
                return name, self._place(other)
            if name != row_id:
                self._ranged[name] = number
        return None

    def _number(self, file: str, line: int) -> int:
        return self._files.setdefault(file, len(self._files)) << _LINE_BITS | line

    def _place(self, number: int) -> Place:
        return list(self._files)[number >> _LINE_BITS], number & ((1 << _LINE_BITS) - 1)
