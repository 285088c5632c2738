"""`sjc generate`: one asset with the engine alone."""

from __future__ import annotations

import errno
import json
import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands import completion, options
from flows.commands.app import command
from flows.commands.output import print_warnings
from flows.errors import RunError, UsageError, disk_errors
from sjc_engine.asset_files import FIELD, MESH, PREVIEW, THUMBNAIL, TURNTABLE

if TYPE_CHECKING:
    from sjc_engine.evaluation.clip import Judge
    from sjc_engine.evaluation.lpips import Lpips
    from sjc_engine.image_file import InputImage
    from sjc_engine.priors.denoiser import Prior
    from sjc_engine.progress import OnWork
    from sjc_engine.spec import AssetSpec

ROOM = 16 << 20  # bytes: an asset takes 1 to 5 MB; minutes of work must not find out
# What an asset's folder may hold; a second asset does not go there.
FILES = (
    MESH, "mesh.ply", "mesh.obj", "mesh.stl", FIELD, PREVIEW, TURNTABLE, THUMBNAIL, "report.json",
)  # fmt: skip


@command(
    'sjc generate "a DSLR photo of a yellow duck" -o duck',
    'sjc generate "a mug" --image mug.png --prior kxic/zero123-xl@refs/pr/1 -o mug',
)
def generate(
    prompt: Annotated[str, typer.Argument(help="What to make.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the files.")],
    prior: Annotated[
        str, typer.Option(help="As for `run`.", autocompletion=completion.priors)
    ] = "toybox",
    recipe: options.Recipe = None,
    set_: options.Set = None,
    dtype: options.Dtype = None,
    allow_pickle: options.AllowPickle = False,
    seed: options.Seed = 0,
    image: Annotated[
        Path | None, typer.Option(help="An input image, for priors that take one.")
    ] = None,
    device: options.Device = None,
    quiet: options.Quiet = False,
    json_: options.Json = False,
) -> None:
    """Make one asset with the engine alone: no manifest, no store, no Prefect."""
    import tempfile

    from flows.plan import check_devices, missing_gpus, missing_xatlas
    from sjc_engine.image_file import read_image

    if image and image.parts[0] in ("http:", "https:"):
        raise UsageError("--image: only files are read; download it, and give its path")
    overrides = options.parse_overrides(set_, dtype)
    picture = read_image(image) if image else None
    spec, found = _spec(
        prompt,
        seed,
        image,
        prior=prior,
        recipe=recipe,
        overrides=overrides,
        allow_pickle=allow_pickle,
    )
    print_warnings(found)
    if taken := [name for name in FILES if (out / name).exists()]:
        raise UsageError(f"{out} has {', '.join(taken)} already; name another folder")
    if out.exists() and not out.is_dir():
        raise UsageError(f"-o {out} is a file; name a folder")
    wanted = None if device is None else [device]
    chosen = check_devices(wanted, "--device")[0]
    print_warnings(missing_gpus(wanted) + missing_xatlas([spec.recipe]))
    home = out if out.is_dir() else out.parent
    with disk_errors("-o", out):
        home.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix=".sjc-", dir=home)
        free = shutil.disk_usage(home).free
    with temporary as folder, disk_errors("-o", out, only_refusals=True):
        if free < ROOM:
            raise OSError(errno.ENOSPC, "No space left on device")
        report = _make(spec, picture, chosen, Path(folder), quiet, allow_pickle=allow_pickle)
        out.mkdir(exist_ok=True)
        made = [shutil.move(path, out / path.name) for path in sorted(Path(folder).iterdir())]
    print(json.dumps(report, indent=1) if json_ else "\n".join(map(str, made)))


