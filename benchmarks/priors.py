"""What a step costs with each family of priors: counted for all, measured on a CPU where it fits.

    python benchmarks/priors.py [--measure none|all|NAME,NAME] [--json FILE]

Counted: parameters, and FLOPs of the network calls of one step with the family's default preset
(views times two for guidance), from the models' shapes on the meta device; no weights are needed.

Estimated: seconds of the network calls on an H100, from the FLOPs at 140 TFLOP/s, a seventh of its
dense float16 peak. An A100 does 85 TFLOP/s on Stable Diffusion 1.5 (diffusers' own tables: 19 ms
for a guided image-step in batches of four), and a GPU that is not kept busy does less.

Measured: CPU seconds of the same calls in float32 on one thread, the better of two, and the peak of
the process's resident memory, weights included. Weights are random (their values do not matter to
the time), but for the embedded `toybox` and `toybox-duck`, which are real and do whole steps. CPU
seconds rather than wall-clock time, so that other work on the machine disturbs them less.

Shapes of models that the hub gates or that have no diffusers class are written down here: the
parameter counts, which their authors publish, vouch for them.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

import sjc_engine  # noqa: F401  # before torch, for whose threads it chooses

# isort: split
import torch
from report import Report
from torch.utils.flop_counter import FlopCounterMode

TFLOPS = 140  # of an H100, see above

SD15: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
SD21 = SD15 | {
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}


def if_shape(width: int) -> dict[str, Any]:
    """DeepFloyd IF, stage I: M, L and XL have widths 192, 320 and 704."""
    return {
        "sample_size": 64,
        "in_channels": 3,
        "out_channels": 6,
        "block_out_channels": (width, 2 * width, 3 * width, 4 * width),
        "down_block_types": ("ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 3),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": (*["SimpleCrossAttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"),
        "layers_per_block": 3,
        "attention_head_dim": 64,
        "cross_attention_dim": 4 * width,
        "encoder_hid_dim": 4096,
        "act_fn": "gelu",
        "time_embedding_act_fn": "gelu",
        "resnet_time_scale_shift": "scale_shift",
        "resnet_skip_time_act": True,
        "cross_attention_norm": "group_norm",
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 64,
    }


DDPM: dict[str, Any] = {
    "sample_size": 256,
    "block_out_channels": (128, 128, 256, 256, 512, 512),
    "down_block_types": (*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4),
    "attention_head_dim": None,
    "downsample_padding": 0,
}
NCSNPP: dict[str, Any] = {
    "sample_size": 256,
    "block_out_channels": (128, 128, *[256] * 5),
    "down_block_types": (
        *["SkipDownBlock2D"] * 4, "AttnSkipDownBlock2D", *["SkipDownBlock2D"] * 2
    ),
    "up_block_types": (*["SkipUpBlock2D"] * 2, "AttnSkipUpBlock2D", *["SkipUpBlock2D"] * 4),
    "time_embedding_type": "fourier",
    "norm_eps": 1e-6,
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """A family's network and what its default preset asks of it in a step."""

    config: dict[str, Any]
    batch: int  # views, times two with guidance
    side: int
    tokens: int = 77  # of the condition; 0: there is none
    others: tuple[str, ...] = ()
    real: bool = False  # embedded: whole steps of a scene


SHAPES = {
    "toybox": Shape({}, 4, 64, real=True),
    "toybox-duck": Shape({}, 2, 32, real=True),
    "Stable Diffusion 1.5": Shape(SD15, 2, 64, 77, ("clip-l text", "vae")),
    "Stable Diffusion 2.1, 512": Shape(SD21, 2, 64, 77, ("clip-h text", "vae")),
    "Stable Diffusion 2.1, 768": Shape(SD21, 2, 96, 77, ("clip-h text", "vae")),
    "DeepFloyd IF-I-M": Shape(if_shape(192), 2, 64, 77, ("t5-xxl",)),
    "DeepFloyd IF-I-L": Shape(if_shape(320), 2, 64, 77, ("t5-xxl",)),
    "DeepFloyd IF-I-XL": Shape(if_shape(704), 2, 64, 77, ("t5-xxl",)),
    "DDPM, 256": Shape(DDPM, 1, 256, 0),
    "NCSN++, 256": Shape(NCSNPP, 1, 256, 0),
    "Zero-1-to-3": Shape(SD15 | {"in_channels": 8}, 2, 32, 1, ("clip-l image", "vae")),
    # Four views of 32 x 32 attend to each other: as many tokens and pixels as one view of 64 x 64
    "MVDream": Shape(SD21, 2, 64, 77, ("clip-h text", "vae")),
}


