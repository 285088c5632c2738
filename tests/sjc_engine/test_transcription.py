"""Paper mode against `transcription`, an independent account of the paper's equations."""

import pytest
import torch
import transcription

from sjc_engine.fields.voxel import grid_centers
from sjc_engine.guidance.view_prompts import view_prompt
from sjc_engine.optimization import step
from sjc_engine.optimization.loop import step_scenes
from sjc_engine.optimization.scene import Scene
from sjc_engine.priors.denoiser import Cond
from sjc_engine.recipes import Recipe
from sjc_engine.rendering.camera import sample_camera

SMALL = {"steps": 4, "grid_size": 10, "render_size": 8, "ray_step": 0.05}
TIGHT = {"rtol": 1e-9, "atol": 1e-11}
# Weights of the latents at a pixel and at the one to its left, in two made-up denoisers
MIX, LEFT = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(9)).double() / 3


def denoised(z, sigma, words):
    """Any denoiser will do: this one mixes channels and pixels and hears every letter."""
    mood = sum(map(ord, words)) % 97 / 97
    mixed = torch.einsum("dc,chw->dhw", MIX, z) + torch.einsum("dc,chw->dhw", LEFT, z.roll(1, -1))
    return torch.tanh(mixed / (1 + sigma**2) ** 0.5 + mood)


class Prior:
    """The same denoiser for the engine, in latents of Stable Diffusion's schedule."""

    id, revision, latent, guided, channels, resolution = "made-up", "0", True, True, 4, 8
    device = torch.device("cpu")
    sigmas = torch.tensor(transcription.stable_diffusion_sigmas(), dtype=torch.float64)

    def condition(self, prompts, images=None, cameras=None):
        self.prompts = list(prompts)
        return Cond(torch.arange(len(prompts), dtype=torch.float64).view(-1, 1, 1))

    def denoise(self, x, sigma, cond):
        words = [self.prompts[int(k)] for k in cond.hidden.flatten()]
        pairs = zip(x, sigma.tolist(), words, strict=True)
        return torch.stack([denoised(*each) for each in pairs])


def start(changes, seed):
    """A scene in float64 with something to see, its recipe, and its parameters for both."""
    recipe = Recipe.for_prior("owner/name", "paper").override(SMALL | changes)
    scene = Scene("a duck", "", seed, recipe, Prior())
    scene.field.double()
    with torch.no_grad():
        scene.field.density.normal_(generator=torch.Generator().manual_seed(seed)).mul_(2)
        scene.field.d_scale.fill_(0.2)
    return scene, recipe.optimize, parameters(scene)


def parameters(scene, what=lambda parameter: parameter):
    named = scene.field.named_parameters()
    values = {name: what(parameter).detach().clone() for name, parameter in named}
    return {name: v[0] if v.dim() > 3 else v for name, v in values.items()}


def draw(generator):
    """A step's random numbers, in the engine's order: camera, noise level, noise."""
    uniforms = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    tick = torch.randint(10, 970, (1,), generator=generator).item()
    return uniforms, tick, torch.randn(1, 1, 4, 8, 8, generator=generator)[0, 0].double()


def follow(scene, r, theta, steps):
    """Both, step by step: rendering, loss terms, gradients, and the field after each."""
    rates = {"density": r.lr, "d_scale": r.lr, "color": r.lr, "background": r.background_lr}
    adamax, generator = transcription.Adamax(theta, rates), torch.Generator()
    views = []
    for k in range(steps):
        generator.set_state(scene.generator.get_state())
        twin_state = scene.generator.get_state()
        shown = step.draw(scene)
        scene.generator.set_state(twin_state)  # the step below draws the same again
        uniforms, tick, noise = draw(generator)
        gradient, found = transcription.gradients(
            theta, uniforms, tick, noise, k, denoised, "a duck", r
        )
        [stats] = step_scenes([scene], scene.prior)
        torch.testing.assert_close(shown.images[0].detach(), found["picture"], **TIGHT)
        torch.testing.assert_close(shown.rendering.depth[0].detach(), found["depth"], **TIGHT)
        assert stats.emptiness == pytest.approx(found["emptiness"], rel=1e-9)
        assert stats.score == pytest.approx(found["score"], rel=1e-9)
        for name, mine in parameters(scene, lambda parameter: parameter.grad).items():
            scale = gradient[name].abs().max()
            assert scale > 0, name
            torch.testing.assert_close(mine, gradient[name], rtol=1e-7, atol=1e-9 * float(scale))
        adamax.step(theta, gradient)
        for name, mine in parameters(scene).items():
            torch.testing.assert_close(mine, theta[name], rtol=1e-6, atol=1e-8)
        views.append(transcription.camera(uniforms, r.overhead_prompt)[3])
    return views


