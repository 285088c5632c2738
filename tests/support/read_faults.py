"""Every kind of file of a store, every way in which reading it fails, every command that reads it.

A cell of this matrix is one command on a whole store while one kind of file cannot be read. What
has to hold: the command ends with 3 and names the fault if it met it, nothing advises a repair, and
all commit markers are there afterwards, byte for byte; only `run` may add some.
"""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import TINY, Said
from fault_proxy import Fault, FaultProxy
from PIL import Image
from store_snapshots import snapshot
from synthetic_fields import TOTEM, centers, make_field, soft_density
from task_samples import record_attempt, report

from flows.plan import make_plan
from flows.settings import Settings
from sjc_engine.mesh.extract import extract_mesh
from sjc_engine.recipes import MeshRecipe
from tasks.manifest.resolve import Entry
from tasks.records.attempts import finish_attempt, start_attempt
from tasks.records.commit import commit_asset
from tasks.records.runs import finish_run, start_run
from tasks.store import open_store, s3_client
from tasks.store import s3 as store_s3
from tasks.store.interface import Store
from tasks.tables.write import compact_store, record_run

# Small ones: where all of an asset is gone `run` makes it again.
_SMALL = ",".join(map(str, TINY.values()))
MANIFEST = f"id,prompt,tags,{','.join(TINY)}\n" + "".join(
    f"{row},{_SMALL}\n" for row in ("a,a yellow duck,x", "b,a toy tank,", "c,a burger,", "d,a car,")
)

# Regular expressions of keys. A table's rows are in a compacted file and in those of runs.
KINDS = {
    "format": r"store\.json",
    "marker": r"assets/\w+/manifest\.json",
    "attempt": r"assets/\w+/a\d+/attempt\.json",
    "mesh": r"assets/\w+/a\d+/mesh\.glb",
    "field": r"assets/\w+/a\d+/field\.safetensors",
    "preview": r"assets/\w+/a\d+/preview\.png",
    "thumbnail": r"assets/\w+/a\d+/thumbnail\.webp",
    "turntable": r"assets/\w+/a\d+/turntable\.mp4",
    "view": r"assets/\w+/a\d+/views/\w+\.png",
    "run": r"runs/[\w-]+\.json",
    "lease": r"leases/\w+\.json",
    "compacted": r"tables/\w+/compacted/[\w-]+\.parquet",
    "part": r"tables/\w+/run_id(=|%3D)\w+/\d+-[\w-]+\.parquet",
    "run part": r"tables/\w+/run_id(=|%3D)\w+/ended\.parquet",
    "listing": "",
}
EVALUATE = ("evaluate", "--where", "seed = 0", "--set", "evaluation_size=32", "--quiet")
COMMANDS = {
    "verify": ("verify", "--quiet"),
    "repair": ("verify", "--repair", "--yes", "--quiet"),
    "query": ("query", "SELECT count(*) FROM assets, views, entries, attempts, history, runs"),
    "curate": ("curate", "-o", "{fresh}", "--quiet"),
    "compact": ("compact", "--quiet"),
    "gallery": ("gallery", "-o", "{fresh}", "--quiet"),
    "report": ("report",),
    "prune": ("prune", "--where", "true"),
    "run": ("run", "m.csv", "--quiet"),
    "evaluate": EVALUATE,
}
FLOWS = ("run", "evaluate")  # take seconds
READ_ONLY = ("verify", "repair", "query", "curate", "gallery", "prune")  # of what cannot be read

S3_FAULTS = {
    "403": (Fault("status", status=403, code="AccessDenied"), "may not do that"),
    "404": (Fault("status", status=404, code="NoSuchKey"), "404|NoSuchKey"),
    "500": (Fault("status", status=500, code="InternalError"), "answers (InternalError|500)"),
    "503": (Fault("status", status=503, code="SlowDown"), "answers (SlowDown|503)"),
    "hang": (Fault("hang"), "(?i)time.?out|timed out"),
    "reset": (Fault("reset-reply", after=5), "(?i)connection|reset"),
    "cut": (Fault("truncate-reply", after=5), "(?i)connection|incomplete|cut short"),
    "short": (Fault("shorten-reply", after=5), "(?i)cut short|not what the store|parse"),
}
LOCAL_FAULTS = {
    "EACCES": "permission denied",
    "EIO": "Input/output error",
    "ENOENT": "lists it and it cannot be opened|is gone",
    "short": r"bytes arrive",
    "folder": "is not there|is gone|is empty although|does not exist|missing although",
}


