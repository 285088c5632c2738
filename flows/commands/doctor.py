"""`sjc doctor`: what works here, what does not, and what to do about it.

Nothing is made, and no weights are loaded. Whatever may be missing is imported by the check that is
about it.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from flows.commands.app import app, examples
from flows.commands.options import JsonOption, StoreOption
from flows.errors import FAILED
from flows.scratch import can_hold_files

if TYPE_CHECKING:
    import boto3

DEADLINE = 8.0  # seconds for all checks
REACH = 2.0  # seconds for a connection
GIB = 1 << 30
# An asset takes 1 to 5 MB in the store and up to 100 MB in the scratch folder while it is made.
LITTLE_DISK, NO_DISK = 5 * GIB, GIB // 4
LITTLE_MEMORY = 2 * GIB  # an engine takes up to 1 GB, Prefect's server and the run as much again
SKEW = 300.0  # seconds between clocks; S3 servers refuse more than 900

# Why a version outside of what this project asks for is no mere formality.
_BAD = {
    "fastapi": "newer ones keep Prefect's server from starting, or from taking deployments",
    "sqlalchemy": "newer ones keep Prefect's server from making scheduled runs",
}
_PACKAGES = (
    "sjc-foundry", "prefect", "torch", "diffusers", "transformers", "trimesh", "pyarrow", "duckdb",
)  # fmt: skip


@dataclass(frozen=True)
class CheckResult:
    """One line. status: `ok`, `warning` (some uses will not work) or `problem` (no run will).

    fix: what to do, unless it is ok.
    """

    check: str
    status: str
    detail: str
    fix: str = ""


Results = Iterator[CheckResult]


@app.command(
    epilog=examples("sjc doctor", "sjc doctor --store s3://bucket/first --json"),
)
def doctor(
    store: StoreOption = "./store",
    scratch: Annotated[Path, typer.Option(help="As for `run`.")] = Path(".sjc"),
    json_: JsonOption = False,
) -> None:
    """Examine this machine: versions, devices, weights, store, server; what to do where it fails.

    Nothing is made. Exit code 0 when a run would work, 1 when there is a problem.
    """
    results = examine(
        {
            "versions": versions,
            "devices": devices,
            "renderer": renderer,
            "machine": machine,
            "prior": embedded,
            "programs": programs,
            "store": lambda: s3_store(store) if "://" in store else local_store(Path(store)),
            "scratch": lambda: disk("scratch folder", scratch, "name another with --scratch"),
            "prefect": prefect_server,
            "hub": hub,
        }
    )
    if json_:
        print(json.dumps([asdict(result) for result in results], indent=1))
    else:
        show(results)
    raise typer.Exit(FAILED if any(result.status == "problem" for result in results) else 0)


def examine(
    checks: dict[str, Callable[[], Results]], deadline: float = DEADLINE
) -> list[CheckResult]:
    """The results of all checks, side by side. One that fails, or never ends, is a problem."""
    ended: queue.SimpleQueue[tuple[str, list[CheckResult]]] = queue.SimpleQueue()

    def run(name: str, check: Callable[[], Results]) -> None:
        found: list[CheckResult] = []
        try:
            found.extend(check())
        except Exception as error:  # whatever is broken here is what the user wants to hear of
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            fix = "repair it, or install again: pip install --force-reinstall sjc-foundry"
            found.append(CheckResult(name, "problem", reason, fix))
        ended.put((name, found))

    for name, check in checks.items():
        threading.Thread(target=run, args=(name, check), daemon=True).start()
    results: dict[str, list[CheckResult]] = {}
    end = time.monotonic() + deadline
    while len(results) < len(checks):
        try:
            name, found = ended.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            break
        results[name] = found
    slow = f"no answer within {deadline:.0f} s"
    fix = "try again; if it stays so, the disk or the network behind it hangs"
    late = {n: [CheckResult(n, "problem", slow, fix)] for n in checks.keys() - results.keys()}
    return [result for name in checks for result in (results | late)[name]]


def show(results: list[CheckResult]) -> None:
    """One line for each result; below those that are not ok, what to do."""
    from rich.console import Console
    from rich.text import Text

    styles = {"ok": "green", "warning": "yellow", "problem": "bold red"}
    width = max(len(result.check) for result in results)
    console = Console(highlight=False, soft_wrap=True)
    for result in results:
        status = (f"{result.status:<8}", styles[result.status])
        console.print(Text.assemble(status, (f"{result.check:<{width}}  ", "bold"), result.detail))
        if result.fix:
            console.print(Text(f"{'':<{8 + width}}  -> {result.fix}"))


def versions() -> Results:
    """Python, the libraries, and every requirement of this project against what is installed."""
    from importlib import metadata

    from packaging.requirements import Requirement

    yield CheckResult("python", "ok", f"{sys.version.split()[0]} ({sys.executable})")
    installed = {"sjc-foundry": metadata.version("sjc-foundry")}
    wrong = False
    for wanted in map(Requirement, metadata.requires("sjc-foundry") or []):
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            found = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            found = "missing"
        installed[wanted.name] = found
        if found == "missing" or not wanted.specifier.contains(found, prereleases=True):
            wrong = True
            why = f": {_BAD[wanted.name]}" if wanted.name in _BAD else ""
            detail = f"{found}, and {wanted.specifier} is needed{why}"
            fix = f'pip install "{wanted.name}{wanted.specifier}"'
            yield CheckResult(wanted.name, "problem", detail, fix)
    if not wrong:
        shown = ", ".join(f"{name} {installed[name]}" for name in _PACKAGES)
        met = f"all {len(installed) - 1} requirements are met"
        yield CheckResult("packages", "ok", f"{shown}; {met}")


def devices() -> Results:
    """torch and the GPUs that it can use."""
    import torch

    build = f"{torch.__version__}, CUDA {torch.version.cuda}"
    if count := torch.cuda.device_count():
        yield CheckResult("torch", "ok", f"{build}, {count} GPU{'s' if count > 1 else ''}")
        for k in range(count):
            name = torch.cuda.get_device_properties(k).name
            free, total = torch.cuda.mem_get_info(k)
            yield CheckResult(f"cuda:{k}", "ok", f"{name}, {_gib(free)} of {_gib(total)} free")
    elif not (Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi")):
        detail = f"{torch.__version__}, no GPU: engines run on the CPU; --devices cpu,cpu makes two"
        yield CheckResult("torch", "ok", detail)
    elif torch.version.cuda is None:
        detail = f"{torch.__version__}: a GPU driver is here, and this torch is built for the CPU"
        fix = "install a CUDA build: https://pytorch.org"
        yield CheckResult("torch", "warning", detail, fix)
    else:
        fix = "compare with `nvidia-smi`; CUDA_VISIBLE_DEVICES hides GPUs when it is set"
        yield CheckResult("torch", "warning", f"{build}: it finds no usable GPU", fix)


def renderer() -> Results:
    """Whether the renderer's kernels work: on the GPUs or, without any, on the CPU."""
    import torch

    from sjc_engine.fused import trouble

    kind = "cuda" if torch.cuda.device_count() else "cpu"
    if problem := trouble(torch.device(kind)):
        fix = 'pip install "sjc-foundry[cuda]"' if kind == "cuda" else "pip install numba"
        yield CheckResult("renderer", "warning", f"plain torch, which is slower: {problem}", fix)
    else:
        yield CheckResult("renderer", "ok", f"fused kernels for {kind}, compiled by Numba")


