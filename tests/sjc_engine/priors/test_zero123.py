"""Zero-1-to-3: a tiny random checkpoint in its real layout, and scenes that begin at a picture."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from tiny_priors import build_latent_prior, build_zero123_prior
from transformers import CLIPVisionModelWithProjection

from sjc_engine import optimize
from sjc_engine.guidance.score import guide
from sjc_engine.guidance.view_prompts import view_prompt
from sjc_engine.image_file import InputImage
from sjc_engine.mesh.extract import extract_mesh
from sjc_engine.optimization.checkpoint import CheckpointError
from sjc_engine.optimization.loop import step_scenes
from sjc_engine.optimization.scene import Scene
from sjc_engine.optimization.step import draw
from sjc_engine.priors.denoiser import Cond, load_prior
from sjc_engine.priors.families.zero123 import Zero123Prior, relative_pose
from sjc_engine.priors.image_pose import image_pose
from sjc_engine.priors.sources import licence_of, takes_image
from sjc_engine.recipes import Recipe
from sjc_engine.rendering.camera import orbit

TICKS = [3, 100, 500, 969]
SMALL = {"steps": 4, "grid_size": 8, "render_size": 8, "ray_step": 0.2}


@pytest.fixture(autouse=True)
def untraced():
    """Here they are traced, as in an engine process: test_traced.py has other families."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_zero123_prior(tmp_path_factory.mktemp("zero123"))


@pytest.fixture(scope="module")
def prior(folder):
    return load_prior(str(folder))


def ball(color=(0.7, -0.2, -0.6), size=24, sha256="ab" * 32):
    """A picture of a disc, half as wide as the picture, on white."""
    line = torch.linspace(-1, 1, size)
    opacity = (line[:, None].square() + line.square() < 0.25).float()
    rgb = opacity * torch.tensor(color).view(3, 1, 1) + (1 - opacity)
    return InputImage(rgb, opacity, sha256)


def noise(count, seed=0):
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def small(prior, **changes):
    return Recipe.for_prior(prior).override(SMALL | {"distill_steps": 3} | changes)


def parameters(scene):
    return [p.detach().clone() for p in scene.field.parameters()]


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_pose_is_polar_azimuth_and_distance_seen_from_the_reference():
    """Worked out by hand from Zero-1-to-3's own frame: z up, azimuth atan2(y, x), polar from z.

    Our (x, y, z) is its (x, -z, y), which turns +Y up into +Z up and keeps the handedness.
    """

    def spherical(camera):
        x, y, z = camera.camera_to_world[:3, 3].tolist()
        x, y, z = x, -z, y
        return math.atan2(math.hypot(x, y), z), math.atan2(y, x), math.sqrt(x * x + y * y + z * z)

    reference = orbit(10, 20, 2.0)
    for target in (orbit(100, 20, 2.0), orbit(350, 60, 1.8), orbit(190, -14, 2.2), reference):
        (p, a, r), (p0, a0, r0) = spherical(target), spherical(reference)
        expected = [p - p0, math.sin(a - a0), math.cos(a - a0), r - r0]
        assert relative_pose(target, reference).tolist() == pytest.approx(expected, abs=1e-6)


def test_a_pose_has_the_signs_of_the_published_demo():
    """There, a negative polar angle is "from above" and 90 degrees of azimuth "from the right"."""
    front = orbit(0, 0, 2.0)
    assert relative_pose(front, front).tolist() == [0, 0, 1, 0]
    above = relative_pose(orbit(0, 45, 2.0), front)
    assert above.tolist() == pytest.approx([-math.pi / 4, 0, 1, 0], abs=1e-6)
    # The camera's right, as it faces the object's front: its first axis is where it moves to.
    aside = orbit(90, 0, 2.0)
    right = front.camera_to_world[:3, 0]
    assert float(aside.camera_to_world[:3, 3] @ right) == pytest.approx(2.0)
    assert view_prompt(90, 0, "sided") == "left side view of"  # the object's own left
    assert relative_pose(aside, front).tolist() == pytest.approx([0, 1, 0, 0], abs=1e-6)
    assert relative_pose(orbit(0, 0, 1.8), front)[3].item() == pytest.approx(-0.2)


