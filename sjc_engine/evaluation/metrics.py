"""Metrics of one asset: how the mesh agrees with its field, and what a judge sees in it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from sjc_engine.evaluation.clip import Judge
from sjc_engine.evaluation.distractors import DISTRACTORS_SHA256, rivals, without_colors
from sjc_engine.evaluation.lpips import Lpips
from sjc_engine.evaluation.pictures import AROUND, Pictures
from sjc_engine.mesh.gltf import Mesh
from sjc_engine.mesh.iso_level import iou
from sjc_engine.priors.tokens import prompt_end, words_from

MAX_PSNR = 100.0  # dB, for identical pictures
SINGLE_COLOR_SHARE, SINGLE_COLOR_RADIUS = 0.95, 0.15  # of the area; of RGB in [0, 1]
SMALL_SHARE = 0.02  # of the pictures; less is too little to judge
SIDES = ("front view of", "side view of", "backside view of")
AWAY = slice(2, 7)  # azimuths 90 to 270 degrees: the views that do not show the front


Metrics = dict[str, float | bool | str | list[str]]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What is known of an asset: one value per column, and one row per view and source."""

    metrics: Metrics
    views: list[dict[str, Any]]


def evaluate(
    pictures: Pictures, mesh: Mesh, prompt: str, judge: Judge, lpips: Lpips | None = None
) -> Evaluation:
    """Every metric of an asset, from its pictures and its mesh."""
    agreement, agreements = measure_agreement(pictures, lpips)
    judgement, judgements = judge_pictures(pictures, prompt, judge)
    metrics = judgement | agreement | {"single_color": single_color(mesh)}
    views = []
    for source, judged in judgements.items():
        for k, camera in enumerate(pictures.cameras):
            angles = {"azimuth_deg": camera.azimuth_deg, "elevation_deg": camera.elevation_deg}
            views.append({"view": k, **angles, "source": source, **judged[k], **agreements[k]})
    return Evaluation(metrics, views)


def measure_agreement(
    pictures: Pictures, lpips: Lpips | None
) -> tuple[Metrics, list[dict[str, Any]]]:
    """How the mesh agrees with its field, over all nine views and in each.

    `field_mesh_iou` in [0, 1], mean IoU of the mesh's silhouette with the field's (opacity > 0.5);
    `field_mesh_psnr` in dB, mean over the views, on the pixels of either silhouette alone, since a
    white background would flatter it. `opacity_mean` and `foreground_fraction` (opacity > 0.5) are
    of the field's pictures; 0 is empty, and a sharp field has both about equal. `coverage` flags
    pictures that cannot be trusted, see `coverage_flag`. With `lpips`,
    `field_mesh_lpips` is the mean distance of the mesh's picture from the field's (Zhang et al.
    2018), at least 0, best 0.
    """
    masks = pictures.field_opacity > 0.5
    pairs = list(zip(masks, pictures.mesh_opacity > 0.5, strict=True))
    ious = [iou(*pair) for pair in pairs]
    psnrs = [
        psnr(a, b, either=first | second)
        for a, b, (first, second) in zip(pictures.field, pictures.mesh, pairs, strict=True)
    ]
    metrics: Metrics = {
        "field_mesh_iou": float(np.mean(ious)),
        "field_mesh_psnr": float(np.mean(psnrs)),
        "opacity_mean": float(pictures.field_opacity.mean()),
        "foreground_fraction": _share(masks),
        "coverage": coverage_flag(masks),
    }
    distances: list[Any] = [None] * len(masks)
    if lpips:
        distances = lpips(pictures.field, pictures.mesh).tolist()
        metrics["field_mesh_lpips"] = float(np.mean(distances))
        metrics["lpips_weights"] = f"{lpips.id}@{lpips.revision[:12]}"
    names = ("field_mesh_iou", "field_mesh_psnr", "field_mesh_lpips")
    columns = zip(ious, psnrs, distances, strict=True)
    return metrics, [dict(zip(names, values, strict=True)) for values in columns]


