"""Broken model folders by the hundred: refused, or loaded as what their files say.

`make fuzz` tries 500 of each family; FUZZ and FUZZ_SEED choose how many, and which.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from model_fuzzer import fuzz
from tiny_clip import save_tiny_clip
from tiny_priors import FAMILIES, build_mvdream_prior, build_zero123_prior

COUNT = int(os.environ.get("FUZZ", "20"))
SEED = int(os.environ.get("FUZZ_SEED", "18"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name, build in {
        **FAMILIES,
        "zero123": build_zero123_prior,
        "mvdream": build_mvdream_prior,
        "judge": save_tiny_clip,
    }.items():
        made[name] = tmp_path_factory.mktemp(name)
        build(made[name])
    return made


@pytest.mark.parametrize("family", [*FAMILIES, "zero123", "mvdream", "judge"])
def test_a_broken_folder_never_loads_as_another_model(
    family: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    tally = fuzz(family, folders, COUNT, SEED, tmp_path)
    print(family, tally.refused, "found without torch:", tally.found_by_check, tally.loaded)
    assert not tally.violations, "\n".join(tally.violations[:5])
    assert tally.refused.total() > COUNT / 2
    assert tally.found_by_check >= 0.9 * tally.refused.total() - 2
