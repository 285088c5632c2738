"""Prompts that are almost the same: trigram similarity, every pair above a threshold.

The similarity is that of PostgreSQL's pg_trgm: a prompt is the set of its words' trigrams (each
word with two blanks before and one behind it), and two prompts are as alike as the Jaccard index of
their sets. Case, punctuation and the order of words do not count; a spelling mistake costs little.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

SIMILAR = 0.85
ROWS = 1000  # compared with all others at a time
PAIRS = 1 << 18  # whose sets are intersected at a time

_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Pair:
    """Two different prompts; similarity in (0, 1], 1 when only case, marks or order differ."""

    similarity: float
    first: str
    second: str


def normalised(prompt: str) -> str:
    """The prompt's words in lower case, one blank between; compatibility forms are made equal."""
    text = unicodedata.normalize("NFKC", prompt).casefold()
    return " ".join(_WORD.findall(text)) or " ".join(text.split())


def near_duplicates(prompts: Sequence[str], similar: float = SIMILAR) -> list[Pair]:
    """Every pair of different prompts at least `similar`, the most alike first.

    Exact: two sets whose Jaccard index is t or more have one of the rarest |x| - ceil(t|x|) + 1
    elements of each in common (prefix filtering; Bayardo, Ma and Srikant, WWW 2007), so only such
    pairs are compared.
    """
    texts = sorted(set(prompts))
    sets = [_trigrams(text) for text in texts]
    use = Counter(trigram for trigrams in sets for trigram in trigrams)
    rank = {t: k for k, t in enumerate(sorted(use, key=lambda trigram: (use[trigram], trigram)))}
    ranked = [np.sort([rank[trigram] for trigram in trigrams]) for trigrams in sets]
    incidence = _incidence(ranked, len(rank))
    sizes = np.array([len(trigrams) for trigrams in sets])
    prefixes = _incidence(
        [r[: len(r) - math.ceil(similar * len(r) - 1e-9) + 1] for r in ranked], len(rank)
    )
    found: list[Pair] = []
    for first, second in _candidates(prefixes, sizes, similar):
        shared = incidence[first].multiply(incidence[second]).sum(axis=1)
        jaccard = shared / (sizes[first] + sizes[second] - shared)
        found += [
            Pair(round(float(jaccard[k]), 4), texts[first[k]], texts[second[k]])
            for k in np.flatnonzero(jaccard >= similar - 1e-9)
        ]
    return sorted(found, key=lambda pair: (-pair.similarity, pair.first, pair.second))


def without_near_duplicates(scores: Mapping[str, float], pairs: Sequence[Pair]) -> set[str]:
    """The prompts of `scores` to keep, so that no pair has both: the higher score goes first."""
    others: dict[str, set[str]] = {prompt: set() for prompt in scores}
    for pair in pairs:
        others[pair.first].add(pair.second)
        others[pair.second].add(pair.first)
    kept: set[str] = set()
    for prompt in sorted(scores, key=lambda prompt: (-scores[prompt], prompt)):
        if not others[prompt] & kept:
            kept.add(prompt)
    return kept


def _trigrams(prompt: str) -> set[str]:
    padded = [f"  {word} " for word in normalised(prompt).split()]
    return {word[k : k + 3] for word in padded for k in range(len(word) - 2)}


def _incidence(rows: Sequence[np.ndarray], width: int) -> sparse.csr_array:
    """A row for each set, 1 where it has the element."""
    ends = np.cumsum([0, *(len(row) for row in rows)])
    columns = np.concatenate(rows) if rows else np.empty(0, int)
    ones = np.ones(len(columns), np.int32)
    return sparse.csr_array((ones, columns, ends), (len(rows), width))


def _candidates(
    prefixes: sparse.csr_array, sizes: np.ndarray, similar: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs first < second whose prefixes meet and whose sizes allow the similarity."""
    columns = prefixes.T.tocsc()
    for start in range(0, prefixes.shape[0], ROWS):
        meeting = (prefixes[start : start + ROWS] @ columns).tocoo()
        first, second = meeting.row + start, meeting.col
        small, large = (f(sizes[first], sizes[second]) for f in (np.minimum, np.maximum))
        kept = (first < second) & (small >= similar * large - 1e-9)
        first, second = first[kept], second[kept]
        for begin in range(0, len(first), PAIRS):
            yield first[begin : begin + PAIRS], second[begin : begin + PAIRS]
