"""`sjc doctor`: what works here, what does not, and what to do about it.

Nothing is made, and no weights are loaded. Whatever may be missing is imported by the check that is
about it.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from flows.commands import options
from flows.commands.app import command
from flows.doctor import benchmark as benchmarks
from flows.doctor.devices import Check, Results, devices, machine, renderer
from flows.errors import FAILED
from flows.progress.number_formats import size_text
from sjc_engine.errors import PriorError, SettingError

if TYPE_CHECKING:
    import boto3

DEADLINE = 60.0  # seconds for all checks
# But for those that take longer: the first one on a machine compiles the renderer, for each GPU
DEADLINES = {"renderer": 300.0}
REACH = 2.0  # seconds for a connection
GIB = 1 << 30
# An asset takes 1 to 5 MB in the store and up to 100 MB in the scratch folder while it is made.
LITTLE_DISK, NO_DISK = 5 * GIB, GIB // 4
SKEW = 300.0  # seconds between clocks; S3 servers refuse more than 900

_SHOWN = (
    "sjc-foundry", "prefect", "torch", "diffusers", "transformers", "trimesh", "pyarrow", "duckdb",
)  # fmt: skip


@command(
    "sjc doctor", "sjc doctor --store s3://bucket/first --json", "sjc doctor --benchmark --json"
)
def doctor(
    store: options.Store = "./store",
    scratch: Annotated[Path, typer.Option(help="As for `run`.")] = Path(".sjc"),
    benchmark: Annotated[
        bool,
        typer.Option(
            "--benchmark",
            help="Instead: whether the engine computes the right numbers on a GPU, and how fast;"
            " up to eight minutes, nothing to download.",
        ),
    ] = False,
    device: options.Device = None,
    json_: options.Json = False,
) -> None:
    """Examine this machine: versions, devices, weights, store, server; what to do where it fails.

    Nothing is made. Exit code 0 when a run would work, 1 when there is a problem.
    """
    if benchmark:
        raise typer.Exit(0 if benchmarks.measure(device, as_json=json_) else FAILED)
    results = examine(
        {
            "versions": versions,
            "devices": devices,
            "renderer": renderer,
            "machine": machine,
            "prior": embedded,
            "programs": programs,
            "store": lambda: s3_store(store) if "://" in store else local_store(Path(store)),
            "scratch": lambda: scratch_folder(scratch),
            "prefect": prefect_server,
            "hub": hub,
        },
        DEADLINE,
        DEADLINES,
    )
    found = []
    for result in results:
        found.append(result)
        if not json_:
            show(result)
    if json_:
        print(json.dumps([result._asdict() for result in found], indent=1))
    raise typer.Exit(FAILED if any(result.status == "problem" for result in found) else 0)


def examine(
    checks: dict[str, Callable[[], Results]], deadline: float, others: Mapping[str, float]
) -> Results:
    """The results of all checks, made side by side, each as soon as those before it are known.

    One that fails, or has not ended within `deadline` seconds, is a problem; others: the deadlines
    of those that have another.
    """
    fix = "try again; if it stays so, the disk, the network or the GPU behind it hangs"
    seconds = {name: others.get(name, deadline) for name in checks}
    results = {
        name: [Check(name, "problem", f"no answer within {seconds[name]:.0f} s", fix)]
        for name in checks
    }

    def run(name: str, check: Callable[[], Results]) -> None:
        found: list[Check] = []
        try:
            found.extend(check())
        except Exception as error:  # whatever is broken here is what the user wants to hear of
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            fix = "repair it, or install again: pip install --force-reinstall sjc-foundry"
            found.append(Check(name, "problem", reason, fix))
        results[name] = found

    threads = [threading.Thread(target=run, args=check, daemon=True) for check in checks.items()]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread, name in zip(threads, checks, strict=True):
        thread.join(max(0.0, started + seconds[name] - time.monotonic()))
        yield from results[name]


def show(result: Check) -> None:
    """A line; below it, unless the result is ok, what to do."""
    colours = {"ok": "green", "warning": "yellow", "problem": "red"}
    status = typer.style(f"{result.status:<8}", fg=colours[result.status])
    check = typer.style(f"{result.check:<14}  ", bold=True)
    typer.echo(f"{status}{check}{result.detail}")
    if result.fix:
        typer.echo(f"{'':<24}-> {result.fix}")


def versions() -> Results:
    """Python, the libraries, and every requirement of this project against what is installed."""
    from importlib import metadata

    from packaging.requirements import Requirement

    yield Check("python", "ok", f"{sys.version.split()[0]} ({sys.executable})")
    installed = {"sjc-foundry": metadata.version("sjc-foundry")}
    wrong = False
    for wanted in map(Requirement, metadata.requires("sjc-foundry") or []):
        name, versions = wanted.name, wanted.specifier
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            found = installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found = "missing"
        if found == "missing" or not versions.contains(found, prereleases=True):
            wrong = True
            detail = f"{found}, and {versions} is needed"
            yield Check(name, "problem", detail, f'pip install "{name}{versions}"')
    if not wrong:
        shown = ", ".join(f"{name} {installed[name]}" for name in _SHOWN)
        met = f"all {len(installed) - 1} requirements are met"
        yield Check("packages", "ok", f"{shown}; {met}")


def embedded() -> Results:
    """The weights that ship with the package."""
    from sjc_engine.priors.sources import BUILTINS, find_judge, find_prior

    for name in (*BUILTINS, "judge toybox"):
        try:
            source = find_prior(name) if name in BUILTINS else find_judge("toybox")
        except PriorError as error:
            fix = "install the package again; with git, `git lfs pull` or `git checkout` them"
            yield Check(name, "problem", error.problem, fix)
        else:
            files = source.folder.rglob("*.safetensors")
            megabytes = sum(path.stat().st_size for path in files) / 1e6
            yield Check(name, "ok", f"{megabytes:.0f} MB, revision {source.revision[:12]}")


def programs() -> Results:
    """What is not only Python, where a broken library could end us: ffmpeg, and xatlas."""
    from importlib.util import find_spec

    ffmpeg = "import imageio_ffmpeg; print('ffmpeg version', imageio_ffmpeg.get_ffmpeg_version())"
    xatlas = "import xatlas; from importlib.metadata import version; print(version('xatlas'))"
    for name, code, lost, package, setting in (
        ("ffmpeg", ffmpeg, "videos", "imageio-ffmpeg", "turntable_frames"),
        ("xatlas", xatlas, "textures", "xatlas", "texture_size"),
    ):
        if name == "ffmpeg" and find_spec("imageio_ffmpeg") is None:
            extra = 'for turntable.mp4 as well, pip install "sjc-foundry[video]"'
            yield Check(name, "ok", f"not installed: assets have thumbnail.webp; {extra}")
            continue
        if name == "xatlas" and find_spec("xatlas") is None:
            fix = "pip install xatlas; without a wheel for this Python and CPU it wants a compiler"
            yield Check(name, "warning", "not installed: meshes get vertex colours", fix)
            continue
        command = [sys.executable, "-P", "-c", code]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
        if ran.returncode:
            reason = ran.stderr.rstrip().rpartition("\n")[2] or f"exit code {ran.returncode}"
            fix = f"pip install --force-reinstall {package}, or --set {setting}=0"
            yield Check(name, "problem", f"no {lost}: {reason}", fix)
        else:
            yield Check(name, "ok", ran.stdout.strip())


def local_store(folder: Path) -> Results:
    """A store in a folder: there or possible, writable, room on its disk."""
    from tasks.store import open_store
    from tasks.store.interface import StoreError
    from tasks.store.leases import why_expiring

    try:
        if there := folder.exists():
            open_store(folder)  # one small write, which goes away again
        reason = why_expiring(folder)
    except StoreError as error:
        yield Check("store", "problem", error.problem, error.fix)
    else:
        detail = "can be read and written" if there else "not there yet; a run makes it"
        kind = f"files that expire ({reason})" if reason else "file locks"
        yield from disk("store", folder, "choose another --store", f": {detail}; leases: {kind}")


def scratch_folder(folder: Path) -> Results:
    """The scratch folder: room on its disk, and whether two machines could take it for theirs."""
    from tasks.store.locks import lock_flaw

    remedy = "name another with --scratch"
    yield from disk("scratch folder", folder, remedy)
    if flaw := lock_flaw(folder):
        fix = f"let no two machines use it at once: on each, {remedy}"
        yield Check("scratch folder", "warning", f"{folder.absolute()}: {flaw}", fix)


def disk(name: str, folder: Path, remedy: str, detail: str = "") -> Results:
    """Whether a folder can hold files, and how many."""
    from flows.scratch import can_hold_files

    place = folder.absolute()
    if not can_hold_files(folder):
        yield Check(name, "problem", f"{place} cannot be made or written", remedy)
        return
    nearest = next(path for path in (place, *place.parents) if path.exists())
    free = shutil.disk_usage(nearest).free
    status = "ok" if free >= LITTLE_DISK else "warning" if free >= NO_DISK else "problem"
    fix = "" if status == "ok" else f"free space there, or {remedy}"
    yield Check(name, status, f"{place}{detail}; {size_text(free)} free", fix)


def s3_store(url: str) -> Results:
    """A store in a bucket: credentials, endpoint, clock, and one small write.

    boto3 decides about certificates, proxies and endpoint, as it does for a run.
    """
    import boto3
    from botocore.exceptions import NoCredentialsError

    from tasks.store import open_store
    from tasks.store.interface import StoreError, check_address, check_endpoint
    from tasks.store.s3_client import explained

    check = "store"
    try:
        check_address(url, "--store", "s3://bucket/prefix")
        check_endpoint()
        if not url.startswith("s3://"):
            raise StoreError(f"{url} is not a store", "use a folder or s3://bucket/prefix")
        with explained("use", url):
            check = "credentials"
            session = boto3.Session()
            found = session.get_credentials()
            if found is None:
                raise NoCredentialsError
            yield Check(check, "ok", f"from {found.method}")
            check = "endpoint"
            yield _endpoint(session, urlsplit(url).netloc)
        check = "store"
        open_store(url)
        yield Check(check, "ok", f"{url} can be read and written")
    except StoreError as error:
        yield Check(check, "problem", error.problem, error.fix)


def _endpoint(session: boto3.Session, bucket: str) -> Check:
    """An endpoint that answers, perhaps with a refusal: whether its clock agrees with ours."""
    from email.utils import parsedate_to_datetime

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
    date = headers.get("date")
    if date is None:
        return Check("endpoint", "ok", f"{client.meta.endpoint_url} answers without a date")
    skew = abs(parsedate_to_datetime(date).timestamp() - time.time())
    detail = f"{client.meta.endpoint_url} answers; clocks differ by {skew:.0f} s"
    if skew > SKEW:
        return Check("endpoint", "problem", detail, "set this machine's clock (NTP)")
    return Check("endpoint", "ok", detail)


def prefect_server() -> Results:
    """Which Prefect server a run would use."""
    from flows.prefect_server.environment import prefect_home
    from flows.prefect_server.server import answers, given_server, ui_server
    from flows.scratch import can_hold_files

    home, given = prefect_home(), given_server()
    if not can_hold_files(home):
        fix = "set PREFECT_HOME to a folder that can be written"
        yield Check("Prefect", "problem", f"{home} cannot be written", fix)
    elif given:
        fix = "start it, or unset PREFECT_API_URL: a run then brings its own"
        try:
            if answers(given, REACH):
                yield Check("Prefect", "ok", f"PREFECT_API_URL: {given} answers")
            else:
                yield Check("Prefect", "problem", f"PREFECT_API_URL: {given} gives no answer", fix)
        except SettingError as error:
            yield Check("Prefect", "problem", f"{error.key}: {error.problem}", error.fix)
    elif url := ui_server():
        yield Check("Prefect", "ok", f"that of `sjc ui`: {url.removesuffix('/api')}")
    else:
        detail = f"no server is up: each run brings its own ({home}); `sjc ui` starts one"
        yield Check("Prefect", "ok", detail)


def hub() -> Results:
    """Whether other priors can be had: the hub, its cache, and the token for gated ones."""
    import urllib.error
    import urllib.request

    from huggingface_hub import constants, get_token

    cache = Path(constants.HF_HUB_CACHE)
    kept = f"{len(list(cache.glob('models--*')))} models in {cache}"
    if constants.HF_HUB_OFFLINE:
        yield Check("model hub", "ok", f"offline by HF_HUB_OFFLINE; {kept}")
        return
    host = urlsplit(constants.ENDPOINT).netloc
    try:
        with contextlib.suppress(urllib.error.HTTPError):  # an answer all the same
            urllib.request.urlopen(constants.ENDPOINT, timeout=REACH).close()
    except (OSError, ValueError) as error:
        detail = f"{host} cannot be reached ({getattr(error, 'reason', error)}); {kept}"
        fix = "the embedded prior needs none; HF_HUB_OFFLINE=1 uses what is cached without asking"
        yield Check("model hub", "warning", detail, fix)
    else:
        token = "a token is set" if get_token() else "no token (`hf auth login`, for gated models)"
        yield Check("model hub", "ok", f"{host} answers; {kept}; {token}")
