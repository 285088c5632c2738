"""The sample sheet of the prior that comes with the engine."""

import numpy as np

from sjc_engine.prior import load_prior
from sjc_engine.toybox.samples import sheet
from sjc_engine.views import view_prompts


def test_a_row_for_each_prompt_and_a_column_for_each_view():
    prior = load_prior("toybox")
    picture = sheet(prior, ["a yellow duck"], zoom=1)
    assert picture.size == (32 * len(view_prompts("sided")), 32 + 14)
    red, _, blue = np.moveaxis(np.asarray(picture, dtype=int)[14:], -1, 0)
    assert ((red > 150) & (blue < red - 80)).sum() > 200  # of 5 x 1024 pixels
