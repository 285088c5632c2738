"""`sjc check`: every mistake of a manifest, however many rows it has."""

from flows.commands import options
from flows.commands.app import command
from flows.commands.output import print_warnings


@command("sjc check manifests/toybox.csv")
def check(
    manifest: options.Manifest,
    prior: options.Prior = None,
    recipe: options.Recipe = None,
    set_: options.Set = None,
    dtype: options.Dtype = None,
    allow_pickle: options.AllowPickle = False,
) -> None:
    """Validate a manifest, and show every bad row at once."""
    from sjc_engine.priors.sources import split_revision
    from tasks.manifest.resolve import read_entries

    _, found = read_entries(
        manifest,
        prior=prior,
        recipe=recipe,
        overrides=options.parse_overrides(set_, dtype),
        allow_pickle=allow_pickle,
        prior_revision=lambda prior: split_revision(prior)[1],  # names are enough here
    )
    print_warnings(found.warnings)
    print(f"{manifest}: {len(found.entries)} entries, {found.assets} assets, no errors")
