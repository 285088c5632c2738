"""What users type, import, query and deploy stays as tests/contract/ says, one fact a line.

Exit codes that take a run to see are proved in tests/flows/commands/: 1 by test_run.py (an asset
that fails) and test_verify.py (damage), 130 by test_run.py (Ctrl-C and SIGTERM during a run).
"""

import difflib
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path

import contract
import pytest
import typer
from typer.testing import CliRunner

from flows.commands.main import app
from flows.errors import RunError, UsageError, reported
from sjc_engine.recipe_presets import PRESETS, presets_of
from tasks.manifest.formats import ManifestError
from tasks.store.interface import StoreError

COMMANDS = contract.program().commands


@pytest.mark.parametrize("kind", contract.FACTS)
def test_the_contract_holds(kind: str) -> None:
    now = contract.FACTS[kind]()
    diff = list(difflib.unified_diff(contract.held(kind), now, "held", "now", n=0, lineterm=""))
    if diff:
        advice = "If this is wanted, `python scripts/contract.py` writes it down."
        pytest.fail("\n".join([f"tests/contract/{kind}.txt:", *diff, advice]), pytrace=False)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_every_option(name: str) -> None:
    shown = CliRunner().invoke(app, [name, "--help"])
    assert shown.exit_code == 0
    words = set(shown.output.replace(",", " ").split())
    flags = {flag for p in COMMANDS[name].params if not p.hidden for flag in p.opts}
    assert not {flag for flag in flags if flag.startswith("-")} - words


@pytest.mark.parametrize("fact", contract.held("names"))
def test_a_promised_name_is_there(fact: str) -> None:
    kind, _, name = fact.partition(": ")
    if kind == "script":
        project = tomllib.loads((contract.ROOT / "pyproject.toml").read_text())["project"]
        name = project["scripts"][name]
    assert pkgutil.resolve_name(name) is not None


def test_the_worker_is_a_program() -> None:
    command = [sys.executable, "-m", "sjc_engine.worker", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "--device" in shown
    assert "--parent" in shown


def test_the_specs_cover_every_family() -> None:
    specs = contract.specs().values()
    covered = [presets_of(spec.prior) for spec in specs]
    assert [family for family, presets in PRESETS.items() if presets not in covered] == []
    assert len({spec.asset_id for spec in specs}) == len(specs) == 14
    assert len({spec.field_id for spec in specs}) == 13  # another mesh and judge reuse the field


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("--help", 0),
        ("check good.csv", 0),
        ("check bad.csv", 2),
        ("check none.csv", 2),
        ("check good.csv --recipe nosuch", 2),
        ("check good.csv --nosuch", 2),
        ("check", 2),
        ("nosuch", 2),
        ("run bad.csv", 2),
        ("run good.csv --limit 0", 2),
        ("assets --store nowhere", 3),
        ("verify --store ftp://host/store", 3),
        ("run good.csv --store good.csv/store", 3),
    ],
)
def test_exit_codes(
    arguments: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("good.csv").write_text("prompt\na yellow duck\n")
    Path("bad.csv").write_text("prompt,seed\na yellow duck,-1\n")
    ended = CliRunner().invoke(app, arguments.split())
    assert ended.exit_code == code, ended.output
    assert {path.name for path in tmp_path.iterdir()} == {"good.csv", "bad.csv"}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RunError("it failed"), 1),
        (UsageError("wrong"), 2),
        (ManifestError([]), 2),
        (StoreError("gone"), 3),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_have_exit_codes(error: BaseException, code: int) -> None:
    with pytest.raises(typer.Exit) as ended, reported():
        raise error
    assert ended.value.exit_code == code