def test_stable_zero123_is_told_the_pictures_own_polar_angle_and_no_distance():
    reference = orbit(10, 20, 2.0)
    for camera in (orbit(100, 50, 2.0), orbit(100, 50, 1.8)):
        ours = relative_pose(camera, reference, "elevation").tolist()
        assert ours == pytest.approx([math.radians(-30), 1, 0, math.radians(70)], abs=1e-6)


@pytest.mark.parametrize(
    ("id", "pose", "guessed"),
    [
        ("kxic/zero123-xl", "distance", False),
        ("bennyguo/zero123-diffusers", "distance", False),
        ("ashawkey/zero123-xl-diffusers", "distance", False),
        ("kxic/stable-zero123", "elevation", False),
        ("ashawkey/stable-zero123-diffusers@refs/pr/1", "elevation", False),
        ("stable-people/views", "distance", True),
    ],
)
def test_a_hub_id_names_the_model_and_so_its_pose(id, pose, guessed):
    assert image_pose(id) == (pose, guessed)
    if not guessed:
        assert takes_image(id)
        assert licence_of(id) == (
            "mit" if pose == "distance" else "stabilityai-nc-research-community"
        )
        recipe = Recipe.for_prior(id)
        assert (recipe.name == "stable-zero123") == (pose == "elevation")
        assert recipe.optimize.image_pose == pose


def test_other_models_views_are_not_for_this_family():
    assert not takes_image("sudo-ai/zero123plus-v1.2")


def test_of_a_folder_only_the_name_that_it_was_saved_from_is_no_guess(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    index = Path("models/zero123/model_index.json")
    index.parent.mkdir(parents=True)
    kind = {"_class_name": "Zero1to3StableDiffusionPipeline"}
    for name, expected in (
        (None, ("distance", True)),  # whatever it is called; it also looks like a hub id
        ("kxic/stable-zero123", ("elevation", False)),
        ("kxic/zero123-xl", ("distance", False)),
        ("me/views", ("distance", True)),
    ):
        index.write_text(json.dumps(kind | ({"_name_or_path": name} if name else {})))
        assert image_pose("models/zero123") == expected
    index.write_text(json.dumps(kind))
    index.parent.rename("models/stable_zero123")
    assert image_pose("models/stable_zero123") == ("elevation", True)


@pytest.mark.parametrize("name", ["zero123", "stable-zero123"])
@pytest.mark.parametrize("pipeline", ["Zero1to3StableDiffusionPipeline", "Zero123Pipeline"])
def test_every_variant_steps_resumes_and_becomes_a_mesh(tmp_path, pipeline, name):
    prior = load_prior(str(build_zero123_prior(tmp_path / name, pipeline)))
    recipe = small(prior, image_elevation=20, mesh_resolution=16)
    assert recipe.name == name
    camera, pose = orbit(30, 20, 2.0), recipe.optimize.image_pose
    known = prior.encode(ball().rgb, orbit(0, 0, 2.0), pose)
    expected = prior.views(known, [camera]).hidden
    assert torch.equal(prior.condition([""], [ball().rgb], [camera]).hidden, expected)
    whole, part = (Scene("a ball", "", 7, recipe, prior, ball()) for _ in range(2))
    step_scenes([whole, part], prior)
    part.save(tmp_path / "scene.ckpt")
    resumed = Scene.load(tmp_path / "scene.ckpt", prior, ball())
    for _ in range(3):
        step_scenes([whole], prior)
        step_scenes([resumed], prior)
    assert whole.done
    assert resumed.done
    assert equal(parameters(whole), parameters(resumed))
    [field] = optimize(["a ball"], prior, recipe, images=[ball()])
    with torch.no_grad():  # so few steps leave no surface: carve one
        field.density.fill_(-5)
        field.density[..., 2:6, 2:6, 2:6] = 50
    assert len(extract_mesh(field, recipe.mesh).faces) > 0


def test_denoising_is_the_schedulers_own_x0_of_the_components(folder, prior):
    """All from the files: VAE's mode beside the noisy latents, one projected token."""
    assert (prior.channels, prior.resolution, prior.latent) == (4, 8, True)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False)
    vae = AutoencoderKL.from_pretrained(folder / "vae", low_cpu_mem_usage=False)
    clip = CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder")
    projection = load_file(folder / "cc_projection" / "diffusion_pytorch_model.safetensors")
    scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
    picture = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    camera = orbit(40, 25, 2.0)
    with torch.no_grad():
        beside = vae.encode(picture[None]).latent_dist.mode()
        seen = F.interpolate(picture[None], (12, 12), mode="bicubic", align_corners=True) / 2 + 0.5
        mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
        std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
        embedding = clip((seen - mean) / std).image_embeds
        pose = torch.tensor([[-math.radians(25), math.sin(0.698132), math.cos(0.698132), 0]])
        token = F.linear(
            torch.cat([embedding, pose], 1),
            projection["projection.weight"],
            projection["projection.bias"],
        )
    cond = prior.condition(["a thing"], [picture], [camera])
    for tick in TICKS:
        sigma = prior.sigmas[[tick]]
        assert prior.timestep(sigma).item() == pytest.approx(tick, abs=1e-6)
        z = noise(1) * (1 + sigma).float()
        scaled = (z.double() / (1 + sigma**2).sqrt()).float()
        with torch.no_grad():
            both = torch.cat([scaled, beside], 1)
            output = unet(both, tick, encoder_hidden_states=token[:, None]).sample
        x0 = scheduler.step(output, tick, scaled).pred_original_sample
        error = (prior.denoise(z, sigma, cond) - x0).abs().max()
        assert error <= 1e-5 * max(1.0, sigma.item())


