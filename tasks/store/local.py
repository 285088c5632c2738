"""The local store: a directory, written through temporary files.

A write goes to a temporary name that starts with a dot, is flushed to the disk, and then appears
under its key in one step. `os.link` fails when the key exists, so that of two writers exactly one
wins and neither can overwrite the other.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO, TypeVar

from sjc_engine.files import flush_folder, is_refusal
from tasks.store.disk import disk_problem, temporary_beside
from tasks.store.interface import (
    TRANSFERS,
    AlreadyCommitted,
    Listed,
    NotInStore,
    Readable,
    StoredFile,
    StoreError,
    TakesNoMore,
    WrongBytes,
    check_key,
    damaged,
    stream_digest,
)
from tasks.store.layout import FORMAT

T = TypeVar("T")

# What file systems without hard links answer (exFAT, some network and container mounts).
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}")  # the names of `temporary_beside`


class LocalStore:
    """A store in the directory `root`. option: what named it, for messages."""

    def __init__(self, root: Path, *, writable: bool = True, option: str = "--store") -> None:
        self._option = option
        self.root = Path(os.path.abspath(root.expanduser()))
        with self._explained("use", self.root):
            if writable:
                self.root.mkdir(parents=True, exist_ok=True)
                with temporary_beside(self.root / "probe") as probe:
                    _write(probe, io.BytesIO(b"sjc"))
            elif not self.root.exists():
                fix = f"check {option}, or run `sjc run`"
                raise StoreError(f"There is no store at {self.root}", fix)
            elif not self.root.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "not a directory")
            self._folder = os.stat(self.root)
            self._is_marked = (self.root / FORMAT).exists()

    @property
    def url(self) -> str:
        return str(self.root)

    def uri(self, key: str) -> str:
        return str(self.root / check_key(key))

    def put_file(self, key: str, path: Path, *, replace: bool = False) -> StoredFile:
        with path.open("rb") as source:
            return self._put(key, source, replace)

    def put_bytes(self, key: str, data: bytes, *, replace: bool = False) -> StoredFile:
        return self._put(key, io.BytesIO(data), replace)

    def get_bytes(self, key: str) -> bytes:
        path = self._path(key)
        with self._explained("read", path):
            return self._looked_up(path, lambda: self._read(key, path))

    def _read(self, key: str, path: Path) -> bytes:
        with path.open("rb") as source:
            data = source.read()
            self._check_complete(key, source, len(data))
        return data

    def download(self, key: str, path: Path, sha256: str | None = None) -> StoredFile:
        with self._explained("read", self._path(key)):
            source = self._open(key)
        reader = _Reader(source, self._path(key), self._option)
        with source, explained("write", path, "folder"), temporary_beside(path) as temporary:
            stored = _write(temporary, reader)
            self._check_complete(key, source, stored.bytes)
            if sha256 is not None and stored.sha256 != sha256:
                problem = f"its SHA-256 is {stored.sha256} and should be {sha256}"
                raise damaged(self, key, problem)
            os.replace(temporary, path)
        return stored

    def exists(self, key: str) -> bool:
        path = self._path(key)
        with self._explained("read", path):
            try:
                return stat.S_ISREG(self._looked_up(path, path.stat).st_mode)
            except (FileNotFoundError, NotADirectoryError):
                return False

    def listed(self, key: str) -> Listed | None:
        path = self._path(key)
        with self._explained("list", path.parent):
            try:
                if path.name not in {entry.name for entry in os.scandir(path.parent)}:
                    return None
            except FileNotFoundError as error:
                raise StoreError(
                    f"Cannot list {path.parent}: the folder is not there",
                    "if a disk is missing, mount it again, and if it was deleted on purpose, delete"
                    " all of the asset",
                ) from error
        with self._explained("read", path):
            return Listed(path.lstat().st_size)

    def list(self, prefix: str = "") -> Iterator[str]:
        folder = prefix.rpartition("/")[0]
        start = self._path(folder) if folder else self.root
        with self._explained("list", start):
            for key in self._walk(start, f"{folder}/" if folder else ""):
                if key.startswith(prefix):
                    yield key

    def names(self, folder: str) -> Sequence[str]:
        path = self._path(folder)
        with self._explained("list", path):
            return self._names(path)

    def move(self, key: str, to: str) -> None:
        path, target = self._path(key), self._path(to)
        with self._explained("move", path):
            self._check_folder()
            target.parent.mkdir(parents=True, exist_ok=True)
            os.rename(path, target)
            flush_folder(target.parent)

    def delete(self, key: str) -> None:
        with self._explained("delete", self._path(key)):
            self._path(key).unlink(missing_ok=True)

    def leftovers(self, older: timedelta, *, remove: bool) -> Sequence[str]:
        found = []
        with self._explained("list", self.root):
            for path in sorted(self.root.rglob(".*")):
                age = time.time() - path.lstat().st_mtime
                if _TEMPORARY.fullmatch(path.name) and age > older.total_seconds():
                    found.append(path.relative_to(self.root).as_posix())
                    if remove:
                        path.unlink(missing_ok=True)
        return found

    def _path(self, key: str) -> Path:
        path = self.root / check_key(key)
        # A valid key cannot climb out by itself; a symbolic link inside the store could. Without a
        # link there is nothing to resolve, which takes longer.
        place = str(self.root)
        for name in key.split("/"):
            place = f"{place}/{name}"
            if os.path.islink(place) and not self._is_inside(path):
                problem = f"{path} leaves the store through a symbolic link"
                raise StoreError(problem, "remove the link")
        return path

    def _is_inside(self, path: Path) -> bool:
        try:
            return path.resolve().is_relative_to(self.root.resolve())
        except RuntimeError:  # a link that leads to itself
            return False

    def _open(self, key: str) -> BinaryIO:
        path = self._path(key)
        return self._looked_up(path, lambda: path.open("rb"))

    def _looked_up(self, path: Path, look: Callable[[], T]) -> T:
        """What `look` finds at `path`; that it is not there is believed of its folder alone.

        A network mount that comes and goes knows a name in one call and not in the next, and NFS
        loses an open file that another machine replaces, as leases are.
        """
        for _ in range(TRANSFERS):
            try:
                return look()
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
                    raise
                if path == self.root or not self._is_listed(path):
                    raise
        raise self._hidden(path)

    def _is_listed(self, path: Path) -> bool:
        """Whether its folder lists `path`, and if that is not there the folder above it, and so on.

        A folder that is listed and not found is an error, as is a store that is gone.
        """
        self._check_folder()
        for _ in range(TRANSFERS):  # another process may make the folder between two looks
            try:
                return path.name in {entry.name for entry in os.scandir(path.parent)}
            except NotADirectoryError:
                return False
            except FileNotFoundError as error:
                if path.parent == self.root:
                    raise self._gone() from error
                if not self._is_listed(path.parent):
                    return False
        raise self._hidden(path.parent)

    def _walk(self, folder: Path, prefix: str) -> Iterator[str]:
        """Keys of the files under `folder`, in the order in which S3 lists them."""
        for name in self._names(folder):
            if name.endswith("/"):
                yield from self._walk(folder / name, prefix + name)
            else:
                yield prefix + name

    def _names(self, folder: Path) -> Sequence[str]:
        """As `names`; nothing in a folder that is not there, if the one above it agrees."""
        try:
            entries = self._looked_up(folder, lambda: tuple(os.scandir(folder)))
        except (FileNotFoundError, NotADirectoryError):
            return ()
        names = []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                names.append(f"{entry.name}/")
            elif entry.is_file(follow_symlinks=False):
                names.append(entry.name)
        return sorted(names)

    def _check_folder(self) -> None:
        """Raises `StoreError` unless the store's folder is the one that was opened.

        It may be mounted again, or be a link to where it has moved, but not the empty place of a
        disk that is not mounted: the store would begin anew there. `FORMAT` marks a store.
        """
        if not self._is_marked:
            return
        try:
            folder = os.stat(self.root)
        except FileNotFoundError as error:
            raise self._gone() from error
        if not os.path.samestat(folder, self._folder):
            if not (self.root / FORMAT).exists():
                raise self._gone()
            self._folder = folder

    def _gone(self) -> StoreError:
        return StoreError(
            f"The store's folder {self.root} is gone",
            f"mount its disk again or check {self._option}",
        )

    def _hidden(self, path: Path) -> StoreError:
        problem = f"Cannot read {path}: its folder lists it and it cannot be opened"
        return StoreError(problem, "check the disk")

    def _check_complete(self, key: str, source: BinaryIO, size: int) -> None:
        """Raises `WrongBytes` if the file was not read to its end."""
        whole = os.fstat(source.fileno()).st_size
        if size != whole:
            raise WrongBytes(
                f"Cannot read {self.uri(key)}: only {size:,} of its {whole:,} bytes arrive",
                "check the disk and try again",
            )

    def _explained(self, verb: str, path: Path) -> contextlib.AbstractContextManager[None]:
        """The operating system's errors about a file of the store as `StoreError`s."""
        return explained(verb, path, self._option)

    def _put(self, key: str, source: BinaryIO, replace: bool) -> StoredFile:
        path = self._path(key)
        with self._explained("write", path), temporary_beside(path) as temporary:
            self._check_folder()
            path.parent.mkdir(parents=True, exist_ok=True)
            stored = _write(temporary, source)
            self._check_folder()
            if replace:
                os.replace(temporary, path)
            elif not _appear(temporary, path):
                with path.open("rb") as existing:
                    found = stream_digest(existing)
                    self._check_complete(key, existing, found.bytes)
                    if found != stored:
                        raise AlreadyCommitted(
                            f"{path} is already committed with other content",
                            "nothing was changed, use a new attempt",
                        )
            flush_folder(path.parent)
        self._is_marked |= key == FORMAT
        return stored


