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
