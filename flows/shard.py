"""The flow that workers run: a shard of a plan, with a run document and table parts of its own."""

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.states import State

from flows.generate import run_on_devices
from flows.plan import make_plan
from flows.scratch import shard_scratch, sole_user
from flows.settings import Settings
from tasks.manifest.shard_plan import fetch_images


@flow(name="generate-shard", flow_run_name="shard {shard} of {plan}")
def generate_shard(
    plan: str,
    shard: int,
    store: str,
    devices: list[str] | None = None,
    scenes_per_device: int | None = None,
    scratch: str | None = None,
    retry_failed: bool = False,
    timeout: float | None = None,
    checkpoint_to_store: bool = False,
    compiled: bool = False,
    allow_pickle: bool = False,
    fast_launch: bool = False,
) -> State[Any]:
    """Makes the assets of one shard of a plan that lies in the store.

    scratch: a folder of this machine for checkpoints; each shard has its own below it, so that
    several workers share a machine, and the next flow run of the shard goes on from there. By
    default `SJC_SCRATCH`, else ~/.cache/sjc. The rest is as in the flow `generate`.
    """
    # Every parameter is the setting of its name; the plan replaces the manifest.
    given = locals() | {"manifest": plan, "scratch": str(shard_scratch(scratch, plan, shard))}
    settings = Settings(**given)
    run = make_plan(settings)
    with sole_user(Path(settings.scratch)):
        fetch_images(run.store, list(run.todo.values()))
        return run_on_devices(run)
