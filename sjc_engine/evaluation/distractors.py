"""The fixed captions that a prompt competes with for R-Precision.

They never change from run to run, so that an asset's score does not depend on what else is in its
manifest; `DISTRACTORS_SHA256` is recorded with every score. Most name the embedded prior's own
categories, the hardest rivals that its judge knows.
"""

from __future__ import annotations

import hashlib
import json
import re

from sjc_engine.toybox.captions import COLORS, FLAVOURS

# Each category by the words that prompts use for it, and what its captions are photos of
_CAPTIONS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("burger", "hamburger", "cheeseburger"): ("a delicious burger", "a hamburger"),
    ("duck", "duckling"): ("a white duck", "a yellow duck", "a blue toy duck"),
    ("ficus", "plant", "houseplant", "bonsai"): (
        "a ficus in a pot",
        "a ficus planted in a blue pot",
    ),
    ("tank",): ("a green toy tank", "a gray tank", "a red toy tank"),
    ("icecream", "ice cream"): (
        "a chocolate icecream cone",
        "a strawberry ice cream cone",
        "a vanilla icecream",
    ),
    ("giraffe",): ("a giraffe", "a toy giraffe"),
    ("chair", "armchair", "stool"): ("a red chair", "a brown chair", "a white chair"),
    ("table", "desk"): ("a brown table", "a white table", "a green table"),
    ("mug", "cup"): ("a white mug", "a blue coffee mug", "an orange mug"),
    ("car", "automobile"): ("a red car", "a blue toy car", "a yellow car"),
    ("house", "cottage", "hut"): ("a white house", "a yellow house", "a pink house"),
    ("mushroom", "toadstool"): ("a red mushroom", "a brown mushroom", "a purple toadstool"),
    ("snowman", "snowmen"): ("a snowman", "a snowman with a red scarf"),
    ("rocket", "spaceship"): ("a white rocket", "a red rocket", "a green toy rocket"),
    ("lamp", "lantern"): ("a yellow lamp", "a black lamp", "a pink lamp"),
    ("boat", "ship", "sailboat"): ("a blue boat", "a red sail boat", "a brown boat"),
    ("castle", "fortress"): ("a gray castle", "a pink castle", "a blue castle"),
    ("cactus", "cacti"): ("a green cactus", "a cactus in an orange pot"),
    ("robot",): ("a gray robot", "a blue toy robot", "a red robot"),
    ("teapot", "kettle"): ("a white teapot", "a green teapot", "a purple teapot"),
    ("tree",): ("a green tree", "a pine tree", "an orange tree"),
    ("airplane", "plane", "aeroplane", "aircraft", "jet"): (
        "a white airplane",
        "a red toy airplane",
        "a gray plane",
    ),
    ("pig", "piglet"): ("a pink pig", "a black pig", "a brown toy pig"),
    ("fish", "goldfish", "shark"): ("an orange fish", "a blue fish", "a purple fish"),
    ("apple",): ("a red apple",),
    ("banana",): ("a yellow banana",),
    ("pear",): ("a green pear",),
    ("pineapple",): ("a pineapple",),
    ("strawberry", "strawberries"): ("a ripe strawberry",),
    ("dog", "puppy", "corgi"): ("a brown dog",),
    ("cat", "kitten"): ("a black cat",),
    ("elephant",): ("a gray elephant",),
    ("horse", "pony"): ("a brown horse",),
    ("cow",): ("a white cow",),
    ("rabbit", "bunny", "bunnies"): ("a white rabbit",),
    ("bear",): ("a brown bear",),
    ("frog",): ("a green frog",),
    ("owl", "bird"): ("a brown owl",),
    ("penguin",): ("a penguin",),
    ("dragon",): ("a red dragon",),
    ("guitar",): ("a brown guitar",),
    ("piano",): ("a black piano",),
    ("hat",): ("a black hat",),
    ("shoe", "sneaker", "boot"): ("a white shoe",),
    ("umbrella",): ("a purple umbrella",),
    ("backpack", "bag"): ("a blue backpack",),
    ("clock", "watch"): ("a white clock",),
    ("candle",): ("a pink candle",),
    ("vase",): ("a blue vase",),
    ("rose", "flower", "tulip", "sunflower"): ("a red rose",),
    ("pizza",): ("a pizza",),
    ("truck", "lorry"): ("an orange truck",),
    ("train", "locomotive"): ("a black train",),
    ("bicycle", "bike"): ("a blue bicycle",),
    ("bus",): ("a yellow bus",),
}
_COLOR = f"(?:{'|'.join([*COLORS, *FLAVOURS, 'grey'])})"
# An article, colours, and the start of the word that they describe: "a red and [w]hite cup"
_COLORED = re.compile(
    rf"\b(an? )?(?:{_COLOR}(?:,|,? and)? )*{_COLOR} (?!(?:and|or|with|in|on|of|is)\b)(\w)", re.I
)
CATEGORIES = tuple(_CAPTIONS)
DISTRACTORS = tuple(f"a photo of {name}" for names in _CAPTIONS.values() for name in names)

DISTRACTORS_SHA256 = hashlib.sha256(json.dumps([DISTRACTORS, CATEGORIES]).encode()).hexdigest()


def rivals(prompt: str) -> list[str]:
    """The distractors that are wrong for this prompt: those of no category that it names.

    "a yellow duck" must not lose to "a photo of a white duck", which no judge of shapes could tell
    apart for certain. A prompt that names several categories meets the distractors of none of them.
    """
    named = _categories(prompt)
    return [caption for caption in DISTRACTORS if not named & _categories(caption)]


def without_colors(caption: str) -> str:
    """The caption without the words for colours that stand before what has them.

    "a red and white cup on an orange" becomes "a cup on an orange".
    """

    def plain(match: re.Match[str]) -> str:
        article, start = match.groups()
        if article:
            article = article[0] + ("n " if start.lower() in "aeiou" else " ")
        return f"{article or ''}{start}"

    return _COLORED.sub(plain, caption)


def _categories(text: str) -> set[tuple[str, ...]]:
    """The categories that a text names by any of their words, in singular or plural."""
    words = " ".join(re.findall(r"[^\W_]+", text.lower()))
    return {names for names in CATEGORIES if re.search(rf"\b({'|'.join(names)})(e?s)?\b", words)}
