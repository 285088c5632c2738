"""Leases: one run at a time has an asset, and a run that is gone has none."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from task_samples import all_tables, record_attempt, report, spec

from tasks.records.attempts import (
    asset_attempts,
    close_interrupted,
    finish_attempt,
    start_attempt,
)
from tasks.records.commit import commit_asset
from tasks.records.documents import asset_manifest
from tasks.records.verify import verify_store
from tasks.store import leases as module
from tasks.store import open_store
from tasks.store.interface import AlreadyCommitted, Store, StoreError
from tasks.store.leases import ExpiringLeases, leases
from tasks.tables.write import projection

ROOT = Path(__file__).parents[3]
A, B = "a" * 16, "b" * 16


def opened(request: pytest.FixtureRequest) -> Store:
    """A store with locks or expiring files in a folder, or on a server."""
    if request.param == "s3":
        return open_store(request.getfixturevalue("s3_url"))
    request.getfixturevalue("monkeypatch").setenv(module.CHOICE, request.param)
    return open_store(request.getfixturevalue("tmp_path") / "store")


@pytest.fixture(params=["locks", "files", "s3"])
def store(request: pytest.FixtureRequest) -> Store:
    return opened(request)


@pytest.fixture(params=["files", "s3"])
def expiring(request: pytest.FixtureRequest) -> Store:
    """A store whose leases expire."""
    return opened(request)


def test_one_run_at_a_time_has_an_asset(store: Store) -> None:
    with leases(store, "one") as one, leases(store, "two") as two:
        assert (one.take(A), two.take(A), two.take(B)) == (True, False, True)
        assert one.take(A), "it is still ours"
        two.free(A)
        assert not two.take(A), "what is not ours cannot be freed"
        one.free(A)
        assert two.take(A)
        assert not one.take(A), "it is ours no more"
    with leases(store, "three") as three:
        assert three.take(A), "leases end with their block"
        assert three.take(B)


def test_of_many_that_ask_at_once_one_has_it(store: Store) -> None:
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(8) as pool:
        everyone = [stack.enter_context(leases(store, f"run{n}")) for n in range(8)]
        got = list(pool.map(lambda one: one.take(A), everyone))
    assert sum(got) == 1


HOLDER = """
import sys, time
from tasks.store.leases import leases
from tasks.store import open_store
url, owner, asset_id = sys.argv[1:]
with leases(open_store(url), owner) as held:
    print(held.take(asset_id), flush=True)
    time.sleep(600)
