"""Recipes: every setting of an asset, its type, default and range.

A recipe has three frozen parts, whose keys are flat and unique so that a manifest column or
`--set key=value` names one directly: `steps`, `guidance_scale`, `max_faces`, ...
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from sjc_engine.errors import SettingError
from sjc_engine.guidance.view_prompts import HIGHEST_DEG, LOWEST_DEG, OverheadRule, ViewStyle
from sjc_engine.priors.image_pose import ImagePose
from sjc_engine.priors.loading import lora
from sjc_engine.recipe_conflicts import STARTS, evaluate_conflicts, optimize_conflicts
from sjc_engine.recipe_presets import PRESETS, Value, presets_of

if TYPE_CHECKING:
    from sjc_engine.priors.denoiser import Prior

# Part of every asset's identity: raise it when the same recipe begins to give another asset.
RECIPE_VERSION = 1

# Keys younger than RECIPE_VERSION, each with the value that means what was before it: at that value
# a key is in no JSON, and so in no identity.
_ADDED = {
    "dtype": "auto", "loras": "none", "guidance_rescale": 0.0, "tick_start": 0, "tick_share": 1.0,
    "image_pose": "distance", "image_recenter": False, "distill_views": 64, "distill_steps": 400,
    "render_start": 0,
}  # fmt: skip

Score = Literal["sjc", "sds", "recon", "naive"]
Schedule = Literal["random", "annealed", "fixed"]
FieldKind = Literal["voxel", "tensorf", "plenoxels", "mlp"]


_CANONICAL = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
)


def canonical_json(data: Any) -> str:
    """JSON with sorted keys and no spaces, to take digests of: equal data, equal text.

    Rejects NaN and infinity.
    """
    return _CANONICAL.encode(data)


def _choice(default: bool | str, help: str) -> Any:
    return field(default=default, metadata={"help": help})


def _number(default: float, low: float, high: float, help: str) -> Any:
    return field(default=default, metadata={"range": (low, high), "help": help})


class _Part:
    """A part of a recipe. Raises SettingError for a value that is out of its range."""

    def __post_init__(self) -> None:
        for problem in _problems(vars(self), type(self)):
            raise problem

    def to_json(self) -> dict[str, Value]:
        """Its keys and values, without young keys at the value from before."""
        return {key: value for key, value in vars(self).items() if _ADDED.get(key) != value}


@dataclass(frozen=True)
class OptimizeRecipe(_Part):
    """How a field is optimised. Defaults: the published code's, with two faults fixed.

    `presets.PAPER` puts the faults back.
    """

    # Score (equations 14 to 16)
    steps: int = _number(10_000, 1, 1_000_000, "number of optimisation steps")
    guidance_scale: float = _number(100.0, 0.0, 1000.0, "s of classifier-free guidance")
    guidance_end: float = _number(-1.0, -1.0, 1000.0, "s at the last step, linear; -1: constant")
    guidance_rescale: float = _number(0.0, 0.0, 1.0, "share of guidance's added contrast to undo")
    score: Score = _choice(
        "sjc", '"sds": DreamFusion; "recon": MVDream; "naive": the rendering itself, no noise'
    )
    variance_reduction: bool = _choice(True, "eq. 16; false: eq. 15")
    noise_samples: int = _number(1, 1, 64, "noise samples per view, n in eq. 14")
    perp_neg_weight: float = _number(0.0, 0.0, 100.0, "Perp-Neg: keeps the front off other views")
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = _choice(
        "auto", "precision of the prior's network; auto: float32 on the CPU, float16 on a GPU"
    )
    loras: str = _choice(lora.NONE, '"none", or "FILE.safetensors:WEIGHT, ..."; docs/priors.md')
    # Noise levels: random within the range, falling from its top to its bottom, or fixed
    sigma_schedule: Schedule = _choice("random", "how a step chooses its noise level")
    sigma_fixed: float = _number(1.5, 1e-3, 1000.0, 'the noise level of "fixed"')
    tick_min: int = _number(10, 0, 999, "lowest index into the prior's noise levels")
    tick_max: int = _number(969, 0, 999, "highest index, at the first step")
    tick_end: int = _number(0, 0, 999, "highest index at the end, linear between; 0: tick_max")
    tick_start: int = _number(0, 0, 999, "lowest index at the first step, linear; 0: tick_min")
    tick_share: float = _number(1.0, 0.01, 1.0, "share of the steps in which the range changes")
    # Optimiser
    optimizer: Literal["adamax", "adam"] = _choice("adamax", "from torch.optim")
    lr: float = _number(0.05, 1e-6, 10.0, "learning rate of grids")
    density_lr: float = _number(0.0, 0.0, 10.0, "learning rate of the density; 0: lr")
    network_lr: float = _number(3e-3, 1e-6, 10.0, "learning rate of networks in a field")
    background_lr: float = _number(1e-4, 0.0, 10.0, "learning rate of a learned background")
    plateau_steps: int = _number(0, 0, 1_000_000, "stop if the score stalls this long; 0: never")
    plateau_tolerance: float = _number(0.01, 0.0, 1.0, "a smaller fall, as a share, is a stall")
    # Field
    field: FieldKind = _choice("voxel", "representation of density and colour")
    density_rank: int = _number(8, 1, 256, '"tensorf": products per plane for density')
    color_rank: int = _number(16, 1, 256, '"tensorf": products per plane for colour')
    mlp_width: int = _number(64, 1, 1024, '"mlp": units per layer')
    mlp_frequencies: int = _number(6, 1, 16, '"mlp": octaves of the positional encoding')
    grid_size: int = _number(100, 4, 512, "voxels per side")
    grid_start: int = _number(0, 0, 512, "voxels per side at the start; 0: grid_size")
    grid_grow_at: float = _number(0.5, 0.0, 0.99, "share of the steps at the start's sizes")
    half_length: float = _number(1.0, 0.05, 10.0, "half the side of the box, world units")
    color_init: float = _number(1.0, 0.0, 10.0, "standard deviation of the initial colours")
    background: Literal["learned", "random", "white"] = _choice("learned", "behind the object")
    # Camera and renderer
    render_size: int = _number(64, 8, 1024, "rays per side; images are resized for the prior")
    render_start: int = _number(0, 0, 1024, "rays per side at the start; 0: render_size")
    ray_step: float = _number(0.01, 1e-4, 1.0, "world units; scales with grid_size unless set")
    ray_jitter: bool = _choice(False, "samples at random positions within their intervals")
    views_per_step: int = _number(1, 1, 64, "cameras per step")
    radius: float = _number(1.5, 0.1, 100.0, "camera distance, world units")
    radius_spread: float = _number(0.0, 0.0, 10.0, "camera distance varies by up to this")
    fov_min: float = _number(40.0, 1.0, 170.0, "narrowest field of view, degrees")
    fov_max: float = _number(70.0, 1.0, 170.0, "widest field of view, degrees")
    elevation_min: float = _number(LOWEST_DEG, -89.0, 90.0, "lowest camera elevation, degrees")
    elevation_max: float = _number(HIGHEST_DEG, -89.0, 90.0, "highest camera elevation, degrees")
    view_style: ViewStyle = _choice("paper", "how the prompt names the camera's side")
    overhead_prompt: OverheadRule = _choice("elevation", 'threshold 60 degrees; "official": 41.8')
    # From latents to RGB, at the end, in the time of 800 steps without the network
    distill_views: int = _number(64, 1, 4096, "decoded for the colours of a field of latents")
    distill_steps: int = _number(400, 1, 100_000, "that fit the colours to them")
    # Regularisers
    emptiness_weight: float = _number(1e4, 0.0, 1e9, "weight; a mean over all samples of all rays")
    emptiness_scale: float = _number(10.0, 0.0, 1e6, "beta in log(1 + beta w)")
    emptiness_step: float = _number(0.5, 0.0, 1.0, "share of the steps before the multiplier")
    emptiness_multiplier: float = _number(20.0, 0.0, 1e6, "factor on the weight from then on")
    depth_weight: float = _number(0.0, 0.0, 1e9, "weight; draws the object to the box's centre")
    depth_loss: Literal["fixed", "official"] = _choice(
        "fixed", '"official": the published gradient'
    )
    binary_weight: float = _number(0.0, 0.0, 1e9, "weight of the mean entropy of opacity")
    tv_weight: float = _number(0.0, 0.0, 1e9, "weight of the squared differences of neighbours")
    distortion_weight: float = _number(0.0, 0.0, 1e9, "weight of mip-NeRF 360's, a mean over rays")
    near_view_weight: float = _number(0.0, 0.0, 1e9, "weight of the change from a view 0.05 aside")
    smooth_weight: float = _number(0.0, 0.0, 1e9, "weight of the depth difference of neighbours")
    smooth_start: float = _number(0.5, 0.0, 1.0, "share of the steps before smooth_weight")
    # The input image, for priors that take one: its camera and its losses
    image_elevation: float = _number(0.0, -89.0, 89.0, "degrees; 0: level with the object")
    image_azimuth: float = _number(0.0, -360.0, 360.0, "degrees; 0: the image shows the front")
    image_pose: ImagePose = _choice("distance", 'fourth pose number; "elevation": Stable Zero123')
    image_recenter: bool = _choice(False, "crop the image to the object, at 78% of its side")
    input_view_weight: float = _number(0.0, 0.0, 1e9, "weight of the squared error against it")
    silhouette_weight: float = _number(0.0, 0.0, 1e9, "the same for opacity; needs a cut-out image")


@dataclass(frozen=True)
class MeshRecipe(_Part):
    """How a field becomes a mesh."""

    iso_level: float = _number(0.0, 0.0, 1e6, "density per unit length; 0: chosen from the data")
    mesh_resolution: int = _number(128, 0, 512, "samples per side, at least the field's voxels")
    mesh_smoothing: float = _number(0.5, 0.0, 4.0, "Gaussian blur of the density, in field voxels")
    min_component: float = _number(0.02, 0.0, 1.0, "drop parts below this share of the largest")
    max_faces: int = _number(20_000, 0, 10_000_000, "decimate to this many; 0: keep all")
    texture_size: int = _number(1024, 0, 8192, "texels per side; 0: vertex colours")
    unwrap_seconds: float = _number(60.0, 1.0, 3600.0, "then the asset fails: UnwrapTimeout")
    also_write: Literal[
        "none", "ply", "obj", "stl", "ply+obj", "ply+stl", "obj+stl", "ply+obj+stl"
    ] = _choice("none", "formats written beside mesh.glb")


@dataclass(frozen=True)
class EvaluateRecipe(_Part):
    """How an asset is judged."""

    evaluation_size: int = _number(256, 16, 2048, "pixels per side of the evaluation views")
    turntable_frames: int = _number(60, 0, 720, "frames of the turntable, 20 per second; 0: none")
    turntable_size: int = _number(256, 16, 2048, "pixels per side of turntable.mp4, even")
    judge: str = _choice("toybox", '"toybox", a transformers CLIP folder, or owner/name[@revision]')
    lpips: str = _choice("none", '"none", or a folder of LPIPS weights (docs/tables.md)')


@dataclass(frozen=True)
class Recipe:
    """All settings of an asset. The name says which preset it began as and changes nothing."""

    name: str = "defaults"
    optimize: OptimizeRecipe = field(default_factory=OptimizeRecipe)
    mesh: MeshRecipe = field(default_factory=MeshRecipe)
    evaluate: EvaluateRecipe = field(default_factory=EvaluateRecipe)

    @classmethod
    def for_prior(cls, prior: Prior | str, preset: str | None = None) -> Recipe:
        """The preset of this name for this prior, or the prior's default preset.

        `prior` is a loaded prior or its id. Raises SettingError, naming the presets that fit.
        """
        prior_id = prior if isinstance(prior, str) else prior.id
        presets = presets_of(prior_id)
        name = next(iter(presets)) if preset is None else preset
        if name not in presets:
            raise _preset_error(prior_id, name, presets)
        return cls(name=name).override(presets[name])

    def override(self, values: Mapping[str, Value]) -> Recipe:
        """A copy with some flat keys changed; text is read as the key's type.

        A new `grid_size` without a `ray_step` scales the latter, so that a voxel keeps its number
        of samples. A new `grid_size` or `render_size` that does not exceed the size at the start
        holds from the start, unless that is set too; the field "mlp" has no grid that grows.
        Raises SettingError for an unknown key (with a suggestion), a wrong type or a bad range.
        """
        changes, problems = self._read(values)
        for problem in problems:
            raise problem
        parts = {part: getattr(self, part) for part in PARTS}
        for part, old in parts.items():
            parts[part] = replace(old, **{k: v for k, v in changes.items() if k in vars(old)})
        if "grid_size" in changes and "ray_step" not in changes:
            old, new = self.optimize, parts["optimize"]
            ray_step = old.ray_step * (old.grid_size / new.grid_size)
            parts["optimize"] = replace(new, ray_step=ray_step)
        return replace(self, **parts)

    def problems(self, values: Mapping[str, Value]) -> list[SettingError]:
        """Everything that keeps `override` from these values; none if it will not raise."""
        changes, problems = self._read(values)
        for part, kind in PARTS.items():
            old = vars(getattr(self, part))
            problems += _problems({key: changes.get(key, old[key]) for key in old}, kind)
        return problems

    def _read(self, values: Mapping[str, Value]) -> tuple[dict[str, Value], list[SettingError]]:
        """The values as their keys' types and what follows from them; errors of those of others."""
        changes, problems = {}, []
        for key, value in values.items():
            try:
                changes[key] = _convert(key, value)
            except SettingError as error:
                problems.append(error)
        for start, end in STARTS.items():
            size: Any = changes.get(end)
            if size is not None and size <= getattr(self.optimize, start):
                changes.setdefault(start, 0)
        if changes.get("field") == "mlp":
            changes.setdefault("grid_start", 0)
        return changes, problems

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, **{part: getattr(self, part).to_json() for part in PARTS}}

    @cached_property
    def canonical(self) -> str:
        """Every setting, and not the name, as the JSON that identities are made from."""
        parts = {part: lora.without_paths(getattr(self, part).to_json()) for part in PARTS}
        return canonical_json(parts)

    @cached_property
    def hash(self) -> str:
        """16 hex digits of every setting, as column `recipe_hash` has them."""
        return hashlib.sha256(self.canonical.encode("utf-8")).hexdigest()[:16]

    @cached_property
    def canonical_optimize(self) -> str:
        """The same of what the optimisation depends on."""
        return canonical_json(lora.without_paths(self.optimize.to_json()))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Recipe:
        """The inverse of `to_json`; every other key must be there, so that nothing is guessed."""
        flat = _ADDED | {key: value for part in PARTS for key, value in data[part].items()}
        if flat.keys() != RECIPE_KEYS.keys():
            wrong = ", ".join(sorted(flat.keys() ^ RECIPE_KEYS.keys()))
            raise ValueError(f"this recipe was written by another version (keys: {wrong})")
        return cls(name=data["name"]).override(flat)