# Millions of parameters of what surrounds the networks
OTHERS = {
    "clip-l text": 123.1, "clip-h text": 340.4, "clip-l image": 304.0, "t5-xxl": 4762.3, "vae": 83.7
}  # fmt: skip


def network(shape: Shape) -> Any:
    from diffusers import UNet2DConditionModel, UNet2DModel

    net: Any = (UNet2DConditionModel if shape.tokens else UNet2DModel)(**shape.config)
    return net.eval()


def call(net: Any, shape: Shape, device: str) -> None:
    """The network calls of one step."""
    channels = net.config["in_channels"]
    x = torch.zeros(shape.batch, channels, shape.side, shape.side, device=device)
    given: dict[str, Any] = {}
    if shape.tokens:
        width = shape.config.get("encoder_hid_dim") or shape.config["cross_attention_dim"]
        hidden = torch.zeros(shape.batch, shape.tokens, width, device=device)
        given = {"encoder_hidden_states": hidden}
    with torch.no_grad():
        net(x, torch.full((shape.batch,), 500, device=device), **given)


def millions(module: Any) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


def work_of(name: str, device: str) -> tuple[Any, Callable[[], object]]:
    """A family's network, and what to run for a step: its calls or, for a real prior, all of it."""
    shape = SHAPES[name]
    if shape.real:
        from sjc_engine.optimization.loop import step_scenes
        from sjc_engine.optimization.scene import Scene
        from sjc_engine.priors.denoiser import SchedulePrior, load_prior
        from sjc_engine.recipes import Recipe

        prior = load_prior(name)
        assert isinstance(prior, SchedulePrior)
        final = {"render_size": shape.side, "render_start": 0, "grid_start": 0}
        recipe = Recipe.for_prior(name).override(final)  # a step at the end's sizes
        scene = Scene("a red chair" if prior.guided else "", "", 0, recipe, prior)
        return prior._unet, partial(step_scenes, [scene], prior)
    with torch.device("meta"):
        net = network(shape)
    if device != "meta":
        net.to_empty(device=device)
        for tensor in (*net.parameters(), *net.buffers()):  # pages that are zero take no memory
            tensor.data.uniform_(-0.02, 0.02)
    return net, partial(call, net, shape, device)


def count(name: str) -> dict[str, Any]:
    """Parameters, weights on a GPU, FLOPs and an H100's seconds."""
    others = {part: OTHERS[part] for part in SHAPES[name].others}
    net, work = work_of(name, "meta")
    with FlopCounterMode(display=False) as counter:
        work()
    tflop = counter.get_total_flops() / 1e12
    # As the engine holds them: the network in float16, the rest in float32, and T5 on the CPU
    on_gpu = 2 * millions(net) + sum(4 * n for part, n in others.items() if part != "t5-xxl")
    return {
        "prior": name,
        "network M": millions(net),
        "others M": sum(others.values()),
        "weights GB": on_gpu / 1000,
        "TFLOP a step": tflop,
        "H100 ms": 1000 * tflop / TFLOPS,
    }


def measure(name: str) -> None:
    """Prints CPU seconds and MB of a step, in a process that does nothing else."""
    torch.set_num_threads(1)
    _, work = work_of(name, "cpu")
    rounds = 20 if SHAPES[name].real else 2
    times = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    print(min(times), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", default="none", help="names, divided by ';', or all or none")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, metavar="FILE")
    settings = parser.parse_args()
    if settings.only:
        measure(settings.only)
        return
    report = Report("priors", {"measure": settings.measure})
    wanted = {"none": [], "all": list(SHAPES)}.get(settings.measure, settings.measure.split(";"))
    rows = [count(name) for name in SHAPES]
    for row in rows:
        if row["prior"] in wanted:
            command = [sys.executable, __file__, "--only", row["prior"]]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            row["CPU s"], row["CPU MB"] = map(float, done.stdout.split()[-2:])
        else:
            row["CPU s"] = row["CPU MB"] = None
    report.table("counted for all, estimated for an H100, measured on this CPU", rows)
    report.write_json(settings.json)


if __name__ == "__main__":
    main()
