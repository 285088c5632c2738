"""CSV that a spreadsheet may open: no cell runs, numbers stay numbers, and text comes back."""

from __future__ import annotations

import csv
import io
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.datasets.csv_text import FORMULAS, to_csv


def read(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline=""), strict=True))


@pytest.mark.parametrize(
    "cell", ["=1+2", "+cmd|' /C calc'!A0", "-1", "@SUM(A1)", "\t=1", "\r=1", '=HYPERLINK("x")', "="]
)
def test_formulas_are_text(cell: str) -> None:
    [header, row] = read(to_csv(pa.table({"prompt": [cell], cell: [cell]})))
    assert row == [f"'{cell}"] * 2
    assert header == ["prompt", f"'{cell}"], "SQL may name a column so"


def test_numbers_stay_numbers() -> None:
    table = pa.table({"a": [-1], "b": [-0.5], "c": [None], "d": [True]})
    assert read(to_csv(table)) == [["a", "b", "c", "d"], ["-1", "-0.5", "", "True"]]


TEXT = st.text("=+-@\t\r\n,\"' ab1;é🦆\u202e", max_size=8)


@settings(deadline=None)
@given(st.lists(st.tuples(TEXT, st.integers(-(2**63), 2**63 - 1)), min_size=1, max_size=5))
def test_any_text_comes_back_and_none_runs(rows: list[tuple[str, int]]) -> None:
    table = pa.table({"text": [text for text, _ in rows], "number": [n for _, n in rows]})
    found = read(to_csv(table))[1:]
    assert len(found) == len(rows)
    for (text, number), (cell, digits) in zip(rows, found, strict=True):
        assert int(digits) == number
        assert not cell.startswith(FORMULAS)
        assert cell == (f"'{text}" if text.startswith(FORMULAS) else text)


def test_the_other_formats_keep_cells_as_they_are(capfdbinary: Any) -> None:
    import json

    import pyarrow.parquet as pq

    from flows.commands.output import show

    table = pa.table({"prompt": ["=1+2", "@x"]})
    show(table, "json")
    assert json.loads(capfdbinary.readouterr().out) == [{"prompt": "=1+2"}, {"prompt": "@x"}]
    show(table, "parquet")
    data = capfdbinary.readouterr().out
    assert pq.read_table(io.BytesIO(data))["prompt"].to_pylist() == ["=1+2", "@x"]
