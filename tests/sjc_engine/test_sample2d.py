"""The 2D experiments, on data whose denoiser is known exactly."""

import pytest
import torch

from sjc_engine.prior import Cond
from sjc_engine.sample2d import blob, heun, noise_levels, optimize_pixels, out_of_distribution

S, MEAN = 0.5, 0.2


class Gaussian:
    """Pixels are N(mean, s^2), the mean being 0.2 with text and -0.2 without."""

    guided, channels, resolution = True, 3, 4
    device = torch.device("cpu")
    sigmas = torch.logspace(-2, 1, 1000, dtype=torch.float64)

    def condition(self, prompts, images=None, cameras=None):
        return Cond(torch.tensor([[[MEAN if prompt else -MEAN]] for prompt in prompts]))

    def denoise(self, x, sigma, cond):
        share = S**2 / (S**2 + sigma.view(-1, 1, 1, 1) ** 2)
        mean = cond.hidden.view(-1, 1, 1, 1)
        return (mean + share * (x - mean)).float()


class FewPictures(Gaussian):
    """The ideal denoiser of three pictures: their mean, weighted by how likely each is."""

    pictures = torch.stack([torch.full((3, 4, 4), v) for v in (-0.8, 0.1, 0.9)])

    def denoise(self, x, sigma, cond):
        square = (x[:, None] - self.pictures).square().sum((2, 3, 4))
        weight = torch.softmax(-square / (2 * sigma.view(-1, 1) ** 2), dim=1).float()
        return torch.einsum("bk,kchw->bchw", weight, self.pictures)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_heun_draws_from_the_data():
    samples = heun(Gaussian(), ["x"] * 400, generator(), guidance_scale=1.0)
    assert samples.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert samples.std().item() == pytest.approx(S, rel=0.03)


def test_heun_goes_where_guidance_says():
    samples = heun(Gaussian(), ["x"] * 400, generator(), guidance_scale=2.0)
    assert samples.mean().item() == pytest.approx(-MEAN + 2 * 2 * MEAN, abs=0.05)


@pytest.mark.parametrize("schedule", ["annealed", "random", "fixed"])
def test_pixels_end_at_one_of_the_pictures(schedule):
    """A likely picture of the blurred data, and for annealing of the data themselves."""
    prior = FewPictures()
    sigmas = noise_levels(prior, schedule, 300, generator(), (0, 999))
    ends = optimize_pixels(
        prior, ["x"] * 3, sigmas, generator(), start=blob(prior, 3), guidance_scale=1.0
    )
    distance = (ends[:, None] - prior.pictures).abs().amax((2, 3, 4)).amin(1)
    assert distance.max() < (0.05 if schedule == "annealed" else 0.35)


def test_schedules():
    prior = Gaussian()
    annealed = noise_levels(prior, "annealed", 50, generator(), (100, 900))
    assert (annealed.diff() < 0).all()
    assert (annealed[0], annealed[-1]) == (prior.sigmas[900], prior.sigmas[100])
    random = noise_levels(prior, "random", 500, generator(), (100, 5000))
    assert prior.sigmas[100] <= random.min() < random.max() <= prior.sigmas[-1]
    assert set(noise_levels(prior, "fixed", 3, generator(), (0, 1)).tolist()) == {1.5}
    with pytest.raises(ValueError, match="'falling': use one of annealed"):
        noise_levels(prior, "falling", 3, generator(), (0, 1))


def test_sds_and_sjc_point_the_same_way_from_the_same_noise():
    """They differ in how steps of different sigma weigh, which Adam's first step does not see."""
    prior, start = Gaussian(), blob(Gaussian())
    ends = [
        optimize_pixels(prior, ["x"], torch.tensor([0.7]), generator(), start=start, score=score)
        for score in ("sjc", "sds")
    ]
    torch.testing.assert_close(*ends, atol=1e-4, rtol=0)


def test_out_of_distribution_shows_all_three():
    prior = FewPictures()
    figure = out_of_distribution(prior, "x", [0.2, 3.0], generator(), noise_samples=64)
    assert figure.shape == (3, 2, 3, 4, 4)
    torch.testing.assert_close(
        figure[0, 0], prior.denoise(blob(prior), torch.tensor([0.2]), None)[0]
    )
    # At high noise the mean over perturbations is near the data's mean, single ones are not.
    mean = prior.pictures.mean()
    assert (figure[2, 1].mean() - mean).abs() < 0.2
