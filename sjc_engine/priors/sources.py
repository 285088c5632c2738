"""Which model a name means: its files, their revision, its family and licence.

Looking for a model imports neither torch nor transformers.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from sjc_engine.errors import PriorError, SettingError
from sjc_engine.priors.loading import lora
from sjc_engine.priors.loading.components import ModelSource, hub_file, read_index
from sjc_engine.priors.loading.model_files import INDEX, folder_digest
from sjc_engine.priors.loading.single_file import BASES, SingleFile, base_of, split_file

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
    "MVDreamPipeline": "mvdream",
}
# What the hub ids of the other families have in them
HUB_FAMILIES = {
    "DeepFloyd/IF-I-": "deepfloyd",
    "google/ddpm-": "unconditional",
    "google/ncsnpp-": "unconditional",
    "zero123-": "zero123",  # of kxic, ashawkey, bennyguo; zero123plus-... are something else
    "/stable-zero123": "zero123",
    "ashawkey/mvdream-": "mvdream",
    "dylanebert/mvdream": "mvdream",
    "lzq49/mvdream-": "mvdream",
    "mindazhao/mvdream-": "mvdream",
}
# Not the path of a checkpoint that is not there
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(?<!\.safetensors)(?<!\.ckpt)")
_REVISION = re.compile(r"\w[\w.-]*(/[\w.-]+)*")


def find_prior(
    id: str,
    revision: str | None = None,
    local_files_only: bool = False,
    allow_pickle: bool = False,
    loras: str = lora.NONE,
) -> ModelSource:
    """Resolve a prior's name to its files without loading them.

    Raises PriorError when the name is neither a builtin, an existing folder, "owner/name" nor
    "owner/name@revision", when the hub has no such model at this revision, or when its files are
    not what they should be. allow_pickle, loras: as of `load_prior`.
    """
    source = replace(_find_prior(id, revision, local_files_only, allow_pickle), loras=loras)
    source.check_loras()
    return source


def _find_prior(
    id: str, revision: str | None, local_files_only: bool, allow_pickle: bool
) -> ModelSource:
    if split_file(id):
        single = _single_file(id, local_files_only=local_files_only)
        return _at_revision(single, single.digest(), revision)
    if source := _local_source("prior", id, allow_pickle):
        return _at_revision(source, folder_digest(source.folder, source.parts), revision)
    name, named = split_revision(id)
    folder = hub_file("prior", name, INDEX, revision or named, local_files_only).parent
    family = _read_family(folder)
    source = ModelSource(
        "prior", name, folder, folder.name, family, True, local_files_only, allow_pickle
    )
    source.check()
    return source


def _at_revision(source: ModelSource, digest: str, wanted: str | None) -> ModelSource:
    if wanted not in (None, digest):
        problem = f"{source.id!r} has revision {digest}, not the wanted {wanted}"
        raise PriorError("prior", problem, "restore those weights, or plan again")
    return replace(source, revision=digest)


def _single_file(id: str, *, local_files_only: bool) -> SingleFile:
    """A single file beside the settings of its base. Raises PriorError."""
    found, base = split_file(id), base_of(id)
    assert found is not None
    folder, (name, named) = Path(base), split_revision(base)
    on_hub = not folder.is_dir()
    if on_hub and not _is_hub_id(base):
        problem = f"the base {base!r} of {str(found[0])!r} is unknown"
        raise PriorError("prior", problem, "name a folder or owner/name")
    try:
        if on_hub:
            folder = hub_file("prior", name, INDEX, named, local_files_only).parent
        source = SingleFile(
            "prior", id, folder, "", _read_family(folder), on_hub, local_files_only,
            file=found[0], base=name,
        )  # fmt: skip
        if on_hub:
            source.fetch_settings()
    except PriorError as error:
        if not on_hub:
            raise
        problem = f"{id!r} needs the settings and the vocabulary of {base}: {error.problem}"
        files = 'model_index.json "*/*config.json" "tokenizer/*"'
        fix = f"on a machine with access run: hf download {name} {files}"
        raise PriorError("prior", problem, fix) from error
    if source.family != "stable_diffusion":
        fix = f"name one such as {next(iter(BASES.values()))}"
        raise PriorError("prior", f"the base {base!r} is no Stable Diffusion", fix)
    source.check()
    return source


def find_judge(id: str, allow_pickle: bool = False) -> ModelSource:
    """Resolve a judge's name to its files, checked and not loaded. Raises PriorError."""
    if id in JUDGES and not JUDGES[id].is_dir():
        fix = "install the package again, or name the folder of another judge"
        raise PriorError("judge", f"the weights of {id!r} are not in {JUDGES[id]}", fix)
    if source := _local_source("judge", id, allow_pickle):
        return replace(source, revision=folder_digest(source.folder, source.parts))
    name, revision = split_revision(id)
    folder = hub_file("judge", name, "config.json", revision).parent
    return ModelSource("judge", name, folder, folder.name, "judge", True, False, allow_pickle)


