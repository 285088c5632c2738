"""Runs that start by the clock, or from Prefect's pages: a real server, worker and runner."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from command_line import SJC, tiny
from fleet import descendants, flow_run_of

from flows.commands.deploy import read_file, validate
from flows.errors import UsageError
from flows.prefect_server.heartbeats import NAME
from flows.prefect_server.schedule import format_times
from flows.prefect_server.server import HOST, free_port, healthy
from flows.settings import Settings
from sjc_engine.errors import SettingError
from sjc_engine.optimization.checkpoint import read_checkpoint
from tasks.manifest.resolve import ManifestError
from tasks.records.verify import verify_store
from tasks.stages.versions import versions
from tasks.store import open_store
from tasks.tables.read import read_table

ROOT = Path(__file__).parents[3]
CODE = versions()["code"]


# Nobody waits for a turn: workers and `serve` ask for runs, and a run for its deployment's slot.
PROMPT = {
    "PREFECT_WORKER_QUERY_SECONDS": "2",
    "PREFECT_RUNNER_POLL_FREQUENCY": "2",
    "PREFECT_DEPLOYMENT_CONCURRENCY_SLOT_WAIT_SECONDS": "3",
}


SECRET = {"env": {"AWS_SECRET_ACCESS_KEY": "{{ prefect.blocks.secret.store }}"}}


def far() -> str:
    """A cron line that does not come while the tests run."""
    moment = datetime.now(UTC) + timedelta(hours=12)
    return f"{moment.minute} {moment.hour} * * *"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A Prefect server of these tests."""
    port, home = free_port(), tmp_path_factory.mktemp("home")
    command = [sys.executable, "-m", "flows.prefect_server.server", "--port", str(port)]
    server = subprocess.Popen(
        [*command, "--parent", str(os.getpid())],
        env=os.environ | PROMPT | {"PREFECT_HOME": str(home)},
    )
    url = f"http://{HOST}:{port}/api"
    try:
        until(lambda: healthy(url))
        with httpx.Client(base_url=url, timeout=60) as client:
            yield client
    finally:
        server.terminate()
        server.wait()


