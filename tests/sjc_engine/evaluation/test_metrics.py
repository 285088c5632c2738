from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import trimesh
from synthetic_fields import TOTEM, centers, make_field, soft_density, sphere
from tiny_clip import save_tiny_clip
from torch import Tensor

from sjc_engine.evaluation.clip import load_judge
from sjc_engine.evaluation.distractors import DISTRACTORS, DISTRACTORS_SHA256
from sjc_engine.evaluation.metrics import MAX_PSNR, coverage_flag, evaluate, psnr, single_color
from sjc_engine.evaluation.pictures import Pictures, take_pictures
from sjc_engine.mesh.extract import extract_mesh
from sjc_engine.mesh.gltf import Mesh
from sjc_engine.recipes import MeshRecipe

PROMPT = "a red zebra"
SHAPE = "a zebra"
RED, BLUE = [0.9, -0.9, -0.9], [-0.9, -0.9, 0.9]


class RednessJudge:
    """Knows red (the prompt, and "front"), blue ("back") and grey (the prompt without its colour).

    Distractors are something between blue and grey.
    """

    id = "redness"
    revision = "1"
    prompt_sign = 1.0

    def image_features(self, images: Tensor) -> Tensor:
        red, _, blue = (images + 1).unbind(1)
        reddish = (red - blue > 0.2).sum((1, 2))
        bluish = (blue - red > 0.2).sum((1, 2))
        features = torch.stack([reddish, bluish, (reddish + bluish == 0).long()], 1).float()
        return F.normalize(features, dim=1)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        def meaning(text: str) -> list[float]:
            if text == PROMPT:
                return [self.prompt_sign, 0, 0]
            if text == SHAPE:
                return [0, 0, 1.0]
            if text.endswith(PROMPT):
                return {"front": [1.0, 0, 0], "backside": [0, 1.0, 0]}.get(
                    text.split()[0], [0, 0, 1.0]
                )
            return [0, 0.5, 0.5]

        return F.normalize(torch.tensor([meaning(text) for text in texts]), dim=1)


def painted(front: list[float], back: list[float]) -> Pictures:
    """A ball whose front third (towards -X) has one colour and the rest another."""
    points = centers(32)
    colors = np.where((points[..., 0] < -0.1)[..., None], front, back)
    field = make_field(soft_density(sphere(0.35)(points)), colors)
    mesh = extract_mesh(field, MeshRecipe(iso_level=5.0, mesh_resolution=64))
    return take_pictures(field, mesh, 64)


@pytest.fixture(scope="module")
def red() -> Pictures:
    return painted(RED, RED)


@pytest.fixture(scope="module")
def two_faced() -> Pictures:
    return painted(RED, BLUE)


@pytest.fixture(scope="module")
def asset() -> tuple[Any, Mesh]:
    field = make_field(soft_density(TOTEM(centers(48)), 60.0))
    return field, extract_mesh(field)


def judged(pictures: Pictures, judge: Any, asset: tuple[Any, Mesh]) -> dict[str, Any]:
    return evaluate(pictures, asset[1], PROMPT, judge).metrics


def test_a_field_and_its_mesh_agree(asset: tuple[Any, Mesh]) -> None:
    report = evaluate(take_pictures(*asset, 64), asset[1], PROMPT, RednessJudge())
    metrics = report.metrics
    assert metrics["field_mesh_iou"] > 0.97
    assert metrics["field_mesh_psnr"] > 20
    assert metrics["single_color"] is True
    assert 0.1 < metrics["foreground_fraction"] < 0.5
    assert metrics["opacity_mean"] == pytest.approx(metrics["foreground_fraction"], abs=0.02)


def test_agreement_is_measured_on_known_pictures(red: Pictures, asset: tuple[Any, Mesh]) -> None:
    """The mesh is the field's upper half, darker by a quarter of the range; below both agree."""
    opacity = torch.zeros(9, 64, 64)
    opacity[:, 16:48, 16:48] = 0.8
    half = opacity.clone()
    half[:, 32:] = 0
    seen = torch.zeros(9, 3, 64, 64)
    seen[:, :, 32:] = 0.5
    pictures = replace(
        red,
        field=torch.full((9, 3, 64, 64), 0.5),
        mesh=seen,
        field_opacity=opacity,
        mesh_opacity=half,
    )
    metrics = judged(pictures, RednessJudge(), asset)
    assert metrics["field_mesh_iou"] == pytest.approx(0.5)
    assert metrics["field_mesh_psnr"] == pytest.approx(10 * math.log10(2 * 4**2))
    assert metrics["opacity_mean"] == pytest.approx(0.2)
    assert metrics["foreground_fraction"] == pytest.approx(0.25)


