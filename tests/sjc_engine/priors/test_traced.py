"""A traced network says what the network says, bit for bit, or is not traced."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_priors import FAMILIES
from torch import Tensor, nn

from sjc_engine import load_prior
from sjc_engine.priors import traced
from sjc_engine.priors.denoiser import Cond
from sjc_engine.priors.traced import TracedNetwork

CALLS = 3


@pytest.fixture(autouse=True)
def traced_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traced, "CALLS", CALLS)


@pytest.fixture(autouse=True)
def untraced() -> None:
    """Here they are traced."""


@pytest.mark.parametrize("prior_id", ["toybox", "toybox-duck", *FAMILIES])
def test_d_is_the_same_bit_for_bit(prior_id: str, tmp_path: Path) -> None:
    build = FAMILIES.get(prior_id)
    prior = load_prior(str(build(tmp_path)) if build else prior_id)
    network = prior._unet.network
    generator = torch.Generator().manual_seed(0)
    cond = prior.condition(["a yellow duck", "a red chair", "a boat"])
    # Three kinds of call; renderings lie channels last
    kinds = [(2, torch.channels_last), (2, torch.contiguous_format), (3, torch.channels_last)]
    for count, layout in kinds:
        cond = Cond.cat([cond[:1]] * count)
        for call in range(CALLS + 3):
            shape = (count, prior.channels, prior.resolution, prior.resolution)
            x = torch.randn(shape, generator=generator).to(memory_format=layout)
            sigma = torch.rand(count, generator=generator) * 10 + 0.1
            found = prior.denoise(x, sigma, cond)
            whole, prior._unet = prior._unet, network
            assert torch.equal(found, prior.denoise(x, sigma, cond)), call
            prior._unet = whole
            (torch.ones_like(found, requires_grad=True) * found).sum().backward()  # keeps D
    assert [trace is not None for trace in prior._unet._traces.values()] == [True] * 3


class Odd(nn.Module):
    """A network that a trace would get wrong, or cannot follow."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.weight = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, x: Tensor) -> SimpleNamespace:
        if self.how == "a constant of its input":
            return SimpleNamespace(sample=x + float(x.mean()))
        if self.how == "a way that depends on its input":
            return SimpleNamespace(sample=x * 2 if x.sum() > 100 else x)
        return SimpleNamespace(sample={"not": "a tensor"})


@pytest.mark.parametrize(
    "how", ["a constant of its input", "a way that depends on its input", "another answer"]
)
def test_a_network_that_a_trace_would_change_is_left_alone(how: str) -> None:
    network = TracedNetwork(Odd(how))
    for value in range(1, CALLS + 4):
        x = torch.full((10,), 10.0 * value)
        answer, wanted = network(x).sample, network.network(x).sample
        assert torch.equal(answer, wanted) if how != "another answer" else answer == wanted
    assert list(network._traces.values()) == [None]


def test_a_large_network_is_not_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven calls of Stable Diffusion take minutes, and Python is nothing beside them."""
    monkeypatch.setattr(traced, "LARGEST", 0)
    network = TracedNetwork(Odd("a way that depends on its input"))
    for _ in range(CALLS + 1):
        network(torch.ones(2))
    assert network._traces == {}
