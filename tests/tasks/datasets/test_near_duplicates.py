"""Near-duplicate prompts against the definition, pair by pair."""

from __future__ import annotations

import itertools
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.datasets.near_duplicates import near_duplicates, normalised, without_near_duplicates

WORDS = ["a", "photo", "of", "red", "blue", "green", "duck", "ducks", "chair", "DSLR", "3D"]
PROMPTS = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=7).map(" ".join))


def similarity(first: str, second: str) -> float:
    """By the definition: the Jaccard index of the words' padded trigrams."""
    one, other = (
        {f"  {word} "[k : k + 3] for word in re.findall(r"\w+", text.lower())
         for k in range(len(word) + 1)}
        for text in (first, second)
    )  # fmt: skip
    return len(one & other) / len(one | other)


@given(PROMPTS, st.sampled_from([0.3, 0.5, 0.8, 0.85, 1.0]))
def test_exactly_the_pairs_above_the_threshold(prompts: list[str], similar: float) -> None:
    wanted = {
        pair
        for pair in itertools.combinations(sorted(set(prompts)), 2)
        if similarity(*pair) >= similar - 1e-9
    }
    found = near_duplicates(prompts, similar)
    assert {(pair.first, pair.second) for pair in found} == wanted
    assert [p.similarity for p in found] == sorted((p.similarity for p in found), reverse=True)
    for pair in found:
        assert pair.similarity == pytest.approx(similarity(pair.first, pair.second), abs=1e-4)


def test_thousands_with_few_words_are_all_compared() -> None:
    """More than one block of rows and of pairs, against the definition on a sample."""
    chance = random.Random(0)
    prompts = sorted({" ".join(chance.choices(WORDS, k=6)) for _ in range(2500)})
    found = {(pair.first, pair.second) for pair in near_duplicates(prompts, 0.8)}
    for first in chance.sample(prompts, 40):
        for second in prompts:
            if first < second:
                assert ((first, second) in found) == (similarity(first, second) >= 0.8 - 1e-9)


def test_case_marks_and_order_do_not_count() -> None:
    (pair,) = near_duplicates(["A red chair!", "chair, a RED", "a blue chair"])
    assert pair.similarity == 1
    assert normalised("Ａ  Straße—№1") == "a strasse no1"
    assert normalised("🦆 ") == "🦆"
    assert near_duplicates(["🦆", "🦆🦆", "a duck"]) == []
    assert near_duplicates([]) == []


@given(PROMPTS)
def test_dedupe_leaves_no_pair_and_drops_nothing_for_nothing(prompts: list[str]) -> None:
    scores = {prompt: float(len(prompt)) for prompt in prompts}
    pairs = near_duplicates(list(scores), 0.6)
    kept = without_near_duplicates(scores, pairs)
    assert not any(pair.first in kept and pair.second in kept for pair in pairs)
    for prompt in scores.keys() - kept:
        rivals = {p.second if p.first == prompt else p.first for p in pairs
                  if prompt in (p.first, p.second)}  # fmt: skip
        assert any(scores[rival] >= scores[prompt] for rival in rivals & kept)