def enter(folder: Path, api: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goes to a folder, whose commands talk to the server, and writes a manifest there."""
    monkeypatch.chdir(folder)
    for name, value in PROMPT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PREFECT_HOME", str(folder / "home"))
    monkeypatch.setenv("PREFECT_API_URL", str(api.base_url).rstrip("/"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    if not Path("lists").exists():
        Path("lists").mkdir()
        Path("lists/a.csv").write_text("id,prompt\nduck,a yellow duck\n")


@pytest.fixture
def folder(tmp_path: Path, api: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> Path:
    enter(tmp_path, api, monkeypatch)
    return tmp_path


ASKED = 1.0  # seconds between two questions to a server: each takes time of a core


def until(condition: Callable[[], Any], seconds: float = 240.0, pause: float = 0.3) -> Any:
    """What the condition gives once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(pause)
    return found


@contextlib.contextmanager
def started(*command: str) -> "Iterator[subprocess.Popen[str]]":
    """A process in a group of its own, as a terminal starts one, that ends with the test."""
    with Path("log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, text=True, process_group=0, stdin=subprocess.DEVNULL
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def call(api: httpx.Client, method: str, path: str, json: Any = None) -> Any:
    """The API's answer; while its SQLite is busy it says 503, and its clients ask again."""

    def ask() -> httpx.Response | None:
        reply = api.request(method, path, json=json)
        return None if reply.status_code == 503 else reply.raise_for_status()

    reply = until(ask, 60)
    return reply.json() if reply.content else None


def runs_of(api: httpx.Client, deployment_id: str, *states: str) -> list[dict[str, Any]]:
    wanted = {
        "deployments": {"id": {"any_": [deployment_id]}},
        "flow_runs": {"state": {"type": {"any_": list(states)}}},
    }
    found: list[dict[str, Any]] = call(api, "POST", "/flow_runs/filter", wanted)
    return found


def done(api: httpx.Client, flow_run_id: str) -> dict[str, Any] | None:
    """A flow run that has ended."""
    run: dict[str, Any] = call(api, "GET", f"/flow_runs/{flow_run_id}")
    wrong = ("FAILED", "CRASHED", "CANCELLED")
    assert run["state_type"] not in wrong, (run["state"], Path("log").read_text())
    return run if run["state_type"] == "COMPLETED" else None


def state(api: httpx.Client, flow_run: str) -> dict[str, Any]:
    found: dict[str, Any] = call(api, "GET", f"/flow_runs/{flow_run}")["state"]
    return found


def come(api: httpx.Client, deployment_id: str) -> str:
    """Makes the first run that the clock has scheduled due now; returns its id."""
    scheduled = until(lambda: runs_of(api, deployment_id, "SCHEDULED"), pause=ASKED)
    assert all(run["auto_scheduled"] for run in scheduled)
    first = min(scheduled, key=lambda run: str(run["expected_start_time"]))
    now = {"type": "SCHEDULED", "state_details": {"scheduled_time": f"{datetime.now(UTC)}"}}
    call(api, "POST", f"/flow_runs/{first['id']}/set_state", {"state": now, "force": True})
    return str(first["id"])


def process_of(worker: int, flow_run: str) -> int | None:
    below = (pid for pid in descendants(worker) if flow_run_of(pid) == flow_run)
    return next(below, None)


def lives(pid: int) -> bool:
    """Whether there is such a process that has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@dataclass(frozen=True)
class Killed:
    """A flow run that was killed; step: of its checkpoint."""

    folder: Path
    deployment: str
    flow_run: str
    step: int


KILLED = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "killed", "--limit", "1"]


@pytest.fixture(scope="module")
def killed(api: httpx.Client, judge: str, tmp_path_factory: pytest.TempPathFactory) -> Killed:
    """A run that was killed together with its worker: nobody is left who could tell.

    The server needs 90 s to notice. Other tests run meanwhile.
    """

    def step() -> int:
        found = list(Path(".sjc/fields").glob("*.checkpoint"))
        return int(read_checkpoint(found[0])[1]["step"]) if found else 0

    folder = tmp_path_factory.mktemp("killed")
    with pytest.MonkeyPatch.context() as monkeypatch:
        enter(folder, api, monkeypatch)
        command = [*SJC, "deploy", "lists", "--devices", "cpu", *tiny(judge), "--set", "steps=200"]
        command += ["--name", "killed", "--on-collision", "enqueue", "--pool", "killed"]
        subprocess.run(command, capture_output=True, check=True)
        deployment = str(call(api, "GET", "/deployments/name/generate/killed")["id"])
        flow_run = str(call(api, "POST", f"/deployments/{deployment}/create_flow_run", {})["id"])
        with started(*KILLED) as worker:
            kept = until(step)
            run = process_of(worker.pid, flow_run)
            assert run is not None, Path("log").read_text()
            engines = descendants(run)
            assert engines, "there is no engine to be left behind"
            os.kill(worker.pid, signal.SIGKILL)
            os.kill(run, signal.SIGKILL)
            until(lambda: not any(map(lives, engines)), 15)
    return Killed(folder, deployment, flow_run, kept)


@pytest.mark.system
def test_nobody_reports_a_run_that_is_killed_with_its_worker(
    api: httpx.Client, killed: Killed
) -> None:
    assert state(api, killed.flow_run)["type"] == "RUNNING"


@pytest.mark.slow
def test_a_worker_runs_what_the_clock_and_the_pages_ask_for(
    folder: Path, api: httpx.Client, judge: str
) -> None:
    command = [*SJC, "deploy", "lists", "--cron", far(), "--devices", "cpu", *tiny(judge)]
    command += ["--name", "nightly", "--on-collision", "cancel-new", "--pool", "tests"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "prefect worker start --pool tests --name gpu0 --limit 1" in said

    assert call(api, "GET", "/work_pools/tests")["type"] == "process"
    assert [found["name"] for found in call(api, "POST", "/automations/filter", {})] == [NAME]
    deployment = call(api, "GET", "/deployments/name/generate/nightly")
    assert f"/deployments/deployment/{deployment['id']}" in said
    assert deployment["global_concurrency_limit"]["limit"] == 1
    assert deployment["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    assert deployment["parameters"]["overrides"]["steps"] == "20"
    assert int(deployment["job_variables"]["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]) <= 30
    assert (deployment["tags"], deployment["version"]) == (["sjc", "manifest:lists"], CODE)

    worker = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "tests"]
    with started(*worker, "--name", "cpu", "--limit", "1"):
        first = come(api, deployment["id"])
        until(lambda: done(api, first), pause=ASKED)

        # The manifest grows; then a custom run, which is parameters and nothing else.
        (folder / "lists" / "b.csv").write_text("id,prompt\ntank,a toy tank\n")
        request = {"parameters": deployment["parameters"] | {"price_per_hour": 3.6}}
        custom = call(api, "POST", f"/deployments/{deployment['id']}/create_flow_run", request)
        second = until(lambda: done(api, custom["id"]), pause=ASKED)
    assert second["name"] == "lists: 2 assets (1 new)"
    assert second["state"]["message"] == "1 ok, 1 reused"
    assert set(second["tags"]) == {"sjc", "manifest:lists", "prior:toybox"}
    assert second["flow_version"] == CODE
    (event,) = until(lambda: events(api, second["id"]))
    counts = {"ok": 1, "reused": 1, "failed": 0, "unfinished": 0}
    run_id = last_run(folder)
    assert event["payload"].items() >= (counts | {"run_id": run_id}).items()
    assert event["payload"]["seconds"] > 0
    assert {related["prefect.resource.id"] for related in event["related"]} >= {
        f"prefect.flow-run.{second['id']}", f"prefect.deployment.{deployment['id']}",
        "prefect.tag.manifest:lists",
    }  # fmt: skip
    entries = read_table(folder / "store", "entries").set_index("run_id").loc[[last_run(folder)]]
    assert dict(zip(entries.manifest, entries.outcome, strict=True)) == {
        "lists/a.csv": "reused",
        "lists/b.csv": "computed",
    }
    attempts = read_table(folder / "store", "attempts")
    assert list(attempts.attempt) == ["a01", "a01"], "every asset was made once"


def events(api: httpx.Client, flow_run: str) -> list[dict[str, Any]]:
    """The ends of a flow's run, as its events say."""
    related = {"id": [f"prefect.flow-run.{flow_run}"]}
    request = {"filter": {"event": {"name": ["sjc.run.ended"]}, "related": related}}
    found: list[dict[str, Any]] = call(api, "POST", "/events/filter", request)["events"]
    return found


def last_run(folder: Path) -> str:
    return str(read_table(folder / "store", "runs").sort_values("started_at").run_id.iloc[-1])


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_home")
def test_serve_runs_by_the_clock_until_ctrl_c(
    folder: Path, judge: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a server of its own, since there is no other."""
    monkeypatch.delenv("PREFECT_API_URL")
    command = [*SJC, "serve", "lists/a.csv", "--cron", far(), "--devices", "cpu"]
    command += tiny(judge)
    with started(*command) as serving:
        pages = until(
            lambda: re.search("^pages: (http.*)/deployments", Path("log").read_text(), re.M)
        )
        with httpx.Client(base_url=f"{pages[1]}/api", timeout=60) as own:
            found = "/deployments/name/generate/a"
            until(lambda: own.get(found).status_code == 200)
            deployment = call(own, "GET", found)
            assert deployment["tags"] == ["sjc", "manifest:a.csv", "prior:toybox"]
            assert deployment["version"] == CODE
            first = come(own, deployment["id"])
            until(lambda: done(own, first), pause=ASKED)
            assert "<html" in httpx.get(f"{pages[1]}/").text
            # A run's own process that is about to end would say that it was interrupted.
            until(lambda: not any(map(flow_run_of, descendants(serving.pid))))
        os.killpg(serving.pid, signal.SIGINT)  # as a terminal sends it: to all of the group
        assert serving.wait(60) == 130
    said = Path("log").read_text()
    assert "now: a.csv: 1 asset (1 new)" in said
    assert "next: " in said
    assert "Traceback" not in said, said
    assert "temporary server" not in said
    assert said.rstrip().endswith("the next run resumes")
    assert "ok" in set(read_table("store", "assets").status)


@pytest.mark.system
def test_a_silent_run_is_crashed_and_the_next_one_outlives_its_worker(
    api: httpx.Client, killed: Killed, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(killed.folder, api, monkeypatch)
    path = f"/deployments/{killed.deployment}/create_flow_run"
    following = str(call(api, "POST", path, {})["id"])  # a deployment has one run at a time
    with started(*KILLED, "--name", "second") as worker:
        until(lambda: state(api, killed.flow_run)["type"] == "CRASHED", pause=ASKED)
        assert state(api, killed.flow_run)["message"] == "Its heartbeats stopped."
        until(lambda: "started!" in Path("log").read_text())
        run = until(lambda: process_of(worker.pid, following), 120)
        until(lambda: len(list(Path("store").rglob("attempt.json"))) == 2)
        os.kill(worker.pid, signal.SIGKILL)
        until(lambda: done(api, following), pause=ASKED)
        until(lambda: not lives(run), 60)

    attempts = read_table("store", "attempts").sort_values("attempt")
    assert list(attempts.attempt) == ["a01", "a02"]
    assert list(attempts.status) == ["interrupted", "ok"]
    assert attempts.first_step.iloc[1] >= killed.step > 0, "steps were made again"
    assert list(read_table("store", "assets").status) == ["ok"]
    assert verify_store(open_store("store")) == []


GOOD = "id,prompt\nduck,a yellow duck\n"
WRONG = {
    "serve a.csv --cron nope": "--cron: 'nope' does not have five fields",
    "serve a.csv --cron @daily --timezone Mars/X": "--timezone: 'Mars/X' is unknown",
    "serve a.csv --cron @daily --prior nosuch": "nosuch",
    "serve none.csv --cron @daily": "none.csv:1: file: does not exist",
    "serve a.csv --cron @daily --price-per-hour -1": "--price-per-hour",
    "deploy a.csv --cron 61": "cron: '61' does not have five fields",
    "deploy none.csv --cron @daily": "none.csv:1: file: does not exist",
    "deploy a.csv --cron @daily --recipe drafft": "draft",
    "deploy a.csv --cron @daily": "there is no Prefect server",
    "deploy": "prefect.yaml: No such file",
    "deploy --cron @daily": "--cron and --name are for a manifest",
    "deploy --file a.csv": "a.csv: there are no deployments",
}


@pytest.mark.parametrize("words", WRONG)
def test_mistakes_are_one_message_before_anything_starts(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from flows.commands.main import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    (tmp_path / "a.csv").write_text(GOOD)
    monkeypatch.setattr(sys, "argv", ["sjc", *words.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    err = capfd.readouterr().err
    assert (ended.value.code, len(err.splitlines())) == (2, 1), err
    assert WRONG[words] in err
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


@pytest.mark.parametrize("cron", ["0 0 2 * * *", "0 2 * *", "99 2 * * *", "@never"])
def test_a_cron_line_that_means_something_else_is_refused(cron: str) -> None:
    with pytest.raises(SettingError, match="write minute, hour, day, month, weekday"):
        format_times(cron, "UTC")


def test_our_prefect_yaml_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (deployment,) = read_file(ROOT / "prefect.yaml")["deployments"]
    validate(deployment, "prefect.yaml")
    assert deployment["concurrency_limit"]["limit"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": None}, "name is missing"),
        ({"work_pool": {}}, "work_pool has no name"),
        ({"work_pool": {"name": "a", "job_variables": SECRET}}, "names a block"),
        ({"parameters": {"manifest": "a.csv", "stor": "x"}}, "parameter 'stor' is unknown"),
        ({"parameters": {}}, "parameter manifest is missing"),
        ({"schedules": [{"cron": "x"}]}, "cron: 'x' does not have five fields"),
        ({"schedules": [{"cron": "@daily", "parameters": {"manifest": "none.csv"}}]}, "none.csv:1"),
    ],
)
def test_a_wrong_deployment_is_found_before_the_server(
    change: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.csv").write_text(GOOD)
    deployment = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"][0]
    deployment["parameters"] = Settings("a.csv").to_json()
    validate(deployment, "here")
    with pytest.raises((UsageError, ManifestError), match=message):
        validate(deployment | change, "here")
