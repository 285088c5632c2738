from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_fields import centers, make_field, soft_density, sphere

import sjc_engine
from sjc_engine.rendering.volume import render_views
from sjc_engine.toybox.training.objects.catalogue import CATEGORIES, make_toy
from sjc_engine.toybox.training.shapes import Builder

sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))
from demo import SIZE, make, ring, roughness, silhouette_match, solid_components


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


def test_roughness_is_of_bumps_and_not_of_a_slope_or_an_outline():
    slope = np.linspace(0.2, 0.8, 32) * np.ones((1, 32, 1))
    bumps = slope + 0.09 * (np.indices((32, 32)).sum(0) % 2)
    disc = np.hypot(*(np.indices((32, 32)) - 15.5)) < 12
    assert roughness(slope, np.ones((1, 32, 32), bool)) == pytest.approx(0, abs=1e-6)
    assert roughness(np.where(disc, slope, 1.0), disc[None]) == pytest.approx(0, abs=1e-6)
    # Of nine pixels in a chessboard, five are like the middle one, and four differ by 0.09.
    assert roughness(bumps, np.ones((1, 32, 32), bool)) == pytest.approx(40)
    assert roughness(slope, np.zeros((1, 32, 32), bool)) == 0


def test_parts_of_a_toy_count_as_one_where_they_touch():
    toy = Builder()
    toy.ellipsoid((-0.5, 0, 0), 0.3, (1, 0, 0))
    toy.cone((0.5, 0, 0), 0.3, 0.3, 0.3, (1, 0, 0))
    assert solid_components(toy.build(0.6)) == 2
    toy.box((0, 0, 0), (0.3, 0.1, 0.1), (0, 1, 0))
    assert solid_components(toy.build(0.6)) == 1


@pytest.mark.parametrize("category", CATEGORIES)
def test_nothing_floats_beside_a_toy(category):
    """A handle that does not touch its pot is learnt, and ends as a part of its own in the mesh."""
    rng = np.random.default_rng(5)
    assert [solid_components(make_toy(category, rng)[0]) for _ in range(5)] == [1] * 5


def test_the_benchmark_measures_an_asset(tmp_path, monkeypatch):
    """All but the optimisation, on a field that is a ball of clay."""
    field = make_field(soft_density(sphere(0.4)(centers(48)), 60.0))
    monkeypatch.setattr(sjc_engine, "optimize", lambda *_, **__: [field])
    masks = {name: np.zeros((2, 8, SIZE, SIZE), bool) for name in CATEGORIES}
    with torch.no_grad():
        masks["duck"][1] = render_views(field, ring(), SIZE, SIZE).opacity > 0.5
    np.savez(tmp_path / "instances.npz", **masks, **{"clay-duck": (7.5, 1.0)})
    changes = {"texture_size": "0", "turntable_frames": "0"}
    result = make(("duck", "a duck", 0, "toybox", "draft", changes, tmp_path))
    assert (result.rival, result.components, result.no_mesh) == ("duck", 1, "")
    assert result.field_iou == 1
    assert result.mesh_iou > 0.95
    assert result.instance_roughness == 7.5
    assert 0 < result.roughness < 20
    assert (tmp_path / "duck-0.png").exists()
