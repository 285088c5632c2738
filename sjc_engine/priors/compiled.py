"""A prior's network, compiled by torch.compile where that works and says the same."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

LOG = logging.getLogger(__name__)

# Largest difference from the plain network, over its largest output: operations are fused, and
# round elsewhere.
AGREEMENT = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


class CompiledNetwork:
    """Is called like a diffusers network and answers like it, faster.

    torch.compile takes a minute for the first batch and again for the second size of batch; what it
    makes then serves most others. It needs a C++ compiler, and Triton on a GPU. A new size of batch
    is answered by the plain network once, and the compiled one's answer held against it. Where that
    differs, or nothing compiles, the plain network goes on alone, and a warning says why, once.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._compiled: Any = None
        self._agreed: set[torch.Size] = set()  # sizes of batch
        self._given_up = False

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self._given_up:
            return self.network(x, *args, **kwargs)
        output, reason = None, ""
        try:
            if self._compiled is None:
                self._compiled = torch.compile(self.network)
            output = self._compiled(x, *args, **kwargs)
        except (torch.OutOfMemoryError, MemoryError):  # of the device, not of a compiler
            raise
        except Exception as error:  # of whatever the compiler is made of
            reason = f"{type(error).__name__}: {error}"
        if output is not None and x.shape in self._agreed:
            return output
        plain = self.network(x, *args, **kwargs)
        if output is not None and plain.sample.isfinite().all():
            reason = disagreement(output.sample, plain.sample)
            if not reason:
                self._agreed.add(x.shape)
        if reason:
            self._given_up, self._compiled = True, None
            why = reason.strip().partition("\n")[0]
            LOG.warning("the network runs as it is, not compiled, which may be slower: %s", why)
        return plain


def disagreement(found: Tensor, wanted: Tensor) -> str:
    """How a compiled network's answer differs from the plain one's; "" when only in roundings."""
    largest = wanted.abs().amax().clamp(min=torch.finfo(wanted.dtype).tiny)
    difference = float((found - wanted).abs().amax() / largest)
    if difference <= AGREEMENT[wanted.dtype]:
        return ""
    return f"its answers differ from the plain network's by {difference:.1g}"
