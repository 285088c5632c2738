"""New numbers for a finished asset, from the files that the store has; nothing is optimised."""

import tempfile
import time
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from sjc_engine.asset_files import FIELD, MESH
from sjc_engine.evaluation.metrics import evaluate
from sjc_engine.evaluation.pictures import take_pictures
from sjc_engine.fields.field import Field
from sjc_engine.fields.kinds import load_field
from sjc_engine.mesh.gltf import Mesh, read_mesh
from sjc_engine.recipe_presets import Value
from sjc_engine.recipes import EvaluateRecipe, Recipe
from tasks.records.attempts import finish_attempt, start_evaluation
from tasks.records.documents import (
    committed_attempt,
    committed_files,
    finished_manifest,
    read_attempt,
)
from tasks.stages.judges import Judges
from tasks.stages.versions import versions
from tasks.store.interface import Store, damaged
from tasks.store.layout import attempt_key, marker_key
from tasks.tables.write import TableWriter

Document = dict[str, Any]

# What an evaluation may change; the other keys of its part of a recipe make videos.
SETTINGS = ("judge", "lpips", "evaluation_size")
_KEYS = [field.name for field in fields(EvaluateRecipe)]


def evaluation_recipe(spec: Mapping[str, Any], changes: Mapping[str, Value]) -> EvaluateRecipe:
    """How the asset of this spec (as JSON) was to be judged, with `changes`.

    Keys that an older version did not have get their defaults.
    """
    then = {k: v for k, v in spec["recipe"]["evaluate"].items() if k in _KEYS}
    return Recipe().override({**then, **changes}).evaluate


@task(name="evaluate", task_run_name="evaluate-{name}", cache_policy=NO_CACHE)
def reevaluate(
    name: str,
    store: Store,
    asset_id: str,
    run_id: str,
    changes: Mapping[str, Value],
    judges: Judges,
    scratch: Path,
    rows: TableWriter,
) -> Document:
    """Measures the asset's mesh and field as they are stored; a new attempt holds the numbers.

    name: of the asset, readable. Its rows repeat what is known of the optimisation, with the new
    metrics. Returns those. An evaluation that fails becomes a row too, and its error is raised. All
    is read first: a `StoreError` is raised before anything is written.
    """
    manifest = finished_manifest(store, asset_id)
    key = attempt_key(asset_id, committed_attempt(manifest))
    committed = read_attempt(store, key, committed=True)
    field, mesh = _read_files(store, asset_id, manifest, scratch)
    attempt = start_evaluation(store, committed, run_id)
    step = committed["last_step"]  # none was made

    def end(status: str, **how: Any) -> None:
        known = {"device": committed["device"], "first_step": step, "last_step": step, **how}
        ended = finish_attempt(
            store, asset_id, attempt["attempt"], status, **known, versions=versions()
        )
        rows.record(ended, manifest)

    started = time.perf_counter()
    try:
        recipe = evaluation_recipe(manifest["spec"], changes)
        pictures = take_pictures(field.to(judges.device), mesh, recipe.evaluation_size)
        found = evaluate(pictures, mesh, manifest["spec"]["prompt"], *judges.get(recipe))
        timings = {**manifest["timings"], "evaluate": time.perf_counter() - started}
        report = manifest["report"].items()
        kept = {k: v for k, v in report if "lpips" not in k and k != "history"}
        end("ok", report=kept | found.metrics | {"views": found.views}, timings=timings)
    except Exception as error:
        end("failed", error=error)
        raise
    return found.metrics


def _read_files(
    store: Store, asset_id: str, manifest: Document, scratch: Path
) -> tuple[Field, Mesh]:
    files = committed_files(asset_id, manifest)
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="evaluate-", dir=scratch) as folder:
        field_path, mesh_path = (Path(folder, n) for n in (FIELD, MESH))
        for path in (field_path, mesh_path):
            if path.name not in files:
                raise damaged(store, marker_key(asset_id), f"files: {path.name} is not among them")
            store.download(files[path.name].key, path, files[path.name].stored.sha256)
        return load_field(field_path), read_mesh(mesh_path)
