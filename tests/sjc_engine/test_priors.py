"""The other families of models: tiny random checkpoints in their real layouts."""

import json
import shutil

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel, UNet2DModel
from tiny_priors import (
    build_ddpm_prior,
    build_deepfloyd_prior,
    build_latent_prior,
    build_ve_prior,
)
from transformers import AutoTokenizer, T5EncoderModel

from sjc_engine import optimize
from sjc_engine.prior import load_prior
from sjc_engine.recipes import Recipe
from sjc_engine.score import guide

TICKS = [3, 100, 500, 969]


def images(prior, count, seed=0):
    shape = (count, prior.channels, prior.resolution, prior.resolution)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def deepfloyd(tmp_path_factory):
    return build_deepfloyd_prior(tmp_path_factory.mktemp("if"))


@pytest.fixture(scope="module")
def ddpm(tmp_path_factory):
    return build_ddpm_prior(tmp_path_factory.mktemp("ddpm"))


@pytest.fixture(scope="module")
def ve(tmp_path_factory):
    return build_ve_prior(tmp_path_factory.mktemp("ve"))


def schedulers_x0(folder, output, tick, scaled):
    scheduler = DDPMScheduler.from_pretrained(folder / "scheduler", thresholding=False)
    return scheduler.step(output, tick, scaled).pred_original_sample


def test_deepfloyd_is_the_schedulers_own_x0(deepfloyd):
    prior = load_prior(str(deepfloyd))
    assert (prior.channels, prior.resolution, prior.latent) == (3, 8, False)
    assert len(prior.sigmas) == 971
    assert 20 < prior.sigmas[-1] < 24
    unet = UNet2DConditionModel.from_pretrained(deepfloyd / "unet", low_cpu_mem_usage=False)
    cond = prior.condition(["a duck"])
    for tick in TICKS:
        sigma = prior.sigmas[[tick]]
        z = images(prior, 1) * (1 + sigma).float()
        scaled = (z.double() / (1 + sigma**2).sqrt()).float()
        with torch.no_grad():
            output = unet(scaled, tick, encoder_hidden_states=cond.hidden).sample
        assert output.shape[1] == 6  # the variance is told to nobody
        x0 = schedulers_x0(deepfloyd, output, tick, scaled)
        error = (prior.denoise(z, sigma, cond) - x0).abs().max()
        assert error <= 1e-5 * max(1.0, sigma.item())


def test_deepfloyd_embeds_in_lower_case_and_masks_the_padding(deepfloyd):
    prior = load_prior(str(deepfloyd))
    tokenizer = AutoTokenizer.from_pretrained(deepfloyd / "tokenizer")
    encoder = T5EncoderModel.from_pretrained(deepfloyd / "text_encoder")
    tokens = tokenizer(["a toy tank"], padding="max_length", max_length=77, return_tensors="pt")
    with torch.no_grad():
        expected = encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0]
    cond = prior.condition([" A Toy TANK ", ""])
    torch.testing.assert_close(cond.hidden[:1], expected)
    with pytest.raises(ValueError, match="takes text only"):
        prior.condition(["x"], images=[torch.zeros(3, 8, 8)])


def test_ddpm_is_the_schedulers_own_x0(ddpm):
    prior = load_prior(str(ddpm))
    unet = UNet2DModel.from_pretrained(ddpm / "unet", low_cpu_mem_usage=False)
    cond = prior.condition(["whatever"])
    for tick in TICKS:
        sigma = prior.sigmas[[tick]]
        z = images(prior, 1) * (1 + sigma).float()
        scaled = (z.double() / (1 + sigma**2).sqrt()).float()
        with torch.no_grad():
            output = unet(scaled, tick).sample
        x0 = schedulers_x0(ddpm, output, tick, scaled)
        error = (prior.denoise(z, sigma, cond) - x0).abs().max()
        assert error <= 1e-5 * max(1.0, sigma.item())


def test_an_early_repository_has_its_network_in_the_root(tmp_path, ddpm):
    old = load_prior(str(build_ddpm_prior(tmp_path, in_root=True)))
    new = load_prior(str(ddpm))
    z, sigma = images(new, 1), torch.tensor([1.0])
    answers = [prior.denoise(z, sigma, prior.condition([""])) for prior in (old, new)]
    assert torch.equal(*answers)


