"""Stage 1: a field from a prompt, on one of the devices."""

from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.states import Cancelled

from tasks.artifacts import Progress
from tasks.asset import Asset
from tasks.commit import start_attempt
from tasks.devices import DevicePool, SceneError, Watcher

_NOTES = ("steps", "loss_first", "loss_last", "loss_min", "peak_memory_bytes", "device")


def optimize_field(
    asset: Asset,
    pool: DevicePool,
    timeout: float | None = None,
    on_progress: Watcher | None = None,
) -> dict[str, Any]:
    """Puts the field at `asset.field_path` and returns what is known of its optimisation.

    A finished field is taken as it is; the seconds that it once cost stay with it. Raises
    SceneError.
    """
    notes = asset.kept_field()
    if notes is None:
        try:
            done = pool.run(
                asset.spec.to_json(),
                field=asset.field_path,
                checkpoint=asset.checkpoint,
                timeout=timeout,
                on_progress=on_progress,
            )
        except SceneError as error:
            asset.device = error.device or None
            asset.first_step, asset.last_step = error.first_step, error.last_step
            raise
        asset.timings["queue"] = done["seconds_queue"]
        notes = {key: done[key] for key in (*_NOTES, "seconds", "first_step")}
        asset.keep_field(notes)
    asset.timings["optimize"] = notes["seconds"]
    asset.device, asset.last_step = notes["device"], notes["steps"]
    asset.first_step = notes["first_step"]
    asset.report |= {key: notes[key] for key in _NOTES}
    return notes


@task(name="optimize", task_run_name="optimize-{asset.name}", cache_policy=NO_CACHE)
def optimize(
    asset: Asset, run_id: str, pool: DevicePool, timeout: float | None, watcher: Watcher
) -> Any:
    """Begins the asset's attempt and optimises its field."""
    attempt = start_attempt(asset.store, asset.spec, run_id, asset.coverage)
    asset.attempt = attempt["attempt"]
    progress = Progress(asset.name)

    def watch(event: dict[str, Any]) -> None:
        watcher(event)
        progress.update(event["step"] / event["steps"])

    try:
        notes = optimize_field(asset, pool, timeout, watch)
    except SceneError as error:
        if error.status == "interrupted":
            return Cancelled(message=str(error))
        raise
    progress.update(1.0)
    return {key: notes[key] for key in ("steps", "seconds", "device", "loss_last")}
