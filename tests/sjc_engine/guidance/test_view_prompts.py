"""View prompts whose words and weights follow the camera."""

import pytest

from sjc_engine.guidance.view_prompts import away_from_front


@pytest.mark.parametrize(("azimuth_deg", "weight"), [(0, 0), (60, 0.25), (-90, 0.5), (180, 1)])
def test_not_the_front_counts_from_nothing_at_the_front_to_all_at_the_back(
    azimuth_deg: float, weight: float
) -> None:
    assert away_from_front(azimuth_deg) == pytest.approx(weight)