def test_a_ve_model_is_its_score_in_its_own_units(ve):
    """D_u = u + s^2 score for u in [0, 1]; ours is twice as large and shifted."""
    prior = load_prior(str(ve))
    assert prior.sigmas[0].item() == pytest.approx(0.02)
    assert prior.sigmas[-1].item() == pytest.approx(2 * 1348)
    assert (prior.sigmas.diff() > 0).all()
    unet = UNet2DModel.from_pretrained(ve / "unet", low_cpu_mem_usage=False)
    z = images(prior, 2)
    with torch.no_grad():
        score = unet((z + 1) / 2, torch.tensor([0.25, 4.0])).sample
    s2 = torch.tensor([0.25, 4.0]).view(-1, 1, 1, 1) ** 2
    expected = 2 * ((z + 1) / 2 + s2 * score) - 1
    sigma = torch.tensor([0.5, 8.0])
    answer = prior.denoise(z, sigma, prior.condition(["", ""]))
    torch.testing.assert_close(answer, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("layout", ["deepfloyd", "ddpm", "ve"])
def test_samples_of_a_batch_have_their_own_sigma(layout, request):
    prior = load_prior(str(request.getfixturevalue(layout)))
    z, sigma = images(prior, 4), prior.sigmas[TICKS]
    cond = prior.condition(["a duck", "a tank", "", "front view of a burger"])
    together = prior.denoise(z, sigma, cond)
    for k in range(4):
        alone = prior.denoise(z[[k]], sigma[[k]], cond[[k]])
        assert (together[[k]] - alone).abs().max() <= 1e-5 * max(1.0, sigma[k].item() ** 2)
    with pytest.raises(ValueError, match="4 images, 3 sigmas"):
        prior.denoise(z, sigma[:3], cond)


def test_guidance_is_one_plain_call_where_words_mean_nothing(ddpm):
    prior = load_prior(str(ddpm))
    z, sigma, cond = images(prior, 2), torch.tensor([0.5, 2.0]), prior.condition(["a", "b"])
    plain = prior.denoise(z, sigma, cond)
    calls = []
    inner, prior._unet = prior._unet, lambda x, t: calls.append(len(x)) or inner(x, t)
    guided = guide(prior, z, sigma, cond, cond, torch.full((2,), 50.0))
    assert torch.equal(plain, guided)
    assert calls == [2]


@pytest.mark.parametrize("layout", ["deepfloyd", "ddpm", "ve"])
def test_every_family_optimises_a_field(layout, request):
    prior = load_prior(str(request.getfixturevalue(layout)))
    recipe = Recipe.for_prior(prior).override(
        {"steps": 2, "grid_size": 6, "render_size": 12, "ray_step": 0.2}  # not the model's: resized
    )
    [field] = optimize(["a duck"], prior, recipe)
    assert field.space == "rgb"
    assert all(torch.isfinite(p).all() for p in field.parameters())


def test_presets_follow_the_family(deepfloyd, ddpm):
    assert Recipe.for_prior(str(deepfloyd)).name == "if"
    annealed = Recipe.for_prior(str(ddpm))
    assert annealed.name == "annealed"
    assert annealed.optimize.sigma_schedule == "annealed"
    assert Recipe.for_prior("google/ddpm-bedroom-256").name == "annealed"
    assert Recipe.for_prior("DeepFloyd/IF-I-M-v1.0").name == "if"
    assert Recipe.for_prior("stable-diffusion-v1-5/stable-diffusion-v1-5").name == "paper"


def test_a_pipeline_that_the_engine_does_not_know_is_named(tmp_path, ddpm):
    folder = shutil.copytree(ddpm, tmp_path / "other")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(ValueError, match=r"is a FluxPipeline; this engine loads .*IFPipeline"):
        load_prior(str(folder))


def test_weights_of_variant_fp16_serve_where_there_are_no_others(tmp_path):
    folder = build_latent_prior(tmp_path)
    for part in ("unet", "vae"):
        weights = folder / part / "diffusion_pytorch_model.safetensors"
        weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert load_prior(str(folder)).latent
