"""Networks compiled by torch.compile: the same answers, or the plain network's."""

import logging

import pytest
import torch
from diffusers import UNet2DConditionModel
from tiny_priors import FAMILIES, WIDTH

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
