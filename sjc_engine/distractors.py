"""The fixed captions that a prompt competes with for R-Precision.

They never change from run to run, so that an asset's score does not depend on what else is in its
manifest; `DISTRACTORS_SHA256` is recorded with every score. Most name the embedded prior's own
categories, the hardest rivals that its judge knows.
"""

from __future__ import annotations

import hashlib
import json
import re

DISTRACTORS: tuple[str, ...] = (
    "a photo of a delicious burger",
    "a photo of a hamburger",
    "a photo of a white duck",
    "a photo of a yellow duck",
    "a photo of a blue toy duck",
    "a photo of a ficus in a pot",
    "a photo of a ficus planted in a blue pot",
    "a photo of a green toy tank",
    "a photo of a gray tank",
    "a photo of a red toy tank",
    "a photo of a chocolate icecream cone",
    "a photo of a strawberry ice cream cone",
    "a photo of a vanilla icecream",
    "a photo of a giraffe",
    "a photo of a toy giraffe",
    "a photo of a red chair",
    "a photo of a brown chair",
    "a photo of a white chair",
    "a photo of a brown table",
    "a photo of a white table",
    "a photo of a green table",
    "a photo of a white mug",
    "a photo of a blue coffee mug",
    "a photo of an orange mug",
    "a photo of a red car",
    "a photo of a blue toy car",
    "a photo of a yellow car",
    "a photo of a white house",
    "a photo of a yellow house",
    "a photo of a pink house",
    "a photo of a red mushroom",
    "a photo of a brown mushroom",
    "a photo of a purple toadstool",
    "a photo of a snowman",
    "a photo of a snowman with a red scarf",
    "a photo of a white rocket",
    "a photo of a red rocket",
    "a photo of a green toy rocket",
    "a photo of a yellow lamp",
    "a photo of a black lamp",
    "a photo of a pink lamp",
    "a photo of a blue boat",
    "a photo of a red sail boat",
    "a photo of a brown boat",
    "a photo of a gray castle",
    "a photo of a pink castle",
    "a photo of a blue castle",
    "a photo of a green cactus",
    "a photo of a cactus in an orange pot",
    "a photo of a gray robot",
    "a photo of a blue toy robot",
    "a photo of a red robot",
    "a photo of a white teapot",
    "a photo of a green teapot",
    "a photo of a purple teapot",
    "a photo of a green tree",
    "a photo of a pine tree",
    "a photo of an orange tree",
    "a photo of a white airplane",
    "a photo of a red toy airplane",
    "a photo of a gray plane",
    "a photo of a pink pig",
    "a photo of a black pig",
    "a photo of a brown toy pig",
    "a photo of an orange fish",
    "a photo of a blue fish",
    "a photo of a purple fish",
    "a photo of a red apple",
    "a photo of a yellow banana",
    "a photo of a green pear",
    "a photo of a pineapple",
    "a photo of a ripe strawberry",
    "a photo of a brown dog",
    "a photo of a black cat",
    "a photo of a gray elephant",
    "a photo of a brown horse",
    "a photo of a white cow",
    "a photo of a white rabbit",
    "a photo of a brown bear",
    "a photo of a green frog",
    "a photo of a brown owl",
    "a photo of a penguin",
    "a photo of a red dragon",
    "a photo of a brown guitar",
    "a photo of a black piano",
    "a photo of a black hat",
    "a photo of a white shoe",
    "a photo of a purple umbrella",
    "a photo of a blue backpack",
    "a photo of a white clock",
    "a photo of a pink candle",
    "a photo of a blue vase",
    "a photo of a red rose",
    "a photo of a pizza",
    "a photo of an orange truck",
    "a photo of a black train",
    "a photo of a blue bicycle",
    "a photo of a yellow bus",
)

# What each caption is a picture of, and the other words that prompts use for it.
CATEGORIES: tuple[tuple[str, ...], ...] = (
    ("burger", "hamburger", "cheeseburger"),
    ("duck", "duckling"),
    ("ficus", "plant", "houseplant", "bonsai"),
    ("tank",),
    ("icecream", "ice cream"),
    ("giraffe",),
    ("chair", "armchair", "stool"),
    ("table", "desk"),
    ("mug", "cup"),
    ("car", "automobile"),
    ("house", "cottage", "hut"),
    ("mushroom", "toadstool"),
    ("snowman", "snowmen"),
    ("rocket", "spaceship"),
    ("lamp", "lantern"),
    ("boat", "ship", "sailboat"),
    ("castle", "fortress"),
    ("cactus", "cacti"),
    ("robot",),
    ("teapot", "kettle"),
    ("tree",),
    ("airplane", "plane", "aeroplane", "aircraft", "jet"),
    ("pig", "piglet"),
    ("fish", "goldfish", "shark"),
    ("apple",),
    ("banana",),
    ("pear",),
    ("pineapple",),
    ("strawberry", "strawberries"),
    ("dog", "puppy", "corgi"),
    ("cat", "kitten"),
    ("elephant",),
    ("horse", "pony"),
    ("cow",),
    ("rabbit", "bunny", "bunnies"),
    ("bear",),
    ("frog",),
    ("owl", "bird"),
    ("penguin",),
    ("dragon",),
    ("guitar",),
    ("piano",),
    ("hat",),
    ("shoe", "sneaker", "boot"),
    ("umbrella",),
    ("backpack", "bag"),
    ("clock", "watch"),
    ("candle",),
    ("vase",),
    ("rose", "flower", "tulip", "sunflower"),
    ("pizza",),
    ("truck", "lorry"),
    ("train", "locomotive"),
    ("bicycle", "bike"),
    ("bus",),
)

DISTRACTORS_SHA256 = hashlib.sha256(json.dumps([DISTRACTORS, CATEGORIES]).encode()).hexdigest()


def rivals(prompt: str) -> list[str]:
    """The distractors that are wrong for this prompt: those of no category that it names.

    "a yellow duck" must not lose to "a photo of a white duck", which no judge of shapes could tell
    apart for certain. A prompt that names several categories meets the distractors of none of them.
    """
    named = _categories(prompt)
    return [
        caption for caption in DISTRACTORS if caption != prompt and not named & _categories(caption)
    ]


def _categories(text: str) -> set[tuple[str, ...]]:
    """The categories that a text names by any of their words, in singular or plural."""
    words = " ".join(re.findall(r"[^\W_]+", text.lower()))
    return {names for names in CATEGORIES if re.search(rf"\b({'|'.join(names)})(e?s)?\b", words)}
