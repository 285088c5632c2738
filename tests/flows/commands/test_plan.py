"""`sjc plan` and `sjc dispatch` as users type them, and one shard with real engines."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import TINY
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.utilities.importtools import import_object
from typer.testing import CliRunner, Result

from flows.commands.main import app
from flows.commands.plan import SHARD_SECONDS, make_shard_plan
from flows.dispatch import DEPLOYMENT
from flows.prefect_server.heartbeats import NAME, crash_silent_runs
from flows.progress.estimate import DEFAULT_COST
from flows.settings import Settings
from flows.shard import generate_shard
from tasks.manifest.shard_plan import keep_plan
from tasks.store import open_store
from tasks.tables.read import query

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs" / "many-machines"


@pytest.fixture
def sjc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command in an empty folder that holds m.csv."""
    monkeypatch.chdir(tmp_path)
    Path("m.csv").write_text("id,prompt,recipe\nduck,a yellow duck,draft\ntank,a toy tank,draft\n")

    def call(*words: str) -> Result:
        return CliRunner().invoke(app, list(words))

    return call


def test_a_plan_is_written_once_and_never_changed(sjc: Any) -> None:
    first = sjc("plan", "m.csv", "-o", "p.parquet")
    assert first.exit_code == 0, first.output
    assert "its time is a guess of 0.2 s a step" in first.stderr
    data = Path("p.parquet").read_bytes()
    again = sjc("plan", "m.csv", "-o", "p.parquet", "--json")
    facts = json.loads(again.stdout)
    assert (facts["assets"], facts["shards"]) == (2, 1)
    other = sjc("plan", "m.csv", "-o", "p.parquet", "--limit", "1")
    assert other.exit_code == 2
    assert "plans are never changed" in other.stderr
    assert Path("p.parquet").read_bytes() == data
    assert not Path("store").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("plan m.csv -o no/p.parquet", "name a file in a folder that exists"),
        ("plan m.csv -o .", "name a file in a folder that exists"),
        ("plan m.csv -o p.parquet --shard-seconds 0", "--shard-seconds"),
        ("plan none.csv -o p.parquet", "none.csv"),
        ("plan m.csv -o p.parquet --where nonsense", "--where: Binder Error: Referenced column"),
        ("plan m.csv -o p.parquet --where nonsense", "; columns: line, seed, tags, meta, id,"),
        ("dispatch none.parquet", "make a plan with `sjc plan`"),
        ("dispatch m.csv", "m.csv is not a shard plan"),
        ("dispatch m.csv --workers 0", "--workers"),
        ("dispatch m.csv --timeout 0", "--timeout"),
        ("run", "name a manifest, or a plan and its shard: --plan FILE --shard K"),
        ("run --plan none.parquet --shard 0", "make a plan with `sjc plan`"),
        ("run --plan m.csv --shard 0", "m.csv is not a shard plan"),
        ("run m.csv --plan p.parquet --shard 0", "has fixed the manifest; leave that out"),
        ("run --plan p.parquet --shard 0 --set steps=3", "has fixed --set; leave that out"),
        ("run --plan p.parquet", "name its shard, by --shard or SLURM_ARRAY_TASK_ID"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(sjc: Any, words: str, message: str) -> None:
    said = sjc(*words.split())
    assert said.exit_code == 2
    assert message in said.stderr
    assert [path.name for path in Path().iterdir()] == ["m.csv"]


def test_a_dispatch_needs_a_server_that_workers_reach(
    sjc: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert sjc("plan", "m.csv", "-o", "p.parquet").exit_code == 0
    said = sjc("dispatch", "p.parquet")
    assert (said.exit_code, "set PREFECT_API_URL" in said.stderr) == (2, True)
    assert not Path("store").exists()


def test_compact_wants_a_store(sjc: Any) -> None:
    said = sjc("compact")
    assert (said.exit_code, "There is no store" in said.stderr) == (3, True)
    assert not Path("store").exists()
    open_store("store")
    assert json.loads(sjc("compact", "--json").stdout)["files"]["assets"] == 0


def test_the_time_of_an_asset_counts_its_field_once(sjc: Any) -> None:
    Path("m.csv").write_text("prompt,steps,texture_size\na duck,10,64\na duck,10,128\n")
    made, _ = make_shard_plan(Settings("m.csv"), SHARD_SECONDS)
    (assets,) = made.shards().values()
    rest, step = DEFAULT_COST.rest, DEFAULT_COST.step
    assert sorted(assets.values()) == [rest, pytest.approx(10 * step + rest)]


def test_an_index_of_a_cluster_names_the_shard(
    sjc: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And means nothing to a run of a manifest."""
    made, _ = make_shard_plan(Settings("m.csv"), 1.0)
    Path("p.parquet").write_bytes(made.data)
    keep_plan(open_store(tmp_path / "store"), made)
    for variable in ("SLURM_ARRAY_TASK_ID", "AWS_BATCH_JOB_ARRAY_INDEX", "JOB_COMPLETION_INDEX"):
        with monkeypatch.context() as cluster:
            cluster.setenv(variable, "1")
            shard = sjc("run", "--plan", "p.parquet", "--dry-run", "--json")
            assert list(json.loads(shard.stdout)["entries"].values()) == ["new"], shard.stderr
            whole = sjc("run", "m.csv", "--dry-run", "--json")
            assert len(json.loads(whole.stdout)["entries"]) == 2
    wrong = ("run", "--plan", "p.parquet", "--store", "other", "--shard")
    for words in (("2",), ("0", "--devices", "cuda:9"), ("0", "--timeout", "0")):
        assert sjc(*wrong, *words).exit_code == 2
        assert not Path("other").exists(), "a mistake is found before anything is written"
    none = sjc("run", "--plan", "p.parquet", "--shard", "2", "--dry-run")
    assert (none.exit_code, "has no shard 2; it has 2" in none.stderr) == (2, True)


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_a_shard_is_a_run_of_its_own(sjc: Any, judge: str, tmp_path: Path) -> None:
    """By a worker's flow, and by a command that has the plan as a file."""
    overrides = {**TINY, "judge": judge}
    made, _ = make_shard_plan(Settings("m.csv", recipe="draft", overrides=overrides), 30.0)
    assert len(made.shards()) == 2
    Path("p.parquet").write_bytes(made.data)
    Path("m.csv").unlink()  # a worker has no manifest
    store = open_store(tmp_path / "store")
    command = ("run", "--plan", "p.parquet", "--shard", "1", "--devices", "cpu", "--json")
    said = sjc(*command, "--store", store.url, "--scratch", str(tmp_path / "s"))
    assert said.exit_code == 0, said.stderr
    assert [asset["status"] for asset in json.loads(said.stdout)["assets"]] == ["ok"]

    def run(shard: int) -> Any:
        return generate_shard(
            made.id, shard, store.url, ["cpu"], scratch=str(tmp_path / "s"), return_state=True
        )

    assert run(1).message == "1 reused"
    rows = query(store, "SELECT r.manifest, e.row_id, e.outcome, a.prompt FROM runs r "
                        "JOIN entries e USING (run_id) JOIN best_assets a USING (asset_id) "
                        "ORDER BY r.started_at").to_pylist()  # fmt: skip
    assert [(row["manifest"], row["outcome"]) for row in rows] == [
        ("m.csv", "computed"),
        ("m.csv", "reused"),
    ]
    assert run(2).is_failed(), "there is no such shard"


@pytest.mark.slow
def test_the_server_takes_what_the_docs_deploy(prefect_api: str) -> None:
    template = yaml.safe_load((DOCS / "kubernetes-pool.yaml").read_text())
    job = template["job_configuration"]["job_manifest"]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    with get_client(sync_client=True) as client:
        pool = WorkPoolCreate(name="kubernetes", type="kubernetes", base_job_template=template)
        assert client.create_work_pool(pool).base_job_template == template
        client.create_work_pool(WorkPoolCreate(name="gpus", type="process"))
        deploy = ["prefect", "--no-prompt", "deploy", "--all"]
        said = subprocess.run(
            [sys.executable, "-m", *deploy, "--prefect-file", str(DOCS / "prefect.yaml")],
            env=os.environ | {"PREFECT_API_URL": prefect_api},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert said.returncode == 0, said.stdout + said.stderr
        found = client.read_deployment_by_name(DEPLOYMENT)
        assert found.entrypoint == "flows.shard.generate_shard"
        assert client.read_deployment_by_name("generate-shard/shards-kubernetes")
        assert client.read_deployment_by_name("maintain/maintain").schedules
        for _ in range(2):
            crash_silent_runs()
            assert len(client.read_automations_by_name(NAME)) == 1


def test_the_deployments_of_the_docs_name_flows_that_exist() -> None:
    deployments = {
        d["name"]: d for d in yaml.safe_load((DOCS / "prefect.yaml").read_text())["deployments"]
    }
    names = set()
    for name, deployment in deployments.items():
        flow = import_object(deployment["entrypoint"])
        names.add(f"{flow.name}/{name}")
        env = deployment["work_pool"]["job_variables"]["env"]
        assert int(env["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]) <= 30
    assert DEPLOYMENT in names
    copied = [
        word
        for line in (DOCS / "Containerfile").read_text().splitlines()
        if line.startswith("COPY")
        for word in line.split()[1:-1]
    ]
    assert copied
    assert all((ROOT / word).exists() for word in copied)
