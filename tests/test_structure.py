"""The shape of the code: which way imports run, and counts that may only fall.

`python scripts/counts.py` prints all counts. What is above its goal today stands below by name, so
that nothing joins it, and whatever is mended has to leave the list.
"""

import ast
import pkgutil
from collections.abc import Mapping
from pathlib import Path

import counts
import pytest

ROOT = counts.ROOT
MODULES = counts.read_modules()
FREE = {  # what no limit holds
    "commands",  # `sjc X` is commands/x.py: the folder is its own index
    "kernels.py",  # Numba's cache does not see changes in another file
}
MAX_CODE_LINES = 22_000
MIN_PROSE = 0.14  # lines for each line of code
# What is counted: its goal, and today's offenders with the most that each may have.
LIMITS: dict[str, tuple[int, dict[str, int]]] = {
    "modules of a folder": (12, {}),
    "lines of a module": (400, {}),
    "lines of a function": (60, {}),
    "complexity of a function": (10, {}),
}
CIRCLES: set[frozenset[str]] = set()  # in functions and under TYPE_CHECKING too
# Package -> what none of its modules imports, wherever the import stands
UNKNOWN_TO = {
    "tasks": ("flows",),
    "sjc_engine": ("flows", "tasks", "prefect", "boto3", "botocore"),
}


@pytest.mark.parametrize("package", UNKNOWN_TO)
def test_imports_run_one_way(package: str) -> None:
    wrong = [
        f"{module.path}:{line}: {target}"
        for module in MODULES
        if module.path.startswith(f"{package}/")
        for target, line in module.imports.items()
        if target.partition(".")[0] in UNKNOWN_TO[package]
    ]
    assert not wrong, f"{package} must not know {', '.join(UNKNOWN_TO[package])}: {wrong}"


def test_what_is_not_in_the_wheel_is_imported_by_nobody_in_it() -> None:
    training = "sjc_engine/toybox/training/"
    wrong = [
        f"{module.path}:{line}: {target}"
        for module in MODULES
        if not module.path.startswith(training)
        for target, line in module.imports.items()
        if target.startswith(training.replace("/", "."))
    ]
    assert not wrong


def test_one_context_variable() -> None:
    """What a command gives a flow past its JSON parameters; all else is an argument."""
    text = {module.path: (ROOT / module.path).read_text("utf-8") for module in MODULES}
    assert [path for path, code in text.items() if "ContextVar(" in code] == ["flows/context.py"]
    assert text["flows/context.py"].count("ContextVar(") == 1


# What only the text of another library's error says.
FOREIGN_TEXTS = {
    "flows/errors.py": 1,  # pydantic wraps a Ctrl-C in an error of its own
    "sjc_engine/memory.py": 2,  # CUDA's libraries have no class for "out of memory" or "broken"
    "tasks/devices/gpus.py": 3,  # torch has one class for all that keeps CUDA from starting
    "tasks/tables/read.py": 3,  # DuckDB's Ctrl-C and its excerpt of the SQL, Arrow's first line
}


def test_no_error_text_is_taken_apart() -> None:
    """Errors are data: what code has to know of one is a field of it."""
    found = {m.path: n for m in MODULES if (n := len(_parsed_errors(ROOT / m.path)))}
    assert found == FOREIGN_TEXTS


def _parsed_errors(path: Path) -> list[int]:
    """Lines in which the text of an error is searched, split or changed."""
    lines = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        match node:
            case ast.Compare(ops=[ast.In() | ast.NotIn()], comparators=[text]):
                pass
            case ast.Call(func=ast.Attribute(value=ast.Name(id="re")), args=[*_, text]):
                pass
            case ast.Call(func=ast.Attribute(value=text, attr=attr), args=[*args]):
                if not args or attr not in TAKES_APART:  # `.split()` alone joins lines
                    continue
            case _:
                continue
        if any(_is_error_text(part) for part in ast.walk(text)):
            lines.append(node.lineno)
    return lines


TAKES_APART = {
    "partition", "rpartition", "split", "rsplit", "replace", "removeprefix", "removesuffix",
    "startswith", "endswith", "find", "index",
}  # fmt: skip


def _is_error_text(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Name(id="str"), args=[ast.Name(id="error" | "caught" | "self")]):
            return True
    return False


def test_imports_form_no_circle() -> None:
    found = counts.circles(counts.import_graph(MODULES))
    new, gone = (sorted(map(sorted, some)) for some in (found - CIRCLES, CIRCLES - found))
    assert not new, f"new circles of imports: {new}"
    assert not gone, f"no circle any more; take them out of CIRCLES: {gone}"


@pytest.mark.parametrize("folder", ["benchmarks", "scripts", "tests"])
def test_what_others_import_is_there(folder: str) -> None:
    """So that a module that moves takes along whoever uses it."""
    files = counts.read_modules([folder])
    assert files
    wrong = [
        f"{file.path}:{line}: {target}: {problem}"
        for file in files
        for target, line in file.imports.items()
        if target.partition(".")[0] in counts.PACKAGES and (problem := why_not(target))
    ]
    assert not wrong


def why_not(name: str) -> str:
    """Why this dotted name is neither a module nor something in one; empty if it is."""
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize("title", LIMITS)
def test_counts_only_fall(title: str) -> None:
    goal, offenders = LIMITS[title]
    found = {
        "modules of a folder": lambda: counts.folder_sizes(MODULES),
        "lines of a module": lambda: {module.path: module.lines for module in MODULES},
        "lines of a function": lambda: counts.function_lines(MODULES),
        "complexity of a function": lambda: counts.complexities(MODULES, goal),
    }[title]()
    above = excess(found, goal)
    risen = {name: n for name, n in above.items() if n > offenders.get(name, goal)}
    assert not risen, f"{title}: at most {goal}, or what LIMITS says: {risen}"
    mended = sorted(offenders.keys() - above.keys())
    assert not mended, f"{title}: below {goal} by now; take them out of LIMITS: {mended}"


def excess(found: Mapping[str, int], goal: int) -> dict[str, int]:
    """Those above the goal, but for what no limit holds."""
    return {k: n for k, n in found.items() if n > goal and Path(k).name not in FREE}


def test_the_code_shrinks_and_not_its_prose() -> None:
    code, prose = sum(m.code for m in MODULES), sum(m.prose for m in MODULES)
    assert code <= MAX_CODE_LINES, f"{code:,} lines of code"
    assert code > MAX_CODE_LINES - 300, f"{code:,} lines of code; lower MAX_CODE_LINES"
    assert prose >= MIN_PROSE * code, f"{prose / code:.3f} lines of prose for each line of code"
