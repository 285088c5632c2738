"""Reading the documents of many assets."""

from __future__ import annotations

import threading
import time
from itertools import count
from types import SimpleNamespace

import pytest

from tasks.records import documents
from tasks.records.documents import FEW, LOOKUPS, QUICK, read_ahead

ASSETS = range(5 * FEW)


def reads_take(monkeypatch: pytest.MonkeyPatch, seconds: float, busy: float) -> None:
    """As the clocks of `read_ahead` have it, whatever the load of this machine."""
    wall, work = (count(0.0, step) for step in (seconds, busy))
    clocks = SimpleNamespace(monotonic=lambda: next(wall), thread_time=lambda: next(work))
    monkeypatch.setattr(documents, "time", clocks)


@pytest.mark.parametrize(
    ("seconds", "busy", "threads"),
    [
        (0.001, 0.001, False),
        (0.001, 0.0006, False),
        (0.001, 0.0004, True),  # it waits
        (1.1 * QUICK, 1.1 * QUICK, True),  # the work may be that of a library, without the GIL
        (0.9 * QUICK, 0.9 * QUICK, False),
    ],
)
def test_threads_read_where_the_first_reads_wait_or_are_long(
    monkeypatch: pytest.MonkeyPatch, seconds: float, busy: float, threads: bool
) -> None:
    reads_take(monkeypatch, seconds, busy)
    readers: list[int] = []

    def read(asset: int) -> int:
        readers.append(threading.get_ident())
        time.sleep(0.002 * (asset % 3))
        return asset

    assert list(read_ahead(read, ASSETS)) == list(ASSETS)
    assert set(readers[:FEW]) == {threading.get_ident()}
    if threads:
        assert threading.get_ident() not in readers[FEW:]
        assert 1 < len(set(readers[FEW:])) <= LOOKUPS
    else:
        assert set(readers) == {threading.get_ident()}


@pytest.mark.parametrize("busy", [0.001, 0.0])
def test_few_are_read_before_the_caller_wants_them(
    monkeypatch: pytest.MonkeyPatch, busy: float
) -> None:
    reads_take(monkeypatch, 0.001, busy)
    begun: list[int] = []
    reading = read_ahead(begun.append, ASSETS)
    for wanted in ASSETS:
        next(reading)
        ahead = LOOKUPS if wanted >= FEW and not busy else 1
        assert wanted < len(begun) <= wanted + ahead


@pytest.mark.parametrize("busy", [0.001, 0.0])
@pytest.mark.parametrize("bad", [0, FEW - 1, FEW, 3 * FEW])
def test_an_error_comes_after_what_was_read_before_it(
    monkeypatch: pytest.MonkeyPatch, busy: float, bad: int
) -> None:
    reads_take(monkeypatch, 0.001, busy)

    def read(asset: int) -> int:
        if asset == bad:
            raise OSError("the disk")
        return asset

    found: list[int] = []
    with pytest.raises(OSError, match="the disk"):
        found.extend(read_ahead(read, ASSETS))
    assert found == list(range(bad))


@pytest.mark.parametrize("number", [0, 1, FEW, FEW + 1])
def test_there_may_be_few_assets_or_none(number: int) -> None:
    assert list(read_ahead(str, range(number))) == [str(n) for n in range(number)]