"""


@contextlib.contextmanager
def holder(url: str, owner: str, before: str = "") -> Iterator[bool]:
    """A process that asks for A, and is killed in the end; whether it has got it."""
    command = [sys.executable, "-c", before + HOLDER, url, owner, A]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield process.stdout.readline() == "True\n"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def killed_holder(url: str, owner: str) -> None:
    """A process that has A, and is killed."""
    with holder(url, owner) as got, leases(open_store(url), "other") as other:
        assert got
        assert not other.take(A)


def test_a_killed_holder_blocks_nobody_on_a_disk(tmp_path: Path) -> None:
    killed_holder(str(tmp_path / "store"), "one")
    with leases(open_store(tmp_path / "store"), "other") as other:
        assert other.take(A)


def test_a_killed_holder_of_what_expires_blocks_others_for_a_while_and_its_own_folder_never(
    expiring: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_holder(expiring.url, "one")
    with leases(expiring, "other") as other:
        later = time.time() + module.EXPIRE_SECONDS - module.BEAT_SECONDS
        with monkeypatch.context() as patch:
            patch.setattr(module.time, "time", lambda: later)
            assert not other.take(A), "it has not expired"
        clock = time.time() + module.EXPIRE_SECONDS + 1
        with monkeypatch.context() as patch:
            patch.setattr(module.time, "time", lambda: clock)
            assert other.take(A)
    killed_holder(expiring.url, "one")
    with leases(expiring, "one") as again:
        assert again.take(A)
    assert verify_store(expiring) == []


def test_a_heartbeat_keeps_a_lease(expiring: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.1)
    store, key = expiring, f"leases/{A}.json"

    def until(change: Any) -> None:
        deadline = time.monotonic() + 30
        while not change(json.loads(store.get_bytes(key))):
            assert time.monotonic() < deadline, "its heart does not beat"
            time.sleep(0.05)

    with ExpiringLeases(store, "one") as one:
        assert one.take(A)
        assert all(t.daemon for t in threading.enumerate() if t.name == "leases")  # none outlives
        first = json.loads(store.get_bytes(key))["expires_at"]
        until(lambda lease: lease["expires_at"] > first)
        # A process that slept: its lease went to another, and its heart must not take it back.
        theirs = json.dumps({"owner": "two", "expires_at": time.time() + 60}).encode()
        with one._lock:
            store.put_bytes(key, theirs, replace=True)
        time.sleep(0.5)
        one.free(A)
        assert store.get_bytes(key) == theirs


def test_a_server_that_lets_every_writer_succeed_has_one_holder(
    s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another's lease arrives between our write and our look."""
    store = open_store(s3_url)
    put = type(store).put_bytes
    theirs = json.dumps({"owner": "two", "expires_at": time.time() + 60}).encode()

    def careless(self: Any, key: str, data: bytes, *, replace: bool = False) -> Any:
        stored = put(self, key, data, replace=True)
        put(self, key, theirs, replace=True)
        return stored

    monkeypatch.setattr(type(store), "put_bytes", careless)
    with leases(store, "one") as one:
        assert not one.take(A)


# A machine whose locks nobody else sees, on the file system that `mounts` says.
ALONE = """
import fcntl
from pathlib import Path
from tasks.store import locks
fcntl.flock = lambda *_: None
locks.MOUNTS = Path({mounts!r})
"""


@pytest.mark.parametrize(("kind", "winners"), [("ext4", 2), ("lustre", 1)])
def test_where_locks_lie_leases_expire(tmp_path: Path, kind: str, winners: int) -> None:
    """Each of two processes has locks of its own; on ext4 they could not, and nobody looks."""
    (tmp_path / "mounts").write_text(f"1 0 0:1 / / rw - {kind} x rw")
    before, url = ALONE.format(mounts=str(tmp_path / "mounts")), str(tmp_path / "store")
    with holder(url, "one", before) as one, holder(url, "two", before) as two:
        assert one + two == winners


def test_where_locks_fail_leases_expire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(module.fcntl, "flock", refuse)
    store = open_store(tmp_path / "store")
    with leases(store, "one") as one, leases(store, "two") as two:
        assert (one.take(A), two.take(A)) == (True, False)
    assert module.why_expiring(tmp_path / "store") == "flock: No locks available"
    monkeypatch.setenv(module.CHOICE, "locks")
    with leases(store, "one") as one, pytest.raises(StoreError, match="No locks available"):
        one.take(A)
    monkeypatch.setenv(module.CHOICE, "flock")
    with pytest.raises(StoreError, match="set it to locks or to files"):
        leases(store, "one")


def test_a_lock_leaves_no_file_behind(tmp_path: Path) -> None:
    with leases(open_store(tmp_path / "store"), "one") as one:
        assert one.take(A)
        assert one.take(B)
        one.free(A)
        assert [path.name for path in (tmp_path / "store" / ".leases").iterdir()] == [B]
    assert list((tmp_path / "store" / ".leases").iterdir()) == []


