"""Which code made an asset."""

import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

from sjc_engine.recipes import RECIPE_VERSION


@cache
def versions() -> dict[str, str]:
    """`code` and `engine` for the tables, and the libraries that numbers depend on."""
    package = version("sjc-foundry")
    commit = _commit()
    return {
        "code": f"{package}+g{commit}" if commit else package,
        "engine": f"{package}+recipe{RECIPE_VERSION}",
        **{name: version(name) for name in ("torch", "diffusers", "transformers", "prefect")},
    }


def _commit() -> str:
    """The short commit of this checkout, `.dirty` if files differ; "" outside of one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    command = ["git", "--no-optional-locks", "-C", str(root)]
    command += ["describe", "--always", "--dirty=.dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or not ours to read
        return ""
