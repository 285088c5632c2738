"""`sjc check`: every mistake of a manifest, however many rows it has."""

import sys
from typing import Any

from tasks.manifest import check_manifest


def check(manifest: str, prior: str | None, recipe: str | None, overrides: dict[str, Any]) -> None:
    """Prints warnings and counts. Raises ManifestError with every problem."""
    found = check_manifest(
        manifest,
        prior=prior,
        recipe=recipe,
        overrides=overrides,
        prior_revision=lambda prior: "",  # names are enough here
    )
    for warning in found.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if found.unsaid:
        print(f"warning: and {found.unsaid:,} more", file=sys.stderr)
    print(f"{manifest}: {found.entries} entries, {found.assets} assets, no errors")
