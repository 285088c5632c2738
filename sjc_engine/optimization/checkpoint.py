"""Files that are either whole or refused: safetensors with a JSON header and a digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sjc_engine.files import write_atomically


class CheckpointError(ValueError):
    """This file is not a usable checkpoint; the message names it and says why."""


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and a JSON header as one file, atomically; parent folders are made.

    Raises OSError, and RuntimeError when there is no memory for a copy.
    """
    stored = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    text = json.dumps(header, sort_keys=True)
    # safetensors copies thrice, and aborts the process where it cannot: this raises before.
    torch.empty(3 * sum(t.nbytes for t in stored.values()), dtype=torch.uint8)
    metadata = {"header": text, "sha256": _digest(stored, text)}
    write_atomically(path, save(stored, metadata=metadata))


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and header; CheckpointError unless every byte is as written."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"checkpoint {path} is torn or corrupt: {error}") from error
    if "header" not in metadata or "sha256" not in metadata:
        raise CheckpointError(f"{path} is not a checkpoint of this engine")
    if _digest(tensors, metadata["header"]) != metadata["sha256"]:
        raise CheckpointError(f"checkpoint {path} is corrupt: its digest does not match")
    return tensors, json.loads(metadata["header"])


def _digest(tensors: Mapping[str, Tensor], header: str) -> str:
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