def machine() -> Results:
    """CPU and memory."""
    from sjc_engine.memory import free_memory

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = os.environ.get("OMP_NUM_THREADS")
    threads = f"OMP_NUM_THREADS={threads}" if threads else "OMP_NUM_THREADS is not set"
    yield CheckResult("cpu", "ok", f"{cores} cores, {threads}")
    free = free_memory()
    if free is None:
        yield CheckResult("memory", "ok", "not known on this system")
    elif free < LITTLE_MEMORY:
        fix = "close other programs, or use one engine (--devices cpu)"
        yield CheckResult("memory", "warning", f"{_gib(free)} free", fix)
    else:
        yield CheckResult("memory", "ok", f"{_gib(free)} free")


def embedded() -> Results:
    """The weights that ship with the package."""
    from safetensors import SafetensorError, safe_open

    from sjc_engine.sources import BUILTINS, folder_digest

    judges = BUILTINS["toybox"].with_name("judge")
    for name, folder in {**BUILTINS, "judge toybox": judges}.items():
        files = sorted(folder.rglob("*.safetensors"))
        problem = "" if files else f"no weights in {folder}"
        try:
            for path in files:
                with safe_open(path, "numpy"):  # checks that the file is as long as it says
                    pass
        except SafetensorError as error:
            problem = str(error)
        if problem:
            fix = "install the package again; with git, `git lfs pull` or `git checkout` them"
            yield CheckResult(name, "problem", problem, fix)
            continue
        megabytes = sum(path.stat().st_size for path in files) / 1e6
        revision = folder_digest(folder)[:12]
        yield CheckResult(name, "ok", f"{megabytes:.0f} MB, revision {revision}")


