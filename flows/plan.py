"""What a run is going to do: everything is read and checked here, before anything starts."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flows.errors import UsageError, disk_errors
from flows.scratch import can_hold_files, make_private
from flows.settings import Settings
from sjc_engine.priors.sources import find_prior
from sjc_engine.recipe_presets import PRESETS_IN_01, Value, preset_family
from sjc_engine.recipes import RECIPE_VERSION, Recipe
from sjc_engine.spec import AssetSpec
from tasks.devices.gpus import find_gpus
from tasks.manifest.resolve import Entry, Manifest, Resolved
from tasks.manifest.resolve import read_entries as read_manifest_entries
from tasks.manifest.shard_plan import load_plan
from tasks.manifest.where import select
from tasks.records.commit import asset_state
from tasks.records.documents import check_usable, mark_format, read_ahead
from tasks.store import open_store
from tasks.store.interface import Store

_DEVICE = re.compile(r"cpu|cuda(:\d+)?")


@dataclass(frozen=True)
class RunPlan:
    """The entries of a run and what the store knows of their assets."""

    settings: Settings
    manifest: Manifest
    entries: list[Entry]
    warnings: list[str]
    store: Store
    states: dict[str, str]  # by asset id, as of `asset_state`
    reusable_fields: dict[str, str]  # by field id: a finished asset that has this field
    # By asset id, the last attempt whose end is known; later ones are news.
    settled: dict[str, int] = field(default_factory=dict)

    @cached_property
    def devices(self) -> list[str]:
        """The devices to use. A run that makes nothing never asks: torch takes a second to look."""
        return check_devices(self.settings.devices)

    @cached_property
    def assets(self) -> dict[str, Entry]:
        """The first entry of each asset."""
        first: dict[str, Entry] = {}
        for entry in self.entries:
            first.setdefault(entry.spec.asset_id, entry)
        return first

    @cached_property
    def todo(self) -> dict[str, Entry]:
        """The assets that this run works on."""
        skipped = {"finished", "pruned"}
        if not self.settings.retry_failed:
            skipped.add("failed")
        return {k: e for k, e in self.assets.items() if self.states[k] not in skipped}

    def counts(self) -> dict[str, int]:
        """How many assets are in which state, and how many entries repeat one."""
        counted = dict.fromkeys(("new", "interrupted", "failed", "finished", "pruned"), 0)
        for asset_id in self.assets:
            counted[self.states[asset_id]] += 1
        return {**counted, "duplicate": len(self.entries) - len(self.assets)}


def make_plan(settings: Settings, *, writable: bool = True, store: Store | None = None) -> RunPlan:
    """Reads and checks everything that a run depends on.

    Raises ManifestError for the manifest, SettingError and UsageError for a wrong option, and
    StoreError. With `writable` the store is made when it is missing, but only after all else is
    found right. store: that of the settings, if it is open.
    """
    settings.check()
    if settings.devices is not None:
        check_devices(settings.devices)
    if settings.plan is None:
        manifest, resolved = read_entries(
            settings, partial(revision, allow_pickle=settings.allow_pickle)
        )
        entries = select(resolved.entries, settings.where, settings.limit)
        warnings = resolved.warnings
    else:
        manifest, entries, warnings = *read_shard(settings), []
    scratch = Path(settings.scratch)
    if not can_hold_files(scratch):
        raise UsageError(f"--scratch {scratch} cannot be written; name another folder")
    store = store or open_store(settings.store, writable=writable)
    check_usable(store)
    if writable:
        with disk_errors("--scratch", scratch):
            make_private(scratch)
        mark_format(store)
    ids = list(dict.fromkeys(entry.spec.asset_id for entry in entries))
    states = asset_states(store, ids)
    plan = RunPlan(settings, manifest, entries, warnings, store, states, {})
    if plan.todo or not writable:  # else there is nothing that a GPU would make
        warnings = [*warnings, *missing_gpus(settings.devices)]
    warnings = [*warnings, *missing_xatlas(e.spec.recipe for e in plan.todo.values())]
    fields, made_again = find_related_assets(store, [e.spec for e in plan.todo.values()])
    return replace(plan, reusable_fields=fields, warnings=warnings + made_again)


def read_entries(settings: Settings, revision: Callable[[str], str]) -> tuple[Manifest, Resolved]:
    """The manifest and its entries under the run's options; ManifestError with every problem."""
    return read_manifest_entries(
        settings.manifest,
        prior_revision=revision,
        prior=settings.prior,
        recipe=settings.recipe,
        overrides=settings.overrides,
        allow_pickle=settings.allow_pickle,
    )


def read_shard(settings: Settings) -> tuple[Manifest, list[Entry]]:
    """A shard's entries, from the plan in the store that replaces the manifest.

    Pictures are in the scratch folder, or will be: `flows.shard` brings them there. Raises
    UsageError when this machine's program or priors are not those that the plan was made with.
    """
    assert settings.plan is not None
    assert settings.shard is not None
    store = open_store(settings.store, writable=False)
    plan = load_plan(store, settings.plan)
    entries = plan.entries(settings.shard, Path(settings.scratch, "images"))
    for prior, wanted, loras in {
        (e.spec.prior, e.spec.prior_revision, e.spec.recipe.optimize.loras) for e in entries
    }:
        find_prior(prior, wanted, allow_pickle=settings.allow_pickle, loras=loras)
    return Manifest(plan.manifest, plan.manifest_sha256, [], []), entries


def revision(prior: str, *, allow_pickle: bool) -> str:
    """The revision of a prior's weights; SettingError when there is no such prior."""
    return find_prior(prior, allow_pickle=allow_pickle).revision


