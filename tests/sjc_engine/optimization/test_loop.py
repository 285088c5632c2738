"""Scenes, the loop and checkpoints."""

import math
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from score_formulas import sds
from tiny_priors import SMALL, build_latent_prior, build_pixel_prior
from torch.utils._python_dispatch import TorchDispatchMode

from sjc_engine import optimize
from sjc_engine.errors import SettingError
from sjc_engine.guidance.score import guide
from sjc_engine.optimization import checkpoint, step
from sjc_engine.optimization.checkpoint import CheckpointError
from sjc_engine.optimization.loop import step_scenes
from sjc_engine.optimization.rollback import DeferredScalars
from sjc_engine.optimization.scene import Diverged, Scene
from sjc_engine.optimization.step import draw, update
from sjc_engine.priors.denoiser import Cond, load_prior
from sjc_engine.recipes import Recipe
from sjc_engine.rendering.camera import orbit

PIXEL = Recipe.for_prior("toybox").override(SMALL)
LATENT = Recipe.for_prior("owner/name").override(SMALL)


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    return load_prior(str(build_pixel_prior(tmp_path_factory.mktemp("pixel"))))


@pytest.fixture(scope="module")
def latent_prior(tmp_path_factory):
    return load_prior(str(build_latent_prior(tmp_path_factory.mktemp("latent"))))


def parameters(scene):
    return [p.detach().clone() for p in scene.field.parameters()]


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def run(scene, steps):
    for _ in range(steps):
        step_scenes([scene], scene.prior)
    return scene


class KnownAnswer:
    """A prior that always sees the same picture: `color` everywhere."""

    id, revision, latent, guided, channels, resolution = "known", "0", False, True, 3, 8
    device = torch.device("cpu")
    sigmas = torch.linspace(0.1, 2.0, 1000, dtype=torch.float64)

    def __init__(self, color):
        self.color = torch.tensor(color).view(1, 3, 1, 1)

    def condition(self, prompts, images=None, cameras=None):
        return Cond(torch.zeros(len(prompts), 1, 1))

    def denoise(self, x, sigma, cond):
        return self.color.expand_as(x)


def test_cameras_are_as_far_as_the_radius_give_or_take_its_spread(prior, monkeypatch):
    seen = []
    real = step.sample_camera
    monkeypatch.setattr(
        step,
        "sample_camera",
        lambda g, radius, *rest: seen.append(radius) or real(g, radius, *rest),
    )
    recipe = PIXEL.override({"radius": 2.0, "radius_spread": 0.25, "views_per_step": 8})
    scene = Scene("a duck", "", 0, recipe, prior)
    for _ in range(4):
        draw(scene)
    assert 1.75 <= min(seen) < 1.85
    assert 2.15 < max(seen) <= 2.25


def test_the_scene_becomes_what_the_prior_expects_to_see():
    """Oracle for the chain rule's sign and scale: every view of the field turns orange."""
    recipe = PIXEL.override(
        {
            "steps": 300,
            "background": "white",
            "emptiness_weight": 0.0,
            "fov_min": 40.0,
            "fov_max": 45.0,
        }
    )
    prior = KnownAnswer([0.6, 0.1, -0.5])
    scene = Scene("an orange wall", "", 0, recipe, prior)

    def distance():
        centre = draw(scene).images.detach()[:, :, 2:6, 2:6]  # the box, in the middle of a view
        return (centre - prior.color).abs().mean().item()

    assert distance() > 0.5
    for _ in range(299):
        step_scenes([scene], prior)
    assert sum(distance() for _ in range(10)) / 10 < 0.06


@pytest.mark.parametrize("noise_samples", [1, 3])
def test_the_gradient_is_sigma_times_the_score_through_the_renderers_jacobian(noise_samples):
    """Written out: d(loss)/dtheta = -(1/V) sum_v mean_n (D - x_v) / sigma_v . dx_v/dtheta."""
    prior = KnownAnswer([0.6, 0.1, -0.5])
    recipe = PIXEL.override({"emptiness_weight": 0.0, "noise_samples": noise_samples})
    scene, twin = (Scene("x", "", 3, recipe, prior) for _ in range(2))
    x = draw(twin)
    per_view = (prior.color - x.images.detach()) / x.sigma.view(-1, 1, 1, 1)
    expected = torch.autograd.grad(x.images, twin.field.color, -per_view.float() / 2)[0]
    step_scenes([scene], prior)
    torch.testing.assert_close(scene.field.color.grad, expected, rtol=1e-4, atol=1e-7)


