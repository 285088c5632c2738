"""Oracle: for data from N(0, s^2) the denoiser is known, D(z; sigma) = z s^2 / (s^2 + sigma^2)."""

import pytest
import torch

from sjc_engine.prior import Cond
from sjc_engine.score import guide, paas

S = 0.7  # the data's standard deviation
SHAPE = (2, 3, 4, 4)


def gaussian_denoiser(z, sigma):
    return z * (S**2 / (S**2 + sigma.view(-1, 1, 1, 1) ** 2))


def draw(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, *SHAPE, generator=generator, dtype=torch.float64)
    return x, torch.tensor([0.4, 2.0], dtype=torch.float64), noise


@pytest.mark.parametrize("variance_reduction", [True, False])
def test_paas_expects_the_score_convolved_with_the_noise(variance_reduction):
    """For Gaussian data that is -x / (s^2 + sigma^2), whatever noise was added."""
    x, sigma, noise = draw(20_000)
    score = paas(gaussian_denoiser, x, sigma, noise, variance_reduction=variance_reduction)
    sigma = sigma.view(-1, 1, 1, 1)
    expected = -x / (S**2 + sigma**2)
    deviation = (S**2 / sigma if variance_reduction else sigma) / (S**2 + sigma**2)
    assert ((score - expected).abs() < 5 * deviation / len(noise) ** 0.5).all()


def test_variance_reduction_scales_the_noise_by_s2_over_sigma2():
    x, sigma, noise = draw(5_000)
    spread = []
    for variance_reduction in (True, False):
        samples = torch.stack(
            [
                paas(gaussian_denoiser, x, sigma, n[None], variance_reduction=variance_reduction)
                for n in noise
            ]
        )
        spread.append(samples.std(dim=0).mean(dim=(1, 2, 3)))
    torch.testing.assert_close(spread[0] / spread[1], S**2 / sigma**2, rtol=1e-6, atol=0)


def test_paas_averages_over_noise_samples():
    x, sigma, noise = draw(5)
    together = paas(gaussian_denoiser, x, sigma, noise)
    each = [paas(gaussian_denoiser, x, sigma, n[None]) for n in noise]
    torch.testing.assert_close(together, torch.stack(each).mean(dim=0))


def test_paas_calls_the_network_once_with_each_samples_own_sigma():
    x, sigma, noise = draw(3)
    calls = []

    def denoiser(z, level):
        calls.append((z, level))
        return z

    paas(denoiser, x, sigma, noise)
    [(z, level)] = calls
    assert z.shape == (6, *SHAPE[1:])
    torch.testing.assert_close(level, sigma.repeat(3))
    torch.testing.assert_close(z[4] - x[0], sigma[0] * noise[2, 0])


class TwoAnswers:
    """A prior whose denoiser answers with its condition."""

    def __init__(self):
        self.calls = 0

    def denoise(self, x, sigma, cond):
        self.calls += 1
        return cond.hidden.view(-1, 1, 1, 1).expand_as(x)


def test_guidance_goes_from_unconditional_through_conditional_in_one_call():
    prior = TwoAnswers()
    x = torch.zeros(3, 1, 2, 2)
    cond = Cond(torch.tensor([[[5.0]], [[6.0]], [[7.0]]]))
    uncond = Cond(torch.full((3, 1, 1), 2.0))
    scale = torch.tensor([0.0, 1.0, 10.0])
    guided = guide(prior, x, torch.ones(3), cond, uncond, scale)
    assert guided[:, 0, 0, 0].tolist() == [2.0, 6.0, 2.0 + 10 * (7.0 - 2.0)]
    assert prior.calls == 1
