"""A finished dataset as a repository of the Hugging Face hub."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.datasets.export import OnCopied
from tasks.datasets.freeze import MANIFEST, SUMS, UNFINISHED
from tasks.datasets.select import SelectionError
from tasks.records.documents import read_document
from tasks.store import open_store
from tasks.store.interface import NotInStore, StoredFile, StoreError, stream_digest

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
COMMIT_FILES = 1000  # of one commit: the hub answers larger ones slowly, or not at all
UPLOADED_TOGETHER = 20  # files, between two reports
OWN = ".gitattributes"  # which the hub makes


@dataclass(frozen=True)
class Pushed:
    """Where the dataset is on the hub, its number of files, and whether it was there before."""

    url: str
    files: int
    was_there: bool


def push(folder: Path, repository: str, *, private: bool, on_progress: OnCopied) -> Pushed:
    """Uploads a dataset of `freeze` to OWNER/NAME, in place of an earlier one. Resumes.

    Raises `SelectionError` for what is no finished dataset, or a repository that holds anything
    else, and `StoreError` for a damaged file or when the hub refuses or cannot be reached.
    """
    if not REPOSITORY.fullmatch(repository):
        raise SelectionError(f"{repository!r} is no repository; write OWNER/NAME")
    sizes = _verified(folder)
    from huggingface_hub import CommitOperationAdd, HfApi

    with _hub_errors(repository):
        api = HfApi(library_name="sjc-foundry")
        url = str(api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True))
        there = _listed(api, repository)
        foreign = there.keys() - {OWN}
        if foreign and not {MANIFEST, SUMS} <= foreign and UNFINISHED not in foreign:
            raise SelectionError(f"{repository} holds other files; name another repository")
        if there.get(MANIFEST) == _git_digest((folder / MANIFEST).read_bytes()):
            return Pushed(url, len(sizes), was_there=True)
        additions = [CommitOperationAdd(key, folder / key) for key in sizes]
        stale, replaces = foreign - sizes.keys(), MANIFEST in foreign
        _upload(api, repository, additions, stale, replaces, on_progress)
    return Pushed(url, len(sizes), was_there=False)


def _verified(folder: Path) -> dict[str, int]:
    """The size of each file, `manifest.json` last; all are what that says they are."""
    try:
        document = read_document(open_store(folder, writable=False), MANIFEST)
        files = {key: StoredFile(**about) for key, about in document["files"].items()}
    except (NotInStore, KeyError, TypeError) as error:
        raise SelectionError(
            f"{folder} is no finished dataset; `sjc curate -o {folder}` makes one"
        ) from error
    for key, stored in files.items():
        try:
            with (folder / key).open("rb") as file:
                found = stream_digest(file)
        except OSError as error:
            raise StoreError(f"{folder / key} cannot be read: {error.strerror}", _REMAKE) from error
        if found != stored:
            raise StoreError(f"{folder / key} is not what SHA256SUMS says", _REMAKE)
    return {key: file.bytes for key, file in files.items()} | {
        MANIFEST: (folder / MANIFEST).stat().st_size
    }


_REMAKE = "delete the folder and run `sjc curate` again"


def _git_digest(data: bytes) -> str:
    """A file's name among git's objects."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _listed(api: HfApi, repository: str) -> dict[str, str]:
    """What is in the repository: git's digest of each file."""
    found = api.list_repo_tree(repository, repo_type="dataset", recursive=True)
    return {entry.path: entry.blob_id for entry in found if hasattr(entry, "blob_id")}


def _upload(
    api: HfApi,
    repository: str,
    additions: Sequence[CommitOperationAdd],
    stale: set[str],
    replaces: bool,
    on_progress: OnCopied,
) -> None:
    """Commits of some files each. Until the last, `unfinished.json` stands for `manifest.json`.

    stale: files of the repository that the dataset does not have. replaces: whether it holds a
    finished dataset.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    parts = _slices(additions, COMMIT_FILES)
    total = sum(addition.upload_info.size for addition in additions)
    files = written = 0
    for number, part in enumerate(parts, 1):
        for some in _slices(part, UPLOADED_TOGETHER):
            sizes = [addition.upload_info.size for addition in some]
            api.preupload_lfs_files(repository, some, repo_type="dataset")
            files, written = files + len(some), written + sum(sizes)
            on_progress(files, len(additions), written, total)
        more: list[Any] = []
        if number < len(parts):
            more.append(CommitOperationAdd(UNFINISHED, b"{}\n"))
            gone = {MANIFEST} if number == 1 and replaces else set()
        else:
            gone = stale | {UNFINISHED} if number > 1 else stale
        more += [CommitOperationDelete(key) for key in sorted(gone)]
        message = "Dataset" if len(parts) == 1 else f"Dataset, part {number} of {len(parts)}"
        api.create_commit(repository, [*part, *more], commit_message=message, repo_type="dataset")


def _slices(items: Sequence[Any], size: int) -> list[Any]:
    return [items[start : start + size] for start in range(0, len(items), size)]


@contextmanager
def _hub_errors(repository: str) -> Iterator[None]:
    """What the hub answers, as a `StoreError`."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    unreachable: Any = HfHubHTTPError.__bases__[0]  # of whichever HTTP client it uses
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise StoreError("HF_HUB_OFFLINE keeps the hub away", "unset it") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        problem = error.server_message or f"it answers HTTP {status}"
        fix = "run the same command again to continue"
        if status in (401, 403):
            fix = f"`hf auth login`, or set HF_TOKEN, as who may write to {repository}"
        raise StoreError(f"The hub refuses {repository}: {problem}", fix) from error
    except (unreachable, ConnectionError) as error:
        problem = f"The hub cannot be reached: {error or type(error).__name__}"
        raise StoreError(problem, "run the same command again to continue") from error
    except RuntimeError as error:  # one file's upload; its cause is any of the above
        problem = f"{error} ({error.__cause__})"
        raise StoreError(problem, "run the same command again to continue") from error
    except ValueError as error:  # the card, or the repository's name
        raise SelectionError(f"{repository}: {error}") from error
