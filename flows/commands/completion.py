"""What a shell offers behind an option: every function returns what may follow `incomplete`.

A shell waits for this, so nothing here imports torch, Prefect or a store on S3.
"""

import os
from pathlib import Path

import typer

DEVICES = ("cpu", "cpu,cpu", "cuda:0", "cuda:0,cuda:1")


def recipes(ctx: typer.Context, incomplete: str) -> list[str]:
    """The presets that fit the prior named so far."""
    from sjc_engine.presets import presets_of

    return [n for n in presets_of(_prior(ctx)) if n.startswith(incomplete)]


def settings(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Recipe keys, each with the value that it has by default."""
    from sjc_engine.recipes import PARTS, Recipe

    recipe = Recipe.for_prior(_prior(ctx))
    return [
        (f"{key}=", f"{value}")
        for part in PARTS
        for key, value in vars(getattr(recipe, part)).items()
        if key.startswith(incomplete)
    ]


def priors(incomplete: str) -> list[str]:
    """Embedded priors, and those in the hub's cache; a folder is the shell's to complete."""
    from sjc_engine.priors.sources import BUILTINS

    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    kept = sorted(path.name[8:].replace("--", "/") for path in cache.glob("models--*"))
    return [name for name in (*BUILTINS, *kept) if name.startswith(incomplete)]


def devices(incomplete: str) -> list[str]:
    """The usual choices: a shell must not wait for torch to count GPUs."""
    return [name for name in DEVICES if name.startswith(incomplete)]


def runs(ctx: typer.Context, incomplete: str) -> list[str]:
    """The runs of a store in a folder, the latest first."""
    store = ctx.params.get("store") or os.environ.get("SJC_STORE") or "./store"
    known = sorted((path.stem for path in Path(store).glob("runs/*.json")), reverse=True)
    return [run for run in known if run.startswith(incomplete)]


def _prior(ctx: typer.Context) -> str:
    """The prior that the line has so far, which decides about presets and keys."""
    chosen = ctx.params.get("prior")
    return chosen if isinstance(chosen, str) and chosen else "toybox"
