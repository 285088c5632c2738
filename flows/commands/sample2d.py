"""`sjc sample2d`: the paper's experiments in 2D, as one picture."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

from flows.errors import UsageError
from flows.plan import check_devices
from sjc_engine.sources import takes_image
from tasks.disk import disk_advice
from tasks.manifest_rows import prior_problem


def sample2d(
    prompt: str,
    out: Path,
    priors: Sequence[str],
    guidance: Sequence[float],
    steps: int,
    seed: int,
    device: str | None,
    *,
    quiet: bool,
) -> None:
    """Writes the picture. Raises UsageError for what cannot be made, before any work."""
    _check(out, priors, guidance, steps)
    [chosen] = check_devices(None if device is None else [device], "--device")[:1]
    partial = out.with_name(f".{out.name}.partial")
    try:
        partial.touch()  # a folder that cannot be written is found before the work
    except OSError as error:
        raise UsageError(f"-o {out}: {disk_advice(error, '-o')}") from error

    def tell(done: int, total: int) -> None:
        if not quiet:
            print(f"{done} of {total} parts", file=sys.stderr, flush=True)

    try:
        from sjc_engine.figures import experiments
        from sjc_engine.prior import load_prior

        try:
            loaded = [load_prior(prior, device=chosen) for prior in priors]
        except ValueError as error:
            raise UsageError(str(error)) from error
        picture = experiments(
            loaded, prompt, guidance=guidance, steps=steps, seed=seed, on_done=tell
        )
        try:
            picture.save(partial, "PNG", optimize=True)
            partial.replace(out)
        except OSError as error:
            raise UsageError(f"-o {out}: {disk_advice(error, '-o')}") from error
    finally:
        partial.unlink(missing_ok=True)
    print(out)


def _check(out: Path, priors: Sequence[str], guidance: Sequence[float], steps: int) -> None:
    """Raises UsageError for an option that cannot be right."""
    if out.suffix.lower() != ".png":
        raise UsageError(f"-o {out}: name a .png file")
    if out.is_dir() or not out.parent.is_dir():
        raise UsageError(f"-o {out}: its folder does not exist, or it is one")
    if not guidance or steps < 1:
        raise UsageError("--guidance needs a number, and --steps one above 0")
    if not all(math.isfinite(scale) for scale in guidance):
        raise UsageError("--guidance: use finite numbers")
    for prior in priors:
        if problem := prior_problem(prior):
            raise UsageError(f"--prior: {'; '.join(problem)}")
        if takes_image(prior):
            raise UsageError(f"--prior: {prior!r} starts from an image; name one that does not")
