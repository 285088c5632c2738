"""Oracles: denoisers of Gaussian data and of mixtures, whose scores are known in closed form."""

import math

import numpy as np
import pytest
import torch
from known_priors import KnownPrior, gaussian
from score_formulas import naive, sds

from sjc_engine.guidance.score import guide, paas, perpendicular, rescaled, weighting
from sjc_engine.priors.denoiser import Cond

S = 0.7  # the data's standard deviation
SHAPE = (2, 3, 4, 4)


GAUSSIAN = gaussian(S)
gaussian_denoiser = GAUSSIAN.denoise


def draw(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, *SHAPE, generator=generator, dtype=torch.float64)
    return x, torch.tensor([0.4, 2.0], dtype=torch.float64), noise


def test_the_known_denoisers_and_scores_are_right():
    """Tweedie's formula: D = x + sigma^2 grad log p(x; sigma), the latter by autograd."""
    means, weights, s = torch.tensor([-0.6, 0.1, 0.9], dtype=torch.float64), [0.5, 0.2, 0.3], 0.2
    mixture = KnownPrior(means.view(3, 1, 1, 1), s, weights=weights)
    x = torch.linspace(-3, 3, 13, dtype=torch.float64).requires_grad_()
    for level in (0.05, 0.4, 2.0):
        variance = s**2 + level**2
        heaps = torch.tensor(weights) * torch.exp(-((x[:, None] - means) ** 2) / (2 * variance))
        [slope] = torch.autograd.grad(heaps.sum(1).log().sum(), x)
        pixels, sigma = x.detach().view(-1, 1, 1, 1), torch.full((13,), level)
        torch.testing.assert_close(
            mixture.score(pixels, sigma).flatten(), slope, rtol=1e-6, atol=1e-6
        )
        tweedie = x.detach() + level**2 * slope
        torch.testing.assert_close(mixture.denoise(pixels, sigma).flatten(), tweedie)
    x, sigma, _ = draw(1)
    level = sigma.view(-1, 1, 1, 1)
    torch.testing.assert_close(GAUSSIAN.denoise(x, sigma), x * S**2 / (S**2 + level**2))
    torch.testing.assert_close(GAUSSIAN.score(x, sigma), -x / (S**2 + level**2))


@pytest.mark.parametrize("variance_reduction", [True, False])
def test_paas_expects_the_mean_score_around_a_picture(variance_reduction):
    """E_n[score(x + sigma n; sigma)], which for N(0, s^2) is -x / (s^2 + sigma^2).

    The noise that PAAS adds blurs the score once: it is not the score of data blurred twice, at
    sqrt(2) sigma, which is -x / (s^2 + 2 sigma^2).
    """
    x, sigma, noise = draw(20_000)
    score = paas(gaussian_denoiser, x, sigma, noise, variance_reduction=variance_reduction)
    expected = GAUSSIAN.score(x, sigma)
    level = sigma.view(-1, 1, 1, 1)
    deviation = (S**2 / level if variance_reduction else level) / (S**2 + level**2)
    error = 5 * deviation / len(noise) ** 0.5
    assert ((score - expected).abs() < error).all()
    twice = GAUSSIAN.score(x, 2**0.5 * sigma)
    assert ((score - twice).abs() > error).float().mean() > 0.7