def programs() -> Results:
    """What is started as a program of its own: ffmpeg for videos, xatlas for textures."""
    from importlib import metadata

    import imageio_ffmpeg

    reinstall = "pip install --force-reinstall"
    try:
        version = _first_line([imageio_ffmpeg.get_ffmpeg_exe(), "-version"])
        yield CheckResult("ffmpeg", "ok", " ".join(version.split()[:3]))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        fix = f"{reinstall} imageio-ffmpeg, or --set turntable_frames=0"
        yield CheckResult("ffmpeg", "problem", f"no videos: {error}", fix)
    try:
        _first_line([sys.executable, "-c", "import xatlas; print()"])
        yield CheckResult("xatlas", "ok", metadata.version("xatlas"))
    except (OSError, subprocess.SubprocessError) as error:
        fix = f"{reinstall} xatlas, or --set texture_size=0"
        yield CheckResult("xatlas", "problem", f"no textures: {error}", fix)


def _first_line(command: list[str]) -> str:
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=DEADLINE)
    return ran.stdout.partition("\n")[0]


def local_store(folder: Path) -> Results:
    """A store in a folder: there or possible, writable, room on its disk."""
    from tasks.store import StoreError, open_store

    detail = "not there yet; a run makes it"
    if folder.exists():
        detail = "can be read and written"
        try:
            open_store(folder)  # one small write, which goes away again
        except StoreError as error:
            yield _unusable("store", error)
            return
    yield from disk("store", folder, "choose another --store", f": {detail}")


def disk(name: str, folder: Path, remedy: str, detail: str = "") -> Results:
    """Whether a folder can hold files, and how many."""
    place = folder.absolute()
    if not can_hold_files(folder):
        yield CheckResult(name, "problem", f"{place} cannot be made or written", remedy)
        return
    nearest = next(path for path in (place, *place.parents) if path.exists())
    free = shutil.disk_usage(nearest).free
    status = "ok" if free >= LITTLE_DISK else "warning" if free >= NO_DISK else "problem"
    fix = "" if status == "ok" else f"free space there, or {remedy}"
    yield CheckResult(name, status, f"{place}{detail}; {_gib(free)} free", fix)


def s3_store(url: str) -> Results:
    """A store in a bucket: credentials, endpoint, clock, and one small write.

    boto3 decides about certificates, proxies and endpoint, as it does for a run.
    """
    import boto3
    from botocore.exceptions import NoCredentialsError

    from tasks.s3_client import explained
    from tasks.store import StoreError, check_address, check_endpoint, open_store

    check = "store"
    try:
        check_address(url, "--store", "s3://bucket/prefix")
        check_endpoint()
        if not url.startswith("s3://"):
            raise StoreError(f"{url} is not a store; use a folder or s3://bucket/prefix")
        check = "credentials"
        with explained("use", url):
            session = boto3.Session()
            found = session.get_credentials()
            if found is None:
                raise NoCredentialsError
        yield CheckResult(check, "ok", f"from {found.method}")
        check = "endpoint"
        with explained("use", url):
            endpoint, date = _ask_bucket(session, urlsplit(url).netloc)
        yield _clock(endpoint, date)
        check = "store"
        open_store(url)
        yield CheckResult(check, "ok", f"{url} can be read and written")
    except StoreError as error:
        yield _unusable(check, error)


