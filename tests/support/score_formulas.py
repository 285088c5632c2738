"""Scores as other papers write them, to hold the step against."""

from __future__ import annotations

from torch import Tensor

from sjc_engine.guidance.score import Denoiser, paas, weighting


def naive(denoise: Denoiser, x: Tensor, sigma: Tensor) -> Tensor:
    """(D(x; sigma) - x) / sigma^2: the score where D was never trained, at images without noise.

    The paper's out-of-distribution problem (section 4.1): D takes x for noise plus a blank image.
    """
    return (denoise(x, sigma) - x) / sigma.to(x).view(-1, 1, 1, 1) ** 2


def sds(denoise: Denoiser, x: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """DreamFusion's step -w(t) (eps_hat - eps) for one noise (B, C, H, W) (Poole et al., eq. 3).

    With z = x + sigma eps and eps_hat = (z - D) / sigma the difference is (x - D) / sigma: eq. 16
    of the SJC paper with n = 1, weighted by sigma w(t), where w(t) = 1 - alpha_bar(t).
    """
    return weighting("sds", sigma).to(x).view(-1, 1, 1, 1) * paas(denoise, x, sigma, noise[None])
