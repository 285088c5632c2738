"""Copies of checkpoints in a store: made behind the engine's back, and never in its way."""

from __future__ import annotations

import errno
import threading
import time
from pathlib import Path

import pytest
import torch
from task_samples import make, spec

from sjc_engine.optimization import checkpoint
from sjc_engine.optimization.checkpoint import read_checkpoint, write_checkpoint
from tasks.records.verify import Finding, repair_store, verify_store
from tasks.store import checkpoints as checkpoint_copy
from tasks.store import open_store
from tasks.store.checkpoints import CheckpointCopy
from tasks.store.interface import Store, StoredFile, StoreError

DUCK = spec()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_copy, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(checkpoint_copy, "SHARE", 1e9)


def write(folder: Path, step: int) -> Path:
    """What an engine leaves in its scratch folder."""
    path = folder / f"{DUCK.field_id}.checkpoint"
    folder.mkdir(exist_ok=True)
    path.with_name(f"{path.name}.json").write_text(f'{{"seconds": {step}}}')
    write_checkpoint(path, {"x": torch.full((1000,), float(step))}, {"step": step})
    return path


def copy_of(store: Store, folder: Path) -> CheckpointCopy:
    return CheckpointCopy(store, DUCK.field_id, folder / f"{DUCK.field_id}.checkpoint")


def wait_for(store: Store, folder: Path, step: int) -> None:
    copy = copy_of(store, folder)
    for _ in range(200):
        copy.fetch()
        if copy.checkpoint.exists() and read_checkpoint(copy.checkpoint)[1]["step"] == step:
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} never came")


def test_another_scratch_folder_gets_the_last_checkpoint(store: Store, tmp_path: Path) -> None:
    copy = copy_of(store, tmp_path / "a")
    copy.offer()  # there is none yet
    for step in (5, 10):
        write(tmp_path / "a", step)
        copy.offer()
        wait_for(store, tmp_path / "b", step)
        copy.settle()
    write(tmp_path / "a", 15)
    copy.finish()
    wait_for(store, tmp_path / "b", 15)
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == [
        f"{DUCK.field_id}.checkpoint",
        f"{DUCK.field_id}.checkpoint.json",
    ]
    assert (tmp_path / "b" / f"{DUCK.field_id}.checkpoint.json").read_text() == '{"seconds": 15}'
    assert len(list((tmp_path / "a").iterdir())) == 2
    copy.remove()
    assert list(store.list()) == []


def test_what_is_not_further_or_not_whole_is_left(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    write(tmp_path / "a", 10)
    copy_of(store, tmp_path / "a").finish()
    for step, found in ((20, 20), (3, 10)):
        path = write(tmp_path / "b", step)
        copy_of(store, tmp_path / "b").fetch()
        assert read_checkpoint(path)[1]["step"] == found
    key = f"checkpoints/{DUCK.field_id}/scene.checkpoint"
    store.put_bytes(key, store.get_bytes(key)[:-1] + b"?", replace=True)
    path = write(tmp_path / "b", 3)
    copy_of(store, tmp_path / "b").fetch()
    assert read_checkpoint(path)[1]["step"] == 3


def test_nothing_waits_for_a_slow_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path / "store")
    asked, go = threading.Event(), threading.Event()
    put_file, calls = store.put_file, []

    def slow(key: str, path: Path, *, replace: bool = False) -> StoredFile:
        calls.append(key)
        asked.set()
        assert go.wait(60)
        return put_file(key, path, replace=replace)

    monkeypatch.setattr(store, "put_file", slow)
    write(tmp_path / "a", 5)
    copy = copy_of(store, tmp_path / "a")
    started = time.monotonic()
    copy.offer()
    offered = time.monotonic() - started
    assert asked.wait(60)  # the file that is copied stands still from here on
    path = write(tmp_path / "a", 10)  # the engine goes on under it
    started = time.monotonic()
    copy.offer()
    assert offered < 1
    assert time.monotonic() - started < 1
    go.set()
    copy.settle()
    assert len(calls) == 1, "one copy at a time"
    wait_for(store, tmp_path / "b", 5)
    copy.finish()
    assert len(calls) == 2
    wait_for(store, tmp_path / "b", read_checkpoint(path)[1]["step"])


def test_a_slow_store_gets_fewer_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_copy, "LEAST_SECONDS", 60.0)
    store = open_store(tmp_path / "store")
    copy = copy_of(store, tmp_path / "a")
    for step in (5, 10):
        write(tmp_path / "a", step)
        copy.offer()
        copy.settle()
    wait_for(store, tmp_path / "b", 5)
    copy.finish()
    wait_for(store, tmp_path / "b", 10)


def test_a_store_that_fails_costs_the_copy_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(tmp_path / "store")

    def broken(*_: object, **__: object) -> StoredFile:
        raise StoreError("the server is gone.")

    for method in ("put_bytes", "download", "delete"):
        monkeypatch.setattr(store, method, broken)
    path = write(tmp_path / "a", 5)
    copy = copy_of(store, tmp_path / "a")
    with pytest.raises(StoreError, match="the server is gone"):  # it may have come further
        copy.fetch()
    copy.offer()
    copy.finish()
    copy.remove()
    assert "the server is gone." in caplog.text
    assert read_checkpoint(path)[1]["step"] == 5


def test_verify_sweeps_what_a_finished_asset_left(store: Store, tmp_path: Path) -> None:
    write(tmp_path / "a", 5)
    copy_of(store, tmp_path / "a").finish()
    make(store, tmp_path, spec("a tank"), "run1")
    assert verify_store(store) == [], "the duck is not finished: its checkpoint is wanted"
    assert repair_store(store, []) == []
    make(store, tmp_path, DUCK, "run1")
    keys = [f"checkpoints/{DUCK.field_id}/scene.{end}" for end in ("checkpoint", "json")]
    findings = verify_store(store)
    assert findings == [Finding("leftover", key, "is of a finished asset") for key in keys]
    assert repair_store(store, findings) == [f"{key}: removed" for key in keys]
    assert verify_store(store) == []


def test_a_copy_that_cannot_be_read_here_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of this machine's disk says nothing about how far the copy has come."""
    store = open_store(tmp_path / "store")
    write(tmp_path / "a", 50)
    copy_of(store, tmp_path / "a").finish()

    def broken(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "read_checkpoint", broken)
        with pytest.raises(OSError, match="Input/output"):
            copy_of(store, tmp_path / "b").fetch()
    copy_of(store, tmp_path / "b").fetch()
    assert read_checkpoint(next((tmp_path / "b").glob("*.checkpoint")))[1]["step"] == 50
