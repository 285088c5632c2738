"""What is around a flow, whose parameters are JSON, and what all assets of a run share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.plan import RunPlan
from flows.prefect_server.server import Server
from flows.prefect_server.shutdown import Shutdown
from flows.progress.terminal import Watcher, terminal_watcher
from sjc_engine.priors.sources import BUILTINS
from tasks.devices.pool import DevicePool
from tasks.store.interface import Store

if TYPE_CHECKING:
    from tasks.prefect_ui.artifacts import Board
    from tasks.stages.judges import Judges


@dataclass(frozen=True)
class Surroundings:
    """What a command gives the flow that it calls. A flow on a worker has only the defaults.

    pool: the devices, if they were started before the flow. store: which it must find again.
    shutdown: if the flow is all that its process is for.
    """

    watcher: Watcher = field(default_factory=Watcher)
    pool: DevicePool | None = None
    store: Store | None = None
    shutdown: Shutdown | None = None


_SURROUNDINGS: ContextVar[Surroundings | None] = ContextVar("surroundings", default=None)


def surroundings() -> Surroundings:
    """For a flow to ask once, at its beginning: from there on all this is an argument."""
    return _SURROUNDINGS.get() or Surroundings()


@contextlib.contextmanager
def surrounded_by(**given: Any) -> Iterator[None]:
    """Flows that are called within have these fields of `Surroundings`, and those around this."""
    token = _SURROUNDINGS.set(replace(surroundings(), **given))
    try:
        yield
    finally:
        _SURROUNDINGS.reset(token)


@contextlib.contextmanager
def watching(server: Server, *, quiet: bool) -> Iterator[Watcher]:
    """Shows the flow that is run within on the terminal; `server` has to be there for it."""
    with server.available(), terminal_watcher(quiet=quiet) as watch, surrounded_by(watcher=watch):
        yield watch


@dataclass(frozen=True)
class RunContext:
    """What all assets of a run share: its devices and judges, and where it is reported."""

    pool: DevicePool
    judges: Judges
    watcher: Watcher
    board: Board


@contextlib.contextmanager
def start_devices(plan: RunPlan, *, warm: bool = True, quiet: bool = False) -> Iterator[DevicePool]:
    """The devices' processes, which start at once; flows that are called within use them.

    To be begun before what takes seconds, such as the import of the flows. warm: False where the
    run may have to wait, and others need the devices' memory: processes start with their scenes.
    What the priors lack is downloaded before, once for all of them; quiet: without showing it.
    """
    settings = plan.settings
    if {entry.spec.prior for entry in plan.todo.values()} - BUILTINS.keys():
        from flows.progress.downloads import download_priors

        download_priors(plan, quiet=quiet)
    with DevicePool(
        plan.devices,
        Path(settings.scratch).resolve(),
        scenes_per_device=settings.scenes_per_device,
        compiled=settings.compiled,
        allow_pickle=settings.allow_pickle,
        fast_launch=settings.fast_launch,
    ) as pool:
        if warm:
            pool.warm_up([entry.spec.to_json() for entry in plan.todo.values()])
        with surrounded_by(pool=pool):
            yield pool


@contextlib.contextmanager
def run_context(plan: RunPlan, board: Board) -> Iterator[RunContext]:
    """The devices that the command has started, else new ones, with the plan's judges loaded.

    Raises SettingError for a judge that cannot be loaded.
    """
    from prefect import get_run_logger

    from tasks.stages.judges import Judges

    with contextlib.ExitStack() as stack:
        around = surroundings()
        pool = around.pool or stack.enter_context(start_devices(plan))
        pool.report_to(get_run_logger(), around.watcher.problem)
        judges = Judges(allow_pickle=plan.settings.allow_pickle)
        for recipe in {entry.spec.recipe.evaluate for entry in plan.todo.values()}:
            judges.get(recipe)
        yield RunContext(pool, judges, around.watcher, board)
