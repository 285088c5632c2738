"""Whether a model is what its folder says, from headers and small files: without torch, at once."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sjc_engine.errors import PriorError
from sjc_engine.priors.loading.expected_weights import (
    LAYOUTS,
    NEEDED,
    Shape,
    incomplete,
    usual_name,
)
from sjc_engine.priors.loading.model_files import SETTINGS, VOCABULARIES, Part, list_names

_POINTER = b"version https://git-lfs"
_WRAPPERS = ("module.", "_orig_mod.", "model.")  # of state dicts from DDP, torch.compile, Lightning
_PADDING = 128  # rows that an embedding may have beyond its tokenizer's words, for speed
_SHOWN = 3  # names in a message
DOWNLOAD = "download it again"
UNPICKLE = (
    "name a revision that has safetensors (owner/name@refs/pr/1), convert it, or allow it with"
    ' --allow-pickle: docs/priors.md, "Pickled weights"'
)
_OLD_PICKLE = b"\x80\x02\x8a\nl\xfc\x9cF\xf9"  # torch.save before 1.6: a pickle of its magic number
_MAY_BE_BLANK = ("special_tokens_map.json", "added_tokens.json")  # the tokenizer's own file says it


class _Broken(Exception):
    """What is wrong with which file of a component, and what to do."""

    def __init__(self, file: str, reason: str, fix: str = DOWNLOAD) -> None:
        super().__init__(file, reason, fix)
        self.file, self.reason, self.fix = file, reason, fix


@dataclass(frozen=True)
class _Read:
    """What a component's files say. rows: of a tokenizer, its words, if its files tell."""

    config: Mapping[str, Any]
    rows: int | None = None


def check_model(
    id: str, folder: Path, parts: Sequence[Part], key: str = "prior", *, weights: bool = True
) -> None:
    """Raises PriorError for the first component that would not load as what it should be.

    id: as the user named the model. key: whether it is a `prior` or a `judge`. weights: whether
    they are there too, and not settings alone.
    """
    read: dict[str, _Read] = {}
    for part in parts:
        try:
            read[part.name] = _read(folder, part, list_names(folder), weights)
            _check_together(part, read)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            reason = f"has settings that are not what they should be ({error})"
            raise broken(id, part.name, "", reason, DOWNLOAD, key) from error
        except _Broken as error:
            file = Path(error.file).name
            raise broken(id, part.name, file, error.reason, error.fix, key) from error
        except OSError as error:
            file = str(Path(error.filename or "").name)
            reason = f"cannot be read ({error.strerror or error})"
            raise broken(id, part.name, file, reason, "fix its permissions", key) from error


def check_named(id: str, parts: Sequence[Part], names: Set[str], key: str = "prior") -> None:
    """Raises PriorError for a component whose weights are not among the names of a repository."""
    for part in parts:
        if part.has_weights and not part.weights(names)[1]:
            error = _no_weights(part, names)
            raise broken(id, part.name, error.file, error.reason, error.fix, key)


def broken(
    id: str, component: str, file: str, reason: str, fix: str, key: str = "prior"
) -> PriorError:
    """The error of a model, with all that is known as one phrase."""
    where = f"its {component}: {file}" if file else f"its {component}"
    problem = f"{id!r} cannot be loaded; {where} {reason}"
    return PriorError(key, problem, fix, component=component, file=file, reason=reason)


def _read(folder: Path, part: Part, names: set[str], weights: bool) -> _Read:
    settings = part.settings(names)
    for name in [*settings, *(part.weights(names)[1] if weights else ())]:
        _check_bytes(folder / name)
    if part.kind == "tokenizer":
        return _Read({}, _words(folder, part, names))
    if not settings:
        raise _Broken(SETTINGS[part.kind][0], "is missing")
    config = _json(folder / settings[0])
    if part.kind == "scheduler":
        _check_schedule(settings[0], config)
    if part.kind not in ("network", "encoder"):
        return _Read(config)
    _check_class(settings[0], config, part.cls)
    if lacking := [key for key in NEEDED.get(part.cls, ()) if key not in config]:
        raise _Broken(settings[0], f"does not say {', '.join(lacking)}")
    shapes = weight_shapes(folder, part, names) if weights else None
    if shapes is None:
        return _Read(config)
    try:
        wanted = LAYOUTS[part.cls](config)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        reason = f"does not describe a {part.cls} ({type(error).__name__}: {error})"
        raise _Broken(settings[0], reason) from error
    _compare(part, part.weights(names)[1][0], shapes, wanted)
    return _Read(config)