def _spec(
    prompt: str, seed: int, image: Path | None, **options: Any
) -> tuple[AssetSpec, list[str]]:
    """The asset that the options ask for, checked as one row of a manifest is, and warnings.

    Raises ManifestError with everything that is wrong. The prior's revision is what the option
    says, if anything: loading the prior asks the hub.
    """
    from sjc_engine.priors.sources import split_revision
    from tasks.manifest.entries import Memo, RowReader
    from tasks.manifest.formats import ManifestError, Problem
    from tasks.manifest.resolve import COMMAND_LINE, resolve

    given = {"prompt": prompt, "seed": seed, "image": str(image or "")}
    reader = RowReader(given, Path(), Memo())
    rows = reader.rows("asset", COMMAND_LINE, "", 0)
    problems = [Problem(COMMAND_LINE, None, e.key, e.problem, e.fix) for e in reader.errors]
    resolved = resolve(rows, prior_revision=lambda prior: split_revision(prior)[1], **options)
    if problems := problems or resolved.problems:
        raise ManifestError(
            [replace(p, column="--image") if p.column == "image" else p for p in problems]
        )
    spec, facts = resolved.entries[0].spec, rows[0].image
    found = facts.remarks(spec.recipe.optimize.image_recenter) if facts else []
    return spec, [f"--image: {text}" for text in found] + resolved.guesses


def _load(
    spec: AssetSpec, device: str, allow_pickle: bool, on_work: OnWork
) -> tuple[Prior, Judge, Lpips | None]:
    """The models that an asset is made and judged with."""
    from sjc_engine.priors.denoiser import load_prior
    from tasks.stages.judges import Judges

    judge, lpips = Judges(allow_pickle=allow_pickle).get(spec.recipe.evaluate)
    revision, wanted = spec.prior_revision or None, spec.recipe.optimize
    prior = load_prior(
        spec.prior,
        revision,
        device,
        wanted.dtype,
        allow_pickle=allow_pickle,
        loras=wanted.loras,
        on_work=on_work,
    )
    return prior, judge, lpips


def _make(
    spec: AssetSpec,
    picture: InputImage | None,
    device: str,
    folder: Path,
    quiet: bool,
    *,
    allow_pickle: bool,
) -> dict[str, Any]:
    """The asset's files, in `folder`, and the content of `report.json`.

    The stages of a run in their order: optimize, extract, evaluate.
    """
    from flows.progress.terminal import terminal_watcher
    from sjc_engine.evaluation.metrics import evaluate
    from sjc_engine.evaluation.pictures import contact_sheet, take_pictures
    from sjc_engine.evaluation.turntable import write_turntable
    from sjc_engine.mesh.extract import extract_mesh, mesh_statistics, write_mesh
    from sjc_engine.mesh.isosurface import MeshError
    from sjc_engine.optimization.loop import optimize
    from sjc_engine.optimization.scene import Diverged, Scene, StepStats

    started = time.perf_counter()
    prompt, recipe = spec.prompt, spec.recipe
    images = [picture] if picture else None
    with terminal_watcher(quiet=quiet) as watch:
        on_work = partial(watch.working, "asset")
        prior, judge, lpips = _load(spec, device, allow_pickle, on_work)
        words_cut: list[str] = []

        def on_step(scene: Scene, stats: StepStats) -> None:
            words_cut[:] = scene.words_cut
            watch.progress("asset", stats.step, stats.steps, stats.loss)

        try:
            (field,) = optimize(
                [prompt], prior, recipe, seeds=[spec.seed], on_step=on_step, images=images,
                on_work=on_work,
            )  # fmt: skip
            field = field.cpu()
            watch.stage("asset", "extract")
            mesh = extract_mesh(field, recipe.mesh, on_work)
        except (Diverged, MeshError) as error:
            raise RunError(f"no asset: {error}") from error
        watch.stage("asset", "evaluate")
        pictures = take_pictures(field, mesh, recipe.evaluate.evaluation_size, on_work)
        metrics = evaluate(pictures, mesh, prompt, judge, lpips).metrics
        contact_sheet(pictures, prompt).save(folder / PREVIEW)
        if recipe.evaluate.turntable_frames:
            write_turntable(mesh, folder, recipe.evaluate, on_work)
    spec = replace(spec, prior=prior.id, prior_revision=prior.revision)
    field.save(folder / FIELD)
    write_mesh(mesh, folder, recipe.mesh, spec.extras())
    report = {"asset_id": spec.asset_id, **spec.to_json()}
    del report["negative_prompt"]  # no option asks for one
    report |= {"seconds": time.perf_counter() - started, "words_cut": words_cut}
    report["dtype"] = prior.precision
    report |= {**mesh_statistics(mesh), **metrics}
    (folder / "report.json").write_text(json.dumps(report, indent=1), "utf-8")
    return report