def test_guidance_runs_from_no_picture_and_no_pose_to_both(prior):
    z, sigma = noise(2), torch.tensor([0.5, 4.0], dtype=torch.float64)
    pictures = [ball().rgb, ball((-0.5, 0.5, 0.5)).rgb]
    cond = prior.condition(["", ""], pictures, [orbit(30, 0, 2.0), orbit(200, 40, 2.0)])
    uncond = prior.unconditional(2)
    assert uncond.hidden.abs().max() == uncond.concat.abs().max() == 0
    ends = [prior.denoise(z, sigma, c) for c in (uncond, cond)]
    assert (ends[0] - ends[1]).abs().max() > 1e-3
    for scale, end in zip((0.0, 1.0), ends, strict=True):
        guided = guide(prior, z, sigma, cond, uncond, torch.full((2,), scale))
        torch.testing.assert_close(guided, end, atol=1e-4, rtol=1e-4)
    other = prior.condition(["", ""], pictures, [orbit(31, 0, 2.0), orbit(200, 41, 2.0)])
    assert (prior.denoise(z, sigma, other) - ends[1]).abs().amax((1, 2, 3)).min() > 0


def test_samples_of_a_batch_have_their_own_sigma_picture_and_pose(prior):
    z, sigma = noise(4), prior.sigmas[TICKS]
    cameras = [orbit(90 * k, 10 * k, 2.0) for k in range(4)]
    cond = prior.condition([""] * 4, [ball((k / 4, 0, 0)).rgb for k in range(4)], cameras)
    together = prior.denoise(z, sigma, cond)
    for k in range(4):
        alone = prior.denoise(z[[k]], sigma[[k]], cond[[k]])
        assert (together[[k]] - alone).abs().max() <= 1e-5 * max(1.0, sigma[k].item() ** 2)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 6e-3), (torch.bfloat16, 6e-2)])
