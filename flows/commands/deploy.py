"""`sjc deploy`: scheduled runs as deployments on a work pool, for workers to pick up.

The deployments are those of a prefect.yaml, Prefect's own format, or one that is made from a
manifest and options. They are checked here and then handed to `prefect deploy`.
"""

import os
import subprocess
import sys
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from flows.errors import RunError, UsageError
from flows.plan import read_entries
from flows.prefect_server import environment, server
from flows.prefect_server.schedule import next_times, told_times
from flows.settings import Settings

ENTRYPOINT = "flows.generate.generate"
HEARTBEAT = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}  # without it a lost run is never noticed
LAST_LINES = 12  # of Prefect's output, when it fails

Config = dict[str, Any]


def one_deployment(
    settings: Settings, name: str, cron: str | None, timezone: str, pool: str, on_collision: str
) -> Config:
    """The content of a prefect.yaml with one deployment."""
    deployment: Config = {
        "name": name,
        "entrypoint": ENTRYPOINT,
        "work_pool": {"name": pool, "job_variables": {"env": HEARTBEAT}},
        "concurrency_limit": {"limit": 1, "collision_strategy": on_collision},
        "parameters": settings.to_json(),
    }
    if cron is not None:
        deployment["schedules"] = [{"cron": cron, "timezone": timezone}]
    return {"deployments": [deployment]}


def read_file(path: Path) -> Config:
    """A prefect.yaml; UsageError when there is none, or it has no deployments."""
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


def deploy(config: Config, file: Path | None = None) -> None:
    """Makes, or brings up to date, the work pools and deployments, and prints what to do next.

    file: where the configuration stands, if it does. Raises UsageError and ManifestError before
    anything is made, and RunError.
    """
    environment.apply()
    for number, deployment in enumerate(config["deployments"]):
        check(deployment, f"{file or 'deployment'}: {deployment.get('name', number + 1)}")
    api_url = os.environ.get("PREFECT_API_URL") or server.ui_server()
    if api_url is None:
        raise UsageError("there is no Prefect server; start `sjc ui`, or set PREFECT_API_URL")
    os.environ["PREFECT_API_URL"] = api_url
    server.Server(api_url, None).wait()
    from prefect.settings import PREFECT_API_URL, temporary_settings

    # What has imported Prefect before the server was known would look for another one.
    with temporary_settings({PREFECT_API_URL: api_url}):
        put(config, file, api_url)


def put(config: Config, file: Path | None, api_url: str) -> None:
    """Makes what is checked, and tells of it."""
    from flows.prefect_server.heartbeats import crash_silent_runs

    pools = dict.fromkeys(d["work_pool"]["name"] for d in config["deployments"])
    for pool in pools:
        make_pool(pool)
    if file is not None:
        prefect_deploy(file)
    else:
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as written:
            yaml.safe_dump(config, written)
            written.flush()
            prefect_deploy(Path(written.name))
    crash_silent_runs()  # one that is lost would hold up those that wait for it
    for deployment in config["deployments"]:
        tell(deployment, api_url)
    for pool in pools:
        print(f"\nwork pool {pool}; one worker for each GPU of each machine:")
        for command in worker_commands(pool, api_url):
            print(f"  {command}")


def check(deployment: Config, where: str) -> None:
    """Raises UsageError or ManifestError for what could not run."""
    for key, example in (("name", "generate"), ("entrypoint", ENTRYPOINT)):
        if not isinstance(deployment.get(key), str):
            raise UsageError(f"{where}: {key} is missing; write one, such as {example}")
    pool = deployment.get("work_pool")
    if not isinstance(pool, dict) or not isinstance(pool.get("name"), str):
        raise UsageError(f"{where}: work_pool has no name; write work_pool: {{name: gpu}}")
    schedules = deployment.get("schedules") or []
    for schedule in schedules:
        if "cron" in schedule:
            try:
                next_times(schedule["cron"], schedule.get("timezone") or "UTC")
            except UsageError as error:
                raise UsageError(f"{where}: {str(error).removeprefix('--')}") from error
    if deployment["entrypoint"] != ENTRYPOINT:
        return
    own = deployment.get("parameters") or {}
    for parameters in [own | (schedule.get("parameters") or {}) for schedule in schedules] or [own]:
        _check_parameters(parameters, where, scheduled=bool(schedules))


def _check_parameters(parameters: Config, where: str, *, scheduled: bool) -> None:
    """The same for the flow's parameters; one that is run by hand may get its manifest then."""
    known = {field.name for field in fields(Settings)} - {"plan", "shard"}
    for name in parameters.keys() - known:
        raise UsageError(f"{where}: parameter {name!r} is unknown; use {', '.join(sorted(known))}")
    if "manifest" in parameters:
        read_entries(Settings(**parameters), lambda prior: "")  # the worker finds the weights
    elif scheduled:
        raise UsageError(f"{where}: parameter manifest is missing; name one")


def make_pool(name: str) -> None:
    """A work pool whose workers run flows as processes, unless there is one of this name."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists

    with get_client(sync_client=True) as client:
        try:
            client.create_work_pool(WorkPoolCreate(name=name, type="process"))
        except ObjectAlreadyExists:
            return


def prefect_deploy(file: Path) -> None:
    """Prefect's own command; RunError with its words if it fails."""
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
        words = "\n".join(ended.stdout.strip().splitlines()[-LAST_LINES:])
        raise RunError(f"`prefect deploy` failed:\n{words}")


def tell(deployment: Config, api_url: str) -> None:
    """Prints a deployment's page and its next times."""
    from prefect.client.orchestration import get_client

    flow = deployment["entrypoint"].rpartition(":")[2].rpartition(".")[2]
    with get_client(sync_client=True) as client:
        made = client.read_deployment_by_name(f"{flow}/{deployment['name']}")
    page = f"{api_url.removesuffix('/api')}/deployments/deployment/{made.id}"
    print(f"deployment {flow}/{deployment['name']}: {page}")
    for schedule in deployment.get("schedules") or []:
        if "cron" in schedule:
            name = schedule.get("slug") or schedule["cron"]
            print(f"  {name}: {told_times(schedule['cron'], schedule.get('timezone') or 'UTC')}")


def worker_commands(pool: str, api_url: str) -> list[str]:
    """What to start on this machine, and likewise on others."""
    import torch

    return [
        f"PREFECT_API_URL={api_url} CUDA_VISIBLE_DEVICES={gpu} "
        f"prefect worker start --pool {pool} --name gpu{gpu} --limit 1"
        for gpu in range(max(1, torch.cuda.device_count()))
    ]
