"""Which files of a model are read: one answer for those who load, check and identify it.

A prior is a folder in diffusers' layout, a subfolder for each component; a judge is one in
transformers' layout, with everything in its root. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

INDEX = "model_index.json"  # names a pipeline and its components
SETTINGS = {
    "network": ("config.json",),
    "encoder": ("config.json",),
    "scheduler": ("scheduler_config.json",),
    "preprocessor": ("preprocessor_config.json", "processor_config.json"),
    "tokenizer": (
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
        "vocab.json", "merges.txt", "spiece.model",
    ),
}  # fmt: skip
# Any of these is enough.
VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",))
# Of files of weights: as safetensors, and pickled
_STEMS = {
    "network": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "encoder": ("model", "pytorch_model"),
}


@dataclass(frozen=True)
class Part:
    """A component: its folder, a key of SETTINGS, and the class that its config may name.

    pickled: whether its weights may be a `.bin`, where there are no safetensors. half: whether it
    is loaded in half precision where the prior is, on GPUs.
    """

    name: str
    kind: str
    cls: str = ""
    half: bool = False
    pickled: bool = False

    def where(self, names: Collection[str]) -> str:
        """Its folder with a slash, or "": early repositories have a lone network in their root."""
        folder = f"{self.name}/"
        return folder if any(name.startswith(folder) for name in names) else ""

    def settings(self, names: Collection[str]) -> list[str]:
        folder = self.where(names)
        return [folder + name for name in SETTINGS[self.kind] if folder + name in names]

    def weights(self, names: Collection[str], half: bool = False) -> tuple[str | None, list[str]]:
        """The variant and the files of its weights: those without a variant, else "fp16".

        With `half` it is the other way round for what is loaded in half precision.

        A file of all weights, or the index of several and these; diffusers prefers the index,
        transformers the file.
        """
        if self.kind in _STEMS:
            variants = ("fp16", None) if half and self.half else (None, "fp16")
            formats = list(zip(_STEMS[self.kind], ("safetensors", "bin"), strict=True))
            for stem, suffix in formats[: 1 + self.pickled]:
                for variant in variants:
                    if found := self._weights(names, self.where(names) + stem, suffix, variant):
                        return variant, found
        return None, []

    def _weights(
        self, names: Collection[str], stem: str, suffix: str, variant: str | None
    ) -> list[str]:
        dot = f".{variant}" if variant else ""
        single, index = f"{stem}{dot}.{suffix}", f"{stem}.{suffix}.index{dot}.json"
        shard = re.compile(
            re.escape(stem)
            + rf"({re.escape(dot)}-\d+-of-\d+|-\d+-of-\d+{re.escape(dot)})\.{suffix}"
        )
        shards = [index, *sorted(name for name in names if shard.fullmatch(name))]
        found = [files for files in ([single], shards) if files[0] in names]
        return found[-1 if self.kind == "network" else 0] if found else []

    def files(self, names: Collection[str], half: bool = False) -> list[str]:
        return [*self.settings(names), *self.weights(names, half)[1]]

    @property
    def has_weights(self) -> bool:
        return self.kind in _STEMS

    def is_whole(self, names: Collection[str]) -> bool:
        """Whether all of it is certainly among these names; an index alone tells of no shard."""
        weights = self.weights(names)[1]
        if self.kind == "tokenizer":
            return self.vocabulary(names) and self.where(names) + "tokenizer_config.json" in names
        return bool(self.settings(names)) and (not self.has_weights or len(weights) == 1)

    def vocabulary(self, names: Collection[str]) -> bool:
        """Whether a tokenizer has one; without, it would load as an empty one."""
        folder = self.where(names)
        return any(all(folder + name in names for name in files) for files in VOCABULARIES)


_UNET = Part("unet", "network", "UNet2DConditionModel", half=True)
_VAE = Part("vae", "network", "AutoencoderKL")
_SCHEDULER, _TOKENIZER = Part("scheduler", "scheduler"), Part("tokenizer", "tokenizer")
_CC_PROJECTION = Part("cc_projection", "network", "CCProjection")
_CAMERA_PROJECTION = Part("clip_camera_projection", "network", "CLIPCameraProjection")
PARTS: dict[str, tuple[Part, ...]] = {
    "stable_diffusion": (
        _UNET, _SCHEDULER, _TOKENIZER, Part("text_encoder", "encoder", "CLIPTextModel"), _VAE,
    ),
    "deepfloyd": (
        _UNET, _SCHEDULER, _TOKENIZER, Part("text_encoder", "encoder", "T5EncoderModel", half=True),
    ),
    "unconditional": (Part("unet", "network", "UNet2DModel", half=True), _SCHEDULER),
    "zero123": (
        _UNET, _SCHEDULER, _VAE, _CC_PROJECTION,
        Part("image_encoder", "encoder", "CLIPVisionModelWithProjection"),
    ),
    "mvdream": (
        _UNET, _SCHEDULER, _TOKENIZER, Part("text_encoder", "encoder", "CLIPTextModel"), _VAE,
        Part("camera_proj", "network", "CameraMatrixEmbedding"),
    ),
    # The same in the names of the published checkpoint
    "mvdream_ldm": (
        Part("unet", "network", "MultiViewUNetModel"), _SCHEDULER, _TOKENIZER,
        Part("text_encoder", "encoder", "CLIPTextModel"), _VAE,
    ),
    "lpips": (Part("model", "encoder", "Lpips"),),
    "judge": (
        Part("model", "encoder", "CLIPModel"), _TOKENIZER, Part("preprocessor", "preprocessor"),
    ),
}  # fmt: skip


def parts_of(
    family: str, index: Mapping[str, Any], *, allow_pickle: bool = False
) -> tuple[Part, ...]:
    """The components of a family's model, as model_index.json has them.

    Without a VAE where that has none, and with the layer that maps poses under its name there.
    """
    if family == "mvdream" and "camera_proj" not in index:
        family = "mvdream_ldm"
    no_vae = family == "stable_diffusion" and index.get("vae") in (None, [], [None, None])
    parts = [part for part in PARTS[family] if not (no_vae and part is _VAE)]
    if index.get("_class_name") == "Zero123Pipeline":
        parts = [_CAMERA_PROJECTION if part is _CC_PROJECTION else part for part in parts]
    return tuple(replace(part, pickled=allow_pickle) for part in parts)


def list_names(folder: Path) -> set[str]:
    """The files of a folder and of its folders, linked ones too: `config.json`, `unet/...`."""
    names = set()
    for path in folder.iterdir():
        if path.is_dir():
            names |= {f"{path.name}/{file.name}" for file in path.iterdir() if file.is_file()}
        elif path.is_file():
            names.add(path.name)
    return names


def lean_files(
    parts: Sequence[Part], names: Collection[str], here: Collection[str], half: bool
) -> list[str]:
    """What a model in this precision needs of a repository: half the bytes for half precision.

    Full weights that are here already will do: a download of their halves would save nothing.
    """
    full = {part for part in parts if part.weights(here)[0] is None and part.weights(here)[1]}
    read = {name for part in parts for name in part.files(names, half and part not in full)}
    return sorted(read | ({INDEX} & set(names)))


def files_read(parts: Sequence[Part], names: Collection[str]) -> list[str]:
    """What is read of a model, in order: its index and the files of its parts."""
    read = {name for part in parts for name in part.files(names)}
    return sorted(read | ({INDEX} & set(names)))


def folder_digest(folder: Path, parts: Sequence[Part]) -> str:
    """SHA-256 over the names and bytes of what is read of a model. Raises OSError."""
    return digest_of({name: folder / name for name in files_read(parts, list_names(folder))})


def digest_of(files: Mapping[str, Path]) -> str:
    """SHA-256 over files' names and bytes, in this order."""
    digest = hashlib.sha256()
    for name, content in zip(files, file_digests(files.values()), strict=True):
        digest.update(name.encode() + b"\0" + content)
    return digest.hexdigest()