def precision_on(device: str, dtype: str | None) -> str:
    """The precision of a prior's network on a kind of device, such as "cuda"; "auto" is None's."""
    if dtype not in (None, "auto"):
        return str(dtype)
    return "float32" if device == "cpu" else "float16"


def split_revision(id: str) -> tuple[str, str | None]:
    """A hub id and what stands behind its @: a branch, a tag, refs/pr/1 or a commit; else None.

    A folder may have an @ in its path.
    """
    name, at, revision = id.partition("@")
    is_model = HUB_ID.fullmatch(name) and _REVISION.fullmatch(revision)
    return (name, revision) if at and is_model and not Path(id).exists() else (id, None)


def judge_error(id: str, allow_pickle: bool = False) -> PriorError | None:
    """What is wrong with a judge's name and files, as this machine knows it without the hub."""
    return _local_error("judge", id, allow_pickle)


def lpips_error(id: str) -> PriorError | None:
    """What is wrong with the name and the files of LPIPS weights."""
    return None if id == "none" else _local_error("lpips", id)


def loras_error(loras: str, prior: str, allow_pickle: bool = False) -> SettingError | None:
    """What keeps LoRA from being used with a prior that is known to be right."""
    try:
        source = _local_source("prior", prior, allow_pickle)
        if source is None:
            lora.check(loras)
        else:
            replace(source, loras=loras).check_loras()
    except SettingError as error:
        return error
    return None


def prior_error(id: str, allow_pickle: bool = False) -> PriorError | None:
    """What is wrong with a prior's name and files, as this machine knows it without the hub."""
    return _local_error("prior", id, allow_pickle)


def _local_error(kind: str, id: str, allow_pickle: bool = False) -> PriorError | None:
    try:
        _local_source(kind, id, allow_pickle)
    except PriorError as error:
        return error
    return None


def _local_source(kind: str, id: str, allow_pickle: bool) -> ModelSource | None:
    """A model's own folder, checked, its revision still unknown; None for what is on the hub.

    kind: `prior`, `judge` or `lpips`. Raises PriorError.
    """
    folder = {"prior": BUILTINS, "judge": JUDGES}.get(kind, {}).get(id, Path(id))
    if folder.is_dir():
        family = _read_family(folder) if kind == "prior" else kind
        source = ModelSource(kind, id, folder, "", family, allow_pickle=allow_pickle)
        source.check()
        return source
    if kind == "lpips":
        fix = "write none, or a folder of weights (docs/tables.md)"
        raise PriorError("lpips", f"{id!r:.60} is not a folder", fix)
    if kind == "prior" and split_file(id):
        if not _is_hub_id(base_of(id)):  # of the hub's, what is not here can come
            _single_file(id, local_files_only=True)
        return None
    if kind == "prior" and folder.is_file():
        fix = 'convert it to safetensors: docs/priors.md, "Pickled weights"'
        problem = f"{id!r} is a single file, and not of safetensors"
        raise PriorError("prior", problem, fix, file=folder.name)
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
    """A prior's folder: its own, or the snapshot of a hub id in the cache, if there is one.

    Of a single file that of its base.
    """
    if split_file(id):
        with contextlib.suppress(PriorError):
            id = base_of(id)
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
    "ashawkey/mvdream-": "openrail",
    "kxic/zero123-": "mit",
    "bennyguo/zero123-": "mit",
    "ashawkey/zero123-": "mit",
    "kxic/stable-zero123": "stabilityai-nc-research-community",
    "ashawkey/stable-zero123-": "stabilityai-nc-research-community",
}


def licence_of(id: str, revision: str | None = None) -> str:
    """What is known of the licence of a prior's weights: what its model card says in its header.

    The card is README.md in its folder, or in the hub's cache; else its id tells, or "unknown".
    """
    if id in BUILTINS:
        return "apache-2.0"
    if split_file(id):  # its base's licence says little of it
        return "unknown"
    import yaml
    from huggingface_hub import metadata_load

    with contextlib.suppress(OSError, ValueError, yaml.YAMLError):
        card = metadata_load(known_folder(id, revision) / "README.md") or {}
        if named := card.get("license"):
            return str(named)
    return next((name for start, name in LICENCES.items() if id.startswith(start)), "unknown")
