"""A prior's network made faster, by torch.compile or as a CUDA graph, where that gives the same."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

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

    made = "compiled"  # in the warning

    def __init__(self, network: Callable[..., Any]) -> None:
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
                self._compiled = self._compile()
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
            message = "the network runs as it is, not %s, which may be slower: %s"
            LOG.warning(message, self.made, why)
        return plain

    def _compile(self) -> Callable[..., Any]:
        return torch.compile(self.network)


class ReplayedNetwork(CompiledNetwork):
    """The same by CUDA graphs, one for each size of batch: a launch instead of some 750."""

    made = "replayed as a CUDA graph"

    def _compile(self) -> Callable[..., Any]:
        return CudaGraphs(self.network)


class CudaGraphs:
    """Records a network's work for each size of batch, and has the GPU do it again.

    A graph reads and writes always the same memory: inputs are copied there, and the output away.
    All graphs share the memory in between, since only one of them runs at a time.
    """

    def __init__(self, network: Callable[..., Any]) -> None:
        self.network = network
        self._graphs: dict[Any, tuple[torch.cuda.CUDAGraph, list[Tensor], Any]] = {}
        self._pool: Any = None  # of memory

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> Any:
        given = [*args, *kwargs.values()]
        key = tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in given)
        if key not in self._graphs:
            self._graphs[key] = self._record(given, len(args), list(kwargs))
        graph, inputs, output = self._graphs[key]
        for tensor, value in zip(inputs, given, strict=True):
            tensor.copy_(value)
        graph.replay()
        return type(output)(sample=output.sample.clone())

    def _record(
        self, given: list[Tensor], positional: int, names: list[str]
    ) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Any]:
        inputs = [tensor.clone() for tensor in given]
        args = inputs[:positional]
        kwargs = dict(zip(names, inputs[positional:], strict=True))
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(inputs[0].device)
        # Once before: libraries allocate and choose at their first call, which no graph can hold
        stream.wait_stream(torch.cuda.current_stream(stream.device))
        with torch.cuda.stream(stream):
            self.network(*args, **kwargs)
        torch.cuda.current_stream(stream.device).wait_stream(stream)
        try:
            # Other threads may go on using the device
            with torch.cuda.graph(
                graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"
            ):
                output = self.network(*args, **kwargs)
        except torch.OutOfMemoryError as error:  # where the network alone has just found enough
            raise RuntimeError("no memory for a CUDA graph") from error
        self._pool = graph.pool()
        return graph, inputs, output


def disagreement(found: Tensor, wanted: Tensor) -> str:
    """How a compiled network's answer differs from the plain one's; "" when only in roundings."""
    largest = wanted.abs().amax().clamp(min=torch.finfo(wanted.dtype).tiny)
    difference = float((found - wanted).abs().amax() / largest)
    if difference <= AGREEMENT[wanted.dtype]:
        return ""
    return f"its answers differ from the plain network's by {difference:.1g}"
