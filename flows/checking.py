"""`sjc check`: every mistake of a manifest, however many rows it has."""

import sys
from typing import Any

from tasks.manifest import read_entries


def check(manifest: str, prior: str | None, recipe: str | None, overrides: dict[str, Any]) -> None:
    """Prints warnings and counts. Raises ManifestError with every problem."""
    _, found = read_entries(
        manifest,
        prior=prior,
        recipe=recipe,
        overrides=overrides,
        prior_revision=lambda prior: "",  # names are enough here
    )
    for warning in found.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{manifest}: {len(found.entries)} entries, {found.assets} assets, no errors")
