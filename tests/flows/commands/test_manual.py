"""The help texts, whose examples must be right, and what a shell completes."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from flows import commands
from flows.commands.main import app

MANUAL = typer.main.get_command(app)
SHARED = {"__init__", "app", "completion", "main", "options", "output", "slurm"}
COMMANDS = MANUAL.commands  # type: ignore[attr-defined]


def shown(*arguments: str) -> str:
    said = CliRunner().invoke(app, [*arguments, "--help"])
    assert said.exit_code == 0
    return said.output


def test_a_command_is_a_module_of_its_name() -> None:
    modules = {path.stem for path in Path(commands.__path__[0]).glob("*.py")}
    assert modules - SHARED == set(COMMANDS)
    for name, command in COMMANDS.items():
        assert command.callback.__module__ == f"flows.commands.{name}"


def test_every_command_stands_in_a_group() -> None:
    text = shown()
    groups = ("Make assets:", "Look at assets:", "Operate:")
    places = [text.index(f"\n{group}\n") for group in groups]
    assert places == sorted(places)
    for name in COMMANDS:
        assert f"\n  {name} " in text, name
    assert "..." not in text.partition("Make assets:")[2].partition("Exit codes:")[0]
    assert "  130  interrupted" in text


@pytest.mark.parametrize("name", list(COMMANDS))
def test_each_command_explains_its_options_and_has_examples(name: str) -> None:
    for parameter in COMMANDS[name].params:
        assert getattr(parameter, "help", None), f"{name}: {parameter.name} has no help"
    assert "Examples:" in shown(name)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_the_examples_are_right(name: str) -> None:
    """Each is read by the command line's own parser; nothing runs."""
    lines = [line for line in shown(name).splitlines() if line.startswith("    sjc ")]
    assert lines
    for line in lines:
        _, command, *arguments = shlex.split(line.strip().partition("   ")[0])
        COMMANDS[command].make_context(command, arguments)


@pytest.fixture
def shell(tmp_path: Path) -> Path:
    """A folder with a run in its store, and `sjc` as a program."""
    (tmp_path / "store" / "runs").mkdir(parents=True)
    (tmp_path / "store" / "runs" / "20260101T000000-abcdef.json").write_text(json.dumps({}))
    program = tmp_path / "bin" / "sjc"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom flows.commands.main import main\nmain()\n")
    program.chmod(0o755)
    return tmp_path


COMPLETIONS: dict[str, set[str]] = {
    "ru": {"run"},
    "run --ret": {"--retry-failed"},
    "run m.csv --recipe ": {"toybox", "draft", "fast", "sds"},
    "run m.csv --prior kxic/zero123-xl --recipe ": {"zero123", "stable-zero123", "draft"},
    "run m.csv --recipe paper-z": set(),
    "run m.csv --set guidance_s": {"guidance_scale="},
    "assets --format ": {"table", "csv", "json", "parquet"},
    "report ": {"20260101T000000-abcdef"},
    "report --store nowhere ": set(),
    "generate duck --prior toybox-": {"toybox-duck"},
}


@pytest.mark.slow
def test_bash_completes(shell: Path) -> None:
    """In a real bash, with the script that --show-completion prints."""
    script = 'source <(_SJC_COMPLETE=source_bash sjc)\n[[ "$(complete -p sjc)" == *-F* ]]\n'
    for line in COMPLETIONS:
        words = shlex.join(["sjc", *line.split()]) + (" ''" if line.endswith(" ") else "")
        script += f"COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMPREPLY=()\n"
        script += '_sjc_completion sjc; echo "${COMPREPLY[*]}" | tr "\\n" " "; echo\n'
    environment = {**os.environ, "PATH": f"{shell / 'bin'}:{os.environ['PATH']}", "HF_HOME": "none"}
    said = subprocess.run(
        ["bash", "--norc", "-eu", "-c", script],
        cwd=shell, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = [set(line.split()) for line in said.stdout.splitlines()]
    assert dict(zip(COMPLETIONS, found, strict=True)) == COMPLETIONS
    assert said.stderr == ""


@pytest.mark.parametrize("name", ["zsh", "fish"])
def test_other_shells_have_a_script_and_answers(name: str, shell: Path) -> None:
    program = [shell / "bin" / "sjc"]
    script = subprocess.run(
        program, env={**os.environ, "_SJC_COMPLETE": f"source_{name}"}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert f"complete_{name}" in script.stdout
    asked = {
        "_SJC_COMPLETE": f"complete_{name}",
        "_TYPER_COMPLETE_ARGS": "sjc run m.csv --recipe d",
    }
    asked["_TYPER_COMPLETE_FISH_ACTION"] = "get-args"
    answer = subprocess.run(
        program, env={**os.environ, **asked}, capture_output=True, text=True, check=True
    )
    assert "draft" in answer.stdout
    assert "toybox" not in answer.stdout