def _check_bytes(path: Path) -> None:
    """What a download that went wrong leaves behind."""
    with path.open("rb") as file:
        start = file.read(len(_POINTER))
    if not start:
        raise _Broken(path.name, "is empty")
    if start == _POINTER:
        raise _Broken(path.name, "is a git-lfs pointer, not the file", "run `git lfs pull`")


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise _Broken(path.name, f"is not JSON ({error})") from error
    if not isinstance(value, dict) or not (value or path.name in _MAY_BE_BLANK):
        raise _Broken(path.name, "has no settings")
    return value


def _check_class(file: str, config: Mapping[str, Any], cls: str) -> None:
    """Diffusers' configs name a class, and transformers' a list of those that were saved."""
    named = config.get("_class_name") or next(iter(config.get("architectures") or []), None)
    # A T5 is often saved whole, with the decoder that nobody needs.
    if named not in (None, cls) and not str(named).startswith(cls.removesuffix("EncoderModel")):
        raise _Broken(file, f"is of a {named}, not a {cls}", "put the right file there")


def _check_schedule(file: str, config: Mapping[str, Any]) -> None:
    exploding = {"sigma_min", "sigma_max"} <= config.keys()
    steps = {"num_train_timesteps", "beta_schedule", "beta_start", "beta_end"} <= config.keys()
    if not (exploding or steps):
        raise _Broken(file, "has neither betas nor sigmas", "put the model's own scheduler there")


