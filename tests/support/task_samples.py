"""Manifests, specs, reports, assets and runs to test with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from sjc_engine.recipes import Recipe
from sjc_engine.spec import AssetSpec
from tasks.manifest.resolve import ManifestError, Resolved, read_entries
from tasks.records.annotations import save_annotations
from tasks.records.attempts import close_interrupted, finish_attempt, start_attempt
from tasks.records.commit import commit_asset
from tasks.records.documents import asset_manifest
from tasks.records.runs import finish_run, start_run
from tasks.store.interface import Store
from tasks.tables.projection import REPORT_KEYS
from tasks.tables.read import query
from tasks.tables.schemas import SCHEMAS
from tasks.tables.write import record_attempts, record_run

ENGINE = "1.0/1"  # the version that has made the assets of `make`

Write = Callable[..., Path]


def problems(path: Path, **options: Any) -> list[str]:
    """What is wrong with a manifest, without the folder's name."""
    with pytest.raises(ManifestError) as caught:
        plan(path, **options)
    return str(caught.value).replace(f"{path.parent}/", "").split("\n")


def plan(path: Path, **options: Any) -> Resolved:
    return read_entries(path, prior_revision=lambda prior: f"r-{prior}", **options)[1]


def spec(prompt: str = "a duck", seed: int = 0) -> AssetSpec:
    return AssetSpec(prompt, "", None, seed, "toybox", "r", Recipe.for_prior("toybox", "draft"))


def report(**changes: Any) -> dict[str, Any]:
    """A whole report, as the engine makes it."""
    numbers = dict.fromkeys(REPORT_KEYS, 0.5)
    whole = dict.fromkeys(("steps", "peak_memory_bytes", "vertices", "faces", "components"), 3)
    whole |= {"genus": 0, "degenerate_faces": 0}
    known = "device dtype evaluator evaluator_revision distractors_sha256 lpips_weights"
    texts = dict.fromkeys(known.split(), "x")
    views = [
        {"view": view, "azimuth_deg": 45.0 * view, "elevation_deg": 12.8, "source": source,
         "clip_score": 30.0, "top_caption": "a duck", "field_mesh_iou": 0.9,
         "field_mesh_psnr": 20.0, "field_mesh_lpips": 0.1}
        for source in ("field", "mesh") for view in range(2)
    ]  # fmt: skip
    flags = {"watertight": True, "single_color": False, "rolled_back": False}
    cut = {"words_cut": ["pond"], "words_cut_by_judge": []}
    names = ("loss", "score_norm", "emptiness", "opacity", "sigma")
    curves = {name: [0.5, -0.25] for name in names}
    lists = {"views": views, "history": {"steps": [1, 3], **curves}}
    return {**numbers, **whole, **texts, **flags, **cut, "coverage": "good", **lists, **changes}


def make(
    store: Store,
    folder: Path,
    spec: AssetSpec,
    run_id: str,
    status: str = "ok",
    contents: Mapping[str, bytes] = MappingProxyType({}),
    **changes: Any,
) -> None:
    """One asset's attempt, with its rows; `contents` of files that are to be real."""
    attempt = start_attempt(store, spec, run_id, prior_coverage=1.0)["attempt"]
    manifest: Mapping[str, Any] = {}
    if status == "ok":
        files = {}
        for name in ("mesh.glb", "preview.png", "field.safetensors", "views/mesh_1.png"):
            files[name] = folder / name.replace("/", "-")
            files[name].write_bytes(contents.get(name, f"{name} of {spec.prompt}".encode()))
        timings = {"queue": 0.0, "optimize": 40.0, "extract": 2.0, "evaluate": 1.0}
        versions = {"code": "1.0", "engine": ENGINE}
        manifest = commit_asset(
            store, spec.asset_id, attempt, files, spec, report(**changes), timings, versions
        )
    error = None if status == "ok" else ValueError("loss is NaN")
    document = finish_attempt(
        store, spec.asset_id, attempt, status, error=error, device="cpu", first_step=0, last_step=3
    )
    record_attempt(store, document, manifest)


def record_attempt(store: Store, attempt: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
    """Writes the rows of one ended attempt."""
    record_attempts(store, [(attempt, manifest)])


def make_run(
    store: Store,
    folder: Path,
    run_id: str,
    rows: str,
    contents: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """A run of a manifest with its assets, all ok."""
    path = folder / "m.csv"
    path.write_text(f"id,prompt,tags,meta.k\n{rows}")
    manifest, plan = read_entries(path, prior_revision=lambda _: "r", recipe="draft")
    run = start_run(store, run_id, str(path), manifest.sha256, plan.entries, {"limit": None})
    record_run(store, run)
    outcomes = {}
    for entry in plan.entries:
        known = asset_manifest(store, entry.spec.asset_id) is not None
        outcomes[entry.row_id] = "reused" if known else "computed"
        if not known:
            make(store, folder, entry.spec, run_id, contents=contents)
    record_run(store, finish_run(store, run, outcomes))


def all_tables(store: Store) -> dict[str, list[dict[str, Any]]]:
    """Every row of every table, in an order of its own."""
    lists = ", ".join(f"(SELECT list({name}) FROM {name}) AS {name}" for name in SCHEMAS)
    [found] = query(store, f"SELECT {lists}").to_pylist()  # once: a database takes 40 ms
    return {name: sorted(rows or [], key=repr) for name, rows in found.items()}


def fill(store: Store, folder: Path) -> None:
    """A run with a retry in it, an interrupted attempt, another run after it, and annotations."""
    make_run(store, folder, "run1", "duck,a duck,t,v\npig,a pig,,\n")
    make(store, folder, spec("a mug"), "run1", "failed")
    make(store, folder, spec("a mug"), "run1", "ok")
    start_attempt(store, spec("a tank"), "run1")
    for attempt, manifest in close_interrupted(store, [spec("a tank").asset_id]):
        record_attempt(store, attempt, manifest)
    make_run(store, folder, "run2", "duck,a duck,t,v\ncar,a car,,\n")
    save_annotations(store, [rating(spec(), "3"), rating(spec("a car"), "4")])


def rating(spec: AssetSpec, value: str, who: str = "anna") -> dict[str, Any]:
    """What somebody says of an asset, as documents of annotations have it."""
    when = "2026-01-31T09:30:00.000000+00:00"
    return {"asset_id": spec.asset_id, "key": "rating", "value": value, "who": who, "when": when}
