"""How long checking a manifest takes with a model of Stable Diffusion 1.5's size.

The model is a folder in the real layout, 4.3 GB of sparse files whose headers are those of the real
networks. Prints the seconds of whole processes: `sjc check`, which reads headers, and `sjc run
--dry-run`, which also needs the digest of all files, the first time and again.

    python benchmarks/check_model.py [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

WORDS = 49408


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "sd15")
        build(folder)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        print(f"{size / 1e9:.1f} GB in {folder}, {os.cpu_count()} CPUs")
        manifest = Path(place, "m.csv")
        manifest.write_text(f"prompt,prior\na yellow duck,{folder}\n")
        store = ["--store", str(Path(place, "store")), "--scratch", str(Path(place, "scratch"))]
        commands = {
            "check": ["check", str(manifest)],
            "run --dry-run": ["run", str(manifest), "--dry-run", "--devices", "cpu", *store],
        }
        environment = os.environ | {"XDG_CACHE_HOME": str(Path(place, "cache"))}
        for name, command in commands.items():
            seconds = [timed(command, environment) for _ in range(rounds + 1)]
            print(
                f"{name:14} first {seconds[0]:5.1f} s, again"
                f" {statistics.median(seconds[1:]):5.2f} s (median of {rounds})"
            )


def timed(command: list[str], environment: dict[str, str]) -> float:
    started = time.perf_counter()
    sjc = [sys.executable, "-c", "from flows.commands.main import main; main()"]
    subprocess.run([*sjc, *command], env=environment, check=True, capture_output=True)
    return time.perf_counter() - started


def build(folder: Path) -> None:
    """Configs, headers and vocabulary of Stable Diffusion 1.5; all weights are zeros."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, attention_head_dim=8, cross_attention_dim=768)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )
        text = CLIPTextModel(
            CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12)
        )
    networks: dict[str, Any] = {"unet": unet, "vae": vae}
    for name, network in networks.items():
        network.save_config(folder / name)
        sparse(folder / name / "diffusion_pytorch_model.safetensors", network)
    text.config.save_pretrained(folder / "text_encoder")
    sparse(folder / "text_encoder" / "model.safetensors", text)
    scheduler: Any = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    scheduler.save_config(folder / "scheduler")
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "vocab.json").write_text(json.dumps({f"w{n}": n for n in range(WORDS)}))
    (tokenizer / "merges.txt").write_text("#version: 0.2\nw 1\n")
    (tokenizer / "tokenizer_config.json").write_text('{"model_max_length": 77}')
    (folder / "model_index.json").write_text(
        json.dumps(
            {"_class_name": "StableDiffusionPipeline", "vae": ["diffusers", "AutoencoderKL"]}
        )
    )


def sparse(path: Path, network: Any) -> None:
    """A safetensors file of the network's names and shapes in float32, without its numbers."""
    header, end = {}, 0
    for name, value in network.state_dict().items():
        start, end = end, end + 4 * math.prod(value.shape)
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


if __name__ == "__main__":
    main()