PARTS: dict[str, type] = {
    "optimize": OptimizeRecipe,
    "mesh": MeshRecipe,
    "evaluate": EvaluateRecipe,
}
_HINTS: dict[str, Any] = {k: v for part in PARTS.values() for k, v in get_type_hints(part).items()}
# Flat key -> int, float, bool or str.
RECIPE_KEYS: dict[str, type] = {
    name: str if get_origin(hint) is Literal else hint for name, hint in _HINTS.items()
}


def _problems(values: Mapping[str, Any], part: type) -> Iterator[SettingError]:
    """What is wrong with the values of a part; one that is out of range conflicts with no other."""
    wrong = set()
    for f in fields(part):
        value, hint = values[f.name], _HINTS[f.name]
        if get_origin(hint) is Literal and value not in get_args(hint):
            wrong.add(f.name)
            fix = f"use one of {', '.join(get_args(hint))}"
            yield SettingError(f.name, f"{value!r} is unknown", fix)
        low, high = f.metadata.get("range", (None, None))
        if low is not None and not low <= value <= high:  # also false for NaN
            wrong.add(f.name)
            yield SettingError(
                f.name, f"{value} is out of range", f"use {low:,.10g} to {high:,.10g}"
            )
    if part in _CONFLICTS:
        for error in _CONFLICTS[part](SimpleNamespace(**values)):
            if wrong.isdisjoint((error.key, *error.conflicts)):
                yield error


