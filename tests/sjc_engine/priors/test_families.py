"""Every family of models: tiny random checkpoints in their real layouts, by the numbers."""

import json
import shutil

import diffusers
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, ScoreSdeVeScheduler
from tiny_priors import FAMILIES, SCHEDULED, SMALL, build_ddpm_prior, build_ve_prior
from transformers import AutoTokenizer, T5EncoderModel

from sjc_engine import optimize
from sjc_engine.guidance.score import guide
from sjc_engine.mesh.extract import extract_mesh
from sjc_engine.optimization.loop import step_scenes
from sjc_engine.optimization.scene import Scene
from sjc_engine.priors.denoiser import load_prior
from sjc_engine.priors.sources import find_prior
from sjc_engine.recipes import Recipe

TICKS = [3, 100, 500, 969]
WORDS = ["a duck", "a tank", "", "front view of a burger"]
GUIDED = ["pixel", "latent", "deepfloyd"]
UNITS = {torch.float16: 2**-11, torch.bfloat16: 2**-8}  # relative rounding errors


def images(prior, count, seed=0):
    shape = (count, prior.channels, prior.resolution, prior.resolution)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: build(tmp_path_factory.mktemp(name)) for name, build in FAMILIES.items()}


@pytest.fixture(scope="module")
def priors(folders):
    return {name: load_prior(str(folder)) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def deepfloyd(folders):
    return folders["deepfloyd"]


@pytest.fixture(scope="module")
def ddpm(folders):
    return folders["ddpm"]


def network(folder):
    """The network by itself: what its folder says it is."""
    kind = json.loads((folder / "unet" / "config.json").read_text())["_class_name"]
    return getattr(diffusers, kind).from_pretrained(folder / "unet", low_cpu_mem_usage=False)


ZERO_SNR = {"rescale_betas_zero_snr": True}


@pytest.mark.parametrize("family", SCHEDULED)
@pytest.mark.parametrize(
    ("prediction", "schedule"),
    [("epsilon", {}), ("v_prediction", {}), ("sample", {}), ("v_prediction", ZERO_SNR)],
)
def test_denoiser_is_the_schedulers_own_x0(tmp_path, family, prediction, schedule):
    """D(z; sigma) against DDPMScheduler.step(...).pred_original_sample of the raw network.

    A zero-terminal-SNR schedule loses its last tick, where sigma is infinite, and no other.
    """
    prior = load_prior(str(SCHEDULED[family](tmp_path, prediction, **schedule)))
    scheduler = DDPMScheduler.from_pretrained(tmp_path / "scheduler", thresholding=False)
    abar = scheduler.alphas_cumprod.double()
    ticks = min(999 if schedule else 1000, 971 if family == "deepfloyd" else 1000)
    expected = ((1 - abar) / abar).sqrt()[:ticks]
    torch.testing.assert_close(prior.sigmas, expected, rtol=1e-12, atol=0)
    assert torch.isfinite(prior.sigmas).all()
    assert (prior.sigmas.diff() > 0).all()

    unet, cond = network(tmp_path), prior.condition(["a duck"])
    words = {} if family == "ddpm" else {"encoder_hidden_states": cond.hidden}
    block = 2 if family == "pixel" else 1
    for tick in [*TICKS, ticks - 1]:
        sigma = expected[[tick]]
        z = images(prior, 1) * (1 + sigma).float()
        scaled = (z.double() / (1 + sigma**2).sqrt()).float()
        with torch.no_grad():
            output = unet(F.pixel_unshuffle(scaled, block), tick, **words).sample
        assert output.shape[1] == {"pixel": 12, "latent": 4, "deepfloyd": 6, "ddpm": 3}[family]
        x0 = scheduler.step(F.pixel_shuffle(output, block), tick, scaled).pred_original_sample
        error = (prior.denoise(z, sigma, cond) - x0).abs().max()
        assert error <= 1e-5 * max(1.0, sigma.item()), f"tick {tick}"


def test_a_ve_model_is_the_score_sde_that_its_scheduler_walks(folders, priors):
    """The scheduler's step from level s to r is u + (s^2 - r^2) score, with pixels u in [0, 1].

    So D_u = u + s^2 score is its mean's move times s^2 / (s^2 - r^2). Ours is twice as large and
    shifted: pixels in [-1, 1].
    """
    prior, unet = priors["ve"], network(folders["ve"])
    assert prior.sigmas[0].item() == pytest.approx(2 * 0.01)
    assert prior.sigmas[-1].item() == pytest.approx(2 * 1348)
    assert (prior.sigmas.diff() > 0).all()
    scheduler = ScoreSdeVeScheduler.from_pretrained(folders["ve"] / "scheduler")
    scheduler.set_timesteps(20)
    scheduler.set_sigmas(20)
    levels = scheduler.discrete_sigmas.double()
    for k, s in enumerate(levels.tolist()):
        u = (images(prior, 1, seed=k) * (1 + s)).double()
        with torch.no_grad():
            score = unet(u.float(), torch.tensor([s])).sample.double()
        mean = scheduler.step_pred(score, k / 19 + 1e-6, u).prev_sample_mean
        r = levels[k - 1].item() if k else 0.0
        expected = 2 * (u + (mean - u) * s**2 / (s**2 - r**2)) - 1
        answer = prior.denoise((2 * u - 1).float(), torch.tensor([2 * s]), prior.condition([""]))
        assert (answer - expected).abs().max() <= 1e-5 * max(1.0, 2 * s)


@pytest.mark.parametrize("family", SCHEDULED)
def test_sigma_to_timestep_and_back(family, priors):
    """Ticks are the scheduler's own; between two of them log sigma is linear."""
    prior = priors[family]
    count = len(prior.sigmas)
    ticks = torch.arange(count, dtype=torch.float64)
    torch.testing.assert_close(prior.timestep(prior.sigmas), ticks, atol=1e-9, rtol=0)
    assert (prior.timestep(prior.sigmas.float()) - ticks).abs().max() < 1e-2
    where = torch.rand(200, generator=torch.Generator().manual_seed(0)).double() * (count - 1)
    low, share = where.long(), where.frac()
    logs = prior.sigmas.log()
    sigma = torch.lerp(logs[low], logs[low + 1], share).exp()
    torch.testing.assert_close(prior.timestep(sigma), where, atol=1e-8, rtol=0)
    assert prior.timestep(torch.tensor([1e-9, 1e9])).tolist() == [0.0, count - 1.0]


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_of_a_batch_have_their_own_sigma_and_prompt(family, priors):
    prior = priors[family]
    sigma = prior.sigmas[TICKS]
    z = images(prior, 4) * (1 + sigma.view(-1, 1, 1, 1)).float()
    cond = prior.condition(WORDS)
    together = prior.denoise(z, sigma, cond)
    for k in range(4):
        alone = prior.denoise(z[[k]], sigma[[k]], cond[[k]])
        assert (together[[k]] - alone).abs().max() <= 1e-5 * max(1.0, sigma[k].item())
    with pytest.raises(ValueError, match="4 images, 3 sigmas"):
        prior.denoise(z, sigma[:3], cond)


@pytest.mark.parametrize("family", GUIDED)
def test_guidance_0_is_unconditional_and_1_is_conditional(family, priors):
    prior = priors[family]
    z, sigma = images(prior, 4), prior.sigmas[TICKS]
    cond, uncond = prior.condition(["a duck"] * 4), prior.condition([""] * 4)
    plain, bare = prior.denoise(z, sigma, cond), prior.denoise(z, sigma, uncond)
    limit = 1e-5 * sigma.clamp(min=1).view(-1, 1, 1, 1)
    assert ((plain - bare).abs().amax((1, 2, 3), keepdim=True) > 10 * limit)[-1]
    for scale, expected in ((0.0, bare), (1.0, plain), (3.0, bare + 3 * (plain - bare))):
        guided = guide(prior, z, sigma, cond, uncond, torch.full((4,), scale))
        assert ((guided - expected).abs() <= (1 + 5 * scale) * limit).all(), scale


HALVED = [(name, p) for name in SCHEDULED for p in ("epsilon", "v_prediction", "sample")]


@pytest.mark.parametrize("dtype", UNITS, ids=str)
@pytest.mark.parametrize(
    ("family", "prediction"), [("toybox", "epsilon"), ("ve", "epsilon"), *HALVED]
)
def test_half_precision_keeps_its_bound(tmp_path, family, prediction, dtype):
    """|D_half - D| <= 16 u g(sigma), as `load_prior` says.

    The unit roundoff u is 2^-11 in float16 and 2^-8 in bfloat16. The network's output is off by
    a few u, since roundings of many terms mostly cancel; g is what D multiplies it with.
    """
    folder = family
    if family in SCHEDULED:
        folder = str(SCHEDULED[family](tmp_path, prediction))
    elif family == "ve":
        folder = str(build_ve_prior(tmp_path))
    full, half = load_prior(folder), load_prior(folder, dtype=dtype)
    count = 3 if family == "toybox" else 24  # of trained weights; half precision is slow on a CPU
    sigma = full.sigmas[torch.linspace(0, len(full.sigmas) - 1, count).long()]
    level = sigma.view(-1, 1, 1, 1)
    z = images(full, count) * (1 + level).float()
    cond = full.condition(["a duck"] * count)
    answer = half.denoise(z, sigma, cond)
    error = (full.denoise(z, sigma, cond) - answer).abs()
    gain = {
        "epsilon": level,
        "v_prediction": level / (1 + level**2).sqrt(),
        "sample": torch.ones_like(level),
    }[prediction]
    assert answer.dtype == torch.float32
    assert (error <= 16 * UNITS[dtype] * gain).all(), (error / gain).max() / UNITS[dtype]


def test_a_precision_can_be_named(folders):
    folder = str(folders["ddpm"])
    named = {name: load_prior(folder, dtype=name) for name in ("auto", "float16", "bfloat16")}
    assert {name: prior.dtype for name, prior in named.items()} == {
        "auto": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16,
    }  # fmt: skip
    assert named["float16"].precision == "float16"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_steps_resumes_bit_for_bit_and_becomes_a_mesh(family, priors, tmp_path):
    """With its own default preset, but small."""
    prior = priors[family]
    changes = SMALL | {"steps": 4, "distill_views": 2, "distill_steps": 2, "mesh_resolution": 16}
    recipe = Recipe.for_prior(prior).override(changes)
    whole, part = (Scene("a duck", "", 7, recipe, prior) for _ in range(2))
    step_scenes([whole, part], prior)
    part.save(tmp_path / "scene.ckpt")
    resumed = Scene.load(tmp_path / "scene.ckpt", prior)
    for _ in range(3):
        step_scenes([whole], prior)
        step_scenes([resumed], prior)
    assert whole.done
    assert resumed.done
    pairs = zip(whole.field.parameters(), resumed.field.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    field = resumed.finish()
    assert (field.space, field.channels) == ("rgb", 3)
    with torch.no_grad():  # so few steps leave no surface: carve one
        field.density.fill_(-5)
        field.density[..., 2:6, 2:6, 2:6] = 50
    assert len(extract_mesh(field, recipe.mesh).faces) > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_of_variant_fp16_serve_where_there_are_no_others(family, folders, tmp_path):
    folder = shutil.copytree(folders[family], tmp_path / "half")
    for weights in [*folder.glob("*/*.safetensors")]:
        weights.rename(weights.with_name(weights.stem + ".fp16.safetensors"))
    prior, full = load_prior(str(folder)), load_prior(str(folders[family]))
    z, sigma = images(full, 1), torch.tensor([1.0])
    answers = [p.denoise(z, sigma, p.condition(["a duck"])) for p in (prior, full)]
    assert torch.equal(*answers)


@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument")  # diffusers' own
@pytest.mark.parametrize("family", FAMILIES)
def test_a_hub_model_is_loaded_whole_at_the_pinned_commit(family, folders, tmp_path, monkeypatch):
    """The hub's cache layout, filled by hand, with a broken model on the main branch."""
    pinned, newest = "0123456789abcdef0123456789abcdef01234567", "f" * 40
    repository = tmp_path / "models--owner--name"
    shutil.copytree(folders[family], repository / "snapshots" / pinned)
    broken = shutil.copytree(folders[family], repository / "snapshots" / newest)
    for settings in broken.glob("*/*.json"):
        settings.write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(newest)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    prior = load_prior("owner/name", revision=pinned, local_files_only=True)
    assert (prior.id, prior.revision) == ("owner/name", pinned)
    z, sigma = images(prior, 1), torch.tensor([1.0])
    local = load_prior(str(folders[family]))
    answers = [p.denoise(z, sigma, p.condition(["a duck"])) for p in (prior, local)]
    assert torch.equal(*answers)
    (repository / "refs" / "refs" / "pr").mkdir(parents=True)
    (repository / "refs" / "refs" / "pr" / "1").write_text(pinned)
    for named in ("refs/pr/1", pinned):
        source = find_prior(f"owner/name@{named}", local_files_only=True)
        assert (source.id, source.revision) == ("owner/name", pinned)


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


def test_an_early_repository_has_its_network_in_the_root(tmp_path, priors):
    old = load_prior(str(build_ddpm_prior(tmp_path, in_root=True)))
    new = priors["ddpm"]
    z, sigma = images(new, 1), torch.tensor([1.0])
    answers = [prior.denoise(z, sigma, prior.condition([""])) for prior in (old, new)]
    assert torch.equal(*answers)


def test_guidance_is_one_plain_call_where_words_mean_nothing(ddpm):
    prior = load_prior(str(ddpm))
    z, sigma, cond = images(prior, 2), torch.tensor([0.5, 2.0]), prior.condition(["a", "b"])
    plain = prior.denoise(z, sigma, cond)
    calls = []
    inner, prior._unet = prior._unet, lambda x, t: calls.append(len(x)) or inner(x, t)
    guided = guide(prior, z, sigma, cond, cond, torch.full((2,), 50.0))
    assert torch.equal(plain, guided)
    assert calls == [2]


@pytest.mark.parametrize("family", ["deepfloyd", "ddpm", "ve"])
def test_every_family_optimises_a_field(family, priors):
    prior = priors[family]
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
    with pytest.raises(ValueError, match=r"has a 'FluxPipeline'; use one with .*IFPipeline"):
        load_prior(str(folder))
