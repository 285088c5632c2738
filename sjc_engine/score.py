"""Perturb-and-average scoring (Wang et al. 2022, section 4.2) and classifier-free guidance."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, cat

from sjc_engine.prior import Cond, Prior

Denoiser = Callable[[Tensor, Tensor], Tensor]  # (x (B, C, H, W), sigma (B,)) -> D (B, C, H, W)


def guide(
    prior: Prior, x: Tensor, sigma: Tensor, cond: Cond, uncond: Cond, scale: Tensor
) -> Tensor:
    """D_uncond + s (D_cond - D_uncond) with one network call for both; `scale` is (B,)."""
    both = prior.denoise(cat([x, x]), cat([sigma, sigma]), Cond.cat([uncond, cond]))
    without, with_text = both.chunk(2)
    return without + scale.to(x).view(-1, 1, 1, 1) * (with_text - without)


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
