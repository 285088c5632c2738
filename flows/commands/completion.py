"""What a shell offers behind an option; typer leaves out what does not begin as the user's text.

A shell waits for this, so nothing here imports torch, Prefect or a store on S3.
"""

import os
from pathlib import Path

import typer


def recipes(ctx: typer.Context) -> list[str]:
    """The presets that fit the prior named so far."""
    from sjc_engine.recipe_presets import presets_of

    return list(presets_of(_prior(ctx)))


def settings(ctx: typer.Context) -> list[tuple[str, str]]:
    """Recipe keys, each with the value that it has by default."""
    from sjc_engine.recipes import PARTS, Recipe

    recipe = Recipe.for_prior(_prior(ctx))
    return [
        (f"{key}=", f"{value}")
        for part in PARTS
        for key, value in vars(getattr(recipe, part)).items()
    ]


def priors() -> list[str]:
    """Embedded priors, and those in the hub's cache; a folder is the shell's to complete."""
    from sjc_engine.priors.sources import BUILTINS

    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    kept = sorted(path.name[8:].replace("--", "/") for path in cache.glob("models--*"))
    return [*BUILTINS, *kept]


def devices() -> tuple[str, ...]:
    """The usual choices: a shell must not wait for torch to count GPUs."""
    return "cpu", "cpu,cpu", "cuda:0", "cuda:0,cuda:1"


def runs(ctx: typer.Context) -> list[str]:
    """The runs of a store in a folder, the latest first."""
    store = ctx.params.get("store") or os.environ.get("SJC_STORE") or "./store"
    return sorted((path.stem for path in Path(store).glob("runs/*.json")), reverse=True)


def _prior(ctx: typer.Context) -> str:
    """The prior that the line has so far, which decides about presets and keys."""
    chosen = ctx.params.get("prior")
    return chosen if isinstance(chosen, str) and chosen else "toybox"
