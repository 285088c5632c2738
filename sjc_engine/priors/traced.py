"""A prior's network on a CPU, traced: the same operations without the Python between them."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

# Of one kind before it is traced, which takes thirty calls' time and saves a quarter of each later
# one's: a scene of few steps would only pay for it.
CALLS = 25
LARGEST = 50_000_000  # weights: of a larger network's time Python has no share


class TracedNetwork(nn.Module):
    """Is called like a diffusers network and answers like it, bit for bit, in less time.

    Python is a quarter of a small network's time. Each kind of call (shapes, layouts, precisions)
    is traced once, and the trace's first answers held against the network's. A kind whose answers
    differ, or that cannot be traced, stays with the network. Answers carry no gradient.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._is_small = sum(weight.numel() for weight in network.parameters()) <= LARGEST
        self._calls: dict[Any, int] = {}  # how often each kind was asked for
        self._traces: dict[Any, Any] = {}  # by kind; None: the network itself

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        tensors = (*inputs, *named.values())
        kind = (tuple(named), *((t.shape, t.stride(), t.dtype) for t in tensors))
        if trace := self._traces.get(kind):
            with torch.inference_mode():  # operations take no note of views and versions
                answer = trace(*tensors)
            return SimpleNamespace(sample=answer.clone())  # which autograd may keep
        answer = self.network(*inputs, **named)
        self._calls[kind] = self._calls.get(kind, 0) + 1
        if self._calls[kind] == CALLS and self._is_small:
            self._traces[kind] = _traced(self.network, tuple(named), tensors)
        return answer


class _Plain(nn.Module):
    """A network whose arguments and answer are tensors, as a trace wants them."""

    def __init__(self, network: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, *tensors: Tensor) -> Tensor:
        split = len(tensors) - len(self.names)
        named = dict(zip(self.names, tensors[split:], strict=True))
        sample: Tensor = self.network(*tensors[:split], **named).sample
        return sample


def _traced(network: nn.Module, names: tuple[str, ...], tensors: tuple[Tensor, ...]) -> Any:
    """The trace of a call; None if it cannot be had, or answers otherwise than the network."""
    plain = _Plain(network, names).eval()
    try:
        with warnings.catch_warnings(), torch.no_grad(), _laid_out_for(plain, tensors):
            # About values that become constants, which is looked at below, and about the tracer's
            # age: torch.export has the same bits too, but a fifth of the gain.
            warnings.simplefilter("ignore")
            trace = torch.jit.freeze(torch.jit.trace(plain, tensors, check_trace=False))
        with torch.inference_mode():
            # Other values, so that none of these is in the trace; it is optimised from its second
            # call on.
            others = [tuple((t * share).to(t.dtype) for t in tensors) for share in (1, 0.5, 0.25)]
            same = all(torch.equal(trace(*other), plain(*other)) for other in others)
    except Exception:  # no memory for it, or whatever a network does that the tracer does not know
        return None
    return trace if same else None


@contextlib.contextmanager
def _laid_out_for(network: nn.Module, tensors: tuple[Tensor, ...]) -> Iterator[None]:
    """Meanwhile, convolutions whose input lies channels last have weights that do.

    Else they would be copied at each call. All others' would change the layout of what follows.
    """
    convolutions = [part for part in network.modules() if isinstance(part, nn.Conv2d)]
    kept = [convolution.weight for convolution in convolutions]

    def look(part: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(part, nn.Conv2d)
        x, last = inputs[0], torch.channels_last
        if x.is_contiguous(memory_format=last) and not x.is_contiguous():
            weight = part.weight.contiguous(memory_format=last)
            part.weight = nn.Parameter(weight, requires_grad=False)

    try:
        with contextlib.ExitStack() as hooks:
            for convolution in convolutions:
                hooks.enter_context(convolution.register_forward_pre_hook(look))
            network(*tensors)
        yield
    finally:
        for convolution, weight in zip(convolutions, kept, strict=True):
            convolution.weight = weight
