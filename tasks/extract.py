"""Stage 2: a mesh from a field."""

from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from sjc_engine.fields import load_field
from sjc_engine.mesh import extract_mesh, mesh_statistics, write_mesh
from sjc_engine.sources import licence_of
from sjc_engine.spec import AssetSpec
from tasks.asset import Asset


def extract(asset: Asset) -> dict[str, Any]:
    """Puts the mesh's files into the asset's folder and returns its statistics.

    Raises MeshError: EmptyField, OpaqueField, NonFinite or UnwrapTimeout.
    """
    with asset.timed("extract"):
        asset.field = load_field(asset.field_path)
        recipe = asset.spec.recipe.mesh
        asset.mesh = extract_mesh(asset.field, recipe)
        asset.folder.mkdir(parents=True, exist_ok=True)
        write_mesh(asset.mesh, asset.folder, recipe, _extras(asset.spec))
        statistics = mesh_statistics(asset.mesh)
    asset.report |= statistics
    return statistics


def _extras(spec: AssetSpec) -> dict[str, str]:
    """What a file says of itself wherever it goes."""
    return {
        "asset_id": spec.asset_id,
        "prompt": spec.prompt,
        "prior": f"{spec.prior}@{spec.prior_revision[:12]}",
        "licence": f"made with weights under: {licence_of(spec.prior)}",
    }


@task(name="extract", task_run_name="extract-{asset.name}", cache_policy=NO_CACHE)
def extract_asset(asset: Asset) -> dict[str, Any]:
    return extract(asset)