CACHED_FROM = 2**20  # bytes: smaller files are hashed at once
_SETTLED = 2.0  # seconds: a file that has changed just now may change again unseen


def file_digests(paths: Iterable[Path]) -> list[bytes]:
    """The SHA-256 of files; that of a large one is remembered until the file changes."""
    store = _cache_file()
    known: dict[str, str] = {}
    with suppress(OSError, ValueError):
        known = dict(json.loads(store.read_text())) if store else {}
    digests, new = [], {}
    for path in paths:
        about = path.stat()
        times = (about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino)
        key = " ".join(map(str, (*times, path.resolve())))
        if (remembered := known.get(key)) and about.st_size >= CACHED_FROM:
            digests.append(bytes.fromhex(remembered))
            continue
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").digest())
        if about.st_size >= CACHED_FROM and about.st_ctime < time.time() - _SETTLED:
            new[key] = digests[-1].hex()
    if new and store:
        _remember(store, known | new)
    return digests


def _cache_file() -> Path | None:
    """Where digests are remembered; None where the user has no home."""
    with suppress(RuntimeError):
        folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(folder, "sjc", "digests.json")
    return None


def _remember(store: Path, known: Mapping[str, str]) -> None:
    """As a whole, since others read it meanwhile; without a place for it all is hashed again."""
    with suppress(OSError):
        store.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=store.parent, delete=False) as file:
            json.dump(dict(list(known.items())[-1000:]), file)
        Path(file.name).replace(store)