def test_psnr_looks_at_the_object_alone() -> None:
    a, b = torch.ones(3, 8, 8), torch.ones(3, 8, 8)
    a[:, :2] = -1
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:4] = True
    assert psnr(a, b, mask) == pytest.approx(-10 * math.log10(0.5))
    assert psnr(b, b, mask) == MAX_PSNR
    assert psnr(a, b, ~mask) == MAX_PSNR
    assert psnr(a, b, torch.zeros_like(mask)) == MAX_PSNR


def test_a_face_on_every_side_is_a_janus(
    red: Pictures, two_faced: Pictures, asset: tuple[Any, Mesh]
) -> None:
    assert judged(red, RednessJudge(), asset)["janus_score"] == 1.0
    assert judged(two_faced, RednessJudge(), asset)["janus_score"] == 0.0
    # A second face, on the back alone, among the five views that should not show one
    second = replace(two_faced, mesh=two_faced.mesh.clone())
    second.mesh[4] = red.mesh[4]
    assert judged(second, RednessJudge(), asset)["janus_score"] == pytest.approx(1 / 5)
    # The front and its neighbours, and the view from above, have no say.
    shown = replace(two_faced, mesh=two_faced.mesh.clone())
    shown.mesh[[0, 1, 7, 8]] = red.mesh[[0, 1, 7, 8]]
    assert judged(shown, RednessJudge(), asset)["janus_score"] == 0.0


def test_a_judge_that_cannot_tell_sides_sees_no_second_face(
    red: Pictures, asset: tuple[Any, Mesh]
) -> None:
    class Undecided(RednessJudge):
        def text_features(self, texts: Sequence[str]) -> Tensor:
            return torch.tensor([[1.0, 0.0, 0.0]]).expand(len(texts), 3)

    assert judged(red, Undecided(), asset)["janus_score"] == 0.0


def test_scores_count_the_views_that_show_the_prompt(
    red: Pictures, two_faced: Pictures, asset: tuple[Any, Mesh]
) -> None:
    metrics = judged(red, RednessJudge(), asset)
    assert metrics["clip_r_precision"] == 1.0
    assert metrics["geometry_r_precision"] == 1.0  # grey, and asked for without red
    assert metrics["clip_score"] == pytest.approx(100, abs=0.01)
    metrics = judged(two_faced, RednessJudge(), asset)
    assert metrics["clip_r_precision"] == 3 / 8  # azimuths 315, 0 and 45 degrees
    assert 30 < metrics["clip_score"] < 60


def test_negative_cosines_count_as_nothing(red: Pictures, asset: tuple[Any, Mesh]) -> None:
    judge = RednessJudge()
    judge.prompt_sign = -1.0
    metrics = judged(red, judge, asset)
    assert metrics["clip_score"] == 0.0
    assert metrics["clip_r_precision"] == 0.0


def test_words_that_the_judge_cuts_are_named(red: Pictures, asset: tuple[Any, Mesh]) -> None:
    class Short(RednessJudge):
        def read_end(self, text: str) -> int:
            return min(len(text), 23)  # of "backside view of a red zebra"

    cut = [
        evaluate(red, asset[1], PROMPT, judge).metrics["words_cut_by_judge"]
        for judge in (Short(), RednessJudge())
    ]
    assert cut == [["zebra"], []]


def test_there_is_a_row_for_every_view_and_source(
    two_faced: Pictures, asset: tuple[Any, Mesh]
) -> None:
    swapped = replace(two_faced, field=two_faced.field.flip(1))  # red and blue: not what it shows
    rows = evaluate(swapped, asset[1], PROMPT, RednessJudge()).views
    assert [(row["source"], row["view"]) for row in rows] == [
        (source, view) for source in ("field", "mesh") for view in range(9)
    ]
    front, back, above = rows[9], rows[13], rows[17]
    assert (front["azimuth_deg"], back["azimuth_deg"]) == (0.0, 180.0)
    assert front["elevation_deg"] == pytest.approx(12.84, abs=0.01)
    assert above["elevation_deg"] == pytest.approx(56.44, abs=0.01)
    assert front["top_caption"] == PROMPT
    assert back["top_caption"] in DISTRACTORS
    assert front["clip_score"] > 90 > 10 > back["clip_score"]
    around = [row["clip_score"] for row in rows[9:17]]  # the view from above does not count
    mean = evaluate(swapped, asset[1], PROMPT, RednessJudge()).metrics["clip_score"]
    assert mean == pytest.approx(sum(around) / 8)
    assert abs(above["clip_score"] - sum(around) / 8) > 1
    assert 0.9 < front["field_mesh_iou"] <= 1
    assert rows[0]["top_caption"] in DISTRACTORS
    assert rows[4]["top_caption"] == PROMPT
    assert rows[0]["field_mesh_iou"] == front["field_mesh_iou"]


