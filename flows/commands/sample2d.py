"""`sjc sample2d`: the paper's experiments in 2D, as one picture."""

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from flows.commands import completion, options
from flows.commands.app import command
from flows.commands.output import print_warnings
from flows.errors import UsageError, disk_errors
from flows.progress.counter import counter


@command('sjc sample2d "a DSLR photo of a yellow duck" -o experiments.png')
def sample2d(
    prompt: Annotated[str, typer.Argument(help="What to draw; priors without words ignore it.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The PNG file to write.")],
    prior: Annotated[
        list[str] | None,
        typer.Option(
            help="As for `run`; repeatable. Default: toybox and toybox-duck.",
            autocompletion=completion.priors,
        ),
    ] = None,
    guidance: Annotated[str, typer.Option(help="Scales of the grid's columns.")] = "1,3,10,30",
    steps: Annotated[int, typer.Option(min=1, help="Steps along the score.")] = 400,
    seed: options.Seed = 0,
    device: options.Device = None,
    dtype: options.Dtype = None,
    allow_pickle: options.AllowPickle = False,
    quiet: options.Quiet = False,
) -> None:
    """Draw the paper's 2D experiments: the perturbed score, samples, schedules and guidance."""
    try:
        scales = [float(text) for text in guidance.split(",")]
    except ValueError:
        raise UsageError(f"--guidance {guidance!r}: write numbers with commas between") from None
    priors = prior or ["toybox", "toybox-duck"]
    _check(out, priors, scales, allow_pickle)
    from flows.plan import check_devices, missing_gpus

    wanted = None if device is None else [device]
    chosen = check_devices(wanted, "--device")[0]
    print_warnings(missing_gpus(wanted))
    with disk_errors("-o", out):  # a folder that cannot be written is found before the work
        temporary = tempfile.TemporaryDirectory(prefix=".sjc-", dir=out.parent)
    with temporary as folder:
        from sjc_engine.paper2d import experiments
        from sjc_engine.priors.denoiser import load_prior

        loaded = [
            load_prior(prior, device=chosen, dtype=dtype, allow_pickle=allow_pickle)
            for prior in priors
        ]
        on_done = counter("parts", quiet=quiet)
        picture = experiments(
            loaded, prompt, guidance=scales, steps=steps, seed=seed, on_done=on_done
        )
        with disk_errors("-o", out):
            picture.save(Path(folder, out.name), "PNG", optimize=True)
            Path(folder, out.name).replace(out)
    print(out)


def _check(out: Path, priors: Sequence[str], guidance: Sequence[float], allow_pickle: bool) -> None:
    """Raises UsageError or SettingError for an option that cannot be right, before any work."""
    from sjc_engine.priors.conditioning import group_of
    from sjc_engine.priors.sources import prior_error, takes_image

    if out.suffix.lower() != ".png":
        raise UsageError(f"-o {out}: name a .png file")
    if out.is_dir() or not out.parent.is_dir():
        raise UsageError(f"-o {out}: its folder does not exist, or it is one")
    if not all(math.isfinite(scale) for scale in guidance):
        raise UsageError("--guidance: use finite numbers")
    for prior in priors:
        if error := prior_error(prior, allow_pickle):
            raise error
        if takes_image(prior):
            raise UsageError(f"--prior: {prior!r} starts from an image; name one that does not")
        if group_of(prior) > 1:
            raise UsageError(
                f"--prior: {prior!r} sees several views at once; name one that does not"
            )
