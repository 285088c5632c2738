"""Where everything is in a store: every key, once."""

from __future__ import annotations

import re

FORMAT = "store.json"
ASSETS, RUNS, CHECKPOINTS, ANNOTATIONS = "assets/", "runs/", "checkpoints/", "annotations/"
MARKER, TOMBSTONE = "manifest.json", "pruned.json"  # of an asset that is finished, and pruned

ASSET_ID = re.compile(r"[0-9a-f]{16}")
ATTEMPT = re.compile(r"a\d{2,}")
ATTEMPT_FILE = re.compile(r"assets/[0-9a-f]{16}/a\d{2,}/.+")
# Of an attempt: its document, or what is left of one that was set aside.
_ATTEMPT_DOCUMENT = re.compile(r"assets/[0-9a-f]{16}/a\d{2,}/attempt\.(json|(.+\.)?damaged)")
_RUN = re.compile(r"runs/([^/]+)\.json")
_ANNOTATIONS = re.compile(r"annotations/([0-9a-f]{16})\.json")


def asset_folder(asset_id: str) -> str:
    return f"{ASSETS}{asset_id}"


def marker_key(asset_id: str) -> str:
    """Of the commit marker."""
    return file_key(asset_id, MARKER)


def tombstone_key(asset_id: str) -> str:
    """Of what the commit marker becomes when the asset is pruned."""
    return file_key(asset_id, TOMBSTONE)


def file_key(asset_id: str, name: str) -> str:
    """Of a file as a commit marker names it, such as "a01/mesh.glb"."""
    return f"{ASSETS}{asset_id}/{name}"


def attempt_key(asset_id: str, attempt: str) -> str:
    return file_key(asset_id, f"{attempt}/attempt.json")


def is_attempt_document(key: str) -> bool:
    """Whether it is an `attempt.json`, or one that was set aside."""
    return _ATTEMPT_DOCUMENT.fullmatch(key) is not None


def attempt_number(key: str) -> int:
    """3 for "a03", and for a key of this attempt."""
    name = key.split("/")[2] if "/" in key else key
    return int(name.removeprefix("a"))


def run_key(run_id: str) -> str:
    return f"{RUNS}{run_id}.json"


def run_of(key: str) -> str | None:
    """The run whose document has this key, None if none."""
    found = _RUN.fullmatch(key)
    return found[1] if found else None


def picture_key(run_id: str) -> str:
    return f"{RUNS}{run_id}.png"


def report_key(run_id: str) -> str:
    return f"{RUNS}{run_id}/report.html"


def annotations_key(digest: str) -> str:
    return f"{ANNOTATIONS}{digest}.json"


def annotations_of(key: str) -> str | None:
    """The digest in the key of a document of annotations, None of any other key."""
    found = _ANNOTATIONS.fullmatch(key)
    return found[1] if found else None


def checkpoint_keys(field_id: str) -> tuple[str, str]:
    """Of the notes beside a checkpoint, and of itself."""
    return f"{CHECKPOINTS}{field_id}/scene.json", f"{CHECKPOINTS}{field_id}/scene.checkpoint"


def lease_key(asset_id: str) -> str:
    return f"leases/{asset_id}.json"


def plan_key(plan_id: str) -> str:
    return f"plans/{plan_id}.parquet"


def image_key(sha256: str) -> str:
    """Of a picture that a plan's assets start from."""
    return f"plans/images/{sha256}"