def _unusable(check: str, error: Exception) -> CheckResult:
    problem, _, fix = str(error).rpartition("; ")
    return CheckResult(check, "problem", problem or str(error), fix or "check --store")


def _ask_bucket(session: boto3.Session, bucket: str) -> tuple[str, str | None]:
    """The endpoint's URL, and the Date header of its answer, which may be a refusal."""
    from botocore.config import Config
    from botocore.exceptions import ClientError

    config = Config(
        connect_timeout=REACH, read_timeout=REACH, retries={"total_max_attempts": 1},
        signature_version="s3v4",
    )  # fmt: skip
    client = session.client("s3", config=config)
    try:
        headers = client.head_bucket(Bucket=bucket)["ResponseMetadata"]["HTTPHeaders"]
    except ClientError as refused:
        headers = refused.response["ResponseMetadata"]["HTTPHeaders"]
    return client.meta.endpoint_url, headers.get("date")


def _clock(endpoint: str, date: str | None) -> CheckResult:
    """An endpoint that answers: whether its clock and this machine's agree well enough."""
    from email.utils import parsedate_to_datetime

    if date is None:
        return CheckResult("endpoint", "ok", f"{endpoint} answers without a date")
    skew = abs(parsedate_to_datetime(date).timestamp() - time.time())
    detail = f"{endpoint} answers; clocks differ by {skew:.0f} s"
    if skew > SKEW:
        return CheckResult("endpoint", "problem", detail, "set this machine's clock (NTP)")
    return CheckResult("endpoint", "ok", detail)


def prefect_server() -> Results:
    """Which Prefect server a run would use."""
    from flows.prefect_server.environment import prefect_home
    from flows.prefect_server.server import healthy, ui_server

    home, given = prefect_home(), os.environ.get("PREFECT_API_URL")
    status, fix = "ok", ""
    if not can_hold_files(home):
        status, detail = "problem", f"{home} cannot be written"
        fix = "set PREFECT_HOME to a folder that can be written"
    elif given and healthy(given, REACH):
        detail = f"PREFECT_API_URL: {given} answers"
    elif given:
        status, detail = "problem", f"PREFECT_API_URL: {given} gives no answer"
        fix = "start it, or unset PREFECT_API_URL: a run then brings its own"
    elif url := ui_server():
        detail = f"that of `sjc ui`: {url.removesuffix('/api')}"
    else:
        detail = f"no server is up: each run brings its own ({home}); `sjc ui` starts one"
    yield CheckResult("Prefect", status, detail, fix)


def hub() -> Results:
    """Whether other priors can be had: the hub, its cache, and the token for gated ones."""
    from huggingface_hub import constants, get_token

    cache = Path(constants.HF_HUB_CACHE)
    kept = f"{len(list(cache.glob('models--*')))} models in {cache}"
    host = urlsplit(constants.ENDPOINT).netloc
    if constants.HF_HUB_OFFLINE:
        yield CheckResult("model hub", "ok", f"offline by HF_HUB_OFFLINE; {kept}")
    elif problem := _unreachable(constants.ENDPOINT):
        fix = "the embedded prior needs none; HF_HUB_OFFLINE=1 uses what is cached without asking"
        detail = f"{host} cannot be reached ({problem}); {kept}"
        yield CheckResult("model hub", "warning", detail, fix)
    else:
        token = "a token is set" if get_token() else "no token (`hf auth login`, for gated models)"
        yield CheckResult("model hub", "ok", f"{host} answers; {kept}; {token}")


def _unreachable(url: str) -> str | None:
    """Why no HTTP server answers there; None when one does, whatever its answer is."""
    import urllib.error
    import urllib.request

    try:
        urllib.request.urlopen(url, timeout=REACH).close()
    except urllib.error.HTTPError:
        return None
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))
    return None


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size < 100 * GIB else f"{size / GIB:,.0f} GiB"
