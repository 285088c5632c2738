"""How well an object's outlines agree with those of known instances, whichever way it faces."""

from __future__ import annotations

import torch
from torch import Tensor


def silhouette_match(field_masks: Tensor, instance_masks: Tensor) -> float:
    """The best mean IoU over instances and azimuth offsets, in [0, 1].

    `field_masks` (views, H, W) and `instance_masks` (n, views, H, W) are bool, seen by the same
    ring of cameras in equal steps of azimuth; an instance turned by k steps shows the same views k
    places on. Views that are empty in both agree fully. Raises ValueError for other shapes.
    """
    if field_masks.dim() != 3 or instance_masks.shape[1:] != field_masks.shape:
        raise ValueError(
            "expected masks (views, H, W) and (n, views, H, W), not"
            f" {tuple(field_masks.shape)} and {tuple(instance_masks.shape)}"
        )
    best = 0.0
    for offset in range(len(field_masks)):
        turned = instance_masks.roll(offset, dims=1)
        both = (turned & field_masks).sum(dim=(2, 3), dtype=torch.float64)
        either = (turned | field_masks).sum(dim=(2, 3), dtype=torch.float64)
        overlap = torch.where(either > 0, both / either.clamp(min=1), 1.0)
        best = max(best, float(overlap.mean(dim=1).max()))
    return best
