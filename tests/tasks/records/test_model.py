"""The commit protocol, model-checked: all interleavings of runs that share a store, with crashes.

`tests/support/store_model.py` is the checker, `commit_model.py` the runs and their promises. The
faults at the end are planted into the product's code, and each must be found.
"""

from __future__ import annotations

import inspect
import os
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import commit_model as model
import pytest
from store_model import Programs, Search, Stores, Violation, observe, substitute

from tasks.records import attempts
from tasks.records.commit import commit_asset
from tasks.tables import write

RUNS = ("run1", "run2")
DEEP = bool(os.environ.get("MODEL"))  # `make model`


@pytest.fixture
def patch(tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def search(
    patch: pytest.MonkeyPatch, folder: Path, assets: int, *, lags: bool = False, **options: Any
) -> Search:
    model.install(patch, folder)
    run = model.run_of(model.SPECS[:assets], folder)
    reduced = options.pop("reduced", False)
    programs = Programs(dict.fromkeys((*RUNS, "next"), run) | {"repair": model.repair}, **options)
    return Search(programs, Stores(model.check_change, lags), reduced)


def check_ends(found: Search, assets: int, names: tuple[str, ...], crashes: int) -> None:
    """After every end of these programs, one more run makes what is missing and loses nothing."""
    for end in list(found.run(names, crashes)):
        for state in found.run(["next"], since=end):
            found.check(model.check_end, state, model.ASSETS[:assets])


@pytest.mark.slow
def test_two_runs_and_a_reader_of_one_asset_with_two_crashes(
    patch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = search(patch, tmp_path, 1)
    check_ends(found, 1, RUNS, 2)
    seen = observe(found.programs, found.stores, model.finished, model.read, model.check_reader)
    print(f"{len(found.origin):,} states, {seen:,} of readers")


@pytest.mark.slow
def test_two_runs_of_two_assets_with_two_crashes(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = search(patch, tmp_path, 2, reduced=not DEEP)
    ends = list(found.run(RUNS, 2))
    for end in ends[:: 50 if DEEP else 500]:
        for state in found.run(["next"], since=end):
            found.check(model.check_end, state, model.ASSETS)
    print(f"{len(found.origin):,} states, {len(ends):,} ends")


def test_a_listing_that_lags_loses_nothing(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = search(patch, tmp_path, 1, lags=True)
    check_ends(found, 1, RUNS, 2 if DEEP else 1)
    print(f"{len(found.origin):,} states")


def test_a_store_without_conditional_writes_is_safe_for_one_run_at_a_time(
    patch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = search(patch, tmp_path, 2, conditional=False)
    check_ends(found, 2, ("run1",), 1)
    print(f"{len(found.origin):,} states")


def test_tables_are_complete_after_a_repair(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = search(patch, tmp_path, 1)
    for end in list(found.run(RUNS, 2))[:: 100 if DEEP else 2000]:
        for state in found.run(["next"], since=end):
            for repaired in found.run(["repair"], since=state):
                found.check(model.check_end, repaired, model.ASSETS[:1])


MARKER = "store.put_bytes(layout.marker_key(asset_id), data"
UPLOAD = "stored = list(pool.map(store.put_file, keys, (files[name] for name in names)))"
PUT = "self._store.put_bytes"
# What is changed in which function, and what the checker says of it
Fault = tuple[Callable[..., Any], dict[str, str], str]
FAULTS: dict[str, Fault] = {
    "a marker is overwritten": (
        commit_asset, {MARKER: f"{MARKER}, replace=True"}, "marker is overwritten",
    ),
    "the marker comes before the files": (
        commit_asset,
        {
            UPLOAD: "stored = [documents.bytes_digest(files[name].read_bytes()) for name in names]",
            f"{MARKER})": f"{MARKER}); list(map(store.put_file, keys, files.values()))",
        },
        "which is not there",
    ),
    "any open attempt of a committed asset ends as ok": (
        attempts._end,
        {" and documents.committed_attempt(manifest) == name": ""},
        "not what was committed",
    ),
    "a committed attempt stays interrupted": (
        attempts._open_attempts, {"if attempts and": "if not attempts and"}, "is interrupted",
    ),
    "a listing is enough to claim an attempt": (
        attempts._claim,
        {"key, document)\n": "key, document, replace=True)\n"},
        "taken from its run",
    ),
    "two writers have one file": (
        write.TableWriter.write,
        {"-{self._name}": "", "values())))": "values())), replace=True)"},
        "no (file|table) has",
    ),
    "the smaller file goes before the larger one comes": (
        write.TableWriter.write,
        {PUT: f"self._store.delete(self._keys.get(place, key)); {PUT}"},
        "no file has its rows",
    ),
    "rows that a dying run could not write are forgotten": (
        attempts._close, {"and not has_rows(a)": "and False"}, "no table has",
    ),
    "the row of a run's begin goes before that of its end comes": (
        write.record_run,
        {"content = ": "store.delete(f'{folder}/begun.parquet')\n        content = "},
        "no file has its rows",
    ),
}  # fmt: skip


def plant(patch: pytest.MonkeyPatch, function: Any, changes: dict[str, str]) -> None:
    """Changes the code of a function or method."""
    source = textwrap.dedent(inspect.getsource(function))
    for old, new in changes.items():
        assert old in source, "the fault no longer fits the code"
        source = source.replace(old, new)
    made: dict[str, Any] = {}
    exec(compile(source, __file__, "exec"), function.__globals__, made)
    owner, _, name = function.__qualname__.rpartition(".")
    if owner:
        patch.setattr(function.__globals__[owner], name, made[name])
    else:
        substitute(patch, function, made[name])


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(patch: pytest.MonkeyPatch, tmp_path: Path, fault: str) -> None:
    function, changes, problem = FAULTS[fault]
    plant(patch, function, changes)
    assets, names = (2, ("run1",)) if fault.startswith("the smaller") else (1, RUNS)
    with pytest.raises(Violation, match=problem):
        check_ends(search(patch, tmp_path, assets), assets, names, 2)
