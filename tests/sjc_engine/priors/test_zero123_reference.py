"""Zero-1-to-3 against the public implementations of its two layouts and of Stable Zero123's pose.

zero123_reference.json has what they gave for the weights, picture and noise that are made here by
formula. It was recorded by running them unchanged, with tensors of `deterministic` models:
- `cc_projection`, both poses: the whole pipeline of kxhit/zero123-hf, pipeline_zero1to3.py (which
  diffusers' community pipeline was before `stable_zero123`), one step of two, with guidance;
- `clip_camera_projection`: the whole Zero123Pipeline of threestudio's extern/zero123.py, its
  feature extractor set to the former's CLIP_preprocess, which is the one of training;
- `elevation`, the token alone: StableZero123Guidance.get_cond of threestudio's
  stable_zero123_guidance.py, and get_cam_embeddings of dreamgaussian's zero123_utils.py, which
  counts elevations downwards.
A hook on the UNet took its input and output. "token" is the first 16 of 768 numbers.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_priors import build_zero123_prior, save_image_encoder

from sjc_engine.priors.denoiser import load_prior
from sjc_engine.rendering.camera import orbit

RECORDED = json.loads(Path(__file__).with_name("zero123_reference.json").read_text())
PIPELINES = {
    "cc_projection": "Zero1to3StableDiffusionPipeline",
    "clip_camera_projection": "Zero123Pipeline",
}


def waves(*shape, phase=0.0):
    """Numbers in [-1, 1] like noise, but the same everywhere."""
    count = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)
    return (0.37 * count**2 + phase).sin().float().reshape(shape)


def deterministic(folder, pipeline):
    """A tiny checkpoint with weights that no random generator made, and CLIP's 224 pixels."""
    build_zero123_prior(folder, pipeline)
    save_image_encoder(folder, image_size=224, patch_size=56)
    for file in sorted(folder.glob("*/*.safetensors")):
        weights = load_file(file)
        for number, (name, weight) in enumerate(sorted(weights.items())):
            if weight.is_floating_point():
                wave = waves(*weight.shape, phase=number)
                norm = weight.dim() == 1 and name.endswith("weight")
                fan_in = math.prod(weight.shape[1:])
                weights[name] = 1 + 0.1 * wave if norm else wave * (2 / fan_in) ** 0.5
        save_file(weights, file, {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def priors(tmp_path_factory):
    made = tmp_path_factory.mktemp("reference")
    return {
        layout: load_prior(str(deterministic(made / layout, pipeline)))
        for layout, pipeline in PIPELINES.items()
    }


def condition(prior, case):
    camera, reference = (orbit(*case[name]) for name in ("camera", "reference"))
    encoded = prior.encode(waves(3, 16, 16), reference, case["pose"])
    return prior.views(encoded, [camera])


@pytest.mark.parametrize("case", RECORDED["denoised"], ids=lambda case: case["name"])
def test_a_pipelines_step_is_its_references(priors, case):
    prior = priors[case["layout"]]
    conds = {"unconditional": prior.unconditional(1), "conditional": condition(prior, case)}
    sigma = prior.sigmas[[case["timestep"]]]
    x = waves(1, 4, 8, 8, phase=5.0) * (1 + sigma**2).sqrt().float()
    for name, cond in conds.items():
        expected = case[name]
        assert cond.hidden[0, 0, :16].tolist() == pytest.approx(expected["token"], abs=1e-5)
        assert cond.concat[0, :, ::4, ::4].flatten().tolist() == pytest.approx(
            expected["concat"], abs=1e-5
        )
        output = ((x - prior.denoise(x, sigma, cond)) / sigma)[0, :, ::2, ::2].flatten()
        assert output.tolist() == pytest.approx(expected["output"], abs=1e-5)


@pytest.mark.parametrize("case", RECORDED["tokens"], ids=lambda case: case["name"])
def test_a_pose_of_stable_zero123_is_its_references(priors, case):
    token = condition(priors[case["layout"]], case).hidden[0, 0, :16]
    assert token.tolist() == pytest.approx(case["token"], abs=1e-5)
    wrong = condition(priors[case["layout"]], {**case, "pose": "distance"}).hidden[0, 0, :16]
    assert (wrong - token).abs().max() > 1e-3
