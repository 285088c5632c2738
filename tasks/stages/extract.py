"""Stage 2: a mesh from a field."""

from typing import Any

from prefect import task

from sjc_engine.fields.kinds import load_field
from sjc_engine.mesh.extract import extract_mesh, mesh_statistics, write_mesh
from sjc_engine.progress import OnWork, unheard
from tasks.devices.job import interrupted
from tasks.stages.asset import Asset
from tasks.stages.retries import STAGE


@task(name="extract", task_run_name="extract-{asset.name}", **STAGE)
def extract(asset: Asset, on_work: OnWork = unheard) -> dict[str, Any]:
    """Puts the mesh's files into the asset's folder and returns its statistics.

    Raises MeshError: EmptyField, OpaqueField, NonFinite, UnwrapTimeout or UnwrapKilled.
    """
    with asset.timed("extract"):
        try:
            asset.field = load_field(asset.field_path)
        except ValueError as error:
            if isinstance(error.__cause__, RuntimeError):  # no memory, or of another shape
                raise
            asset.drop_field()  # torn, in the scratch folder
            raise interrupted("ScratchLost", error) from error
        recipe = asset.spec.recipe.mesh
        asset.mesh = extract_mesh(asset.field, recipe, on_work)
        asset.folder.mkdir(parents=True, exist_ok=True)
        write_mesh(asset.mesh, asset.folder, recipe, asset.spec.extras())
        statistics = mesh_statistics(asset.mesh)
    asset.report |= statistics
    return statistics
