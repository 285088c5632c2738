"""Mistakes planted into the code, one at a time: do the fast tests notice?

    python scripts/mutants.py [--count 200] [--seed 0] [--only tasks/tables]

Takes a sample of all one-place changes to the modules of TARGETS: a comparison or an operator
turned round, a number one larger, a flag inverted, a call left out. Each is tried in a copy of the
tree, in a fork of this process that has imported the large libraries: on those of its subject's
fast tests that run its line, the quickest first, and where the line runs at import alone, on all of
them. Prints what became of each, and the score; those that took too long are counted apart.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import coverage
import pytest

ROOT = Path(__file__).resolve().parents[1]
# Time for the tests of a mutant's line: so much, and so many times what they took; and for all
SECONDS, TIMES, WHOLE_SECONDS = 30.0, 5.0, 2400.0
OPTIONS = (
    "-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not system",
    "-W", "ignore::pytest.PytestAssertRewriteWarning",  # of LIBRARIES
)  # fmt: skip
LOG = ".mutants.log"  # what they print
LIBRARIES = (
    "numpy", "torch", "pandas", "pyarrow.parquet", "pyarrow.dataset", "duckdb", "boto3", "prefect",
    "moto.server", "scipy.ndimage", "trimesh", "hypothesis", "pytest",
)  # fmt: skip
_ENGINE = "tests/sjc_engine"
_OPTIMIZATION = [f"{_ENGINE}/optimization", f"{_ENGINE}/guidance"]
# With groups of views, and scenes that start from a picture
_SCENES = [*_OPTIMIZATION, *(f"{_ENGINE}/priors/test_{n}.py" for n in ("mvdream", "zero123"))]
# Modules, and the tests of their subject
TARGETS: dict[str, list[str]] = {
    "sjc_engine/guidance/score.py": [f"{_ENGINE}/guidance", f"{_ENGINE}/test_oracles.py"],
    "sjc_engine/guidance/schedules.py": [*_OPTIMIZATION, f"{_ENGINE}/test_oracles.py"],
    "sjc_engine/optimization/losses.py": _OPTIMIZATION,
    "sjc_engine/optimization/scene.py": _SCENES,
    "sjc_engine/optimization/step.py": _SCENES,
    "tasks/records/commit.py": ["tests/tasks/records", "tests/tasks/store/test_leases.py"],
    "tasks/records/attempts.py": ["tests/tasks/records", "tests/tasks/store/test_leases.py"],
    "tasks/store/leases.py": ["tests/tasks/store/test_leases.py"],
    "tasks/store/local.py": ["tests/tasks/store/test_local.py", "tests/tasks/records"],
    "tasks/store/s3.py": [f"tests/tasks/store/test_{n}.py" for n in ("s3", "local", "s3_manners")],
    "tasks/tables/write.py": ["tests/tasks/tables"],
    "tasks/tables/read.py": ["tests/tasks/tables"],
    "tasks/tables/best_assets.py": ["tests/tasks/tables"],
    "tasks/tables/projection.py": ["tests/tasks/tables", "tests/tasks/records"],
    "tasks/manifest/entries.py": ["tests/tasks/manifest"],
    "tasks/manifest/formats.py": ["tests/tasks/manifest"],
    "tasks/manifest/resolve.py": ["tests/tasks/manifest"],
    "tasks/manifest/shard_plan.py": ["tests/tasks/manifest"],
    "tasks/manifest/where.py": ["tests/tasks/manifest/test_where.py", "tests/flows/test_plan.py"],
    "tasks/devices/pool.py": ["tests/tasks/devices"],
    "flows/pipeline.py": ["tests/flows/test_window.py", "tests/tasks/records/test_model.py"],
    "flows/plan.py": [
        "tests/flows/test_plan.py",
        "tests/flows/commands/test_plan.py",
        "tests/flows/progress/test_summary_artifact.py",
        "tests/tasks/devices/test_gpus.py",
    ],
}
_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Pow: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
}  # fmt: skip
_FUNCTIONS = {"min": "max", "max": "min", "any": "all", "all": "any", "sorted": "list"}


@dataclass(frozen=True)
class Mutant:
    """A module with one place changed."""

    path: str
    line: int
    old: str
    new: str
    content: bytes

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.old} -> {self.new}"


def mutants(path: str) -> Iterator[Mutant]:
    """Every mutant of a module, but for its annotations and texts."""
    source = (ROOT / path).read_bytes()
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    for node in _code(ast.parse(source)):
        new = _changed(node)
        if new is None or not isinstance(node, ast.expr | ast.stmt):
            continue
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        content = source[:start] + new.encode() + source[end:]
        compile(content, path, "exec")
        old = " ".join(source[start:end].decode().split())
        yield Mutant(path, node.lineno, old, " ".join(new.split()), content)


def _code(node: ast.AST) -> Iterator[ast.AST]:
    """A module's nodes without its annotations, without what is inside of f-strings, and without
    the `strict` of a `zip`, whose lists are equally long."""
    yield node
    if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.keyword) and node.arg == "strict"):
        return
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _code(child)


def _changed(node: ast.AST) -> str | None:
    """The node with a mistake in it; None where there is none to make."""
    match node:
        case ast.Compare(left=left, ops=[op, *ops], comparators=rest):
            mistake: ast.expr = ast.Compare(left, [_COMPARISONS[type(op)](), *ops], rest)
        case ast.BoolOp(op=op, values=values):
            mistake = ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            mistake = operand
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            mistake = ast.BinOp(left, _OPERATORS[type(op)](), right)
        case ast.Constant(value=bool(value)):
            mistake = ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            mistake = ast.Constant(value + 1)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords) if name in _FUNCTIONS:
            kept = [] if _FUNCTIONS[name] == "list" else keywords
            mistake = ast.Call(ast.Name(_FUNCTIONS[name]), args, kept)
        case ast.Expr(value=ast.Call()):
            return "pass"
        case _:
            return None
    return f"({ast.unparse(ast.fix_missing_locations(mistake))})"


class TestLines:
    """Which tests run which lines, quickest test first; a plugin of pytest that watches them."""

    def __init__(self, paths: Sequence[str], file: Path) -> None:
        self._file = file
        self._coverage = coverage.Coverage(data_file=None, include=paths, config_file=False)
        self._seconds: dict[str, float] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        began = time.monotonic()
        self._coverage.start()
        self._coverage.switch_context(item.nodeid)
        try:
            return (yield)
        finally:
            self._coverage.stop()
            self._seconds[item.nodeid] = time.monotonic() - began

    def pytest_sessionfinish(self) -> None:
        data = self._coverage.get_data()
        found = {
            str(Path(file).relative_to(Path.cwd())): {
                line: sorted(filter(None, tests), key=lambda test: self._seconds[test])
                for line, tests in data.contexts_by_lineno(file).items()
            }
            for file in data.measured_files()
        }
        self._file.write_text(json.dumps([found, self._seconds]))


def run_tests(copy: Path, tests: Sequence[str], seconds: float, *plugins: object) -> str:
    """What became of the mutant in the copy: `killed`, `survived` or `too long`."""
    child = os.fork()
    if child == 0:
        os.setsid()
        os.chdir(copy)
        out = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        code = 4
        try:
            code = int(pytest.main([*OPTIONS, *tests], plugins=plugins))
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return "killed" if os.waitstatus_to_exitcode(status) else "survived"
            time.sleep(0.1)
    finally:
        # With the processes that its tests have left
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "too long"


def watched_tests(
    copy: Path, modules: Sequence[str]
) -> tuple[dict[str, dict[str, list[str]]], dict[str, float]]:
    """The tests that run each line of each module, and the seconds that each test took.

    Ends the program where one fails as it is.
    """
    file = copy / ".lines.json"
    tests = dict.fromkeys(test for path in modules for test in TARGETS[path])
    watch = TestLines([str(copy / path) for path in modules], file)
    if run_tests(copy, list(tests), WHOLE_SECONDS, watch) != "survived":
        print((copy / LOG).read_text()[-4000:])
        sys.exit("tests fail without any mistake, or are none")
    lines, seconds = json.loads(file.read_text())
    return lines, seconds


def outcome(copy: Path, mutant: Mutant, seconds: Mapping[str, float]) -> str:
    """What became of it; `seconds` are what the tests that run its line took."""
    if not seconds:
        return run_tests(copy, TARGETS[mutant.path], WHOLE_SECONDS)
    return run_tests(copy, list(seconds), SECONDS + TIMES * sum(seconds.values()))


def copy_tree(to: Path) -> None:
    """What git knows, and what it does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="modules whose path begins so")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after")
    options = parser.parse_args()
    modules = [path for path in TARGETS if path.startswith(options.only)]
    everything = [mutant for path in modules for mutant in mutants(path)]
    random.Random(options.seed).shuffle(everything)
    sample, outcomes = everything[: options.count], Counter[str]()
    print(f"{len(sample)} of {len(everything)} mutants of {len(modules)} modules", flush=True)
    for library in LIBRARIES:
        importlib.import_module(library)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder).resolve()
        copy_tree(copy)
        # Before an installed copy, in the tests' own processes too
        sys.path.insert(0, str(copy))
        os.environ["PYTHONPATH"] = str(copy)
        lines, seconds = watched_tests(copy, sorted({mutant.path for mutant in sample}))
        print(f"their tests took {(time.monotonic() - started) / 60:.0f} min", flush=True)
        for number, mutant in enumerate(sample):
            if time.monotonic() - started > 60 * options.minutes:
                break
            place = copy / mutant.path
            place.write_bytes(mutant.content)
            os.utime(place, (number, number))  # or a compiled file might be taken for this one's
            tests = lines[mutant.path].get(str(mutant.line), [])
            became = outcome(copy, mutant, {test: seconds[test] for test in tests})
            outcomes[became] += 1
            print(f"{became} {mutant}", flush=True)
            shutil.copy2(ROOT / mutant.path, place)
        print(", ".join(f"{count} {became}" for became, count in outcomes.items()))
    sys.exit(bool(outcomes["survived"]))


if __name__ == "__main__":
    main()
