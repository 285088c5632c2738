"""The judge: a contrastive image-text model (transformers CLIPModel) that scores pictures.

One code path serves the small judge that ships with the package and the published CLIP models.
Pictures are resized in torch, so that neither torchvision nor PIL has a say in a score.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sjc_engine.errors import PriorError
from sjc_engine.priors.denoiser import tokens_end
from sjc_engine.priors.loading.model_check import DOWNLOAD
from sjc_engine.priors.sources import find_judge

BATCH = 32  # images or texts to a call of the network
_RESAMPLING = {2: "bilinear", 3: "bicubic"}  # PIL's numbers, as preprocessor_config.json has them


@dataclass(frozen=True)
class Preprocessing:
    """How a CLIP model wants its pictures (preprocessor_config.json)."""

    size: int  # pixels, of the shorter edge
    crop: int  # pixels, of the square cut from the middle
    mean: tuple[float, ...]  # of RGB in [0, 1]
    std: tuple[float, ...]
    mode: str  # "bilinear" or "bicubic"

    def __call__(self, images: Tensor) -> Tensor:
        """The network's input (B, 3, crop, crop) for images (B, 3, H, W) in [-1, 1]."""
        height, width = images.shape[-2:]
        scale = self.size / min(height, width)
        shape = [max(self.size, round(height * scale)), max(self.size, round(width * scale))]
        images = F.interpolate((images + 1) / 2, shape, mode=self.mode, antialias=True)
        top, left = (shape[0] - self.crop) // 2, (shape[1] - self.crop) // 2
        images = images[..., top : top + self.crop, left : left + self.crop].clamp(0, 1)
        mean, std = images.new_tensor([self.mean, self.std])[:, :, None, None].unbind(0)
        return (images - mean) / std


class Judge:
    """A loaded model. `id` and `revision` go into every row that it scored."""

    def __init__(
        self, id: str, revision: str, model: Any, tokenizer: Any, preprocessing: Preprocessing
    ) -> None:
        self.id = id
        self.revision = revision
        self._model = model.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._preprocessing = preprocessing
        self._length: int = model.config.text_config.max_position_embeddings  # tokens of a text
        self._texts: dict[str, Tensor] = {}  # the distractors come again with every asset

    @torch.no_grad()
    def image_features(self, images: Tensor) -> Tensor:
        """Unit features (B, D), on the CPU, of RGB images (B, 3, H, W) in [-1, 1]."""
        parts = (part.to(self._model.device) for part in images.float().split(BATCH))
        inputs = map(self._preprocessing, parts)
        return _unit([self._model.get_image_features(pixel_values=part) for part in inputs])

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Unit features (B, D), on the CPU. Long texts are cut, at `read_end`."""
        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        for start in range(0, len(new), BATCH):
            batch = new[start : start + BATCH]
            tokens = self._tokenizer(
                batch, padding=True, truncation=True, max_length=self._length, return_tensors="pt"
            )
            features = self._model.get_text_features(**tokens.to(self._model.device))
            self._texts |= dict(zip(batch, _unit([features]), strict=True))
        return torch.stack([self._texts[text] for text in texts])

    def read_end(self, text: str) -> int:
        """The index from which on a text is cut; its length if it is not."""
        return tokens_end(self._tokenizer, text, self._length)


def load_judge(
    id: str = "toybox", device: str | torch.device = "cpu", allow_pickle: bool = False
) -> Judge:
    """Load "toybox", a folder in transformers' CLIPModel layout, or a hub id.

    The revision is a folder's digest, or the hub's commit. allow_pickle: as of `load_prior`.
    Raises PriorError, saying what is missing and how to get it.
    """
    from transformers import CLIPModel, CLIPTokenizer

    source = find_judge(id, allow_pickle)
    source.fetch()
    model: Any = source.encoder(CLIPModel, "model", torch.float32)
    tokenizer = source.tokenizer(CLIPTokenizer, model.config.text_config.vocab_size)
    [settings] = source.settings("preprocessor")[:1]
    return Judge(id, source.revision, model.to(device), tokenizer, read_preprocessing(settings))


def read_preprocessing(path: Path) -> Preprocessing:
    """Read preprocessor_config.json, of old files (`size: 224`) and new ones alike, or
    processor_config.json, which transformers 5 writes instead.

    Raises PriorError for a setting that this module does not follow.
    """
    config = json.loads(path.read_text("utf-8"))
    config = config.get("image_processor", config)
    if missing := sorted({"size", "image_mean", "image_std"} - config.keys()):
        problem = f"{path} does not say {', '.join(missing)}"
        raise PriorError("judge", problem, DOWNLOAD, component="preprocessor", file=path.name)
    size, crop = config["size"], config.get("crop_size")
    if isinstance(size, dict):
        size = size.get("shortest_edge") or size.get("height")
    if isinstance(crop, dict):
        crop = crop["height"]
    mode = _RESAMPLING.get(config.get("resample", 3))
    if mode is None or not isinstance(size, int):
        problem = f"{path} asks for another resizing than bilinear or bicubic, to a square"
        raise PriorError("judge", problem, "name another judge", file=path.name)
    return Preprocessing(
        size=size,
        crop=crop if crop and config.get("do_center_crop", True) else size,
        mean=tuple(config["image_mean"]),
        std=tuple(config["image_std"]),
        mode=mode,
    )


def _unit(outputs: list[Any]) -> Tensor:
    """Unit rows of the network's outputs: tensors, or since transformers 5 objects with them."""
    features = [getattr(output, "pooler_output", output) for output in outputs]
    return F.normalize(torch.cat(features).float().cpu(), dim=1)
