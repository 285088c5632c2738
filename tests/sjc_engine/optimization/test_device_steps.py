"""Steps on a device that is not the host: nothing is waited for, and no devices are mixed."""

import pytest
import torch
from counting_device import META, counting_device
from tiny_priors import (
    SMALL,
    build_ddpm_prior,
    build_deepfloyd_prior,
    build_latent_prior,
    build_pixel_prior,
    build_zero123_prior,
)

from sjc_engine import memory
from sjc_engine.image_file import InputImage
from sjc_engine.optimization.loop import step_scenes
from sjc_engine.optimization.scene import Scene
from sjc_engine.priors.denoiser import load_prior
from sjc_engine.recipes import Recipe

# Every term of the loss, and what else a step may do
EVERYTHING = {
    "perp_neg_weight": 1.0,
    "tv_weight": 1.0,
    "distortion_weight": 1.0,
    "depth_weight": 1.0,
    "binary_weight": 1.0,
    "smooth_weight": 1.0,
    "smooth_start": 0.0,
    "near_view_weight": 1.0,
    "noise_samples": 2,
    "ray_jitter": True,
    "emptiness_step": 0.0,
    "grid_start": 4,
    "grid_grow_at": 0.2,
    "optimizer": "adamax",  # torch has no fused Adam for "meta"
}


def steps(folder, overrides, image=None, count=3):
    """The counts of each of two scenes' steps."""
    found = []
    with counting_device() as counts:
        prior = load_prior(str(folder), device=META, dtype=torch.float16)
        recipe = Recipe.for_prior(str(folder)).override(SMALL | {"steps": 10} | overrides)
        scenes = [Scene("a chair", "", seed, recipe, prior, image) for seed in (0, 1)]
        for _ in range(count):
            counts.clear()
            step_scenes(scenes, prior)
            found.append({name: dict(counter) for name, counter in vars(counts).items()})
    return found


def check(found):
    for counts in found:
        assert not counts["waits"]
        assert counts["launches"]
        assert counts["uploads"]


@pytest.mark.parametrize("kind", ["voxel", "mlp", "tensorf", "plenoxels"])
@pytest.mark.parametrize("space", ["latent", "pixel"])
def test_a_step_of_every_field_waits_for_nothing(kind, space, tmp_path):
    build = {"latent": build_latent_prior, "pixel": build_pixel_prior}[space]
    background = "learned" if space == "latent" else "random"
    wanted = EVERYTHING | {"field": kind, "background": background}
    if kind == "mlp":  # it has no grid
        wanted |= {"tv_weight": 0.0, "grid_start": 0}
    check(steps(build(tmp_path), wanted))


def test_a_step_over_white_waits_for_nothing(tmp_path):
    wanted = {"background": "white", "optimizer": "adamax"}
    check(steps(build_pixel_prior(tmp_path), wanted, count=2))


@pytest.mark.parametrize("build", [build_deepfloyd_prior, build_ddpm_prior])
def test_a_step_of_other_families_waits_for_nothing(build, tmp_path):
    check(steps(build(tmp_path), {"optimizer": "adamax"}, count=2))


def test_a_step_from_a_picture_waits_for_nothing(tmp_path):
    image = InputImage(torch.ones(3, 16, 16), torch.ones(16, 16), "0" * 64)
    wanted = {"silhouette_weight": 1.0, "input_view_weight": 1.0, "optimizer": "adamax"}
    check(steps(build_zero123_prior(tmp_path), wanted, image, count=2))


def test_uploads_to_a_gpu_are_from_pinned_memory():
    """Of pageable memory the driver takes a copy first, and may wait for the device."""
    done = []

    class OnHost:
        def pin_memory(self):
            done.append("pinned")
            return self

        def to(self, device, non_blocking):
            done.append((device.type, non_blocking))

    memory.upload(OnHost(), torch.device("cuda:1"))
    assert done == ["pinned", ("cuda", True)]


@pytest.mark.parametrize(
    "wait",
    [
        lambda values: values.sum().item(),
        lambda values: values.nonzero(),
        lambda values: values.to("cpu"),
        lambda values: values[[0, 0]],
        lambda values: torch.ones(3).to(META, non_blocking=True),
        lambda values: memory.upload(torch.ones(3), META).cpu(),
    ],
)
def test_what_waits_is_noticed(wait):
    with counting_device() as counts:
        values = torch.ones(3, device=META)
        assert not counts.waits
        wait(values)
    assert counts.waits.total() == 1
