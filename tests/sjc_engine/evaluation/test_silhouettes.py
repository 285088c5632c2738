from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))
from demo import silhouette_match


def views(seed: int, count: int = 1) -> torch.Tensor:
    """Random blocky masks (count, 8, 16, 16)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 8, 4, 4, generator=generator) > 0.5
    return coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)


@pytest.mark.parametrize("turn", range(8))
def test_an_instance_matches_whichever_way_it_faces(turn: int) -> None:
    instances = views(0, 5)
    assert silhouette_match(instances[3].roll(turn, dims=0), instances) == 1.0


def test_the_score_is_the_mean_iou_of_the_best_instance() -> None:
    """Half planes against a quarter: IoU 1/2 in every view; the other instance overlaps less."""
    half = torch.zeros(8, 16, 16, dtype=torch.bool)
    half[:, :8] = True
    quarter, corner = torch.zeros_like(half), torch.zeros_like(half)
    quarter[:, :8, :8] = True
    corner[:, :4, :4] = True
    assert silhouette_match(half, torch.stack([corner, quarter])) == 0.5
    assert silhouette_match(half, torch.stack([~half])) == 0.0


def test_views_average_and_empty_views_agree() -> None:
    mask = torch.zeros(8, 4, 4, dtype=torch.bool)
    mask[0] = True
    instance = mask.clone()
    instance[0, :2] = False
    assert silhouette_match(mask, instance[None]) == pytest.approx((0.5 + 7) / 8)


def test_mirrored_order_is_not_a_turn() -> None:
    instances = views(1)
    assert silhouette_match(instances[0].flip(0), instances) < 0.8


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="expected masks"):
        silhouette_match(views(0)[0], views(0)[0])