def _write(path: Path, source: Readable) -> StoredFile:
    """Copy `source` to a new file, flushed to the disk."""
    with path.open("xb") as target:
        stored = stream_digest(source, copy_to=target)
        target.flush()
        os.fsync(target.fileno())
    return stored


def _appear(temporary: Path, path: Path) -> bool:
    """Give `temporary` the name `path` unless that name is taken; whether it was free."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # Without hard links two writers may both see a free name and the later one stays. The
        # store is still right: each writer's manifest names its own attempt's files.
        if path.exists():
            return False
        os.replace(temporary, path)
    return True


class _Reader:
    """A file whose errors are those of reading it, while it is copied to another."""

    def __init__(self, file: BinaryIO, path: Path, option: str) -> None:
        self._file, self._path, self._option = file, path, option

    def read(self, size: int, /) -> bytes:
        with explained("read", self._path, self._option):
            return self._file.read(size)


@contextlib.contextmanager
def explained(verb: str, path: Path, option: str) -> Iterator[None]:
    """Turn the operating system's error into one sentence with the fix."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError) and verb in ("read", "move"):
            problem = f"Cannot {verb} {path}: it does not exist"
            raise NotInStore(problem, f"check {option}") from error
        refused = verb == "write" and option != "folder" and is_refusal(error)
        kind = TakesNoMore if refused else StoreError
        problem, fix = disk_problem(error, option)
        raise kind(f"Cannot {verb} {path}: {problem}", fix) from error
