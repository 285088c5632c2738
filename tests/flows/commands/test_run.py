"""The command line: what users type, what they read, and what exit code a script sees."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import boto3
import pyarrow.parquet as pq
import pytest
from command_line import SJC, Said, tiny
from fleet import descendants
from PIL import Image
from stub_shard import make_stubs

from flows.errors import UsageError
from flows.plan import make_plan
from flows.settings import Settings
from sjc_engine.optimization.checkpoint import read_checkpoint
from tasks.devices.gpus import Gpus
from tasks.records.attempts import asset_attempts, finish_attempt, start_attempt
from tasks.records.documents import asset_manifest
from tasks.records.verify import verify_store
from tasks.store import open_store
from tasks.tables.read import read_table
from tasks.tables.write import record_attempts

ROOT = Path(__file__).parents[3]
GOOD = "id,prompt\nduck,a yellow duck\n"
BAD_INPUTS: dict[str, tuple[str, str, int, str]] = {  # manifest, options, exit code, message
    "no manifest": ("", "", 2, "manifest.csv"),
    "an empty manifest": ("id,prompt\n", "", 2, "no rows"),
    "a blank prompt": ("id,prompt\nduck,\n", "", 2, "manifest.csv:2: prompt:"),
    "an unknown column": ("prompt,stepps\na duck,3\n", "", 2, "steps"),
    "a value out of range": ("prompt,steps\na duck,0\n", "", 2, "manifest.csv:2: steps:"),
    "an unknown prior": (GOOD, "--prior nosuch", 2, "nosuch"),
    "an unknown prior in a row": ("prompt,prior\na duck,nosuch\n", "", 2, "manifest.csv:2: prior:"),
    "a recipe for other priors": (GOOD, "--recipe paper-duck", 2, "toybox"),
    "a misspelt recipe": (GOOD, "--recipe drafft", 2, "draft"),
    "a misspelt key": (GOOD, "--set stepz=3", 2, "steps"),
    "a key without a value": (GOOD, "--set steps", 2, "key=value"),
    "a wrong value": (GOOD, "--set steps=many", 2, "steps"),
    "no such device": (GOOD, "--devices cuda:99", 2, "cuda:99"),
    "a misspelt device": (GOOD, "--devices gpu", 2, "gpu"),
    "no entries wanted": (GOOD, "--limit 0", 2, "--limit"),
    "no scenes wanted": (GOOD, "--scenes-per-device 0", 2, "--scenes-per-device"),
    "wrong SQL": (GOOD, "--where sed=1", 2, "seed"),
    "SQL that nothing matches": (GOOD, "--where seed>5", 2, "no entry"),
    "no such judge": (GOOD, "--set judge=nosuch", 2, "nosuch"),
    "no such judge in a row": ("prompt,judge\na,nosuch\n", "", 2, "manifest.csv:2: judge:"),
    "an empty prior": (GOOD, "--prior=", 2, "--prior"),
    "a preset for an unknown prior": (GOOD, "--prior nosuch/ --recipe toybox", 2, "nosuch/"),
    "a scratch file": (GOOD, "--scratch manifest.csv", 2, "manifest.csv"),
    "text for a picture": ("prompt,image\na,manifest.csv\n", "", 2, "manifest.csv is not an image"),
    "a picture's loss without one": (GOOD, "--set input_view_weight=1", 2, "input_view_weight"),
    "a scratch folder below a file": (GOOD, "--scratch manifest.csv/x", 2, "manifest.csv/x"),
    "a scratch folder that cannot be": (GOOD, "--store . --scratch /proc/x", 2, "/proc/x"),
    "no time": (GOOD, "--timeout 0", 2, "--timeout"),
    "a store below a file": (GOOD, "--store manifest.csv/store", 3, "manifest.csv"),
    "a plan for a store below a file": (
        GOOD,
        "--dry-run --store manifest.csv/s",
        3,
        "manifest.csv/s",
    ),
    "a store of another kind": (GOOD, "--store ftp://host/x", 3, "ftp://host/x"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_one_message_and_nothing_starts(
    case: str, sjc: Callable[..., Said], tmp_path: Path
) -> None:
    manifest, options, code, message = BAD_INPUTS[case]
    if manifest:
        (tmp_path / "manifest.csv").write_text(manifest)
    before = sorted(tmp_path.rglob("*"))
    said = sjc("run", "manifest.csv", *options.split())
    assert said.code == code, said.err
    assert message in said.err
    assert "Traceback" not in said.err
    assert len(said.err.splitlines()) == 1
    assert said.out == ""
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("bucket_url")
def test_a_missing_bucket_is_found_before_any_work(
    sjc: Callable[..., Said], tmp_path: Path
) -> None:
    (tmp_path / "manifest.csv").write_text(GOOD)
    said = sjc("run", "manifest.csv", "--store", "s3://no-such-bucket/x")
    assert (said.code, len(said.err.splitlines())) == (3, 1)
    assert "no-such-bucket" in said.err
    assert not (tmp_path / ".sjc").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run", "manifest"),
        ("run manifest.csv --stor x", "--store"),
        ("runn", "run"),
        ("assets --format xml", "xml"),
        ("assets --store nowhere", "nowhere"),
        ("generate a-duck", "--out"),
    ],
)
def test_wrong_usage_is_no_traceback(
    arguments: str, message: str, sjc: Callable[..., Said], tmp_path: Path
) -> None:
    said = sjc(*arguments.split())
    assert said.code in (2, 3)
    assert message in said.err
    assert "Traceback" not in said.err
    assert list(tmp_path.iterdir()) == []


def test_check_shows_every_bad_row_at_once(sjc: Callable[..., Said], tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("prompt,seed,prior\n,0,\na duck,-1,\na duck,0,nosuch\n")
    said = sjc("check", "m.csv")
    assert said.code == 2
    places = [line.split(": ")[:2] for line in said.err.splitlines()]
    assert places == [["m.csv:2", "prompt"], ["m.csv:3", "seed"], ["m.csv:4", "prior"]]
    (tmp_path / "p.csv").write_text("prompt,image\na duck,no.png\na cat,\n")
    said = sjc("check", "p.csv", "--prior", "kxic/zero123-xl")
    assert said.err.startswith("p.csv:2: image: no.png does not exist; give its path from")
    (tmp_path / "p.csv").write_text("prompt,image\na duck,\na cat,\n")
    said = sjc("check", "p.csv", "--prior", "kxic/zero123-xl")
    starts = "prior 'kxic/zero123-xl' needs an image; name one"
    assert (said.code, said.err.splitlines()) == (
        2,
        [f"p.csv:{k}: image: {starts}" for k in (2, 3)],
    )
    (tmp_path / "p.csv").unlink()
    (tmp_path / "m.csv").write_text(GOOD + "again,a yellow duck\nodd,a yellow zeppelin\n")
    said = sjc("check", "m.csv")
    assert (said.code, said.out) == (0, "m.csv: 3 entries, 2 assets, no errors\n")
    warnings = said.err.splitlines()
    assert [line.split(": ")[1] for line in warnings] == ["m.csv:3", "m.csv:4"]
    assert [p.name for p in tmp_path.iterdir()] == ["m.csv"]


BAD_REQUESTS: dict[str, list[str]] = {  # command -> what its lines on stderr begin with
    "generate \x01 -o new --seed 1 --prior nosuch --set steps=-1 --recipe nosuch": [
        "command line: prompt: has the control character"
    ],
    "generate duck -o new --set steps=-1 --set lr=x --set stepz=1 --set judge=nosuch": [
        "command line: --set stepz: is not a recipe key; did you mean 'steps'?",
        "command line: --set steps: -1 is out of range; use 1 to 1,000,000",
        "command line: --set lr: 'x' is wrong; write a number",
        "command line: --set judge: 'nosuch' is unknown; use toybox",
    ],
    "generate duck -o new --prior nosuch --recipe nosuch": [
        "command line: --prior: 'nosuch' is unknown; use toybox",
        "command line: --recipe: 'nosuch' is unknown; use one of",
    ],
    "generate duck -o new --device gpu": ["sjc: --device: 'gpu'"],
    "generate duck -o new --device=": ["sjc: --device: ''"],
    "generate duck -o file": ["sjc: -o file is a file; name a folder"],
    "generate duck -o file/new": ["sjc: -o file/new: "],
    "generate duck -o /proc/new/duck": ["sjc: -o /proc/new/duck: "],
    "sample2d duck -o /proc/x.png": ["sjc: -o /proc/x.png: "],
    "sample2d duck -o x.png --guidance 1,nan": ["sjc: --guidance: use finite numbers"],
    "sample2d duck -o x.png --prior torn": ["sjc: --prior: torn/model_index.json is not readable"],
    "sample2d duck -o x.png --prior nosuch": ["sjc: --prior: 'nosuch' is unknown; use toybox"],
}


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """What draws or optimises cannot be imported."""
    for module in ("sjc_engine.optimization.loop", "sjc_engine.paper2d"):
        monkeypatch.setitem(sys.modules, module, None)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("command", BAD_REQUESTS)
def test_bad_requests_are_refused_before_the_work(
    command: str, sjc: Callable[..., Said], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "model_index.json").write_text("{")
    before = sorted(tmp_path.rglob("*"))
    said = sjc(*command.split())
    assert said.code == 2, said.err
    lines, expected = sorted(said.err.splitlines()), sorted(BAD_REQUESTS[command])
    assert len(lines) == len(expected), said.err
    for line, start in zip(lines, expected, strict=True):
        assert line.startswith(start)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("command", ["generate duck -o d", "sample2d duck -o d.png"])
def test_a_seed_is_as_in_a_manifest(command: str, sjc: Callable[..., Said]) -> None:
    said = sjc(*command.split(), "--seed", str(2**63))
    assert (said.code, "--seed" in said.err, "Traceback" in said.err) == (2, True, False)


def test_json_is_json_and_no_column_gets_lost(sjc: Callable[..., Said], tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    sql = "SELECT 1 AS a, 'nan'::double AS a, ['inf'::double, 2] AS a, 3 AS a_1"
    found = sjc("query", sql, "--format", "json").out
    assert json.loads(found, parse_constant=float) == [
        {"a": 1, "a_1": None, "a_2": [None, 2.0], "a_1_1": 3}
    ]
    assert sjc("query", sql, "--format", "csv").out.splitlines()[0] == "a,a_1,a_2,a_1_1"


def test_a_dry_run_tells_the_plan_and_makes_nothing(
    sjc: Callable[..., Said], tmp_path: Path
) -> None:
    (tmp_path / "m.csv").write_text(GOOD + "again,a yellow duck\ntank,a toy tank\n")
    said = sjc("run", "m.csv", "--dry-run", "--where", "id <> 'tank'", "--devices", "cpu,cpu")
    assert said.code == 0
    assert [line.split()[:2] for line in said.out.splitlines()[1:3]] == [
        ["duck", "make"],
        ["again", "duplicate"],
    ]
    assert "1 new, 1 duplicate; devices: cpu, cpu" in said.out
    facts = json.loads(sjc("run", "m.csv", "--dry-run", "--json").out)
    assert facts["counts"] == {
        "new": 2,
        "interrupted": 0,
        "failed": 0,
        "finished": 0,
        "pruned": 0,
        "duplicate": 1,
    }
    assert [p.name for p in tmp_path.iterdir()] == ["m.csv"]


def test_with_nothing_to_make_no_server_is_started(tmp_path: Path) -> None:
    """The run, its entries and its report are in the store all the same, and are as they were."""
    (tmp_path / "m.csv").write_text(GOOD + "again,a yellow duck\ntank,a toy tank\n")
    plan = make_plan(Settings(str(tmp_path / "m.csv"), str(tmp_path / "store"), devices=["cpu"]))
    duck, tank = plan.todo
    make_stubs(plan, [duck], "before")
    start_attempt(plan.store, plan.assets[tank].spec, "before")
    record_attempts(plan.store, [(finish_attempt(plan.store, tank, "a01", "failed"), {})])
    program = (
        "import sys\nfrom flows.commands.main import main\ntry: main()\n"
        "finally: print(*{'prefect', 'torch'} & sys.modules.keys(), file=sys.stderr)"
    )
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path / "prefect")}
    ran = subprocess.run(
        [sys.executable, "-c", program, "run", "m.csv"],
        cwd=tmp_path,
        env={k: v for k, v in environment.items() if k != "PREFECT_API_URL"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 1, ran.stderr  # for the failed one
    assert "nothing to make: no Prefect server is started" in ran.stderr
    assert ran.stderr.endswith("\n\n"), "Prefect was imported, or torch to look for GPUs"
    assert [line.split()[:2] for line in ran.stdout.splitlines()[1:3]] == [
        ["duck", "ok"],
        ["tank", "failed"],
    ]
    runs = read_table(plan.store, "runs")
    assert (list(runs.flow_run_id.isna()), list(runs.ended_at.isna())) == ([True], [False])
    entries = read_table(plan.store, "entries")
    assert list(entries.outcome) == ["reused", "duplicate", "failed"]
    assert "toy tank" in (tmp_path / f"store/runs/{runs.run_id[0]}/report.html").read_text()
    assert verify_store(plan.store) == []


def test_a_missing_gpu_concerns_only_what_is_made_or_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.plan.find_gpus", lambda: Gpus(0, "no driver", "install one"))
    (tmp_path / "m.csv").write_text(GOOD)
    settings = Settings(str(tmp_path / "m.csv"), str(tmp_path / "store"))
    plan = make_plan(settings)
    warning = "no GPU is used: no driver; install one, or name the CPU: --devices cpu"
    assert (plan.warnings, plan.devices) == ([warning], ["cpu"])
    make_stubs(plan, list(plan.todo), "before")
    assert make_plan(settings).warnings == []
    assert make_plan(settings, writable=False).warnings == [warning]
    with pytest.raises(UsageError, match="there is no cuda:7"):
        make_plan(replace(settings, devices=["cuda:7"]))


@pytest.mark.parametrize("command", ["--help", "check m.csv", "run --help"])
def test_help_and_check_import_neither_torch_nor_prefect(command: str, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(GOOD)
    code = (
        "import sys; sys.modules['torch'] = sys.modules['prefect'] = None\n"
        f"sys.argv = ['sjc', *{command.split()!r}]\n"
        "from flows.commands.main import main; main()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)


@pytest.mark.slow
def test_generate_needs_neither_prefect_nor_a_store(
    sjc: Callable[..., Said], tmp_path: Path, judge: str
) -> None:
    arguments = ["generate", "a yellow duck", "-o", "duck", "--json", "--quiet", *tiny(judge)]
    arguments += ["--dtype", "bfloat16"]
    code = (
        "import sys; sys.modules['prefect'] = None\n"
        f"sys.argv = ['sjc', *{arguments!r}]\n"
        "from flows.commands.main import main; main()"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    report = json.loads(ran.stdout)
    assert (report["prompt"], report["seed"]) == ("a yellow duck", 0)
    assert report["dtype"] == report["recipe"]["optimize"]["dtype"] == "bfloat16"
    assert 0 < report["faces"] <= 2000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["duck"]
    names = [
        "field.safetensors", "mesh.glb", "preview.png", "report.json", "thumbnail.webp",
        "turntable.mp4",
    ]  # fmt: skip
    assert sorted(p.name for p in (tmp_path / "duck").iterdir()) == names
    again = sjc("generate", "a duck", "-o", "duck")
    assert (again.code, "duck has mesh.glb" in again.err) == (2, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--image p.png", "--image: prior 'toybox' takes text only, not images; leave the image"),
        ("--prior kxic/zero123-xl", "--image: prior 'kxic/zero123-xl' needs an image; name one"),
        ("--image no.png --prior kxic/zero123-xl", "--image: no.png does not exist; name"),
        ("--image https://x.org/a.png --prior kxic/zero123-xl", "--image: only files are read; "),
        ("--image t.png --prior kxic/zero123-xl", "--image: t.png is not an image; name a"),
        ("--image w.png --prior kxic/zero123-xl", "--image: w.png shows nothing: 0.00% of it"),
        ("--set silhouette_weight=1", "--set silhouette_weight: prior 'toybox' takes text only"),
        (
            "--image p.png --prior kxic/zero123-xl --set silhouette_weight=1",
            "--set silhouette_weight: the image has neither transparency nor",
        ),
    ],
)
def test_generate_says_which_picture_it_needs(
    options: str, message: str, sjc: Callable[..., Said], tmp_path: Path
) -> None:
    Image.new("RGB", (20, 20), "gold").save(tmp_path / "p.png")
    Image.new("RGB", (20, 20), "white").save(tmp_path / "w.png")
    (tmp_path / "t.png").write_text("a picture")
    before = sorted(tmp_path.rglob("*"))
    said = sjc("generate", "a duck", "-o", "duck", *options.split())
    assert (said.code, said.out) == (2, "")
    assert said.err.partition(": ")[2].startswith(message)
    assert len(said.err.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.usefixtures("bucket_url", "warm")
def test_a_run_into_a_bucket_and_what_the_tables_say(
    sjc: Callable[..., Said],
    judge: str,
    prefect_api: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    monkeypatch.setenv("SJC_STORE", "s3://toys/first")
    (tmp_path / "m.csv").write_text("id,prompt,iso_level\nduck,=a yellow duck,\nbad,a tank,1e6\n")
    said = sjc("run", "m.csv", "--devices", "cpu", "--json", *tiny(judge))
    assert said.code == 1, said.err
    result = json.loads(said.out)
    assert [(a["asset"], a["status"]) for a in result["assets"]] == [
        ("duck", "ok"),
        ("bad", "failed"),
    ]
    assert result["picture"] == f"s3://toys/first/runs/{result['run_id']}.png"
    assert result["report"] == f"s3://toys/first/runs/{result['run_id']}/report.html"
    found = boto3.client("s3").get_object(
        Bucket="toys", Key=f"first/runs/{result['run_id']}/report.html"
    )
    assert found["ContentType"] == "text/html; charset=utf-8"
    assert b"--retry-failed" in found["Body"].read()
    again = sjc("report", result["run_id"])
    assert (again.code, again.out) == (0, f"{result['report']}\n")
    unknown = sjc("report", "nope")
    assert (unknown.code, "There is no run nope" in unknown.err) == (3, True)
    assert result["assets"][0]["mesh"].startswith("s3://toys/first/assets/")
    keys = [o["Key"] for o in boto3.client("s3").list_objects_v2(Bucket="toys")["Contents"]]
    assert all(key.startswith("first/") for key in keys)

    (duck,) = json.loads(sjc("assets", "--where", "status = 'ok'", "--format", "json").out)
    assert (duck["prompt"], duck["steps"]) == ("=a yellow duck", 20)
    rows = list(csv.DictReader(io.StringIO(sjc("assets", "--format", "csv").out)))
    assert sorted(row["prompt"] for row in rows) == ["'=a yellow duck", "a tank"]
    assert len(sjc("assets", "--manifest", "m.csv").out.splitlines()) == 3
    (tmp_path / "other.csv").write_text(GOOD)
    assert len(sjc("assets", "--manifest", "other.csv").out.splitlines()) == 1
    sql = "SELECT status, count(*) AS n FROM attempts GROUP BY ALL ORDER BY 1"
    assert json.loads(sjc("query", sql, "--format", "json").out) == [
        {"status": "failed", "n": 1},
        {"status": "ok", "n": 1},
    ]
    wrong = sjc("query", "SELECT nothing FROM assets")
    assert (wrong.code, "nothing" in wrong.err, "Traceback" in wrong.err) == (2, True, False)


def test_parquet_on_a_pipe_is_parquet(sjc: Callable[..., Said], tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    command = [*SJC, "query", "SELECT 1 AS one", "--format", "parquet"]
    data = subprocess.run(command, check=True, capture_output=True, cwd=tmp_path).stdout
    assert pq.read_table(io.BytesIO(data)).to_pydict() == {"one": [1]}


def run_of(judge: str) -> list[str]:
    """`sjc run m.csv`, without `sjc`."""
    return ["run", "m.csv", "--devices", "cpu", *tiny(judge)]


def start(folder: Path, judge: str, prefect_api: str | None) -> subprocess.Popen[str]:
    """Such a run in a process group of its own, as a shell makes one.

    Without `prefect_api` it brings a server of its own.
    """
    return subprocess.Popen(
        [*SJC, *run_of(judge)],
        cwd=folder,
        env=os.environ | ({"PREFECT_API_URL": prefect_api} if prefect_api else {}),
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def interrupt(run: subprocess.Popen[str], ready: Callable[[], bool], group: bool) -> None:
    """Ctrl-C as a terminal sends it, or SIGTERM to the process alone, once it is `ready`."""
    try:
        while not ready():
            assert run.poll() is None, run.communicate()
            time.sleep(0.05)
        if group:
            os.killpg(run.pid, signal.SIGINT)
        else:
            run.send_signal(signal.SIGTERM)
        _, err = run.communicate(timeout=120)
    finally:
        run.kill()
    assert run.returncode == 130, err
    assert "run the same command again" in err
    assert "Traceback" not in err
    assert not alive_in_group(run.pid)


@pytest.mark.slow
def test_sigterm_saves_what_was_running(judge: str, prefect_api: str, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("prompt,steps\na yellow duck,100000\n")
    fields = tmp_path / ".sjc" / "fields"
    run = start(tmp_path, judge, prefect_api)
    interrupt(run, lambda: bool(list(fields.glob("*.checkpoint"))), group=False)
    (checkpoint,) = fields.glob("*.checkpoint")
    _, header = read_checkpoint(checkpoint)
    assert header["step"] > 0
    assert not list((tmp_path / "store").rglob("manifest.json"))


@pytest.mark.slow
def test_without_a_compiler_a_compiled_run_makes_its_assets_all_the_same(
    sjc: Callable[..., Said],
    judge: str,
    prefect_api: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "m.csv").write_text(GOOD)
    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    settings = tiny(judge, texture_size=0, turntable_frames=0)
    said = sjc("run", "m.csv", "--devices", "cpu", "--compiled", *settings)
    assert said.code == 0, said.err
    [log] = (tmp_path / ".sjc/logs").glob("engine-*.log")
    [line] = log.read_text().splitlines()
    assert line.startswith("the network runs as it is, not compiled")
    assert "No working C++ compiler" in line


@pytest.mark.slow
def test_a_run_without_its_server_ends_when_it_is_told_to(judge: str, tmp_path: Path) -> None:
    """Prefect would call the server that is gone for minutes, and end with a traceback."""
    (tmp_path / "m.csv").write_text("prompt,steps\na yellow duck,100000\n")
    run = start(tmp_path, judge, None)
    checkpoint: list[Path] = []

    def computes() -> bool:
        checkpoint[:] = (tmp_path / ".sjc" / "fields").glob("*.checkpoint")
        return bool(checkpoint)

    def server_is_gone() -> bool:
        if not computes():
            return False
        servers = (p for p in descendants(run.pid) if b"prefect_server.server" in command_of(p))
        (server,) = servers
        os.kill(server, signal.SIGKILL)
        time.sleep(8)  # meanwhile Prefect's threads ask again and again, and events pile up
        began.append(time.monotonic())
        return True

    began: list[float] = []
    interrupt(run, server_is_gone, group=False)
    assert time.monotonic() - began[0] < 40, "about 20 s, on a machine with nothing else to do"
    _, header = read_checkpoint(checkpoint[0])
    assert header["step"] > 0
    (finished,) = (tmp_path / "store" / "runs").glob("*.json")
    assert json.loads(finished.read_text())["ended_at"], "the run has told its end to the store"


def command_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_after_ctrl_c_the_next_run_does_nothing_twice(
    sjc: Callable[..., Said],
    judge: str,
    prefect_api: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = ["id,prompt,steps", "duck,a yellow duck,60", "tank,a toy tank,200"]
    (tmp_path / "m.csv").write_text("\n".join(lines))
    assets = tmp_path / "store" / "assets"
    fields = tmp_path / ".sjc" / "fields"

    def one_is_done_and_one_is_not() -> bool:
        return bool(list(assets.glob("*/manifest.json")) and list(fields.glob("*.checkpoint")))

    interrupt(start(tmp_path, judge, prefect_api), one_is_done_and_one_is_not, group=True)
    (report,) = (tmp_path / "store" / "runs").glob("*/report.html")
    assert "To resume what is unfinished" in report.read_text()
    store = open_store(tmp_path / "store", writable=False)
    before = {p.name: asset_manifest(store, p.name) for p in assets.iterdir()}
    (finished,) = (name for name, manifest in before.items() if manifest)

    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    second = sjc(*run_of(judge))
    assert second.code == 0, second.err
    listed = [line.split()[:2] for line in second.out.splitlines()[1:3]]
    assert listed == [["duck", "ok"], ["tank", "ok"]]
    assert asset_manifest(store, finished) == before[finished]
    assert len(asset_attempts(store, finished)) == 1
    attempts = read_table(store, "attempts")
    other = attempts[attempts.asset_id != finished].sort_values("attempt")
    assert list(other.status) == ["interrupted", "ok"]
    assert 0 < other.first_step.iloc[1] < other.last_step.iloc[1]
    outcomes = read_table(store, "entries").groupby("asset_id").outcome.agg(list)
    assert outcomes[finished] == ["computed", "reused"]


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_kill_9_leaves_no_process_and_costs_no_checkpoint(
    sjc: Callable[..., Said],
    judge: str,
    prefect_api: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The run alone is killed, while its engine is at work."""
    (tmp_path / "m.csv").write_text("prompt,steps\na yellow duck,100\n")
    run = start(tmp_path, judge, prefect_api)
    try:
        while not list((tmp_path / ".sjc" / "fields").glob("*.checkpoint")):
            assert run.poll() is None, run.communicate()
            time.sleep(0.05)
        assert any("sjc_engine.worker" in command for command in alive_in_group(run.pid))
    finally:
        run.kill()
    run.communicate(timeout=30)
    deadline = time.monotonic() + 10
    while alive_in_group(run.pid):
        assert time.monotonic() < deadline, alive_in_group(run.pid)
        time.sleep(0.05)
    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    second = sjc(*run_of(judge))
    assert second.code == 0, second.err
    attempts = read_table(tmp_path / "store", "attempts").sort_values("attempt")
    assert list(attempts.status) == ["interrupted", "ok"]
    assert 0 < attempts.first_step.iloc[1] < attempts.last_step.iloc[1] == 100


def alive_in_group(group: int) -> list[str]:
    """The commands of processes that are left of a process group."""
    left = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, process_group = stat.read_text().rpartition(") ")[2].split()[:3]
        except (OSError, ValueError):  # it ended while we looked
            continue
        if int(process_group) == group and state != "Z":
            left.append((stat.parent / "cmdline").read_text().replace("\0", " "))
    return left
