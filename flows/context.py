"""What a run loads once: the engine processes of its devices, with their priors, and its judges."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flows.plan import RunPlan
from tasks.devices.pool import DevicePool

if TYPE_CHECKING:
    from sjc_engine.recipes import EvaluateRecipe
    from tasks.stages.judges import Judges


@dataclass(frozen=True)
class RunContext:
    """The devices and judges of a run, which all its parts share."""

    pool: DevicePool
    judges: Judges


# The flows' parameters are JSON: pool and judges come in by this side door.
_CONTEXT: ContextVar[RunContext | None] = ContextVar("context", default=None)


@contextlib.contextmanager
def start_devices(plan: RunPlan, *, warm: bool = True) -> Iterator[RunContext]:
    """The devices' processes, which start at once; `run_context` within uses them.

    To be begun before what takes seconds, such as the import of the flows. warm: False where the
    run may have to wait, and others need the devices' memory: processes start with their scenes.
    """
    settings = plan.settings
    with DevicePool(
        plan.devices,
        Path(settings.scratch).resolve(),
        scenes_per_device=settings.scenes_per_device,
        compiled=settings.compiled,
    ) as pool:
        if warm:
            pool.warm_up([entry.spec.to_json() for entry in plan.todo.values()])
        from tasks.stages.judges import Judges

        context = RunContext(pool, Judges())
        token = _CONTEXT.set(context)
        try:
            yield context
        finally:
            _CONTEXT.reset(token)


@contextlib.contextmanager
def run_context(plan: RunPlan) -> Iterator[None]:
    """The devices started around this, if there are any, else new ones; with the plan's judges.

    Processes start at once, before the judges are loaded. Raises SettingError for a judge that
    cannot be loaded.
    """
    from prefect import get_run_logger

    with contextlib.ExitStack() as stack:
        found = _CONTEXT.get() or stack.enter_context(start_devices(plan))
        found.pool.report_to(get_run_logger())
        load_judges(found.judges, (entry.spec.recipe.evaluate for entry in plan.todo.values()))
        yield


@contextlib.contextmanager
def shared_context() -> Iterator[RunContext]:
    """That of the run, for the flow or the part of it that works on assets."""
    found = _CONTEXT.get()
    assert found is not None, "not within `run_context`"
    try:
        yield found
    except BaseException:
        found.pool.close()  # else this flow would wait for threads that wait for devices
        raise


def load_judges(judges: Judges, recipes: Iterable[EvaluateRecipe]) -> None:
    """Loads what these recipes name; SettingError for a judge that cannot be loaded."""
    for recipe in set(recipes):
        judges.get(recipe)
