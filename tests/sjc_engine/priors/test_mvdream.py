"""MVDream: tiny random checkpoints in its real layouts, held against the published code's answers.

`mvdream_reference.json` has what MVDream's own `get_camera` gives, and what the network of
ashawkey/mvdream_diffusers answers with the weights of `weight`.
"""

import hashlib
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from safetensors.torch import load_file, save_file
from tiny_priors import (
    SMALL,
    build_diffusers_mvdream_prior,
    build_mvdream_prior,
    mvdream_weights,
)

from sjc_engine.errors import PriorError, SettingError
from sjc_engine.guidance.score import guide
from sjc_engine.mesh.extract import extract_mesh
from sjc_engine.optimization.loop import optimize, step_scenes
from sjc_engine.optimization.scene import Scene
from sjc_engine.optimization.step import draw
from sjc_engine.priors.conditioning import group_of, mismatches
from sjc_engine.priors.denoiser import Cond, load_prior
from sjc_engine.priors.families.mvdream import camera_numbers
from sjc_engine.priors.sources import family_of, prior_error
from sjc_engine.priors.tokens import text_limit
from sjc_engine.recipes import Recipe
from sjc_engine.rendering.camera import orbit, ring

REFERENCE = json.loads(
    Path(__file__).parents[2].joinpath("support", "mvdream_reference.json").read_text()
)


@pytest.fixture(autouse=True)
def untraced():
    """Here they are traced, as in an engine process: test_traced.py has other families."""


def weight(name, shape):
    """Of a layer, from its name alone; numpy's old generator never changes."""
    draws = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) > 1:
        return torch.from_numpy(draws / np.prod(shape[1:]) ** 0.5).float()
    return torch.from_numpy(0.1 * draws + name.endswith(".weight")).float()


def normal(seed, *shape):
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape)).float()


def cameras_of(*groups, radius=2.3):
    """Four around the object for each (azimuth, elevation)."""
    return [camera for angles in groups for camera in ring(orbit(*angles, radius, 40.0), 4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_mvdream_prior(tmp_path_factory.mktemp("mvdream"))


@pytest.fixture(scope="module")
def prior(folder):
    return load_prior(str(folder))


def small(prior, **changes):
    settings = SMALL | {"steps": 4, "views_per_step": 4, "ray_step": 0.2}
    return Recipe.for_prior(prior).override(settings | changes)


def parameters(scene):
    return [p.detach().clone() for p in scene.field.parameters()]


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def questions(prior, groups, seed=0):
    """x, sigma and condition of some groups, each at its own noise level."""
    sigma = torch.linspace(0.3, 6.0, groups, dtype=torch.float64).repeat_interleave(4)
    x = normal(seed, 4 * groups, 4, 8, 8) * (1 + sigma).float().view(-1, 1, 1, 1)
    prompts = [f"thing {k}" for k in range(groups) for _ in range(4)]
    cameras = cameras_of(*((37.0 * k, 10.0 * k) for k in range(groups)))
    return x, sigma, prior.condition(prompts, cameras=cameras)


def test_the_network_is_the_published_one(tmp_path):
    config = REFERENCE["config"]
    shapes = {name: list(w.shape) for name, w in mvdream_weights(config).items()}
    digest = hashlib.sha256(json.dumps(sorted(shapes.items())).encode()).hexdigest()
    assert digest == REFERENCE["weights_sha256"]
    weights = {name: weight(name, shape) for name, shape in shapes.items()}
    prior = load_prior(str(build_mvdream_prior(tmp_path, config, weights)))
    groups = [(group["azimuth"], group["elevation"]) for group in REFERENCE["groups"]]
    cond = Cond(normal(1, 8, 5, 16)).seen_from(cameras_of(*groups))
    with torch.no_grad():
        answer = prior._network(normal(0, 8, 4, 8, 8), torch.tensor(REFERENCE["times"]), cond)
    expected = torch.tensor(REFERENCE["output"]).view(8, 4, 4, 4)  # every second pixel
    assert expected.std() > 0.3
    torch.testing.assert_close(answer[..., ::2, ::2], expected, rtol=0, atol=1e-5)


def test_cameras_are_told_as_in_mvdreams_own_frame():
    groups = [(group["azimuth"], group["elevation"]) for group in REFERENCE["groups"]]
    for radius in (1.0, 2.3):
        cond = Cond(torch.zeros(8, 1, 1)).seen_from(cameras_of(*groups, radius=radius))
        expected = torch.tensor(REFERENCE["cameras"])
        torch.testing.assert_close(camera_numbers(cond.camera), expected, rtol=0, atol=1e-6)


def test_denoising_is_the_schedulers_own_x0(folder, prior):
    assert (prior.channels, prior.resolution, prior.latent, prior.group) == (4, 8, True, 4)
    scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
    x, _, cond = questions(prior, 1)
    for tick in (3, 500, 969):
        sigma = prior.sigmas[[tick] * 4]
        scaled = (x.double() / (1 + sigma.view(-1, 1, 1, 1) ** 2).sqrt()).float()
        with torch.no_grad():
            output = prior._network(scaled, torch.full((4,), float(tick)), cond)
        x0 = scheduler.step(output, tick, scaled).pred_original_sample
        error = (prior.denoise(x, sigma, cond) - x0).abs().max()
        assert error <= 1e-5 * max(1.0, float(sigma[0]))


def test_both_public_layouts_are_the_same_model(prior, tmp_path):
    other = load_prior(str(build_diffusers_mvdream_prior(tmp_path)))
    assert (other.id, other.group, other.resolution) == (str(tmp_path), 4, 8)
    question = questions(prior, 2)
    assert torch.equal(prior.denoise(*question), other.denoise(*question))


def test_views_hear_of_one_another_within_their_group_alone(prior):
    x, sigma, cond = questions(prior, 3)
    before = prior.denoise(x, sigma, cond)
    changed = x.clone()
    changed[5] += 1
    moved = (prior.denoise(changed, sigma, cond) - before).abs().amax((1, 2, 3)) > 1e-4
    assert moved.tolist() == [False] * 4 + [True] * 4 + [False] * 4
    alone = prior.denoise(x[4:8], sigma[4:8], cond[4:8])
    assert (alone - before[4:8]).abs().max() <= 1e-5 * float(sigma[4]) ** 2
    turned = cond.seen_from(cameras_of((40, 30), (37, 10), (74, 20)))
    moved = (prior.denoise(x, sigma, turned) - before).abs().amax((1, 2, 3)) > 1e-5
    assert moved.tolist() == [True] * 4 + [False] * 8


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 6e-3), (torch.bfloat16, 6e-2)])
def test_half_precision_is_within_its_bound(folder, prior, dtype, bound):
    """Relative to sigma, which multiplies the network's error."""
    x, sigma, cond = questions(prior, 2)
    half = load_prior(str(folder), dtype=dtype)
    assert {p.dtype for p in half._unet.parameters()} == {dtype}
    error = (half.denoise(x, sigma, cond) - prior.denoise(x, sigma, cond)).abs().amax((1, 2, 3))
    assert error.max() > 0
    assert (error / sigma).max() <= bound


