"""LPIPS, a learned distance between pictures (Zhang et al. 2018, arXiv 1801.03924).

Its usual package needs torchvision, which is a second build to match with torch and with CUDA, for
what is a stack of convolutions and a weighted sum. The weights stay the published ones: a folder
with `config.json` ({"network": "alex"} or "vgg") and `model.safetensors`; `save_lpips` makes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sjc_engine.errors import SettingError
from sjc_engine.priors.loading.expected_weights import LPIPS
from sjc_engine.priors.loading.model_files import PARTS, folder_digest

# Of torchvision's `features`: the width of the pooling windows, which halve, and the stride and
# padding of those convolutions where they are not both 1.
_NETWORKS: dict[str, tuple[int, dict[int, tuple[int, int]]]] = {
    "alex": (3, {0: (4, 2), 3: (1, 2)}),
    "vgg": (2, {}),
}
_TAPS = {network: taps for network, (_, taps) in LPIPS.items()}
# What takes RGB in [-1, 1] to the range that both networks were trained on.
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class Lpips:
    """Loaded weights. `id` and `revision` go into every row that was measured with them."""

    def __init__(self, id: str, revision: str, network: str, weights: Mapping[str, Tensor]) -> None:
        self.id = id
        self.revision = revision
        self._network = network
        self._weights = weights

    @torch.no_grad()
    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances (B,), at least 0, 0 for equal pictures, of RGB images (B, 3, H, W) in [-1, 1].

        Equation 1: d = sum_l 1/(H_l W_l) sum_hw |w_l * (y_l(a) - y_l(b))|^2, where y_l are layer
        l's features with unit length along the channels; the files hold w_l squared.
        """
        total = torch.zeros(len(a))
        pairs = zip(self._features(a), self._features(b), strict=True)
        for tap, (one, other) in zip(_TAPS[self._network], pairs, strict=True):
            squared = (_unit(one) - _unit(other)).square()
            total += F.conv2d(squared, self._weights[f"lin.{tap}"]).mean((1, 2, 3))
        return total

    def _features(self, images: Tensor) -> list[Tensor]:
        shift, scale = images.new_tensor([_SHIFT, _SCALE])[:, :, None, None].unbind(0)
        x = (images.float() - shift) / scale
        pool, special = _NETWORKS[self._network]
        taken, before = [], 0
        for number in LPIPS[self._network][0]:
            if number > before + 2:  # between them is a pooling, and not the ReLU alone
                x = F.max_pool2d(x, pool, stride=2)
            name, before = f"features.{number}", number
            weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
            x = F.relu(F.conv2d(x, weight, bias, *special.get(number, (1, 1))))
            if number in _TAPS[self._network]:
                taken.append(x)
        return taken


def _unit(features: Tensor) -> Tensor:
    return features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10)


def load_lpips(id: str) -> Lpips:
    """Load a folder of `save_lpips`; SettingError, saying what is missing and how to get it."""
    folder = Path(id)
    problem = "there is no such folder"
    try:
        if folder.is_dir():
            network = json.loads((folder / "config.json").read_text("utf-8"))["network"]
            weights = load_file(folder / "model.safetensors")
            _check(network, weights)
            return Lpips(id, folder_digest(folder, PARTS["lpips"]), network, weights)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        problem = str(error) or type(error).__name__
    fix = "make the folder as docs/tables.md says under LPIPS, or write none"
    raise SettingError("lpips", f"the weights {id!r} cannot be loaded ({problem})", fix)


def save_lpips(
    folder: str | Path, network: str, features: Mapping[str, Tensor], lins: Mapping[str, Tensor]
) -> None:
    """Write the folder that `load_lpips` reads.

    network: "alex" or "vgg". features: the state of torchvision's AlexNet or VGG16; only its
    `features.*` are kept. lins: the state of package `lpips` for it (`lin0.model.1.weight`, ...).
    Raises ValueError when weights are missing.
    """
    if network not in _NETWORKS:
        raise ValueError(f"network {network!r} is unknown; use {' or '.join(_NETWORKS)}")
    weights = {key: value for key, value in features.items() if key.startswith("features.")}
    for number, tap in enumerate(_TAPS[network]):
        if (key := f"lin{number}.model.1.weight") not in lins:
            raise ValueError(f"{key} is missing among the linear weights")
        weights[f"lin.{tap}"] = lins[key]
    _check(network, weights)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.float().contiguous() for k, v in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"network": network}) + "\n", "utf-8")


def _check(network: str, weights: Mapping[str, Tensor]) -> None:
    """Raises ValueError unless the weights are those of the network, in shapes that fit."""
    if network not in _NETWORKS:
        raise ValueError(f"network {network!r} is unknown")
    blank = torch.zeros(1, 3, 64, 64)
    try:
        Lpips("", "", network, weights)(blank, blank)
    except KeyError as error:
        raise ValueError(f"{error.args[0]} is missing") from error
    except RuntimeError as error:
        raise ValueError(f"weights of another shape: {error}") from error
