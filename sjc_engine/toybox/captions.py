"""The caption grammar that the embedded prior speaks, and how much of a prompt lies inside it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np

from sjc_engine.guidance.view_prompts import view_prompts

# What captions name, in RGB from 0 to 1
COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.12, 0.10),
    "blue": (0.12, 0.25, 0.85),
    "green": (0.15, 0.60, 0.20),
    "yellow": (0.98, 0.82, 0.10),
    "orange": (0.96, 0.50, 0.08),
    "purple": (0.50, 0.15, 0.65),
    "pink": (0.97, 0.50, 0.65),
    "white": (0.95, 0.95, 0.95),
    "black": (0.10, 0.10, 0.11),
    "gray": (0.50, 0.50, 0.52),
    "brown": (0.45, 0.26, 0.13),
}
FLAVOURS = {
    "chocolate": (0.30, 0.15, 0.07),
    "vanilla": (0.97, 0.92, 0.75),
    "strawberry": (0.96, 0.55, 0.62),
    "mint": (0.60, 0.90, 0.70),
}
NOUNS: dict[str, tuple[str, ...]] = {
    "burger": ("burger", "hamburger", "delicious burger", "cheeseburger"),
    "duck": ("duck", "rubber duck", "toy duck"),
    "ficus": ("ficus planted in a pot", "ficus", "potted ficus plant", "ficus in a pot"),
    "tank": ("toy tank", "tank"),
    "icecream": ("icecream cone", "ice cream cone", "icecream"),
    "giraffe": ("giraffe", "toy giraffe"),
    "chair": ("chair", "wooden chair"),
    "table": ("table", "wooden table"),
    "mug": ("mug", "coffee mug", "cup"),
    "car": ("car", "toy car"),
    "house": ("house", "small house"),
    "mushroom": ("mushroom", "toadstool"),
    "snowman": ("snowman",),
    "rocket": ("rocket", "toy rocket"),
    "lamp": ("lamp", "table lamp"),
    "boat": ("boat", "sail boat"),
    "castle": ("castle", "small castle"),
    "cactus": ("cactus",),
    "robot": ("robot", "toy robot"),
    "teapot": ("teapot",),
    "tree": ("tree", "pine tree"),
    "airplane": ("airplane", "toy airplane", "plane"),
    "pig": ("pig", "toy pig"),
    "fish": ("fish", "goldfish"),
}
TEMPLATES = (
    "a photo of a {}",
    "a {}",
    "A high quality photo of a {}",
    "a DSLR photo of a {}",
    "A product photo of a {}",
    "A wide angle zoomed out photo of a {}",
    "A zoomed out high quality photo of a {}",
    "a 3D render of a {}",
    "{}",
)
# Every prefix of `sjc_engine.guidance.view_prompts`, from the coarsest style to the finest.
VIEWS = tuple(
    dict.fromkeys(name for style in ("paper", "sided", "detailed") for name in view_prompts(style))
)
# Words that carry no content of their own, whatever the prompt.
_FILLERS = {"a", "an", "the", "of", "in", "on", "with", "from"} | set(" ".join(VIEWS).split())


def caption(rng: np.random.Generator, category: str, color: str | None, view: str) -> str:
    """A random caption such as "left side view of a DSLR photo of a red toy car".

    `color` is named always: an object whose look is not its usual one must not hide behind a
    caption that does not say so. `view` is a prefix of `sjc_engine.guidance.view_prompts` or empty.
    """
    nouns = NOUNS[category]
    noun = nouns[rng.integers(len(nouns))]
    if color is not None:
        noun = noun.replace("a pot", f"a {color} pot") if "a pot" in noun else f"{color} {noun}"
    text = TEMPLATES[rng.integers(len(TEMPLATES))].format(noun)
    if rng.random() < 0.5:
        text = re.sub(r"\b([Aa]) (?=[aeio])", r"\1n ", text)
    return f"{view} {text}".strip()


def unknown_words(prompt: str) -> list[str]:
    """The prompt's content words that no caption uses, in order."""
    return [word for word in _content_words(prompt) if word not in vocabulary()]


def coverage(prompt: str, end: int | None = None) -> float:
    """Fraction in [0, 1] of the prompt's content words that the captions use.

    What is from index `end` on is not read, and so not covered. 0 for a prompt that names none of
    the categories, whatever its other words: the prior then has no object to draw.
    """
    read = prompt[:end]
    if not _CATEGORIES.search(f" {' '.join(_words(read))} "):
        return 0.0
    content = _content_words(prompt)
    covered = len(_content_words(read)) - len(unknown_words(read))
    return 1 - (len(content) - covered) / len(content)


@cache
def vocabulary() -> frozenset[str]:
    """Every lower-case word of the grammar."""
    phrases = [noun for nouns in NOUNS.values() for noun in nouns]
    phrases += [*TEMPLATES, *COLORS, *FLAVOURS]
    return frozenset(word for phrase in phrases for word in _words(phrase))


def _content_words(prompt: str) -> list[str]:
    return [word for word in _words(prompt) if word not in _FILLERS]


@lru_cache(maxsize=64)  # each prompt is asked for several times in a row
def _words(text: str) -> Sequence[str]:
    return re.findall(r"[^\W_]+", text.lower())


_CATEGORIES = re.compile(f" (?:{'|'.join(noun for nouns in NOUNS.values() for noun in nouns)}) ")