def test_guidance_keeps_groups_whole_and_takes_contrast_back(prior):
    x, sigma, cond = questions(prior, 2)
    uncond = prior.condition([""] * 8, cameras=cameras_of((0, 0), (37, 10)))
    without, with_text = (prior.denoise(x, sigma, c) for c in (uncond, cond))
    assert (without - with_text).abs().max() > 1e-3
    scale, share = torch.full((8,), 9.0), torch.tensor([0.0] * 4 + [0.7] * 4)
    plain = guide(prior, x, sigma, cond, uncond, scale)
    torch.testing.assert_close(plain, without + 9 * (with_text - without), rtol=1e-4, atol=1e-3)
    less = guide(prior, x, sigma, cond, uncond, scale, rescale=share)
    assert torch.equal(less[:4], plain[:4])
    wanted = 0.3 * plain[4:].std() + 0.7 * with_text[4:].std()
    assert less[4:].std() == pytest.approx(wanted.item(), rel=1e-4)
    assert (less[4:] / plain[4:]).std() < 1e-4  # one factor for the whole group


def test_a_step_draws_groups(prior):
    recipe = small(prior, views_per_step=8, noise_samples=2, fov_max=60, tick_start=0)
    inputs = draw(Scene("a ball", "ugly", 0, recipe, prior))
    assert inputs.sigma.view(2, 4).unique(dim=1).shape == (2, 1)
    assert inputs.sigma[0] != inputs.sigma[4]
    for cond in (inputs.cond, inputs.uncond):
        eyes = cond.camera[:, :3, 3].view(2, 2, 4, 3)  # samples, groups, views
        assert torch.equal(eyes[0], eyes[1])
        assert (eyes[0, 0] - eyes[0, 1]).norm(dim=-1).min() > 1e-3
        opposite = eyes[..., :2, :] * torch.tensor([-1, 1, -1])
        torch.testing.assert_close(eyes[..., 2:, :], opposite)
        assert (eyes[..., 0, :] * eyes[..., 1, :])[..., [0, 2]].sum(-1).abs().max() < 1e-6


