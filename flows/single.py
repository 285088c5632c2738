"""`sjc generate`: one asset with the engine alone."""

import json
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.errors import RunError, UsageError
from flows.plan import check_devices
from flows.terminal import terminal_watcher
from sjc_engine.input_image import NO_SILHOUETTE, ImageError, InputImage, misfits, read_image
from sjc_engine.recipes import Recipe
from sjc_engine.sources import takes_image

FILES = ("mesh.glb", "field.safetensors", "preview.png", "report.json")


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
    if not request.prompt.strip():
        raise UsageError("the prompt is empty")
    taken = [name for name in FILES if (request.out / name).exists()]
    if taken:
        raise UsageError(f"{request.out} has {', '.join(taken)} already; name another folder")
    try:
        recipe = Recipe.for_prior(request.prior, request.recipe).override(request.overrides)
    except ValueError as error:
        raise UsageError(str(error)) from error
    image = _image(request, recipe)
    device = check_devices([request.device] if request.device else None)[0]
    request.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".sjc-", dir=request.out.parent) as folder:
        report = _make(request, recipe, image, device, Path(folder), quiet)
        request.out.mkdir(exist_ok=True)
        for name in FILES:
            shutil.move(Path(folder, name), request.out / name)
    if as_json:
        print(json.dumps(report, indent=1))
    else:
        for name in FILES:
            print(request.out / name)


def _image(request: Request, recipe: Recipe) -> InputImage | None:
    """The picture to start from; UsageError when it does not go with the rest."""
    has_image, r = request.image is not None, recipe.optimize
    for setting, problem in misfits(request.prior, takes_image(request.prior), has_image, "", r):
        option = "--image" if setting == "image" else f"--set {setting}"
        raise UsageError(f"{option}: {problem}")
    try:
        image = read_image(request.image) if request.image else None
    except ImageError as error:
        raise UsageError(f"--image: {error}") from error
    if image and image.opacity is None and r.silhouette_weight:
        raise UsageError(f"--set silhouette_weight: {NO_SILHOUETTE}")
    return image


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
    from sjc_engine.judge import load_judge
    from sjc_engine.mesh import MeshError, extract_mesh, mesh_statistics
    from sjc_engine.pictures import take_pictures
    from sjc_engine.preview import contact_sheet
    from sjc_engine.prior import load_prior
    from sjc_engine.scene import Diverged, Scene, StepStats

    started = time.perf_counter()
    try:
        judge = load_judge(recipe.evaluate.judge)
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
        metrics = evaluate(field, mesh, request.prompt, judge, recipe.evaluate, pictures).metrics
    field.save(folder / "field.safetensors")
    mesh.export(folder / "mesh.glb")
    contact_sheet(field, mesh, request.prompt, pictures).save(folder / "preview.png")
    report = {
        "prompt": request.prompt,
        "image": image.sha256 if image else None,
        "seed": request.seed,
        "prior": prior.id,
        "prior_revision": prior.revision,
        "recipe": recipe.to_json(),
        "seconds": time.perf_counter() - started,
        **mesh_statistics(mesh),
        **metrics,
    }
    (folder / "report.json").write_text(json.dumps(report, indent=1), "utf-8")
    return report
