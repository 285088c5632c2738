"""LoRA: small matrices whose products are added to a model's own weights when it is loaded.

A key names the layer that it belongs to in one of three ways:
    kohya's              lora_unet_mid_block_attentions_0_proj_in.lora_down.weight
    peft's, diffusers'   unet.mid_block.attentions.0.proj_in.lora_A.weight
    diffusers' of 2023   mid_block.attentions.0...attn1.processor.to_q_lora.down.weight
With underscores for dots all of them are names of the model's layers. A layer's weight W becomes
    W + weight * alpha / rank * up @ down
where up and down of a convolution are matrices too, (out, rank) and (rank, in * height * width).
Only `merge` imports torch.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sjc_engine.errors import SettingError
from sjc_engine.priors.loading.expected_weights import Shape
from sjc_engine.priors.loading.model_check import read_header
from sjc_engine.priors.loading.model_files import file_digests

NONE = "none"
COMPONENTS = ("unet", "text_encoder")  # that may have some
MOST = 100.0  # of a weight
_LORA = re.compile(
    r"(?P<path>\S.*?\.safetensors)(:(?P<weight>[-+.\deE]+))?(#(?P<digest>[0-9a-f]{64}))?"
)
_MATRIX = re.compile(
    r"(?P<layer>.+?)[._]lora(_linear_layer)?[._](?P<role>down|up|A|B)(\.default)?\.weight"
)
_NOT_READ = ("use_dora", "use_rslora", "alpha_pattern")  # settings of peft's
_ROLES = {"down": "down", "A": "down", "up": "up", "B": "up"}
_STARTS = {
    "lora_unet_": "unet", "unet.": "unet", "base_model.model.": "unet",
    "lora_te_": "text_encoder", "lora_te1_": "text_encoder", "text_encoder.": "text_encoder",
}  # fmt: skip
_OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}

Pairs = dict[str, dict[str, str]]  # by a weight's name: the keys of `up`, `down`, maybe `alpha`


@dataclass(frozen=True)
class Lora:
    """A file and the factor of what it adds. digest: of its bytes, "" until they are read."""

    path: str
    weight: float = 1.0
    digest: str = ""

    def __str__(self) -> str:
        return f"{self.path}:{self.weight:.12g}" + (f"#{self.digest}" if self.digest else "")


def parse(text: str) -> tuple[Lora, ...]:
    """What a recipe's `loras` says: "a.safetensors:0.8, b.safetensors". Raises SettingError."""
    found = []
    for part in text.split(",") if text != NONE else ():
        match = _LORA.fullmatch(part.strip())
        try:
            weight = float((match and match["weight"]) or 1.0)
        except ValueError:
            match = None
        if match is None or not abs(weight) <= MOST:
            fix = f"write FILE.safetensors:WEIGHT, with a weight of {-MOST:g} to {MOST:g}"
            raise SettingError("loras", f"{part.strip()!r:.100} is wrong", f"{fix}, or none")
        found.append(Lora(match["path"], weight, match["digest"] or ""))
    return tuple(found)


def pin(text: str) -> str:
    """The same with the digest of each file, and without those of weight 0. Raises SettingError."""
    pinned = []
    for lora in parse(text):
        if lora.weight == 0:
            continue
        digest = lora.digest or _digest(lora)
        pinned.append(replace(lora, digest=digest))
    return ", ".join(map(str, pinned)) or NONE


def problems(text: str) -> Iterator[SettingError]:
    """What is wrong with such a text."""
    try:
        parse(text)
    except SettingError as error:
        yield error


def identity(text: str) -> str:
    """What an asset depends on: contents and weights, wherever the files are."""
    loras = [f"{lora.digest or lora.path}:{lora.weight:.12g}" for lora in parse(text)]
    return ", ".join(loras) or NONE


def without_paths(settings: dict[str, Any]) -> dict[str, Any]:
    """A part of a recipe with the `identity` of its `loras`, if it has them."""
    loras = settings.get("loras")
    return settings | {"loras": identity(loras)} if loras else settings


def same(one: str, other: str) -> bool:
    """Whether two add the same to a model. Raises SettingError."""
    return one == other or identity(pin(one)) == identity(pin(other))


def check(text: str, models: Mapping[str, Mapping[str, Shape] | None] | None = None) -> None:
    """Raises SettingError for a file that is no LoRA, or not of this model, or another than it was.

    models: of each component the shapes of its weights, or None where they are unknown; None: any
    model will do.
    """
    for lora in parse(text):
        if lora.digest and _digest(lora) != lora.digest:
            raise _wrong(lora, "is not the file that it was", "restore it, or plan again")
        if models is None:
            models = dict.fromkeys(COMPONENTS)
        header, _ = _header(lora)
        fit(lora, header, models)


