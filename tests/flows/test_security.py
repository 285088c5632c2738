"""Secrets stay where they are, servers on loopback, files private, and nothing is unpickled."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from command_line import Said, tiny

from flows.prefect_server import environment
from flows.settings import Settings
from sjc_engine import load_prior
from sjc_engine.evaluation.clip import load_judge
from sjc_engine.evaluation.lpips import load_lpips
from sjc_engine.priors.sources import BUILTINS
from tasks.datasets.destination import Destination
from tasks.store import open_store
from tasks.store.interface import StoreError

ROOT = Path(__file__).parents[2]
KEY, TOKEN = "AKIADISTINCTIVEKEY00", "distinctive-token"
SECRET = "distinctive/secret+0123456789abcdef"
LOOPBACK = {"0100007F", "00000000000000000000000001000000"}  # as /proc/net/tcp writes them


def descendants(pid: int) -> set[int]:
    found = {pid}
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found |= descendants(int(child))
    return found


def listening(pids: set[int]) -> set[str]:
    """The addresses on which processes wait for connections."""
    addresses = {}
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                addresses[f"socket:[{fields[9]}]"] = fields[1].partition(":")[0]
    files = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for link in os.scandir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    files.add(os.readlink(link))
    return {address for socket, address in addresses.items() if socket in files}


class Observer:
    """Looks at all processes below one, again and again: their arguments and their ports."""

    def __init__(self, pid: int) -> None:
        self.arguments: set[bytes] = set()
        self.addresses: set[str] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, args=(pid,))
        self._thread.start()

    def _look(self, pid: int) -> None:
        while not self._over.wait(0.1):
            pids = descendants(pid)
            for one in pids:
                with contextlib.suppress(OSError):
                    self.arguments.add(Path(f"/proc/{one}/cmdline").read_bytes())
            self.addresses |= listening(pids)

    def end(self) -> None:
        self._over.set()
        self._thread.join()


@pytest.fixture
def bucket(bucket_url: str, prefect_home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A live bucket for the credentials that must not be found, and a Prefect home of its own."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_SESSION_TOKEN": TOKEN,
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    return bucket_url.split("/")[2]


def keys(client: Any, bucket: str) -> list[str]:
    return [entry["Key"] for entry in client.list_objects_v2(Bucket=bucket).get("Contents", [])]


def everything(bucket: str) -> dict[str, bytes]:
    """All objects of a bucket, with their metadata."""
    client, found = boto3.client("s3"), {}
    for key in keys(client, bucket):
        try:
            reply = client.get_object(Bucket=bucket, Key=key)
        except client.exceptions.NoSuchKey:  # a lease, of a run that lives
            continue
        found[key] = reply["Body"].read() + repr(reply["Metadata"]).encode()
    return found


@pytest.mark.slow
def test_credentials_appear_nowhere(bucket: str, tmp_path: Path, judge: str) -> None:
    """A run makes an asset and then loses its bucket; everything that it leaves is searched."""
    (tmp_path / "m.csv").write_text("id,prompt\nduck,a duck\ntank,a toy tank\n")
    script = "import sys; from flows.commands.main import main; sys.argv[0] = 'sjc'; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", script, "run", "m.csv", "--store", f"s3://{bucket}/x",
         "--devices", "cpu", *tiny(judge)],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PREFECT_LOGGING_LEVEL": "DEBUG"},
    )  # fmt: skip
    observer = Observer(process.pid)
    kept: dict[str, bytes] = {}
    try:
        deadline = time.monotonic() + 240
        client = boto3.client("s3")
        while not any(key.endswith("/manifest.json") for key in keys(client, bucket)):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        kept = everything(bucket)
        gone = list(kept)
        while gone:  # the other asset's attempt may be written meanwhile
            for key in gone:
                client.delete_object(Bucket=bucket, Key=key)
            gone = list(everything(bucket))
        with contextlib.suppress(client.exceptions.ClientError):
            client.delete_bucket(Bucket=bucket)
        out, err = process.communicate(timeout=240)
    finally:
        observer.end()
        process.kill()
    assert process.returncode == 3, err
    # The bucket, a picture in it or, if the run is nearly over, its rows
    assert "does not exist" in err or "there is no run" in err
    assert "Traceback" not in err
    searched = {"stdout": out.encode(), "stderr": err.encode()} | kept
    for folder in (tmp_path / "home", tmp_path / ".sjc"):
        searched |= {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    searched |= {repr(arguments): arguments for arguments in observer.arguments}
    assert any(name.endswith(".db") for name in searched)
    assert any(b"sjc_engine.worker" in arguments for arguments in observer.arguments)
    for secret in (KEY, SECRET, TOKEN, SECRET.replace("/", "%2F").replace("+", "%2B")):
        assert [name for name, content in searched.items() if secret.encode() in content] == []
    assert observer.addresses <= LOOPBACK
    assert observer.addresses, "the run had a Prefect server of its own"
    for private in (tmp_path / "home", tmp_path / ".sjc"):
        assert private.stat().st_mode & 0o077 == 0, private


SECRET_ADDRESSES = [
    f"s3://{KEY}:{SECRET}@toys/x",
    f"s3://{KEY}@toys/x",
    f"s3://{KEY}:{SECRET}",
    f"s3://toys/x?AWSAccessKeyId={KEY}&Signature={SECRET}",
    f"https://{KEY}:{SECRET}@host/x",
]


@pytest.mark.parametrize("url", SECRET_ADDRESSES)
def test_addresses_with_credentials_are_refused_and_not_repeated(
    url: str, sjc: Callable[..., Said], tmp_path: Path
) -> None:
    (tmp_path / "m.csv").write_text("prompt\na duck\n")
    commands = [
        ("run", "m.csv", "--store", url),
        ("run", "m.csv", "--dry-run", "--store", url),
        ("serve", "m.csv", "--cron", "0 2 * * *", "--store", url),
        ("deploy", "m.csv", "--store", url),
        ("assets", "--store", url),
        ("verify", "--store", url),
        ("check", url),
    ]
    for command in commands:
        said = sjc(*command)
        assert said.code in (2, 3), command
        assert "credentials" in said.err, said.err
        assert KEY not in said.out + said.err
        assert SECRET not in said.out + said.err
    said = sjc("doctor", "--store", url, "--json")
    assert KEY not in said.out + said.err
    assert SECRET not in said.out + said.err
    with pytest.raises(StoreError, match="credentials"):
        Settings("m.csv", store=url)
    with pytest.raises(StoreError, match="credentials"):
        Settings(url)
    for opened in (open_store, Destination):  # --store, and the -o of `curate`
        with pytest.raises(StoreError, match="credentials"):
            opened(url)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.csv"]


def test_an_endpoint_with_credentials_is_refused(
    sjc: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{KEY}:{SECRET}@127.0.0.1:1")
    for command in ("assets", "doctor"):
        said = sjc(command, "--store", "s3://toys/x")
        assert "credentials" in said.out + said.err
        assert SECRET not in said.out + said.err


def test_an_at_sign_in_a_key_is_no_credential(tmp_path: Path) -> None:
    for url in ("s3://toys/me@here/x", "s3://toys", str(tmp_path / "a@b:c")):
        Settings("m.csv", store=url)


# --- nothing is unpickled ----------------------------------------------------------------------


class Trap:
    """Whoever unpickles it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


