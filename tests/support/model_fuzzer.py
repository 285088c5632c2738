"""Model folders as downloads, copies and conversions leave them, and what loading makes of them."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sjc_engine.errors import PriorError
from sjc_engine.evaluation.clip import load_judge
from sjc_engine.priors.denoiser import load_prior
from sjc_engine.priors.loading.model_files import files_read, list_names
from sjc_engine.priors.sources import ModelSource, find_judge, find_prior, judge_error, prior_error

NETWORKS = ("_unet", "_text_encoder", "_vae", "_image_encoder", "_projection", "_model")
Change = Callable[[random.Random, Path, Path], None]  # of a file, with a folder of another family


def _weights(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    tensors = change(load_file(path))
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)


def _truncate(rng: random.Random, path: Path, _: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))])


def _from_another_family(rng: random.Random, path: Path, other: Path) -> None:
    same = [p for p in sorted(other.rglob("*")) if p.name == path.name]
    shutil.copy(rng.choice(same), path) if same else path.unlink()


def _from_another_component(rng: random.Random, path: Path, _: Path) -> None:
    root = (
        path.parent.parent if (path.parent.parent / "model_index.json").is_file() else path.parent
    )
    same = [p for p in sorted(root.rglob(f"*{path.suffix}")) if p != path]
    shutil.copy(rng.choice(same), path) if same else path.unlink()


def _half(rng: random.Random, path: Path, _: Path) -> None:
    def half(tensors: dict[str, Any]) -> dict[str, Any]:
        kept = rng.sample(sorted(tensors), max(1, len(tensors) // 2))
        return {key: tensors[key] for key in kept}

    _weights(path, half)


def _without_one(rng: random.Random, path: Path, _: Path) -> None:
    def less(tensors: dict[str, Any]) -> dict[str, Any]:
        tensors.pop(rng.choice(sorted(tensors)))
        return tensors or {"nothing": torch.zeros(1)}

    _weights(path, less)


def _wrapped(rng: random.Random, path: Path, _: Path) -> None:
    prefix = rng.choice(["module.", "_orig_mod.", "model.", "unet."])
    _weights(path, lambda tensors: {prefix + key: value for key, value in tensors.items()})


def _other_shape(rng: random.Random, path: Path, _: Path) -> None:
    """Of one matrix, which is turned or loses a row."""

    def reshaped(tensors: dict[str, Any]) -> dict[str, Any]:
        key = rng.choice(sorted(key for key, value in tensors.items() if value.dim() > 1))
        value = tensors[key]
        turned = value.shape[0] != value.shape[1] and rng.random() < 0.5
        tensors[key] = value.transpose(0, 1) if turned else value[1:]
        return tensors

    _weights(path, reshaped)


def _swapped_shapes(rng: random.Random, path: Path, _: Path) -> None:
    """Of two weights, which have each other's values."""

    def swapped(tensors: dict[str, Any]) -> dict[str, Any]:
        one = rng.choice(sorted(tensors))
        others = sorted(k for k, v in tensors.items() if v.shape != tensors[one].shape)
        if others:
            other = rng.choice(others)
            tensors[one], tensors[other] = tensors[other], tensors[one]
        return tensors

    _weights(path, swapped)


def _rename(rng: random.Random, path: Path, _: Path) -> None:
    path.rename(path.with_name(rng.choice(["old_", "x."]) + path.name))


def _holding(content: str) -> Change:
    def write(_: random.Random, path: Path, __: Path) -> None:
        path.write_text(content)

    return write


ANY: dict[str, Change] = {
    "drop": lambda _, path, __: path.unlink(),
    "empty": _holding(""),
    "truncate": _truncate,
    "rename": _rename,
    "git-lfs pointer": _holding("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    "file of another family": _from_another_family,
    "file of another component": _from_another_component,
}
OF_JSON = {"empty JSON": _holding("{}"), "no object": _holding("[1]")}
OF_WEIGHTS: dict[str, Change] = {
    "half": _half,
    "one missing": _without_one,
    "prefix": _wrapped,
    "another shape": _other_shape,
    "swapped shapes": _swapped_shapes,
}


@dataclass
class Tally:
    """How a folder's mutations ended; violations are what must not be."""

    refused: Counter[str] = field(default_factory=Counter)
    found_by_check: int = 0
    loaded: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)


def fuzz(family: str, folders: Mapping[str, Path], count: int, seed: int, place: Path) -> Tally:
    """Changes one file that is read, `count` times, and loads the folder each time."""
    rng, tally = random.Random(f"{family}{seed}"), Tally()
    find = find_judge if family == "judge" else find_prior
    source = find(str(folders[family]))
    names = files_read(source.parts, list_names(source.folder))
    for number in range(count):
        folder = place / "model"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(folders[family], folder)
        name = rng.choice(names)
        changes = ANY | (OF_JSON if name.endswith(".json") else {})
        changes |= OF_WEIGHTS if name.endswith(".safetensors") else {}
        kind = rng.choice(sorted(changes))
        other = folders[rng.choice(sorted(folders.keys() - {family}))]
        changes[kind](rng, folder / name, other)
        what = f"{family} {number}: {name}: {kind}"
        outcome = _outcome(source, folder)
        if outcome == "refused":
            tally.refused[kind] += 1
            tally.found_by_check += _found_by_check(source, folder)
        elif outcome == "loaded":
            tally.loaded[kind] += 1
        else:
            tally.violations.append(f"{what}: {outcome}")
    return tally


def _found_by_check(source: ModelSource, folder: Path) -> bool:
    return (judge_error if source.kind == "judge" else prior_error)(str(folder)) is not None


def _outcome(source: ModelSource, folder: Path) -> str:
    judge = source.kind == "judge"
    try:
        model: Any = (load_judge if judge else load_prior)(str(folder))
    except PriorError:
        return "refused"
    except Exception as error:  # this is what the fuzzer looks for
        return f"{type(error).__name__}: {error}"
    before, after = _bytes(source.folder, source), _bytes(folder, source)
    if before != after and model.revision == source.revision:
        return "another model under the same revision"
    if before == after and model.revision != source.revision:
        return "the same model under another revision"
    strange = _strangers(model, folder)
    return f"not from the files: {', '.join(strange[:3])}" if strange else "loaded"


def _bytes(folder: Path, source: ModelSource) -> dict[str, bytes]:
    return {n: (folder / n).read_bytes() for n in files_read(source.parts, list_names(folder))}


def _strangers(model: Any, folder: Path) -> list[str]:
    """Parameters whose values are in none of the folder's files."""
    known = {
        _hash(tensor)
        for path in folder.rglob("*.safetensors")
        for tensor in load_file(path).values()
    }
    networks = [getattr(model, name) for name in NETWORKS if getattr(model, name, None) is not None]
    return [
        name
        for network in networks
        for name, parameter in network.named_parameters()
        if _hash(parameter.detach()) not in known
    ]


def _hash(tensor: torch.Tensor) -> str:
    data = tensor.float().contiguous().numpy().tobytes()
    return hashlib.sha256(repr(tuple(tensor.shape)).encode() + data).hexdigest()
