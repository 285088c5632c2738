"""Files of a store with mistakes in them, and what the readers make of those.

    python tests/support/store_fuzzer.py [--seed 0] [--count 20000]

A bucket may hold anything. Each case is a real file of a small store with changed bytes, or with
odd values in its JSON; it must be read, so that its rows fit the tables, or be refused with an
error of this program, in bounded memory.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import struct
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from task_samples import fill, make, spec

from sjc_engine.fields.kinds import load_field
from sjc_engine.fields.voxel import VoxelField
from sjc_engine.mesh.gltf import Mesh, read_mesh
from sjc_engine.optimization.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from tasks.records import documents
from tasks.store import layout, open_store
from tasks.store.interface import Store, StoreError
from tasks.tables.projection import rows_of_attempt, rows_of_run
from tasks.tables.read import read_file
from tasks.tables.schemas import to_arrow

ODD: tuple[Any, ...] = (
    None, True, -1, 0, 300, 2**31, 2**63, 2**70, 1e308, -0.5, "", "x", "a\0b", "\ud800", "../x",
    [], {},
    [None], [[1]], {"": 0}, "9" * 400, "2026-13-01T00:00:00+00:00", "0001-01-01T00:00:00+23:59",
)  # fmt: skip
Read = Callable[[Path], object]  # of the file there


@dataclass
class Tally:
    read: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    megabytes: float = 0.0  # more memory than before


def fuzz(folder: Path, count: int, seed: int) -> Tally:
    """Tries so many files, in a store that is made in the folder."""
    files, tally, rng = _files(folder), Tally(), random.Random(seed)
    for path, (read, _) in files.items():
        read(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        path, (read, refusals) = rng.choice(list(files.items()))
        whole = path.read_bytes()
        path.write_bytes(changed(rng, whole))
        name = path.relative_to(folder).as_posix()
        kind = path.name if "tables" not in path.parts else path.parts[-3]
        try:
            read(path)
            tally.read[kind] += 1
        except refusals:
            tally.refused[kind] += 1
        except Exception as error:  # this is what the fuzzer looks for
            tally.violations.append(f"{number}: {name}: {type(error).__name__}: {error}")
        finally:
            path.write_bytes(whole)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tally.megabytes = (used - before) / 1024
    return tally


def changed(rng: random.Random, data: bytes) -> bytes:
    """Bytes flipped, cut, put in or doubled, or a value of the JSON in it replaced."""
    start = data.find(b"{")
    if start >= 0 and rng.random() < 0.5:
        text, end = _first_json(data[start:])
        if text is not None:
            new = json.dumps(_with_odd_value(rng, text)).encode()
            return _resized(data, start, start + end, new)
    changes = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 3, 9))):
        at = rng.randrange(len(changes) + 1)
        until = min(len(changes), at + rng.choice((1, 1, 4, 64)))
        match rng.randrange(5):
            case 0:
                changes[at:until] = rng.randbytes(until - at)
            case 1:
                del changes[at:until]
            case 2:
                changes[at:at] = rng.randbytes(rng.choice((1, 4, 64)))
            case 3:
                changes[at:until] = changes[at:until] * 2
            case _:
                del changes[at:]
    return bytes(changes)


def _first_json(data: bytes) -> tuple[Any, int]:
    try:
        text = data.decode("utf-8", "replace")
        value, end = json.JSONDecoder().raw_decode(text)
    except ValueError:
        return None, 0
    return value, len(text[:end].encode("utf-8"))


def _with_odd_value(rng: random.Random, value: Any) -> Any:
    """The document with a value replaced, here or in JSON within it, or without a key."""
    if isinstance(value, str) and value.startswith("{"):
        return json.dumps(_with_odd_value(rng, json.loads(value)))
    inner = value if isinstance(value, dict | list) else []
    if not inner or rng.random() < 0.1:
        return rng.choice(ODD)
    keys: list[Any] = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
    key, copy = rng.choice(keys), inner.copy()
    if rng.random() < 0.1:
        del copy[key]
    else:
        copy[key] = _with_odd_value(rng, inner[key])
    return copy


def _resized(data: bytes, start: int, end: int, text: bytes) -> bytes:
    """A file with another JSON in it; glTF and safetensors have its length before it."""
    head = data[:start]
    if head[:4] == b"glTF":
        end = start + struct.unpack_from("<I", head, 12)[0]
        text += b" " * (-len(text) % 4)
        head = head[:12] + struct.pack("<I", len(text)) + head[16:]
    elif len(head) == 8:
        end = start + struct.unpack("<Q", head)[0]
        head = struct.pack("<Q", len(text))
    return head + text + data[end:]


def _files(folder: Path) -> dict[Path, tuple[Read, type[Exception]]]:
    """The files of a small store, each with its reader and with how that may refuse it."""
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], np.int64)
    (alone := folder / "alone").mkdir()
    Mesh(corners, faces, corners, corners).export(alone / "mesh.glb")
    VoxelField(4, 3, 1.0).save(alone / "field.safetensors")
    write_checkpoint(alone / "scene.checkpoint", {"a": torch.ones(4, 4)}, {"step": 3})
    store = open_store(folder / "store")
    fill(store, folder)
    make(store, folder, spec("a boat"), "run1")
    documents.mark_format(store)
    root = folder / "store"

    def of_store(check: Callable[[Store, str], object]) -> tuple[Read, type[Exception]]:
        return lambda path: check(store, path.relative_to(root).as_posix()), StoreError

    found: dict[Path, tuple[Read, type[Exception]]] = {
        alone / "mesh.glb": (_mesh, ValueError),
        alone / "field.safetensors": (load_field, ValueError),
        alone / "scene.checkpoint": (read_checkpoint, CheckpointError),
        root / layout.FORMAT: of_store(lambda store, key: documents.check_usable(store)),
    }
    for key in store.list("assets/"):
        name = key.rpartition("/")[2]
        if name in ("manifest.json", "attempt.json"):
            found[root / key] = of_store(_marker if name == "manifest.json" else _attempt)
    found |= {root / layout.run_key(k): of_store(_run) for k in documents.run_ids(store)}
    found |= {root / key: of_store(_table) for key in store.list("tables/")}
    return found


def _mesh(path: Path) -> None:
    mesh = read_mesh(path)
    assert np.isfinite(mesh.vertices[mesh.faces]).all()


def _marker(store: Store, key: str) -> None:
    asset_id = key.split("/")[1]
    manifest = documents.asset_manifest(store, asset_id)
    assert manifest is not None
    documents.committed_files(asset_id, manifest)
    attempt = layout.attempt_key(asset_id, documents.committed_attempt(manifest))
    if store.exists(attempt):
        _rows(rows_of_attempt(store, documents.read_attempt(store, attempt), manifest))


def _attempt(store: Store, key: str) -> None:
    attempt = documents.read_attempt(store, key)
    if attempt["ended_at"]:
        _rows(rows_of_attempt(store, attempt, {}))


def _run(store: Store, key: str) -> None:
    run_id = layout.run_of(key)
    assert run_id is not None
    _rows(rows_of_run(documents.read_run(store, run_id)))


def _rows(rows: dict[str, list[Any]]) -> None:
    for table, found in rows.items():
        to_arrow(table, None, found)


def _table(store: Store, key: str) -> None:
    read_file(store, key.split("/")[1], key, whole=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=20_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tally = fuzz(Path(folder), options.count, options.seed)
    print("read", dict(tally.read), "refused", dict(tally.refused), f"{tally.megabytes:.0f} MB")
    for violation in tally.violations[:50]:
        print(violation[:300])
    raise SystemExit(bool(tally.violations))


if __name__ == "__main__":
    main()