@dataclass(frozen=True)
class Cell:
    place: str  # local or s3
    kind: str
    fault: str
    command: str

    def __str__(self) -> str:
        return "-".join((self.place, self.kind, self.fault, self.command)).replace(" ", "_")


def matrix() -> list[Cell]:
    """All cells that make sense."""
    cells = [
        Cell(place, *rest)
        for place, faults in (("local", LOCAL_FAULTS), ("s3", S3_FAULTS))
        for rest in itertools.product(KINDS, faults, COMMANDS)
    ]
    no_listing = ("short", "folder")  # a listing in a folder has no size
    return [
        cell
        for cell in cells
        if not (cell.place == "local" and cell.kind == "lease")  # kernel locks
        and not (cell.kind == "listing" and cell.fault in no_listing)
        and not (cell.kind == "format" and cell.fault == "folder")  # the whole store
    ]


def some_cells(seed: int, cheap: int, flows: int) -> list[Cell]:
    """A sample of the matrix, the same for the same seed."""
    chance = random.Random(seed)
    cells = matrix()
    slow = [cell for cell in cells if cell.command in FLOWS]
    quick = [cell for cell in cells if cell.command not in FLOWS]
    return chance.sample(quick, cheap) + chance.sample(slow, flows)


def fill(url: str, folder: Path) -> None:
    """A store with every kind of file in it; MANIFEST is in the folder."""
    files = _files(folder)
    store = open_store(url)
    plan = make_plan(Settings(str(folder / "m.csv"), store=url, scratch=str(folder / "scratch")))
    a, b, c, d = plan.entries
    _run(store, plan, "run1", [a], files)
    _run(store, plan, "run2", [b], files)
    compact_store(store)  # of a single file for each table it would leave that one
    _run(store, plan, "run3", [c], files)
    _run(store, plan, "run4", [], files, failed=d)
    lease = b'{"owner": "nobody", "expires_at": 1}'
    store.put_bytes(f"leases/{a.spec.asset_id}.json", lease)
    found = list(store.list())
    for kind in KINDS.keys() - {"listing"}:
        assert any(re.fullmatch(KINDS[kind], key) for key in found), f"no file of kind {kind}"


def _run(
    store: Store, plan: Any, run_id: str, good: list[Entry], files: Any, failed: Any = None
) -> None:
    manifest = plan.manifest
    run = start_run(store, run_id, manifest.name, manifest.sha256, plan.entries, {})
    record_run(store, run)
    for entry in good:
        spec = entry.spec
        name = start_attempt(store, spec, run_id)["attempt"]
        made = commit_asset(store, spec.asset_id, name, files, spec, report(), {}, {})
        record_attempt(store, finish_attempt(store, spec.asset_id, name, "ok"), made)
    if failed:
        name = start_attempt(store, failed.spec, run_id)["attempt"]
        ended = finish_attempt(store, failed.spec.asset_id, name, "failed", error="no luck")
        record_attempt(store, ended, {})
    record_run(store, finish_run(store, run, {entry.row_id: "computed" for entry in good}))


def _files(folder: Path) -> dict[str, Path]:
    made = folder / "files"
    made.mkdir()
    points = centers(16)
    shape = make_field(soft_density(TOTEM(points), 60.0), np.sin(9 * points))
    shape.save(made / "field.safetensors")
    recipe = MeshRecipe(iso_level=5.0, mesh_resolution=24, max_faces=300, texture_size=0)
    extract_mesh(shape, recipe).export(made / "mesh.glb")
    for name in ("preview.png", "thumbnail.webp", "mesh_1.png"):
        Image.new("RGB", (64, 64), (200, 60, 40)).save(made / name)
    (made / "turntable.mp4").write_bytes(b"a video, for all that is known" * 4)
    files = {path.name: path for path in made.iterdir()}
    return files | {"views/mesh_1.png": files.pop("mesh_1.png")}


@dataclass
class Struck:
    """How often a fault has happened."""

    times: int = 0
    paths: list[str] = field(default_factory=list)

    def hit(self, path: object) -> None:
        self.times += 1
        self.paths.append(str(path))


