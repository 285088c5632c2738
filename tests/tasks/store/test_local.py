"""The store's contract, on both back ends, and the local store against a hostile system."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import resource
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sjc_engine.files import write_atomically
from tasks.store import local as store_local
from tasks.store import open_store
from tasks.store.interface import (
    AlreadyCommitted,
    Damaged,
    NotInStore,
    Store,
    StoredFile,
    StoreError,
    TakesNoMore,
    WrongBytes,
    damaged,
)

ROOT = Path(__file__).parents[3]


def digest(data: bytes) -> StoredFile:
    return StoredFile(len(data), hashlib.sha256(data).hexdigest())


def test_a_file_comes_back_as_it_went(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(3_000_001))
    stored = store.put_file("assets/ab/a01/mesh.glb", source)
    assert stored == digest(source.read_bytes())
    assert store.download("assets/ab/a01/mesh.glb", tmp_path / "copy", stored.sha256) == stored
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()
    assert store.get_bytes("assets/ab/a01/mesh.glb") == source.read_bytes()
    assert sorted(p.name for p in tmp_path.glob(".*")) == []


def test_an_empty_file_is_a_file(store: Store) -> None:
    assert store.put_bytes("empty", b"") == digest(b"")
    assert store.get_bytes("empty") == b""
    assert store.exists("empty")


def test_a_committed_file_is_never_overwritten(store: Store, tmp_path: Path) -> None:
    first = store.put_bytes("assets/ab/manifest.json", b"first")
    with pytest.raises(AlreadyCommitted, match="already committed"):
        store.put_bytes("assets/ab/manifest.json", b"second")
    assert store.get_bytes("assets/ab/manifest.json") == b"first"
    assert store.put_bytes("assets/ab/manifest.json", b"first") == first, "a repeat is no change"
    store.put_bytes("assets/ab/manifest.json", b"third", replace=True)
    assert store.get_bytes("assets/ab/manifest.json") == b"third"
    (tmp_path / "fourth").write_bytes(b"fourth")
    with pytest.raises(AlreadyCommitted, match="already committed"):
        store.put_file("assets/ab/manifest.json", tmp_path / "fourth")
    store.put_file("assets/ab/manifest.json", tmp_path / "fourth", replace=True)
    assert store.get_bytes("assets/ab/manifest.json") == b"fourth"


def test_one_of_eight_writers_wins(store: Store) -> None:
    barrier, outcomes = threading.Barrier(8), []

    def write(number: int) -> None:
        barrier.wait()
        try:
            store.put_bytes("race/manifest.json", b"%d" % number * 100_000)
            outcomes.append(number)
        except AlreadyCommitted:
            pass

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 1
    assert store.get_bytes("race/manifest.json") == b"%d" % outcomes[0] * 100_000
    assert list(store.list()) == ["race/manifest.json"]


def test_listing_is_by_prefix_in_order_without_temporary_files(store: Store) -> None:
    keys = ["a-b/x", "a.json", "a/a01/views/1.png", "a/a01/x", "a/a02/x", "ab/x", "b"]
    for key in reversed(keys):
        store.put_bytes(key, b"x")
    assert list(store.list()) == keys
    assert list(store.list("a/")) == keys[2:5]
    assert list(store.list("a/a0")) == keys[2:5]
    assert list(store.list("a/a01/v")) == keys[2:3]
    assert list(store.list("nothing/")) == []
    store.delete("a/a01/x")
    store.delete("a/a01/x")
    assert list(store.list("a/a01")) == keys[2:3]
    assert not store.exists("a/a01/x")


def test_the_names_in_a_folder_are_its_files_and_folders(store: Store) -> None:
    for key in ("a/b", "a/a01/views/1.png", "a/a01/x", "a/a-b/x", "a/c.json", "ab/x", "a2"):
        store.put_bytes(key, b"x")
    assert list(store.names("a")) == ["a-b/", "a01/", "b", "c.json"]
    assert list(store.names("a/a01")) == ["views/", "x"]
    assert list(store.names("nothing/at/all")) == []


def test_missing_keys_say_so(store: Store, tmp_path: Path) -> None:
    assert not store.exists("assets/ab/manifest.json")
    with pytest.raises(NotInStore, match=r"assets/ab/manifest\.json"):
        store.get_bytes("assets/ab/manifest.json")
    with pytest.raises(NotInStore):
        store.download("assets/ab/manifest.json", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    store.delete("assets/ab/manifest.json")  # as is wanted


BAD_KEYS = ["", "/etc/passwd", "../x", "a/../x", "a//b", "a/", ".", "..", ".tmp", "a/.b", "a b"]
BAD_KEYS += ["a\0b", "a\\b", "a\nb", "a\n", "c:x", "a?b", "é", "x" * 300, "*"]


def test_keys_cannot_leave_the_store(store: Store, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x")
    calls: list[Callable[[str], object]] = [
        lambda key: store.put_bytes(key, b"x"),
        lambda key: store.put_file(key, tmp_path / "source"),
        lambda key: store.get_bytes(key),
        lambda key: store.download(key, tmp_path / "copy"),
        lambda key: store.exists(key),
        lambda key: store.delete(key),
        lambda key: store.uri(key),
    ]
    for key in BAD_KEYS:
        for call in calls:
            with pytest.raises(StoreError, match="not a valid key"):
                call(key)
    assert list(store.list()) == []


def test_a_file_moves_to_wherever_it_is_put(store: Store) -> None:
    store.put_bytes("a/x", b"content")
    store.move("a/x", "aside/of/a/x")
    assert list(store.list()) == ["aside/of/a/x"]
    assert store.get_bytes("aside/of/a/x") == b"content"
    with pytest.raises(NotInStore):
        store.move("a/x", "b")


@pytest.mark.parametrize(
    ("verb", "option", "kind"),
    [
        ("write", "--store", TakesNoMore),
        ("write", "folder", StoreError),
        ("read", "-o", StoreError),
    ],
)
def test_only_a_store_that_is_full_takes_no_more(
    tmp_path: Path, verb: str, option: str, kind: type[StoreError]
) -> None:
    with (
        pytest.raises(StoreError, match=f"^Cannot {verb} {tmp_path}: ") as caught,
        store_local.explained(verb, tmp_path, option),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert type(caught.value) is kind


def test_what_writers_left_behind_is_found_in_order_and_when_it_is_old(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    now = time.time()
    names = [f"{folder}.x.{number:08x}" for folder in ("", "a/", "b/c/") for number in range(5)]
    for name in [*names, ".x.0000000g", "x.00000000"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
        os.utime(path, (now - 100, now - 100))
    assert store.leftovers(timedelta(seconds=200), remove=True) == []
    assert store.leftovers(timedelta(seconds=50), remove=False) == sorted(names)
    assert store.leftovers(timedelta(seconds=50), remove=True) == sorted(names)
    assert store.leftovers(timedelta(0), remove=False) == []


def test_a_download_with_another_hash_leaves_nothing(store: Store, tmp_path: Path) -> None:
    store.put_bytes("mesh.glb", b"right")
    with pytest.raises(StoreError, match=r"damaged.*sjc verify --repair"):
        store.download("mesh.glb", tmp_path / "copy", digest(b"wrong").sha256)
    assert not (tmp_path / "copy").exists()
    assert sorted(p.name for p in tmp_path.glob(".*")) == []


def test_a_store_reopens_by_its_url(store: Store) -> None:
    store.put_bytes("x", b"x")
    assert open_store(store.url, writable=False).get_bytes("x") == b"x"
    assert store.uri("a/b").endswith("/a/b")
    assert store.uri("a/b").startswith(store.url)


def test_symbolic_links_cannot_leave_the_store(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    store = open_store(tmp_path / "store")
    (tmp_path / "store" / "assets").symlink_to(tmp_path / "outside")
    (tmp_path / "store" / "runs.json").symlink_to(tmp_path / "outside" / "secret")
    with pytest.raises(StoreError, match="symbolic link"):
        store.get_bytes("assets/secret")
    with pytest.raises(StoreError, match="symbolic link"):
        store.put_bytes("assets/new", b"x")
    assert list(store.list()) == []


def test_symbolic_links_within_the_store_are_followed_and_not_listed(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    store.put_bytes("disk2/0123/x", b"content")
    (tmp_path / "store" / "assets").symlink_to(tmp_path / "store" / "disk2")
    (tmp_path / "store" / "last").symlink_to(tmp_path / "store" / "disk2" / "0123" / "x")
    assert store.get_bytes("assets/0123/x") == store.get_bytes("last") == b"content"
    store.put_bytes("assets/0123/y", b"more")
    assert list(store.list()) == ["disk2/0123/x", "disk2/0123/y"]


def test_a_file_is_not_a_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        for writable in (True, False):
            with pytest.raises(StoreError, match=r"Cannot use|no store"):
                open_store(path, writable=writable)


def test_writing_makes_a_store_with_the_folders_above_it(tmp_path: Path) -> None:
    for _ in range(2):
        open_store(tmp_path / "a" / "b").put_bytes("x/y", b"content")
    assert (tmp_path / "a" / "b" / "x" / "y").read_bytes() == b"content"


def test_reading_does_not_make_a_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no store at .*typo"):
        open_store(tmp_path / "typo", writable=False)
    assert not (tmp_path / "typo").exists()


@pytest.mark.parametrize("url", ["gs://bucket/x", "http://x/y", "file:///tmp/x"])
def test_other_schemes_are_refused(url: str) -> None:
    with pytest.raises(StoreError, match="directory or s3://bucket/prefix"):
        open_store(url)


def test_an_unwritable_directory_is_found_at_once() -> None:
    code = (
        "import os, sys; from tasks.store import *\n"
        "if os.getuid() == 0: os.setuid(65534)  # root may write anywhere\n"
        "try: open_store(sys.argv[1])\n"
        "except StoreError as error: sys.exit(str(error))"
    )
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to others
        os.chmod(folder, 0o555)
        result = subprocess.run(
            [sys.executable, "-c", code, folder], capture_output=True, text=True, cwd=ROOT
        )
    assert "permission denied; fix its permissions or choose another --store" in result.stderr
    assert result.returncode == 1


def test_a_disk_that_takes_nothing_is_found_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StoreError, match=rf"Cannot use {tmp_path}/store: "):
        open_store(tmp_path / "store")
    assert list(open_store(tmp_path / "store", writable=False).list()) == []
    assert list((tmp_path / "store").iterdir()) == []


def test_a_full_disk_keeps_what_was_there(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from tasks.store import *\n"
        "store = open_store(sys.argv[1])\n"
        "store.put_bytes('before', b'x' * 1000)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try: store.put_bytes('big', b'x' * 100_000)\n"
        "except StoreError as error: sys.exit(str(error))"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 50_000
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=ROOT
    )
    assert "file size limit" in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["before"], "no temporary file stays behind"


def test_without_hard_links_the_rule_still_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(store_local.os, "link", no_links)
    store = open_store(tmp_path)
    store.put_bytes("x", b"first")
    with pytest.raises(AlreadyCommitted):
        store.put_bytes("x", b"second")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_name_appears_once_its_content_is_on_the_disk_and_is_then_flushed_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, steps = open_store(tmp_path / "store"), list[str]()

    def note(name: str) -> None:
        real = getattr(os, name)

        def call(*args: Any) -> None:
            found = os.fstat(args[0]) if name == "fsync" else None
            folder = found and stat.S_ISDIR(found.st_mode)
            assert folder or found is None or found.st_size == 1, "it is still in memory"
            steps.append("fsync of the folder" if folder else name)
            real(*args)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "link", "replace", "rename"):
        note(name)
    store.put_bytes("a/one", b"1")
    assert steps == ["fsync", "link", "fsync of the folder"]
    steps.clear()
    store.put_bytes("a/one", b"2", replace=True)
    assert steps == ["fsync", "replace", "fsync of the folder"]
    steps.clear()
    store.move("a/one", "b/one")
    assert steps == ["rename", "fsync of the folder"]
    steps.clear()
    write_atomically(tmp_path / "file", b"3")
    assert steps == ["fsync", "replace", "fsync of the folder"]


def test_a_killed_write_leaves_no_visible_file(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from tasks.store import local as store_local\n"
        "store = store_local.LocalStore(Path(sys.argv[1]))\n"
        "store_local.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "store.put_bytes('a/manifest.json', b'x' * 100_000)"
    )
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    assert result.returncode == -9
    store = open_store(tmp_path)
    assert list(store.list()) == []
    store.put_bytes("a/manifest.json", b"next run")
    assert list(store.list()) == ["a/manifest.json"]


# --- a folder that is not what it was ---------------------------------------------------------


@pytest.mark.parametrize("folder", ["assets", "assets/0123", "assets/0123/a01"])
def test_a_folder_that_is_listed_and_not_found_is_no_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    """As a network mount may answer that comes and goes."""
    store = open_store(tmp_path / "store")
    store.put_bytes("assets/0123/a01/mesh.glb", b"content")
    scan = os.scandir

    def lost(path: Any = ".") -> Any:
        if Path(path) == tmp_path / "store" / folder:
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", lost)
    with pytest.raises(StoreError, match="its folder lists it and it cannot be opened"):
        list(store.list("assets/"))
    assert list(store.list("tables/")) == []


@pytest.mark.parametrize("look", [1, 2, 3])
def test_a_folder_that_appears_between_two_looks_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: int
) -> None:
    """As when another thread or process writes the first file of the store or of an asset."""
    store = open_store(tmp_path / "store")
    scan, looks = os.scandir, 0

    def scanned(path: Any = ".") -> Any:
        nonlocal looks
        looks += 1
        if looks == look + 1:
            store.put_bytes("assets/0123/a01/mesh.glb", b"content")
        return scan(path)

    monkeypatch.setattr(os, "scandir", scanned)
    assert not store.exists("assets/0123/a01/preview.png")
    assert list(store.list("assets/0123/a01/")) in ([], ["assets/0123/a01/mesh.glb"])
    assert looks > look


def test_what_cannot_be_written_is_no_missing_file(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    store.put_bytes("x", b"content")
    with pytest.raises(StoreError, match="Cannot write") as caught:
        store.download("x", tmp_path / "gone" / "x")
    assert not isinstance(caught.value, Damaged | NotInStore)


def test_a_store_whose_folder_goes_away_is_not_empty(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    store.put_bytes("a/x", b"content")
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=r"store's folder .* is gone; mount") as caught:
        store.get_bytes("a/x")
    assert not isinstance(caught.value, Damaged | NotInStore)


def test_errors_survive_a_process(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    error = pickle.loads(pickle.dumps(damaged(store, "x", "it is torn")))
    assert (type(error), error.flaw) == (Damaged, "it is torn")
    assert "x is damaged (it is torn); mend" in str(error)


def test_a_file_that_does_not_arrive_whole_is_no_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from a mount that is lost while it is read."""
    store, real = open_store(tmp_path / "store"), os.fstat
    store.put_bytes("x", b"content")
    reads: list[Callable[[], object]] = [
        lambda: store.get_bytes("x"),
        lambda: store.download("x", tmp_path / "copy"),
        lambda: store.put_bytes("x", b"content"),
    ]
    monkeypatch.setattr(os, "fstat", lambda file: SimpleNamespace(st_size=real(file).st_size + 1))
    for read in reads:
        with pytest.raises(WrongBytes, match="only 7 of its 8 bytes arrive"):
            read()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]