@pytest.mark.parametrize("variance_reduction", [True, False], ids=["eq. 16", "eq. 15"])
@pytest.mark.parametrize("depth_loss", ["fixed", "official"])
def test_paper_mode_is_the_papers_equations(variance_reduction, depth_loss):
    """Three steps, the last of which has the raised emptiness weight."""
    scene, r, theta = start(
        {
            "variance_reduction": variance_reduction,
            "depth_loss": depth_loss,
            "depth_weight": 100.0,
        },
        seed=3,
    )
    assert (r.guidance_scale, r.emptiness_weight, r.half_length, r.lr) == (100, 1e4, 1.0, 0.05)
    follow(scene, r, theta, 3)


@pytest.mark.parametrize(
    ("rule", "words"), [("elevation", "side view of"), ("official", "overhead view of")]
)
def test_both_rules_of_the_overhead_prompt(rule, words):
    """A camera between 41.8 and 60 degrees up: overhead to the published code alone."""
    scene, r, theta = start({"overhead_prompt": rule, "depth_weight": 10.0}, seed=1)
    assert follow(scene, r, theta, 1) == [words]


def test_preset_paper_asks_for_the_published_words_in_every_step():
    """docs/engine.md has the share of steps that the other rule words otherwise."""
    r = Recipe.for_prior("owner/name", "paper").optimize
    generator, others, steps = torch.Generator().manual_seed(0), 0, 4000
    for _ in range(steps):
        state = generator.get_state()
        uniforms = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
        generator.set_state(state)
        fov, elevation = (r.fov_min, r.fov_max), (r.elevation_min, r.elevation_max)
        c = sample_camera(generator, r.radius, fov, elevation)
        words = transcription.camera(uniforms, "official")[3]
        assert view_prompt(c.azimuth_deg, c.elevation_deg, r.view_style, r.overhead_prompt) == words
        others += view_prompt(c.azimuth_deg, c.elevation_deg) != words
    assert others / steps == pytest.approx(0.179, abs=0.02)


@pytest.mark.parametrize("depth_loss", ["fixed", "official"])
@pytest.mark.parametrize("side", ["before", "behind"])
def test_both_forms_of_center_depth_on_both_sides(depth_loss, side):
    """A rod along the line of sight, or a pipe around it, and no other loss than this one."""
    changes = {"depth_loss": depth_loss, "depth_weight": 1e6, "emptiness_weight": 0.0}
    scene, r, _ = start(changes, seed=5)
    state = scene.generator.get_state()
    outward = step.draw(scene).rendering.directions[0].mean(0)
    scene.generator.set_state(state)
    centers = grid_centers(10, 1.0, scene.field.background)
    off = torch.linalg.cross(centers, outward.expand_as(centers)).norm(dim=-1)
    with torch.no_grad():
        dense = off < 0.5 if side == "before" else off > 0.5
        scene.field.density[0, 0] = torch.where(dense, 6.0, -6.0)
        depth = step.draw(scene).rendering.depth[0]
    scene.generator.set_state(state)
    ahead = depth[1:-1, 1:-1].mean() < torch.cat([depth[0], depth[-1]]).mean()
    assert bool(ahead) == (side == "before")
    follow(scene, r, parameters(scene), 1)