def test_paas_of_a_mixture_is_its_integral():
    """Against E_n[(D(x + sigma n; sigma) - x) / sigma^2] by Gauss-Hermite quadrature."""
    mixture = KnownPrior(torch.tensor([-0.8, 0.1, 0.9]).view(3, 1, 1, 1), 0.15, weights=[3, 1, 2])
    x = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64).view(-1, 1, 1, 1)
    sigma = torch.tensor([0.3, 0.3, 0.5, 0.5, 1.0, 2.0, 2.0], dtype=torch.float64)
    level = sigma.view(-1, 1, 1, 1)
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    weights = weights / weights.sum()
    around = [x + level * n for n in nodes]
    pairs = list(zip(weights, around, strict=True))
    integral = sum(w * (mixture.denoise(z, sigma) - x) / level**2 for w, z in pairs)
    scores = sum(w * mixture.score(z, sigma) for w, z in pairs)  # the same, since E[n] = 0
    torch.testing.assert_close(integral, scores, rtol=1e-6, atol=1e-6)

    generator = torch.Generator().manual_seed(0)
    n = torch.randn(20_000, *x.shape, generator=generator, dtype=torch.float64)
    z = x + level * n
    d = mixture.denoise(z.flatten(0, 1), sigma.repeat(len(n))).view_as(z)
    for reduced, start in ((False, z), (True, x)):
        found = paas(mixture.denoise, x, sigma, n, variance_reduction=reduced)
        error = 5 * ((d - start) / level**2).std(0) / len(n) ** 0.5
        assert ((found - integral).abs() < error).all()
    # Where the data are not Gaussian this is neither the score at x nor that at sqrt(2) sigma.
    for other in (mixture.score(x, sigma), mixture.score(x, 2**0.5 * sigma)):
        assert ((other - integral).abs() > 5 * error).any()


def test_variance_reduction_scales_the_noise_by_s2_over_sigma2():
    """The variances of eq. 16 and eq. 15 are as (s^2 / sigma^2)^2: less only where sigma > s."""
    x, sigma, noise = draw(2_000)
    variances = []
    for variance_reduction in (True, False):
        samples = torch.stack(
            [
                paas(gaussian_denoiser, x, sigma, n[None], variance_reduction=variance_reduction)
                for n in noise
            ]
        )
        variances.append(samples.var(dim=0).mean(dim=(1, 2, 3)))
    ratio = variances[0] / variances[1]
    torch.testing.assert_close(ratio, (S**2 / sigma**2) ** 2, rtol=1e-6, atol=0)
    assert ratio[0] > 1 > ratio[1]


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

    guided = True

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


def test_perp_neg_takes_out_only_what_is_at_right_angles():
    """Written out for one pixel pair: uncond 0, cond along x, the negative half along each axis."""

    class Vectors:
        calls, guided = 0, True

        def denoise(self, x, sigma, cond):
            self.calls += 1
            return cond.hidden.view(-1, 1, 1, 2).expand_as(x)

    prior, x = Vectors(), torch.zeros(1, 1, 1, 2)
    uncond, cond, negative = (
        Cond(torch.tensor([[v]])) for v in ([0.0, 0.0], [2.0, 0.0], [3.0, 1.0])
    )
    scale, weight = torch.tensor([10.0]), torch.tensor([[0.5]])
    guided = guide(prior, x, torch.ones(1), cond, uncond, scale, [negative], weight)
    assert guided.flatten().tolist() == [20.0, -5.0]  # the negative's x component plays no part
    assert prior.calls == 1
    without = guide(prior, x, torch.ones(1), cond, uncond, scale, [negative], 0 * weight)
    torch.testing.assert_close(without, guide(prior, x, torch.ones(1), cond, uncond, scale))


