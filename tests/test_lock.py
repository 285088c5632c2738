"""requirements.lock is what `make lock` would write today, as far as that can be seen offline."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements.lock").read_text("utf-8")
ENTRY = re.compile(
    r"^(\S+)==(\S+)( ; .+)? \\\n((?: {4}--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.M
)
LOCKED = {canonicalize_name(entry[1]): entry[2] for entry in ENTRY.finditer(LOCK)}


def test_each_line_is_a_version_with_hashes() -> None:
    """No index, address or folder of the machine that wrote it."""
    assert re.sub(r"^#.*\n", "", ENTRY.sub("", LOCK), flags=re.M) == ""
    assert len(LOCKED) > 100


def test_it_has_what_running_needs_in_the_versions_of_the_constraints() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for needed in map(Requirement, project["dependencies"]):
        version = LOCKED[canonicalize_name(needed.name)]
        assert needed.specifier.contains(version), f"{needed}: {version}; run `make lock`"
    for line in (ROOT / "constraints.txt").read_text("utf-8").split():
        name, _, version = line.partition("==")
        locked = LOCKED.get(canonicalize_name(name), version)
        assert locked == version, f"{name}: {locked}, not {version}; run `make lock`"
