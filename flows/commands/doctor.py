"""`sjc doctor`: what works here, what does not, and what to do about it.

Nothing is made, and no weights are loaded. Whatever may be missing is imported by the check that is
about it.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from email.utils import parsedate_to_datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from flows.commands.findings import DEADLINE, Finding, Findings, examine, show
from flows.errors import FAILED
from flows.prefect_server.environment import prefect_home
from flows.prefect_server.server import healthy, ui_server
from flows.scratch import can_hold_files

if TYPE_CHECKING:
    import boto3

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
    "sjc-foundry",
    "prefect",
    "torch",
    "diffusers",
    "transformers",
    "trimesh",
    "pyarrow",
    "duckdb",
)


def doctor(store: str, scratch: Path, *, as_json: bool) -> int:
    """Prints what was found; the exit code: 1 when there is a problem."""
    checks: dict[str, Callable[[], Findings]] = {
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
    found = examine(checks)
    if as_json:
        print(json.dumps([asdict(finding) for finding in found], indent=1))
    else:
        show(found)
    return FAILED if any(finding.status == "problem" for finding in found) else 0


def versions() -> Findings:
    """Python, the libraries, and every requirement of this project against what is installed."""
    from packaging.requirements import Requirement

    yield Finding("python", "ok", f"{sys.version.split()[0]} ({sys.executable})")
    installed = {"sjc-foundry": metadata.version("sjc-foundry")}
    wrong = False
    for line in metadata.requires("sjc-foundry") or []:
        wanted = Requirement(line)
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
            fix = f'pip install "{wanted.name}{wanted.specifier}"'
            detail = f"{found}, and {wanted.specifier} is needed{why}"
            yield Finding(wanted.name, "problem", detail, fix)
    if not wrong:
        shown = ", ".join(f"{name} {installed[name]}" for name in _PACKAGES)
        yield Finding("packages", "ok", f"{shown}; all {len(installed) - 1} requirements are met")


def devices() -> Findings:
    """torch and the GPUs that it can use."""
    import torch

    if count := torch.cuda.device_count():
        build = f"{torch.__version__}, CUDA {torch.version.cuda}"
        yield Finding("torch", "ok", f"{build}, {count} GPU{'s' if count > 1 else ''}")
        for k in range(count):
            about = torch.cuda.get_device_properties(k)
            free, total = torch.cuda.mem_get_info(k)
            detail = f"{about.name}, {_gib(free)} of {_gib(total)} free"
            yield Finding(f"cuda:{k}", "ok", detail)
        return
    driver = Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi")
    if driver and torch.version.cuda is None:
        detail = f"{torch.__version__}: a GPU driver is here, and this torch is built for the CPU"
        yield Finding("torch", "warning", detail, "install a CUDA build: https://pytorch.org")
    elif driver:
        detail = f"{torch.__version__}, CUDA {torch.version.cuda}: it finds no usable GPU"
        fix = "compare with `nvidia-smi`; CUDA_VISIBLE_DEVICES hides GPUs when it is set"
        yield Finding("torch", "warning", detail, fix)
    else:
        detail = f"{torch.__version__}, no GPU: engines run on the CPU"
        yield Finding("torch", "ok", f"{detail}; --devices cpu,cpu makes two")


def renderer() -> Findings:
    """Whether the renderer's kernels work: on the GPUs or, without any, on the CPU."""
    import torch

    from sjc_engine.fused import trouble

    kind = "cuda" if torch.cuda.device_count() else "cpu"
    if problem := trouble(torch.device(kind)):
        fix = 'pip install "sjc-foundry[cuda]"' if kind == "cuda" else "pip install numba"
        yield Finding("renderer", "warning", f"plain torch, which is slower: {problem}", fix)
    else:
        yield Finding("renderer", "ok", f"fused kernels for {kind}, compiled by Numba")


def machine() -> Findings:
    """CPU and memory."""
    from sjc_engine.memory import free_memory

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = os.environ.get("OMP_NUM_THREADS")
    said = f"OMP_NUM_THREADS={threads}" if threads else "OMP_NUM_THREADS is not set"
    yield Finding("cpu", "ok", f"{cores} cores, {said}")
    free = free_memory()
    if free is None:
        yield Finding("memory", "ok", "not known on this system")
    elif free < LITTLE_MEMORY:
        fix = "close other programs, or use one engine (--devices cpu)"
        yield Finding("memory", "warning", f"{_gib(free)} free", fix)
    else:
        yield Finding("memory", "ok", f"{_gib(free)} free")


def embedded() -> Findings:
    """The weights that ship with the package."""
    from safetensors import SafetensorError, safe_open

    from sjc_engine.sources import BUILTINS, folder_digest

    judges = BUILTINS["toybox"].with_name("judge")
    for name, folder in {**BUILTINS, "judge toybox": judges}.items():
        files = sorted(folder.rglob("*.safetensors"))
        size = sum(path.stat().st_size for path in files)
        try:
            for path in files:
                with safe_open(path, "numpy"):  # checks that the file is as long as it says
                    pass
        except SafetensorError as error:
            files, reason = [], str(error)
        else:
            reason = f"no weights in {folder}"
        if not files:
            fix = "install the package again; with git, `git lfs pull` or `git checkout` them"
            yield Finding(name, "problem", reason, fix)
            continue
        digest = folder_digest(folder)[:12]
        yield Finding(name, "ok", f"{size / 1e6:.0f} MB, revision {digest}")