def test_perpendicular_is_per_sample():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, *SHAPE, generator=generator)
    rest = perpendicular(a, b)
    torch.testing.assert_close((rest * b).sum((1, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(perpendicular(b, b), torch.zeros(SHAPE), atol=1e-6, rtol=0)
    torch.testing.assert_close(perpendicular(a, 1e-3 * b), rest)


def test_sds_is_dreamfusions_formula():
    """w(t) (eps_hat - eps) in DreamFusion's own variables: z_t = alpha x + s eps."""
    x, sigma, noise = draw(1)
    level = sigma.view(-1, 1, 1, 1)
    alpha = 1 / (1 + level**2).sqrt()
    s = level * alpha  # alpha^2 + s^2 = 1
    z_t = alpha * x + s * noise[0]
    denoised = gaussian_denoiser(z_t / alpha, sigma)
    eps_hat = (z_t - alpha * denoised) / s
    expected = -(s**2) * (eps_hat - noise[0])  # w(t) = s^2 = 1 - alpha_bar
    torch.testing.assert_close(sds(gaussian_denoiser, x, sigma, noise[0]), expected)
    assert weighting("sjc", sigma) is sigma


def test_recon_is_mvdreams_loss():
    """|x - D|^2 / 2 with D held fixed: its descent direction is D - x, as eq. 16 has it."""
    x, sigma, noise = draw(1)
    towards = paas(gaussian_denoiser, x, sigma, noise)
    target = gaussian_denoiser(x + sigma.view(-1, 1, 1, 1) * noise[0], sigma)
    pulled = x.clone().requires_grad_()
    ((pulled - target).square().sum() / 2).backward()
    weighted = weighting("recon", sigma).view(-1, 1, 1, 1) * towards
    torch.testing.assert_close(weighted, -pulled.grad)


def test_the_naive_score_is_wrong_where_the_denoiser_was_never_trained():
    """Data are two points, -1 and 1. At x = 0.9 the true score of their blur points to 1; a
    denoiser that expects noise of level sigma takes x for a noisy picture and is too sure of
    nothing: at sigma = 3 it answers nearly 0, and the naive score points away from the data.
    """

    two_points = KnownPrior(torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1)).denoise  # tanh(z / sigma^2)
    x = torch.full((1, 1, 1, 1), 0.9, dtype=torch.float64)
    sigma = torch.tensor([3.0], dtype=torch.float64)
    assert naive(two_points, x, sigma).item() == pytest.approx(
        (math.tanh(0.9 / 9) - 0.9) / 9, rel=1e-12
    )
    assert naive(two_points, x, sigma) < 0
    generator = torch.Generator().manual_seed(0)
    near = torch.tensor([0.3], dtype=torch.float64)
    noise = torch.randn(4000, 1, 1, 1, 1, generator=generator, dtype=torch.float64)
    assert paas(two_points, x, near, noise) > 0


def test_rescaling_takes_the_contrast_of_all_views_of_a_group():
    """Views of +-1, +-3 beside text of +-1, +-2, in two groups of which the second is doubled."""
    guided = torch.tensor([1.0, 3.0, 2.0, 6.0], dtype=torch.float64).view(4, 1, 1, 1)
    guided = torch.cat([guided, -guided], dim=3)
    text = torch.tensor([1.0, 2.0, 1.0, 2.0], dtype=torch.float64).view(4, 1, 1, 1)
    text = torch.cat([text, -text], dim=3)
    share = torch.tensor([1.0, 0.5, 0.0, 1.0], dtype=torch.float64)
    ratio = math.sqrt((1 + 4) / (1 + 9))  # of the two groups' views together
    factors = torch.tensor([ratio, (1 + ratio) / 2, 1.0, ratio / 2], dtype=torch.float64)
    found = rescaled(guided, text, share, group=2)
    torch.testing.assert_close(found, guided * factors.view(4, 1, 1, 1))
    torch.testing.assert_close(rescaled(1e-3 * guided, 1e-3 * text, share, group=2), 1e-3 * found)


def test_a_prior_of_ones_own_has_each_view_rescaled_by_itself():
    views = torch.tensor([[1.0, -1.0], [2.0, -2.0], [3.0, -3.0]]).view(3, 1, 1, 2)

    class Pictures:
        guided = True

        def denoise(self, x, sigma, cond):
            return cond.hidden.view(-1, 1, 1, 2)

    cond, uncond = (Cond(pictures.view(3, 1, 2)) for pictures in (views, 0 * views))
    scale, share = torch.full((3,), 5.0), torch.tensor([0.0, 0.5, 1.0])
    guided = guide(Pictures(), views, torch.ones(3), cond, uncond, scale, rescale=share)
    torch.testing.assert_close(guided, views * torch.tensor([5.0, 3.0, 1.0]).view(3, 1, 1, 1))


def test_pictures_of_one_colour_have_no_contrast_to_rescale_and_nothing_that_is_at_right_angles():
    grey = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    assert torch.equal(rescaled(grey, grey + 1, torch.ones(1), group=1), grey)
    away = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    assert torch.equal(perpendicular(away, grey), away)
