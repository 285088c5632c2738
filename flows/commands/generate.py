"""`sjc generate`: one asset with the engine alone."""

import contextlib
import errno
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flows.errors import RunError, UsageError
from flows.plan import check_devices
from flows.progress.terminal import terminal_watcher
from sjc_engine.atomic import is_refusal
from sjc_engine.input_image import ImageError, InputImage, read_image
from sjc_engine.recipes import Recipe
from sjc_engine.spec import AssetSpec
from tasks.disk import disk_advice
from tasks.manifest import COMMAND_LINE, Manifest, resolve
from tasks.manifest_files import ManifestError, Problem, Record, Records
from tasks.manifest_rows import RowReader

ROOM = 16 << 20  # bytes: an asset takes 1 to 5 MB; minutes of work must not find out
# What an asset's folder may hold; a second asset does not go there.
FILES = (
    "mesh.glb",
    "mesh.ply",
    "mesh.obj",
    "field.safetensors",
    "preview.png",
    "turntable.mp4",
    "thumbnail.webp",
    "report.json",
)


@dataclass(frozen=True)
class Request:
    """What to make, and where to put it."""

    prompt: str
    out: Path
    prior: str
    recipe: str | None
    overrides: dict[str, Any]
    seed: int
    image: Path | None
    device: str | None


def make(request: Request, *, quiet: bool, as_json: bool) -> None:
    """Writes the asset's files into the folder, all of them or none.

    Raises UsageError for what cannot be made.
    """
    image = _image(request)
    recipe = _recipe(request)
    taken = [name for name in FILES if (request.out / name).exists()]
    if taken:
        raise UsageError(f"{request.out} has {', '.join(taken)} already; name another folder")
    if request.out.exists() and not request.out.is_dir():
        raise UsageError(f"-o {request.out} is a file; name a folder")
    device = check_devices(None if request.device is None else [request.device], "--device")[0]
    home = request.out if request.out.is_dir() else request.out.parent
    try:
        home.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix=".sjc-", dir=home)
        free = shutil.disk_usage(home).free
    except OSError as error:
        raise UsageError(f"-o {request.out}: {disk_advice(error, '-o')}") from error
    with temporary as folder, _about_out(request.out):
        if free < ROOM:
            raise OSError(errno.ENOSPC, "No space left on device")
        report = _make(request, recipe, image, device, Path(folder), quiet)
        request.out.mkdir(exist_ok=True)
        names = sorted(path.name for path in Path(folder).iterdir())
        for name in names:
            shutil.move(Path(folder, name), request.out / name)
    if as_json:
        print(json.dumps(report, indent=1))
    else:
        for name in names:
            print(request.out / name)


@contextlib.contextmanager
def _about_out(out: Path) -> Iterator[None]:
    """A disk's refusal as a message about -o."""
    try:
        yield
    except OSError as error:
        if not is_refusal(error):
            raise
        raise UsageError(f"-o {out}: {disk_advice(error, '-o')}") from error


def _image(request: Request) -> InputImage | None:
    """The picture to start from."""
    try:
        return read_image(request.image) if request.image else None
    except ImageError as error:
        raise UsageError(f"--image: {error}") from error


def _recipe(request: Request) -> Recipe:
    """What the request's options say; ManifestError with everything that is wrong with it."""
    records = Records(COMMAND_LINE)
    cells: dict[str, Any] = {"prompt": request.prompt, "seed": request.seed}
    if request.image is not None:
        cells["image"] = str(request.image)
    rows = RowReader(Record(1, cells), records, Path()).rows("asset")
    try:
        if records.problems:
            raise ManifestError(records.problems)
        resolved = resolve(
            Manifest(COMMAND_LINE, "", rows),
            prior=request.prior,
            recipe=request.recipe,
            overrides=request.overrides,
            prior_revision=lambda prior: "",  # loading it asks the hub
        )
    except ManifestError as error:
        raise ManifestError([_option(problem) for problem in error.problems]) from None
    return resolved.entries[0].spec.recipe


def _option(problem: Problem) -> Problem:
    """A row's problem as one of the command line, whose options are named after the columns."""
    option = f"--{problem.column}" if problem.column in ("seed", "image") else problem.column
    return replace(problem, file=COMMAND_LINE, line=None, column=option)


def _make(
    request: Request,
    recipe: Recipe,
    image: InputImage | None,
    device: str,
    folder: Path,
    quiet: bool,
) -> dict[str, Any]:
    from sjc_engine.chaining import optimize
    from sjc_engine.evaluate import evaluate
    from sjc_engine.mesh import MeshError, extract_mesh, mesh_statistics, write_mesh
    from sjc_engine.pictures import take_pictures
    from sjc_engine.preview import contact_sheet
    from sjc_engine.prior import load_prior
    from sjc_engine.scene import Diverged, Scene, StepStats
    from sjc_engine.turntable import write_turntable
    from tasks.judges import Judges

    started = time.perf_counter()
    try:
        judge, lpips = Judges().get(recipe.evaluate)
        prior = load_prior(request.prior, device=device)
    except ValueError as error:
        raise UsageError(str(error)) from error
    with terminal_watcher(quiet=quiet) as watch:

        def on_step(scene: Scene, stats: StepStats) -> None:
            watch.progress("asset", stats.step, stats.steps, stats.loss)

        try:
            (field,) = optimize(
                [request.prompt],
                prior,
                recipe,
                seeds=[request.seed],
                on_step=on_step,
                images=[image] if image else None,
            )
            field = field.cpu()
            watch.stage("asset", "extract")
            mesh = extract_mesh(field, recipe.mesh)
        except (Diverged, MeshError) as error:
            raise RunError(f"no asset: {error}") from error
        watch.stage("asset", "evaluate")
        pictures = take_pictures(field, mesh, recipe.evaluate.evaluation_size)
        metrics = evaluate(
            field, mesh, request.prompt, judge, recipe.evaluate, pictures, lpips
        ).metrics
        contact_sheet(field, mesh, request.prompt, pictures).save(folder / "preview.png")
        if recipe.evaluate.turntable_frames:
            write_turntable(mesh, folder, recipe.evaluate)
    sha256 = image.sha256 if image else None
    spec = AssetSpec(request.prompt, "", sha256, request.seed, prior.id, prior.revision, recipe)
    field.save(folder / "field.safetensors")
    write_mesh(mesh, folder, recipe.mesh, spec.extras())
    seconds = time.perf_counter() - started
    report = _report(spec) | {"seconds": seconds, **mesh_statistics(mesh), **metrics}
    (folder / "report.json").write_text(json.dumps(report, indent=1), "utf-8")
    return report


def _report(spec: AssetSpec) -> dict[str, Any]:
    """What `report.json` says of the asset itself."""
    return {
        "asset_id": spec.asset_id,
        "prompt": spec.prompt,
        "image": spec.image,
        "seed": spec.seed,
        "prior": spec.prior,
        "prior_revision": spec.prior_revision,
        "recipe": spec.recipe.to_json(),
    }