def check_devices(devices: Sequence[str] | None, option: str = "--devices") -> list[str]:
    """The devices to use; UsageError for one that this machine does not have."""
    if devices is not None:
        for device in devices:
            if not _DEVICE.fullmatch(device):
                raise UsageError(f"{option}: {device!r} is not cpu, cuda or cuda:N")
        if not devices:
            raise UsageError(f"{option}: name at least one, such as cpu")
        if set(devices) == {"cpu"}:
            return list(devices)
    gpus = find_gpus()
    if devices is None:
        return [f"cuda:{n}" for n in range(gpus.count)] or ["cpu"]
    names = ["cuda:0" if device == "cuda" else device for device in devices]
    for name in names:
        if name != "cpu" and int(name.partition(":")[2]) >= gpus.count:
            why = f"{gpus.problem}; {gpus.fix}" if gpus.problem else f"torch sees {gpus.count} GPUs"
            raise UsageError(f"{option}: there is no {name}; {why}")
    return names


def missing_gpus(devices: Sequence[str] | None) -> list[str]:
    """A warning where the CPU is used only because torch cannot use what may be a GPU."""
    gpus = find_gpus() if devices is None else None
    if gpus is None or not gpus.problem:
        return []
    return [f"no GPU is used: {gpus.problem}; {gpus.fix}, or name the CPU: --devices cpu"]


def missing_xatlas(recipes: Iterable[Recipe]) -> list[str]:
    """A warning where meshes get no textures, which have their price in quality."""
    if find_spec("xatlas") is not None or not any(recipe.mesh.texture_size for recipe in recipes):
        return []
    return ["xatlas is not installed: meshes get vertex colours instead of textures; sjc doctor"]


def asset_states(store: Store, asset_ids: Sequence[str]) -> dict[str, str]:
    """The `asset_state` of each."""
    return dict(zip(asset_ids, read_ahead(partial(asset_state, store), asset_ids), strict=True))


def find_related_assets(
    store: Store, specs: Sequence[AssetSpec]
) -> tuple[dict[str, str], list[str]]:
    """What finished assets with other ids mean for the assets of these specs.

    Returns the finished assets by the fields that they have, where only mesh or judge settings
    differ, and warnings if assets will be made again since the engine's recipe version has risen,
    the prior has another revision or the recipe other values. An asset counts when it was made from
    the same prompt, picture, seed, prior and recipe, whatever their revisions.
    """
    if not specs:
        return {}, []
    from tasks.tables.read import query

    rows = query(
        store,
        r"SELECT field_id, asset_id,"
        r" TRY_CAST(regexp_extract(engine_version, '\+recipe(\d+)$', 1) AS INTEGER) AS version,"
        r" prompt, negative_prompt, image, seed, prior, recipe, recipe_hash"
        r" FROM best_assets WHERE status = 'ok'",
    )
    fields: dict[str, str] = {}
    versions: dict[tuple[Any, ...], int] = {}  # by request: the newest that has made it
    equal = set()  # requests, and the hashes of their recipes
    finished = set(rows["asset_id"].to_pylist())
    specs = [spec for spec in specs if spec.asset_id not in finished]
    for field_id, asset_id, version, *key, hashed in zip(*rows.to_pydict().values(), strict=True):
        fields[field_id] = asset_id
        request = tuple(key)
        versions[request] = max(version or 0, versions.get(request, 0))
        equal.add((*request, hashed))
    reusable = {s.field_id: fields[s.field_id] for s in specs if s.field_id in fields}
    found = {spec.asset_id: versions.get(_request(spec), 0) for spec in specs}
    older = [version for version in found.values() if 0 < version < RECIPE_VERSION]
    newer = [s for s in specs if found[s.asset_id] == RECIPE_VERSION]
    other = [s for s in newer if (*_request(s), s.recipe.hash) in equal]
    changed = [s for s in newer if (*_request(s), _hash_in_01(s.prior, s.recipe)) in equal]
    warnings = []
    if older:
        warnings.append(
            f"{_were(len(older))} made by recipe version {', '.join(map(str, sorted(set(older))))}"
            f" and will be made again by version {RECIPE_VERSION}; CHANGELOG.md says why"
        )
    if other:
        warnings.append(
            f"{_were(len(other))} made from another revision of the prior"
            f" {other[0].prior!r} and will be made again; docs/priors.md says what a revision is"
        )
    if changed:
        warnings.append(
            f"{_were(len(changed))} made before the preset, or the ray_step that goes with a"
            " grid_size, changed and will be made again; docs/upgrading.md says what changed"
        )
    return reusable, warnings


@lru_cache
def _hash_in_01(prior: str, recipe: Recipe) -> str:
    """The recipe's hash if version 0.1 made something else of the same preset and changes."""
    preset = Recipe.for_prior(prior, recipe.name)
    then = PRESETS_IN_01.get(preset_family(prior), {}).get(recipe.name, {})
    now, unchanged = (vars(r.optimize) | vars(r.mesh) for r in (recipe, preset))
    values: dict[str, Value] = {k: v for k, v in then.items() if now[k] == unchanged[k]}
    if now["grid_size"] != unchanged["grid_size"]:  # which did not scale it
        values["ray_step"] = unchanged["ray_step"]
    return recipe.override({"ray_step": now["ray_step"], **values}).hash if values else ""


def _were(count: int) -> str:
    return f"{count} assets were" if count > 1 else "1 asset was"


def _request(spec: AssetSpec) -> tuple[Any, ...]:
    """What a user asks for, as the columns of the table `assets`; settings of the recipe aside."""
    return (
        spec.prompt, spec.negative_prompt, spec.image, spec.seed, spec.prior, spec.recipe.name,
    )  # fmt: skip