def test_a_lock_of_another_user_is_asked_for_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file can be read alone, and is there if its process was killed."""
    real = Path.open

    def others(path: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
        if "a" in mode:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, mode, *rest, **options)

    monkeypatch.setattr(Path, "open", others)
    store, folder = open_store(tmp_path / "store"), tmp_path / "store" / ".leases"
    folder.mkdir()
    (folder / A).touch()
    with leases(store, "one") as one, leases(store, "two") as two:
        assert (one.take(A), two.take(A)) == (True, False)
        with pytest.raises(StoreError, match=rf"Cannot lock .*{B}: permission denied"):
            one.take(B)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ENOSPC])
def test_a_lock_that_cannot_be_asked_for_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module.fcntl, "flock", refuse)
    with (
        leases(open_store(tmp_path / "store"), "one") as one,
        pytest.raises(StoreError, match=rf"Cannot lock .*{A}: "),
    ):
        one.take(A)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b'{"owner": "two"}', b'{"owner": "two", "expires_at": null}'],
)
def test_a_lease_that_says_nothing_blocks_nobody(expiring: Store, content: bytes) -> None:
    """Torn by a crash, or written by a program that is none of ours."""
    expiring.put_bytes(f"leases/{A}.json", content)
    with leases(expiring, "one") as one, leases(expiring, "two") as two:
        assert (one.take(A), two.take(A)) == (True, False)


@pytest.mark.parametrize("method", ["put_bytes", "get_bytes"])
def test_a_lease_that_cannot_be_asked_for_is_an_error_and_stays(
    s3_url: str, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    store = open_store(s3_url)

    def down(*arguments: object, **options: object) -> None:
        raise StoreError("down")

    with leases(store, "one") as one:
        assert one.take(A)
        key = f"leases/{A}.json"
        with monkeypatch.context() as patch, leases(store, "two") as two:
            patch.setattr(type(store), method, down)
            with pytest.raises(StoreError, match="down"):
                two.take(A)
            two.free(A)
        assert store.exists(key), "the other run's lease is not ours to free"


def test_an_attempt_of_a_living_run_is_not_closed(store: Store) -> None:
    duck = spec("a duck")
    start_attempt(store, duck, "run1")
    with leases(store, "one") as one, leases(store, "two") as two:
        assert one.take(duck.asset_id)
        assert close_interrupted(store, [duck.asset_id], two.take) == []
        assert asset_attempts(store, duck.asset_id)[0]["status"] == "running"
    with leases(store, "two") as two:
        [(closed, _)] = close_interrupted(store, [duck.asset_id], two.take)
    assert closed["status"] == "interrupted"


def test_with_broken_leases_two_runs_make_one_asset(store: Store, tmp_path: Path) -> None:
    """Both believe to have it; the second even closes the attempt of the first, which lives."""
    duck = spec("a duck")
    first = start_attempt(store, duck, "run1")["attempt"]
    for closed, manifest in close_interrupted(store, [duck.asset_id]):  # no lease is asked for
        record_attempt(store, closed, manifest)
    second = start_attempt(store, duck, "run2")["attempt"]
    mesh = {}
    for attempt in (first, second):
        mesh[attempt] = tmp_path / f"{attempt}.glb"
        mesh[attempt].write_text(f"mesh of {attempt}")

    def commit(attempt: str) -> Any:
        files = {"mesh.glb": mesh[attempt]}
        try:
            return commit_asset(store, duck.asset_id, attempt, files, duck, report(), {}, {})
        except AlreadyCommitted as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        ends = dict(zip((first, second), pool.map(commit, (first, second)), strict=True))
    winner = [a for a, end in ends.items() if not isinstance(end, AlreadyCommitted)]
    assert len(winner) == 1, ends
    for attempt in (first, second):
        won = attempt in winner
        status = "ok" if won else "cancelled"
        ended = finish_attempt(store, duck.asset_id, attempt, status)
        record_attempt(store, ended, ends[attempt] if won else {})

    marker = asset_manifest(store, duck.asset_id)
    assert marker == ends[winner[0]]
    for attempt in (first, second):
        key = f"assets/{duck.asset_id}/{attempt}/mesh.glb"
        assert store.get_bytes(key).decode() == f"mesh of {attempt}", "never overwritten"
    assert verify_store(store) == []
    rows = all_tables(store)["assets"]
    assert sorted((row["attempt"], row["status"]) for row in rows) == sorted(
        (a, "ok" if a in winner else "cancelled") for a in (first, second)
    )
    assert projection(store)["assets"].num_rows == 2
