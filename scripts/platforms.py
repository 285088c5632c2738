"""Where the package can be installed from wheels alone: `make platforms`, which asks PyPI.

uv resolves the runtime dependencies with constraints.txt for each Python and platform, without
installing anything. Prints the table of docs/installing.md; exit code 1 if one of them cannot be
resolved.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PLATFORMS = {  # what the table calls them -> uv's names; the oldest systems of current wheels
    "Linux x86-64": "x86_64-manylinux_2_28",
    "Linux ARM": "aarch64-manylinux_2_28",
    "macOS 14 ARM": "aarch64-apple-darwin",
}
WITHOUT = {"xatlas": "without textures"}  # what may be missing -> what a user has to know


def resolve(uv: str, python: str, platform: str) -> tuple[str, str]:
    """What the table says, and why it cannot be resolved ("" if it can)."""
    command = [uv, "pip", "compile", "--quiet", "pyproject.toml", "--constraint", "constraints.txt"]
    command += ["--only-binary", ":all:", "--python-version", python, "--python-platform", platform]
    command += ["--no-annotate", "--no-header"]
    macos = {"MACOSX_DEPLOYMENT_TARGET": "14.0"}  # torch's oldest
    done = subprocess.run(command, cwd=ROOT, env=os.environ | macos, capture_output=True, text=True)
    if done.returncode:
        return "no", done.stderr.strip()
    names = {line.partition("==")[0] for line in done.stdout.splitlines()}
    return ", ".join(["yes", *(text for name, text in WITHOUT.items() if name not in names)]), ""


def main() -> None:
    print(f"| Python | {' | '.join(PLATFORMS)} |\n|{'---|' * (len(PLATFORMS) + 1)}")
    problems = []
    for python in PYTHONS:
        cells = [resolve(sys.argv[1], python, platform) for platform in PLATFORMS.values()]
        print(f"| {python} | {' | '.join(text for text, _ in cells)} |", flush=True)
        found = zip(PLATFORMS, cells, strict=True)
        problems += [f"{python}, {name}: {why}" for name, (_, why) in found if why]
    if problems:
        sys.exit("\n\n".join(["", *problems]))


if __name__ == "__main__":
    main()