def test_a_prior_of_ones_own_sees_single_views_reads_all_words_and_is_launched_as_usual():
    scene = Scene("x", "", 0, PIXEL, KnownAnswer([0.0, 0.0, 0.0]))
    assert (scene.group, scene.words_cut, scene.flat, scene.reads_late) == (1, [], False, False)


@pytest.mark.parametrize(
    ("negative", "weight", "key"),
    [
        ("blurry", 0.0, "negative_prompt"),
        ("", 1.0, "perp_neg_weight"),
        ("blurry", 1.0, "negative_prompt"),
    ],
)
def test_a_prior_of_ones_own_that_is_not_guided_takes_no_words(negative, weight, key):
    prior = KnownAnswer([0.0, 0.0, 0.0])
    recipe = PIXEL.override({"perp_neg_weight": weight})
    assert Scene("x", negative, 0, recipe, prior).negative_prompt == negative
    prior.guided = False
    with pytest.raises(SettingError, match="prior 'known' takes no words") as caught:
        Scene("x", negative, 0, recipe, prior)
    assert caught.value.key == key
    assert Scene("x", "", 0, PIXEL, prior).words_cut == []


def test_emptiness_alone_empties_the_field():
    class Content(KnownAnswer):
        """Thinks that every picture is as it should be: D = what was rendered, score 0."""

        def denoise(self, x, sigma, cond):
            return x

    recipe = PIXEL.override({"steps": 60, "variance_reduction": False})
    scene = Scene("nothing", "", 0, recipe, Content([0.0, 0.0, 0.0]))
    stats = [step_scenes([scene], scene.prior)[0] for _ in range(60)]
    assert stats[0].opacity > 0.2
    assert stats[-1].opacity < 0.05
    assert stats[-1].score == 0


@pytest.mark.parametrize("overrides", [{}, {"noise_samples": 3}, {"variance_reduction": False}])
def test_a_scene_does_not_depend_on_its_neighbours(prior, overrides):
    """Bit for bit, over several steps, on the CPU."""
    recipe = PIXEL.override(overrides)
    alone = run(Scene("a duck", "", 5, recipe, prior), 3)
    crowd = [
        Scene("a tank", "dark", 1, PIXEL.override({"guidance_scale": 3.0}), prior),
        Scene("a duck", "", 5, recipe, prior),
        Scene("a burger", "", 5, PIXEL.override({"views_per_step": 1}), prior),
    ]
    for _ in range(3):
        step_scenes(crowd, prior)
    assert equal(parameters(alone), parameters(crowd[1]))
    assert torch.equal(alone.generator.get_state(), crowd[1].generator.get_state())


def test_one_call_for_all_scenes_gives_the_same_gradients_to_rounding(prior):
    prompts = ["a duck", "a tank", "a burger"]
    apart = [Scene(prompt, "", k, PIXEL, prior) for k, prompt in enumerate(prompts)]
    together = [Scene(prompt, "", k, PIXEL, prior) for k, prompt in enumerate(prompts)]
    step_scenes(apart, prior)
    step_scenes(together, prior, one_call=True)
    for one, other in zip(apart, together, strict=True):
        for name in ("density", "color"):
            a, b = getattr(one.field, name).grad, getattr(other.field, name).grad
            assert (a - b).abs().max() <= 1e-5 * a.abs().max()


def test_one_call_really_is_one(prior):
    calls = []

    class Counting(KnownAnswer):
        def denoise(self, x, sigma, cond):
            calls.append(len(x))
            return super().denoise(x, sigma, cond)

    counting = Counting([0.0, 0.0, 0.0])
    scenes = [Scene("x", "", k, PIXEL, counting) for k in range(3)]
    step_scenes(scenes, counting, one_call=True)
    assert calls == [3 * 2 * 2]  # scenes, views, with and without text
    step_scenes(scenes, counting)
    assert calls[1:] == [4, 4, 4]


GROWING = {"render_start": 8, "render_size": 16, "grid_grow_at": 0.5}


@pytest.mark.parametrize("overrides", [{}, {"grid_start": 4, "grid_grow_at": 0.5}, GROWING])
@pytest.mark.parametrize("stop", [0, 2, 4])
def test_resuming_equals_never_having_stopped(prior, tmp_path, overrides, stop):
    recipe = PIXEL.override(overrides)
    whole = run(Scene("a duck", "ugly", 7, recipe, prior), 6)
    run(Scene("a duck", "ugly", 7, recipe, prior), stop).save(tmp_path / "scene.ckpt")
    resumed = Scene.load(tmp_path / "scene.ckpt", prior)
    assert (resumed.step, resumed.prompt, resumed.recipe) == (stop, "a duck", recipe)
    run(resumed, 6 - stop)
    assert resumed.done
    assert equal(parameters(whole), parameters(resumed))


