"""The prior's tokenizer: a small byte-pair encoding learnt from the caption grammar.

Every printable ASCII character is a token of its own as well, so any prompt has an encoding.
"""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from sjc_engine.toybox.captions import VIEWS, caption
from sjc_engine.toybox.training.objects.catalogue import CATEGORIES, make_toy

MAX_TOKENS = 24
START, END = "<|startoftext|>", "<|endoftext|>"
_CORPUS = 5_000
_CHARACTERS = [chr(code) + end for end in ("", "</w>") for code in range(33, 127)]


@cache
def build_tokenizer(seed: int = 0) -> CLIPTokenizer:
    """A CLIPTokenizer of `MAX_TOKENS` positions; token 0 starts and token 1 ends and pads."""
    rng = np.random.default_rng(seed)
    captions = []
    for _ in range(_CORPUS):
        category = CATEGORIES[rng.integers(len(CATEGORIES))]
        _, color = make_toy(category, rng)
        view = ("", *VIEWS)[rng.integers(len(VIEWS) + 1)]
        captions.append(caption(rng, category, color, view).lower())
    pairs = Tokenizer(models.BPE(unk_token=END, end_of_word_suffix="</w>", fuse_unk=False))
    pairs.normalizer = normalizers.Lowercase()
    pairs.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        # The trainer numbers others in random order; of equally frequent pairs it merges the first.
        special_tokens=[START, END, *_CHARACTERS],
        end_of_word_suffix="</w>",
        min_frequency=2,
        show_progress=False,
    )
    pairs.train_from_iterator(captions, trainer)
    with tempfile.TemporaryDirectory() as folder:
        pairs.model.save(folder)
        merges = Path(folder, "merges.txt").read_text().splitlines()[1:]  # after its version
        tokens = [START, END, *_CHARACTERS, *(merge.replace(" ", "") for merge in merges)]
        vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
        Path(folder, "vocab.json").write_text(json.dumps(vocabulary))
        return CLIPTokenizer(
            vocab=f"{folder}/vocab.json", merges=f"{folder}/merges.txt", model_max_length=MAX_TOKENS
        )
