"""Stage 3: metrics, view pictures and the contact sheet of an asset."""

from typing import Any

from prefect import task

from sjc_engine.asset_files import FIELD, PREVIEW, VIEWS, view_file
from sjc_engine.evaluation.metrics import evaluate as measure
from sjc_engine.evaluation.pictures import contact_sheet, take_pictures, to_image
from sjc_engine.evaluation.turntable import write_turntable
from sjc_engine.progress import OnWork, unheard
from tasks.prefect_ui.artifacts import Board, show_preview
from tasks.stages.asset import Asset
from tasks.stages.judges import Judges
from tasks.stages.retries import STAGE


@task(name="evaluate", task_run_name="evaluate-{asset.name}", **STAGE)
def evaluate(
    asset: Asset, judges: Judges, board: Board, on_work: OnWork = unheard
) -> dict[str, Any]:
    """Puts all pictures of the asset into its folder and returns the metrics."""
    assert asset.field is not None
    assert asset.mesh is not None
    recipe, prompt = asset.spec.recipe.evaluate, asset.spec.prompt
    with asset.timed("evaluate"):
        pictures = take_pictures(asset.field, asset.mesh, recipe.evaluation_size, on_work)
        judge, lpips = judges.get(recipe)
        report = measure(pictures, asset.mesh, prompt, judge, lpips)
        contact_sheet(pictures, prompt).save(asset.folder / PREVIEW)
        (asset.folder / VIEWS).mkdir(exist_ok=True)
        for source, views in (("field", pictures.field), ("mesh", pictures.mesh)):
            for number, view in enumerate(views):
                to_image(view).save(asset.folder / view_file(source, number))
        if recipe.turntable_frames:
            write_turntable(asset.mesh, asset.folder, recipe, on_work)
    made = [path for path in sorted(asset.folder.rglob("*")) if path.is_file()]
    asset.files = {path.relative_to(asset.folder).as_posix(): path for path in made}
    asset.files[FIELD] = asset.field_path
    asset.report |= {**report.metrics, "views": report.views}
    show_preview(board, asset.name, asset.folder / PREVIEW, prompt)
    return report.metrics
