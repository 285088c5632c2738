"""Adamax on a CPU: torch's numbers, bit for bit, in one pass over memory instead of six."""

from __future__ import annotations

from typing import Any

import torch
from numba import njit
from torch import Tensor

from sjc_engine.rendering.kernels import OPTIONS


# torch's `lerp_` is a fused multiply-add where the processor has one. So is the first line here,
# the only one that can be contracted.
@njit(**OPTIONS | {"fastmath": {"contract"}})
def _update(
    value: Any, slope: Any, mean: Any, bound: Any, share: Any, decay: Any, eps: Any, rate: Any
) -> None:
    """Kingma & Ba 2015, Algorithm 2, as torch rounds it: `mean` is m, `bound` u."""
    for i in range(value.size):
        mean[i] += share * (slope[i] - mean[i])
        faded, steep = decay * bound[i], abs(slope[i]) + eps
        bound[i] = faded if faded > steep else steep
        value[i] += rate * mean[i] / bound[i]


class OnePassAdamax(torch.optim.Adamax):
    """For a CPU, and tensors that leave no gaps in memory. Its state is torch's."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            lists: list[list[Tensor]] = [[], [], [], [], []]
            self._init_group(group, *lists)
            for value, slope, mean, bound, count in zip(*lists, strict=True):
                count += 1
                rate = -(group["lr"] / (1 - beta1 ** count.item()))
                arrays = [_flat(tensor, value) for tensor in (value, slope, mean, bound)]
                real = arrays[0].dtype.type
                _update(*arrays, *map(real, (1 - beta1, beta2, group["eps"], rate)))


def _flat(tensor: Tensor, like: Tensor) -> Any:
    """A tensor's memory; that of a copy if it is laid out otherwise than `like`."""
    if tensor.stride() != like.stride():
        tensor = torch.empty_like(like).copy_(tensor)
    return tensor.as_strided((tensor.numel(),), (1,)).numpy()
