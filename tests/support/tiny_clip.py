"""A random CLIP checkpoint of a few thousand weights, in the layout of the published ones."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from sjc_engine.priors.sources import BUILTINS

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
LENGTH = 16


def save_tiny_clip(folder: Path, seed: int = 0, size: int = 32) -> CLIPModel:
    """Save a model, tokenizer and picture settings; the same seed gives the same weights."""
    tokenizer = CLIPTokenizer.from_pretrained(BUILTINS["toybox"] / "tokenizer")
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": LENGTH, **ends}
    vision = {"image_size": size, "patch_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIPModel(
            CLIPConfig(
                text_config={**layers, "num_attention_heads": 2, **text},
                vision_config={**layers, "num_attention_heads": 2, **vision},
                projection_dim=8,
            )
        ).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "size": {"shortest_edge": size},
                "crop_size": {"height": size, "width": size},
                "do_center_crop": True,
                "resample": 3,
                "image_mean": MEAN,
                "image_std": STD,
            }
        )
    )
    return model
