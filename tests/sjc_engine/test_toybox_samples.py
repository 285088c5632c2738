"""The sample sheet of the prior that comes with the engine."""

import numpy as np

from sjc_engine.figures import HEADER, LABELS, TILE
from sjc_engine.prior import load_prior
from sjc_engine.toybox.samples import sheet
from sjc_engine.views import view_prompts


def test_a_row_for_each_prompt_and_a_column_for_each_view():
    picture = sheet(load_prior("toybox"), ["a yellow duck"])
    assert picture.width >= LABELS + TILE * len(view_prompts("sided"))
    tiles = np.asarray(picture, dtype=int)[2 * HEADER : 2 * HEADER + TILE, LABELS:]
    red, _, blue = np.moveaxis(tiles, -1, 0)
    assert ((red > 150) & (blue < red - 80)).sum() > 9 * 200  # of 9 pixels for each of 5 x 1024
