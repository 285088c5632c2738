"""Priors whose denoiser and score are known in closed form: mixtures of equal, round Gaussians.

Data are a picture mu_k, drawn with probability w_k, plus noise of deviation s in every pixel. At
level sigma, with v = s^2 + sigma^2 and r_k ~ w_k exp(-|x - mu_k|^2 / 2 v) summing to 1,
    score(x) = sum_k r_k (mu_k - x) / v
    D(x; sigma) = x + sigma^2 score(x) = sum_k r_k (mu_k + s^2 / v (x - mu_k))
One picture is a Gaussian; s = 0 is the ideal denoiser of a set of pictures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sjc_engine.priors.denoiser import Cond


class KnownPrior:
    """A pixel prior over pictures (K, C, H, H), of which a prompt may admit a group alone.

    `groups` names rows of `pictures`; a prompt without a group, or None as cond, admits them all.
    """

    id, revision, latent = "known", "0", False
    device = torch.device("cpu")

    def __init__(
        self,
        pictures: Tensor,
        deviation: float = 0.0,
        *,
        weights: Sequence[float] | None = None,
        groups: Mapping[str, Sequence[int]] | None = None,
        levels: tuple[float, float] = (0.01, 10.0),
        guided: bool = True,
    ) -> None:
        self.pictures, self.deviation, self.guided = pictures, deviation, guided
        count, self.channels, self.resolution, _ = pictures.shape
        self.log_weights = torch.tensor(weights or [1 / count] * count).log()
        self.names = list(groups or {})
        self.rows = [torch.tensor(rows) for rows in (groups or {}).values()]
        low, high = (math.log10(level) for level in levels)
        self.sigmas = torch.logspace(low, high, 1000, dtype=torch.float64)

    def condition(self, prompts, images=None, cameras=None) -> Cond:
        numbers = [self.names.index(p) if p in self.names else -1 for p in prompts]
        return Cond(torch.tensor(numbers, dtype=torch.float32).view(-1, 1, 1))

    def decode(self, latents: Tensor) -> Tensor:
        return latents.clamp(-1, 1)

    def denoise(self, x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        return self._by_group(self._denoised, x, sigma, cond)

    def score(self, x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        """The gradient of the log density of the data blurred by sigma, at x."""
        return self._by_group(self._score, x, sigma, cond)

    def _by_group(self, formula, x, sigma, cond) -> Tensor:
        result, every = torch.empty_like(x), torch.arange(len(self.pictures))
        asked = torch.full((len(x),), -1) if cond is None else cond.hidden.flatten().long()
        for number in asked.unique().tolist():
            rows, mine = self.rows[number] if number >= 0 else every, asked == number
            level = sigma[mine].to(x).view(-1, 1)
            flat = formula(x[mine].flatten(1), level, rows)
            result[mine] = flat.view(-1, *x.shape[1:])
        return result

    def _responsibilities(self, x: Tensor, variance: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """r_k (B, K) and mu_k (K, pixels); what is the same for all k has no part in r_k."""
        means = self.pictures[rows].flatten(1).to(x)
        nearness = x @ means.T - means.square().sum(1) / 2
        return torch.softmax(nearness / variance + self.log_weights[rows].to(x), dim=1), means

    def _denoised(self, x: Tensor, sigma: Tensor, rows: Tensor) -> Tensor:
        variance = self.deviation**2 + sigma**2
        r, means = self._responsibilities(x, variance, rows)
        share = self.deviation**2 / variance
        return r @ means * (1 - share) + share * x

    def _score(self, x: Tensor, sigma: Tensor, rows: Tensor) -> Tensor:
        variance = self.deviation**2 + sigma**2
        r, means = self._responsibilities(x, variance, rows)
        return (r @ means - x) / variance


def gaussian(deviation: float, mean: float = 0.0, shape: tuple[int, int, int] = (3, 4, 4)):
    """Pixels from N(mean, deviation^2)."""
    return KnownPrior(torch.full((1, *shape), mean), deviation)
