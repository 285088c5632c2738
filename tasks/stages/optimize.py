"""Stage 1: a field from a prompt, on one of the devices."""

from typing import Any

from prefect import get_run_logger, task
from prefect.states import Cancelled

from sjc_engine.asset_files import FIELD
from tasks.devices.job import SceneError
from tasks.devices.pool import DevicePool, Watcher
from tasks.prefect_ui.artifacts import Board, show_progress
from tasks.records.attempts import start_attempt
from tasks.records.documents import asset_manifest, committed_files
from tasks.stages.asset import Asset
from tasks.stages.retries import STAGE
from tasks.store.interface import Damaged, NotInStore

_OLD_NOTES = ("steps", "loss_first", "loss_last", "loss_min", "peak_memory_bytes", "device")
# Not all of these are with the fields of older versions
_NOTES = (*_OLD_NOTES, "rolled_back", "words_cut", "dtype", "history")


def _new_field(
    asset: Asset, pool: DevicePool, timeout: float | None, on_progress: Watcher
) -> dict[str, Any]:
    """Has a device make the field; returns what is known of its optimisation. Raises SceneError."""
    if asset.copy:
        asset.copy.fetch()
    try:
        done = pool.run(
            asset.spec.to_json(),
            field=asset.field_path,
            checkpoint=asset.checkpoint,
            image=asset.image,
            timeout=timeout,
            on_progress=on_progress,
            cancelled=asset.cancelled,
        )
    except SceneError as error:
        if asset.copy:
            asset.copy.finish()
        asset.device = error.device or None
        asset.first_step, asset.last_step = error.first_step, error.last_step
        asset.report["history"] = error.history
        raise
    if asset.copy:
        asset.copy.settle()  # it reads the checkpoint, which goes now
    asset.timings["queue"] = done["seconds_queue"]
    notes = {key: done[key] for key in (*_NOTES, "seconds", "first_step")}
    asset.keep_field(notes)
    return notes


def _reused_field(asset: Asset) -> dict[str, Any] | None:
    """Fetches the donor's field; None if there is none, or it cannot be had any more."""
    manifest = asset_manifest(asset.store, asset.donor) if asset.donor else None
    if manifest is None or asset.donor is None:
        return None
    field = committed_files(asset.donor, manifest).get(FIELD)
    report, seconds = manifest["report"], manifest["timings"].get("optimize")
    if field is None or seconds is None or not set(_OLD_NOTES) <= set(report):
        return None
    asset.field_path.parent.mkdir(parents=True, exist_ok=True)
    try:
        asset.store.download(field.key, asset.field_path, field.stored.sha256)
    except (Damaged, NotInStore):  # it can be made again
        return None
    notes = {key: report.get(key) for key in _NOTES}
    notes |= {"seconds": seconds, "first_step": 0}
    asset.keep_field(notes)
    return notes


@task(name="optimize", task_run_name="optimize-{asset.name}", **STAGE)
def optimize(
    asset: Asset,
    run_id: str,
    pool: DevicePool,
    timeout: float | None,
    watcher: Watcher,
    board: Board,
) -> Any:
    """Begins the asset's attempt and puts its field at `asset.field_path`.

    A finished field, in the scratch folder or of another asset, is taken as it is; the seconds
    that it once cost stay with it.
    """
    if not asset.attempt:  # else this task is run again
        attempt = start_attempt(asset.store, asset.spec, run_id, asset.coverage)
        asset.attempt = attempt["attempt"]
    show = show_progress(board, asset.name)

    def watch(event: dict[str, Any]) -> None:
        if asset.copy:
            asset.copy.offer()
        watcher(event)
        if event["type"] == "progress":
            show(event["step"] / event["steps"])

    try:
        notes = asset.kept_field() or _reused_field(asset)
        notes = notes or _new_field(asset, pool, timeout, watch)
    except SceneError as error:
        if error.status == "cancelled" or error.error_type == "Interrupted":
            return Cancelled(message=str(error))
        if error.log_tail:
            get_run_logger().error("the log of its engine ends with\n%s", error.log_tail)
        raise  # its reason becomes a row
    asset.timings["optimize"] = notes["seconds"]
    asset.device, asset.last_step = notes["device"], notes["steps"]
    asset.first_step = notes["first_step"]
    asset.report |= {key: notes.get(key) for key in _NOTES}
    show(1.0)
    return {key: notes[key] for key in ("steps", "seconds", "device", "loss_last")}