def test_early_steps_are_as_small_as_the_prior_knows(tmp_path):
    prior = load_prior(str(build_pixel_prior(tmp_path, labels=2)))
    recipe = PIXEL.override(GROWING | {"steps": 4, "near_view_weight": 1.0})
    late, sizes = Scene("a duck", "", 0, recipe, prior), []
    for _ in range(4):
        inputs = draw(late)
        sizes.append((inputs.rendering.rgb.shape[-1], inputs.images.shape[-1]))
        run(late, 1)
    assert sizes == [(8, 8), (8, 8), (16, 16), (16, 16)]
    assert (
        draw(Scene("a duck", "", 0, recipe.override({"render_start": 11}), prior)).images.shape[-1]
        == 8
    )


def test_scenes_of_both_sizes_share_a_step(tmp_path):
    prior = load_prior(str(build_pixel_prior(tmp_path, labels=2)))
    recipe = PIXEL.override(GROWING | {"steps": 4})
    scenes = [run(Scene("a duck", "", 0, recipe, prior), steps) for steps in (0, 2, 0, 2)]
    step_scenes(scenes, prior, one_call=True)
    for early, late in (scenes[:2], scenes[2:]):
        assert (early.step, late.step) == (1, 3)
    assert equal(parameters(scenes[1]), parameters(scenes[3]))


def test_a_history_is_down_sampled_and_survives_a_resume(prior, tmp_path, monkeypatch):
    monkeypatch.setattr("sjc_engine.optimization.scene.HISTORY_POINTS", 8)
    recipe = PIXEL.override({"steps": 40})
    whole, stats = Scene("a duck", "", 7, recipe, prior), []
    for _ in range(40):
        stats += step_scenes([whole], prior)
    resumed = run(Scene("a duck", "", 7, recipe, prior), 18)
    assert resumed.history["steps"] == [1, 5, 10, 15, 18]
    resumed.save(tmp_path / "scene.ckpt")
    resumed = run(Scene.load(tmp_path / "scene.ckpt", prior), 22)
    assert resumed.history == whole.history
    history = whole.history
    assert history["steps"] == [1, 5, 10, 15, 20, 25, 30, 35, 40]
    for name, key in {"score_norm": "score"}.items() | {(k, k) for k in ("loss", "sigma")}:
        measured = [getattr(stats[step - 1], key) for step in history["steps"]]
        assert history[name] == pytest.approx(measured, rel=1e-5)


def test_a_checkpoint_without_a_history_resumes(prior, tmp_path):
    scene = run(Scene("a duck", "", 7, PIXEL, prior), 2)
    scene.save(tmp_path / "scene.ckpt")
    tensors, header = checkpoint.read_checkpoint(tmp_path / "scene.ckpt")
    del header["history"]
    header["measured"].pop()  # sigma
    checkpoint.write_checkpoint(tmp_path / "scene.ckpt", tensors, header)
    resumed = run(late(Scene.load(tmp_path / "scene.ckpt", prior)), 2)
    assert resumed.history["steps"] == [3]  # the fourth is still to be read
    run(scene, 2)
    assert equal(parameters(scene), parameters(resumed))


def test_resuming_a_latent_scene_equals_never_having_stopped(latent_prior, tmp_path):
    whole = run(Scene("a duck", "", 7, LATENT, latent_prior), 4)
    run(Scene("a duck", "", 7, LATENT, latent_prior), 2).save(tmp_path / "scene.ckpt")
    resumed = run(Scene.load(tmp_path / "scene.ckpt", latent_prior), 2)
    assert equal(parameters(whole), parameters(resumed))