def test_a_file_that_another_machine_replaces_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS loses the open file; by its name there is the new one."""
    store = store_local.LocalStore(tmp_path / "store")
    store.put_bytes("leases/a.json", b"new")
    read, stale = store_local.LocalStore._read, [OSError(errno.ESTALE, "Stale file handle")]

    def replaced(*arguments: Any) -> bytes:
        if stale:
            raise stale.pop()
        return read(*arguments)

    monkeypatch.setattr(store_local.LocalStore, "_read", replaced)
    assert store.get_bytes("leases/a.json") == b"new"


def test_the_empty_place_of_a_store_whose_disk_is_gone_stays_empty(tmp_path: Path) -> None:
    root, away = tmp_path / "store", tmp_path / "away"
    store = open_store(root)
    store.put_bytes("store.json", b"{}")
    store.put_bytes("runs/one.json", b"{}")
    root.rename(away)
    for make_place in (lambda: None, root.mkdir):
        make_place()
        for use in (
            lambda: store.put_bytes("runs/two.json", b"{}"),
            lambda: store.get_bytes("runs/one.json"),
            lambda: store.exists("runs/one.json"),
            lambda: store.move("runs/one.json", "aside/one.json"),
            lambda: list(store.list("runs/")),
            lambda: store.names("runs"),
        ):
            with pytest.raises(StoreError, match="is gone; mount its disk again") as raised:
                use()
            assert type(raised.value) is StoreError, "nothing is known about the file"
        assert not root.exists() or list(root.iterdir()) == []
    root.rmdir()
    root.symlink_to(away)  # the store has moved, and is known by its store.json
    store.put_bytes("runs/two.json", b"{}")
    assert sorted(store.list("runs/")) == ["runs/one.json", "runs/two.json"]


def test_a_file_of_a_store_whose_disk_goes_away_while_it_is_written_has_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, write = tmp_path / "store", store_local._write
    store = open_store(root)
    store.put_bytes("store.json", b"{}")

    def late(path: Path, source: Any) -> StoredFile:
        root.rename(tmp_path / "away")
        (root / "runs").mkdir(parents=True)
        return write(path, source)

    monkeypatch.setattr(store_local, "_write", late)
    with pytest.raises(StoreError, match="is gone; mount its disk again"):
        store.put_bytes("runs/one.json", b"{}")
    assert list((root / "runs").iterdir()) == []
