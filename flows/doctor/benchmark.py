"""`sjc doctor --benchmark`: the engine's numbers and its speed on this device, line by line."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, TextIO

import typer

if TYPE_CHECKING:
    from sjc_engine.acceptance.results import Line


def measure(name: str | None, *, as_json: bool) -> bool:
    """Measures on this device, by default the first GPU; whether all lines pass.

    The table is printed as it grows; where stdout is for JSON, on stderr.
    """
    import torch

    from flows.plan import check_devices
    from sjc_engine.acceptance.checks import Bench
    from sjc_engine.acceptance.results import document, run

    name = check_devices(None if name is None else [name], "--device")[0]
    device = torch.device(name)
    bench = Bench(device)
    table = sys.stderr if as_json else sys.stdout
    print(f"on {name}; size: {bench.size.name}", file=table)
    lines = []
    for line in run(bench.checks(), lambda check: print(f"... {check}", file=sys.stderr)):
        lines.append(line)
        _show(line, table)
    failed = [line.name for line in lines if not line.passed]
    print(f"FAIL: {'; '.join(failed)}" if failed else "PASS", file=table)
    if as_json:
        print(json.dumps(document(bench.size.name, device, lines), indent=1))
    return not failed


def _show(line: Line, table: TextIO) -> None:
    """Name, figure, bound and whether it is kept; below it what else there is to say."""
    figure = "" if line.value is None else f"{line.value:.4g} {line.unit}"
    bound = "" if line.most is None else f"<= {line.most:g}"
    state = "" if line.passed and line.most is None else "ok" if line.passed else "FAIL"
    state = typer.style(f"{state:<4}", fg="green" if line.passed else "red")
    more = [bound] * bool(bound) + [f"{value:.4g} {unit}" for unit, value in line.more.items()]
    text = f"{state}  {line.name:<42}  {figure:>14}  {', '.join(more)}"
    typer.echo(text.rstrip(), file=table)
    if remark := line.error or line.note:
        typer.echo(f"{'':<6}-> {remark}", file=table)
