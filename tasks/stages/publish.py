"""Stage 4: an asset's files into the store, its rows into the tables; or the row of a failure."""

import contextlib
from typing import Any

from prefect import task

from sjc_engine.asset_files import MESH, PREVIEW
from tasks.devices.job import SceneError
from tasks.records.attempts import finish_attempt
from tasks.records.commit import commit_asset
from tasks.records.documents import asset_manifest, committed_attempt
from tasks.stages.asset import Asset
from tasks.stages.retries import STAGE
from tasks.stages.versions import versions
from tasks.store.interface import AlreadyCommitted, WrongBytes
from tasks.store.layout import file_key
from tasks.tables.columns import RowError


@task(name="publish", task_run_name="publish-{asset.name}", **STAGE)
def publish(asset: Asset) -> dict[str, Any]:
    """Commits the asset and writes its rows; returns where its preview and mesh are.

    If another run was first its asset counts, and this attempt ends as `cancelled`.
    """
    try:
        with asset.timed("publish"):
            manifest = commit_asset(
                asset.store,
                asset.id,
                asset.attempt,
                asset.files,
                asset.spec,
                asset.report,
                asset.timings,
                versions(),
            )
    except AlreadyCommitted as error:
        _end(asset, {}, "cancelled", error)
        asset.drop_copy()
        return {"outcome": "reused"}
    _end(asset, manifest, "ok", None)
    asset.drop_copy()
    mesh, preview = (
        asset.store.uri(file_key(asset.id, f"{asset.attempt}/{name}")) for name in (MESH, PREVIEW)
    )
    return {"outcome": "computed", "preview": preview, "mesh": mesh}


def record_failure(asset: Asset, error: BaseException) -> str:
    """Ends the asset's attempt with its error, and writes its rows; returns how it ended.

    An attempt that had been committed before the error came is `ok`: its asset counts. One whose
    end is damaged on its way to the store stays open, and a later run closes it.
    """
    manifest, why = asset_manifest(asset.store, asset.id) or {}, None
    if manifest and committed_attempt(manifest) == asset.attempt:
        status = "ok"
    else:
        manifest, why = {}, error
        status = error.status if isinstance(error, SceneError) else "failed"
        if isinstance(error, RowError):
            asset.report = {}  # it is what no table can hold
    with contextlib.suppress(WrongBytes):
        _end(asset, manifest, status, why)
    return status


def _end(asset: Asset, manifest: dict[str, Any], status: str, error: BaseException | None) -> None:
    document = finish_attempt(
        asset.store,
        asset.id,
        asset.attempt,
        status,
        error=error,
        error_type=error.error_type if isinstance(error, SceneError) else None,
        device=asset.device,
        first_step=asset.first_step,
        last_step=asset.last_step,
        report=asset.report,
        timings=asset.timings,
        versions=versions(),
    )
    asset.rows.record(document, manifest)