def test_half_precision_is_within_its_bound(folder, prior, dtype, bound):
    """Relative to sigma, which multiplies the network's error."""
    half = load_prior(str(folder), dtype=dtype)
    z, sigma = noise(4), prior.sigmas[TICKS]
    cond = prior.condition([""] * 4, [ball().rgb] * 4, [orbit(50, 0, 2.0)] * 4)
    error = (half.denoise(z, sigma, cond) - prior.denoise(z, sigma, cond)).abs().amax((1, 2, 3))
    assert error.max() > 0
    assert (error / sigma).max() <= bound


def test_what_it_is_not_told_it_asks_for(prior):
    picture = ball().rgb
    with pytest.raises(ValueError, match="starts from an image; give one for each prompt"):
        prior.condition(["a duck"])
    with pytest.raises(ValueError, match="2 prompts, 1 images, 1 cameras"):
        prior.condition(["a", "b"], [picture], [orbit(0, 0)])
    with pytest.raises(ValueError, match=r"\(3, H, W\), not \(1, 8, 8\)"):
        prior.condition(["a"], [torch.zeros(1, 8, 8)])
    with pytest.raises(ValueError, match="asked without an image"):
        prior.denoise(noise(1), torch.ones(1), Cond(torch.zeros(1, 1, 768)))
    own = prior.condition(["a"], [picture])
    assert torch.equal(own.hidden, prior.condition(["a"], [picture], [orbit(0, 0, 2.0)]).hidden)


def test_another_network_is_refused(tmp_path, folder):
    latent = build_latent_prior(tmp_path)
    for name in ("image_encoder", "cc_projection"):
        (latent / name).symlink_to(folder / name)
    (latent / "model_index.json").write_text(
        json.dumps({"_class_name": "Zero1to3StableDiffusionPipeline"})
    )
    with pytest.raises(ValueError, match="is no Zero-1-to-3: a network of 4 channels"):
        load_prior(str(latent))


def test_the_preset_is_3drecs_command(folder):
    for id in (str(folder), "kxic/zero123-xl", "kxic/zero123-165000"):
        recipe = Recipe.for_prior(id)
        r = recipe.optimize
        assert recipe.name == "zero123"
        assert (r.lr, r.steps, r.guidance_scale, r.emptiness_weight) == (0.05, 10_000, 100.0, 0.0)
        assert (r.render_size, r.radius, r.fov_min, r.fov_max) == (32, 2.0, 49.1, 49.1)
        assert (r.input_view_weight, r.near_view_weight, r.smooth_weight) == (1e4, 1e4, 1e4)
        assert (r.tick_min, r.tick_max, r.background) == (10, 969, "white")
    assert Recipe.for_prior("kxic/zero123-xl", "draft").optimize.steps == 1000


def test_the_preset_of_stable_zero123_has_threestudios_cameras():
    for id, preset in (("kxic/stable-zero123", None), ("kxic/zero123-xl", "stable-zero123")):
        r = Recipe.for_prior(id, preset).optimize
        assert (r.radius, r.radius_spread, r.fov_min, r.fov_max) == (3.8, 0.0, 20.0, 20.0)
        assert (r.elevation_min, r.elevation_max) == (-10.0, 80.0)
        seen = r.radius * math.tan(math.radians(r.fov_max / 2))
        assert r.half_length == pytest.approx(seen, rel=0.05)
    draft = Recipe.for_prior("kxic/stable-zero123", "draft").optimize
    assert (draft.image_pose, draft.steps) == ("elevation", 1000)
    plain = Recipe.for_prior("kxic/stable-zero123", "zero123").optimize
    assert plain == Recipe.for_prior("kxic/zero123-xl").optimize


