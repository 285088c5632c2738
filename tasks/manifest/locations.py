"""Where a manifest's rows are: in one file, in all files of a folder, or in either on S3."""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from tasks.manifest.formats import READERS, ManifestError, Problem, Records, kind_of
from tasks.store import open_store
from tasks.store.interface import StoreError, bytes_digest, check_address, stream_digest

S3 = "s3://"


def read_sources(manifest: str) -> list[Records]:
    """Every file of a manifest, in the order of their names; their rows are read later.

    manifest: a file; a folder, for the manifests directly in it; s3://bucket/key or
    s3://bucket/prefix. Problems of the files stay in their records; raises ManifestError when
    there is no file to read, and StoreError for an address with credentials in it.
    """
    check_address(manifest, "the manifest's address", "s3://bucket/prefix")
    if manifest.startswith(S3):
        return _read_s3(manifest)
    if "://" in manifest:
        raise _unreadable(manifest, "is an address, and only files and s3:// are read", _DOWNLOAD)
    path = Path(manifest)
    if not os.path.isdir(path):  # False, too, when it cannot be found out
        return [_read(path)]
    try:
        paths = sorted(p for p in path.iterdir() if _is_manifest(p.name) and p.is_file())
    except OSError as error:
        raise _unreadable(manifest, str(error.strerror), "fix its permissions") from error
    if not paths:
        raise _unreadable(manifest, "holds no manifest", _ADD)
    return [_read(p) for p in paths]


def digest(sources: Sequence[Records]) -> str:
    """The SHA-256 of a manifest: of its file or, for several, of the list of theirs."""
    if len(sources) == 1:
        return sources[0].sha256
    lines = [f"{s.sha256}  {PurePosixPath(s.file).name}\n" for s in sources]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_digests(manifest: str | Path) -> list[str]:
    """The SHA-256 of each of a manifest's files, by which table `entries` knows their rows.

    Raises ManifestError for what cannot be read; the rows are not checked.
    """
    sources = read_sources(str(manifest))
    unread = [problem for source in sources if not source.sha256 for problem in source.problems]
    if unread:
        raise ManifestError(unread)
    return [source.sha256 for source in sources]


_DOWNLOAD = "download it, and give its path"
LISTED = [ending for ending in READERS if ending != ".txt"]
_ADD = f"add a file whose name ends in {', '.join(LISTED)}"


def _is_manifest(name: str) -> bool:
    """Whether a folder's file is one of its manifests. A text is only where it is named: notes."""
    return not name.startswith(".") and kind_of(name) in LISTED


def _read(path: Path) -> Records:
    records = Records(path.as_posix(), path.parent)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            fix = f"name a file that ends in {', '.join(READERS)}"
            records.add_problem(1, "file", "is not a regular file", fix)
            return records
        with path.open("rb") as content:
            records.open = partial(_reopen, path, os.fstat(content.fileno()))
            records.sha256 = stream_digest(content).sha256
    except (FileNotFoundError, NotADirectoryError):
        records.add_problem(1, "file", "does not exist", "check the path")
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
        records.add_problem(1, "file", problem, "fix its permissions")
    return records


def _reopen(path: Path, about: os.stat_result) -> BinaryIO:
    """The file again: its rows must be those whose digest is known."""
    content = path.open("rb")
    now = os.fstat(content.fileno())
    if (now.st_size, now.st_mtime_ns) != (about.st_size, about.st_mtime_ns):
        content.close()
        raise _unreadable(path.as_posix(), "was changed while it was read", "try again")
    return content


def _read_s3(manifest: str) -> list[Records]:
    bucket, _, key = manifest.removeprefix(S3).partition("/")
    single = kind_of(key) in READERS
    folder = key.rpartition("/")[0] if single else key.removesuffix("/")
    try:
        store = open_store(f"{S3}{bucket}/{folder}", writable=False, foreign=True)
        if single:
            names = [key.rpartition("/")[2]]
        else:
            names = [name for name in store.list() if "/" not in name and _is_manifest(name)]
        if not names:
            raise _unreadable(manifest, "holds no manifest", _ADD)
        files = [(store.uri(name), store.get_bytes(name)) for name in sorted(names)]
    except StoreError as error:
        raise _unreadable(manifest, error.problem, error.fix) from error
    return [
        Records(name, None, bytes_digest(data).sha256, partial(io.BytesIO, data))
        for name, data in files
    ]


def _unreadable(manifest: str, problem: str, fix: str) -> ManifestError:
    return ManifestError([Problem(manifest, None, "file", problem, fix)])
