from __future__ import annotations

import pytest

from sjc_engine.evaluation.distractors import (
    CATEGORIES,
    DISTRACTORS,
    DISTRACTORS_SHA256,
    rivals,
    without_colors,
)
from sjc_engine.toybox.captions import NOUNS


def test_the_list_is_the_one_that_scores_were_made_with() -> None:
    """A change makes every recorded R-Precision a different measure: it must be meant."""
    assert DISTRACTORS_SHA256 == "3bff95dedae41f1e1f389563917ac62ccf059c9c3f49c407fcbe9e4c7b75758a"
    assert len(set(DISTRACTORS)) == len(DISTRACTORS) == 98


def test_every_caption_is_of_a_known_category() -> None:
    for caption in DISTRACTORS:
        assert caption not in rivals(caption)
        assert any(name in caption for names in CATEGORIES for name in names)


@pytest.mark.parametrize("noun", [noun for nouns in NOUNS.values() for noun in nouns])
def test_what_the_embedded_prior_draws_has_rivals_of_other_categories_only(noun: str) -> None:
    (category,) = {names[0] for names in CATEGORIES if NOUNS_OF[noun] in names}
    left = rivals(f"A wide angle zoomed out photo of a red {noun}")
    assert not [caption for caption in left if category in caption.split()]
    assert 90 < len(left) < len(DISTRACTORS)


NOUNS_OF = {noun: category for category, nouns in NOUNS.items() for noun in nouns}


@pytest.mark.parametrize(
    ("prompt", "absent", "present"),
    [
        ("three yellow DUCKS in a row", "a photo of a yellow duck", "a photo of a yellow lamp"),
        ("a hamburger", "a photo of a delicious burger", "a photo of a brown table"),
        ("an ice-cream, melting", "a photo of a vanilla icecream", "a photo of a red apple"),
        ("a toadstool", "a photo of a red mushroom", "a photo of a red chair"),  # no "stool"
        ("a photo of a zebra", "", "a photo of a giraffe"),
    ],
)
def test_captions_of_the_prompts_own_category_do_not_compete(
    prompt: str, absent: str, present: str
) -> None:
    assert absent not in rivals(prompt)
    assert present in rivals(prompt)


@pytest.mark.parametrize(
    ("caption", "plain"),
    [
        ("a DSLR photo of a yellow duck", "a DSLR photo of a duck"),
        ("A Green toy tank", "A toy tank"),
        ("a red and white cup on an orange", "a cup on an orange"),
        ("an orange and a red apple", "an orange and an apple"),
        ("a chocolate icecream cone", "an icecream cone"),
        ("two red, white and blue boats", "two boats"),
        ("a house with a red roof", "a house with a roof"),
        ("a rose that is pink", "a rose that is pink"),
        ("a redwood", "a redwood"),
        ("an orange", "an orange"),
    ],
)
def test_a_caption_without_its_colours(caption: str, plain: str) -> None:
    assert without_colors(caption) == plain