@pytest.mark.slow
def test_a_killed_process_goes_on_from_its_checkpoint(prior, tmp_path):
    """SIGKILL while it saves after every step, over and over."""
    path = tmp_path / "scene.ckpt"
    code = f"""
        import torch
        torch.set_num_threads({torch.get_num_threads()})
        from sjc_engine.optimization.loop import step_scenes
        from sjc_engine.priors.denoiser import load_prior
        from sjc_engine.recipes import Recipe
        from sjc_engine.optimization.scene import Scene

        prior = load_prior({prior.id!r})
        recipe = Recipe.for_prior("toybox").override({SMALL | {"steps": 1000}!r})
        scene = Scene("a duck", "", 7, recipe, prior)
        for k in range(1000):
            step_scenes([scene], prior)
            scene.save({str(path)!r})
            print(k, flush=True)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE
    ) as process:
        for _ in range(3):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    resumed = Scene.load(path, prior)
    assert resumed.step >= 3
    steps = resumed.step + 2
    whole = run(Scene("a duck", "", 7, PIXEL.override({"steps": 1000}), prior), steps)
    assert equal(parameters(whole), parameters(run(resumed, 2)))


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "text", "header"])
def test_a_damaged_checkpoint_is_named(prior, tmp_path, damage):
    path = tmp_path / "scene.ckpt"
    run(Scene("a duck", "", 0, PIXEL, prior), 1).save(path)
    data = bytearray(path.read_bytes())
    if damage == "truncate":
        data = data[:-100]
    elif damage == "flip":
        data[-1000] ^= 1
    elif damage == "header":
        where = data.index(b"a duck")
        data[where] = ord("b")
    else:
        data = bytearray(b"" if damage == "empty" else b"x" * 64)
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"scene\.ckpt"):
        Scene.load(path, prior)


def test_a_crash_while_saving_keeps_the_old_checkpoint(prior, tmp_path, monkeypatch):
    path = tmp_path / "scene.ckpt"
    scene = run(Scene("a duck", "", 0, PIXEL, prior), 1)
    scene.save(path)
    old = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        run(scene, 1).save(path)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["scene.ckpt"]


def test_a_checkpoint_belongs_to_its_prior(prior, tmp_path):
    path = tmp_path / "scene.ckpt"
    Scene("a duck", "", 0, PIXEL, prior).save(path)
    with pytest.raises(CheckpointError, match="another engine version or prior"):
        Scene.load(path, KnownAnswer([0.0, 0.0, 0.0]))


def test_checkpoints_hold_no_pickle_and_are_whole(tmp_path):
    tensors = {"a": torch.arange(3.0), "b": torch.tensor(4), "c": torch.zeros(0)}
    checkpoint.write_checkpoint(tmp_path / "new" / "x", tensors, {"step": 3})
    back, header = checkpoint.read_checkpoint(tmp_path / "new" / "x")
    assert header == {"step": 3}
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
    with pytest.raises(FileNotFoundError):
        checkpoint.read_checkpoint(tmp_path / "missing")


def poison(scene):
    with torch.no_grad():
        scene.field.color[0, 0, 4, 4, 4] = float("nan")


def test_a_loss_that_is_not_finite_takes_the_scene_back_once(prior, tmp_path):
    scene = run(Scene("a tank", "", 1, PIXEL, prior), 2)
    rate = scene.optimizer.param_groups[0]["lr"]
    poison(scene)
    [stats] = step_scenes([scene], prior)
    assert (stats.step, scene.step, scene.recovery.rolled_back) == (0, 0, True)
    assert scene.history == {}
    assert all(torch.isfinite(p).all() for p in scene.field.parameters())
    assert scene.optimizer.param_groups[0]["lr"] == rate / 2
    # The second chance is not the first over again: its random numbers are new.
    assert not equal(
        parameters(run(scene, 1)), parameters(run(Scene("a tank", "", 1, PIXEL, prior), 1))
    )
    scene.save(tmp_path / "scene.ckpt")
    resumed = Scene.load(tmp_path / "scene.ckpt", prior)
    assert resumed.recovery.rolled_back
    assert resumed.optimizer.param_groups[0]["lr"] == rate / 2
    poison(scene)
    with pytest.raises(Diverged, match="'a tank' at step 1"):
        step_scenes([scene], prior)


@pytest.mark.parametrize("grow", [0, 4])
def test_a_roll_back_goes_to_the_same_state_after_a_resume(prior, tmp_path, monkeypatch, grow):
    """The earlier state is part of the checkpoint: killed or not, the rest is the same."""
    monkeypatch.setattr("sjc_engine.optimization.rollback.SNAPSHOT_STEPS", 3)
    recipe = PIXEL.override({"grid_start": grow, "grid_grow_at": 0.5, "steps": 12})
    scene = run(Scene("a tank", "", 1, recipe, prior), 6)
    assert scene.step == 6
    kept = [p.detach().clone() for p in scene.field.parameters()]
    run(scene, 2)
    scene.save(tmp_path / "scene.ckpt")
    resumed = Scene.load(tmp_path / "scene.ckpt", prior)
    for one in (scene, resumed):
        with torch.no_grad():
            one.field.density += math.nan
        step_scenes([one], prior)
        assert (one.step, one.recovery.rolled_back) == (6, True)
        assert grow or equal(kept, list(one.field.parameters()))
    assert equal(parameters(run(scene, 4)), parameters(run(resumed, 4)))


def test_the_halved_rate_stays_when_the_grid_grows(prior):
    recipe = PIXEL.override({"grid_start": 4, "grid_grow_at": 0.5, "steps": 4})
    sick, well = (Scene("a tank", "", 1, recipe, prior) for _ in range(2))
    run(sick, 1)
    with torch.no_grad():
        sick.field.density += math.nan
    run(sick, 1)
    assert (sick.step, sick.recovery.rolled_back, sick.field.resolution) == (0, True, 4)
    for scene in (sick, well):
        run(scene, 3)
        assert scene.field.resolution == recipe.optimize.grid_size
    halved, whole = (
        [group["lr"] for group in scene.optimizer.param_groups] for scene in (sick, well)
    )
    assert halved == [rate / 2 for rate in whole]


def test_a_gradient_that_is_not_finite_goes_back_before_it_is_applied(prior, monkeypatch):
    scene = run(Scene("a tank", "", 1, PIXEL, prior), 1)
    before = scene.recovery.snapshot[1]["field.density"].clone()
    scene.field.density.register_hook(lambda gradient: gradient * math.inf)
    step_scenes([scene], prior)
    assert scene.recovery.rolled_back
    assert torch.equal(scene.field.density, before)


@pytest.mark.parametrize("reads_late", [False, True])
@pytest.mark.parametrize("culprit", ["field", "prior", "loss"])
def test_what_is_not_finite_is_named(prior, monkeypatch, culprit, reads_late):
    """At the first step, and where a step's numbers are read during the next one."""
    denoise, sick = prior.denoise, Scene("a tank", "", 1, PIXEL, prior)
    run(sick, 2)
    sick.recovery.rolled_back = True  # it has had its second chance
    sick.reads_late = reads_late
    match culprit:
        case "field":
            poison(sick)
        case "prior":
            monkeypatch.setattr(prior, "denoise", lambda *a: denoise(*a) + math.nan)
        case "loss":
            sick.field.density.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(Diverged, match=rf"'a tank' at step {2 + reads_late} \(the ") as caught:
        run(sick, 2)
    assert caught.value.culprits == [culprit]
    assert torch.isfinite(sick.field.density).all()
    named = {"field": "(the field; ", "prior": "(the prior's answer in float32; ",
             "loss": "(the loss or its gradient; "}  # fmt: skip
    assert named[culprit] in str(caught.value)


