"""`sjc serve`: one process that runs a manifest on a schedule."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import typer

from flows.commands import options
from flows.commands.app import command


@command(
    'sjc serve manifests/paper.csv --cron "0 2 * * *"',
    'sjc serve prompts/ --cron "*/30 * * * *" --store s3://bucket/first',
    interrupted="finished assets are in the store; the next run resumes",
)
def serve(
    context: typer.Context,
    manifest: options.Manifest,
    cron: options.Cron,
    timezone: options.Timezone = "UTC",
    store: options.Store = "./store",
    prior: options.Prior = None,
    recipe: options.Recipe = None,
    set_: options.Set = None,
    dtype: options.Dtype = None,
    limit: options.Limit = None,
    where: options.Where = None,
    scenes_per_device: options.Scenes = None,
    devices: options.Devices = None,
    scratch: options.Scratch = ".sjc",
    timeout: options.Timeout = None,
    retry_failed: options.Retry = False,
    price_per_hour: options.Price = None,
    gallery: options.Gallery = None,
    checkpoint_to_store: options.Checkpoint = False,
    compiled: options.Compiled = False,
    allow_pickle: options.AllowPickle = False,
    fast_launch: options.FastLaunch = False,
) -> None:
    """Run a manifest on a schedule, in this process: each run makes what is new."""
    from flows.plan import make_plan
    from flows.prefect_server import environment, schedule, server

    environment.apply(console_level="INFO")  # the runs' own lines are what there is to see
    times = schedule.format_times(cron, timezone)
    plan = make_plan(settings := options.run_settings(context.params))
    connection = server.connect(Path(settings.scratch, "logs", "prefect-server.log"), ui=True)
    from prefect.schedules import Cron
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.generate import generate
    from flows.progress.summary_artifact import plan_tags, run_name
    from tasks.stages.versions import versions

    connection.wait()
    name = schedule.deployment_name(settings.manifest)
    pages = connection.api_url.removesuffix("/api")
    lines = [f"warning: {warning}" for warning in plan.warnings]
    lines += [f"now: {run_name(plan)}", f"next: {times}"]
    lines += [f"pages: {pages}/deployments, deployment generate/{name}", f"store: {plan.store.url}"]
    lines += ["Ctrl-C stops it; a run that is cut off resumes with the next one"]
    print("\n".join(lines), file=sys.stderr, flush=True)
    # What has imported Prefect before there was a server would look for another one.
    with temporary_settings({PREFECT_API_URL: connection.api_url}), suppress(SystemExit):
        generate.serve(
            name,
            schedule=Cron(cron, timezone=timezone),
            parameters=settings.to_json(),
            tags=plan_tags(plan),
            version=versions()["code"],
            limit=1,
            pause_on_shutdown=False,
            print_starting_message=False,
        )
    raise KeyboardInterrupt  # `serve` ends only when it is interrupted or terminated