@pytest.mark.parametrize("name", ["{}.bin", "{}.safetensors", "pytorch_model.bin", "{}.pt"])
def test_weights_that_are_pickles_are_not_read(tmp_path: Path, name: str) -> None:
    sprung = tmp_path / "sprung"
    trap = pickle.dumps(Trap(sprung))
    pickle.loads(trap)
    assert sprung.exists(), "the trap works"
    sprung.unlink()
    for load, folder in (
        (load_prior, BUILTINS["toybox"]),
        (load_judge, BUILTINS["toybox"].with_name("judge")),
    ):
        copy = tmp_path / folder.name
        shutil.copytree(folder, copy)
        for weights in list(copy.rglob("*.safetensors")):
            weights.unlink()
            weights.with_name(name.format(weights.stem)).write_bytes(trap)
        with pytest.raises(ValueError, match="cannot be loaded"):
            load(str(copy))
    lpips = tmp_path / "lpips"
    lpips.mkdir()
    (lpips / "config.json").write_text('{"network": "alex"}')
    (lpips / name.format("model")).write_bytes(trap)
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_lpips(str(lpips))
    assert not sprung.exists()


def test_prefect_keeps_results_as_json_if_at_all() -> None:
    from prefect.settings import (
        PREFECT_RESULTS_DEFAULT_SERIALIZER,
        PREFECT_RESULTS_PERSIST_BY_DEFAULT,
    )

    assert PREFECT_RESULTS_DEFAULT_SERIALIZER.value() == "json"
    assert not PREFECT_RESULTS_PERSIST_BY_DEFAULT.value()


# --- what is private ---------------------------------------------------------------------------


def test_new_folders_are_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.scratch import sole_user

    before = os.umask(0)
    try:
        monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "deep" / "home"))
        environment.apply()
        with sole_user(tmp_path / "scratch"):
            pass
    finally:
        os.umask(before)
    for folder in (tmp_path / "deep" / "home", tmp_path / "scratch"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_server_is_bound_to_loopback() -> None:
    from flows.prefect_server.server import HOST, free_port

    assert socket.gethostbyname(HOST) == "127.0.0.1"
    assert free_port() > 0
