"""Where a text encoder stops reading, found without torch and transformers.

An encoder reads a fixed number of tokens, those that begin and end a text included, and a prompt
shares them with the words that name the view. A word that is not read whole counts as cut.
"""

from __future__ import annotations

import json
import re
import string
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Regex, Tokenizer, models, normalizers, pre_tokenizers

from sjc_engine.guidance.view_prompts import ViewStyle, view_prompts
from sjc_engine.priors.sources import family_of, known_folder

DEEPFLOYD_TOKENS = 77  # T5 would read more; the model was trained with these
MOST_TOKENS = 100_000  # transformers writes 1e30 for "no limit"
CLIP_ENDS, T5_ENDS = 2, 1  # tokens that begin and end every text
# As in transformers' CLIPTokenizer
_CLIP_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)

ReadEnd = Callable[[str], int]  # of a text: the index from which on it is cut


def read_end(text: str, spans: Sequence[tuple[int, int]], room: int) -> int:
    """The index from which on `text` is cut, its length if it is read whole.

    spans: where in the text each of its tokens is. room: how many are read.
    """
    return len(text) if len(spans) <= room else _word_start(text, spans[room][0])


def prompt_end(end_of: ReadEnd, prompt: str, prefixes: Iterable[str] = ("",)) -> int:
    """The index from which on a prompt is cut behind at least one of these prefixes."""
    ends = []
    for prefix in prefixes:
        text = f"{prefix} {prompt}".strip()
        shift = len(text) - len(prompt.rstrip())  # of the prompt within the text
        ends.append(max(0, end_of(text) - shift))
    return min(ends)


def words_from(text: str, start: int) -> list[str]:
    """The words of a text from an index on."""
    words = (word.strip(string.punctuation) for word in text[start:].split())
    return [word for word in words if word]


def _word_start(text: str, index: int) -> int:
    """Where the word at an index begins."""
    while 0 < index < len(text) and _is_spelled(text[index - 1]) and _is_spelled(text[index]):
        index -= 1
    return index


def _is_spelled(character: str) -> bool:
    """Whether it is part of a word; Chinese, Thai and others ("Lo") have no spaces between them."""
    category = unicodedata.category(character)
    return category[0] in "LMN" and category != "Lo"


class TextLimit:
    """How much of a text one prior reads. tokens: how many, their ends included."""

    def __init__(self, tokenizer: Tokenizer, tokens: int, ends: int, *, lower: bool) -> None:
        self.tokens = tokens
        self._tokenizer, self._room, self._lower = tokenizer, tokens - ends, lower
        self._counts: dict[str, int] = {}  # tokens by word
        self._prefixes: dict[str, int] = {}  # tokens of the longest, by view style

    def prompt_end(self, prompt: str, style: ViewStyle) -> int:
        """The index from which on a prompt is cut behind the style's longest prefix."""
        if style not in self._prefixes:
            self._prefixes[style] = max(map(self.count, view_prompts(style)))
        return self._end(prompt, max(0, self._room - self._prefixes[style]))

    def read_end(self, text: str) -> int:
        """The index from which on a text is cut, its length if it is read whole."""
        return self._end(text, self._room)

    def _end(self, text: str, room: int) -> int:
        """Tokens do not cross spaces, so that each word has to be counted only once."""
        read = text.lower() if self._lower else text
        if text.isascii() and sum(map(self._most, read.split())) <= room:
            return len(text)
        for found in re.finditer(r"\S+", read):
            count = self._count(found[0])
            if count > room:
                start = found.start() + self._encode(found[0]).offsets[room][0]
                # From the end: what is cut hardly ever changes its length in lower case.
                return max(0, _word_start(read, start) - len(read) + len(text))
            room -= count
        return len(text)

    def count(self, text: str) -> int:
        """Tokens of a text, without its ends."""
        return sum(map(self._count, text.split()))

    def _count(self, word: str) -> int:
        if word not in self._counts:
            self._counts[word] = len(self._encode(word))
        return self._counts[word]

    def _most(self, word: str) -> int:
        """Tokens of an ASCII word, at most: one for each letter, and T5's for the space before."""
        return self._counts.get(word, len(word) + 1)

    def _encode(self, word: str) -> Encoding:
        return self._tokenizer.encode(word, add_special_tokens=False)


def text_limit(prior: str, revision: str | None = None) -> TextLimit | None:
    """The limit of a prior's text encoder, from its tokenizer's small files.

    None where it takes no words, or where the files do not tell: of a hub id those in the local
    cache are read, of T5's only tokenizer.json. What is wrong with files is
    reported where the prior is checked.
    """
    try:
        family, _ = family_of(prior, revision)
        clip = dict.fromkeys(("stable_diffusion", "mvdream"), _clip_limit)
        make = {**clip, "deepfloyd": _t5_limit}.get(family)
        limit = make(known_folder(prior, revision) / "tokenizer") if make else None
        if limit:
            limit.count("a \u2603")  # a vocabulary that does not fit shows here
        return limit
    except Exception:  # tokenizers has no other class for files that it cannot read
        return None


def _clip_limit(folder: Path) -> TextLimit | None:
    """CLIP's byte-pair encoding, as transformers' CLIPTokenizer makes it of the same files."""
    whole, config = _json(folder / "tokenizer.json"), _json(folder / "tokenizer_config.json")
    tokens = config.get("model_max_length")
    if not isinstance(tokens, int) or not CLIP_ENDS < tokens < MOST_TOKENS:
        return None
    vocabulary: Any
    merges: Any
    if whole:
        vocabulary = whole["model"]["vocab"]
        pairs = whole["model"]["merges"]
        merges = [tuple(p.split(" ")) if isinstance(p, str) else tuple(p) for p in pairs]
    else:
        files = map(str, (folder / "vocab.json", folder / "merges.txt"))
        vocabulary, merges = models.BPE.read_file(*files)
    special = _special_tokens(folder, whole, config)
    unknown = special["unk_token"]
    pairs = models.BPE(vocabulary, merges, unk_token=unknown, end_of_word_suffix="</w>")
    tokenizer = Tokenizer(pairs)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True)
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, letters])
    tokenizer.add_special_tokens(list(dict.fromkeys(special.values())))
    return TextLimit(tokenizer, tokens, CLIP_ENDS, lower=False)


def _special_tokens(folder: Path, whole: dict[str, Any], config: dict[str, Any]) -> dict[str, str]:
    """Tokens that are whole wherever they stand in a text, by their roles or numbers."""
    found: dict[str, Any] = dict.fromkeys(
        ("bos_token", "eos_token", "unk_token", "pad_token"), "<|endoftext|>"
    )
    found["bos_token"] = "<|startoftext|>"
    added = config.get("added_tokens_decoder")
    for source in (config, {} if added else _json(folder / "special_tokens_map.json")):
        found |= {role: source[role] for role in found if source.get(role)}
    found |= added or {str(token["id"]): token for token in whole.get("added_tokens", ())}
    return {k: token["content"] if isinstance(token, dict) else token for k, token in found.items()}


def _t5_limit(folder: Path) -> TextLimit | None:
    """T5's unigrams; like the model itself, of text in lower case."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    return TextLimit(tokenizer, DEEPFLOYD_TOKENS, T5_ENDS, lower=True)


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}