_CONFLICTS = {OptimizeRecipe: optimize_conflicts, EvaluateRecipe: evaluate_conflicts}


def _convert(key: str, value: Value) -> Value:
    """The value as the key's own type, so that 800 and 800.0 and "800" make one identity."""
    if key not in RECIPE_KEYS:
        fix = suggestion(key, RECIPE_KEYS) or "see docs/manifests.md for the keys"
        raise SettingError(key, "is not a recipe key", fix)
    wanted, plain = RECIPE_KEYS[key], value.strip() if isinstance(value, str) else value
    try:
        if wanted is str and isinstance(plain, str):
            return plain
        if wanted is bool and isinstance(plain, bool | str):
            return plain if isinstance(plain, bool) else _BOOLS[plain.lower()]
        if wanted in (int, float) and not isinstance(plain, bool):
            number = float(plain)
            if wanted is float or number.is_integer():  # which infinity and NaN are not
                return wanted(number)
    except (KeyError, OverflowError, TypeError, ValueError):
        pass
    raise SettingError(key, f"{value!r} is wrong", f"write {_TYPE_NAMES[wanted]}")


def check_preset(name: str) -> None:
    """Raises SettingError for a preset that no family has."""
    known = dict.fromkeys(name for family in PRESETS.values() for name in family)
    if name not in known:
        fix = suggestion(name, known) or f"use one of {', '.join(known)}"
        raise SettingError("recipe", f"{name!r} is unknown", fix)


def _preset_error(prior: str, name: str, presets: Mapping[str, Any]) -> SettingError:
    families = [family for family, known in PRESETS.items() if name in known]
    homes = " and ".join(dict.fromkeys(family.removeprefix("toybox_") for family in families))
    fix = f"use one of {', '.join(presets)}"
    if homes:
        problem = f"{name!r} is for {homes} priors and does not fit {prior!r}"
        return SettingError("recipe", problem, fix)
    return SettingError("recipe", f"{name!r} is unknown", suggestion(name, presets) or fix)


def suggestion(name: str, known: Iterable[str]) -> str:
    """The known name that was probably meant, as a question; "" if none is near."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else ""


_BOOLS = {"true": True, "1": True, "false": False, "0": False}
_TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