def test_a_scene_looks_at_its_picture_once(folder):
    prior = load_prior(str(folder))
    calls = []
    encode, clip = prior._vae.encode, prior._image_encoder.forward
    prior._vae.encode = lambda x: calls.append("vae") or encode(x)
    prior._image_encoder.forward = lambda x: calls.append("clip") or clip(x)
    scene = Scene("a ball", "", 0, small(prior), prior, ball())
    assert sorted(calls) == ["clip", "vae", "vae"]  # the picture, and white for the background
    poses = []
    network = prior._network
    prior._network = lambda x, t, cond: poses.append(cond.hidden) or network(x, t, cond)
    for _ in range(3):
        step_scenes([scene], prior)
    assert len(calls) == 3
    assert len({tuple(hidden[1, 0, :8].tolist()) for hidden in poses}) == 3  # a pose each step


def test_a_scene_resumes_bit_for_bit_with_the_same_picture_alone(prior, tmp_path):
    recipe, path = small(prior), tmp_path / "scene.ckpt"
    whole = Scene("a ball", "", 7, recipe, prior, ball())
    part = Scene("a ball", "", 7, recipe, prior, ball())
    for k in range(4):
        step_scenes([whole], prior)
        if k < 2:
            step_scenes([part], prior)
    part.save(path)
    resumed = Scene.load(path, prior, ball())
    for _ in range(2):
        step_scenes([resumed], prior)
    assert resumed.done
    assert equal(parameters(whole), parameters(resumed))
    for image in (None, ball(sha256="cd" * 32)):
        with pytest.raises(CheckpointError, match=r"scene\.ckpt is of another image: .*abab"):
            Scene.load(path, prior, image)


def test_a_text_scene_has_no_picture_to_resume_with(tmp_path):
    text = load_prior(str(build_latent_prior(tmp_path / "latent")))
    Scene("a ball", "", 0, small("owner/name"), text).save(tmp_path / "scene.ckpt")
    with pytest.raises(CheckpointError, match="another image: none, not one of SHA-256 abab"):
        Scene.load(tmp_path / "scene.ckpt", text, ball())
    with pytest.raises(ValueError, match="takes text only, not images"):
        Scene("a ball", "", 0, small("owner/name"), text, ball())
    with pytest.raises(ValueError, match=r"^input_view_weight: .* takes text only"):
        Scene("a ball", "", 0, small("owner/name", input_view_weight=1), text)


@pytest.mark.parametrize(
    ("image", "negative", "changes", "message"),
    [
        (None, "", {}, "needs an image; name one"),
        (ball(), "ugly", {}, "takes no words; leave it out"),
        (ball(), "", {"perp_neg_weight": 1, "view_style": "paper"}, "takes no words; use 0"),
        (ball(), "", {"background": "random"}, "contradicts an image on white"),
        (InputImage(ball().rgb, None, "ab"), "", {"silhouette_weight": 1}, "no silhouette"),
        (InputImage(ball().rgb, None, "ab"), "", {"image_recenter": True}, "no silhouette"),
    ],
)
def test_what_does_not_go_with_a_picture_is_said(prior, image, negative, changes, message):
    with pytest.raises(ValueError, match=message):
        Scene("a ball", negative, 0, small(prior, **changes), prior, image)


@pytest.mark.parametrize(
    "changes",
    [
        {"radius_spread": 0.0},
        {"image_elevation": 20.0},
        {"image_azimuth": 90.0},
        {"image_pose": "elevation"},
        {"image_recenter": True},
        {"input_view_weight": 0.0},
        {"silhouette_weight": 1e4},
        {"near_view_weight": 0.0},
        {"smooth_weight": 0.0},
        {"smooth_start": 0.0},
        {"background": "learned"},
    ],
)
def test_every_setting_matters(prior, changes):
    results = []
    for recipe in (small(prior), small(prior, **changes)):
        scene = Scene("a ball", "", 3, recipe, prior, ball())
        for _ in range(2):
            step_scenes([scene], prior)
        results.append(parameters(scene))
    assert not equal(*results)