def _digest(lora: Lora) -> str:
    try:
        return file_digests([Path(lora.path)])[0].hex()
    except OSError as error:
        raise _wrong(lora, f"cannot be read ({error.strerror})", "name an existing file") from error


def _header(lora: Lora) -> tuple[dict[str, Shape], dict[str, Any]]:
    """A file's keys and shapes, and what peft says of it, where diffusers has written that."""
    shapes, metadata = read_header(Path(lora.path), "loras")
    try:
        return shapes, dict(json.loads(metadata.get("lora_adapter_metadata", "{}")))
    except (TypeError, ValueError):
        return shapes, {}


def fit(
    lora: Lora, header: Mapping[str, Shape], models: Mapping[str, Mapping[str, Shape] | None]
) -> dict[str, Pairs]:
    """Which keys belong to which weight of which component, or to which layer of an unknown one.

    Raises SettingError for the first key that has no place, and for matrices of other sizes.
    """
    known = {
        component: {_plain(name.removesuffix(".weight")): name for name in shapes}
        for component, shapes in models.items()
        if shapes is not None
    }
    found: dict[str, Pairs] = {component: defaultdict(dict) for component in models}
    for key in sorted(header):
        component, layer, role = _split(lora, key)
        if component not in models or layer not in known.get(component, [layer]):
            reason = f"is not of this model: {key!r} has no place in its {component}"
            raise _wrong(lora, reason, "use a LoRA that was trained on it")
        name = known[component][layer] if component in known else layer
        found[component][name][role] = key
    for component, pairs in found.items():
        for name, keys in pairs.items():
            shapes = models[component]
            _check_pair(lora, header, keys, shapes[name] if shapes else None)
    return found


def _check_pair(
    lora: Lora, header: Mapping[str, Shape], keys: Mapping[str, str], wanted: Shape | None
) -> None:
    """Raises SettingError unless up @ down has as many rows and columns as the weight."""
    key = next(iter(keys.values()))
    if not {"up", "down"} <= keys.keys():
        raise _wrong(lora, f"has {key!r} without its other half", "download it again")
    up, down = header[keys["up"]], header[keys["down"]]
    fits = len(up) > 1 and len(down) > 1 and up[1] == down[0]
    if fits and wanted:
        columns = math.prod(down[1:]), down[1]
        fits = (math.prod(up) // up[1], *columns) == (wanted[0], math.prod(wanted[1:]), wanted[1])
    if not fits:
        reason = f"is not of this model: {key!r} does not fit a weight of shape {wanted}"
        raise _wrong(lora, reason, "use a LoRA that was trained on it")


def _split(lora: Lora, key: str) -> tuple[str, str, str]:
    """A key's component, its layer with underscores for dots, and its role there."""
    match = _MATRIX.fullmatch(key)
    layer = match["layer"] if match else key.removesuffix(".alpha")
    if not match and layer == key:
        reason = f"has {key!r}, which is not of a plain LoRA"
        raise _wrong(lora, reason, "LoHa, LoKr, DoRA and others are not read; use another file")
    start = next((start for start in _STARTS if layer.startswith(start)), "")
    component = _STARTS.get(start, "unet")
    layer = layer.removeprefix(start).replace(".processor", "")
    before, dot, last = layer.rpartition(".")
    if component == "text_encoder":
        layer = before + dot + _OLD_TEXT.get(last, last)
    elif last == "to_out":
        layer += ".0"
    return component, _plain(layer), _ROLES[match["role"]] if match else "alpha"


def _plain(layer: str) -> str:
    return layer.replace(".", "_").removeprefix("text_model_")


def _wrong(lora: Lora, problem: str, fix: str) -> SettingError:
    return SettingError("loras", f"{lora.path!r} {problem}", fix)


def merge(model: Any, component: str, text: str) -> None:
    """Adds what belongs to this component of a loaded model to its weights."""
    import torch
    from safetensors import safe_open

    weights = {k: v for k, v in model.state_dict().items() if k.endswith(".weight")}
    models: dict[str, Any] = dict.fromkeys(COMPONENTS)
    models[component] = {name: tuple(weight.shape) for name, weight in weights.items()}
    for lora in parse(text):
        header, settings = _header(lora)
        if odd := [key for key in _NOT_READ if settings.get(f"{component}.{key}")]:
            raise _wrong(lora, f"has {odd[0]!r}, which is not read", "save it as a plain LoRA")
        usual = settings.get(f"{component}.lora_alpha")
        with torch.no_grad(), safe_open(lora.path, "pt") as file:
            for name, keys in fit(lora, header, models)[component].items():
                up, down = (file.get_tensor(keys[role]).float() for role in ("up", "down"))
                rank = len(down)
                alpha = file.get_tensor(keys["alpha"]).item() if "alpha" in keys else usual or rank
                change = lora.weight * alpha / rank * (up.flatten(1) @ down.flatten(1))
                weights[name].copy_(weights[name].float() + change.view_as(weights[name]))