@contextlib.contextmanager
def local_fault(root: Path, kind: str, fault: str) -> Iterator[Struck]:
    """Makes files of a folder unreadable in this process, or moves their folders away."""
    struck = Struck()
    if fault == "folder":
        with _moved_away(root, kind):
            yield struck
        return
    wanted = re.compile(rf"{re.escape(str(root))}/{KINDS[kind]}")
    number = getattr(errno, fault, 0)
    open_file, scan = io.open, os.scandir

    def spoiled(path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        if "r" not in mode or kind == "listing" or not wanted.fullmatch(str(path)):
            return open_file(path, mode, *args, **options)
        struck.hit(path)
        if fault == "short":
            return io.BufferedReader(_Short(str(path)))
        raise OSError(number, os.strerror(number), str(path))

    def refused(path: Any = ".") -> Any:
        # The store's own folder lists what is below it: an ENOENT that lies, not one that is true.
        if kind == "listing" and str(path).startswith(f"{root}/"):
            struck.hit(path)
            raise OSError(number, os.strerror(number), str(path))
        return scan(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(io, "open", spoiled)
        patch.setattr(os, "scandir", refused)
        yield struck


class _Short(io.FileIO):
    """A file that ends after 10 bytes."""

    def readinto(self, buffer: Any) -> int:
        return super().readinto(memoryview(buffer)[: max(0, 10 - self.tell())]) or 0

    def readall(self) -> bytes:
        return super().read(max(0, 10 - self.tell())) or b""


@contextlib.contextmanager
def _moved_away(root: Path, kind: str) -> Iterator[None]:
    keys = (path.relative_to(root).as_posix() for path in sorted(root.rglob("*")))
    folders = dict.fromkeys(root / k for k in keys if re.fullmatch(KINDS[kind], k))
    moved = {}
    for number, folder in enumerate(dict.fromkeys(path.parent for path in folders)):
        moved[folder] = root.with_name(f"away-{number}")
        folder.rename(moved[folder])
    try:
        yield
    finally:
        for folder, away in moved.items():
            if folder.exists():  # made anew meanwhile
                shutil.rmtree(folder)
            away.rename(folder)


@contextlib.contextmanager
def s3_fault(proxy: FaultProxy, kind: str, fault: str) -> Iterator[Struck]:
    """Lets the network spoil the reading of a kind of file."""
    pattern = rf"^(GET|HEAD) /[^? ]*/{KINDS[kind]}[ ?]" if KINDS[kind] else "list-type=2"
    spoiling = proxy.add(replace(S3_FAULTS[fault][0], match=pattern, times=None))
    struck = Struck()
    try:
        yield struck
    finally:
        struck.times = spoiling.hits
        struck.paths = [line for _, line in proxy.happened]
        proxy.clear()


def quick_network(patch: pytest.MonkeyPatch) -> None:
    """No pauses between tries, and no patience."""
    backoff = "botocore.retries.standard.ExponentialBackoff.delay_amount"
    patch.setattr(backoff, lambda *_: 0.0)
    for name in ("READ_SECONDS", "FIRST_READ_SECONDS"):
        patch.setattr(s3_client, name, 0.3)
    patch.setattr(store_s3, "PAUSES", (0.0, 0.0, 0.0))


def markers(files: dict[str, bytes]) -> dict[str, bytes]:
    return {k: data for k, data in files.items() if re.fullmatch(KINDS["marker"], k)}


def try_cell(
    cell: Cell,
    url: str,
    sjc: Callable[..., Said],
    fault: contextlib.AbstractContextManager[Struck],
    options: tuple[str, ...],
    endpoint: str = "",
) -> Struck:
    """Runs the command of a cell and holds what came of it against what has to hold."""
    before = snapshot(url, endpoint)
    words = [word.replace("{fresh}", "fresh") for word in COMMANDS[cell.command]]
    with fault as struck:
        said = sjc(*words, *options, "--store", url)
    text = said.out + said.err
    after = snapshot(url, endpoint)
    made = markers(after).keys() - markers(before).keys() if cell.command == "run" else set()
    assert {k: v for k, v in markers(after).items() if k not in made} == markers(before), text
    assert "Traceback" not in text
    faults = S3_FAULTS[cell.fault][1] if cell.place == "s3" else LOCAL_FAULTS[cell.fault]
    if cell.fault == "folder" and said.code == 1 and cell.command == "verify":
        assert re.search(
            "rows are missing|nothing of it is there", text
        )  # a table; all of an asset
    elif struck.times or said.code == 3:
        assert said.code == 3, (said, struck)
        assert re.search(faults, text), (text, struck)
        assert "--repair" not in text
        if cell.command in READ_ONLY:
            assert after == before
    else:
        expected = {"run": 1}.get(cell.command, 0)  # one of its assets has failed before
        assert said.code == expected, said
    return struck
