"""Counts of the product's code, that may only fall: `python scripts/counts.py`.

Code lines hold neither a blank, a comment nor a docstring alone. Every folder of `flows`, `tasks`
and `sjc_engine` counts, the toybox's training too.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path.cwd()
PACKAGES = ("flows", "tasks", "sjc_engine")

_BRANCHES = (
    ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.With, ast.AsyncWith,
    ast.Assert, ast.comprehension, ast.BoolOp, ast.IfExp, ast.match_case,
)  # fmt: skip
_SILENT = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENCODING, tokenize.ENDMARKER,
}  # fmt: skip


@dataclass(frozen=True)
class Module:
    """What is counted of one file."""

    path: Path  # relative to the repository's root
    lines: int  # of the file
    code: int  # lines that hold code
    prose: int  # lines that hold a comment or a docstring
    functions: dict[str, int]  # its functions and methods: their lines


def modules(root: Path = ROOT) -> list[Module]:
    """All modules of the three packages."""
    files = (path for package in PACKAGES for path in sorted((root / package).rglob("*.py")))
    return [read_module(path, root) for path in files]


def read_module(path: Path, root: Path) -> Module:
    source = path.read_text()
    tree = ast.parse(source)
    docs = set(_docstring_lines(tree))
    code: set[int] = set()
    comments: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        lines = range(token.start[0], token.end[0] + 1)
        if token.type == tokenize.COMMENT:
            comments.update(lines)
        elif token.type not in _SILENT:
            code.update(lines)
    code -= docs
    functions = {
        node.name: (node.end_lineno or node.lineno) - node.lineno + 1
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    return Module(
        path.relative_to(root),
        source.count("\n"),
        len(code),
        len(docs | comments),
        functions,
    )


def _docstring_lines(tree: ast.AST) -> list[int]:
    lines: list[int] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                first = node.body[0]
                lines += range(first.lineno, (first.end_lineno or first.lineno) + 1)
    return lines


def main() -> None:
    found = modules()
    for package in PACKAGES:
        own = [module for module in found if module.path.parts[0] == package]
        print(f"{package}: {len(own)} modules, {sum(m.code for m in own):,} code lines")
    code, prose = sum(m.code for m in found), sum(m.prose for m in found)
    print(
        f"together: {len(found)} modules, {sum(m.lines for m in found):,} lines, "
        f"{code:,} code lines, {prose / code:.3f} lines of prose for each"
    )
    folders = Counter(module.path.parent for module in found if module.path.name != "__init__.py")
    print("modules in a folder:", ", ".join(f"{path} {n}" for path, n in folders.most_common(6)))
    longest = sorted(found, key=lambda m: -m.lines)[:8]
    print("longest modules:", ", ".join(f"{m.path} {m.lines}" for m in longest))
    functions = [(n, f"{m.path}:{name}") for m in found for name, n in m.functions.items()]
    print("longest functions:", ", ".join(f"{name} {n}" for n, name in sorted(functions)[:-9:-1]))


if __name__ == "__main__":
    sys.exit(main())
