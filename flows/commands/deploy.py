"""`sjc deploy`: scheduled runs as deployments on a work pool, for workers to pick up.

The deployments are those of a prefect.yaml, Prefect's own format, or one that is made from a
manifest and options. They are checked here and then handed to `prefect deploy`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from flows.commands import options
from flows.commands.app import command
from flows.errors import RunError, UsageError
from sjc_engine.errors import SettingError

ENTRYPOINT = "flows.generate.generate"
HEARTBEAT = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}  # without it a lost run is never noticed
LAST_LINES = 12  # of Prefect's output, when it fails

Config = dict[str, Any]


@command("sjc deploy", 'sjc deploy manifests/paper.csv --cron "0 2 * * *" --pool gpu')
def deploy(
    context: typer.Context,
    manifest: Annotated[
        str | None, typer.Argument(help="As for `run`. Default: the deployments of --file.")
    ] = None,
    cron: Annotated[str | None, typer.Option(help=options.CRON_HELP)] = None,
    timezone: options.Timezone = "UTC",
    name: Annotated[str | None, typer.Option(help="Default: the manifest's name.")] = None,
    pool: Annotated[str, typer.Option(help="Work pool; made if there is none.")] = "gpu",
    on_collision: Annotated[
        Literal["enqueue", "cancel-new"],
        typer.Option(help="What to do when the previous run is still running."),
    ] = "enqueue",
    file: Annotated[Path, typer.Option(help="Deployments in Prefect's format.")] = Path(
        "prefect.yaml"
    ),
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
    """Put scheduled runs on a work pool, from prefect.yaml or of a manifest, for workers."""
    from flows.prefect_server.schedule import deployment_name, run_tags

    if manifest is None:
        if cron is not None or name is not None:
            raise UsageError("--cron and --name are for a manifest; name one, or leave them out")
        make_deployments(read_file(file), file)
        return
    strategy = on_collision.replace("-", "_").upper()
    deployment: Config = {
        "name": name or deployment_name(manifest),
        "tags": run_tags(manifest, [prior] if prior else []),
        "entrypoint": ENTRYPOINT,
        "work_pool": {"name": pool, "job_variables": {"env": HEARTBEAT}},
        "concurrency_limit": {"limit": 1, "collision_strategy": strategy},
        "parameters": options.run_settings(context.params).to_json(),
    }
    if cron is not None:
        deployment["schedules"] = [{"cron": cron, "timezone": timezone}]
    make_deployments({"deployments": [deployment]})


def read_file(path: Path) -> Config:
    """A prefect.yaml; UsageError when there is none, or it has no deployments."""
    import yaml

    try:
        config = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        fix = "name another with --file, or a manifest to deploy"
        raise UsageError(f"{path}: {error.strerror}; {fix}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    found = config.get("deployments") if isinstance(config, dict) else None
    if not isinstance(found, list) or not found or not all(isinstance(d, dict) for d in found):
        raise UsageError(f"{path}: there are no deployments; see docs/operating.md")
    return dict(config)


def make_deployments(config: Config, file: Path | None = None) -> None:
    """Makes, or brings up to date, the work pools and deployments, and prints what to do next.

    file: where the configuration stands, if it does. Raises UsageError and ManifestError before
    anything is made, and RunError.
    """
    import tempfile

    from flows.prefect_server import environment, server

    environment.apply()
    for number, deployment in enumerate(config["deployments"]):
        validate(deployment, f"{file or 'deployment'}: {deployment.get('name', number + 1)}")
    connection = server.find()
    if connection is None:
        raise UsageError("there is no Prefect server; start `sjc ui`, or set PREFECT_API_URL")
    connection.wait()
    import yaml
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.prefect_server.heartbeats import crash_silent_runs
    from tasks.stages.versions import versions

    # What has imported Prefect before the server was known would look for another one.
    api_url = connection.api_url
    pools = dict.fromkeys(d["work_pool"]["name"] for d in config["deployments"])
    with temporary_settings({PREFECT_API_URL: api_url}), get_client(sync_client=True) as client:
        for deployment in config["deployments"]:
            deployment.setdefault("version", versions()["code"])
        for pool in pools:  # their workers run flows as processes
            with suppress(ObjectAlreadyExists):
                client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as written:
            yaml.safe_dump(config, written)
            written.flush()
            _prefect_deploy(Path(written.name))
        crash_silent_runs()  # one that is lost would hold up those that wait for it
        for deployment in config["deployments"]:
            flow = deployment["entrypoint"].rpartition(":")[2].rpartition(".")[2]
            made = client.read_deployment_by_name(f"{flow}/{deployment['name']}")
            page = f"{api_url.removesuffix('/api')}/deployments/deployment/{made.id}"
            print(f"deployment {flow}/{deployment['name']}: {page}")
            for line in _next_times(deployment.get("schedules") or []):
                print(f"  {line}")
    for pool in pools:
        _print_workers(pool, api_url)


def validate(deployment: Config, where: str) -> None:
    """Raises UsageError or ManifestError for what could not run."""
    for key, example in (("name", "generate"), ("entrypoint", ENTRYPOINT)):
        if not isinstance(deployment.get(key), str):
            raise UsageError(f"{where}: {key} is missing; write one, such as {example}")
    pool = deployment.get("work_pool")
    if not isinstance(pool, dict) or not isinstance(pool.get("name"), str):
        raise UsageError(f"{where}: work_pool has no name; write work_pool: {{name: gpu}}")
    if "prefect.blocks." in str(pool.get("job_variables")):
        raise UsageError(
            f"{where}: job_variables names a block, and Prefect would store its secret readably;"
            " name it in the work pool's job template (docs/many-machines.md)"
        )
    schedules = deployment.get("schedules") or []
    own = deployment.get("parameters") or {}
    runs = [own | (schedule.get("parameters") or {}) for schedule in schedules] or [own]
    try:
        _next_times(schedules)
        for parameters in runs if deployment["entrypoint"] == ENTRYPOINT else []:
            _check_parameters(parameters, where, scheduled=bool(schedules))
    except SettingError as error:
        raise UsageError(f"{where}: {error}") from error


def _next_times(schedules: list[Config]) -> list[str]:
    """Of each cron schedule, its name and its next times. SettingError for a wrong one."""
    from flows.prefect_server.schedule import format_times

    return [
        f"{schedule.get('slug') or schedule['cron']}: "
        f"{format_times(schedule['cron'], schedule.get('timezone') or 'UTC')}"
        for schedule in schedules
        if "cron" in schedule
    ]


def _check_parameters(parameters: Config, where: str, *, scheduled: bool) -> None:
    """The same for the flow's parameters; one that is run by hand may get its manifest then."""
    from flows.plan import read_entries
    from flows.settings import Settings

    known = {field.name for field in fields(Settings)} - {"plan", "shard"}
    for name in parameters.keys() - known:
        raise UsageError(f"{where}: parameter {name!r} is unknown; use {', '.join(sorted(known))}")
    if "manifest" in parameters:
        settings = Settings(**parameters)
        settings.check()
        read_entries(settings, lambda prior: "")  # the worker finds the weights
    elif scheduled:
        raise UsageError(f"{where}: parameter manifest is missing; name one")


def _prefect_deploy(file: Path) -> None:
    """Prefect's own command; RunError with its output if it fails."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    ended = subprocess.run(
        [*command, "--prefect-file", str(file)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"COLUMNS": "200", "NO_COLOR": "1"},
    )
    if ended.returncode:
        output = "\n".join(ended.stdout.strip().splitlines()[-LAST_LINES:])
        raise RunError(f"`prefect deploy` failed:\n{output}")


def _print_workers(pool: str, api_url: str) -> None:
    """What to start on this machine, and likewise on others."""
    from tasks.devices.gpus import find_gpus

    print(f"\nwork pool {pool}; one worker for each GPU of each machine:")
    for gpu in range(max(1, find_gpus().count)):
        print(
            f"  PREFECT_API_URL={api_url} CUDA_VISIBLE_DEVICES={gpu} "
            f"prefect worker start --pool {pool} --name gpu{gpu} --limit 1"
        )
