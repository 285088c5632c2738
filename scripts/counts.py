"""Counts of the product's code, and who imports whom: `python scripts/counts.py`.

All of `flows`, `tasks` and `sjc_engine` counts, the toybox's training too. A line of code holds
code; a line of prose belongs to a docstring, or holds nothing but a comment. A function begins at
its `def`; its complexity is that of ruff (C901). tests/test_structure.py says what is allowed.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("flows", "tasks", "sjc_engine")

_BLANK = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENCODING, tokenize.ENDMARKER,
}  # fmt: skip


@dataclass(frozen=True)
class Function:
    """A function or method; its name begins with the class or function around it."""

    name: str
    line: int  # of its `def`
    lines: int


@dataclass(frozen=True)
class Module:
    """What is counted of one file."""

    path: str  # relative to the repository's root
    lines: int  # of the file
    code: int
    prose: int
    functions: tuple[Function, ...]
    imports: dict[str, int]  # what it imports, wherever the import is, and a line that does it

    @property
    def name(self) -> str:
        """As an import names it."""
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def read_modules(folders: Iterable[str] = PACKAGES, root: Path = ROOT) -> list[Module]:
    """Every Python file below these folders, in order."""
    files = (path for folder in folders for path in sorted((root / folder).rglob("*")))
    return [read_module(path, root) for path in files if _is_python(path)]


def read_module(path: Path, root: Path = ROOT) -> Module:
    """Counts one file."""
    text = path.read_text("utf-8")
    tree, place = ast.parse(text), path.relative_to(root)
    docs = set(_docstring_lines(tree))
    code: set[int] = set()
    comments: set[int] = set()
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.COMMENT:
                comments.add(token.start[0])
            elif token.type not in _BLANK:
                code.update(range(token.start[0], token.end[0] + 1))
    return Module(
        place.as_posix(),
        text.count("\n"),
        len(code - docs),
        len(docs | (comments - code)),
        tuple(_functions(tree, "")),
        dict(_imports(tree, place.parent.as_posix().replace("/", "."))),
    )


def import_graph(modules: Iterable[Module]) -> dict[str, set[str]]:
    """Module -> those among `modules` that it imports. Packages above a module don't count."""
    known = {module.name: module for module in modules}
    graph: dict[str, set[str]] = {}
    for name, module in known.items():
        targets = (_module_of(target, known) for target in module.imports)
        graph[name] = {target for target in targets if target} - {name}
    return graph


def circles(graph: Mapping[str, set[str]]) -> set[frozenset[str]]:
    """The largest groups of modules that all import each other, directly or through others."""
    reached = {name: _reachable(graph, name) for name in graph}
    return {
        frozenset(other for other in reached[name] if name in reached[other])
        for name in graph
        if name in reached[name]
    }


def complexities(modules: Iterable[Module], above: int) -> dict[str, int]:
    """PATH:FUNCTION -> complexity, of the functions that have more than `above`."""
    names = {(m.path, f.line): f"{m.path}:{f.name}" for m in modules for f in m.functions}
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--ignore-noqa"]
    ruff += [
        "--no-respect-gitignore",
        "--select=C901",
        f"--config=lint.mccabe.max-complexity={above}",
    ]
    ruff += ["--output-format=json", "--exit-zero", *PACKAGES]
    out = subprocess.run(ruff, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = {}
    for entry in json.loads(out):
        path = Path(entry["filename"]).relative_to(ROOT).as_posix()
        number = re.search(r"\((\d+) > ", entry["message"])
        assert number, entry["message"]
        found[names[path, entry["location"]["row"]]] = int(number[1])
    return found


def folder_sizes(modules: Iterable[Module]) -> Counter[str]:
    """Folder -> modules that lie directly in it; `__init__.py` is not one."""
    paths = (Path(module.path) for module in modules)
    return Counter(path.parent.as_posix() for path in paths if path.name != "__init__.py")


def function_lines(modules: Iterable[Module]) -> dict[str, int]:
    """PATH:FUNCTION -> lines."""
    found = ((f"{m.path}:{f.name}", f.lines) for m in modules for f in m.functions)
    return dict(sorted(found))  # of two that share a name the longer one


def _is_python(path: Path) -> bool:
    """By its name, or by its first line if it has no suffix."""
    if path.suffix or not path.is_file():
        return path.suffix == ".py"
    with path.open("rb") as file:
        return bool(re.match(rb"#!.*python", file.readline()))


def _functions(tree: ast.AST, around: str) -> Iterator[Function]:
    for node in ast.iter_child_nodes(tree):
        name = around
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{around}{node.name}."
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield Function(name[:-1], node.lineno, (node.end_lineno or 0) - node.lineno + 1)
        yield from _functions(node, name)


def _imports(tree: ast.AST, package: str) -> Iterator[tuple[str, int]]:
    """Dotted names: modules, or names in modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            home = ".".join([*(above if node.level else []), *filter(None, [node.module])])
            yield from ((f"{home}.{alias.name}", node.lineno) for alias in node.names)


def _module_of(name: str, known: Mapping[str, Module]) -> str | None:
    while name not in known:
        name, dot, _ = name.rpartition(".")
        if not dot:
            return None
    return name


def _reachable(graph: Mapping[str, set[str]], start: str) -> set[str]:
    """What can be reached from here by at least one import."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def _docstring_lines(tree: ast.AST) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if first is not None and ast.get_docstring(node, clean=False) is not None:
                yield from range(first.lineno, (first.end_lineno or first.lineno) + 1)


def main() -> None:
    modules = read_modules()
    for package in (*PACKAGES, ""):
        own = [module for module in modules if module.path.startswith(package)]
        code, lines = sum(m.code for m in own), sum(m.lines for m in own)
        prose = sum(m.prose for m in own) / code
        print(f"{package or 'together':11}{len(own):4} modules{lines:8,} lines{code:8,} of code,"
              f" each with {prose:.3f} of prose")  # fmt: skip
    for title, counts in (
        ("modules of a folder", folder_sizes(modules)),
        ("lines of a module", {module.path: module.lines for module in modules}),
        ("lines of a function", function_lines(modules)),
        ("complexity of a function, from 9", complexities(modules, 8)),
    ):
        print(f"\n{title}")
        for name, count in Counter(counts).most_common(12):
            print(f"{count:6}  {name}")
    print("\ncircles of imports")
    for circle in sorted(map(sorted, circles(import_graph(modules)))):
        print("       ", ", ".join(circle))


if __name__ == "__main__":
    main()