def test_views_that_are_no_groups_are_refused(prior, folder):
    recipe = small(prior, views_per_step=6)
    with pytest.raises(SettingError, match=r"6 does not make whole groups.* use a multiple of 4"):
        Scene("a ball", "", 0, recipe, prior)
    x, sigma, cond = questions(prior, 1)
    with pytest.raises(ValueError, match="asked about 3 views; it sees 4 views at a time"):
        prior.denoise(x[:3], sigma[:3], cond[:3])
    with pytest.raises(ValueError, match="each with its camera"):
        prior.denoise(x, sigma, prior.condition([""] * 4))
    id = "dylanebert/mvdream"  # by its name alone, as `sjc check` does it
    [error] = mismatches(id, False, group_of(id), False, "", recipe.optimize)
    assert (error.key, error.fix) == ("views_per_step", "use a multiple of 4")
    assert text_limit(str(folder)) is not None


def test_scenes_share_a_call_and_resume_bit_for_bit(prior, tmp_path):
    recipe, path = small(prior, noise_samples=2), tmp_path / "scene.ckpt"
    crowd = [
        Scene("a tank", "", 1, small(prior, views_per_step=8, guidance_rescale=0), prior),
        Scene("a ball", "ugly", 7, recipe, prior),
    ]
    part = Scene("a ball", "ugly", 7, recipe, prior)
    for k in range(4):
        step_scenes(crowd, prior)
        if k < 2:
            step_scenes([part], prior)
    part.save(path)
    resumed = Scene.load(path, prior)
    for _ in range(2):
        step_scenes([resumed], prior)
    assert resumed.done
    assert equal(parameters(crowd[1]), parameters(resumed))
    together = [Scene("a", "", k, recipe, prior) for k in range(2)]
    apart = [Scene("a", "", k, recipe, prior) for k in range(2)]
    step_scenes(together, prior, one_call=True)
    step_scenes(apart, prior)
    for one, other in zip(together, apart, strict=True):
        a, b = one.field.color.grad, other.field.color.grad
        assert (a - b).abs().max() <= 1e-5 * a.abs().max()


def test_a_prompt_becomes_a_mesh(prior):
    recipe = small(prior, steps=2, distill_views=4, distill_steps=3)
    [field] = optimize(["a ball"], prior, recipe)
    assert (field.space, field.channels) == ("rgb", 3)
    with torch.no_grad():  # two steps leave no surface: carve one
        field.density.fill_(-5)
        field.density[..., 2:6, 2:6, 2:6] = 50
    assert len(extract_mesh(field, small(prior, mesh_resolution=16).mesh).faces) > 0


def test_the_preset_is_threestudios(folder):
    for id in (str(folder), "ashawkey/mvdream-sd2.1-diffusers", "dylanebert/mvdream"):
        assert family_of(id)[0] == "mvdream"
        recipe = Recipe.for_prior(id)
        r = recipe.optimize
        assert (recipe.name, r.score, r.view_style) == ("mvdream", "recon", "none")
        assert (r.steps, r.guidance_scale, r.guidance_rescale) == (10_000, 50.0, 0.5)
        assert (r.elevation_min, r.elevation_max, r.views_per_step) == (0.0, 30.0, 4)
        relative = [
            (r.radius + side * r.radius_spread) * np.tan(np.radians(r.fov_min / 2))
            for side in (-1, 1)
        ]
        assert relative == pytest.approx([0.8, 1.0], abs=2e-3)
    assert Recipe.for_prior("dylanebert/mvdream", "draft").optimize.steps == 1000


def test_broken_and_other_models_are_refused_before_they_load(folder, tmp_path):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    assert prior_error(str(folder)) is None
    weights, config = load_file(path), json.loads((folder / "unet" / "config.json").read_text())
    for changes, gone, message in (
        ({}, "input_blocks.1.1.transformer_blocks.0.attn1.to_k.weight", "lacks 1 weights"),
        ({}, "camera_embed.2.bias", "lacks 1 weights"),
        ({"ip_dim": 16}, None, "an ImageDream, which starts from a picture"),
        ({"context_dim": 32}, None, "gives text embeddings 16 wide, and its unet takes 32"),
        ({"num_res_blocks": 2}, None, "lacks"),
    ):
        broken = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        build_mvdream_prior(broken, config | changes, weights)
        save_file(
            {k: w for k, w in weights.items() if k != gone}, broken / path.relative_to(folder)
        )
        assert message in str(prior_error(str(broken)))
        with pytest.raises(PriorError):
            load_prior(str(broken))
