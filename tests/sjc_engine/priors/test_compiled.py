"""Networks compiled by torch.compile: the same answers, or the plain network's."""

import contextlib
import logging

import pytest
import torch
from diffusers import UNet2DConditionModel
from tiny_priors import FAMILIES, WIDTH
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sjc_engine.priors import compiled
from sjc_engine.priors.denoiser import load_prior


@pytest.fixture(autouse=True)
def _forget_what_was_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def prior(tmp_path):
    return load_prior(str(FAMILIES["pixel"](tmp_path)))


def questions(prior, count):
    generator = torch.Generator().manual_seed(count)
    x = torch.randn(count, prior.channels, prior.resolution, prior.resolution, generator=generator)
    return x, torch.linspace(0.5, 5, count), prior.condition(["a duck"] * count)


@pytest.mark.slow
@pytest.mark.system
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of its own parts
def test_a_compiled_network_answers_the_same_for_every_size_of_batch(prior, caplog):
    # As shallow as diffusers makes one: each of its two compilations takes most of a minute
    shallow = UNet2DConditionModel(
        sample_size=prior.resolution // 2,
        in_channels=12,
        out_channels=12,
        block_out_channels=(8,),
        down_block_types=("CrossAttnDownBlock2D",),
        mid_block_type=None,
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    prior._unet = shallow.eval().requires_grad_(False)
    asked = [questions(prior, count) for count in (2, 4, 2, 4)]
    plain = [prior.denoise(*question) for question in asked]
    prior.compile()
    with caplog.at_level(logging.WARNING, "sjc_engine"):
        for question, expected in zip(asked, plain, strict=True):
            torch.testing.assert_close(prior.denoise(*question), expected, rtol=1e-5, atol=1e-4)
    assert len(prior._unet._agreed) == 2, caplog.text
    assert not caplog.records


def stands_in(monkeypatch, network):
    """Has torch.compile make this of whatever it is given."""
    monkeypatch.setattr(compiled.torch, "compile", lambda plain: network(plain))


def test_what_does_not_compile_runs_plain_and_says_so_once(prior, monkeypatch, caplog):
    def broken(plain):
        def call(*args, **kwargs):
            raise RuntimeError("no C++ compiler\nand much more")

        return call

    question = questions(prior, 2)
    expected = prior.denoise(*question)
    stands_in(monkeypatch, broken)
    prior.compile()
    for _ in range(2):
        assert torch.equal(prior.denoise(*question), expected)
    [record] = caplog.records
    assert record.getMessage().endswith("may be slower: RuntimeError: no C++ compiler")


def test_another_answer_is_not_used(prior, monkeypatch, caplog):
    def wrong(plain):
        def call(x, *args, **kwargs):
            output = plain(x, *args, **kwargs)
            output.sample = output.sample * (1.01 if len(x) > 2 else 1)
            return output

        return call

    few, many = questions(prior, 2), questions(prior, 3)
    expected = prior.denoise(*many)
    stands_in(monkeypatch, wrong)
    prior.compile()
    prior.denoise(*few)
    assert not caplog.records
    for _ in range(2):
        assert torch.equal(prior.denoise(*many), expected)
    [record] = caplog.records
    assert "differ from the plain network's by 0.01" in record.getMessage()


def test_memory_that_runs_out_is_not_the_compilers_fault(prior, monkeypatch):
    def hungry(plain):
        def call(*args, **kwargs):
            raise torch.OutOfMemoryError("CUDA out of memory")

        return call

    question = questions(prior, 2)
    stands_in(monkeypatch, hungry)
    prior.compile()
    with pytest.raises(torch.OutOfMemoryError):
        prior.denoise(*question)
    assert not prior._unet._given_up


def test_compilers_run_out_of_memory_by_themselves(prior, monkeypatch, caplog):
    def hungry(plain):
        raise RuntimeError("cc1plus: out of memory allocating 65536 bytes")

    question = questions(prior, 2)
    expected = prior.denoise(*question)
    stands_in(monkeypatch, hungry)
    prior.compile()
    assert torch.equal(prior.denoise(*question), expected)
    assert "cc1plus" in caplog.text


def test_an_answer_that_is_not_finite_says_nothing_of_the_compiler(prior, monkeypatch, caplog):
    stands_in(monkeypatch, lambda plain: plain)
    prior.compile()
    x, sigma, cond = questions(prior, 2)
    assert not prior.denoise(x * float("nan"), sigma, cond).isfinite().any()
    assert not caplog.records
    prior.denoise(x, sigma, cond)
    assert len(prior._unet._agreed) == 1


class Graph(TorchDispatchMode):
    """A CUDA graph's stand-in: operations on the same memory, done again when it is replayed."""

    def __init__(self):
        super().__init__()
        self.done = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.done.append((func, args, kwargs or {}, result))
        return result

    def replay(self):
        for func, args, kwargs, result in self.done:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old is not new:
                    old.copy_(new)

    def pool(self):
        return "pool"


@pytest.fixture
def graphs(monkeypatch):
    """All graphs that are recorded, and the memory pools that they were given."""
    made = []

    class Stream:
        def __init__(self, device):
            self.device = device

        def wait_stream(self, other):
            pass

    @contextlib.contextmanager
    def record(graph, pool, stream, capture_error_mode):
        with graph:
            yield
        made.append((graph, pool))

    cuda = compiled.torch.cuda
    monkeypatch.setattr(cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(cuda, "graph", record)
    monkeypatch.setattr(cuda, "Stream", Stream)
    monkeypatch.setattr(cuda, "current_stream", Stream)
    monkeypatch.setattr(cuda, "stream", contextlib.nullcontext)
    return made


def launch_fast(prior):
    """As if the prior were on a GPU."""
    prior._unet = getattr(prior._unet, "network", prior._unet)
    prior.device = torch.device("cuda")
    prior.enable_fast_launch()
    prior.device = torch.device("cpu")


def test_a_replayed_network_answers_the_same_for_every_size_of_batch(prior, graphs, caplog):
    asked = [questions(prior, count) for count in (2, 4, 2, 4)]
    asked[2] = (asked[2][0] + 1, asked[2][1] * 2, prior.condition(["a chair", "a cup"]))
    launch_fast(prior)
    assert prior.fast_launch
    plain = prior._unet.network
    found = [prior.denoise(*question) for question in asked]
    again = [prior.denoise(*question) for question in asked]
    prior._unet = plain
    for answers in (found, again):  # those of before are not written over
        for answer, question in zip(answers, asked, strict=True):
            assert torch.equal(answer, prior.denoise(*question))
    assert [pool for _, pool in graphs] == [None, "pool"]  # a graph for each size, one memory
    assert not caplog.records


def test_only_a_gpu_is_launched_fast(prior):
    network = prior._unet
    prior.enable_fast_launch()
    assert not prior.fast_launch
    assert prior._unet is network


@pytest.mark.parametrize("error", [RuntimeError("capture"), torch.OutOfMemoryError("no room")])
def test_what_cannot_be_recorded_runs_plain_and_says_so_once(
    prior, graphs, monkeypatch, caplog, error
):
    """Also for want of memory: the network alone has some."""

    def fail(*args, **kwargs):
        raise error

    question = questions(prior, 2)
    launch_fast(prior)
    expected = prior._unet.network
    monkeypatch.setattr(compiled.torch.cuda, "graph", fail)
    found = [prior.denoise(*question) for _ in range(3)]
    prior._unet = expected
    assert all(torch.equal(answer, prior.denoise(*question)) for answer in found)
    [record] = caplog.records
    assert "not replayed as a CUDA graph, which may be slower" in record.getMessage()


def test_a_graph_with_another_answer_is_not_used(prior, graphs, monkeypatch, caplog):
    """One that reads old inputs, say."""
    question = questions(prior, 2)
    launch_fast(prior)
    plain = prior._unet.network
    replay = Graph.replay
    monkeypatch.setattr(
        Graph, "replay", lambda graph: (replay(graph), graph.done[-1][-1].mul_(1.1))
    )
    found = [prior.denoise(*question) for _ in range(2)]
    prior._unet = plain
    assert all(torch.equal(answer, prior.denoise(*question)) for answer in found)
    assert "differ from the plain network's" in caplog.text