def programs() -> Findings:
    """What is started as a program of its own: ffmpeg for videos, xatlas for textures."""
    import imageio_ffmpeg

    try:
        said = _first_line([imageio_ffmpeg.get_ffmpeg_exe(), "-version"])
        yield Finding("ffmpeg", "ok", " ".join(said.split()[:3]))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        fix = "pip install --force-reinstall imageio-ffmpeg, or --set turntable_frames=0"
        yield Finding("ffmpeg", "problem", f"no videos: {error}", fix)
    try:
        _first_line([sys.executable, "-c", "import xatlas; print()"])
        yield Finding("xatlas", "ok", metadata.version("xatlas"))
    except (OSError, subprocess.SubprocessError) as error:
        fix = "pip install --force-reinstall xatlas, or --set texture_size=0"
        yield Finding("xatlas", "problem", f"no textures: {error}", fix)


def _first_line(command: list[str]) -> str:
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=DEADLINE)
    return ran.stdout.partition("\n")[0]


def local_store(folder: Path) -> Findings:
    """A store in a folder: there or possible, writable, room on its disk."""
    from tasks.store import StoreError, open_store

    if not folder.exists():
        yield from disk("store", folder, "choose another --store", "not there yet; a run makes it")
        return
    try:
        open_store(folder)  # one small write, which goes away again
    except StoreError as error:
        yield _unusable("store", error)
    else:
        yield from disk("store", folder, "choose another --store", "can be read and written")


def disk(name: str, folder: Path, remedy: str, detail: str = "") -> Findings:
    """Whether a folder can hold files, and how many."""
    place = folder.absolute()
    told = f"{place}: {detail}" if detail else str(place)
    if not can_hold_files(folder):
        yield Finding(name, "problem", f"{place} cannot be made or written", remedy)
        return
    nearest = next(path for path in (place, *place.parents) if path.exists())
    free = shutil.disk_usage(nearest).free
    status = "ok" if free >= LITTLE_DISK else "warning" if free >= NO_DISK else "problem"
    fix = "" if status == "ok" else f"free space there, or {remedy}"
    yield Finding(name, status, f"{told}; {_gib(free)} free", fix)


def s3_store(url: str) -> Findings:
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
        yield Finding(check, "ok", f"from {found.method}")
        check = "endpoint"
        with explained("use", url):
            endpoint, date = _ask_bucket(session, urlsplit(url).netloc)
        yield _clock(endpoint, date)
        check = "store"
        open_store(url)
        yield Finding(check, "ok", f"{url} can be read and written")
    except StoreError as error:
        yield _unusable(check, error)


def _unusable(check: str, error: Exception) -> Finding:
    said, _, fix = str(error).rpartition("; ")
    return Finding(check, "problem", said or str(error), fix or "check --store")


def _ask_bucket(session: "boto3.Session", bucket: str) -> tuple[str, str | None]:
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


def _clock(endpoint: str, date: str | None) -> Finding:
    """An endpoint that answers: whether its clock and this machine's agree well enough."""
    if date is None:
        return Finding("endpoint", "ok", f"{endpoint} answers without a date")
    skew = abs(parsedate_to_datetime(date).timestamp() - time.time())
    detail = f"{endpoint} answers; clocks differ by {skew:.0f} s"
    if skew > SKEW:
        return Finding("endpoint", "problem", detail, "set this machine's clock (NTP)")
    return Finding("endpoint", "ok", detail)


def prefect_server() -> Findings:
    """Which Prefect server a run would use."""
    home = prefect_home()
    if not can_hold_files(home):
        fix = "set PREFECT_HOME to a folder that can be written"
        yield Finding("Prefect", "problem", f"{home} cannot be written", fix)
    elif given := os.environ.get("PREFECT_API_URL"):
        if healthy(given, REACH):
            yield Finding("Prefect", "ok", f"PREFECT_API_URL: {given} answers")
        else:
            fix = "start it, or unset PREFECT_API_URL: a run then brings its own"
            yield Finding("Prefect", "problem", f"PREFECT_API_URL: {given} gives no answer", fix)
    elif url := ui_server():
        yield Finding("Prefect", "ok", f"that of `sjc ui`: {url.removesuffix('/api')}")
    else:
        detail = "no server is up: each run brings its own"
        yield Finding("Prefect", "ok", f"{detail}; `sjc ui` starts one with pages ({home})")


def hub() -> Findings:
    """Whether other priors can be had: the hub, its cache, and the token for gated ones."""
    from huggingface_hub import constants, get_token

    cache = Path(constants.HF_HUB_CACHE)
    names = [path.name for path in cache.glob("models--*")] if cache.is_dir() else []
    kept = f"{len(names)} models in {cache}"
    token = "a token is set" if get_token() else "no token (`hf auth login`, for gated models)"
    if constants.HF_HUB_OFFLINE:
        yield Finding("model hub", "ok", f"offline by HF_HUB_OFFLINE; {kept}")
        return
    parts = urlsplit(constants.ENDPOINT)
    if problem := _unreachable(constants.ENDPOINT):
        fix = "the embedded prior needs none; HF_HUB_OFFLINE=1 uses what is cached without asking"
        detail = f"{parts.netloc} cannot be reached ({problem}); {kept}"
        yield Finding("model hub", "warning", detail, fix)
    else:
        yield Finding("model hub", "ok", f"{parts.netloc} answers; {kept}; {token}")


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
