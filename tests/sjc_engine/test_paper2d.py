"""The 2D experiments, on data whose denoiser is known exactly."""

import pytest
import torch
from known_priors import KnownPrior

from sjc_engine.paper2d import blob, heun, noise_levels, optimize_pixels, out_of_distribution

S, MEAN = 0.5, 0.2


def flat(*levels):
    return torch.stack([torch.full((3, 4, 4), level) for level in levels])


def two_gaussians():
    """Pixels are N(mean, s^2), the mean being 0.2 with text and -0.2 without."""
    return KnownPrior(flat(MEAN, -MEAN), S, groups={"x": [0], "": [1]})


def few_pictures():
    """The ideal denoiser of three pictures: their mean, weighted by how likely each is."""
    return KnownPrior(flat(-0.8, 0.1, 0.9))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_heun_draws_from_the_data():
    samples = heun(two_gaussians(), ["x"] * 400, generator(), guidance_scale=1.0)
    assert samples.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert samples.std().item() == pytest.approx(S, rel=0.03)


def test_heun_goes_where_guidance_says():
    samples = heun(two_gaussians(), ["x"] * 400, generator(), guidance_scale=2.0)
    assert samples.mean().item() == pytest.approx(-MEAN + 2 * 2 * MEAN, abs=0.05)


@pytest.mark.parametrize("schedule", ["annealed", "random", "fixed"])
def test_pixels_end_at_one_of_the_pictures(schedule):
    """A likely picture of the blurred data, and for annealing of the data themselves."""
    prior = few_pictures()
    sigmas = noise_levels(prior, schedule, 300, generator(), (0, 999))
    ends = optimize_pixels(
        prior, ["x"] * 3, sigmas, generator(), blob(prior).expand(3, -1, -1, -1), 1.0
    )
    distance = (ends[:, None] - prior.pictures).abs().amax((2, 3, 4)).amin(1)
    assert distance.max() < (0.05 if schedule == "annealed" else 0.35)


def test_schedules():
    prior = two_gaussians()
    annealed = noise_levels(prior, "annealed", 50, generator(), (100, 900))
    assert (annealed.diff() < 0).all()
    assert (annealed[0], annealed[-1]) == (prior.sigmas[900], prior.sigmas[100])
    random = noise_levels(prior, "random", 500, generator(), (100, 5000))
    assert prior.sigmas[100] <= random.min() < random.max() <= prior.sigmas[-1]
    assert set(noise_levels(prior, "fixed", 3, generator(), (0, 1)).tolist()) == {1.5}


def test_out_of_distribution_shows_all_three():
    prior = few_pictures()
    figure = out_of_distribution(prior, "x", [0.2, 3.0], generator())
    assert figure.shape == (3, 2, 3, 4, 4)
    torch.testing.assert_close(
        figure[0, 0], prior.denoise(blob(prior), torch.tensor([0.2]), None)[0]
    )
    # At high noise the mean over perturbations is near the data's mean, single ones are not.
    mean = prior.pictures.mean()
    assert (figure[2, 1].mean() - mean).abs() < 0.2
