"""A prior's network, compiled by torch.compile where that works and says the same."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from sjc_engine.memory import out_of_memory

LOG = logging.getLogger(__name__)

# Largest difference from the plain network, over its largest output: operations are fused, and
# round elsewhere.
AGREEMENT = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


class CompiledNetwork:
    """Is called like a diffusers network and answers like it, faster.

    torch.compile takes a minute for the first batch, and again for the second size of batch; what
    it makes then serves all. It needs a C++ compiler, and Triton on a GPU. Where compiling fails,
    or each time that a new size of batch gets an answer which is not the plain network's, the
    plain network goes on alone, and a warning says why, once.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._compiled: Any = torch.compile(network)
        self._checked: set[torch.Size] = set()

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self._compiled is None:
            return self.network(x, *args, **kwargs)
        try:
            output = self._compiled(x, *args, **kwargs)
        except Exception as error:  # of whatever the compiler is made of
            if out_of_memory(error):
                raise
            return self._plain(f"{type(error).__name__}: {error}")(x, *args, **kwargs)
        if x.shape in self._checked:
            return output
        plain = self.network(x, *args, **kwargs)
        largest = plain.sample.abs().amax()
        difference = float((output.sample - plain.sample).abs().amax() / largest)
        if not difference <= AGREEMENT[x.dtype]:
            self._plain(f"its answers differ from the plain network's by {difference:.1g}")
        self._checked.add(x.shape)
        return plain

    def _plain(self, reason: str) -> nn.Module:
        self._compiled = None
        first = reason.strip().partition("\n")[0]
        LOG.warning("the network runs as it is, not compiled, which may be slower: %s", first)
        return self.network
