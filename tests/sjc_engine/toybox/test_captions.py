"""Caption grammar, vocabulary and the coverage that a plan warns about."""

from __future__ import annotations

import numpy as np
import pytest

from sjc_engine.toybox.captions import NOUNS, caption, coverage, unknown_words
from sjc_engine.toybox.training.objects.catalogue import CATEGORIES

PAPER = (
    "A high quality photo of a delicious burger",
    "a DSLR photo of a yellow duck",
    "A ficus planted in a pot",
    "A product photo of a toy tank",
    "A high quality photo of a chocolate icecream cone",
    "A wide angle zoomed out photo of a giraffe",
)


def test_every_category_has_nouns():
    assert tuple(NOUNS) == CATEGORIES


@pytest.mark.parametrize("prompt", PAPER)
def test_the_papers_prompts_lie_inside_the_vocabulary(prompt):
    assert coverage(prompt) == 1.0
    assert unknown_words(prompt) == []


def test_coverage_counts_content_words():
    assert coverage("a photo of a red crocodile car") == pytest.approx(3 / 4)
    assert unknown_words("a photo of a red crocodile car") == ["crocodile"]


@pytest.mark.parametrize("prompt", ["A zoomed out photo", "Zelda Link", "a red photo", "", "🦆"])
def test_no_category_means_no_coverage(prompt):
    assert coverage(prompt) == 0.0


def test_words_match_whole():
    assert coverage("a carpet") == 0.0  # not a car


def test_captions_say_what_they_were_given():
    rng = np.random.default_rng(0)
    for _ in range(200):
        category = CATEGORIES[rng.integers(len(CATEGORIES))]
        text = caption(rng, category, "purple", "left side view of")
        assert text.startswith("left side view of ")
        assert "purple" in text
        assert any(noun.split()[0] in text for noun in NOUNS[category])
        assert coverage(text) == 1.0