def test_silhouettes_that_cannot_be_trusted_are_flagged() -> None:
    masks = torch.zeros(9, 50, 50, dtype=torch.bool)
    masks[:, 20:30, 20:30] = True  # 4% of the pixels
    assert coverage_flag(masks) == "good"
    small = masks.clone()
    small[:5] = False
    assert coverage_flag(small) == "small"
    for row, column in ((0, 25), (49, 25), (25, 0), (25, 49)):
        cut = masks.clone()
        cut[3, row, column] = True  # in one view of nine
        assert coverage_flag(cut) == "cropped"
    masks[:, 1:49, 1:49] = True
    assert coverage_flag(masks) == "good"


def test_lpips_is_of_the_mesh_against_the_field(red: Pictures, asset: tuple[Any, Mesh]) -> None:
    class Brightness:
        """The mean difference: no network, but the same call."""

        id, revision = "brightness", "0123456789abcdef"

        def __call__(self, a: Tensor, b: Tensor) -> Tensor:
            return (a - b).abs().mean((1, 2, 3))

    off = torch.arange(9) / 100
    pictures = replace(red, mesh=red.field + off[:, None, None, None])
    report = evaluate(pictures, asset[1], PROMPT, RednessJudge(), Brightness())  # type: ignore[arg-type]
    assert report.metrics["field_mesh_lpips"] == pytest.approx(0.04)
    assert report.metrics["lpips_weights"] == "brightness@0123456789ab"
    assert [row["field_mesh_lpips"] for row in report.views] == pytest.approx(
        2 * off.tolist(), abs=1e-6
    )
    without = evaluate(pictures, asset[1], PROMPT, RednessJudge())
    assert "field_mesh_lpips" not in without.metrics
    assert without.views[0]["field_mesh_lpips"] is None


def test_an_odd_spot_does_not_make_a_mesh_colourful() -> None:
    solid = trimesh.creation.icosphere(subdivisions=4)
    vertices = np.asarray(solid.vertices, np.float32)

    def colored(share: float) -> bool:
        """A cap of this share of the sphere's area (Archimedes) in another colour."""
        cap = (vertices[:, 2] > 1 - 2 * share)[:, None]
        colors = np.where(cap, [0.1, 0.1, 0.9], [0.8, 0.7, 0.1]).astype(np.float32)
        return single_color(Mesh(vertices, np.asarray(solid.faces), vertices, colors))

    assert colored(0.02)
    assert not colored(0.12)


def test_a_clip_checkpoint_judges_and_its_revision_is_recorded(
    tmp_path: Path, two_faced: Pictures, asset: tuple[Any, Mesh]
) -> None:
    save_tiny_clip(tmp_path)
    judge = load_judge(str(tmp_path))
    report = evaluate(two_faced, asset[1], PROMPT, judge)
    assert report.metrics["evaluator"] == str(tmp_path)
    assert report.metrics["evaluator_revision"] == judge.revision
    assert report.metrics["distractors_sha256"] == DISTRACTORS_SHA256
    for row in report.views:
        assert 0 <= row["clip_score"] <= 100
        assert row["top_caption"] in {PROMPT, *DISTRACTORS}
    again = evaluate(two_faced, asset[1], PROMPT, judge)
    assert (again.metrics, again.views) == (report.metrics, report.views)


def test_pictures_are_of_the_field_the_mesh_and_its_shape(two_faced: Pictures) -> None:
    for stack in (two_faced.field, two_faced.mesh, two_faced.geometry):
        assert stack.shape == (9, 3, 64, 64)
        assert stack.abs().max() <= 1
        assert (stack[:, :, 0, 0] == 1).all() or stack[:, :, 0, 0].min() > 0.95  # white corners
    red_in = [int((view[0] - view[2] > 0.3).sum()) for view in two_faced.mesh]
    assert red_in[0] > 5 * red_in[4]
    grey = two_faced.geometry
    assert torch.equal(grey[:, 0], grey[:, 2])
    lit, shadow = grey[0, 0, 24, 27], grey[0, 0, 40, 37]  # from above the camera's left shoulder
    assert lit > shadow + 0.3
