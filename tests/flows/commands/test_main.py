"""The program's start, where other people's files lie in its way."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("name", ["tasks.py", "tasks/__init__.py", "sjc_engine.py"])
def test_packages_of_other_people_are_noticed(name: str, tmp_path: Path) -> None:
    stranger = tmp_path / name
    stranger.parent.mkdir(exist_ok=True)
    stranger.write_text("x = 1\n")
    done = subprocess.run(
        [Path(sys.executable).with_name("sjc"), "--help"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"Python finds {stranger}; take that out of PYTHONPATH" in done.stderr


def test_the_program_ends_with_its_hooks_and_code_and_takes_nothing_apart() -> None:
    code = (
        "import atexit, sys\n"
        "from flows.commands import main as program\n"
        "class Kept:\n"
        "    def __del__(self): print('taken apart')\n"
        "kept = Kept()\n"
        "def main():\n"
        "    atexit.register(print, 'the hook')\n"
        "    sys.exit(3)\n"
        "program.main = main\n"
        "program.sjc()"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (3, "the hook\n", "")
