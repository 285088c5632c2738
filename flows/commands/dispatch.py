"""`sjc dispatch` around the flow: the plan into the store, the server, the progress, the end."""

import json
import os
from pathlib import Path

from flows.commands.output import print_table
from flows.commands.plan import read_plan_file
from flows.errors import FAILED, UsageError
from flows.prefect_server import environment, server
from flows.progress.terminal import terminal_watcher, watched_by
from flows.settings import check_timeout
from tasks.documents import check_usable
from tasks.shard_plan import PlanError, keep_plan
from tasks.store import open_store


def run(
    path: Path,
    store: str,
    deployment: str,
    workers: int | None,
    *,
    retry_failed: bool,
    timeout: float | None,
    checkpoint_to_store: bool,
    compiled: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    """Runs the flow and prints what came of it; returns the exit code."""
    if workers is not None and workers < 1:
        raise UsageError("--workers: use a whole number above 0")
    check_timeout(timeout)
    plan = read_plan_file(path)
    environment.apply(console_level="CRITICAL")
    if not (os.environ.get("PREFECT_API_URL") or server.ui_server()):
        raise UsageError(
            "workers have to reach Prefect's server, and none is known; set PREFECT_API_URL "
            "(docs/many-machines.md), or start `sjc ui` for workers on this machine"
        )
    opened = open_store(store)
    check_usable(opened)
    try:
        keep_plan(opened, plan)
    except PlanError as error:
        raise UsageError(str(error)) from error
    connection = server.connect(Path(os.devnull))

    from flows.commands.flow_result import check_end
    from flows.dispatch import dispatch, tally

    with connection.at_hand(), terminal_watcher(quiet=quiet) as watch, watched_by(watch):
        state = dispatch(
            plan.id,
            opened.url,
            deployment,
            workers,
            retry_failed,
            timeout,
            checkpoint_to_store,
            compiled,
            return_state=True,
        )
    check_end(state)
    counts = tally(plan, opened)
    facts = {"plan": plan.id, "assets": sum(counts.values()), **counts}
    places = {"store": opened.url, "tables": opened.uri("tables")}
    if as_json:
        print(json.dumps({**facts, **places}, indent=1))
    else:
        print_table({name: name for name in facts}, [facts])
        for name, place in places.items():
            print(f"{name + ':':9}{place}")
    return 0 if counts["ok"] == facts["assets"] else FAILED