def judge_pictures(
    pictures: Pictures, prompt: str, judge: Judge
) -> tuple[Metrics, dict[str, list[dict[str, Any]]]]:
    """What a judge sees in the mesh, and in each view of field and mesh.

    From the eight views around the mesh, with c the cosine of picture and text:
    `clip_score` is the mean of 100 max(c, 0) (Hessel et al. 2021, CLIPScore, with w = 100);
    `clip_r_precision` is the share of views whose best caption among the prompt and its `rivals`
    is the prompt (Park et al. 2021); `geometry_r_precision` is the same without colours, in the
    pictures and in the captions;
    `janus_score` is the share of the five views from azimuth 90 to 270 degrees that the judge
    calls "front view of" the prompt rather than "side view of" or "backside view of" it,
        1/5 sum_v [c(v, front) > max(c(v, side), c(v, backside))], v = 90, 135, 180, 225, 270,
    where 0 is best and 1 a face on every side (or an object that is round: then it says nothing).
    `words_cut_by_judge` are the prompt's words that are beyond the judge's length in one of these
    texts.
    """
    captions = [prompt, *rivals(prompt)]
    text = judge.text_features(captions)
    cosines = {
        "field": judge.image_features(pictures.field) @ text.T,  # (9, captions)
        "mesh": judge.image_features(pictures.mesh) @ text.T,
    }
    plain = judge.text_features(list(dict.fromkeys(map(without_colors, captions))))
    geometry = judge.image_features(pictures.geometry[:AROUND]) @ plain.T
    sides = judge.text_features([f"{side} {prompt}" for side in SIDES])
    facing = judge.image_features(pictures.mesh[AWAY]) @ sides.T  # (5, 3)
    read_end = getattr(judge, "read_end", len)  # a judge of one's own may read everything
    metrics: Metrics = {
        "clip_score": float(_clip_score(cosines["mesh"][:AROUND, 0]).mean()),
        "clip_r_precision": _share(cosines["mesh"][:AROUND].argmax(1) == 0),
        "geometry_r_precision": _share(geometry.argmax(1) == 0),
        "janus_score": _share(facing[:, 0] > facing[:, 1:].amax(1)),
        "evaluator": judge.id,
        "evaluator_revision": judge.revision,
        "distractors_sha256": DISTRACTORS_SHA256,
        "words_cut_by_judge": words_from(prompt, prompt_end(read_end, prompt, SIDES)),
    }

    def judged(cosine: Tensor) -> dict[str, Any]:
        best = captions[int(cosine.argmax())]
        return {"clip_score": float(_clip_score(cosine[0])), "top_caption": best}

    return metrics, {source: list(map(judged, seen)) for source, seen in cosines.items()}


def psnr(a: Tensor, b: Tensor, either: Tensor) -> float:
    """Peak signal-to-noise ratio (dB) of RGB images (3, H, W) in [-1, 1] on a mask (H, W).

    At most `MAX_PSNR`, which is also the value on an empty mask.
    """
    if not either.any():
        return MAX_PSNR
    error = float(((a - b) / 2)[:, either].square().mean())
    return min(MAX_PSNR, -10 * math.log10(max(error, 1e-12)))


def coverage_flag(masks: Tensor) -> str:
    """How silhouettes (views, H, W) lie in their pictures.

    "cropped": one of them reaches the border, so the object may go on beyond it; "small": they
    cover less than 2% of the pixels; else "good".
    """
    border = (masks[:, [0, -1]].any(), masks[:, :, [0, -1]].any())
    if any(border):
        return "cropped"
    return "small" if _share(masks) < SMALL_SHARE else "good"


def single_color(mesh: Mesh) -> bool:
    """Whether 95% of the area lies within a distance of 0.15 from the median colour."""
    a, b, c = mesh.vertices[mesh.faces.T].astype(np.float64)
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    colors = mesh.colors[mesh.faces].mean(axis=1)
    distance = np.linalg.norm(colors - np.median(mesh.colors, axis=0), axis=1)
    return bool(area[distance <= SINGLE_COLOR_RADIUS].sum() >= SINGLE_COLOR_SHARE * area.sum())


def _clip_score(cosine: Tensor) -> Tensor:
    return 100 * cosine.clamp(min=0)


def _share(flags: Tensor) -> float:
    return float(flags.double().mean())
