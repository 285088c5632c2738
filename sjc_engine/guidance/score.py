"""Scores of a rendering under a denoiser, and guidance: every formula of the method, one screen.

PAAS is Wang et al. 2022, section 4.2. All scores here point uphill, towards likelier images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, cat

from sjc_engine.priors.denoiser import Cond, Prior
from sjc_engine.recipes import Score

Denoiser = Callable[[Tensor, Tensor], Tensor]  # (x (B, C, H, W), sigma (B,)) -> D (B, C, H, W)


def guide(
    prior: Prior,
    x: Tensor,
    sigma: Tensor,
    cond: Cond,
    uncond: Cond,
    scale: Tensor,
    negatives: Sequence[Cond] = (),
    weights: Tensor | None = None,
    rescale: Tensor | None = None,
) -> Tensor:
    """D_uncond + s (D_cond - D_uncond) in one network call for all; `scale` is (B,).

    `negatives` and their `weights` (m, B) add Perp-Neg (Armandpour et al. 2023, eq. 6): what
    remains of (D_neg - D_uncond), once its part along (D_cond - D_uncond) is taken out, is
    subtracted, so that "not the front" does not also say "not the object". `rescale` (B,) takes
    that share of the contrast back that guidance adds (`rescaled`).
    """
    if not prior.guided:
        return prior.denoise(x, sigma, cond)
    conds = [uncond, cond, *negatives]
    many = len(conds)
    d = prior.denoise(cat([x] * many), cat([sigma] * many), Cond.cat(conds))
    without, with_text, *against = d.chunk(many)
    towards = with_text - without
    direction = towards
    for weight, negative in zip(weights if weights is not None else (), against, strict=True):
        away = perpendicular(negative - without, towards)
        direction = direction - weight.to(x).view(-1, 1, 1, 1) * away
    guided = without + scale.to(x).view(-1, 1, 1, 1) * direction
    group = getattr(prior, "group", 1)  # a prior of one's own may not say
    return guided if rescale is None else rescaled(guided, with_text, rescale, group)


def rescaled(guided: Tensor, with_text: Tensor, share: Tensor, group: int) -> Tensor:
    """(1 - phi) D + phi D std(D_cond) / std(D), of all pixels of a group's views; phi is (B,).

    Lin et al. 2023, eqs. 15 and 16, for D; a large s makes saturated colours.
    """
    text, all_of_it = (d.unflatten(0, (-1, group)).flatten(1).std(1) for d in (with_text, guided))
    ratio = (text / all_of_it.clamp(min=1e-8)).repeat_interleave(group)
    return guided * (1 + share.to(guided) * (ratio - 1)).view(-1, 1, 1, 1)


def perpendicular(a: Tensor, b: Tensor) -> Tensor:
    """The part of each sample of a (B, ...) that is at right angles to that of b (B, ...)."""
    flat_a, flat_b = a.flatten(1), b.flatten(1)
    along = (flat_a * flat_b).sum(1) / flat_b.square().sum(1).clamp(min=1e-12)
    return a - along.view(-1, *[1] * (a.dim() - 1)) * b


def paas(
    denoise: Denoiser, x: Tensor, sigma: Tensor, noise: Tensor, *, variance_reduction: bool = True
) -> Tensor:
    """PAAS(x; sigma), the score of images x (B, C, H, W) that no noise was added to (eq. 14).

    x itself is not what D was trained on, so n noisy copies z = x + sigma noise are denoised, with
    noise (n, B, C, H, W) from N(0, 1), and their estimates averaged.
    """
    z = perturb(x, sigma, noise)
    d = denoise(z.flatten(0, 1), sigma.repeat(len(noise))).view_as(z)
    return average(d, x, z, sigma, variance_reduction=variance_reduction)


def perturb(x: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """z = x + sigma noise, (n, B, C, H, W)."""
    return x + sigma.to(x).view(-1, 1, 1, 1) * noise


def average(d: Tensor, x: Tensor, z: Tensor, sigma: Tensor, *, variance_reduction: bool) -> Tensor:
    """The mean over n of (D(z) - x) / sigma^2 (eq. 16), or of (D(z) - z) / sigma^2 (eq. 15).

    Both have the same expectation, since E[z] = x; the first leaves the noise out.
    """
    start = x if variance_reduction else z
    return (d - start).mean(dim=0) / sigma.to(x).view(-1, 1, 1, 1) ** 2


def weighting(score: Score, sigma: Tensor) -> Tensor:
    """What multiplies the score (B,) before it is chained.

    SJC's code uses sigma. SDS has sigma (1 - alpha_bar) = sigma^3 / (1 + sigma^2). MVDream's loss
    |x - D|^2 / 2 has sigma^2, which makes the score of eq. 16 a plain D - x.
    """
    if score == "recon":
        return sigma**2
    return sigma**3 / (1 + sigma**2) if score == "sds" else sigma
