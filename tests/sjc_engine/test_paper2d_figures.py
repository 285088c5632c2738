"""The picture of the 2D experiments: what is in it, and where."""

import numpy as np
import pytest
import torch
from tiny_priors import build_ddpm_prior, build_pixel_prior

from sjc_engine import paper2d as sample2d
from sjc_engine.paper2d import GAP, HEADER, LABELS, TILE, Panel, draw, experiments
from sjc_engine.priors.denoiser import load_prior


def tile(picture, top, row, column):
    """The pixels of one picture of a panel whose title begins at `top`."""
    x, y = LABELS + column * (TILE + GAP), top + 2 * HEADER + row * (TILE + GAP)
    return np.asarray(picture)[y : y + TILE, x : x + TILE]


def test_pictures_lie_at_their_row_and_column():
    red = torch.tensor([1.0, -1.0, -1.0]).view(3, 1, 1).expand(3, 4, 4)
    sheet = draw([Panel("a", ["x"], ["1"], [[-red]]), Panel("b", ["x"], ["1", "2"], [[None, red]])])
    height = 3 * HEADER + TILE + GAP
    assert sheet.size == (LABELS + 2 * (TILE + GAP), 2 * height)
    assert (tile(sheet, 0, 0, 0) == (0, 255, 255)).all()
    assert (tile(sheet, height, 0, 0) == 255).all()
    assert (tile(sheet, height, 0, 1) == (255, 0, 0)).all()


def test_a_row_of_the_grid_for_each_prior_and_one_scale_where_words_mean_nothing(
    tmp_path, monkeypatch
):
    guided = load_prior(str(build_pixel_prior(tmp_path / "pixel")))
    unguided = load_prior(str(build_ddpm_prior(tmp_path / "ddpm")))
    monkeypatch.setattr(sample2d, "draw", lambda panels: panels)
    heard = []
    *panels, grid = experiments(
        [guided, unguided],
        "a duck",
        guidance=(1.0, 5.0),
        steps=2,
        on_done=lambda done, total: heard.append((done, total)),
    )
    assert heard == [(k, 6) for k in range(1, 7)]
    assert [len(panel.rows) for panel in panels] == [3, 2, 3, 1]  # samples at both scales, at none
    assert grid.rows == [guided.id, unguided.id]
    assert grid.columns == [
        f"{schedule}, {scale}" for schedule in ("annealed", "random", "fixed") for scale in (1, 5)
    ]
    made = [[picture is not None for picture in row] for row in grid.pictures]
    assert made == [[True] * 6, [True, False] * 3]
    assert not torch.equal(grid.pictures[0][0], grid.pictures[0][1])  # guidance 1 and 5


@pytest.mark.parametrize("seed", [0, 3])
def test_the_same_seed_is_the_same_picture(tmp_path, seed):
    prior = load_prior(str(build_ddpm_prior(tmp_path / "ddpm")))
    first, second, other = (
        np.asarray(experiments([prior], "x", guidance=(1.0,), steps=2, seed=s))
        for s in (seed, seed, seed + 1)
    )
    assert (first == second).all()
    assert (first != other).any()