def weight_shapes(folder: Path, part: Part, names: set[str]) -> dict[str, Shape] | None:
    """The shape of every weight, by its name of today, from the files' headers.

    None of pickled ones, which have no header.
    """
    _, files = part.weights(names)
    if not files:
        raise _no_weights(part, names)
    index = files[0] if files[0].endswith(".json") else None
    shards = set(files[1:] if index else files)
    if index:
        folder_name = index.rpartition("/")[0]
        weight_map = _json(folder / index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise _Broken(index, "has no weight_map")
        wanted = {f"{folder_name}/{name}".lstrip("/") for name in weight_map.values()}
        if gone := sorted(wanted - shards):
            raise _Broken(gone[0], "is missing")
    if any(name.endswith(".bin") for name in shards):
        for name in shards:
            _check_pickle(folder / name)
        return None
    headers = [_header(folder / name)[0] for name in sorted(shards)]
    return {usual_name(k, part.cls): v for header in headers for k, v in header.items()}


def _no_weights(part: Part, names: Set[str]) -> _Broken:
    """What there is instead of weights that are read, and how they could be."""
    if pickled := replace(part, pickled=True).weights(names)[1]:
        shown = ", ".join(Path(name).name for name in pickled)
        reason = f"is pickled, and there are no safetensors beside it ({shown})"
        return _Broken(Path(pickled[-1]).name, reason, UNPICKLE)
    there = sorted(name for name in names if name.startswith(part.where(names)))
    if others := [Path(name).name for name in there if name.endswith((".ckpt", ".pt", ".pth"))]:
        fix = 'convert it, or name another model: docs/priors.md, "Pickled weights"'
        return _Broken(others[0], "is pickled, which is not read", fix)
    return _Broken("", "has no weights (*.safetensors)")


def _check_pickle(path: Path) -> None:
    """What shows of a file of torch.save without reading it: a whole zip, or the older format."""
    with path.open("rb") as file:
        old = file.read(len(_OLD_PICKLE)) == _OLD_PICKLE
    if not old and not zipfile.is_zipfile(path):  # whose table is at its end
        raise _Broken(path.name, "is damaged (neither a zip nor a pickle of torch.save)")


def read_header(path: Path, key: str) -> tuple[dict[str, Shape], dict[str, str]]:
    """The shapes of a safetensors file that the user has named, by its keys, and its metadata.

    key: the setting that names it. Raises PriorError.
    """
    try:
        _check_bytes(path)
        return _header(path)
    except _Broken as error:
        problem, reason, fix = f"{str(path)!r} {error.reason}", error.reason, error.fix
    except OSError as error:
        problem, fix = f"{str(path)!r} cannot be read ({error.strerror})", "name an existing file"
        reason = problem
    raise PriorError(key, problem, fix, file=path.name, reason=reason)


def _header(path: Path) -> tuple[dict[str, Shape], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:  # also checks that it is as long as it says
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in list(file.keys())}
            return shapes, file.metadata() or {}
    except (SafetensorError, ValueError) as error:
        raise _Broken(path.name, f"is damaged ({error})") from error


def _compare(
    part: Part, file: str, shapes: Mapping[str, Shape], wanted: Mapping[str, Shape | None]
) -> None:
    """Weights against those that the config asks for."""
    missing = sorted(wanted.keys() - shapes.keys()) or sorted(incomplete(set(shapes)))
    if missing:
        wrapper = next((w for w in _WRAPPERS if all(name.startswith(w) for name in shapes)), None)
        if wrapper:
            reason = f"has {wrapper!r} before each name, as a wrapped model was saved"
            raise _Broken(file, reason, "save it again without")
        shown = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
        raise _Broken(file, f"lacks {len(missing)} weights of a {part.cls} ({shown})")
    for name, shape in sorted(wanted.items()):
        if shape is not None and shapes[name] != shape and _squeezed(shapes[name]) != shape:
            reason = f"has {name} of shape {shapes[name]}, and its config.json asks for {shape}"
            raise _Broken(file, reason, "put weights and config of one model there")


def _squeezed(shape: Shape) -> Shape:
    """Some save a single number as a list of one."""
    return () if shape == (1,) else shape


def _words(folder: Path, part: Part, names: set[str]) -> int | None:
    """How many words a tokenizer knows, where a file says so in JSON."""
    where = part.where(names)
    if not part.vocabulary(names):
        choices = " or ".join(" and ".join(files) for files in VOCABULARIES)
        raise _Broken("", f"has no vocabulary ({choices})")
    if where + "tokenizer_config.json" not in names:
        raise _Broken("tokenizer_config.json", "is missing")
    texts = [name for name in part.settings(names) if name.endswith(".json")]
    parsed = {Path(name).name: _json(folder / name) for name in texts}
    added = set(parsed.get("added_tokens.json", {}))
    if "tokenizer.json" in parsed:
        model = parsed["tokenizer.json"].get("model")
        vocab = model.get("vocab") if isinstance(model, dict) else None
        if not vocab:
            raise _Broken("tokenizer.json", "has no vocabulary")
        known = set(vocab) if isinstance(vocab, dict) else {str(entry[0]) for entry in vocab}
        more = {token["content"] for token in parsed["tokenizer.json"].get("added_tokens") or []}
        return len(known | more | added)
    return len(set(parsed["vocab.json"]) | added) if "vocab.json" in parsed else None


def _check_together(part: Part, read: Mapping[str, _Read]) -> None:
    """What two components must agree in."""
    tokenizer = read.get("tokenizer")
    encoder = read.get("text_encoder") or read.get("model")
    if part.name in ("tokenizer", "text_encoder") and tokenizer and encoder and tokenizer.rows:
        config = encoder.config
        rows = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
        if rows is not None and not tokenizer.rows <= rows <= tokenizer.rows + _PADDING:
            reason = f"has {tokenizer.rows} words, and its text encoder {rows}"
            raise _Broken("", reason, "put the tokenizer of this model there")
    if part.name == "text_encoder" and "unet" in read:
        config, unet = read["text_encoder"].config, read["unet"].config
        width = config.get("hidden_size") or config.get("d_model")
        widths = ("encoder_hid_dim", "cross_attention_dim", "context_dim")
        wanted = next((unet[key] for key in widths if unet.get(key)), None)
        if width != wanted:
            reason = f"gives text embeddings {width} wide, and its unet takes {wanted}"
            raise _Broken("", reason, "put the text encoder of this model there")
    if part.name == "vae" and "unet" in read:
        latent, channels = read["vae"].config["latent_channels"], read["unet"].config["in_channels"]
        blocks = math.isqrt(channels // latent) ** 2 * latent  # of a network that unshuffles
        if channels not in (blocks, 2 * latent):
            reason = f"has latents of {latent} channels, and its unet takes {channels}"
            raise _Broken("", reason, "put the VAE of this model there")
