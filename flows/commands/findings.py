"""What `sjc doctor` finds: checks that run side by side, and how their findings are shown."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

DEADLINE = 8.0  # seconds for all checks


@dataclass(frozen=True)
class Finding:
    """One line. status: `ok`, `warning` (some uses will not work) or `problem` (no run will).

    fix: what to do, unless it is ok.
    """

    check: str
    status: str
    detail: str
    fix: str = ""


Findings = Iterator[Finding]


def examine(checks: dict[str, Callable[[], Findings]], deadline: float = DEADLINE) -> list[Finding]:
    """The findings of all checks, in their order. One that fails, or never ends, is a problem."""
    ended: queue.SimpleQueue[tuple[str, list[Finding]]] = queue.SimpleQueue()

    def run(name: str, check: Callable[[], Findings]) -> None:
        found: list[Finding] = []
        try:
            found.extend(check())
        except Exception as error:  # whatever is broken here is what the user wants to hear of
            words = f"{type(error).__name__}: {error}".splitlines()[0]
            fix = "repair it, or install again: pip install --force-reinstall sjc-foundry"
            found.append(Finding(name, "problem", words, fix))
        ended.put((name, found))

    for name, check in checks.items():
        threading.Thread(target=run, args=(name, check), daemon=True).start()
    results: dict[str, list[Finding]] = {}
    end = time.monotonic() + deadline
    while len(results) < len(checks):
        try:
            name, found = ended.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            break
        results[name] = found
    slow = f"no answer within {deadline:.0f} s"
    hint = "try again; if it stays so, the disk or the network behind it hangs"
    return [
        finding
        for name in checks
        for finding in results.get(name, [Finding(name, "problem", slow, hint)])
    ]


def show(found: list[Finding]) -> None:
    """One line for each finding; below those that are not ok, what to do."""
    styles = {"ok": "green", "warning": "yellow", "problem": "bold red"}
    width = max(len(finding.check) for finding in found)
    console = Console(highlight=False, soft_wrap=True)
    for finding in found:
        console.print(
            Text.assemble(
                (f"{finding.status:<8}", styles[finding.status]),
                (f"{finding.check:<{width}}  ", "bold"),
                finding.detail,
            )
        )
        if finding.fix:
            console.print(Text(f"{'':<{8 + width}}  -> {finding.fix}"))