def test_scenes_of_other_pictures_do_not_disturb_one_another(prior):
    alone = Scene("a", "", 5, small(prior), prior, ball())
    beside = [
        Scene("b", "", 1, small(prior), prior, ball((0, 0, 1), sha256="cd")),
        Scene("a", "", 5, small(prior), prior, ball()),
    ]
    for _ in range(2):
        step_scenes([alone], prior)
        step_scenes(beside, prior)
    assert equal(parameters(alone), parameters(beside[1]))
    whole = [Scene("x", "", k, small(prior), prior, ball((k / 2, 0, 0))) for k in range(2)]
    apart = [Scene("x", "", k, small(prior), prior, ball((k / 2, 0, 0))) for k in range(2)]
    step_scenes(whole, prior, one_call=True)
    step_scenes(apart, prior)
    for one, other in zip(whole, apart, strict=True):
        a, b = one.field.color.grad, other.field.color.grad
        assert (a - b).abs().max() <= 1e-5 * a.abs().max()


def test_a_picture_becomes_a_field_in_rgb(prior):
    [field] = optimize(["a ball"], prior, small(prior, steps=2), images=[ball()])
    assert (field.space, field.channels) == ("rgb", 3)
    assert all(torch.isfinite(p).all() for p in field.parameters())
    with torch.no_grad():  # two steps leave no surface: carve one
        field.density.fill_(-5)
        field.density[..., 2:6, 2:6, 2:6] = 50
    assert len(extract_mesh(field, small(prior, mesh_resolution=16).mesh).faces) > 0
    with pytest.raises(ValueError, match="zip"):
        optimize(["a", "b"], prior, small(prior), images=[ball()])


class Content(Zero123Prior):
    """An image prior on pixels that likes every picture as it is: its score is 0."""

    id, revision, latent, guided, channels, resolution = "content", "0", False, True, 3, 16
    device = torch.device("cpu")
    sigmas = torch.linspace(0.1, 2.0, 1000, dtype=torch.float64)

    def __init__(self):
        """There is nothing to load."""

    def encode(self, image, camera, pose=None):
        self.camera = camera
        small = F.interpolate(image[None], (16, 16), mode="bilinear", antialias=True)[0]
        return type("Known", (), {"latents": small})

    def views(self, reference, cameras):
        return self.unconditional(len(cameras))

    def unconditional(self, count):
        return Cond(torch.zeros(count, 1, 1))

    def white(self):
        return torch.ones(3, 16, 16)

    def denoise(self, x, sigma, cond):
        return x


@pytest.mark.parametrize("weights", [{"input_view_weight": 1e3}, {"silhouette_weight": 1e3}])
def test_the_picture_pulls_its_own_view_towards_itself(weights):
    """With no score the losses of the input view are all there is, and the view becomes it."""
    quiet = {"near_view_weight": 0, "smooth_weight": 0, "input_view_weight": 0}
    recipe = Recipe.for_prior("kxic/zero123-xl").override(
        {**quiet, "steps": 60, "grid_size": 20, "render_size": 16, "ray_step": 0.1}
        | {"image_azimuth": 60, "image_elevation": 30, "color_init": 0.1}
        | {"variance_reduction": False, **weights}
    )
    image, prior = ball(), Content()
    scene = Scene("a ball", "", 0, recipe, prior, image)
    assert (prior.camera.azimuth_deg, prior.camera.elevation_deg) == (60, 30)
    wanted = prior.encode(image.rgb, prior.camera).latents
    mask = F.interpolate(image.opacity[None, None], (16, 16), mode="bilinear", antialias=True)

    def errors():
        view = draw(scene).reference
        return (
            (view.images - wanted).square().mean().item(),
            (view.rendering.opacity - mask[0]).square().mean().item(),
        )

    before = errors()
    for _ in range(60):
        stats = step_scenes([scene], prior)[0]
    assert stats.score == 0
    after = errors()
    picture_psnr = 10 * math.log10(4 / after[0])
    if "input_view_weight" in weights:
        assert picture_psnr > 25 > 10 * math.log10(4 / before[0]) + 10
    else:
        assert after[1] < 0.01 < before[1] / 10
        assert after[0] > 0.03  # the colours are not its business
