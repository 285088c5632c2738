"""What a run loads once: the engine processes of its devices, with their priors, and its judges."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flows.errors import UsageError
from flows.plan import RunPlan
from tasks.devices.pool import DevicePool, Log

if TYPE_CHECKING:
    from sjc_engine.recipes import EvaluateRecipe
    from tasks.stages.judges import Judges


@dataclass(frozen=True)
class RunContext:
    pool: DevicePool
    judges: Judges


# A run's parts are sub-flows, whose parameters are JSON: pool and judges come in by this side door.
_CONTEXT: ContextVar[RunContext | None] = ContextVar("context", default=None)
_POOL: ContextVar[DevicePool | None] = ContextVar("pool", default=None)


@contextlib.contextmanager
def start_devices(
    plan: RunPlan,
    log: Log = logging.getLogger(__name__),  # noqa: B008
    *,
    warm: bool = True,
) -> Iterator[DevicePool]:
    """The devices' processes, which start at once; `run_context` within takes them over.

    To be begun before what takes seconds, such as the import of the flows. warm: False where the
    run may have to wait, and others need the devices' memory: processes start with their scenes.
    """
    settings = plan.settings
    with DevicePool(
        plan.devices,
        Path(settings.scratch).resolve(),
        scenes_per_device=settings.scenes_per_device,
        compiled=settings.compiled,
        log=log,
    ) as pool:
        if warm:
            pool.warm_up([entry.spec.to_json() for entry in plan.todo.values()])
        token = _POOL.set(pool)
        try:
            yield pool
        finally:
            _POOL.reset(token)


@contextlib.contextmanager
def run_context(plan: RunPlan) -> Iterator[RunContext]:
    """Those of the run around this one, if there are any; else new ones, until the run ends.

    Processes start at once, before the judges are loaded. Raises UsageError for a judge that cannot
    be loaded.
    """
    from prefect import get_run_logger

    if found := _CONTEXT.get():
        try:
            yield found
        except BaseException:
            found.pool.close()  # else this flow would wait for threads that wait for devices
            raise
        return
    with contextlib.ExitStack() as stack:
        pool = _POOL.get()
        if pool is None:
            pool = stack.enter_context(start_devices(plan, get_run_logger()))
        else:
            stack.callback(pool.close)
            pool.report_to(get_run_logger())
        judged = (entry.spec.recipe.evaluate for entry in plan.todo.values())
        made = RunContext(pool, load_judges(judged))
        token = _CONTEXT.set(made)
        try:
            yield made
        finally:
            _CONTEXT.reset(token)


def load_judges(recipes: Iterable[EvaluateRecipe], device: str = "cpu") -> Judges:
    """The judges of these recipes; UsageError for one that cannot be loaded."""
    from tasks.stages.judges import Judges

    judges = Judges(device)
    try:
        for recipe in set(recipes):
            judges.get(recipe)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return judges