@pytest.mark.parametrize(
    ("dtype", "cure"),
    [
        (torch.float16, "float16; use --dtype bfloat16 or float32)"),
        (torch.bfloat16, "bfloat16; use --dtype float32)"),
        (torch.float32, "float32; its weights may be damaged, so download it again"),
    ],
)
def test_an_answer_that_is_not_finite_names_the_precision(prior, monkeypatch, dtype, cure):
    """At the very first step, as float16 does it on some cards."""
    monkeypatch.setattr(prior, "denoise", lambda z, sigma, cond: z * math.inf)
    monkeypatch.setattr(prior, "dtype", dtype)
    with pytest.raises(Diverged) as caught:
        step_scenes([Scene("a tank", "", 1, PIXEL, prior)], prior)
    assert f"not finite any more: 'a tank' at step 0 (the prior's answer in {cure}" in str(
        caught.value
    )
    assert caught.value.culprits == ["prior"]


def test_a_precision_that_the_prior_was_not_loaded_in_is_refused(prior):
    recipe = PIXEL.override({"dtype": "bfloat16"})
    with pytest.raises(SettingError, match=r"loaded in float32; use load_prior\(.*'bfloat16'\)"):
        Scene("a tank", "", 1, recipe, prior)


class Waits(TorchDispatchMode):
    """Counts what a GPU would be waited for: numbers that are read, and copies to the host."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name
        if name in ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero"):
            self.found.append((name, args[0].dtype, args[0].numel()))
        return function(*args, **(kwargs or {}))


def test_naming_a_culprit_reads_no_number_of_a_sound_step(prior, monkeypatch):
    """Flags go to the host with the loss, in the one copy that there was."""
    scene = late(run(Scene("a tank", "", 1, PIXEL, prior), 2))
    read = []
    numbers = DeferredScalars.numbers
    monkeypatch.setattr(DeferredScalars, "numbers", lambda s: read.append(s) or numbers(s))
    inputs = draw(scene)
    denoised = prior.denoise(
        inputs.z.flatten(0, 1), inputs.sigma.repeat(len(inputs.z)), inputs.cond
    ).view_as(inputs.z)
    monkeypatch.setattr(scene.optimizer, "step", lambda: None)  # it counts on the host
    with Waits() as waits:
        update(scene, inputs, denoised)
    assert waits.found == []
    assert read == []  # the step before this one was read at once
    update(scene, draw(scene), denoised)
    assert len(read) == 1


def late(scene):
    """As on a GPU: what a step measured is read when the next one ends."""
    scene.reads_late = True
    return scene


def test_reading_late_changes_no_step(prior, tmp_path):
    at_once, later = (Scene("a tank", "", 1, PIXEL, prior) for _ in range(2))
    losses = [step_scenes([at_once], prior)[0].loss for _ in range(4)]
    told = [step_scenes([late(later)], prior)[0] for _ in range(4)]
    assert equal(parameters(at_once), parameters(later))
    assert [stats.step for stats in told] == [1, 2, 3, 4]
    assert [stats.loss for stats in told] == [losses[0], *losses[:3]]  # the first one is waited for
    files = [tmp_path / "later", tmp_path / "at_once"]
    for scene, path in zip((later, at_once), files, strict=True):
        scene.save(path)
    (ours, header), (theirs, expected) = map(checkpoint.read_checkpoint, files)
    assert header == expected
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_is_not_finite_is_noticed_late_and_never_applied(prior):
    scene = late(run(Scene("a tank", "", 1, PIXEL, prior), 2))
    snapshot = scene.recovery.snapshot[1]["field.density"].clone()
    spoil = scene.field.density.register_hook(lambda gradient: gradient * math.inf)
    step_scenes([scene], prior)
    spoil.remove()
    assert not scene.recovery.rolled_back
    assert all(torch.isfinite(p).all() for p in scene.field.parameters())
    step_scenes([scene], prior)
    assert (scene.step, scene.recovery.rolled_back) == (0, True)
    assert torch.equal(scene.field.density, snapshot)


def test_the_last_step_is_read_before_a_scene_is_done(prior, tmp_path):
    scene = late(run(Scene("a tank", "", 1, PIXEL.override({"steps": 3}), prior), 2))
    spoil = scene.field.density.register_hook(lambda gradient: gradient * math.inf)
    step_scenes([scene], prior)
    spoil.remove()
    assert not scene.done
    assert (scene.step, scene.recovery.rolled_back) == (0, True)
    scene.save(tmp_path / "scene.ckpt")
    run(scene, 3)
    assert scene.done


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("changes", [{}, {"perp_neg_weight": 1.0, "views_per_step": 2}])
def test_no_step_waits_for_the_gpu(changes, tmp_path):
    prior = load_prior(build_latent_prior(tmp_path / "prior"), device="cuda")
    scene = Scene("a tank", "", 1, LATENT.override(changes), prior)
    step_scenes([scene], prior)  # compiles and allocates
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(scene, 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_sds_in_a_scene_is_the_formula(prior):
    """The gradient at the rendered pictures, whatever `variance_reduction` says."""
    changes = {"score": "sds", "variance_reduction": False, "emptiness_weight": 0.0}
    scene = Scene("a tank", "", 1, PIXEL.override(changes | {"binary_weight": 0.0}), prior)
    inputs = draw(scene)
    inputs.images.retain_grad()
    x, sigma = inputs.images.detach(), inputs.sigma

    def denoise(z, level):
        return guide(prior, z, level, inputs.cond, inputs.uncond, inputs.scale)

    noise = (inputs.z[0] - x) / sigma.to(x).view(-1, 1, 1, 1)
    update(scene, inputs, denoise(inputs.z[0], sigma)[None])
    expected = -sds(denoise, x, sigma, noise) / len(x)
    torch.testing.assert_close(inputs.images.grad, expected.float(), rtol=1e-3, atol=1e-5)


def test_a_diverged_scene_leaves_the_others_alone(prior):
    alone = run(Scene("a duck", "", 5, PIXEL, prior), 3)
    sick, healthy = Scene("a tank", "", 1, PIXEL, prior), Scene("a duck", "", 5, PIXEL, prior)
    step_scenes([sick, healthy], prior)
    poison(sick)
    step_scenes([sick, healthy], prior)  # goes back
    poison(sick)
    with pytest.raises(Diverged, match="'a tank' at step 0") as caught:
        step_scenes([sick, healthy], prior)
    assert caught.value.scenes == [sick]
    assert caught.value.step == 0
    assert equal(parameters(alone), parameters(healthy))


def test_the_score_stops_falling_and_so_does_the_scene():
    """A prior that always wants the same picture is soon content; one that never is goes on."""
    changes = {
        "steps": 400,
        "background": "white",
        "emptiness_weight": 0.0,
        "fov_min": 40.0,
        "fov_max": 45.0,
    }
    changes |= {"sigma_schedule": "fixed", "sigma_fixed": 1.0, "plateau_steps": 40}
    changes |= {"plateau_tolerance": 0.2}
    scene = Scene("x", "", 0, PIXEL.override(changes), KnownAnswer([0.6, 0.1, -0.5]))
    while not scene.done:
        step_scenes([scene], scene.prior)
    assert 80 <= scene.step < 400
    patient = PIXEL.override(changes | {"plateau_steps": 0, "steps": 100})
    heard = []
    optimize(["x"], KnownAnswer([0.6, 0.1, -0.5]), patient, on_step=lambda _, s: heard.append(s))
    assert heard[-1].step == len(heard) == 100


class Recording(KnownAnswer):
    """Keeps what it was asked: noise levels and conditions."""

    def __init__(self):
        super().__init__([0.0, 0.0, 0.0])
        self.sigmas_asked, self.conds = [], []

    def condition(self, prompts, images=None, cameras=None):
        self.prompts = list(prompts)
        return Cond(torch.arange(len(prompts), dtype=torch.float32).view(-1, 1, 1))

    def denoise(self, x, sigma, cond):
        self.sigmas_asked += sigma.tolist()
        self.conds.append([self.prompts[int(k)] for k in cond.hidden.flatten()])
        return super().denoise(x, sigma, cond)


def asked(changes, steps=6):
    prior = Recording()
    recipe = PIXEL.override({"steps": steps, "views_per_step": 1, "tick_min": 100} | changes)
    run(Scene("x", "", 0, recipe, prior), steps)
    return prior


def test_noise_levels_follow_their_schedule():
    ticks = KnownAnswer.sigmas
    fixed = asked({"sigma_schedule": "fixed", "sigma_fixed": 0.7}).sigmas_asked
    assert set(fixed) == {0.7}
    annealed = asked({"sigma_schedule": "annealed"}).sigmas_asked[::2]
    assert annealed == sorted(annealed, reverse=True)
    assert annealed[0] == ticks[969]
    assert annealed[-1] == ticks[100]
    random = asked({}, steps=200).sigmas_asked[::2]
    assert ticks[100] <= min(random) < ticks[150]
    assert ticks[920] < max(random) <= ticks[969]
    falling = asked({"tick_end": 200}, steps=200).sigmas_asked[::2]
    assert max(falling[-20:]) < ticks[300]
    both = {"tick_start": 969, "tick_end": 500, "tick_share": 0.8}
    narrow = asked(both, steps=200).sigmas_asked[::2]
    assert narrow[0] == ticks[969]  # the lowest and the highest
    assert min(narrow[:80]) >= ticks[530]  # halfway the range is 534 to 734
    assert max(narrow[80:]) <= ticks[740]
    late = narrow[160:]  # 40 draws from 100 to 500
    assert ticks[100] <= min(late) < ticks[180] < ticks[420] < max(late) <= ticks[500]


def test_perp_neg_asks_for_the_front_as_well():
    prior = asked({"perp_neg_weight": 2.0, "view_style": "paper"})
    uncond, cond, negative = prior.conds[0]
    assert uncond == ""
    assert cond.endswith("view of x")
    assert negative == "front view of x"


def test_perp_neg_pushes_from_the_front_the_more_the_further_behind_a_view_is(prior, monkeypatch):
    azimuths = [0.0, 60.0, 90.0, 180.0]
    cameras = [orbit(azimuth, 0.0) for azimuth in azimuths]
    monkeypatch.setattr("sjc_engine.optimization.step._cameras", lambda scene: cameras)
    recipe = PIXEL.override({"perp_neg_weight": 2.0, "views_per_step": 4})
    weights = draw(Scene("a duck", "", 0, recipe, prior)).weights
    assert weights[0].tolist() == pytest.approx([0.0, 0.5, 1.0, 2.0], abs=1e-6)


def test_guidance_moves_from_one_scale_to_the_other(prior):
    recipe = PIXEL.override({"guidance_scale": 10.0, "guidance_end": 4.0, "steps": 4})
    scene = Scene("a duck", "", 0, recipe, prior)
    scales = []
    for _ in range(4):
        scales.append(draw(scene).scale[0].item())
        scene.step += 1
    assert scales == [10.0, 8.0, 6.0, 4.0]


def test_the_naive_score_adds_no_noise(prior):
    inputs = draw(Scene("a duck", "", 0, PIXEL.override({"score": "naive"}), prior))
    assert torch.equal(inputs.z[0], inputs.images.detach())


@pytest.mark.parametrize(
    ("step", "weight", "term", "factor"),
    [
        (0, "emptiness_weight", "emptiness", 1.0),
        (3, "emptiness_weight", "emptiness", 20.0),  # the multiplier, after half of the steps
        (0, "depth_weight", "center_depth", 1.0),
        (0, "binary_weight", "opacity_entropy", 1.0),
        (0, "tv_weight", "total_variation", 1.0),
        (0, "distortion_weight", "distortion", 1.0),
        (0, "near_view_weight", "near_view", 1.0),
        (0, "smooth_weight", "depth_smoothness", 0.0),  # it starts after half of them
        (3, "smooth_weight", "depth_smoothness", 1.0),
    ],
)
def test_a_terms_weight_multiplies_it(prior, monkeypatch, step, weight, term, factor):
    monkeypatch.setattr(f"sjc_engine.optimization.losses.{term}", lambda *_: torch.tensor(3.0))
    found = []
    monkeypatch.setattr(Scene, "descend", lambda scene, loss, *_: found.append(loss.item()))
    for value in (0.0, 0.5):
        recipe = PIXEL.override({weight: value, "emptiness_multiplier": 20.0})
        scene = Scene("a duck", "", 0, recipe, prior)
        scene.step = step
        inputs = draw(scene)
        update(scene, inputs, inputs.z)
    assert found[1] - found[0] == pytest.approx(0.5 * 3.0 * factor, rel=1e-4)


def test_a_field_that_is_not_finite_is_neither_saved_nor_finished(prior, tmp_path):
    scene = Scene("a duck", "", 0, PIXEL, prior)
    with torch.no_grad():
        scene.field.density[0, 0, 0, 0, 0] = float("inf")
    with pytest.raises(Diverged):
        scene.save(tmp_path / "scene.ckpt")
    with pytest.raises(Diverged):
        scene.finish()
    assert os.listdir(tmp_path) == []


def test_optimize_gives_a_field_per_prompt_and_tells_of_every_step(prior):
    heard = []
    fields = optimize(
        ["a duck", "a tank"],
        prior,
        PIXEL,
        seeds=[0, 1],
        on_step=lambda scene, stats: heard.append((scene.prompt, stats.step, stats.steps)),
    )
    assert [f.space for f in fields] == ["rgb", "rgb"]
    assert heard == [(p, k, 6) for k in range(1, 7) for p in ("a duck", "a tank")]
    again = optimize(["a tank"], prior, PIXEL, seeds=[1])
    assert torch.equal(fields[1].density, again[0].density)
    with pytest.raises(ValueError, match="zip"):
        optimize(["a duck", "a tank"], prior, PIXEL, seeds=[0])


@pytest.mark.parametrize(
    "overrides",
    [
        {"prompt": "a tank"},
        {"negative_prompt": "a tank"},
        {"seed": 1},
        {"guidance_scale": 2.0},
        {"noise_samples": 2},
        {"variance_reduction": False},
        {"tick_max": 100},
        {"tick_end": 100},
        {"tick_start": 969},
        {"tick_share": 0.1, "tick_end": 100},
        {"guidance_rescale": 0.5},
        {"score": "recon"},
        {"lr": 0.01},
        {"grid_start": 4},
        {"half_length": 0.5},
        {"color_init": 1.0},
        {"background": "white"},
        {"background": "learned"},
        {"render_size": 12},
        {"ray_step": 0.05},
        {"ray_jitter": False},
        {"views_per_step": 3},
        {"radius": 2.0},
        {"fov_min": 55.0},
        {"fov_max": 50.0},
        {"view_style": "none"},
        {"emptiness_weight": 5.0},
        {"emptiness_scale": 3.0},
        {"emptiness_step": 0.0},
        {"depth_weight": 1.0},
        {"binary_weight": 1.0},
        {"tv_weight": 1.0},
        {"distortion_weight": 1.0},
        {"score": "sds"},
        {"score": "naive"},
        {"sigma_schedule": "annealed"},
        {"sigma_schedule": "fixed"},
        {"guidance_end": 3.0},
        {"perp_neg_weight": 1.0},
        {"optimizer": "adam"},
        {"density_lr": 0.01},
        {"field": "tensorf"},
        {"field": "plenoxels"},
        {"field": "mlp"},
    ],
)
def test_every_setting_matters(prior, overrides):
    base = {"prompt": "a duck", "negative_prompt": "", "seed": 0}

    def result(changes):
        named = {**base, **{k: v for k, v in changes.items() if k in base}}
        recipe = PIXEL.override({k: v for k, v in changes.items() if k not in base})
        return parameters(run(Scene(**named, recipe=recipe, prior=prior), 2))

    one, other = result({}), result(overrides)
    assert [a.shape for a in one] != [b.shape for b in other] or not equal(one, other)


def test_latent_priors_keep_their_own_background(latent_prior):
    with pytest.raises(ValueError, match="background: 'white' needs a prior of RGB images"):
        Scene("a duck", "", 0, LATENT.override({"background": "white"}), latent_prior)


def test_a_latent_scene_leaves_in_rgb(latent_prior):
    recipe = LATENT.override({"steps": 2, "distill_steps": 3})
    [field] = optimize(["a duck"], latent_prior, recipe)
    assert (field.space, field.channels) == ("rgb", 3)
