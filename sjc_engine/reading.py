"""A step's numbers, read late: a GPU works while the next step is prepared."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Reading:
    """Numbers on their way from the device; nobody waits before they are asked for."""

    def __init__(self, values: Tensor) -> None:
        self._there = values  # (n,)
        self._here = values.to("cpu", non_blocking=True)
        self._arrival = torch.cuda.Event() if values.is_cuda else None
        if self._arrival:
            # Its own device's: the current one may be another
            self._arrival.record(torch.cuda.current_stream(values.device))

    def sound(self) -> Tensor:
        """Whether all are finite, () on the device."""
        return torch.isfinite(self._there).all()

    def numbers(self) -> list[float]:
        if self._arrival:
            self._arrival.synchronize()
        found: list[float] = self._here.tolist()
        return found


def hold_back_unless(sound: Tensor, field: nn.Module) -> None:
    """Takes a field's gradients away, on the device, where `sound` () is false."""
    for parameter in field.parameters():
        if parameter.grad is not None:
            parameter.grad = torch.where(sound, parameter.grad, 0.0)
